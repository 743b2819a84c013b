"""Polymers in, shards out: the commands end to end on real polymers, small chains."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import build, show, verify
from data_shards.console import run
from data_shards.decoding import decode
from data_shards.errors import PolymerError, ShardError
from data_shards.manifest import CHECKSUM, MANIFEST_NAME, parse_manifest, write_atomic
from data_shards.reader import ShardSet, open_shards
from data_shards.schema import chain_bonds

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
FILES = ("funnel.csv", "funnel.json", "funnel.md", "manifest.json")
SIZE = ("--num-units", "4", "--conformers", "2", "--shard-size", "6", "--workers", "0")
BAD = (
    "*CC",  # 1 star
    "not a polymer",
    "",
    "*OCC*",  # the same chain as *CCO*
    "*C(*)(c1ccc(C(C)(C)C)cc1)c1ccc(C(C)(C)CC(C)(C)C)cc1",  # larger than the bound of the fixture
)


def command(app: Callable[..., Any], *words: object) -> int:
    """Run a command in this process as `python -m` would; its exit code."""
    try:
        run(lambda: app([str(word) for word in words], standalone_mode=False))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files(folder: Path) -> dict[str, bytes]:
    """Everything but build.json, which holds seconds."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "build.json"}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory, polymers: tuple[str, ...]) -> Path:
    """Ten good polymers, five bad rows."""
    path = tmp_path_factory.mktemp("table") / "polymers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "psmiles"])
        writer.writerows(enumerate(polymers + BAD))
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """Shards of that table, built in this process."""
    out = tmp_path_factory.mktemp("built") / "shards"
    assert command(build.app, "--input", table, "--out", out, "--max-atoms-per-unit", 20, *SIZE) == 0
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


# what a build leaves


def test_shards_hold_the_polymers(built: Path) -> None:
    shards = open_shards(built)
    manifest = shards.manifest
    assert {split: len(shards.samples(split)) for split in manifest.splits} == {"train": 8, "val": 1, "test": 1}
    assert [shard.num_samples for _, shard in manifest.shards()] == [6, 2, 1, 1]
    assert sorted(path.name for path in built.iterdir()) == sorted([shard.name for _, shard in manifest.shards()] + [*FILES, "build.json"])
    styrene = next(entry for split in manifest.splits for entry in shards.samples(split) if "c1ccccc1" in entry.psmiles)
    sample = shards.read(styrene)
    assert sample.heavy_ang.shape == (2, 4 * 8 + 2, 3)
    assert sample.hydrogen_ang.shape[0] == 2
    assert sample.provenance["written"] == "*CC(*)c1ccccc1"
    assert sample.provenance["recipe"] == manifest.recipe_digest
    bonds, _ = chain_bonds(sample.topology, 4)
    lengths = np.linalg.norm(np.diff(sample.heavy_ang[:, bonds], axis=2)[:, :, 0], axis=2)
    assert 1.3 < lengths.min() < lengths.max() < 1.65
    assert not np.allclose(sample.heavy_ang[0], sample.heavy_ang[1])


def test_units_count_as_written(built: Path) -> None:
    shards = open_shards(built)
    ethylene = [entry for split in shards.manifest.splits for entry in shards.samples(split) if entry.psmiles == "*C*"]
    assert [entry.num_units for entry in ethylene] == [8]  # *CC* is two canonical units


