"""The heavy-atom graph of an n-mer as an RDKit molecule, and pieces cut out of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.stereo import tag_from_sign
from data_shards.schema import (
    BOND_AROMATIC,
    BOND_DOUBLE,
    BOND_SINGLE,
    BOND_TRIPLE,
    TopologyKey,
    UnitTopology,
    chain_bonds,
    chain_elements,
    chain_hydrogens,
    unit_slots,
)

BOND_TYPES = {
    BOND_SINGLE: Chem.BondType.SINGLE,
    BOND_DOUBLE: Chem.BondType.DOUBLE,
    BOND_TRIPLE: Chem.BondType.TRIPLE,
    BOND_AROMATIC: Chem.BondType.AROMATIC,
}
BOND_CODES = {kind: code for code, kind in BOND_TYPES.items()}


def add_atom(mol: Chem.RWMol, element: int, charge: int, hydrogens: int, aromatic: bool) -> None:
    """Append an atom with a fixed number of hydrogens."""
    mol.AddAtom(_atom(int(element), int(charge), int(hydrogens), bool(aromatic)))


@lru_cache(maxsize=512)
def _atom(element: int, charge: int, hydrogens: int, aromatic: bool) -> Chem.Atom:
    """What a molecule copies when it is added."""
    atom = Chem.Atom(element)
    atom.SetFormalCharge(charge)
    atom.SetNoImplicit(True)
    atom.SetNumExplicitHs(hydrogens)
    atom.SetIsAromatic(aromatic)
    return atom


def heavy_chain(topology: UnitTopology, num_units: int, handedness: NDArray[np.int8] | None = None) -> Chem.Mol:
    """Build the sanitised heavy-atom graph of a chain with its two caps.

    Args:
        topology: the repeat unit.
        num_units: N.
        handedness: (N, c) signs to write as chiral tags, 0 where none; None writes those that the P-SMILES fixes.

    Returns:
        Molecule of H atoms in schema order; hydrogens are counts on their atoms.
    """
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    ends = topology.key_atoms[[0, 3]]
    own = np.delete(np.arange(topology.num_atoms), ends)
    charges = np.zeros(num_units * len(own) + 2, dtype=int)
    aromatic = np.zeros(len(charges), dtype=bool)
    charges[slots[:, own]] = topology.formal_charges[own]
    aromatic[slots[:, own]] = topology.aromatic[own]
    charges[[0, -1]] = topology.formal_charges[ends]
    mol = Chem.RWMol()
    for row in zip(
        chain_elements(topology, num_units).tolist(),
        charges.tolist(),
        chain_hydrogens(topology, num_units).tolist(),
        aromatic.tolist(),
        strict=True,
    ):
        add_atom(mol, *row)
    bonds, orders = chain_bonds(topology, num_units)
    for (i, j), order in zip(bonds.tolist(), orders.tolist(), strict=True):
        mol.AddBond(i, j, BOND_TYPES[order])  # an aromatic one is marked so, with its atoms
    signs = np.broadcast_to(topology.stereo_specified, (num_units, len(topology.stereo_centres))) if handedness is None else handedness
    unit, centre = np.nonzero(signs)
    centres = slots[:, topology.stereo_centres][unit, centre]
    neighbours = slots[:, topology.stereo_neighbours][unit, centre]
    for atom, triple, sign in zip(centres.tolist(), neighbours.tolist(), signs[unit, centre].tolist(), strict=True):
        mol.GetAtomWithIdx(atom).SetChiralTag(tag_from_sign(mol.GetAtomWithIdx(atom), triple, sign))
    built = mol.GetMol()
    Chem.SanitizeMol(built)
    return built


def plain_chain(topology: UnitTopology, num_units: int) -> Chem.Mol:
    """heavy_chain with the marks of the P-SMILES, of the polymers asked for last; not to be changed by who reads it."""
    return _plain_chain(TopologyKey(topology), num_units)


@lru_cache(maxsize=8)
def _plain_chain(key: TopologyKey, num_units: int) -> Chem.Mol:
    return heavy_chain(key.topology, num_units)


@dataclass(frozen=True)
class Piece:
    """A part of a chain, every cut bond replaced by a hydrogen. Hydrogens are atoms after the heavy ones."""

    mol: Chem.Mol
    index: dict[int, int]  # chain atom -> atom of mol


def close_over(chain: Chem.Mol, atoms: set[int]) -> set[int]:
    """Enlarge a set of atoms until every bond that leaves it can be cut and capped by a hydrogen without changing atom types.

    A bond may be cut when it is single, joins no two charged atoms, lies in no three- or four-ring and does not end on an atom
    that is only stable with its ligands (sulfone, phosphate ...).
    """
    rings = chain.GetRingInfo()
    inside, frontier = set(atoms), set(atoms)
    while frontier:
        added: set[int] = set()
        for index in frontier:
            atom = chain.GetAtomWithIdx(index)
            hypervalent = atom.GetAtomicNum() in (15, 16, 34) and atom.GetDegree() > 2
            for bond in atom.GetBonds():
                other = bond.GetOtherAtom(atom)
                plain = bond.GetBondType() == Chem.BondType.SINGLE and not bond.GetIsAromatic()
                charged = bool(atom.GetFormalCharge() and other.GetFormalCharge())
                small_ring = any(rings.IsBondInRingOfSize(bond.GetIdx(), size) for size in (3, 4))
                if other.GetIdx() not in inside and (hypervalent or charged or small_ring or not plain):
                    added.add(other.GetIdx())
        inside |= added
        frontier = added
    return inside


def cut_out(chain: Chem.Mol, atoms: set[int]) -> Piece:
    """Cut a closed set of atoms (see close_over) out of a chain and add all hydrogens.

    Chiral tags and double-bond marks are left out; the caller writes those that it wants.
    """
    order = sorted(atoms)
    index = {atom: k for k, atom in enumerate(order)}
    mol = Chem.RWMol()
    for k in order:
        atom = chain.GetAtomWithIdx(k)
        cut = sum(neighbour.GetIdx() not in index for neighbour in atom.GetNeighbors())
        add_atom(mol, atom.GetAtomicNum(), atom.GetFormalCharge(), atom.GetTotalNumHs() + cut, atom.GetIsAromatic())
    for bond in chain.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in index and j in index:
            mol.AddBond(index[i], index[j], bond.GetBondType())
            mol.GetBondBetweenAtoms(index[i], index[j]).SetIsAromatic(bond.GetIsAromatic())
    piece = mol.GetMol()
    Chem.SanitizeMol(piece)
    return Piece(mol=Chem.AddHs(piece), index=index)
