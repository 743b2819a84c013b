"""One polymer measured: its references once, then every method's conformations against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.stereo import measure_signs
from data_shards.conformers.quality import HEAVY_CLASH_FACTOR, connectivity, covalent_radii_ang, find_clashes, vdw_radii_ang
from data_shards.schema import PolymerSample, chain_hydrogens
from foundation.evaluation import metrics
from foundation.evaluation.backbone import characteristic_ratio, persistence_length_ang
from foundation.evaluation.chains import ChainTables, chain_tables
from foundation.evaluation.metrics import BOND_TOLERANCE_ANG, METRICS
from foundation.evaluation.mmff import Equilibrium, bare_energies, equilibrium, relaxed_energies
from foundation.evaluation.symmetry import symmetric_rmsd_matrix
from foundation.units import HARTREE_PER_KCAL_MOL

MAX_ENERGIES = 4  # conformations of a polymer and method whose hydrogens are relaxed; each takes tenths of a second
BOND_ERROR_EDGES_ANG = np.linspace(0.0, 0.25, 51)


@dataclass(frozen=True)
class Reference:
    """A polymer with what its stored conformations say. Q bonds, R angles, T torsions, K conformations.

    Attributes:
        key: of the sample.
        tables: index tables.
        x_ang: (K, H, 3).
        rest: MMFF94 equilibrium values.
        bond_ang, angle_deg: (Q,) and (R,) means of each bond and angle of the unit.
        link_counts: (36,); torsion_counts: (T, 36).
        handedness: (N, c).
        covalent_ang, vdw_ang: (H,) radii.
    """

    key: str
    tables: ChainTables
    x_ang: NDArray[np.float64]
    rest: Equilibrium
    bond_ang: NDArray[np.float64]
    angle_deg: NDArray[np.float64]
    link_counts: NDArray[np.float64]
    torsion_counts: NDArray[np.float64]
    handedness: NDArray[np.int8]
    covalent_ang: NDArray[np.float64]
    vdw_ang: NDArray[np.float64]

    @cached_property
    def energies(self) -> Energies:
        """Of the references, computed once, when they are first asked for: the force field of one polymer is held at a time."""
        return energies_of(self.tables, self.x_ang)


@dataclass(frozen=True)
class Energies:
    """Energies of conformations, NaN where the force field lacks a type.

    Attributes:
        relaxed_kcal_mol: (G,) MMFF94s in vacuum / atoms of the first MAX_ENERGIES conformations, hydrogens added and relaxed.
        bare_hartree: (G,) MMFF94 of the heavy atoms alone / heavy atoms, of all conformations.
    """

    relaxed_kcal_mol: NDArray[np.float64]
    bare_hartree: NDArray[np.float64]

    @property
    def median_kcal_mol(self) -> float:
        """One atom on top of another would rule a mean."""
        return float(np.median(self.relaxed_kcal_mol))


@dataclass(frozen=True)
class Attempts:
    """What a method made of one polymer.

    Attributes:
        x_ang: (G, H, 3) conformations that exist.
        reasons: why the others do not; G + len(reasons) were attempted.
        shapes_ang: (G, N, n, 3) unit shapes they were assembled from, or None.
        known: metrics that the method brings along: its cost, its likelihood.
    """

    x_ang: NDArray[np.float64]
    reasons: tuple[str, ...] = ()
    shapes_ang: NDArray[np.float64] | None = None
    known: dict[str, float] = field(default_factory=dict)

    @property
    def num_attempted(self) -> int:
        return len(self.x_ang) + len(self.reasons)


@dataclass(frozen=True)
class Measurement:
    """Numbers of one method on one polymer; a metric without a value here is absent.

    Attributes:
        values: metric -> number.
        num_attempted, reasons: conformations asked for, and reason -> count of those that failed.
        link_counts: (36,); bond_error_counts: by BOND_ERROR_EDGES_ANG, the last bin open.
        link_pair_counts: (36, 36) link dihedrals i along rows and i + 1 along columns.
        size_ang: radius of gyration of each conformation; size_ratio: the same / mean of the references.
    """

    values: dict[str, float]
    num_attempted: int
    reasons: dict[str, int]
    link_counts: NDArray[np.float64]
    bond_error_counts: NDArray[np.float64]
    link_pair_counts: NDArray[np.float64]
    size_ang: list[float] = field(default_factory=list)
    size_ratio: list[float] = field(default_factory=list)


def reference_of(sample: PolymerSample) -> Reference:
    """Prepare a stored polymer."""
    tables = chain_tables(sample.topology, sample.num_units)
    x_ang = sample.heavy_ang.astype(np.float64)
    return Reference(
        sample.key,
        tables,
        x_ang,
        equilibrium(tables),
        metrics.class_means(metrics.distances(x_ang, tables.bonds), tables.bond_class),
        metrics.class_means(metrics.angles_deg(x_ang, tables.angles), tables.angle_class),
        link_counts(tables, x_ang),
        torsion_counts(tables, x_ang),
        handedness(tables, x_ang)[0],
        covalent_radii_ang(tables.elements),
        vdw_radii_ang(tables.elements),
    )


def energies_of(tables: ChainTables, x_ang: NDArray[np.float64]) -> Energies:
    """Energies of conformations (G, H, 3)."""
    num_atoms = tables.num_heavy_atoms + int(chain_hydrogens(tables.topology, tables.num_units).sum())
    relaxed = relaxed_energies(tables, x_ang[:MAX_ENERGIES]) / num_atoms
    return Energies(relaxed, bare_energies(tables, x_ang) * HARTREE_PER_KCAL_MOL / tables.num_heavy_atoms)


def link_counts(tables: ChainTables, x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, H, 3) -> (36,) histogram of all link dihedrals."""
    return metrics.histogram(metrics.dihedrals_rad(x_ang, tables.links).reshape(-1))


