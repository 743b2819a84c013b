"""Is a chain whole? Finite coordinates, bonds of the right length and no others, the right handedness, no clash.

Thresholds
    clash       two atoms more than three bonds apart, closer than a share of the sum of their van der Waals radii: 0.75 for two heavy
                atoms (C..C 2.55 angstrom, below the 2.6 of a syn-pentane pair and far below the 3.4 of contact), 0.65 where a hydrogen
                takes part (H..H 1.56, C..H 1.89, O..H 1.77 angstrom: a short hydrogen bond has 1.8). Three bonds are left out because a
                cis or gauche pair is set by bond lengths and angles.
    bond        a length further than a tolerance from its reference. Without reference lengths, those of covalent radii are used,
                with a tolerance wide enough for bond order and thermal motion.
    extra bond  two heavy atoms without a bond closer than 1.1 times the sum of their covalent radii.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from data_shards.chem.stereo import measure_signs
from data_shards.schema import UnitTopology, chain_bonds, chain_elements, chain_hydrogens, unit_slots

HEAVY_CLASH_FACTOR = 0.75
HYDROGEN_CLASH_FACTOR = 0.65
EXTRA_BOND_FACTOR = 1.1
LOOSE_BOND_TOLERANCE_ANG = 0.35  # against covalent radii: orders one to three differ by as much
BOND_TOLERANCE_ANG = 0.05  # against reference lengths
HYDROGEN_BOND_TOLERANCE_ANG = 0.2
MAX_EXCLUDED_BONDS = 3


@dataclass(frozen=True)
class QualityReport:
    """What was found in one conformation."""

    ok: bool
    reason: str  # "" or the first of not-finite, broken-bond, extra-bond, wrong-chirality, clash
    worst_bond_error_ang: float
    num_broken_bonds: int
    num_extra_bonds: int
    num_wrong_centres: int
    num_clashes: int


@lru_cache(maxsize=1)
def _radii() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = Chem.GetPeriodicTable()
    vdw = np.array([table.GetRvdw(z) for z in range(119)])
    covalent = np.array([table.GetRcovalent(z) for z in range(119)])
    return vdw, covalent


def vdw_radii_ang(elements: NDArray[np.integer]) -> NDArray[np.float64]:
    """Van der Waals radii of atomic numbers."""
    return _radii()[0][elements]


def covalent_radii_ang(elements: NDArray[np.integer]) -> NDArray[np.float64]:
    """Covalent radii of atomic numbers."""
    return _radii()[1][elements]


def clash_limits_ang(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
    """(len(first), len(second)) distances below which two atoms clash, from atomic numbers."""
    share = np.where((first[:, None] == 1) | (second[None] == 1), HYDROGEN_CLASH_FACTOR, HEAVY_CLASH_FACTOR)
    return share * (vdw_radii_ang(first)[:, None] + vdw_radii_ang(second)[None])


def within_bonds(bonds: NDArray[np.integer], num_atoms: int, reach: int = MAX_EXCLUDED_BONDS) -> csr_matrix:
    """Sparse (atoms, atoms) matrix, non-zero where two atoms are at most ``reach`` bonds apart (an atom and itself included)."""
    i, j = np.concatenate([bonds, bonds[:, ::-1], np.stack([np.arange(num_atoms)] * 2, axis=1)]).T
    step = csr_matrix((np.ones(len(i), dtype=np.int32), (i, j)), shape=(num_atoms, num_atoms))
    reached = step
    for _ in range(reach - 1):
        reached = reached @ step
        reached.data[:] = 1
    return reached


def find_clashes(
    x_ang: NDArray[np.floating],
    radii_ang: NDArray[np.float64],
    bonds: NDArray[np.integer],
    factor: float = HEAVY_CLASH_FACTOR,
    *,
    hydrogen: NDArray[np.bool_] | None = None,
    hydrogen_factor: float = HYDROGEN_CLASH_FACTOR,
) -> NDArray[np.int64]:
    """Pairs of atoms more than three bonds apart that come too close; linear in the number of atoms (k-d tree).

    Args:
        x_ang: (A, 3) positions.
        radii_ang: (A,) van der Waals radii.
        bonds: (b, 2) all bonds between these atoms.
        factor: share of the sum of radii that two atoms must keep.
        hydrogen: (A,) True where hydrogen_factor applies to the pairs of an atom instead; None: nowhere.
        hydrogen_factor: see above.

    Returns:
        (P, 2) indices, i < j, sorted.
    """
    x_ang = np.asarray(x_ang, dtype=np.float64)
    hydrogen = np.zeros(len(x_ang), dtype=bool) if hydrogen is None else hydrogen
    pairs = cKDTree(x_ang).query_pairs(2 * float(radii_ang.max()) * max(factor, hydrogen_factor), output_type="ndarray")
    i, j = pairs.T
    share = np.where(hydrogen[i] | hydrogen[j], hydrogen_factor, factor)
    close = np.linalg.norm(x_ang[i] - x_ang[j], axis=1) < share * (radii_ang[i] + radii_ang[j])
    pairs = pairs[close]
    if len(pairs):
        near = within_bonds(bonds, len(x_ang))
        pairs = pairs[np.asarray(near[pairs[:, 0], pairs[:, 1]]).ravel() == 0]
    pairs = np.sort(pairs, axis=1).astype(np.int64)
    ordered: NDArray[np.int64] = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return ordered


def check_chain(
    topology: UnitTopology,
    num_units: int,
    heavy_ang: NDArray[np.floating],
    hydrogen_ang: NDArray[np.floating] | None = None,
    *,
    handedness: NDArray[np.int8] | None = None,
    reference_ang: NDArray[np.float64] | None = None,
    bond_tolerance_ang: float | None = None,
) -> QualityReport:
    """Check one conformation of a chain.

    Args:
        topology: the repeat unit.
        num_units: N.
        heavy_ang: (H, 3), schema order.
        hydrogen_ang: (number of hydrogens, 3), schema order, or None.
        handedness: (N, c) signs to hold, 0 leaves a centre free; None: those that the P-SMILES fixes.
        reference_ang: (m, ...) lengths of the bonds of topology.bonds in reference shapes; the nearest one counts. None: covalent radii.
        bond_tolerance_ang: largest allowed error of a heavy bond; None: 0.05 against reference lengths, 0.35 against covalent radii.
    """
    everything = heavy_ang if hydrogen_ang is None else np.concatenate([heavy_ang, hydrogen_ang])
    if not np.isfinite(everything).all():
        return QualityReport(False, "not-finite", float("nan"), 0, 0, 0, 0)
    x_ang = np.asarray(everything, dtype=np.float64)
    elements, counts = chain_elements(topology, num_units), chain_hydrogens(topology, num_units)
    bonds, _ = chain_bonds(topology, num_units)
    covalent = covalent_radii_ang(elements)
    lengths = np.linalg.norm(x_ang[bonds[:, 0]] - x_ang[bonds[:, 1]], axis=1)
    if reference_ang is None:
        errors = np.abs(lengths - covalent[bonds].sum(axis=1))
    else:
        known = reference_ang.reshape(len(topology.bonds), -1)[_bond_rows(topology, num_units)]
        errors = np.abs(lengths[:, None] - known).min(axis=1)
    if bond_tolerance_ang is None:
        bond_tolerance_ang = LOOSE_BOND_TOLERANCE_ANG if reference_ang is None else BOND_TOLERANCE_ANG
    broken = int((errors > bond_tolerance_ang).sum())
    extra = len(_extra_bonds(x_ang[: len(elements)], covalent, bonds))
    if hydrogen_ang is not None:
        owner = np.repeat(np.arange(len(counts)), counts)
        bonds = np.concatenate([bonds, np.stack([owner, len(elements) + np.arange(len(owner))], axis=1)])
        to_hydrogen = np.linalg.norm(x_ang[owner] - x_ang[len(elements) :], axis=1)
        broken += int((np.abs(to_hydrogen - covalent[owner] - covalent_radii_ang(np.array([1]))) > HYDROGEN_BOND_TOLERANCE_ANG).sum())
        elements = np.concatenate([elements, np.ones(len(owner), dtype=np.uint8)])
    wanted = np.broadcast_to(topology.stereo_specified, (num_units, len(topology.stereo_centres))) if handedness is None else handedness
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    found = measure_signs(x_ang[slots], topology.stereo_centres, topology.stereo_neighbours)
    wrong = int(((found != wanted) & (wanted != 0)).sum())
    clashes = len(find_clashes(x_ang, vdw_radii_ang(elements), bonds, hydrogen=elements == 1))
    defects = {"broken-bond": broken, "extra-bond": extra, "wrong-chirality": wrong, "clash": clashes}
    reason = next((name for name, count in defects.items() if count), "")
    return QualityReport(not reason, reason, float(errors.max()), broken, extra, wrong, clashes)


def _extra_bonds(x_ang: NDArray[np.float64], covalent_ang: NDArray[np.float64], bonds: NDArray[np.integer]) -> NDArray[np.int64]:
    """(P, 2) pairs of atoms without a bond that are as close as bonded ones."""
    pairs = cKDTree(x_ang).query_pairs(2 * float(covalent_ang.max()) * EXTRA_BOND_FACTOR, output_type="ndarray")
    i, j = pairs.T
    pairs = pairs[np.linalg.norm(x_ang[i] - x_ang[j], axis=1) < EXTRA_BOND_FACTOR * (covalent_ang[i] + covalent_ang[j])]
    if len(pairs):
        pairs = pairs[np.asarray(within_bonds(bonds, len(x_ang), 1)[pairs[:, 0], pairs[:, 1]]).ravel() == 0]
    return pairs.astype(np.int64)


def _bond_rows(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """Row of topology.bonds that each bond of schema.chain_bonds comes from."""
    head = (topology.bonds == topology.key_atoms[0]).any(axis=1)
    return np.concatenate([np.flatnonzero(head), np.tile(np.flatnonzero(~head), num_units)])
