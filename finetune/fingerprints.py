"""What a property can be read from without a neural network: Morgan counts, RDKit descriptors, backbone and levels; similarities.

All are those of one more unit in a long chain (data_shards/chem/fingerprint.py, descriptors.py, levels.py) of the smallest unit, so that
they do not depend on how a polymer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.fingerprint import BITS, backbone_shape, morgan_counts
from data_shards.chem.levels import LEVELS, chain_levels
from data_shards.crew import Crash, crew
from data_shards.errors import PolymerError
from data_shards.progress import Progress
from data_shards.schema import UnitTopology

POLYMERS_PER_TASK = 32
TIME_LIMIT_SEC = 300.0
NUMBERS = ("counts", "descriptors", "shape", "levels")  # of Features, as they are stored
BLOCK = 256  # polymers compared at a time, which bounds memory

Row = tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float32], NDArray[np.float32], UnitTopology]
SHAPE = ("heavy atoms", "backbone atoms", "backbone share", "ring share of the backbone")  # of fingerprint.backbone_shape


@dataclass(frozen=True)
class Refused:
    """A P-SMILES without features: its place in the list, and why."""

    index: int
    psmiles: str
    reason: str


@dataclass(frozen=True)
class Features:
    """Repeat units as numbers.

    Attributes:
        kept: (K,) indices into the list of P-SMILES, increasing.
        counts: (K, BITS) Morgan environments of a unit.
        descriptors: (K, F) per heavy atom, NaN where RDKit has no value.
        shape: (K, 4) SHAPE.
        levels: (K, L) LEVELS of the infinite chain, NaN where there is none.
        refused: the others.
        units: (K,) graphs of the repeat units; empty where they were read from a file.
    """

    kept: NDArray[np.int64]
    counts: NDArray[np.int16]
    descriptors: NDArray[np.float32]
    shape: NDArray[np.float32]
    levels: NDArray[np.float32]
    refused: tuple[Refused, ...]
    units: tuple[UnitTopology, ...] = ()

    @classmethod
    def of(cls, kept: NDArray[np.int64], numbers: Mapping[str, NDArray[Any]], refused: tuple[Refused, ...]) -> Features:
        """From arrays by the names of NUMBERS."""
        return cls(kept, numbers["counts"], numbers["descriptors"], numbers["shape"], numbers["levels"], refused)

    @property
    def atoms(self) -> NDArray[np.int64]:
        """(K,) heavy atoms of a unit."""
        return self.shape[:, 0].astype(np.int64)

    def matrix(self, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.float32]:
        """(R, BITS + F + 4) counts, descriptors and shape side by side, what trees are compared on."""
        own = (self.counts[rows], self.descriptors[rows], self.shape[rows])
        return np.concatenate([part.astype(np.float32) for part in own], axis=1)


def features(psmiles: Sequence[str], workers: int | None, bars: Progress) -> Features:
    """Counts and descriptors of polymers.

    Args:
        psmiles: any spelling.
        workers: as `crew`: 0 is this process, None every processor; starting workers takes some seconds, a polymer about 0.04.
        bars: where progress is shown.
    """
    from data_shards.chem.descriptors import table

    rows: dict[int, Row] = {}
    refused = []
    with crew(workers) as unordered, bars.stage("features", len(psmiles)) as stage:
        for chunk, answer in unordered(_rows, _chunks(psmiles), TIME_LIMIT_SEC):
            found = [answer.value.detail] * len(chunk) if isinstance(answer.value, Crash) else answer.value
            for (index, text), row in zip(chunk, found, strict=True):
                if isinstance(row, str):
                    refused.append(Refused(index, text, row))
                else:
                    rows[index] = row
            stage.advance(len(chunk))
    kept = np.array(sorted(rows), dtype=np.int64)
    counts = np.zeros((len(kept), BITS), dtype=np.int16)
    descriptors = np.zeros((len(kept), len(table()[0])), dtype=np.float32)
    shape = np.zeros((len(kept), len(SHAPE)), dtype=np.float32)
    levels = np.zeros((len(kept), len(LEVELS)), dtype=np.float32)
    for place, index in enumerate(kept.tolist()):
        counts[place], descriptors[place], shape[place], levels[place], _ = rows[index]
    units = tuple(rows[index][4] for index in kept.tolist())
    return Features(kept, counts, descriptors, shape, levels, tuple(sorted(refused, key=lambda one: one.index)), units)


def _chunks(psmiles: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    for start in range(0, len(psmiles), POLYMERS_PER_TASK):
        yield list(enumerate(psmiles[start : start + POLYMERS_PER_TASK], start))


def _rows(chunk: list[tuple[int, str]]) -> list[Row | str]:
    """Features of each, or why there are none."""
    from data_shards.chem.descriptors import unit_descriptors
    from data_shards.chem.repeat_unit import unit_graph

    found: list[Row | str] = []
    for _, psmiles in chunk:
        try:
            unit = unit_graph(psmiles)
            found.append((morgan_counts(unit), unit_descriptors(unit), backbone_shape(unit), chain_levels(unit), unit))
        except PolymerError as error:
            found.append(error.detail)
        except ValueError as error:  # RDKit refuses the chain although it reads the unit
            found.append(f"RDKit cannot build a chain of it ({(str(error).splitlines() or ['no reason given'])[0]})")
    return found


class Neighbours:
    """Polymers that others are compared with.

    The similarity is Tanimoto's of Morgan counts per heavy atom, sum of the smaller over sum of the larger: 1 for the same polymer. A
    chain has no unit, only a composition, so that nylon-6 and nylon-6,6 are nearly alike although one unit is twice the other.

    Args:
        counts: (T, bits) Morgan counts of a unit.
        atoms: (T,) heavy atoms of a unit.

    Source: Ruzicka, Biologia 13, 647 (1958), as Tanimoto's coefficient of counts.
    """

    def __init__(self, counts: NDArray[np.integer], atoms: NDArray[np.integer]) -> None:
        from scipy.sparse import csc_array

        self._counts, self._atoms = counts, atoms
        per_atom = counts / np.maximum(atoms, 1)[:, None]
        self._columns, self._sums = csc_array(per_atom), per_atom.sum(1)

    def similarity(self, counts: NDArray[np.integer], atoms: NDArray[np.integer]) -> NDArray[np.float64]:
        """(Q, T) similarities of queries, given as in the constructor."""
        table = self._columns
        found = np.zeros((len(counts), len(self._sums)))
        for row, (own, size) in enumerate(zip(counts, atoms, strict=True)):
            there = np.flatnonzero(own)
            values = own[there] / max(int(size), 1)
            spans = [slice(table.indptr[k], table.indptr[k + 1]) for k in there]
            lengths = [span.stop - span.start for span in spans]
            if sum(lengths):
                smaller = np.minimum(np.concatenate([table.data[span] for span in spans]), np.repeat(values, lengths))
                shared = np.bincount(np.concatenate([table.indices[span] for span in spans]), smaller, len(self._sums))
                found[row] = shared / (self._sums + values.sum() - shared)
        return found

    def nearest(self, counts: NDArray[np.integer], atoms: NDArray[np.integer], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(Q, k) indices of the most similar polymers and their similarities, the most similar first; ties in the order of the table."""
        similarity = self.similarity(counts, atoms)
        left, order = similarity.copy(), np.empty((len(similarity), min(k, similarity.shape[1])), dtype=np.int64)
        for place in range(order.shape[1]):  # a few times through the rows is faster than sorting them
            order[:, place] = left.argmax(axis=1)
            left[np.arange(len(left)), order[:, place]] = -1.0
        return order, np.take_along_axis(similarity, order, axis=1)

    def usual(self, percent: float) -> float:
        """Similarity to the nearest other polymer that this share of these polymers falls short of; 0 for a single one."""
        nearest = []
        for start in range(0, len(self._sums), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self._sums)))
            block = self.similarity(self._counts[rows], self._atoms[rows])
            block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = 0.0
            nearest.append(block.max(axis=1))
        return float(np.percentile(np.concatenate(nearest), percent)) if len(self._sums) > 1 else 0.0


__all__ = ["BITS", "NUMBERS", "SHAPE", "Features", "Neighbours", "Refused", "features", "morgan_counts"]