def link_pair_counts(tables: ChainTables, x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, H, 3) -> (36, 36) histogram of consecutive link dihedrals, the first of two along rows."""
    angles = metrics.dihedrals_rad(x_ang, tables.links)
    return metrics.histogram_of_pairs(angles[:, :-1].ravel(), angles[:, 1:].ravel())


def torsion_counts(tables: ChainTables, x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, H, 3) -> (T, 36) histogram of each torsion of the unit."""
    angles = metrics.dihedrals_rad(x_ang, tables.torsions)  # (K, N, T)
    return metrics.histogram(np.moveaxis(angles, -1, 0).reshape(angles.shape[-1], angles.shape[0] * angles.shape[1]))


def handedness(tables: ChainTables, x_ang: NDArray[np.floating]) -> NDArray[np.int8]:
    """(K, H, 3) -> (K, N, c) signs of the stereocentres."""
    topology = tables.topology
    return measure_signs(x_ang[:, tables.slots], topology.stereo_centres, topology.stereo_neighbours)


def measure(reference: Reference, attempts: Attempts, *, against_reference: bool = True) -> Measurement:
    """All metrics of one method on one polymer.

    Args:
        reference: the polymer.
        attempts: conformations of the method.
        against_reference: False where the conformations are the references themselves: comparisons are left out.
    """
    x_ang, tables = attempts.x_ang, reference.tables
    reasons = dict(sorted(Counter(attempts.reasons).items()))
    if len(x_ang) == 0:
        zeros = {name: 0.0 for name, metric in METRICS.items() if metric.failures == "zero" and _applies(name, reference)}
        bins = metrics.NUM_BINS
        empty = np.zeros(bins), np.zeros(len(BOND_ERROR_EDGES_ANG)), np.zeros((bins, bins))
        return Measurement(zeros | attempts.known, attempts.num_attempted, reasons, *empty)
    bond_error = np.abs(metrics.distances(x_ang, tables.bonds) - reference.rest.bond_ang)
    links = link_counts(tables, x_ang)
    energies = energies_of(tables, x_ang) if against_reference else reference.energies
    values = {
        **_absolute(reference, x_ang, bond_error),
        **_junctions(tables, x_ang, attempts.shapes_ang),
        "mmff_energy_per_atom_kcal_mol": energies.median_kcal_mol,
    }
    if against_reference:
        values |= _relative(reference, x_ang, links) | _energetic(reference.energies, energies)
    share = len(x_ang) / attempts.num_attempted
    values = {name: value * share if METRICS[name].failures == "zero" else value for name, value in values.items()}
    known = bond_error[np.isfinite(bond_error)]
    counts = np.bincount(np.digitize(known, BOND_ERROR_EDGES_ANG) - 1, minlength=len(BOND_ERROR_EDGES_ANG)).astype(np.float64)
    size = metrics.radius_of_gyration(x_ang)
    ratio = size / metrics.radius_of_gyration(reference.x_ang).mean()
    finite = {name: float(value) for name, value in (values | attempts.known).items() if np.isfinite(value)}
    pairs = link_pair_counts(tables, x_ang)
    return Measurement(finite, attempts.num_attempted, reasons, links, counts, pairs, size.tolist(), ratio.tolist())


