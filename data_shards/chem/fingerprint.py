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

from data_shards.chem.oligomer import plain_chain
from data_shards.chem.topology import backbone, bonds_through, ring_bonds
from data_shards.schema import UnitTopology, unit_slots

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
    shorter, longer = (_generator(radius, bits).GetCountFingerprintAsNumPy(plain_chain(topology, n)) for n in (num_units, num_units + 1))
    return longer.astype(np.int32) - shorter.astype(np.int32)


def centred_environments(topology: UnitTopology, radius: int = RADIUS, bits: int = BITS) -> list[list[int]]:
    """Of each slot of a unit the folded environments that are centred on it, in a chain so long that none sees an end; stars have none.

    Every environment is listed, also one that covers the same bonds as another and that morgan_counts therefore does not count again.
    """
    num_units = 2 * _free_of_ends(topology, radius) + 1
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateAtomToBits()
    _generator(radius, bits, redundant=True).GetCountFingerprint(plain_chain(topology, num_units), additionalOutput=output)
    atoms = unit_slots(topology.key_atoms, topology.num_atoms, num_units)[num_units // 2]
    stars = set(topology.key_atoms[[0, 3]].tolist())
    own = output.GetAtomToBits()
    return [[] if slot in stars else list(own[int(atom)]) for slot, atom in enumerate(atoms)]


def _free_of_ends(topology: UnitTopology, radius: int) -> int:
    """Units of the shortest chain in which no environment sees both ends: 2 * radius + 2 atoms of its backbone, and a unit to spare."""
    return 1 + -(-(2 * radius + 2) // _length(topology))


def _length(topology: UnitTopology) -> int:
    """Atoms of the shortest path through a unit."""
    return bonds_through(topology) - 1


def backbone_shape(topology: UnitTopology) -> NDArray[np.float32]:
    """(4,) heavy atoms of a unit; atoms of the shortest path through it; their share of the heavy atoms; share of backbone atoms in rings.

    A chain of a given mass is the longer the larger the third is, which neither environments nor sums over atoms say.
    """
    heavy, length = topology.num_atoms - 2, _length(topology)
    inside = backbone(topology)
    inside[topology.key_atoms[[0, 3]]] = False
    in_ring = np.zeros(topology.num_atoms, dtype=bool)
    in_ring[topology.bonds[ring_bonds(topology)].ravel()] = True
    return np.array([heavy, length, length / heavy, in_ring[inside].mean()], dtype=np.float32)


@cache
def _generator(radius: int, bits: int, redundant: bool = False) -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits, includeRedundantEnvironments=redundant)


__all__ = ["BITS", "RADIUS", "backbone_shape", "centred_environments", "morgan_counts"]
