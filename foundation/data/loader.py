"""Shards to steps of packed batches, in the order of data/order.py, from any point on, decoded ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from data_shards.reader import ShardSet, open_shards
from foundation.batch import Batch
from foundation.data.collate import collate, featurise
from foundation.data.order import MicroBatch, Order, micro_batches_of_rank
from foundation.errors import InputError


@dataclass(frozen=True)
class LoadedMicroBatch:
    """A micro-batch on this rank.

    Attributes:
        batch: packed chains.
        noise_seed: of its generator.
        weight: its share of the step: chains x micro-batches of the step / chains of the step. Mean over micro-batches of
            weight x mean over chains is the mean over all chains of the step, however they were packed.
    """

    batch: Batch
    noise_seed: int
    weight: float


@dataclass(frozen=True)
class Step:
    """What one optimiser step reads on one rank, and how far the stream is afterwards."""

    micro_batches: list[LoadedMicroBatch]
    samples_seen: int
    num_chains: int  # of all ranks
    num_atoms: int  # of all ranks
    padding_efficiency: float


def order_of(shards: ShardSet, split: str, seed: int, token_budget: int) -> Order:
    """The order of a split."""
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


class StepLoader:
    """Stateful WebDataset source: yields Steps from samples_seen on; holds nothing that samples_seen does not say."""

    def __init__(
        self, path: str, split: str, *, seed: int, token_budget: int, per_step: int, rank: int, world_size: int, num_workers: int
    ) -> None:
        self.shards = open_shards(path)
        self.entries = self.shards.samples(split)
        self.order = order_of(self.shards, split, seed, token_budget)
        self.mine = micro_batches_of_rank(per_step, rank, world_size)
        self.per_step, self.num_workers = per_step, num_workers

    def load(self, micro: MicroBatch) -> Batch:
        """Read, decompose and pack the chains of a micro-batch."""
        samples = [self.shards.read(self.entries[i]) for i in micro.samples]
        return collate([featurise(s, k, i) for s, k, i in zip(samples, micro.conformations, micro.samples, strict=True)])

    def steps(self, samples_seen: int = 0) -> Iterator[Step]:
        """Endless; close the iterator to stop the threads."""
        stream = self.order.stream(samples_seen)
        if self.num_workers == 0:
            while True:
                group = [next(stream) for _ in range(self.per_step)]
                yield self._step(group, [self.load(group[k]) for k in self.mine])
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader") as pool:
            waiting: deque = deque()
            try:
                while True:
                    while len(waiting) <= self.num_workers:
                        group = [next(stream) for _ in range(self.per_step)]
                        waiting.append((group, [pool.submit(self.load, group[k]) for k in self.mine]))
                    group, futures = waiting.popleft()
                    yield self._step(group, [future.result() for future in futures])
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _step(self, group: list[MicroBatch], batches: list[Batch]) -> Step:
        chains = sum(len(m.samples) for m in group)
        loaded = [
            LoadedMicroBatch(batch, group[k].noise_seed, len(group[k].samples) * self.per_step / chains)
            for k, batch in zip(self.mine, batches, strict=True)
        ]
        atoms = sum(self.order.num_units[i] * self.order.atoms_per_unit[i] for m in group for i in m.samples)
        padded = sum(sum(self.order.num_units[i] for i in m.samples) * max(self.order.atoms_per_unit[i] for i in m.samples) for m in group)
        return Step(loaded, group[-1].seen, chains, atoms, atoms / padded)


def noise(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one micro-batch: the same noise on whatever rank it is computed."""
    return torch.Generator(device).manual_seed(seed)