def _applies(name: str, reference: Reference) -> bool:
    if name == "chirality_kept_fraction":
        return reference.handedness.size > 0
    if name == "tacticity_kept_fraction":
        return reference.handedness[1:].size > 0
    return name != "bond_within_mmff_fraction" or bool(np.isfinite(reference.rest.bond_ang).any())


def _absolute(reference: Reference, x_ang: NDArray[np.float64], bond_error: NDArray[np.float64]) -> dict[str, float]:
    """Metrics that need no other conformation."""
    tables = reference.tables
    typed = np.isfinite(reference.rest.bond_ang)
    bent = np.isfinite(reference.rest.angle_deg)
    angle_error = np.abs(metrics.angles_deg(x_ang, tables.angles) - reference.rest.angle_deg)[:, bent]
    find = partial(find_clashes, radii_ang=reference.vdw_ang, bonds=tables.bonds, factor=HEAVY_CLASH_FACTOR)
    wrong = connectivity(x_ang, reference.covalent_ang, tables.bonds)  # (G, 2)
    signs, wanted = handedness(tables, x_ang), reference.handedness
    backbone = x_ang[:, tables.backbone]
    return {
        "bond_mae_mmff_ang": _mean(bond_error[:, typed]),
        "bond_within_mmff_fraction": _mean(bond_error[:, typed] <= BOND_TOLERANCE_ANG),
        "angle_mae_mmff_deg": _mean(angle_error),
        "clash_rate_per_heavy_atom": _mean(metrics.count_clashes(x_ang, find) / tables.num_heavy_atoms),
        "radius_of_gyration_ang": _mean(metrics.radius_of_gyration(x_ang)),
        "end_to_end_ang": _mean(metrics.end_to_end(x_ang)),
        "connectivity_exact_fraction": _mean(wrong.sum(1) == 0),
        "connectivity_wrong_fraction": _mean(wrong.sum(1) / len(tables.bonds)),
        "chirality_kept_fraction": _mean(signs == wanted),
        "tacticity_kept_fraction": _mean(signs[:, 1:] * signs[:, :-1] == wanted[1:] * wanted[:-1]),
        "characteristic_ratio": _mean(characteristic_ratio(backbone)),
        "persistence_length_ang": persistence_length_ang(backbone),
    }


