"""Shards to steps of packed batches, in the order of data/order.py, from any point on.

webdataset's own reader knows no resume, so samples of its tar files are read by the byte range that the manifest gives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from numpy.typing import NDArray

from data_shards.console import Resumable
from data_shards.manifest import SampleEntry
from data_shards.mixture import Mixture
from data_shards.schema import MoleculeSample, PolymerSample
from foundation.batch import Batch
from foundation.data.blend import Blend
from foundation.data.collate import build_batch
from foundation.data.order import MicroBatch, Order, counter, micro_batches_of_rank
from foundation.data.readers import Readers
from foundation.errors import InputError, StorageError
from foundation.molecules import Molecules

MIB = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How samples are read; nothing of it changes a chain.

    Attributes:
        num_workers: reading processes; 0 reads in this one.
        cache_mib: decoded samples kept by each reading process.
        patience_sec: how long a store that fails is asked again.
        worker_timeout_sec: how long a reading process is awaited before another takes its place.
        targets: what batches have of the repeat units for an objective to learn, names of foundation.data.collate.TARGETS.
    """

    num_workers: int = 0
    cache_mib: int = 512
    patience_sec: float = 300.0
    worker_timeout_sec: float = 900.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedMicroBatch:
    """A micro-batch on this rank.

    Attributes:
        batch: packed chains, or molecules.
        noise_seed: of its generator.
        weight: chains x micro-batches of the step / chains of the step. Mean over micro-batches of weight x mean over chains is the mean
            over all chains of the step, however they were packed.
    """

    batch: Batch | Molecules
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


def order_of(shards: Mixture, split: str, seed: int, token_budget: int) -> Order | Blend:
    """The order of a split.

    Raises:
        InputError: the split is empty.
    """
    entries = shards.samples(split)
    if not any(entries):
        raise InputError(f"split {split!r} of {shards.path} has 0 samples, at least 1 is needed; build shards from more polymers")
    if len(entries) == 1:
        return _order(entries[0], seed, token_budget)
    orders = [_order(of_set, counter("set", seed, source), token_budget) for source, of_set in enumerate(entries)]
    return Blend(tuple(orders), shards.weights)


def _order(entries: Sequence[SampleEntry], seed: int, token_budget: int) -> Order:
    return Order(
        tuple(e.atoms_per_unit for e in entries),
        tuple(e.num_units for e in entries),
        tuple(e.num_conformations for e in entries),
        seed,
        token_budget,
    )


class Reader:
    """Micro-batches by name: reads, decodes, keeps what was decoded lately, packs."""

    def __init__(self, shards: Mixture, split: str, how: Reading) -> None:
        self.sets, self.entries, self.patience_sec = shards.sets, shards.samples(split), how.patience_sec
        self.room, self.targets = how.cache_mib * MIB, how.targets
        self.kept: OrderedDict[tuple[int, int], PolymerSample | MoleculeSample] = OrderedDict()

    def batch(self, micro: MicroBatch) -> Batch | Molecules:
        """Packed chains, or molecules, of a micro-batch.

        Raises:
            InputError: a sample cannot be read; StorageError where another try later may do.
        """
        samples = [self._sample(micro.source, i) for i in micro.samples]
        molecules = [sample for sample in samples if isinstance(sample, MoleculeSample)]
        if molecules:  # a set holds one or the other
            return Molecules.of_samples(molecules, micro.conformations, micro.samples)
        chains = [sample for sample in samples if isinstance(sample, PolymerSample)]
        return build_batch(chains, micro.conformations, micro.samples, self.targets)

    def _sample(self, source: int, index: int) -> PolymerSample | MoleculeSample:
        if (source, index) in self.kept:
            self.kept.move_to_end((source, index))
            return self.kept[source, index]
        sample = self.sets[source].read_any(self.entries[source][index], patience_sec=self.patience_sec)
        self.room -= _bytes(sample)
        self.kept[source, index] = sample
        while self.room < 0 and self.kept:
            self.room += _bytes(self.kept.popitem(last=False)[1])
        return sample

    def arrays(self, micro: MicroBatch) -> tuple[bool, dict[str, NDArray[Any] | None]]:
        """A batch as it travels between processes: whether it is of molecules, and its tensors."""
        batch = self.batch(micro)
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return isinstance(batch, Molecules), {name: None if value is None else value.numpy() for name, value in values.items()}


