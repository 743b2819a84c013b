"""The order of several shard sets that are read together, as arithmetic of (seed, position).

Every set has its own order and its own epochs (data/order.py). Give each micro-batch the time at which it starts: samples of its set
before it, divided by the set's weight. The stream is all micro-batches sorted by that time. So

- no set is ever ahead of its share by more than one of its micro-batches, and only as far behind as those of the others are large;
- the place in every set follows from the number of samples read in all: times before T have been read, for a T that is near that number.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from foundation.data.order import MicroBatch, Order
from foundation.errors import CheckpointError


@dataclass(frozen=True)
class Blend:
    """The stream of micro-batches of several sets; each micro-batch is of one.

    Attributes:
        orders: of each set.
        weights: share of each in the stream of samples; their sum is 1.
    """

    orders: tuple[Order, ...]
    weights: tuple[Fraction, ...]

    @property
    def num_samples(self) -> int:
        """Samples of all sets."""
        return sum(order.num_samples for order in self.orders)

    def stream(self, samples_seen: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches from where samples_seen samples have been read, without end.

        Raises:
            CheckpointError: samples_seen is not the end of a micro-batch of this order.
        """
        read = self.position(samples_seen)
        streams = [order.stream(seen) for order, seen in zip(self.orders, read, strict=True)]
        waiting = [(seen / weight, source) for source, (seen, weight) in enumerate(zip(read, self.weights, strict=True))]
        heapq.heapify(waiting)
        while True:
            source = waiting[0][1]
            micro = next(streams[source])
            samples_seen += len(micro.samples)
            heapq.heapreplace(waiting, (micro.seen / self.weights[source], source))
            yield replace(micro, seen=samples_seen, source=source)

    def position(self, samples_seen: int) -> list[int]:
        """Samples read of every set when samples_seen have been read of all; at most two epochs a set are planned for it.

        Raises:
            CheckpointError: samples_seen is not the end of a micro-batch of this order.
        """
        ends: dict[tuple[int, int], list[int]] = {}

        def end_at_or_after(source: int, samples: int) -> int:
            """The first end of a micro-batch that is not before so many samples of a set."""
            order = self.orders[source]
            epoch = (samples - 1) // order.num_samples
            if (source, epoch) not in ends:
                ends[source, epoch] = [micro.seen for micro in order.plan(epoch)]
            return ends[source, epoch][bisect_left(ends[source, epoch], samples)] if samples > 0 else 0

        # when all micro-batches that start before time T have been read, that is between T and T + (the largest of every set) samples
        start = max(0, samples_seen - sum(order.largest for order in self.orders))
        read = [end_at_or_after(source, ceil(start * weight)) for source, weight in enumerate(self.weights)]
        waiting = [(seen / weight, source) for source, (seen, weight) in enumerate(zip(read, self.weights, strict=True))]
        heapq.heapify(waiting)
        while sum(read) < samples_seen:
            source = waiting[0][1]
            read[source] = end_at_or_after(source, read[source] + 1)
            heapq.heapreplace(waiting, (read[source] / self.weights[source], source))
        if sum(read) != samples_seen:
            raise CheckpointError(
                f"samples_seen {samples_seen} is not the end of a micro-batch of these shards and weights; continue with the shards,"
                " weights, data.token_budget and train.seed that the checkpoint was made with"
            )
        return read

    def coming(self, samples_seen: int) -> list[MicroBatch]:
        """All micro-batches of the epochs that the sets are in when samples_seen samples have been read."""
        read = enumerate(zip(self.orders, self.position(samples_seen), strict=True))
        return [replace(micro, source=source) for source, (order, seen) in read for micro in order.coming(seen)]

    def num_atoms(self, micro: MicroBatch) -> int:
        """Atoms of a micro-batch, the stars of every unit included."""
        return self.orders[micro.source].num_atoms(micro)

    def padded_atoms(self, micro: MicroBatch) -> int:
        """The same with padding."""
        return self.orders[micro.source].padded_atoms(micro)

    def shape(self, micro: MicroBatch) -> tuple[int, int, int]:
        """Chains, units of the longest chain, atoms of the largest unit."""
        return self.orders[micro.source].shape(micro)