def _relative(reference: Reference, x_ang: NDArray[np.float64], links: NDArray[np.float64]) -> dict[str, float]:
    """Metrics against the references."""
    tables, other = reference.tables, reference.x_ang
    recall, precision = metrics.recall_and_precision(symmetric_rmsd_matrix(tables, other, x_ang))
    smat_r, smat_p = metrics.recall_and_precision(metrics.align_matrix(other, x_ang))
    torsions = metrics.jensen_shannon_bits(torsion_counts(tables, x_ang), reference.torsion_counts)
    size, true_size = (metrics.radius_of_gyration(x).mean() for x in (x_ang, other))
    reach, true_reach = (np.sqrt((metrics.end_to_end(x) ** 2).mean()) for x in (x_ang, other))
    stiffness, true_stiffness = (persistence_length_ang(x[:, tables.backbone]) for x in (x_ang, other))
    return {
        "bond_mae_reference_ang": _mean(np.abs(metrics.distances(x_ang, tables.bonds) - reference.bond_ang)),
        "angle_mae_reference_deg": _mean(np.abs(metrics.angles_deg(x_ang, tables.angles) - reference.angle_deg)),
        "link_dihedral_jsd_bits": float(metrics.jensen_shannon_bits(links, reference.link_counts)),
        "unit_torsion_jsd_bits": _mean(torsions),
        "radius_of_gyration_error": float(abs(size / true_size - 1)),
        "end_to_end_error": float(abs(reach / true_reach - 1)),
        "persistence_length_error_ang": abs(stiffness - true_stiffness),
        "rmsd_recall_ang": recall,
        "rmsd_precision_ang": precision,
        "smat_r_legacy_ang": smat_r,
        "smat_p_legacy_ang": smat_p,
    }


def _energetic(reference: Energies, generated: Energies) -> dict[str, float]:
    """Energies against those of the references."""
    sound = metrics.recall_and_precision(metrics.absolute_energies(reference.relaxed_kcal_mol, generated.relaxed_kcal_mol))
    legacy = metrics.recall_and_precision(metrics.signed_energies(reference.bare_hartree, generated.bare_hartree))
    return {
        "emat_r_kcal_mol": sound[0],
        "emat_p_kcal_mol": sound[1],
        "mmff_energy_error_kcal_mol": abs(generated.median_kcal_mol - reference.median_kcal_mol),
        "emat_r_legacy_hartree": legacy[0],
        "emat_p_legacy_hartree": legacy[1],
    }


def _junctions(tables: ChainTables, x_ang: NDArray[np.float64], shapes_ang: NDArray[np.float64] | None) -> dict[str, float]:
    """Shared bond and its angles in the units' own shapes against the assembled chain; absent without units or junctions."""
    if shapes_ang is None or tables.num_units < 2:
        return {}
    star0, nbr0, nbr1, star1 = (int(k) for k in tables.topology.key_atoms)
    link_a, link_d = (int(k) for k in tables.topology.link_atoms)
    bond = metrics.distances(x_ang, tables.links[:, 1:3])  # (G, N - 1)
    tail = metrics.distances(shapes_ang, np.array([[nbr1, star1]]))[:, :-1, 0]
    head = metrics.distances(shapes_ang, np.array([[star0, nbr0]]))[:, 1:, 0]
    # link_a may lie further off than one bond; the angle at nbr1 that it makes with the junction is kept all the same
    own_tail = metrics.angles_deg(shapes_ang, np.array([[link_a, nbr1, star1]]))[:, :-1, 0]
    own_head = metrics.angles_deg(shapes_ang, np.array([[star0, nbr0, link_d]]))[:, 1:, 0]
    turn_tail = metrics.angles_deg(x_ang, tables.links[:, :3]) - own_tail
    turn_head = metrics.angles_deg(x_ang, tables.links[:, 1:]) - own_head
    return {
        "junction_tail_residual_ang": _largest([tail - bond]),
        "junction_head_residual_ang": _largest([head - bond]),
        "junction_angle_residual_deg": _largest([turn_tail, turn_head]),
    }


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _largest(parts: Sequence[NDArray[np.floating]]) -> float:
    """Mean over conformations of the largest deviation."""
    return float(np.max([np.abs(part).max(axis=1) for part in parts], axis=0).mean())
