"""Several shard sets: addresses and weights, no polymer on both sides, batches from each, storage that fails for a while."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from data_shards import store
from data_shards.console import Resumable
from data_shards.errors import InputError, ShardError, StorageError
from data_shards.manifest import SPLITS, Funnel, Manifest, SampleEntry
from data_shards.mixture import open_mixture, parse_sources
from data_shards.reader import ShardSet, open_shards
from data_shards.writer import ShardWriter, encode, sample_key
from foundation.data.blend import Blend
from foundation.data.loader import Reading, StepLoader, order_of, validation_batches
from tests.data.test_loader import renamed, same
from tests.polyconfm.chains import sample

ONE = {"train": (("*C*", 6), ("*C*", 9), ("*CC(*)Cl", 5), ("*CC(*)Cl", 3)), "val": (("*O[Si](*)(C)C", 4),), "test": ()}
OTHER = {"train": (("*O[Si](*)(C)C", 7), ("*CC(*)F", 4), ("*CC(*)F", 6)), "val": (("*CCO*", 4),), "test": (("*CC(*)Cl", 4),)}


def write(folder: Path, splits: dict[str, tuple[tuple[str, int], ...]], shift: int = 0) -> str:
    """A shard set written by the shard room's own writer; a polymer's string names its group."""
    folder.mkdir()
    entries = {}
    for split in SPLITS:
        with ShardWriter(folder / f"{split}-000000.tar") as writer:
            for number, chain in enumerate(splits[split]):
                made = renamed(sample(*chain), sample_key(*chain, shift + number))
                shape = made.topology.num_atoms, len(made.heavy_ang)
                writer.write(encode(made), SampleEntry(made.key, chain[0], chain[0], 0, 0, chain[1], *shape))
            entries[split] = (writer.commit(),)
    (folder / "manifest.json").write_text(Manifest("digest", {}, {}, {}, Funnel(9, 9), entries).to_json())
    return str(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    return write(folder / "one", ONE), write(folder / "other", OTHER, shift=50)


def test_addresses_and_weights_are_told_apart() -> None:
    assert parse_sources(["a", "s3://b/c"]) == {"a": None, "s3://b/c": None}
    assert parse_sources(["a=0.8", "s3://b/x=y=2e-1", "run=3/", "d=x"]) == {"a": 0.8, "s3://b/x=y": 0.2, "run=3/": None, "d=x": None}
    with pytest.raises(InputError, match=r"--shards a was given twice; name each set once, with the sum of the weights"):
        parse_sources(["a=0.8", "a=0.2"])


def test_shares_are_exact_and_default_to_the_sizes(sets: tuple[str, str]) -> None:
    one, other = sets
    assert open_mixture({one: 0.7, other: 0.1}).weights == (Fraction(7, 8), Fraction(1, 8))
    assert open_mixture({one: None, other: None}).weights == (Fraction(2, 4), Fraction(2, 4))
    alone = open_mixture(one)
    assert (alone.weights, alone.fingerprint, alone.path) == ((Fraction(1),), open_shards(one).fingerprint, one)
    assert len(order_of(alone, "train", 0, 60).plan(0)) > 0, "one set alone keeps its order"
    prints = {open_mixture(given).fingerprint for given in ({one: 1, other: 1}, {one: 2, other: 1}, {one: 2.0, other: 1.0}, one, other)}
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((1, 0), r"the weight 0 of shards .*other must be above 0; write --shards PATH=WEIGHT"),
        ((float("inf"), 1), r"the weight inf of shards .*one must be above 0"),
        ((None, 1), r"shards .*one has no weight and others have; give a weight to all or to none"),
    ],
)
def test_bad_weights_are_one_sentence(sets: tuple[str, str], weights: tuple[Any, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_mixture(dict(zip(sets, weights, strict=True)))


def test_the_same_samples_twice_and_nothing_at_all_are_refused(sets: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"one/ holds the same samples as .*one; name it once, with the sum of the weights"):
        open_mixture({sets[0]: 1, sets[0] + "/": 1})
    with pytest.raises(InputError, match="no shards were named; write --shards PATH=WEIGHT"):
        open_mixture({})


def test_a_polymer_held_out_of_one_set_is_trained_on_in_none(sets: tuple[str, str], tmp_path: Path) -> None:
    made = open_mixture({sets[0]: 1, sets[1]: 1})
    trained = [[e.group for e in entries] for entries in made.samples("train")]
    assert trained == [["*C*", "*C*"], ["*CC(*)F", "*CC(*)F"]]
    assert made.left_out == (2, 1)
    assert [[e.group for e in entries] for entries in made.samples("val")] == [["*O[Si](*)(C)C"], ["*CCO*"]]
    assert (made.count("train"), made.count("val"), made.count("test")) == (4, 2, 1)
    assert open_mixture(sets[0]).count("train") == 4, "alone it loses nothing"
    third = write(tmp_path / "third", {"train": (("*CC(*)Cl", 9),), "val": (), "test": ()})
    with pytest.raises(ShardError, match=r"third has no training sample that is not in val or test of another set; leave it out"):
        open_mixture({sets[1]: 1, third: 1})


def steps_of(
    sets: tuple[str, str], *, rank: int = 0, world_size: int = 1, num_workers: int = 0, seen: int = 0, count: int = 6
) -> list[Any]:
    shards = open_mixture({sets[0]: 3, sets[1]: 1})
    order = order_of(shards, "train", 5, 60)
    assert isinstance(order, Blend)
    made = StepLoader(shards, "train", order, Reading(num_workers), per_step=4, rank=rank, world_size=world_size).steps(seen)
    taken = list(itertools.islice(made, count))
    made.close()
    return taken


def test_batches_come_from_both_sets_and_do_not_depend_on_ranks_workers_or_interruptions(sets: tuple[str, str]) -> None:
    alone = steps_of(sets)
    widths = [[micro.batch.max_atoms for micro in step.micro_batches] for step in alone]
    assert {width for step in widths for width in step} == {3, 5}, "*C* has 3 atoms with its stars, *CC(*)F has 5"
    chains = [micro.batch.num_chains for step in alone for micro in step.micro_batches if micro.batch.max_atoms == 3]
    assert sum(chains) == pytest.approx(0.75 * alone[-1].samples_seen, abs=2)
    ranks = [steps_of(sets, rank=rank, world_size=2) for rank in range(2)]
    for number, step in enumerate(alone):
        dealt = [micro for group in zip(*(made[number].micro_batches for made in ranks), strict=True) for micro in group]
        assert all(same(a.batch, b.batch) and a.noise_seed == b.noise_seed for a, b in zip(step.micro_batches, dealt, strict=True))
    for other in (steps_of(sets, num_workers=2)[3:], steps_of(sets, seen=alone[2].samples_seen, count=3)):
        for step, again in zip(alone[3:], other, strict=True):
            assert step.samples_seen == again.samples_seen
            assert all(same(a.batch, b.batch) for a, b in zip(step.micro_batches, again.micro_batches, strict=True))
    assert len({micro.noise_seed for step in alone for micro in step.micro_batches}) == 24


def test_every_set_is_validated(sets: tuple[str, str]) -> None:
    shards = open_mixture({sets[0]: 3, sets[1]: 1})
    fixed = validation_batches(shards, Reading(), token_budget=60, count=2, rank=0, world_size=1)
    assert [(f.source, f.weight) for f in fixed] == [(0, 1.0), (1, 1.0)]
    shares = [validation_batches(shards, Reading(), token_budget=60, count=1, rank=rank, world_size=2) for rank in range(2)]
    assert [[(f.source, f.weight) for f in share] for share in shares] == [[(0, 1.0)], [(1, 1.0)]]


# ------------------------------------------------------------------------------------------------------------------------ storage


class FlakyFileSystem(MemoryFileSystem):
    """An object store in memory that fails as often as it is told."""

    protocol = "flaky"
    failures = 0
    calls = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if start is not None:
            FlakyFileSystem.calls += 1
            if FlakyFileSystem.failures > 0:
                FlakyFileSystem.failures -= 1
                raise ConnectionResetError("peer is gone")
        return bytes(super().cat_file(path, start, end, **kwargs))


@pytest.fixture
def flaky(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    fs = fsspec.filesystem("flaky")
    for path in Path(sets[0]).iterdir():
        fs.pipe_file(f"/set/{path.name}", path.read_bytes())
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    FlakyFileSystem.failures = FlakyFileSystem.calls = 0
    yield "flaky://set"
    fs.rm("/set", recursive=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_that_fails_for_a_while_changes_nothing(flaky: str, sets: tuple[str, str], num_workers: int) -> None:
    def steps(path: str, failures: int) -> list[Any]:
        shards = open_mixture(path)
        made = StepLoader(shards, "train", order_of(shards, "train", 5, 60), Reading(num_workers), per_step=2).steps()
        FlakyFileSystem.failures = failures
        taken = list(itertools.islice(made, 3))
        made.close()
        return taken

    for step, again in zip(steps(sets[0], 0), steps(flaky, 4), strict=True):
        assert all(same(a.batch, b.batch) for a, b in zip(step.micro_batches, again.micro_batches, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_outage_stops_the_run_resumable(flaky: str, num_workers: int) -> None:
    shards = open_mixture(flaky)
    how = Reading(num_workers, patience_sec=3.0)
    made = StepLoader(shards, "train", order_of(shards, "train", 5, 60), how, per_step=2).steps()
    FlakyFileSystem.failures = 1_000_000
    with pytest.raises(
        Resumable, match=r"set/train-000000.tar cannot be used \(ConnectionResetError: peer is gone\); .* the same command con"
    ):
        next(made)


def test_pauses_grow_and_are_bounded(flaky: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(store.time, "sleep", sleep)
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    shards = open_shards(flaky)
    FlakyFileSystem.failures = 1_000_000
    with pytest.raises(StorageError):
        shards.read(shards.samples("train")[0], patience_sec=120)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert FlakyFileSystem.calls == len(pauses) + 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_mounted_disk_is_asked_again_too(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    shards, left, real = open_shards(sets[0]), [2], LocalFileSystem.cat_file
    entry = shards.samples("train")[0]

    def stale(self: LocalFileSystem, *args: Any, **kwargs: Any) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return bytes(real(self, *args, **kwargs))

    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(LocalFileSystem, "cat_file", stale)
    assert shards.read(entry).key == entry.key
    assert left == [-1]
    left[0] = 1_000_000
    with pytest.raises(StorageError, match=rf"cannot be used \(\w+: .*{os.strerror(number)}"):
        shards.read(entry, patience_sec=0)


def test_what_waiting_does_not_mend_is_not_waited_for(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(sets[0])

    def refused(self: LocalFileSystem, *args: Any, **kwargs: Any) -> bytes:
        raise PermissionError(13, "Permission denied", "x.tar")

    monkeypatch.setattr(LocalFileSystem, "cat_file", refused)
    monkeypatch.setattr(store.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(InputError, match="Permission denied") as error:
        shards.read(shards.samples("train")[0])
    assert not isinstance(error.value, StorageError)


def test_a_killed_reading_process_does_not_change_the_steps(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_mixture({sets[0]: 3, sets[1]: 1})
    wanted = steps_of(sets, count=8)
    before = {child.pid for child in psutil.Process().children()}
    made = StepLoader(shards, "train", order_of(shards, "train", 5, 60), Reading(2), per_step=4).steps()
    for number, step in enumerate(wanted):
        again = next(made)
        assert step.samples_seen == again.samples_seen
        assert all(same(a.batch, b.batch) for a, b in zip(step.micro_batches, again.micro_batches, strict=True))
        if number in (1, 4):
            workers = {child.pid for child in psutil.Process().children()} - before
            assert len(workers) == 2
            os.kill(min(workers), signal.SIGKILL)
    made.close()


def test_a_process_that_dies_again_and_again_stops_the_run_resumable(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: ShardSet, entry: SampleEntry, **patience: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ShardSet, "read_any", dying)
    shards = open_mixture(sets[0])
    made = StepLoader(shards, "train", order_of(shards, "train", 5, 60), Reading(1), per_step=2).steps()
    with pytest.raises(
        Resumable, match=r"4 reading processes in a row ended over the same micro-batch .* lower data.num_workers and data.cach"
    ):
        next(made)
