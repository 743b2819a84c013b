"""Chains as arrays: assembled from unit shapes and link dihedrals, and the index tables that metrics read. No loop over units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.chem.topology import rotatable_bonds
from data_shards.conformers.statistics import backbone_path
from data_shards.schema import UnitTopology, atom_owners, chain_bonds, chain_elements, unit_slots
from foundation.geometry.assembly import assemble_links, chain_coordinates, chain_layout


def assemble_chains(topology: UnitTopology, shapes_ang: NDArray[np.floating], link_rad: NDArray[np.floating]) -> NDArray[np.float64]:
    """Chains of one polymer from unit shapes and link dihedrals.

    Args:
        topology: the repeat unit.
        shapes_ang: (K, N, n, 3) unit shapes in any frame.
        link_rad: (K, N - 1) link dihedrals.

    Returns:
        (K, H, 3) heavy atoms, schema order, every chain centred.
    """
    num, units, atoms = shapes_ang.shape[:3]
    rows = num * units
    key = torch.from_numpy(topology.key_atoms.astype(np.int64)).expand(rows, 4)
    link = torch.from_numpy(topology.link_atoms.astype(np.int64)).expand(rows, 2)
    start = torch.arange(rows) % units == 0
    phi = torch.zeros(num, units, dtype=torch.float64)
    phi[:, :-1] = torch.from_numpy(np.ascontiguousarray(link_rad, dtype=np.float64))
    shapes = torch.from_numpy(np.ascontiguousarray(shapes_ang, dtype=np.float64)).reshape(rows, atoms, 3)
    x_world, _ = assemble_links(shapes, key, link, start, phi.reshape(-1))
    layout = chain_layout(key, torch.full((rows,), atoms), start, atoms)
    x_ang = chain_coordinates(x_world, layout).reshape(num, -1, 3).numpy()
    return np.asarray(x_ang - x_ang.mean(axis=1, keepdims=True))


@dataclass(frozen=True)
class ChainTables:
    """Index tables of one chain; atoms count in schema order.

    Attributes:
        topology: the repeat unit.
        num_units: N.
        slots: (N, n) atom of every unit and slot.
        bonds: (Q, 2) heavy-atom bonds, i < j.
        bond_class: (Q,) number of the slots that a bond joins and whether it leaves the unit.
        angles: (R, 3) atoms i, centre, k with i < k.
        angle_class: (R,) likewise.
        links: (N - 1, 4) atoms of the link dihedrals.
        torsions: (N, T, 4) atoms of the torsions inside units.
        elements: (H,) atomic numbers.
        backbone: (P,) atoms on a shortest path from cap to cap.
    """

    topology: UnitTopology
    num_units: int
    slots: NDArray[np.int64]
    bonds: NDArray[np.int64]
    bond_class: NDArray[np.int64]
    angles: NDArray[np.int64]
    angle_class: NDArray[np.int64]
    links: NDArray[np.int64]
    torsions: NDArray[np.int64]
    elements: NDArray[np.uint8]
    backbone: NDArray[np.int64]

    @property
    def num_heavy_atoms(self) -> int:
        """H."""
        return len(self.elements)


def chain_tables(topology: UnitTopology, num_units: int) -> ChainTables:
    """Index tables of a chain of N units."""
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    bonds, _ = chain_bonds(topology, num_units)
    elements = chain_elements(topology, num_units)
    angles = angle_triples(bonds, len(elements))
    n = topology.num_atoms
    _, nbr0, nbr1, _ = (int(k) for k in topology.key_atoms)
    unit, slot = atom_owners(topology.key_atoms, n, num_units)
    # a class says which slots meet, and whether an end lies in the unit before or after
    i, j = bonds.T
    bond_class = slot[i] * 3 * n + slot[j] + n * (unit[j] - unit[i])
    i, centre, k = angles.T
    ends = np.sort(np.stack([slot[a] + n * (unit[a] - unit[centre] + 1) for a in (i, k)], 1), axis=1)
    angle_class = (slot[centre] * 3 * n + ends[:, 0]) * 3 * n + ends[:, 1]
    link_a, link_d = (int(s) for s in topology.link_atoms)
    links = np.stack([slots[:-1, link_a], slots[:-1, nbr1], slots[1:, nbr0], slots[1:, link_d]], axis=1)
    torsions, _ = rotatable_bonds(topology)
    return ChainTables(
        topology,
        num_units,
        slots,
        bonds,
        bond_class,
        angles,
        angle_class,
        links,
        slots[:, torsions.astype(np.int64)],
        elements,
        backbone_path(topology, num_units),
    )


def angle_triples(bonds: NDArray[np.int64], num_atoms: int) -> NDArray[np.int64]:
    """Pairs of bonds that share an atom.

    Args:
        bonds: (Q, 2) each bond once.
        num_atoms: H.

    Returns:
        (R, 3) atoms i, centre, k with i < k, sorted by centre.
    """
    centre = bonds.ravel()
    other = bonds[:, ::-1].ravel()
    order = np.lexsort((other, centre))
    centre, other = centre[order], other[order]
    degree = np.bincount(centre, minlength=num_atoms)
    width = int(degree.max(initial=0))
    first = np.concatenate([[0], degree.cumsum()[:-1]])
    around = np.full((num_atoms, width), -1, dtype=np.int64)
    around[centre, np.arange(len(centre)) - first[centre]] = other
    left, right = np.triu_indices(width, 1)
    triples = np.stack([around[:, left], np.broadcast_to(np.arange(num_atoms)[:, None], (num_atoms, len(left))), around[:, right]], axis=-1)
    triples = triples.reshape(-1, 3)
    return triples[triples[:, 2] >= 0]
