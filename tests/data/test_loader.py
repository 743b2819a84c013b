"""Reading: the same batches whoever reads them, from any point on, and shares of ranks that add up."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from data_shards.manifest import SPLITS, Funnel, Manifest, SampleEntry
from data_shards.mixture import Mixture, open_mixture
from data_shards.reader import ShardSet
from data_shards.schema import PolymerSample
from data_shards.writer import ShardWriter, encode, sample_key
from foundation.batch import Batch
from foundation.data.loader import Reader, Reading, StepLoader, order_of, validation_batches
from foundation.errors import InputError, ShardError
from tests.polyconfm.chains import sample

CHAINS = (("*C*", 6), ("*C*", 9), ("*C*", 30), ("*O[Si](*)(C)C", 4), ("*O[Si](*)(C)C", 7), ("*CC(*)Cl", 5), ("*CC(*)Cl", 3), ("*C*", 7))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Eight grown chains to train on, three to validate with, written by the shard room's own writer."""
    folder = tmp_path_factory.mktemp("shards")
    splits = {"train": CHAINS, "val": CHAINS[:3], "test": ()}
    entries = {}
    for split in SPLITS:
        with ShardWriter(folder / f"{split}-00000.tar") as writer:
            for number, chain in enumerate(splits[split]):
                made = renamed(sample(*chain), sample_key(*chain, number))
                shape = made.topology.num_atoms, len(made.heavy_ang)
                writer.write(encode(made), SampleEntry(made.key, chain[0], chain[0], 0, 0, chain[1], *shape))
            entries[split] = (writer.commit(),)
    manifest = Manifest("digest", {}, {}, {}, Funnel(11, 11), entries)
    (folder / "manifest.json").write_text(manifest.to_json())
    return open_mixture(str(folder))


def renamed(chain: PolymerSample, key: str) -> PolymerSample:
    from dataclasses import replace

    return replace(chain, key=key)


def loader(shards: Mixture, *, rank: int = 0, world_size: int = 1, num_workers: int = 0, cache_mib: int = 1) -> StepLoader:
    order = order_of(shards, "train", seed=5, token_budget=60)
    return StepLoader(shards, "train", order, Reading(num_workers, cache_mib), per_step=4, rank=rank, world_size=world_size)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def take(made: StepLoader, count: int, samples_seen: int = 0) -> list:
    steps = made.steps(samples_seen)
    taken = list(itertools.islice(steps, count))
    steps.close()
    return taken


def test_steps_go_on_from_any_step_to_the_last_bit(shards: Mixture) -> None:
    whole = take(loader(shards), 5)
    assert whole[-1].samples_seen > 2 * len(CHAINS), "more than two epochs"
    for k in (0, 2, 3):
        rest = take(loader(shards), 4 - k, whole[k].samples_seen)
        for step, again in zip(whole[k + 1 :], rest, strict=True):
            assert (step.samples_seen, step.num_chains, step.num_atoms) == (again.samples_seen, again.num_chains, again.num_atoms)
            for micro, micro_again in zip(step.micro_batches, again.micro_batches, strict=True):
                assert (micro.noise_seed, micro.weight) == (micro_again.noise_seed, micro_again.weight)
                assert same(micro.batch, micro_again.batch)


