"""What one polymer chain is, in memory and on disk. Numbers and strings only; no RDKit object and no pickle.

Vocabulary (one legend for the whole room)
    n   heavy atoms of a repeat unit, the two substituted star atoms included
    m   bonds between those atoms
    c   stereocentres of the unit (tetrahedral atoms whose mirror images differ inside a long chain)
    N   repeat units of the chain
    H   heavy atoms of the chain, H = N (n - 2) + 2
    K   conformations

Order of atoms in a chain: the head cap (the star-0 atom of unit 0), then for every unit its n - 2 own atoms in slot order,
then the tail cap (the star-1 atom of unit N - 1). Hydrogens follow their heavy atoms in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1
MOLECULE_ENGINES = ("etkdg", "record")  # engines whose samples are molecules, not chains of polymers

BOND_SINGLE, BOND_DOUBLE, BOND_TRIPLE, BOND_AROMATIC = 1, 2, 3, 4


@dataclass(frozen=True)
class UnitTopology:
    """Graph of one repeat unit with its stars replaced by the atoms that they stand for.

    ``star0`` is a copy of the neighbour unit's ``nbr1`` and ``star1`` a copy of the next unit's ``nbr0``: adjacent units share one
    whole bond. Paper numbering: atom-1 = star0, atom-2 = nbr0, atom-3 = nbr1, atom-4 = star1.
    """

    psmiles: str  # canonical P-SMILES
    elements: NDArray[np.uint8]  # (n,) atomic numbers
    formal_charges: NDArray[np.int8]  # (n,)
    num_hydrogens: NDArray[np.uint8]  # (n,) hydrogens inside a long chain; a star carries those of the atom it stands for
    aromatic: NDArray[np.bool_]  # (n,)
    bonds: NDArray[np.int32]  # (m, 2) slot indices, i < j, sorted; the two star bonds included
    bond_orders: NDArray[np.uint8]  # (m,) BOND_* codes
    key_atoms: NDArray[np.int32]  # (4,) slots of star0, nbr0, nbr1, star1; nbr0 may equal nbr1
    frame_atoms: NDArray[np.int32]  # (3,) slots a, o, b of the unit frame: origin o, first axis a -> o, second axis towards b
    link_atoms: NDArray[np.int32]  # (2,) slots a (beside nbr1) and d (beside nbr0) that define the link dihedral a-nbr1-nbr0'-d'
    stereo_centres: NDArray[np.int32]  # (c,) slots
    stereo_neighbours: NDArray[np.int32]  # (c, 3) slots of three heavy neighbours; handedness = sign of their triple product
    stereo_specified: NDArray[np.int8]  # (c,) +1 or -1 where the P-SMILES fixes it, else 0
    cap_hydrogens: NDArray[np.uint8]  # (2,) hydrogens of the head cap and of the tail cap
    junction_order: int  # BOND_* code of the bond between units

    @property
    def num_atoms(self) -> int:
        """n, stars included."""
        return len(self.elements)


class TopologyKey:
    """A topology as the key of a cache: two are the same where every field is.

    The P-SMILES is not enough. A graph of repeat_unit.unit_graph shares it, and the bonds and at times the frame, with the whole unit of
    build_unit, but holds placeholders for links and stereocentres.
    """

    __slots__ = ("content", "topology")

    def __init__(self, topology: UnitTopology) -> None:
        self.topology = topology
        numbers = (value for value in vars(topology).values() if isinstance(value, np.ndarray))
        sizes = f"{topology.psmiles} {topology.junction_order} {len(topology.bonds)} {len(topology.stereo_centres)}"
        self.content = b"".join([sizes.encode(), *(value.tobytes() for value in numbers)])

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopologyKey) and other.content == self.content


@dataclass(frozen=True)
class PolymerSample:
    """One chain with K conformations: what a shard holds."""

    key: str  # hash of canonical P-SMILES, num_units and seed
    topology: UnitTopology
    num_units: int  # N
    tacticity: str  # isotactic | syndiotactic | atactic
    seed: int  # of tacticity and conformations
    engine: str  # grow | md | import
    heavy_ang: NDArray[np.float32]  # (K, H, 3)
    hydrogen_ang: NDArray[np.float32]  # (K, number of hydrogens, 3)
    energies_kcal_mol: NDArray[np.float64] | None  # (K,) whole chain, or None where the engine has none
    provenance: dict[str, Any] = field(default_factory=dict)  # recipe digest, software versions, source row


@dataclass(frozen=True)
class MoleculeGraph:
    """One molecule of n atoms.

    Attributes:
        smiles: canonical, with configurations.
        elements, degrees, hydrogens, charges, aromatic, ring_sizes: (n,); hydrogens: those that are no atoms of their own; ring_sizes: of
            the smallest ring, 0 outside.
        bonds: (m, 2), each once; bond_orders: (m,) BOND_* codes, 0 others; bond_rings: (m,) bool.
        around: (c, 3) three neighbours of each tetrahedral centre with a known configuration.
        signs: (c,) sign of their triple product, seen from the centre, +1 or -1.
        across: (s, 2) pairs of atoms on the two sides of a double bond with a known configuration.
        sides: (s,) +1 on the same side, -1 on the other.
    """

    smiles: str
    elements: NDArray[np.int64]
    degrees: NDArray[np.int64]
    hydrogens: NDArray[np.int64]
    charges: NDArray[np.int64]
    aromatic: NDArray[np.bool_]
    ring_sizes: NDArray[np.int64]
    bonds: NDArray[np.int64]
    bond_orders: NDArray[np.int64]
    bond_rings: NDArray[np.bool_]
    around: NDArray[np.int64]
    signs: NDArray[np.int64]
    across: NDArray[np.int64]
    sides: NDArray[np.int64]

    @property
    def num_atoms(self) -> int:
        """n."""
        return len(self.elements)


@dataclass(frozen=True)
class MoleculeSample:
    """One molecule with K conformations."""

    key: str
    graph: MoleculeGraph
    x_ang: NDArray[np.float32]  # (K, n, 3), in the order of the graph's atoms
    engine: str  # etkdg | record
    provenance: dict[str, Any] = field(default_factory=dict)


def unit_slots(key_atoms: NDArray[np.int32], num_atoms: int, num_units: int) -> NDArray[np.int64]:
    """Chain atom of every (unit, slot).

    Args:
        key_atoms: (4,) slots of star0, nbr0, nbr1, star1.
        num_atoms: n, heavy atoms of a unit with its stars.
        num_units: N.

    Returns:
        (N, n) indices into the H heavy atoms of the chain. Row i, slot star1 equals row i + 1, slot nbr0; row i + 1, slot star0
        equals row i, slot nbr1.
    """
    star0, nbr0, nbr1, star1 = (int(k) for k in key_atoms)
    own = np.delete(np.arange(num_atoms), [star0, star1])
    slots = np.empty((num_units, num_atoms), dtype=np.int64)
    slots[:, own] = 1 + np.arange(num_units)[:, None] * (num_atoms - 2) + np.arange(num_atoms - 2)[None]
    slots[1:, star0] = slots[:-1, nbr1]
    slots[0, star0] = 0
    slots[:-1, star1] = slots[1:, nbr0]
    slots[-1, star1] = num_units * (num_atoms - 2) + 1
    return slots


def atom_owners(key_atoms: NDArray[np.int32], num_atoms: int, num_units: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inverse of unit_slots.

    Args:
        key_atoms: (4,) slots of star0, nbr0, nbr1, star1.
        num_atoms: n, heavy atoms of a unit with its stars.
        num_units: N.

    Returns:
        (H,) unit and (H,) slot of every heavy atom. A cap belongs to the unit that it ends and keeps its star's slot.
    """
    star0, star1 = int(key_atoms[0]), int(key_atoms[3])
    own = np.delete(np.arange(num_atoms), [star0, star1])
    inner = np.arange(num_units * len(own))
    unit = np.concatenate([[0], inner // len(own), [num_units - 1]])
    slot = np.concatenate([[star0], own[inner % len(own)], [star1]])
    return unit, slot


def chain_elements(topology: UnitTopology, num_units: int) -> NDArray[np.uint8]:
    """(H,) atomic numbers of the chain's heavy atoms."""
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    elements = np.zeros(num_units * (topology.num_atoms - 2) + 2, dtype=np.uint8)
    elements[slots] = topology.elements[None]
    return elements


def chain_hydrogens(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """(H,) hydrogens on each heavy atom of the chain, caps saturated."""
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    star0, star1 = int(topology.key_atoms[0]), int(topology.key_atoms[3])
    own = np.delete(np.arange(topology.num_atoms), [star0, star1])
    counts = np.zeros(num_units * (topology.num_atoms - 2) + 2, dtype=np.int64)
    counts[slots[:, own]] = topology.num_hydrogens[own][None]
    counts[0], counts[-1] = topology.cap_hydrogens
    return counts


def chain_bonds(topology: UnitTopology, num_units: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bonds of the heavy-atom chain.

    Returns:
        (N (m - 1) + 1, 2) atom indices, each bond once, and their BOND_* codes; the bonds to the caps have the
        order of the junction.
    """
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    head = (topology.bonds == topology.key_atoms[0]).any(axis=1)
    inner = slots[:, topology.bonds[~head]].reshape(-1, 2)  # every unit brings its tail bond, unit 0 its head bond too
    first = slots[0][topology.bonds[head]].reshape(-1, 2)
    orders = np.concatenate([topology.bond_orders[head], np.tile(topology.bond_orders[~head], num_units)])
    return np.sort(np.concatenate([first, inner]), axis=1), orders
