"""Morgan fingerprint of a repeat unit inside a long chain: how often each circular environment comes with one more unit.

As for descriptors.py, the difference between a longer and a shorter chain has no ends. The shorter one is so long that no environment
sees both of its ends; every further unit then adds the same counts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit.Chem import rdFingerprintGenerator

from data_shards.chem.oligomer import heavy_chain
from data_shards.schema import UnitTopology

RADIUS, BITS = 3, 2048


def morgan_counts(topology: UnitTopology, radius: int = RADIUS, bits: int = BITS) -> NDArray[np.int32]:
    """(bits,) environments per repeat unit, folded; whatever way the polymer is written, where the topology is that of its smallest unit.

    Args:
        topology: of the repeat unit, as unit_graph or build_unit give it.
        radius: of the largest environment, in bonds.
        bits: length of the folded fingerprint.

    Source: Rogers, Hahn, J. Chem. Inf. Model. 50, 742 (2010), in RDKit. Chirality is left out.
    """
    num_units = _free_of_ends(topology, radius)
    shorter, longer = (_generator(radius, bits).GetCountFingerprintAsNumPy(heavy_chain(topology, n)) for n in (num_units, num_units + 1))
    return longer.astype(np.int32) - shorter.astype(np.int32)


def _free_of_ends(topology: UnitTopology, radius: int) -> int:
    """Units of the shortest chain in which no environment sees both ends: 2 * radius + 2 atoms of its backbone, and a unit to spare."""
    neighbours: list[list[int]] = [[] for _ in range(topology.num_atoms)]
    for i, j in topology.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    head, tail = topology.key_atoms[[1, 2]].tolist()
    seen, frontier, length = {head}, {head}, 1  # atoms of the shortest path through the unit
    while tail not in seen:
        frontier = {k for atom in frontier for k in neighbours[atom]} - seen
        seen |= frontier
        length += 1
    return 1 + -(-(2 * radius + 2) // length)


@cache
def _generator(radius: int, bits: int) -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)


__all__ = ["BITS", "RADIUS", "morgan_counts"]
