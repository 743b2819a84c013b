"""Polymers of property tables in shards: counted whatever their spelling, and kept out by --hold-out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards import build, leaks
from data_shards.reader import open_shards
from tests.data_shards.test_build import command

SIZE = ("--num-units", "2", "--conformers", "1", "--workers", "0", "--val-fraction", "0", "--test-fraction", "0")
TRAINED = ("*CC*", "*OC(C)C(*)=O", "*CC(*)C")


@pytest.fixture
def shards(tmp_path: Path, write_table: Callable[..., Path]) -> Path:
    """Three polymers, one of them in test."""
    (tmp_path / "test.txt").write_text("*CC(C)*\n")
    source = write_table(tmp_path / "polymers.csv", TRAINED)
    out = tmp_path / "shards"
    assert command(build.app, "--input", source, "--out", out, "--to-test", tmp_path / "test.txt", *SIZE) == 0
    return out


def test_a_leak_is_seen_in_any_spelling(
    shards: Path, tmp_path: Path, write_table: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    # the doubled unit, the other cut, another hand, a string that is no polymer, and one that is nowhere
    write_table(tables / "a.csv", ("*CCCC*", "*C(=O)[C@H](C)O*", "*C(=O)C(C)O*", "CC", "*CCO*"))
    write_table(tables / "b.csv", ("*C(C)C*",), column="smiles")
    report = tmp_path / "leaks.json"
    capsys.readouterr()
    assert command(leaks.app, shards, "--against", tables, "--out", report) == 0
    a, b = json.loads(report.read_text())
    assert a == {"table": "a.csv", "rows": 5, "useless": 1, "polymers": 3, "train": 2, "val": 0, "test": 0, "none": 1}
    assert (b["polymers"], b["test"], b["train"]) == (1, 1, 0)
    assert "a.csv" in capsys.readouterr().out
    assert command(leaks.app, shards, "--against", tables, "--out", report) == 2
    assert command(leaks.app, shards, "--against", tables / "b.csv", "--fail") == 0
    assert command(leaks.app, shards, "--against", tables, "--fail") == 2
    assert "polymers of a.csv (2) lie in train or val; build again with --hold-out" in capsys.readouterr().err


def test_held_out_polymers_are_in_no_shard(tmp_path: Path, write_table: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_table(tmp_path / "polymers.csv", TRAINED)
    held = write_table(tmp_path / "held.csv", ("*C(=O)[C@H](C)O*", "no polymer"))
    out = tmp_path / "shards"
    assert command(build.app, "--input", source, "--out", out, "--hold-out", held, *SIZE) == 0
    assert "held.csv: 1 of 2 rows are no polymer that could be in a shard" in capsys.readouterr().err
    opened = open_shards(out)
    assert opened.manifest.funnel.dropped == {"held-out": 1}
    assert sorted(entry.psmiles for entry in opened.samples("train")) == ["*C*", "*CC(*)C"]
    assert command(leaks.app, out, "--against", held, "--fail") == 0
    stages: Any = json.loads((out / "funnel.json").read_text())["stages"]
    assert [(stage["stage"], stage["left"]) for stage in stages] == [
        ("read", 3),
        ("standardise", 3),
        ("hold out", 2),
        ("one of each chain", 2),
        ("conform", 2),
    ]


def test_without_a_table_the_bundled_one_is_compared(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(leaks.app, shards, "--limit", 5) == 0
    assert "textbook" in capsys.readouterr().out
    assert command(leaks.app, shards, "--against", "nowhere.csv") == 2
    assert "nowhere.csv does not exist" in capsys.readouterr().err
