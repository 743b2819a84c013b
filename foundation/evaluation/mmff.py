"""What MMFF94 says of a chain: equilibrium bond lengths and angles, from a short oligomer, and energies of whole conformations.

A chain of four units holds every bond and angle that a longer one has, so typing does not grow with the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from data_shards.chem.chain import chain_mol
from data_shards.conformers.hydrogens import HydrogenRelaxation
from data_shards.errors import PolymerError
from data_shards.schema import TopologyKey, atom_owners, chain_bonds
from foundation.evaluation.chains import ChainTables, angle_triples
from foundation.sampling.writers import conformation_mol

OLIGOMER_UNITS = 4  # first, inner, the one before the last, last
MAX_ITERATIONS = 50  # of relaxing hydrogens: within 0.03 kcal/mol/atom of the minimum, measured on five polymers of ten units
MAX_ENERGY_ATOMS = 1500  # heavy atoms; relaxing longer chains takes minutes each, since every pair acts
NO_CUTOFF_ANG = 1e6  # RDKit's default of 100 would let the terms depend on the conformation


@dataclass(frozen=True)
class Equilibrium:
    """Where MMFF94 bond-stretch and angle-bend terms are at rest; NaN where the force field has no term.

    Attributes:
        bond_ang: (Q,) for ChainTables.bonds.
        angle_deg: (R,) for ChainTables.angles.
    """

    bond_ang: NDArray[np.float64]
    angle_deg: NDArray[np.float64]


def equilibrium(tables: ChainTables) -> Equilibrium:
    """Equilibrium values of a chain.

    Args:
        tables: of the chain.

    Source: Halgren, MMFF94, J. Comput. Chem. 17 (1996) 490, as RDKit implements it. Differs: parameters only, read from an oligomer.
    """
    topology, num_units = tables.topology, tables.num_units
    short = min(num_units, OLIGOMER_UNITS)
    bonds, bond_ang, angles, angle_deg = _oligomer(TopologyKey(topology), short)
    size = short * (topology.num_atoms - 2) + 2
    unit, _ = atom_owners(topology.key_atoms, topology.num_atoms, num_units)
    # inner units stand for unit 1 of the oligomer, the last two for its last two
    stand_in = np.minimum(np.arange(num_units), 1) if num_units > OLIGOMER_UNITS else np.arange(num_units)
    last = np.arange(max(num_units - 2, 0), num_units)
    stand_in[last] = last - num_units + short
    shift = (stand_in - np.arange(num_units)) * (topology.num_atoms - 2)
    i, j = (tables.bonds + shift[unit[tables.bonds[:, :1]]]).T
    bond = _look_up(bonds[:, 0] * size + bonds[:, 1], bond_ang, i * size + j)
    i, centre, k = (tables.angles + shift[unit[tables.angles[:, 1:2]]]).T
    angle = _look_up((angles[:, 0] * size + angles[:, 1]) * size + angles[:, 2], angle_deg, (i * size + centre) * size + k)
    return Equilibrium(bond, angle)


def relaxed_energies(tables: ChainTables, x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """MMFF94s energies of conformations in vacuum with hydrogens placed by RDKit and relaxed, heavy atoms in place, kcal/mol.

    Args:
        tables: of the chain.
        x_ang: (G, H, 3) heavy atoms; hydrogens are placed on all of them, also where a file has its own: one rule for all methods.

    Returns:
        (G,); NaN where the force field lacks a type, and for chains above MAX_ENERGY_ATOMS: in vacuum every pair of atoms acts.
    """
    if tables.num_heavy_atoms > MAX_ENERGY_ATOMS:
        return np.full(len(x_ang), np.nan)
    mol = chain_mol(tables.topology, tables.num_units)
    different, place = np.unique(x_ang, axis=0, return_inverse=True)
    whole = np.stack([conformation_mol(mol, x, hydrogens=True).GetConformer().GetPositions() for x in _turned(different)])
    try:
        energies = _relaxation(TopologyKey(tables.topology), tables.num_units).relax(whole)[1]
    except PolymerError:
        return np.full(len(x_ang), np.nan)
    return np.asarray(energies[place.ravel()])


@lru_cache(maxsize=1)
def _relaxation(key: TopologyKey, num_units: int) -> HydrogenRelaxation:
    return HydrogenRelaxation(key.topology, num_units, MAX_ITERATIONS)


def bare_energies(tables: ChainTables, x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """MMFF94 energies of the heavy atoms alone, kcal/mol: the published protocol, which types the molecule as if it had no hydrogens.

    Args:
        tables: of the chain.
        x_ang: (G, H, 3).

    Returns:
        (G,); NaN where the force field lacks a type, and for chains above MAX_ENERGY_ATOMS: RDKit holds a term for every pair.
    """
    mol = conformation_mol(chain_mol(tables.topology, tables.num_units), x_ang[0], hydrogens=False)
    with rdBase.BlockLogs():  # that hydrogens are missing is the point
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol) if tables.num_heavy_atoms <= MAX_ENERGY_ATOMS else None
        if properties is None:
            return np.full(len(x_ang), np.nan)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, nonBondedThresh=NO_CUTOFF_ANG)
    return np.array([field.CalcEnergy(x.ravel().tolist()) for x in x_ang.astype(np.float64)])


def _turned(x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, H, 3) in a frame of their own first atoms: RDKit's choice of a methyl's turn depends on the axes."""
    axis = x_ang[:, 1] - x_ang[:, 0]
    other = x_ang - x_ang[:, :1]
    across = np.cross(axis[:, None], other)
    third = across[np.arange(len(x_ang)), np.linalg.norm(across, axis=-1).argmax(axis=1)]  # with the atom farthest from the axis
    first = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    normal = third / np.linalg.norm(third, axis=-1, keepdims=True)
    frame = np.stack([first, np.cross(normal, first), normal], axis=-1)  # world_from_chain
    turned: NDArray[np.float64] = other @ frame
    return turned


def _look_up(keys: NDArray[np.int64], values: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], wanted)
    found = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(0, dtype=np.int64)
    assert np.array_equal(keys[found], wanted), "the oligomer lacks a bond or an angle of the chain"
    return values[found]


@lru_cache(maxsize=1024)
def _oligomer(key: TopologyKey, num_units: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(Q, 2) bonds, (Q,) angstrom, (R, 3) angles and (R,) degrees of a short chain."""
    topology = key.topology
    bonds, _ = chain_bonds(topology, num_units)
    angles = angle_triples(bonds, num_units * (topology.num_atoms - 2) + 2)
    mol = chain_mol(topology, num_units, hydrogens=True)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol) if _typed(mol) else None
    if properties is None:
        return bonds, np.full(len(bonds), np.nan), angles, np.full(len(angles), np.nan)
    return (
        bonds,
        _parameters(properties.GetMMFFBondStretchParams, mol, bonds),
        angles,
        _parameters(properties.GetMMFFAngleBendParams, mol, angles),
    )


def _typed(mol: Chem.Mol) -> bool:
    return bool(rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol))


def _parameters(read: Callable[..., tuple[int, float, float] | None], mol: Chem.Mol, atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Last number, the equilibrium value, of every term; NaN without one."""
    terms = [read(mol, *row) for row in atoms.tolist()]
    return np.array([np.nan if term is None else term[2] for term in terms])