def test_each_dropped_row_has_its_reason(built: Path, table: Path) -> None:
    with (built / "funnel.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["11", "12", "13", "14", "15"]
    assert [row["psmiles"] for row in rows] == list(BAD)
    assert [row["reason"] for row in rows] == ["star-count", "unparsable", "empty", "duplicate", "too-large"]
    assert rows[3]["detail"] == "the same chain as row 4"
    assert "must be <= 20; raise --max-atoms-per-unit" in rows[4]["detail"]
    funnel = open_shards(built).manifest.funnel
    assert (funnel.attempted, funnel.kept) == (15, 10)
    assert funnel.dropped == {"star-count": 1, "unparsable": 1, "empty": 1, "duplicate": 1, "too-large": 1}


def test_a_failure_in_chemistry_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_table: Make) -> None:
    from data_shards.conformers import grow, quality

    real, check = grow.grow_chain, quality.check_chain

    def broken(unit: Any, *args: Any, **options: Any) -> Any:
        if "Cl" in unit.topology.psmiles:
            raise ZeroDivisionError("a defect")
        if "#N" in unit.topology.psmiles:
            raise PolymerError(unit.topology.psmiles, "no-self-avoiding-chain", "too crowded")
        return real(unit, *args, **options)

    calls = []

    def picky(topology: Any, *args: Any, **options: Any) -> Any:
        calls.append(topology.psmiles)
        report = check(topology, *args, **options)
        first_of_propylene = topology.psmiles == "*CC(*)C" and calls.count("*CC(*)C") == 1
        if "O" in topology.psmiles or first_of_propylene:
            from dataclasses import replace

            return replace(report, ok=False, reason="clash")
        return report

    monkeypatch.setattr(grow, "grow_chain", broken)
    monkeypatch.setattr(quality, "check_chain", picky)
    source = write_table(tmp_path / "a.csv", ("*CC(*)Cl", "*CC(*)C#N", "*CC(*)C", "*CCO*"))
    assert command(build.app, "--input", source, "--out", tmp_path / "out", *SIZE) == 0
    shards = open_shards(tmp_path / "out")
    assert shards.manifest.funnel.dropped == {"error:ZeroDivisionError": 1, "no-self-avoiding-chain": 1, "quality:clash": 1}
    assert [(entry.psmiles, entry.num_conformations) for entry in shards.samples("train")] == [("*CC(*)C", 1)]
    assert "a defect" in (tmp_path / "out" / "funnel.csv").read_text()


# the same bytes


@pytest.mark.dist
@pytest.mark.usefixtures("ray_two_cpus")
def test_ray_writes_the_same_bytes(built: Path, table: Path, tmp_path: Path) -> None:
    assert command(build.app, "--input", table, "--out", tmp_path / "out", "--max-atoms-per-unit", 20, *SIZE[:-1], "2") == 0
    assert files(tmp_path / "out") == files(built)


def test_a_killed_build_continues_to_the_same_bytes(built: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "data_shards.build", "--input", str(table), "--out", str(out), "--max-atoms-per-unit", "20", *SIZE]
    for wanted in (2, 5):
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while len(list(out.glob(".staging/??/*"))) < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / MANIFEST_NAME).exists()
        with pytest.raises(ShardError, match="the build did not finish, run the same command again"):
            open_shards(out)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "of 10 polymers are done already" in done.stderr
    assert files(out) == files(built)


