"""Polymers of like repeat units put together, so that a test fold holds kinds of polymers that training has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.fingerprints import Neighbours

SIMILAR = 0.4  # similarity (fingerprints.Neighbours) from which two polymers are neighbours
BLOCK = 256  # rows of the similarity matrix at a time, which bounds memory


def clusters(counts: NDArray[np.integer], atoms: NDArray[np.integer], groups: Sequence[str], similar: float = SIMILAR) -> NDArray[np.int64]:
    """(P,) cluster of each polymer, numbered from 0, by sphere exclusion.

    The polymer with the most neighbours and all its neighbours are the first cluster; they are taken away, and so on down the list of
    polymers by their number of neighbours at the beginning. Ties go by name: the order of the table does not matter.

    Args:
        counts: (P, bits) Morgan counts of a unit.
        atoms: (P,) heavy atoms of a unit.
        groups: (P,) canonical names, each once.
        similar: similarity from which two polymers are neighbours.

    Source: Butina, J. Chem. Inf. Comput. Sci. 39, 747 (1999).
    """
    table = Neighbours(counts, atoms)
    near: list[NDArray[np.int64]] = []
    for start in range(0, len(counts), BLOCK):
        block = table.similarity(counts[start : start + BLOCK], atoms[start : start + BLOCK])
        near += [np.flatnonzero(row >= similar) for row in block]
    cluster = np.full(len(counts), -1)
    number = 0
    for centre in sorted(range(len(counts)), key=lambda k: (-len(near[k]), groups[k])):
        if cluster[centre] < 0:
            free = near[centre][cluster[near[centre]] < 0]
            cluster[free] = number
            cluster[centre] = number  # also where a unit has no environment to compare
            number += 1
    return cluster


def spread_over_folds(cluster: NDArray[np.integer], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """(P,) fold of each polymer: whole clusters, the largest first, each into the fold that holds the fewest polymers so far.

    No fold is larger than the smallest one by more than its largest cluster. Clusters of one size are taken in an order drawn by the seed.

    Args:
        cluster: (P,) numbered from 0.
        groups: (P,) canonical names.
        folds: how many.
        seed: of the order.
    """
    members: dict[int, list[int]] = {}
    for polymer, number in enumerate(cluster.tolist()):
        members.setdefault(number, []).append(polymer)

    def place(own: list[int]) -> tuple[int, str]:
        first = min(groups[k] for k in own)
        return -len(own), hashlib.sha256(f"{seed} {first}".encode()).hexdigest()

    held = np.zeros(folds, dtype=np.int64)
    fold = np.zeros(len(cluster), dtype=np.int64)
    for own in sorted(members.values(), key=place):
        fold[own] = smallest = int(held.argmin())
        held[smallest] += len(own)
    return fold


__all__ = ["SIMILAR", "clusters", "spread_over_folds"]
