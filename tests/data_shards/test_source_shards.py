"""Shards divided again: chains stay to the last bit, held-out polymers are gone in any spelling, damage stops it before it starts."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards import build, leaks, pipeline, show, verify
from data_shards.errors import PolymerError
from data_shards.reader import open_shards
from data_shards.sources.shards import ShardsSource, read_sample
from tests.data_shards.test_build import command, files

HALVES = ("--val-fraction", "0.2", "--test-fraction", "0.2", "--shard-size", "4")
HELD = ("*CCCC*", "*C(C)C*", "no polymer")  # polyethylene by its doubled unit, polypropylene by its other cut


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first twelve bundled polymers, relaxed, so that samples have every member there is; with limits of their own."""
    out = tmp_path_factory.mktemp("old") / "shards"
    size = ("--limit", 12, "--num-units", 2, "--conformers", 1, "--workers", 0, "--shard-size", 5, "--relax")
    assert command(build.app, "--source", "textbook", "--out", out, *size, "--quality", "heavy_clash=0.7") == 0
    return out


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held") / "heldout.csv"
    path.write_text("psmiles\n" + "\n".join(HELD) + "\n")
    return path


@pytest.fixture(scope="module")
def new(old: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Divided again without the held-out polymers."""
    out = tmp_path_factory.mktemp("new") / "shards"
    assert divide(old, out, "--hold-out", held) == 0
    return out


def divide(old: Path, out: Path, *words: object, workers: int = 0) -> int:
    return command(build.app, "--source", "shards", "--input", old, "--out", out, "--workers", workers, *HALVES, *words)


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> bytes, of every sample."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return found


def test_chains_stay_as_they_are_and_their_provenance_names_the_set(old: Path, new: Path) -> None:
    before, after = members(old), members(new)
    gone = {e.key for split in ("train", "val", "test") for e in open_shards(old).samples(split) if e.psmiles in ("*C*", "*CC(*)C")}
    assert len(gone) == 2
    assert set(after) == set(before) - gone
    fingerprint = open_shards(old).fingerprint
    for key, parts in after.items():
        assert set(parts) == set(before[key]) >= {"heavy.npy", "raw.heavy.npy", "topology.npz"}
        facts, earlier = json.loads(parts.pop("json")), json.loads(before[key].pop("json"))
        assert parts == before[key]
        assert facts["provenance"].pop("origin") == fingerprint
        assert facts == earlier


def test_the_new_set_is_whole_and_says_where_it_comes_from(
    old: Path, new: Path, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, origin = open_shards(new), open_shards(old)
    manifest = opened.manifest
    assert manifest.funnel.attempted == 12
    assert manifest.funnel.dropped == {"held-out": 2}
    assert manifest.input["source"] == "shards"
    assert manifest.input["origin"]["fingerprint"] == origin.fingerprint
    assert manifest.input["origin"]["recipe"] == origin.manifest.recipe
    assert manifest.recipe["quality"]["heavy_clash"] == 0.7  # verify --quality asks what the chains were held to
    assert {split: len(opened.samples(split)) for split in ("train", "val", "test")} == {"train": 6, "val": 2, "test": 2}
    assert max(shard.num_samples for _, shard in manifest.shards()) == 4
    assert command(verify.app, new, "--quality") == 0
    assert command(leaks.app, new, "--against", held, "--fail") == 0
    assert command(leaks.app, old, "--against", held, "--fail") == 2
    assert command(show.app, new) == 0
    rows = (new / "funnel.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in rows] == ["reason", "held-out", "held-out"]
    again = tmp_path / "again"  # of a set that was itself divided again, the whole way back is kept
    assert divide(new, again, "--limit", 5) == 0
    facts = open_shards(again).manifest.input
    assert facts["num_rows"] == 5
    assert facts["origin"]["fingerprint"] == opened.fingerprint
    assert facts["origin"]["input"]["origin"]["fingerprint"] == origin.fingerprint
    assert command(verify.app, again, "--quality") == 0


def test_named_polymers_go_to_test_instead(old: Path, held: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert divide(old, out, "--to-test", held) == 0
    opened = open_shards(out)
    assert opened.manifest.funnel.dropped == {}
    assert {"*C*", "*CC(*)C"} <= {entry.psmiles for entry in opened.samples("test")}
    assert command(leaks.app, out, "--against", held, "--fail") == 0


@pytest.mark.dist
def test_ray_writes_the_same_bytes(old: Path, new: Path, held: Path, tmp_path: Path, ray_two_cpus: None) -> None:
    assert divide(old, tmp_path / "ray", "--hold-out", held, workers=2) == 0
    assert files(tmp_path / "ray") == files(new)


def test_a_stopped_division_continues_to_the_same_bytes(
    old: Path, new: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, taken = tmp_path / "shards", pipeline.conform
    done: list[str] = []

    def stopped(recipe: Any, source: str, item: Any) -> Any:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(item[0].key)
        return taken(recipe, source, item)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "conform", stopped)
        assert divide(old, out, "--hold-out", held) == 3
    assert not (out / "manifest.json").exists()
    assert divide(old, out, "--hold-out", held) == 0
    assert "continuing: " in capsys.readouterr().err
    assert files(out) == files(new)
    assert divide(old, out, "--hold-out", held) == 0
    assert "holds this build already" in capsys.readouterr().err


def test_a_dry_run_counts_and_writes_nothing(old: Path, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert divide(old, tmp_path / "shards", "--hold-out", held, "--dry-run") == 0
    said = capsys.readouterr()
    assert "12 rows read, 10 chains as imported to build" in said.out
    assert "- held-out: 2" in said.out
    assert f"12 samples, fingerprint {open_shards(old).fingerprint[:16]}; their chains stay as they are" in said.err
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "manifest", "no set"])
def test_a_damaged_set_is_one_sentence_before_anything_is_written(
    old: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    shard, manifest = copy / "train-000000.tar", copy / "manifest.json"
    if how == "bit":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif how == "cut":
        os.truncate(shard, 1000)
    elif how == "gone":
        shard.unlink()
    elif how == "manifest":
        manifest.write_text(manifest.read_text().replace('"num_units": 2', '"num_units": 3', 1))
    else:
        copy = tmp_path / "nowhere"
    assert divide(copy, tmp_path / "shards") == 2
    *notes, said = capsys.readouterr().err.strip().splitlines()
    expected = {
        "bit": "train-000000.tar is not as it was written (its checksum differs from the manifest's); copy it again",
        "cut": "train-000000.tar has 1000 bytes, the manifest says",
        "gone": "train-000000.tar is missing though the manifest lists it",
        "manifest": "manifest.json is not as it was written",
        "no set": "holds no manifest.json; build it with python -m data_shards.build",
    }
    assert expected[how] in said
    assert all("their chains stay as they are" in line for line in notes)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_the_set_that_is_read_is_never_written(
    old: Path, tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    (tmp_path / "link").symlink_to(copy)
    for out in (copy, tmp_path / "link", f"file://{copy}", f"{tmp_path}/nowhere/../copy"):
        assert divide(copy, out, *words) == 2  # type: ignore[arg-type]
        assert "is the set that --input reads; pass another --out" in capsys.readouterr().err
    assert files(copy) == files(old)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--relax",), "--source shards brings its own chains; drop --relax"),
        (("--engine", "md"), "--source shards brings its own chains; drop --engine md"),
        (("--quality", "heavy_clash=0.5"), "--source shards brings its own chains; drop --quality"),
        (("--column", "psmiles"), "samples of shards name their polymer themselves, not in 'psmiles'; drop --column"),
        (("--limit", "0"), "limit 0 must be >= 1; change --limit"),
    ],
)
def test_what_makes_no_sense_is_refused(
    old: Path, tmp_path: Path, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divide(old, tmp_path / "shards", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_a_set_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(build.app, "--source", "shards", "--out", tmp_path / "shards") == 2
    assert "--source shards needs a shard set; pass it with --input" in capsys.readouterr().err


def test_a_sample_that_is_none_of_its_polymer_is_a_row_of_the_funnel(old: Path) -> None:
    source = ShardsSource(str(old))
    first, second = list(source.rows())[:2]
    payload = source.payload(1)
    sample, parts = read_sample(payload, first.psmiles, {"origin": "x"})
    assert sample.provenance["origin"] == "x"
    assert set(parts) >= {"json", "heavy.npy"}
    wrong: tuple[Callable[[], object], ...] = (
        lambda: read_sample(payload, second.psmiles, {}),
        lambda: read_sample(payload[:-2000], first.psmiles, {}),
        lambda: read_sample(b"another" + payload[7:], first.psmiles, {}),
        lambda: read_sample(payload[:25], first.psmiles, {}),
    )
    for read in wrong:
        with pytest.raises(PolymerError) as caught:
            read()
        assert caught.value.reason == "torn-sample"
