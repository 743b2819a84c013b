"""The shard contract: bytes, byte ranges, stock webdataset, damage named in a sentence."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from data_shards.decoding import decode
from data_shards.errors import ShardError
from data_shards.manifest import MANIFEST_NAME, Funnel, Manifest, parse_manifest, write_atomic
from data_shards.reader import open_shards
from data_shards.schema import PolymerSample
from data_shards.writer import TOPOLOGY_ARRAYS, ShardWriter, encode, sample_key

Make = Callable[..., Any]


def same(a: PolymerSample, b: PolymerSample) -> None:
    for name in TOPOLOGY_ARRAYS:
        left, right = getattr(a.topology, name), getattr(b.topology, name)
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        assert np.array_equal(left, right), name
    assert a.topology.psmiles == b.topology.psmiles
    assert a.topology.junction_order == b.topology.junction_order
    assert np.array_equal(a.heavy_ang, b.heavy_ang)
    assert np.array_equal(a.hydrogen_ang, b.hydrogen_ang)
    assert (a.key, a.num_units, a.tacticity, a.seed, a.engine, a.provenance) == (
        b.key,
        b.num_units,
        b.tacticity,
        b.seed,
        b.engine,
        b.provenance,
    )


@pytest.fixture
def folder(tmp_path: Path, make_sample: Make, make_entry: Make) -> Path:
    """Two shards with three and two samples, val empty."""
    shards = []
    for name, sizes in (("train-000000.tar", (2, 5, 9)), ("test-000000.tar", (3, 4))):
        with ShardWriter(tmp_path / name) as writer:
            for size in sizes:
                sample = make_sample(size)
                writer.write(encode(sample), make_entry(sample))
            shards.append(writer.commit())
    manifest = Manifest("digest", {}, {}, {}, Funnel(5, 5), {"train": (shards[0],), "val": (), "test": (shards[1],)})
    write_atomic(tmp_path / MANIFEST_NAME, manifest.to_json().encode())
    return tmp_path


def test_sample_survives_the_round_trip(make_sample: Make) -> None:
    sample = make_sample(7, 3)
    back = decode(encode(sample))
    same(sample, back)
    assert back.energies_kcal_mol is not None
    assert np.array_equal(back.energies_kcal_mol, sample.energies_kcal_mol)
    assert decode(encode(replace(sample, energies_kcal_mol=None))).energies_kcal_mol is None


def test_bytes_do_not_depend_on_the_clock(tmp_path: Path, make_sample: Make, make_entry: Make) -> None:
    written = []
    for number in range(2):
        with ShardWriter(tmp_path / f"{number}.tar") as writer:
            writer.write(encode(make_sample()), make_entry(make_sample()))
            writer.commit()
        written.append((tmp_path / f"{number}.tar").read_bytes())
        time.sleep(2.1 if number == 0 else 0)  # zip stores times in steps of two seconds
    assert written[0] == written[1]
    assert len(written[0]) % 10240 == 0


def test_stock_webdataset_reads_a_shard(folder: Path, make_sample: Make) -> None:
    import webdataset

    read = list(webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False))
    assert [item["__key__"] for item in read] == [make_sample(size).key for size in (2, 5, 9)]
    same(decode(read[1]), make_sample(5))
    stock = next(iter(webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False).decode()))
    assert stock["json"]["psmiles"] == "*C*"
    assert stock["heavy.npy"].shape == (2, 4, 3)


def test_byte_range_holds_exactly_one_sample(folder: Path, make_sample: Make) -> None:
    shards = open_shards(folder)
    assert [len(shards.samples(split)) for split in ("train", "val", "test")] == [3, 0, 2]
    for entry in shards.samples("train") + shards.samples("test"):
        same(shards.read(entry), make_sample(entry.num_units))
    first, second, _ = shards.samples("train")
    assert first.offset == 0
    assert second.offset == first.length
    assert first.length % 512 == 0


def test_remote_shards_read_the_same(folder: Path, make_sample: Make) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/bucket/shards/", recursive=True)
    try:
        local, remote = open_shards(folder), open_shards("memory://bucket/shards")
        assert remote.fingerprint == local.fingerprint
        assert remote.is_remote
        assert not local.is_remote
        same(remote.read(remote.samples("test")[1]), make_sample(4))
    finally:
        memory.rm("/bucket", recursive=True)


def test_fingerprint_follows_the_content(folder: Path) -> None:
    manifest = open_shards(folder).manifest
    shard = manifest.splits["train"][0]
    other = replace(manifest, splits={**manifest.splits, "train": (replace(shard, sha256="0" * 64),)})
    moved = replace(manifest, splits={"train": (), "val": (shard,), "test": manifest.splits["test"]})
    assert len({manifest.fingerprint, other.fingerprint, moved.fingerprint}) == 3
    assert parse_manifest(manifest.to_json(), "x") == manifest


def test_key_depends_on_each_part() -> None:
    keys = {sample_key("*C*", 40, 0), sample_key("*C*", 41, 0), sample_key("*C*", 40, 1), sample_key("*CO*", 40, 0)}
    assert len(keys) == 4
    assert all(len(key) == 24 and key.isalnum() for key in keys)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, make_sample: Make, make_entry: Make) -> None:
    members = {**encode(make_sample()), "heavy.npy": "not bytes"}
    with ShardWriter(tmp_path / "a.tar") as writer, pytest.raises(ValueError, match="doesn't map to a bytes"):
        writer.write(members, make_entry(make_sample()))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def _break_missing(folder: Path) -> None:
    (folder / "test-000000.tar").unlink()


def _break_short(folder: Path) -> None:
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-10240])


def _break_manifest(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text[: len(text) // 2])


def _break_version(folder: Path) -> None:
    data = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**data, "schema_version": 99}))


def _break_field(folder: Path) -> None:
    data = json.loads((folder / MANIFEST_NAME).read_text())
    del data["funnel"], data["manifest_sha256"]
    (folder / MANIFEST_NAME).write_text(json.dumps(data))


def _break_no_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_break_missing, "test-000000.tar is missing though the manifest lists it"),
        (_break_short, r"train-000000.tar has \d+ bytes, the manifest says \d+"),
        (_break_manifest, "manifest.json is torn or not JSON"),
        (_break_version, "schema version 99, this program reads 1"),
        (_break_field, "lacks a field or has one too many .*funnel"),
        (_break_no_manifest, "holds no manifest.json; the build did not finish, run the same command again"),
    ],
)
def test_damage_is_named_when_opening(folder: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(folder)
    with pytest.raises(ShardError, match=sentence):
        open_shards(folder)


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"holds no manifest.json; build it with python -m data_shards.build"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="cannot be opened"):
        open_shards("nosuchprotocol://bucket/shards")


def test_unknown_split_is_named(folder: Path) -> None:
    with pytest.raises(ShardError, match="split 'validation' must be one of train, val, test"):
        open_shards(folder).samples("validation")


def test_damage_is_named_when_reading(folder: Path) -> None:
    shards = open_shards(folder)
    first, second, _ = shards.samples("train")
    with pytest.raises(ShardError, match=r"lies where sample .* should be"):
        shards.read(replace(first, key=second.key))
    with pytest.raises(ShardError, match=r"sample .* lacks heavy.npy"):
        shards.read(replace(first, offset=first.offset + _member_length(folder, first.offset), length=first.length - 1024))
    with pytest.raises(ShardError, match="ends before sample"):
        shards.read(replace(first, offset=shards.manifest.splits["train"][0].bytes - 512))
    with pytest.raises(ShardError, match="no tar member at byte"):
        shards.read(replace(first, offset=first.offset + 512, length=512))
    (folder / "train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000000.tar is missing"):
        shards.read(first)


def _member_length(folder: Path, offset: int) -> int:
    import tarfile

    with tarfile.open(folder / "train-000000.tar") as tar:
        second = tar.getmembers()[1]
    return second.offset - offset


def test_torn_members_are_named(make_sample: Make) -> None:
    members = encode(make_sample())
    with pytest.raises(ShardError, match="is torn"):
        decode({**members, "topology.npz": members["topology.npz"][:200]})
    with pytest.raises(ShardError, match="is torn"):
        decode({**members, "heavy.npy": members["heavy.npy"][:-8]})
    with pytest.raises(ShardError, match="is torn"):
        decode({**members, "json": b"[]"})
    with pytest.raises(ShardError, match=r"sample k lacks json, hydrogen.npy"):
        decode({"__key__": "k", "heavy.npy": b"", "topology.npz": b""})
    with pytest.raises(ShardError, match="schema version 7, this program reads 1"):
        decode({**members, "json": json.dumps({**json.loads(members["json"]), "schema_version": 7}).encode()})


def test_shapes_must_agree(make_sample: Make) -> None:
    sample = make_sample(6)
    with pytest.raises(ShardError, match=r"heavy coordinates have shape \(2, 7, 3\), the chain needs \(K, 8, 3\)"):
        decode(encode(replace(sample, heavy_ang=sample.heavy_ang[:, :-1])))
    with pytest.raises(ShardError, match=r"hydrogen coordinates have shape \(1, 18, 3\)"):
        decode(encode(replace(sample, hydrogen_ang=sample.hydrogen_ang[:1])))
    with pytest.raises(ShardError, match="3 energies for 2 conformations"):
        decode(encode(replace(sample, energies_kcal_mol=np.zeros(3))))
    buffer = io.BytesIO()
    np.save(buffer, sample.heavy_ang.astype(np.float64))
    with pytest.raises(ShardError, match="float64 must be float32"):
        decode({**encode(sample), "heavy.npy": buffer.getvalue()})


def test_pickles_are_refused(make_sample: Make) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match=r"is torn .*[Oo]bject"):
        decode({**encode(make_sample()), "heavy.npy": buffer.getvalue()})
