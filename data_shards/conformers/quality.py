"""Is a chain whole? Finite coordinates, bonds and angles of the right size, no other bond, the right handedness, no pierced ring, no clash.

What is checked; the limits are fields of `recipe.QualityLimits`
    broken-bond      a length further than a tolerance from its reference: the shapes of the unit, else covalent radii with a tolerance
                     wide enough for bond order and thermal motion.
    bad-angle        an angle between heavy atoms outside the range that it has in the shapes of the unit, widened by a tolerance; without
                     shapes, one below 50 degrees.
    extra-bond       two heavy atoms without a bond closer than 1.1 times the sum of their covalent radii.
    wrong-chirality  a stereocentre of the other hand.
    pierced-ring     a bond that goes through a ring: no motion can take it out again.
    clash            two atoms more than three bonds apart, closer than a share of the sum of their van der Waals radii: 0.75 for two heavy
                     atoms (C..C 2.55 angstrom, below the 2.6 of a syn-pentane pair and far below the 3.4 of contact), 0.65 where a hydrogen
                     takes part (H..H 1.56, C..H 1.89, O..H 1.77 angstrom); a hydrogen bond may be as short as 1.5. Three bonds are left out
                     because a cis or gauche pair is set by bond lengths and angles.
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
from data_shards.chem.topology import rings
from data_shards.recipe import QualityLimits
from data_shards.schema import UnitTopology, chain_bonds, chain_elements, chain_hydrogens, unit_slots

LIMITS = QualityLimits()
HEAVY_CLASH_FACTOR = LIMITS.heavy_clash
HYDROGEN_CLASH_FACTOR = LIMITS.hydrogen_clash
LOOSE_BOND_ERROR_ANG = 0.35  # against covalent radii: orders one to three differ by as much
BOND_ERROR_ANG = 0.05  # against the shapes of the unit
SMALLEST_ANGLE_DEG = 50.0
DONORS, ACCEPTORS = (7, 8, 9, 16), (7, 8, 9)
MAX_EXCLUDED_BONDS = 3
COVALENT_FACTOR = 1.3  # atoms closer than this times the sum of covalent radii count as bonded when bonds are read from distances


@dataclass(frozen=True)
class QualityReport:
    """What was found in one conformation."""

    ok: bool
    reason: str  # "" or the first of not-finite, broken-bond, extra-bond, wrong-chirality, bad-angle, pierced-ring, clash
    worst_bond_error_ang: float
    num_broken_bonds: int = 0
    num_extra_bonds: int = 0
    num_wrong_centres: int = 0
    num_bad_angles: int = 0
    num_pierced_rings: int = 0
    num_clashes: int = 0


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


def bonds_from_distances(x_ang: NDArray[np.floating], covalent_ang: NDArray[np.floating]) -> NDArray[np.int64]:
    """Pairs that distance alone calls bonded.

    Args:
        x_ang: (H, 3).
        covalent_ang: (H,) covalent radii.

    Returns:
        (P, 2) i < j, sorted.
    """
    pairs = cKDTree(x_ang).query_pairs(2 * COVALENT_FACTOR * float(covalent_ang.max()), output_type="ndarray").astype(np.int64)
    near = np.linalg.norm(x_ang[pairs[:, 0]] - x_ang[pairs[:, 1]], axis=1) < COVALENT_FACTOR * covalent_ang[pairs].sum(axis=1)
    found = np.sort(pairs[near], axis=1)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def connectivity(x_ang: NDArray[np.floating], covalent_ang: NDArray[np.floating], bonds: NDArray[np.integer]) -> NDArray[np.int64]:
    """(K, H, 3) conformations, (H,) radii, (Q, 2) true bonds -> (K, 2) bonds missing and bonds too many."""
    size = x_ang.shape[-2]
    true = np.sort(bonds, axis=1) @ [size, 1]
    found = [bonds_from_distances(x, covalent_ang) @ [size, 1] for x in x_ang]
    return np.array([(len(np.setdiff1d(true, keys)), len(np.setdiff1d(keys, true))) for keys in found]).reshape(-1, 2)


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
    shapes_ang: NDArray[np.floating] | None = None,
    limits: QualityLimits = LIMITS,
) -> QualityReport:
    """Check one conformation of a chain.

    Args:
        topology: the repeat unit.
        num_units: N.
        heavy_ang: (H, 3), schema order.
        hydrogen_ang: (number of hydrogens, 3), schema order, or None.
        handedness: (N, c) signs to hold, 0 leaves a centre free; None: those that the P-SMILES fixes.
        shapes_ang: (F, n, 3) shapes of the unit that bonds (the nearest counts) and angles are compared with; None: covalent radii.
        limits: when something counts as a defect.
    """
    everything = heavy_ang if hydrogen_ang is None else np.concatenate([heavy_ang, hydrogen_ang])
    if not np.isfinite(everything).all():
        return QualityReport(False, "not-finite", float("nan"))
    x_ang = np.asarray(everything, dtype=np.float64)
    elements, counts = chain_elements(topology, num_units), chain_hydrogens(topology, num_units)
    bonds, _ = chain_bonds(topology, num_units)
    covalent = covalent_radii_ang(elements)
    lengths = np.linalg.norm(x_ang[bonds[:, 0]] - x_ang[bonds[:, 1]], axis=1)
    tolerance = limits.bond_error_ang or (LOOSE_BOND_ERROR_ANG if shapes_ang is None else BOND_ERROR_ANG)
    if shapes_ang is None:
        errors = np.abs(lengths - covalent[bonds].sum(axis=1))
    else:
        ends = shapes_ang[:, topology.bonds]  # (F, m, 2, 3)
        known = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=2).T[_bond_rows(topology, num_units)]
        errors = np.abs(lengths[:, None] - known).min(axis=1)
    broken = int((errors > tolerance).sum())
    extra = len(_extra_bonds(x_ang[: len(elements)], covalent, bonds, limits.extra_bond))
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    angles = _bad_angles(topology, x_ang[slots], shapes_ang, limits.angle_error_deg)
    if hydrogen_ang is not None:
        owner = np.repeat(np.arange(len(counts)), counts)
        bonds = np.concatenate([bonds, np.stack([owner, len(elements) + np.arange(len(owner))], axis=1)])
        to_hydrogen = np.linalg.norm(x_ang[owner] - x_ang[len(elements) :], axis=1)
        expected = covalent[owner] + covalent_radii_ang(np.array([1]))
        broken += int((np.abs(to_hydrogen - expected) > limits.hydrogen_bond_error_ang).sum())
        elements = np.concatenate([elements, np.ones(len(owner), dtype=np.uint8)])
    wanted = np.broadcast_to(topology.stereo_specified, (num_units, len(topology.stereo_centres))) if handedness is None else handedness
    found = measure_signs(x_ang[slots], topology.stereo_centres, topology.stereo_neighbours)
    wrong = int(((found != wanted) & (wanted != 0)).sum())
    pierced = _pierced(x_ang, bonds, [slots[:, ring] for ring in rings(topology, limits.max_ring_size)])
    radii, hydrogen = vdw_radii_ang(elements), elements == 1
    pairs = find_clashes(x_ang, radii, bonds, limits.heavy_clash, hydrogen=hydrogen, hydrogen_factor=limits.hydrogen_clash)
    clashes = int((~_hydrogen_bonds(x_ang, elements, bonds, pairs, limits.hydrogen_bond_ang)).sum())
    defects = {
        "broken-bond": broken,
        "extra-bond": extra,
        "wrong-chirality": wrong,
        "bad-angle": angles,
        "pierced-ring": pierced,
        "clash": clashes,
    }
    reason = next((name for name, count in defects.items() if count), "")
    return QualityReport(not reason, reason, float(errors.max()), *defects.values())


def _hydrogen_bonds(
    x_ang: NDArray[np.float64],
    elements: NDArray[np.uint8],
    bonds: NDArray[np.int64],
    pairs: NDArray[np.int64],
    least_ang: float,
) -> NDArray[np.bool_]:
    """(P,) True for pairs (P, 2) of a polar hydrogen and an acceptor at least that far apart."""
    polar = np.zeros(len(elements), dtype=bool)
    for one, other in (bonds.T, bonds.T[::-1]):
        polar[one[(elements[one] == 1) & np.isin(elements[other], DONORS)]] = True
    acceptor = np.isin(elements, ACCEPTORS)
    i, j = pairs.T
    kinds = (polar[i] & acceptor[j]) | (acceptor[i] & polar[j])
    held: NDArray[np.bool_] = kinds & (np.linalg.norm(x_ang[i] - x_ang[j], axis=1) >= least_ang)
    return held


def _bad_angles(topology: UnitTopology, x_ang: NDArray[np.float64], shapes_ang: NDArray[np.floating] | None, tolerance_deg: float) -> int:
    """How many angles of units (N, n, 3) lie outside the range of the shapes, or are impossible where there are none."""
    centre, ends = [], []
    for atom in range(topology.num_atoms):
        near = sorted({int(i) for bond in topology.bonds if atom in bond for i in bond} - {atom})
        pairs = [(i, j) for k, i in enumerate(near) for j in near[k + 1 :]]
        centre += [atom] * len(pairs)
        ends += pairs
    atoms = np.array([(i, c, j) for c, (i, j) in zip(centre, ends, strict=True)]).reshape(-1, 3)
    found = _angles_deg(x_ang, atoms)
    if shapes_ang is None:
        return int((found < SMALLEST_ANGLE_DEG).sum())
    known = _angles_deg(np.asarray(shapes_ang, dtype=np.float64), atoms)
    return int(((found < known.min(axis=0) - tolerance_deg) | (found > known.max(axis=0) + tolerance_deg)).sum())


def _angles_deg(x_ang: NDArray[np.float64], atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """(U, T) angles of atoms (T, 3), centre second, in units (U, n, 3)."""
    one, other = (x_ang[:, atoms[:, k]] - x_ang[:, atoms[:, 1]] for k in (0, 2))
    cosine = (one * other).sum(axis=-1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1))
    angles: NDArray[np.float64] = np.rad2deg(np.arccos(cosine.clip(-1, 1)))
    return angles


def _extra_bonds(
    x_ang: NDArray[np.float64], covalent_ang: NDArray[np.float64], bonds: NDArray[np.int64], factor: float
) -> NDArray[np.int64]:
    """(P, 2) pairs of atoms without a bond that are as close as bonded ones."""
    pairs = cKDTree(x_ang).query_pairs(2 * float(covalent_ang.max()) * factor, output_type="ndarray")
    i, j = pairs.T
    pairs = pairs[np.linalg.norm(x_ang[i] - x_ang[j], axis=1) < factor * (covalent_ang[i] + covalent_ang[j])]
    if len(pairs):
        pairs = pairs[np.asarray(within_bonds(bonds, len(x_ang), 1)[pairs[:, 0], pairs[:, 1]]).ravel() == 0]
    return pairs.astype(np.int64)


def _pierced(x_ang: NDArray[np.float64], bonds: NDArray[np.int64], ring_atoms: list[NDArray[np.int64]]) -> int:
    """How many (ring, bond) pairs there are where the bond cuts the triangles between the ring's sides and its centre.

    Args:
        x_ang: (A, 3).
        bonds: (b, 2) all bonds.
        ring_atoms: for every ring of the unit (N, size) atoms in order around it.
    """
    start, step = x_ang[bonds[:, 0]], x_ang[bonds[:, 1]] - x_ang[bonds[:, 0]]
    tree = cKDTree(start + step / 2)
    half = float(np.linalg.norm(step, axis=1).max()) / 2
    count = 0
    for atoms in ring_atoms:
        corners = x_ang[atoms]  # (N, size, 3)
        centre = corners.mean(axis=1)
        reach = np.linalg.norm(corners - centre[:, None], axis=2).max() + half
        near = cKDTree(centre).sparse_distance_matrix(tree, reach, output_type="ndarray")
        ring, bond = near["i"], near["j"]
        apart = (atoms[ring][:, :, None] != bonds[bond][:, None]).all(axis=(1, 2))
        ring, bond = ring[apart], bond[apart]
        from_centre = corners - centre[:, None]
        one, other = from_centre[ring], np.roll(from_centre, -1, axis=1)[ring]  # (P, size, 3): triangles centre, one, other
        normal = np.cross(one, other)
        along = (step[bond][:, None] * normal).sum(axis=-1)
        flat = np.abs(along) < 1e-12
        height = ((centre[ring] - start[bond])[:, None] * normal).sum(axis=-1) / np.where(flat, 1.0, along)  # share of the bond
        point = (start[bond] - centre[ring])[:, None] + height[..., None] * step[bond][:, None]
        square = np.maximum((normal * normal).sum(axis=-1), 1e-12)
        u = (np.cross(point, other) * normal).sum(axis=-1) / square
        v = (np.cross(one, point) * normal).sum(axis=-1) / square
        inside = ~flat & (height > 0) & (height < 1) & (u >= 0) & (v >= 0) & (u + v <= 1)
        count += int(inside.any(axis=1).sum())
    return count


def _bond_rows(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """Row of topology.bonds that each bond of schema.chain_bonds comes from."""
    head = (topology.bonds == topology.key_atoms[0]).any(axis=1)
    return np.concatenate([np.flatnonzero(head), np.tile(np.flatnonzero(~head), num_units)])
