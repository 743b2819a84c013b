"""The order of samples as arithmetic of (seed, epoch, manifest). Nothing here knows ranks, workers or files.

    samples of an epoch --shuffle--> --sort into size buckets--> --fill micro-batches up to token_budget atoms--> --shuffle micro-batches-->

Epochs follow each other as one stream of micro-batches; a step takes the next micro_batches_per_step of them and may straddle two
epochs, so no sample is left out and none comes twice in an epoch. The state of a reader is one integer, samples_seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foundation.errors import CheckpointError, ConfigError, InputError

PLANS_KEPT = 4  # epochs
SIZE_RATIO = 1.25  # units within this factor in atoms, and chains within it in units, share a bucket


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed together.

    Attributes:
        epoch: from 0.
        samples: indices into the split.
        conformations: which conformation of each.
        seen: samples of the stream up to and including these.
        noise_seed: of the generator that draws its noise.
        source: which of several shard sets they are of.
    """

    epoch: int
    samples: tuple[int, ...]
    conformations: tuple[int, ...]
    seen: int
    noise_seed: int
    source: int = 0


def counter(*key: int | str) -> int:
    """A 63-bit integer that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Order:
    """The stream of micro-batches of one split.

    Attributes:
        atoms_per_unit, num_units, num_conformations: of every sample, in manifest order.
        seed: of the shuffles.
        token_budget: atoms of a micro-batch, num_units x atoms_per_unit summed.
    """

    atoms_per_unit: tuple[int, ...]
    num_units: tuple[int, ...]
    num_conformations: tuple[int, ...]
    seed: int
    token_budget: int
    _plans: dict[int, list[MicroBatch]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.atoms_per_unit):
            raise InputError("the split has 0 samples, at least 1 is needed; build shards from more polymers")

    @property
    def num_samples(self) -> int:
        return len(self.atoms_per_unit)

    def plan(self, epoch: int) -> list[MicroBatch]:
        """All micro-batches of one epoch."""
        if epoch not in self._plans:
            if len(self._plans) >= PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[epoch] = _plan(self, epoch)
        return self._plans[epoch]

    def coming(self, samples_seen: int) -> list[MicroBatch]:
        """All micro-batches of the epoch in which samples_seen samples have been read."""
        return self.plan(samples_seen // self.num_samples)

    @property
    def largest(self) -> int:
        """A bound on the samples of one micro-batch."""
        smallest = min(units * atoms for units, atoms in zip(self.num_units, self.atoms_per_unit, strict=True))
        return max(1, min(self.num_samples, self.token_budget // smallest))

    def stream(self, samples_seen: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches from where samples_seen samples have been read, without end.

        Raises:
            CheckpointError: samples_seen is not the end of a micro-batch of this order.
        """
        epoch, inside = divmod(samples_seen, self.num_samples)
        ends = [epoch * self.num_samples, *(m.seen for m in self.plan(epoch))]
        if samples_seen not in ends:
            raise CheckpointError(
                f"samples_seen {samples_seen} is not the end of a micro-batch ({inside} samples into epoch {epoch});"
                " continue with the data.token_budget and train.seed that the checkpoint was made with"
            )
        skip = ends.index(samples_seen)
        while True:
            yield from self.plan(epoch)[skip:]
            epoch, skip = epoch + 1, 0

    def num_atoms(self, micro: MicroBatch) -> int:
        """Atoms of a micro-batch, the stars of every unit included."""
        return sum(self.num_units[i] * self.atoms_per_unit[i] for i in micro.samples)

    def padded_atoms(self, micro: MicroBatch) -> int:
        """The same with padding."""
        return math.prod(self.shape(micro))

    def shape(self, micro: MicroBatch) -> tuple[int, int, int]:
        """Chains, units of the longest chain, atoms of the largest unit."""
        return len(micro.samples), max(self.num_units[i] for i in micro.samples), max(self.atoms_per_unit[i] for i in micro.samples)


def _plan(order: Order, epoch: int) -> list[MicroBatch]:
    rng = np.random.Generator(np.random.Philox(counter("epoch", order.seed, epoch)))
    per_unit, num_units = np.array(order.atoms_per_unit), np.array(order.num_units)
    unit_bucket, chain_bucket = (np.floor(np.log(size) / np.log(SIZE_RATIO)) for size in (per_unit, num_units))
    shuffled = rng.permutation(order.num_samples)
    shuffled = shuffled[np.lexsort((chain_bucket[shuffled], unit_bucket[shuffled]))]  # stable: shuffled inside a bucket
    groups = _fill(shuffled, per_unit * num_units, order.token_budget)
    seen = epoch * order.num_samples
    plan = []
    for g in rng.permutation(len(groups)):
        samples = tuple(groups[g])
        seen += len(samples)
        picks = tuple(counter("conformation", order.seed, epoch, i) % order.num_conformations[i] for i in samples)
        plan.append(MicroBatch(epoch, samples, picks, seen, counter("noise", order.seed, epoch, samples[0])))
    return plan


def _fill(queue: NDArray[np.int64], atoms: NDArray[np.int64], budget: int) -> list[list[int]]:
    """Fill micro-batches in the order of the queue; a sample over the budget comes alone."""
    groups: list[list[int]] = []
    room = 0
    for i, size in zip(queue.tolist(), atoms[queue].tolist(), strict=True):
        if not groups or size > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= size
    return groups


def micro_batches_of_rank(micro_batches_per_step: int, rank: int, world_size: int) -> range:
    """Which of a step's micro-batches a rank computes: every world_size-th.

    Raises:
        ConfigError: world_size does not divide micro_batches_per_step; the sizes that do are named.
    """
    if micro_batches_per_step % world_size:
        fits = [n for n in range(1, micro_batches_per_step + 1) if micro_batches_per_step % n == 0]
        raise ConfigError(
            f"{world_size} ranks do not divide train.micro_batches_per_step {micro_batches_per_step}; use one of {fits} ranks"
            f" or set train.micro_batches_per_step to a multiple of {world_size}"
        )
    return range(rank, micro_batches_per_step, world_size)