def test_a_kill_while_writing_continues_to_the_same_bytes(
    built: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_shards import pipeline, store, writer
    from data_shards.plan import Plan
    from data_shards.staging import Staging
    from data_shards.store import Folder

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    words = ("--input", table, "--out", out, "--max-atoms-per-unit", 20, *SIZE)
    points = (
        (pipeline, "finish_shard"),  # a shard's polymers are done, the shard is not begun
        (writer.os, "fsync"),  # written, not yet renamed
        (Folder, "place"),  # renamed, not yet in its place
        (Plan, "finish"),  # in its place, not yet noted
        (Staging, "remove"),  # noted, its polymers not yet cleared up
        (pipeline, "_funnel_csv"),
        (pipeline, "manifest_lines"),
        (store.shutil, "rmtree"),
    )
    for owner, name in points:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            assert command(build.app, *words) == 3, name
        assert (out / ".staging").exists()
    assert (out / MANIFEST_NAME).exists()  # the last kill came after the commit
    assert command(build.app, *words) == 0
    assert files(out) == files(built)


@pytest.mark.dist
@pytest.mark.parametrize("workers", ["0", "1"])
def test_stopping_is_resumable(table: Path, tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "data_shards.build", "--input", str(table), "--out", str(out), "--max-atoms-per-unit", "20", *SIZE]
    words[-1] = workers  # Ray has a handler of its own for this signal
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(out.glob(".staging/??/*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopped: finished polymers are kept; the same command continues" in said


def test_order_of_rows_changes_neither_samples_nor_splits(built: Path, table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()[1:11]
    (tmp_path / "b.csv").write_text("\n".join(["id,psmiles", *reversed(lines)]) + "\n")
    assert command(build.app, "--input", tmp_path / "b.csv", "--out", tmp_path / "out", "--max-atoms-per-unit", 20, *SIZE) == 0
    mine, other = open_shards(built), open_shards(tmp_path / "out")
    for split in ("train", "val", "test"):
        keys = [entry.key for entry in mine.samples(split)]
        assert keys == [entry.key for entry in other.samples(split)]
        for a, b in zip(mine.samples(split), other.samples(split), strict=True):
            assert np.array_equal(mine.read(a).heavy_ang, other.read(b).heavy_ang)


# nothing is overwritten


def test_nothing_is_overwritten_without_the_word(copy: Path, write_table: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copy)
    source = write_table(tmp_path / "a.csv", ("*CC*",))
    assert command(build.app, "--input", source, "--out", copy, *SIZE) == 2
    assert "already holds shards of another recipe and other rows; pass --overwrite" in capsys.readouterr().err
    assert files(copy) == before
    (copy / "notes.txt").write_text("mine")
    assert command(build.app, "--input", source, "--out", copy, "--overwrite", *SIZE) == 0
    assert sorted(files(copy)) == [*FILES, "notes.txt", "train-000000.tar"]
    assert open_shards(copy).manifest.funnel.kept == 1


def test_an_old_set_stays_whole_until_the_new_one_is_ready(
    copy: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_shards import pipeline

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    fingerprint = open_shards(copy).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "publish", killed)
        assert command(build.app, "--input", table, "--out", copy, "--limit", 2, "--overwrite", *SIZE) == 3
    assert open_shards(copy).fingerprint == fingerprint
    assert command(verify.app, copy) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--num-units", "0"), "num_units 0 must be greater than or equal to 1; change --num-units"),
        (("--workers", "-1"), "workers -1 must be >= 0; change --workers"),
        (("--source", "zinc"), "source 'zinc' must be one of table, textbook, sdf, shards, polyconfm-lmdb, smiles, molecules"),
        (("--column", "smiles"), "has no column 'smiles'; it has 'id', 'psmiles'; change --column"),
        (("--limit", "0"), "limit 0 must be >= 1; change --limit"),
        (("--to-test", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--input", "nowhere.csv"), "nowhere.csv does not exist; pass the table of polymers with --input"),
    ],
)
def test_bad_options_write_nothing(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    assert command(build.app, "--input", table, "--out", tmp_path / "deep" / "out", *SIZE, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "deep").exists()


def test_a_table_without_a_polymer_writes_nothing(tmp_path: Path, write_table: Make, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_table(tmp_path / "a.csv", ("CC", "*C"))
    assert command(build.app, "--input", source, "--out", tmp_path / "out", *SIZE) == 2
    assert "no usable polymer in 2 rows (first: 'CC', has 0 stars" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_polymers_that_all_fail_write_nothing(
    tmp_path: Path, write_table: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_shards.conformers import grow

    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(grow, "grow_chain", broken)
    assert command(build.app, "--input", write_table(tmp_path / "a.csv", ("*CC*",)), "--out", tmp_path / "out", *SIZE) == 2
    assert "none of 1 rows became a chain (first: '*CC*', a defect)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(build.app, "--input", table, "--out", tmp_path / "out", "--dry-run", *SIZE) == 0
    said = capsys.readouterr().out
    assert "15 rows read, 11 chains of 4 units x 2 conformations to build" in said
    assert "star-count: 1" in said
    assert not (tmp_path / "out").exists()


def test_named_polymers_go_to_test(tmp_path: Path, write_table: Make, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_table(tmp_path / "a.csv", ("*CC*", "*CCO*", "*CC(*)C"))
    (tmp_path / "held.txt").write_text("# the same chain as *CCO*, written otherwise\n*OCC*\n\n")
    words = ("--input", source, "--out", tmp_path / "out", "--to-test", tmp_path / "held.txt", *SIZE)
    assert command(build.app, *words) == 0
    shards = open_shards(tmp_path / "out")
    assert len(shards.samples("train")) == 2
    assert [shards.read(entry).provenance["written"] for entry in shards.samples("test")] == ["*CCO*"]
    (tmp_path / "held.txt").write_text("*CC*\n*OCC*\n*CC(*)C\n")
    assert command(build.app, *words, "--overwrite") == 2
    assert "all 3 polymers are to go to test; leave some for training in --to-test" in capsys.readouterr().err
    assert len(shards.samples("train")) == 2
    (tmp_path / "held.txt").write_text("*CC*\nwhat\n")
    assert command(build.app, *words, "--overwrite") == 2
    assert "held.txt line 2 is neither a P-SMILES nor a group" in capsys.readouterr().err
    (tmp_path / "held.txt").write_text("# nothing\n")
    assert command(build.app, *words, "--overwrite") == 2
    assert "held.txt names no polymer" in capsys.readouterr().err


def test_an_address_gets_the_same_bytes(
    built: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    from data_shards import store

    memory = fsspec.filesystem("memory")
    monkeypatch.chdir(tmp_path)
    words = ("--input", table, "--out", "memory://bucket/built", "--max-atoms-per-unit", 20, *SIZE)

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    try:
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "put_file", killed)
            assert command(build.app, *words) == 3
        assert not memory.exists("/bucket/built/manifest.json")
        capsys.readouterr()
        assert command(build.app, *words) == 0
        assert "continuing: 6 of 10 polymers are done already" in capsys.readouterr().err  # the shard that could not be uploaded
        lying = {path.rsplit("/", 1)[-1]: memory.cat_file(path) for path in memory.ls("/bucket/built", detail=False)}
        assert lying.pop("build.json")
        assert lying == files(built)
        assert not list((tmp_path / store.SCRATCH).iterdir())
        assert command(verify.app, "memory://bucket/built") == 0
        assert command(build.app, *words) == 0
        assert "memory://bucket/built holds this build already" in capsys.readouterr().err
        assert command(build.app, *words, "--seed", 1) == 2
        assert "memory://bucket/built already holds shards of another recipe; pass --overwrite" in capsys.readouterr().err
        assert command(build.app, "--input", table, "--out", "memory://bucket/built", "--limit", 1, "--overwrite", *SIZE) == 0
        assert open_shards("memory://bucket/built").manifest.funnel.kept == 1
        assert command(build.app, "--input", table, "--out", "nosuch://bucket/built", *SIZE) == 2
        assert "nosuch://bucket/built cannot be opened (Protocol not known: nosuch)" in capsys.readouterr().err
    finally:
        memory.rm("/bucket", recursive=True)


# verify


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(bytes(data))


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / MANIFEST_NAME).read_text())
    change(data)
    data.pop(CHECKSUM, None)  # an older manifest has none
    write_atomic(folder / MANIFEST_NAME, json.dumps(data).encode())
    parse_manifest((folder / MANIFEST_NAME).read_bytes(), "test")


def test_a_whole_set_is_verified(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(verify.app, built, "--quality") == 0
    assert "10 samples in 4 shards: every checksum and sample is right" in capsys.readouterr().out


@pytest.mark.parametrize("member", ["heavy.npy", "hydrogen.npy", "json", "topology.npz"])
def test_one_bit_is_noticed(copy: Path, member: str, capsys: pytest.CaptureFixture[str]) -> None:
    import tarfile

    with tarfile.open(copy / "train-000001.tar") as tar:
        inside = next(info for info in tar.getmembers() if info.name.endswith(member))
    _flip(copy / "train-000001.tar", inside.offset_data + inside.size // 2)
    assert command(verify.app, copy) == 2
    heard = capsys.readouterr()
    assert "train-000001.tar: sha256" in heard.out
    assert "in train-000001.tar; copy these files again, or repeat the build command: it makes only them again" in heard.err


def _drop_member(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def _add_sample(path: Path) -> None:
    """Append a sample that nobody planned, before the end of the archive."""
    import io
    import tarfile

    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("f" * 24 + ".json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))


@pytest.mark.parametrize(
    ("damage", "sentence", "says"),
    [
        (lambda path: _flip(path, 3000), "sha256", None),
        (_drop_member, None, "the manifest says"),  # a size that is wrong is seen before anything is read
        (_add_sample, "which the manifest does not list", None),  # in the padding at the end: the size stays
        (Path.unlink, None, "is missing though the manifest lists it"),
        (lambda path: shutil.copy(path, path.with_name("train-000009.tar")), "lies there and the manifest does not list it", None),
        (lambda path: (path.parent / "funnel.csv").write_text("row\n"), "funnel.csv: is not as it was written", None),
        (lambda path: (path.parent / "funnel.md").unlink(), "funnel.md: is missing", None),
    ],
)
def test_damage_is_named_and_only_that_is_made_again(
    copy: Path,
    built: Path,
    table: Path,
    damage: Callable[[Path], object],
    sentence: str | None,
    says: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from data_shards import pipeline

    finished = []
    real = pipeline.finish_shard
    monkeypatch.setattr(pipeline, "finish_shard", lambda plan, target, name: (finished.append(name), real(plan, target, name)))
    damage(copy / "train-000001.tar")
    assert command(verify.app, copy) == 2
    heard = capsys.readouterr()
    assert (sentence or "") in heard.out
    assert (says or "") in heard.err
    assert command(build.app, "--input", table, "--out", copy, "--max-atoms-per-unit", 20, *SIZE) == 0
    if "funnel" in (sentence or ""):
        shards = 4 if "csv" in str(sentence) else 0  # without its reasons a shard with dropped chains would have to be made again
        assert len(finished) <= shards
    elif sentence in (None, "sha256", "which the manifest does not list"):
        assert finished == ["train-000001.tar"]
    else:
        assert finished == []
    assert files(copy) == files(built)
    assert command(verify.app, copy) == 0


def test_a_foreign_manifest_is_noticed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def foreign(data: dict[str, Any]) -> None:
        for split in data["splits"].values():
            for shard in split:
                shard["sha256"] = "0" * 64

    _edit(copy, foreign)
    assert command(verify.app, copy) == 2
    assert "manifest.json: no shard has the checksum that it names; the manifest is of another build" in capsys.readouterr().out


def test_a_manifest_that_was_changed_is_refused(copy: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / MANIFEST_NAME
    path.write_text(path.read_text().replace('"empty": 1', '"empty": 2', 1))
    assert command(verify.app, copy) == 2
    assert "manifest.json is not as it was written (its checksum differs)" in capsys.readouterr().err
    assert command(build.app, "--input", table, "--out", copy, "--max-atoms-per-unit", 20, *SIZE) == 2
    assert "or pass --overwrite to build all of it again" in capsys.readouterr().err


def test_a_sample_too_many_is_named_even_where_checksums_agree(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hashlib import sha256

    path = copy / "train-000001.tar"
    _add_sample(path)
    facts = {"sha256": sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    _edit(copy, lambda data: data["splits"]["train"][1].update(facts))
    assert command(verify.app, copy) == 2
    assert f"train-000001.tar: holds sample {'f' * 24}, which the manifest does not list" in capsys.readouterr().out


def _first(data: dict[str, Any], split: str) -> dict[str, Any]:
    sample: dict[str, Any] = data["splits"][split][0]["samples"][0]
    return sample


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: _first(data, "val").update(psmiles="*CO*"), r"the manifest says \('\*CO\*'"),
        (lambda data: data["splits"]["val"][0].update(samples=[]), "the manifest lists 0 samples and counts 1"),
        (lambda data: _first(data, "val").update(offset=512), "no tar member|lies where sample|lacks"),
        (lambda data: _first(data, "val").update(group=_first(data, "test")["group"]), "lies in val and in test"),
        (lambda data: data["funnel"].update(kept=11), "do not add up"),
    ],
)
def test_a_manifest_that_lies_is_noticed(
    copy: Path, change: Callable[[dict[str, Any]], None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit(copy, change)
    assert command(verify.app, copy) == 2
    assert re.search(sentence, capsys.readouterr().out)


def _rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Replace the one sample of val by a changed one, with checksums that agree."""
    from dataclasses import asdict

    from data_shards.writer import ShardWriter, encode

    shards: ShardSet = open_shards(folder)
    entry = shards.samples("val")[0]
    with ShardWriter(folder / entry.shard) as writer:
        writer.write(encode(change(shards.read(entry))), entry)
        shard = asdict(writer.commit())
    del shard["samples"][0]["shard"]
    _edit(folder, lambda data: data["splits"].update(val=[shard]))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (
            "heavy_ang",
            lambda x: np.where(np.arange(x.shape[1])[:, None] == 2, np.float32(np.nan), x),
            "has coordinates that are not finite",
        ),
        ("heavy_ang", lambda x: x * np.float32(3), "has bonds of"),
        ("seed", lambda seed: seed + 1, "has a key that is not the hash of its P-SMILES, number of units and seed"),
    ],
)
def test_samples_that_cannot_be_are_noticed(
    copy: Path, field: str, value: Callable[[Any], Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    _rewrite(copy, lambda sample: replace(sample, **{field: value(getattr(sample, field))}))
    assert command(verify.app, copy) == 2
    assert sentence in capsys.readouterr().out


def test_the_quality_check_sees_what_shapes_do_not(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    def fold(sample: Any) -> Any:
        x = sample.heavy_ang.copy()
        x[:, -1] = x[:, -2] + (x[:, 0] - x[:, -2]) * np.float32(1.5) / np.linalg.norm(x[:, 0] - x[:, -2], axis=-1, keepdims=True)
        return replace(sample, heavy_ang=x.astype(np.float32), hydrogen_ang=sample.hydrogen_ang * np.float32(0.2))

    _rewrite(copy, fold)
    assert command(verify.app, copy) == 0
    assert command(verify.app, copy, "--quality") == 2
    assert "conformation 0 fails" in capsys.readouterr().out


def test_verify_refuses_what_is_no_shard_set(tmp_path: Path, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(verify.app, tmp_path) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
    assert command(verify.app, built, "--limit", 0) == 2
    assert "limit 0 must be >= 1" in capsys.readouterr().err
    assert command(verify.app, built, "--dry-run") == 0
    assert "contents not read" in capsys.readouterr().out


# show


def test_show_prints_draws_and_exports(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rdkit import Chem

    words = (built, "--sample", "*CC(*)c1ccccc1", "--out", tmp_path / "look.png", "--sdf", tmp_path / "ps.sdf")
    assert command(show.app, *words) == 0
    said = capsys.readouterr().out
    for word in ("train", "heavy atoms per chain", "elements", "classes", "Cl", "radius of gyration", "C-O, open backbone"):
        assert word in said, word
    assert (tmp_path / "look.png").stat().st_size > 50_000
    mols = list(Chem.SDMolSupplier(str(tmp_path / "ps.sdf"), removeHs=False))
    assert len(mols) == 2
    assert Chem.MolToSmiles(Chem.RemoveHs(mols[0])).count("c1ccccc1") == 4
    assert mols[0].GetNumAtoms() == 34 + 38
    assert command(show.app, *words) == 2
    assert "look.png exists; pass --overwrite" in capsys.readouterr().err


def test_show_names_what_it_cannot_find(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(show.app, built, "--sample", "*CCCCCO*") == 2
    assert "no sample '*CCCCCO*' among 10" in capsys.readouterr().err
    assert command(show.app, built, "--sample", "*CC") == 2
    assert "sample '*CC'" in capsys.readouterr().err
    assert command(show.app, built, "--limit", 0) == 2
    assert "limit 0 must be >= 1" in capsys.readouterr().err


# the contract with others


def test_stock_webdataset_reads_what_build_wrote(built: Path) -> None:
    import webdataset

    entries = open_shards(built).samples("train")
    read = list(webdataset.WebDataset([str(built / "train-000000.tar"), str(built / "train-000001.tar")], shardshuffle=False))
    assert [item["__key__"] for item in read] == [entry.key for entry in entries]
    assert [decode(item).topology.psmiles for item in read] == [entry.psmiles for entry in entries]


def test_the_page_about_shards_reads_shards(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "shards.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x").symlink_to(built)
    monkeypatch.chdir(tmp_path)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    said = capsys.readouterr().out
    for entry in open_shards(built).samples("train"):
        assert said.count(f"{entry.key} {entry.psmiles}") == 2


@pytest.mark.parametrize("name", ["build", "show", "verify"])
def test_help_is_quick(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", f"data_shards.{name}", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy machine does not fail the test; on an idle one it is the time a user waits.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert "--dry-run" in done.stdout


@pytest.mark.slow
def test_memory_does_not_follow_the_rows(tmp_path: Path) -> None:
    """Thirty times the rows, all but a few of them refused: the driver's peak stays where it is."""
    peaks = []
    for count in (3_000, 90_000):
        table = tmp_path / f"{count}.csv"
        table.write_text("\n".join(["psmiles", "*CC*", "*CCO*", *(f"*C{'C' * (k % 50)}" for k in range(count))]) + "\n")
        out = tmp_path / str(count)
        words = [sys.executable, "-m", "data_shards.build", "--input", str(table), "--out", str(out), *SIZE]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
        peaks.append(json.loads((out / "build.json").read_text())["driver_peak_mib"])
        assert open_shards(out).manifest.funnel.attempted == count + 2
    assert peaks[1] < peaks[0] + 20, peaks  # a row held in memory would cost half a kibibyte: 42 MiB


def test_the_manifest_is_written_from_constant_memory() -> None:
    """Two hundred shards of a thousand samples pass through one at a time."""
    import tracemalloc
    from collections.abc import Iterator

    from data_shards.manifest import SampleEntry, ShardEntry, manifest_lines

    def shards(count: int) -> Iterator[ShardEntry]:
        for number in range(count):
            samples = tuple(SampleEntry(f"{k:024d}", "*CC(*)c1ccccc1", "g", k, 1, 10, 10, 1, "x") for k in range(1000))
            yield ShardEntry(f"train-{number:06d}.tar", 1000, 10, "0" * 64, samples)

    peaks = []
    for count in (2, 60):
        tracemalloc.start()
        for _ in manifest_lines({"schema_version": 1}, {"train": shards(count)}):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