def test_reading_processes_give_the_same_batches(shards: Mixture) -> None:
    here, there = take(loader(shards), 3), take(loader(shards, num_workers=2), 3)
    for step, other in zip(here, there, strict=True):
        assert step.samples_seen == other.samples_seen
        assert all(same(a.batch, b.batch) for a, b in zip(step.micro_batches, other.micro_batches, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_what_one_rank_reads(shards: Mixture, world_size: int) -> None:
    alone = take(loader(shards), 3)
    together = [take(loader(shards, rank=rank, world_size=world_size), 3) for rank in range(world_size)]
    for number, step in enumerate(alone):
        shares = [rank[number] for rank in together]
        assert {(s.samples_seen, s.num_chains, s.num_atoms, s.padding_efficiency) for s in shares} == {
            (step.samples_seen, step.num_chains, step.num_atoms, step.padding_efficiency)
        }
        dealt = [micro for group in zip(*(s.micro_batches for s in shares), strict=True) for micro in group]
        assert all(same(a.batch, b.batch) and a.weight == b.weight for a, b in zip(step.micro_batches, dealt, strict=True))


def test_weights_make_the_mean_over_all_chains_of_the_step(shards: Mixture) -> None:
    for step in take(loader(shards), 3):
        per_chain = [micro.batch.num_units.double() for micro in step.micro_batches]  # any number a chain has
        mean = sum(m.weight * float(values.mean()) for m, values in zip(step.micro_batches, per_chain, strict=True)) / 4
        assert mean == pytest.approx(float(torch.cat(per_chain).mean()))
    assert len({m.weight for s in take(loader(shards), 3) for m in s.micro_batches}) > 1


def test_atoms_and_padding_are_counted(shards: Mixture) -> None:
    for step in take(loader(shards), 3):
        sizes = [(m.batch.num_chains, int(m.batch.num_units.max()), m.batch.max_atoms, len(m.batch.x_unit_ang)) for m in step.micro_batches]
        assert step.num_atoms == sum(size[3] for size in sizes)
        assert step.padding_efficiency == pytest.approx(step.num_atoms / sum(b * u * a for b, u, a, _ in sizes))
        assert 0.5 < step.padding_efficiency <= 1


def test_decoded_samples_are_kept_up_to_the_limit(shards: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = ShardSet.read_any

    def counting(self: ShardSet, entry: SampleEntry, **patience: float) -> PolymerSample:
        read.append(entry.key)
        return real(self, entry, **patience)

    monkeypatch.setattr(ShardSet, "read_any", counting)
    take(loader(shards), 5)
    assert len(read) == len(set(read)) == len(CHAINS)
    read.clear()
    take(loader(shards, cache_mib=0), 5)
    assert len(read) > 2 * len(CHAINS)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_torn_shard_is_one_sentence_wherever_it_is_read(
    shards: Mixture, tmp_path: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: ShardSet, entry: SampleEntry, **patience: float) -> PolymerSample:
        raise ShardError(f"{entry.shard} ends before sample {entry.key}")

    monkeypatch.setattr(ShardSet, "read_any", torn)
    with pytest.raises(ShardError, match=r"^train-00000.tar ends before sample \w+$"):
        take(loader(shards, num_workers=num_workers), 1)


def test_validation_is_fixed_and_its_shares_add_up(shards: Mixture) -> None:
    def read(rank: int, world_size: int, count: int = 8) -> list:
        return validation_batches(shards, Reading(), token_budget=30, count=count, rank=rank, world_size=world_size)

    alone = read(0, 1)
    assert sum(fixed.weight for fixed in alone) == 3
    assert all(same(a.batch, b.batch) and a.noise_seed == b.noise_seed for a, b in zip(alone, read(0, 1), strict=True))
    for world_size in (2, 4):
        shares = [read(rank, world_size) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1, "collectives must match"
        assert sum(fixed.weight for share in shares for fixed in share) == 3
    assert read(0, 1, count=0) == []
    assert len(read(0, 1, count=1)) == 1


def test_an_empty_split_is_named(shards: Mixture) -> None:
    with pytest.raises(InputError, match=r"split 'test' of .* has 0 samples, at least 1 is needed; build shards from more polymers"):
        order_of(shards, "test", 0, 10)


def test_a_conformation_index_chooses_the_conformation(shards: Mixture) -> None:
    reader = Reader(shards, "train", Reading())
    plans = order_of(shards, "train", 5, 60)
    chosen: dict[int, set[int]] = {}
    for epoch in range(16):
        for micro in plans.plan(epoch):
            batch = reader.batch(micro)
            assert batch.index.tolist() == list(micro.samples)
            for place, (i, k) in enumerate(zip(micro.samples, micro.conformations, strict=True)):
                chosen.setdefault(i, set()).add(k)
                made = reader.entries[0][i]
                assert int(batch.num_units[place]) == made.num_units
    assert all(picks == {0, 1} for picks in chosen.values())
