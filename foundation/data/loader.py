"""Shards to steps of packed batches, in the order of data/order.py, from any point on.

webdataset's own reader knows no resume, so samples of its tar files are read by the byte range that the manifest gives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data_shards.manifest import SampleEntry
from data_shards.reader import ShardSet
from data_shards.schema import PolymerSample
from foundation.batch import Batch
from foundation.data.collate import build_batch
from foundation.data.order import MicroBatch, Order, micro_batches_of_rank
from foundation.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True)
class LoadedMicroBatch:
    """A micro-batch on this rank.

    Attributes:
        batch: packed chains.
        noise_seed: of its generator.
        weight: chains x micro-batches of the step / chains of the step. Mean over micro-batches of weight x mean over chains is the mean
            over all chains of the step, however they were packed.
    """

    batch: Batch
    noise_seed: int
    weight: float


@dataclass(frozen=True)
class Step:
    """What one optimiser step reads on one rank, and how far the stream is afterwards; counts are of all ranks."""

    micro_batches: list[LoadedMicroBatch]
    samples_seen: int
    num_chains: int
    num_atoms: int
    padding_efficiency: float


def order_of(shards: ShardSet, split: str, seed: int, token_budget: int) -> Order:
    """The order of a split.

    Raises:
        InputError: the split is empty.
    """
    entries = shards.samples(split)
    if not entries:
        raise InputError(f"split {split!r} of {shards.path} has 0 samples, at least 1 is needed; build shards from more polymers")
    return Order(
        tuple(e.atoms_per_unit for e in entries),
        tuple(e.num_units for e in entries),
        tuple(e.num_conformations for e in entries),
        seed,
        token_budget,
    )


class Reader(Dataset[Any]):
    """Micro-batches by name: reads, decodes, keeps what was decoded lately, packs."""

    def __init__(self, shards: ShardSet, split: str, cache_mib: int) -> None:
        self.shards, self.entries = shards, shards.samples(split)
        self.room = cache_mib * MIB
        self.kept: OrderedDict[int, PolymerSample] = OrderedDict()

    def batch(self, micro: MicroBatch) -> Batch:
        """Packed chains of a micro-batch."""
        samples = [self._sample(i) for i in micro.samples]
        return build_batch(samples, micro.conformations, micro.samples)

    def _sample(self, index: int) -> PolymerSample:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        sample = self.shards.read(self.entries[index])
        self.room -= _bytes(sample)
        self.kept[index] = sample
        while self.room < 0 and self.kept:
            self.room += _bytes(self.kept.popitem(last=False)[1])
        return sample

    def __getitem__(self, micro: MicroBatch) -> dict[str, NDArray[Any] | None] | InputError:
        """As a reading process answers: arrays, or what was wrong (an exception would arrive without its type)."""
        try:
            batch = self.batch(micro)
        except InputError as error:
            return error
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return {name: None if value is None else value.numpy() for name, value in values.items()}


def _bytes(sample: PolymerSample) -> int:
    return sample.heavy_ang.nbytes + sample.hydrogen_ang.nbytes


def _as_is(value: Any) -> Any:
    return value


class StepLoader:
    """Yields Steps from samples_seen on; holds nothing that samples_seen does not say.

    Args:
        shards, split: what is read.
        order: in which order.
        per_step: micro-batches of a step, all ranks together.
        rank, world_size: every world_size-th micro-batch is this rank's.
        num_workers: reading processes; 0 reads in this one.
        cache_mib: decoded samples kept by each reading process.
    """

    def __init__(
        self, shards: ShardSet, split: str, order: Order, *, per_step: int, rank: int, world_size: int, num_workers: int, cache_mib: int
    ) -> None:
        self.order, self.per_step = order, per_step
        self.mine = micro_batches_of_rank(per_step, rank, world_size)
        self.reader = Reader(shards, split, cache_mib)
        self.num_workers = num_workers

    def steps(self, samples_seen: int = 0) -> Generator[Step]:
        """Endless; the reading processes end with the iterator.

        Raises:
            InputError: a sample cannot be read.
        """
        batches = self._batches(m for group in self._groups(samples_seen) for m in (group[k] for k in self.mine))
        for group in self._groups(samples_seen):
            yield self._step(group, [next(batches) for _ in self.mine])

    def _groups(self, samples_seen: int) -> Iterator[list[MicroBatch]]:
        stream = self.order.stream(samples_seen)
        while True:
            yield [next(stream) for _ in range(self.per_step)]

    def _batches(self, micro_batches: Iterator[MicroBatch]) -> Iterator[Batch]:
        """Batches in the order asked for, however many processes read."""
        if self.num_workers == 0:
            yield from map(self.reader.batch, micro_batches)
            return
        loader = DataLoader(self.reader, sampler=micro_batches, batch_size=None, num_workers=self.num_workers, collate_fn=_as_is)  # type: ignore[arg-type]
        for answer in loader:
            if isinstance(answer, InputError):
                raise answer
            # copied, so that tensors are aligned as if they had been made here: sums over them are the same to the last bit
            copied: dict[str, Any] = {name: None if value is None else torch.from_numpy(value).clone() for name, value in answer.items()}
            yield Batch(**copied)

    def _step(self, group: list[MicroBatch], batches: list[Batch]) -> Step:
        chains = sum(len(m.samples) for m in group)
        loaded = [
            LoadedMicroBatch(batch, group[k].noise_seed, len(group[k].samples) * self.per_step / chains)
            for k, batch in zip(self.mine, batches, strict=True)
        ]
        atoms = sum(self.order.num_atoms(m) for m in group)
        return Step(loaded, group[-1].seen, chains, atoms, atoms / sum(self.order.padded_atoms(m) for m in group))


@dataclass(frozen=True)
class ValidationBatch:
    """A fixed micro-batch with fixed noise; weight 0 where it only fills up a rank's share."""

    batch: Batch
    noise_seed: int
    weight: float


def validation_batches(
    shards: ShardSet, *, token_budget: int, count: int, rank: int, world_size: int, seed: int = 0
) -> list[ValidationBatch]:
    """The first count micro-batches of the validation split in a fixed order, this rank's share; empty where count is 0.

    Every rank gets as many, since collectives must match; weights are numbers of chains.
    """
    if count == 0:
        return []
    order = order_of(shards, "val", seed, token_budget)
    reader = Reader(shards, "val", cache_mib=0)
    plan = order.plan(0)[:count]
    share = -(-len(plan) // world_size)
    mine = [rank + world_size * k for k in range(share)]
    return [
        ValidationBatch(
            reader.batch(plan[k % len(plan)]), plan[k % len(plan)].noise_seed, float(len(plan[k].samples)) if k < len(plan) else 0.0
        )
        for k in mine
    ]


__all__ = ["LoadedMicroBatch", "Reader", "SampleEntry", "Step", "StepLoader", "ValidationBatch", "order_of", "validation_batches"]
