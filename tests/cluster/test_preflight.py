"""What is found wrong before a worker starts. The checks that need a cluster run in test_jobs.py."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from cluster import preflight
from cluster.plan import Plan
from cluster.preflight import NodeView
from data_shards.errors import InputError, ShardError
from data_shards.manifest import Funnel, Manifest, ShardEntry
from data_shards.mixture import Mixture
from data_shards.reader import ShardSet
from foundation.recipes import get_recipe

PLAN = Plan(get_recipe("polyconfm_tiny"), "/data/shards", "/data/run", 1, 1, 0.0, 1.0, 0, 60.0, "checksums", ())
GOOD = NodeView("node-a", "abc", "", 10 * 2**30, ("Python 3.11.7", "torch 2.13.0"))


def test_nodes_that_agree_pass() -> None:
    line = preflight.judge_nodes([GOOD, replace(GOOD, host="node-b", free_bytes=4 * 2**30)], PLAN, "abc", 2**30)
    assert line == "nodes: 2 see the shards and the run folder, 4.0 GiB free of 1.00 needed"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"fingerprint": None, "problem": "no manifest"}, "node node-b does not see the shards (no manifest); put them on a folder"),
        ({"fingerprint": "xyz"}, "node node-b sees other shards in /data/shards"),
        ({"free_bytes": -1}, "node node-b does not see the run folder /data/run"),
        ({"free_bytes": 2**29}, "/data/run has 0.50 GiB free on node node-b, the run needs 1.00 GiB"),
        (
            {"versions": ("Python 3.11.7", "torch 2.12.0")},
            "node node-b runs Python 3.11.7 torch 2.12.0, node node-a runs Python 3.11.7 torch",
        ),
    ],
)
def test_a_node_that_differs_is_named(other: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        preflight.judge_nodes([GOOD, replace(GOOD, host="node-b", **other)], PLAN, "abc", 2**30)
    assert sentence in str(error.value)


def test_the_view_of_this_node(tmp_path: Path) -> None:
    view = preflight.view_from_node(str(tmp_path / "nowhere"), str(tmp_path))
    assert view.fingerprint is None
    assert "holds no manifest.json" in view.problem
    assert view.free_bytes > 0
    assert [text.split()[0] for text in view.versions] == ["Python", "torch", "deepspeed", "ray"]
    assert preflight.view_from_node(str(tmp_path), str(tmp_path / "nowhere")).free_bytes == -1


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(bytes(range(256)) * 40_000)  # more than one chunk
    assert file.stat().st_size > preflight.CHUNK_BYTES
    assert preflight.sha256_of(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


class LocalRay:
    """`ray.remote(...)(function).remote(...)` and `ray.get` that call at once; test_jobs.py has the real ones."""

    def remote(self, **resources: float) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        return lambda function: SimpleNamespace(remote=function)

    def get(self, values: list[Any]) -> list[Any]:
        return values


def shard_set(folder: Path) -> Mixture:
    """Two files and the manifest entries that are true of them."""
    entries = []
    for name in ("train-000000.tar", "val-000000.tar"):
        (folder / name).write_bytes(name.encode() * 100)
        entries.append(ShardEntry(name, 0, 1, hashlib.sha256(name.encode() * 100).hexdigest(), ()))
    splits = {"train": (entries[0],), "val": (entries[1],), "test": ()}
    manifest = Manifest("", {}, {}, {}, Funnel(0, 0), splits)
    return Mixture((ShardSet(str(folder), manifest, fsspec.filesystem("file"), str(folder)),), (Fraction(1),), (0,), frozenset())


def test_checksums_of_every_shard_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", LocalRay())
    opened = shard_set(tmp_path)
    assert preflight._check_contents(opened, "checksums") == "contents: every checksum of 2 shards is right"
    (tmp_path / "val-000000.tar").write_bytes(b"x" + b"val-000000.tar" * 100)
    with pytest.raises(
        ShardError, match=r"val-000000.tar has sha256 \w{12}, the manifest says \w{12}; copy it again or rebuild the shards"
    ):
        preflight._check_contents(opened, "checksums")
    assert "checksums not read (verify: sizes)" in preflight._check_contents(opened, "sizes")


def test_shards_without_training_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 training samples, at least 1 is needed; build more polymers"):
        preflight._check_splits(shard_set(tmp_path))


def test_missing_shards_are_found_first(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"holds no manifest.json; build it with python -m data_shards.build"):
        preflight.check(replace(PLAN, shards=str(tmp_path / "nowhere"), out=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_counted_without_memory() -> None:
    assert 0.5e6 < preflight.count_parameters(get_recipe("polyconfm_tiny")) < 3e6
    assert 100e6 < preflight.count_parameters(get_recipe("polyconfm_base")) < 200e6


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="is a file"):
        preflight._check_start(replace(PLAN, out=str(tmp_path / "x")), "abc")


def test_a_run_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); choose another folder with out="):
        preflight._check_start(replace(PLAN, out=str(tmp_path / "x/run")), "abc")


def test_a_new_run_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    out = tmp_path / "runs/x"
    assert preflight._check_start(replace(PLAN, out=str(out)), "abc") == "start: at step 0"
    assert list(out.iterdir()) == []
