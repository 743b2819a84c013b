"""A structure from elsewhere as a chain of canonical units: heavy atoms and hydrogens in schema order, and what had to be added or left.

Hydrogens are those of the structure where it has them. An end of the chain, the cap, keeps one bond of the two that it had inside a
longer chain; the hydrogens that take the place of its bonds to atoms that are left out stand along these bonds. Where their numbers
differ, and wherever else the structure lacks a hydrogen, RDKit places it at an ideal length and angle. Coordinates are shifted to the
mean of the heavy atoms and otherwise left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Geometry import Point3D

from data_shards.chem.decompose import ChainGraph, find_units, wrong_centres, wrong_double_bonds
from data_shards.chem.oligomer import heavy_chain
from data_shards.chem.repeat_unit import RepeatUnit
from data_shards.chem.stereo import measure_signs
from data_shards.errors import PolymerError
from data_shards.schema import UnitTopology, chain_hydrogens, unit_slots

MAX_STAR_OFFSET_ANG = 0.05  # between a star of a periodic chain and the atom of the next period that it stands for


@dataclass(frozen=True)
class Structure:
    """One imported conformation of one chain."""

    psmiles: str  # canonical
    topology: UnitTopology
    num_units: int  # N, canonical units
    heavy_ang: NDArray[np.float32]  # (1, H, 3)
    hydrogen_ang: NDArray[np.float32]  # (1, number of hydrogens, 3)
    handedness: NDArray[np.int8]  # (N, c) as found
    facts: dict[str, Any]  # where it came from and what was done to it, for the provenance
    energies_kcal_mol: NDArray[np.float64] | None  # (1,) where the source has the energy of exactly these atoms


def structure_of(
    graph: ChainGraph,
    unit: RepeatUnit,
    facts: dict[str, Any],
    *,
    period_ang: NDArray[np.float64] | None = None,
    energy_kcal_mol: float | None = None,
) -> Structure:
    """Cut a structure into units and complete its hydrogens.

    Args:
        graph: the structure.
        unit: canonical repeat unit that it should be made of.
        facts: to be carried along.
        period_ang: (3,) translation to the next period of an endless chain; the structure then is one period and two stars (element 0)
            stand on atoms of the next ones.
        energy_kcal_mol: of the structure; kept as the chain's where no atom was added or left out, else only as a fact.

    Raises:
        PolymerError: not-finite, psmiles-mismatch, wrong-chirality, not-periodic.
    """
    topology = unit.topology
    if not np.isfinite(graph.x_ang).all():
        raise PolymerError(topology.psmiles, "not-finite", "a coordinate of the structure is not a finite number; leave the record out")
    heavy_given = int((graph.elements > 1).sum())
    if period_ang is None:
        slots = find_units(graph, unit)
    else:
        graph, slots = _one_period(graph, unit, period_ang)
    _check_isomer(graph.x_ang, slots, unit)
    num_units = len(slots)
    heavy = np.empty(num_units * (topology.num_atoms - 2) + 2, dtype=np.int64)
    heavy[unit_slots(topology.key_atoms, topology.num_atoms, num_units)] = slots
    x_heavy = graph.x_ang[heavy]
    x_hydrogen, added, at_caps = _hydrogens(graph, heavy, topology, num_units)
    left_out = 0 if period_ang is not None else heavy_given - len(heavy)
    origin_ang = x_heavy.mean(axis=0)
    facts = facts | {
        "hydrogens": "given" if added == at_caps else "added",
        "hydrogens_added": added,
        "hydrogens_added_at_caps": at_caps,
        "heavy_atoms_left_out": left_out,
        "origin_ang": [round(float(c), 4) for c in origin_ang],
    }
    if period_ang is not None:
        facts["period_ang"] = round(float(np.linalg.norm(period_ang)), 5)
    if energy_kcal_mol is not None:
        facts["energy_of_record_kcal_mol"] = energy_kcal_mol
    whole = energy_kcal_mol is not None and not added and not left_out
    return Structure(
        psmiles=topology.psmiles,
        topology=topology,
        num_units=num_units,
        heavy_ang=(x_heavy - origin_ang)[None].astype(np.float32),
        hydrogen_ang=(x_hydrogen - origin_ang)[None].astype(np.float32),
        handedness=measure_signs(graph.x_ang[slots], topology.stereo_centres, topology.stereo_neighbours),
        facts=facts,
        energies_kcal_mol=np.array([energy_kcal_mol]) if whole else None,
    )


def _check_isomer(x_ang: NDArray[np.float64], slots: NDArray[np.int64], unit: RepeatUnit) -> None:
    """Raise where the structure is another stereoisomer than the P-SMILES says."""
    topology = unit.topology
    centres, doubles = wrong_centres(x_ang, slots, topology), wrong_double_bonds(x_ang, slots, unit)
    if centres or doubles:
        found = f"{centres} stereocentres and {doubles} double bonds are not as the stereo marks say"
        raise PolymerError(topology.psmiles, "wrong-chirality", f"{found}; write the P-SMILES without marks or with those of the structure")


def _one_period(graph: ChainGraph, unit: RepeatUnit, period_ang: NDArray[np.float64]) -> tuple[ChainGraph, NDArray[np.int64]]:
    """Three periods of an endless chain, and the units (M, n) of one period in the middle of them."""
    topology = unit.topology
    stars = np.flatnonzero(graph.elements == 0)
    ends = [[sum(bond) - star for bond in graph.bonds.tolist() if star in bond] for star in stars.tolist()]
    if len(stars) != 2 or any(len(end) != 1 for end in ends):
        found = f"has a translation and {len(stars)} stars"
        raise PolymerError(topology.psmiles, "not-periodic", f"{found}; one period of a chain needs 2 stars of 1 neighbour each")
    (first,), (second,) = ends
    offset = graph.x_ang[stars] - graph.x_ang[[second, first]]  # whole translations, opposite ones
    errors = {step: float(np.linalg.norm(offset - np.outer([step, -step], period_ang), axis=1).max()) for step in (1, -1)}
    step = min(errors, key=lambda k: errors[k])
    if not errors[step] <= MAX_STAR_OFFSET_ANG:
        missed = f"a star is {errors[step]:.3f} angstrom from the atom of the next period that it stands for"
        raise PolymerError(topology.psmiles, "not-periodic", f"{missed}, must be <= {MAX_STAR_OFFSET_ANG}; check translation and stars")
    kept = np.flatnonzero(graph.elements != 0)
    size = len(kept)
    place = np.full(len(graph.elements), -1)
    place[kept] = np.arange(size)
    inside = place[graph.bonds[(graph.elements[graph.bonds] != 0).all(axis=1)]]
    copies = np.arange(3)[:, None, None] * size
    joints = np.array([[place[first] + k * size, place[second] + (k + step) * size] for k in range(3) if 0 <= k + step < 3])
    tripled = ChainGraph(
        elements=np.tile(graph.elements[kept], 3),
        bonds=np.concatenate([(inside[None] + copies).reshape(-1, 2), joints]).astype(np.int64),
        hydrogens=np.tile(graph.hydrogens[kept], 3),
        x_ang=(graph.x_ang[kept][None] + np.arange(-1, 2)[:, None, None] * period_ang).reshape(-1, 3),
    )
    run = find_units(tripled, unit, endless=True)
    per_period, rest = divmod(int((graph.elements > 1).sum()), topology.num_atoms - 2)
    if rest or len(run) < per_period:
        heavy = int((graph.elements > 1).sum())
        detail = f"one period has {heavy} heavy atoms, not a whole number of units of {topology.num_atoms - 2}"
        raise PolymerError(topology.psmiles, "psmiles-mismatch", f"{detail}; check the P-SMILES")
    start = (len(run) - per_period) // 2
    return tripled, run[start : start + per_period]


def _hydrogens(graph: ChainGraph, heavy: NDArray[np.int64], topology: UnitTopology, num_units: int) -> tuple[NDArray[np.float64], int, int]:
    """Hydrogens in schema order, how many of them were added, and how many of these at the caps."""
    wanted = chain_hydrogens(topology, num_units)
    bonded, around = graph.neighbours(hydrogen=True), graph.neighbours(hydrogen=False)
    owner, x_found = [], []
    for k, (atom, count) in enumerate(zip(heavy.tolist(), wanted.tolist(), strict=True)):
        owner += [k] * min(len(bonded[atom]), count)
        x_found += graph.x_ang[bonded[atom][:count]].tolist()
    added = int(wanted.sum()) - len(owner)
    at_caps = int(wanted[[0, -1]].sum()) - sum(k in (0, len(heavy) - 1) for k in owner)
    chain = set(heavy.tolist())
    for cap in (0, len(heavy) - 1):
        atom = int(heavy[cap])
        gone = [other for other in around[atom] if other not in chain]
        if len(gone) == wanted[cap] - owner.count(cap):  # as many bonds to atoms that are left out as hydrogens that are missing
            arms = graph.x_ang[gone] - graph.x_ang[atom]
            length_ang = bond_length_ang(int(graph.elements[atom]))
            x_found += (graph.x_ang[atom] + length_ang * arms / np.linalg.norm(arms, axis=1, keepdims=True).clip(min=1e-6)).tolist()
            owner += [cap] * len(gone)
    x_given, holder = np.array(x_found).reshape(-1, 3), np.array(owner, dtype=np.int64)
    missing = wanted - np.bincount(holder, minlength=len(heavy))
    if missing.any():
        order = np.argsort(holder, kind="stable")
        x_ideal = _ideal_hydrogens(graph.x_ang[heavy], x_given[order], holder[order], missing, topology, num_units)
        x_given, holder = np.concatenate([x_given, x_ideal]), np.concatenate([holder, np.repeat(np.arange(len(heavy)), missing)])
    return x_given[np.argsort(holder, kind="stable")], added, at_caps


@cache
def bond_length_ang(element: int) -> float:
    """Usual length of the bond of an atom to a hydrogen."""
    table = Chem.GetPeriodicTable()
    return float(table.GetRb0(element) + table.GetRb0(1))


def _ideal_hydrogens(
    x_heavy: NDArray[np.float64],
    x_given: NDArray[np.float64],
    owner: NDArray[np.int64],
    missing: NDArray[np.int64],
    topology: UnitTopology,
    num_units: int,
) -> NDArray[np.float64]:
    """Positions of the missing hydrogens beside those that are there, in the order of their heavy atoms."""
    mol = Chem.RWMol(heavy_chain(topology, num_units))
    x_ang = np.concatenate([x_heavy, x_given])
    for atom in owner.tolist():
        mol.GetAtomWithIdx(atom).SetNumExplicitHs(mol.GetAtomWithIdx(atom).GetNumExplicitHs() - 1)
        mol.AddBond(atom, mol.AddAtom(Chem.Atom(1)), Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(x_ang))
    for index, point in enumerate(x_ang.tolist()):
        conformer.SetAtomPosition(index, Point3D(*point))
    mol.AddConformer(conformer)
    Chem.SanitizeMol(mol)
    filled = Chem.AddHs(mol, addCoords=True, onlyOnAtoms=np.flatnonzero(missing).tolist())
    holder = [atom.GetNeighbors()[0].GetIdx() for atom in list(filled.GetAtoms())[len(x_ang) :]]
    placed: NDArray[np.float64] = filled.GetConformer().GetPositions()[len(x_ang) :][np.argsort(holder, kind="stable")]
    return placed