def _bytes(sample: PolymerSample | MoleculeSample) -> int:
    if isinstance(sample, MoleculeSample):
        return sample.x_ang.nbytes
    return sample.heavy_ang.nbytes + sample.hydrogen_ang.nbytes


class StepLoader:
    """Yields Steps from samples_seen on; holds nothing that samples_seen does not say.

    Args:
        shards, split: what is read.
        order: in which order.
        how: processes, memory and patience.
        per_step: micro-batches of a step, all ranks together.
        rank, world_size: every world_size-th micro-batch is this rank's.
    """

    def __init__(
        self, shards: Mixture, split: str, order: Order | Blend, how: Reading, *, per_step: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.order, self.per_step = order, per_step
        self.mine = micro_batches_of_rank(per_step, rank, world_size)
        self.how = how
        self.reader = Reader(shards, split, how)

    def steps(self, samples_seen: int = 0) -> Generator[Step]:
        """Endless; the reading processes end with the iterator.

        Raises:
            InputError: a sample cannot be read.
            Resumable: the storage does not answer, or reading processes die again and again; the samples of this step are not lost.
        """
        batches = self._batches(m for group in self._groups(samples_seen) for m in (group[k] for k in self.mine))
        try:
            for group in self._groups(samples_seen):
                yield self._step(group, [next(batches) for _ in self.mine])
        except StorageError as error:
            raise Resumable(f"{error}; the same command continues from the last checkpoint") from None
        finally:
            batches.close()

    def _groups(self, samples_seen: int) -> Iterator[list[MicroBatch]]:
        stream = self.order.stream(samples_seen)
        while True:
            yield [next(stream) for _ in range(self.per_step)]

    def _batches(self, micro_batches: Iterator[MicroBatch]) -> Generator[Batch | Molecules]:
        """Batches in the order asked for, however many processes read."""
        if self.how.num_workers == 0:
            yield from map(self.reader.batch, micro_batches)
            return
        readers = Readers(self.reader.arrays, self.how.num_workers, self.how.worker_timeout_sec)
        with closing(readers.answers(micro_batches)) as answers:
            for of_molecules, answer in answers:
                # copied, so that tensors are aligned as if made here: sums over them are the same to the last bit
                copied: dict[str, Any] = {n: None if value is None else torch.from_numpy(value).clone() for n, value in answer.items()}
                yield Molecules(**copied) if of_molecules else Batch(**copied)

    def _step(self, group: list[MicroBatch], batches: list[Batch | Molecules]) -> Step:
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

    batch: Batch | Molecules
    noise_seed: int
    weight: float
    source: int = 0


def validation_batches(
    shards: Mixture, how: Reading, *, token_budget: int, count: int, rank: int, world_size: int, seed: int = 0
) -> list[ValidationBatch]:
    """The first micro-batches of the validation split in a fixed order, this rank's share; empty where count is 0.

    Every rank gets as many, since collectives must match; weights are numbers of chains. Several sets share count, each has one at least.
    """
    entries = shards.samples("val")
    if count == 0 or not any(entries):
        return []
    reader = Reader(shards, "val", replace(how, cache_mib=0))
    each = max(1, count // sum(map(bool, entries)))
    plan = [
        replace(micro, source=source)
        for source, of_set in enumerate(entries)
        if of_set
        for micro in _order(of_set, seed, token_budget).plan(0)[:each]
    ]
    share = -(-len(plan) // world_size)
    mine = [rank + world_size * k for k in range(share)]
    return [
        ValidationBatch(
            reader.batch(plan[k % len(plan)]),
            plan[k % len(plan)].noise_seed,
            float(len(plan[k].samples)) if k < len(plan) else 0.0,
            plan[k % len(plan)].source,
        )
        for k in mine
    ]
