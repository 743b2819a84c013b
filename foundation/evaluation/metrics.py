"""Measures of conformations, vectorised over atoms, units and conformations. METRICS names each with its unit and protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.conformers.quality import COVALENT_FACTOR
from foundation.geometry.align import kabsch
from foundation.geometry.torsions import dihedral
from foundation.units import BITS_PER_NAT, DEG_PER_RAD

NUM_BINS = 36  # ten degrees each
BOND_TOLERANCE_ANG = 0.1
ALIGN_CYCLES, ALIGN_CUTOFF = 5, 2.0


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        unit: of the number.
        protocol: how it is measured, one sentence.
        better: low, high, or neither where only the distance from the reference counts.
        failures: how a conformation that failed enters: zero or one (a fraction of the attempts) or absent (measured on those that exist).
        group: section of the table.
    """

    unit: str
    protocol: str
    better: Literal["low", "high", "reference"] = "low"
    failures: Literal["zero", "one", "absent"] = "absent"
    group: str = "sound"

    def described(self) -> dict[str, str]:
        """What results.json says of the metric."""
        return {**asdict(self), "failures": FAILURES[self.failures]}


FAILURES = {
    "zero": "a failed conformation counts as 0",
    "one": "a failed conformation counts as 1",
    "absent": "measured on the conformations that exist; a polymer without one is left out; the failure rate stands beside",
}
GROUPS: dict[str, dict[str, Metric]] = {
    "structure": {
        "bond_mae_mmff_ang": Metric("angstrom", "mean |length - MMFF94 equilibrium| over bonds between heavy atoms"),
        "bond_within_mmff_fraction": Metric(
            "fraction", f"bonds within {BOND_TOLERANCE_ANG:g} angstrom of MMFF94 equilibrium, of all attempted", "high", "zero"
        ),
        "bond_mae_reference_ang": Metric("angstrom", "mean |length - mean length of the same bond of the unit in the references|"),
        "angle_mae_mmff_deg": Metric("degree", "mean |angle - MMFF94 equilibrium| over angles between heavy atoms"),
        "angle_mae_reference_deg": Metric("degree", "mean |angle - mean of the same angle of the unit in the references|"),
        "junction_tail_residual_ang": Metric(
            "angstrom", "largest |length nbr1-star1 in unit i - assembled bond to unit i+1| of all junctions"
        ),
        "junction_head_residual_ang": Metric(
            "angstrom", "largest |length star0-nbr0 in unit i+1 - assembled bond to unit i| of all junctions"
        ),
        "junction_angle_residual_deg": Metric("degree", "largest change of an angle at a junction by assembly, both sides"),
        "clash_rate_per_heavy_atom": Metric(
            "clashes / heavy atom", "heavy-atom pairs more than three bonds apart and too close (protocol)"
        ),
        "connectivity_exact_fraction": Metric(
            "fraction",
            f"conformations whose bonds, read as distances below {COVALENT_FACTOR:g} x covalent radii, are true",
            "high",
            "zero",
        ),
        "connectivity_wrong_fraction": Metric("fraction", "bonds missing or too many when read from distances / true bonds"),
        "chirality_kept_fraction": Metric("fraction", "stereocentres with the handedness asked for, of all attempted", "high", "zero"),
        "tacticity_kept_fraction": Metric(
            "fraction",
            "dyads (same stereocentre of neighbouring units) that are meso or racemo as asked for, of all attempted",
            "high",
            "zero",
        ),
    },
    "distribution": {
        "link_dihedral_jsd_bits": Metric("bit", f"Jensen-Shannon divergence of link dihedrals, {NUM_BINS} bins, logarithm to base 2"),
        "link_dihedral_pooled_jsd_bits": Metric("bit", "likewise with the link dihedrals of all polymers in one histogram"),
        "unit_torsion_jsd_bits": Metric("bit", "as link_dihedral_jsd for each rotatable bond inside the unit, mean over bonds"),
    },
    "size": {
        "radius_of_gyration_ang": Metric("angstrom", "root mean square distance of heavy atoms from their centroid", "reference"),
        "radius_of_gyration_error": Metric("fraction", "|mean radius of gyration / that of the references - 1|"),
        "end_to_end_ang": Metric("angstrom", "distance between the two end caps", "reference"),
        "end_to_end_error": Metric("fraction", "|root mean square end-to-end distance / that of the references - 1|"),
        "characteristic_ratio": Metric(
            "1", "C_n = mean square end-to-end distance / sum of squared bonds along the backbone from cap to cap", "reference"
        ),
        "persistence_length_ang": Metric(
            "angstrom",
            "projection of half a backbone on its first bond, mean over starting bonds and both directions, read as a worm-like chain's",
            "reference",
        ),
        "persistence_length_error_ang": Metric("angstrom", "|persistence_length - that of the references|"),
    },
    "sound": {
        "rmsd_recall_ang": Metric(
            "angstrom",
            "mean over references of the smallest Kabsch RMSD of all heavy atoms to a generated chain, the best over the symmetries of the "
            "chain: exchanges of like atoms and branches inside each unit, and reversal where the chain reads the same backwards",
        ),
        "rmsd_precision_ang": Metric("angstrom", "mean over generated chains of the smallest such RMSD to a reference"),
        "emat_r_kcal_mol": Metric(
            "kcal/mol",
            "mean over references of the smallest |difference of MMFF94s energy per atom| to a generated chain; hydrogens added and "
            "relaxed, heavy atoms as they are, vacuum; the first conformations (protocol)",
        ),
        "emat_p_kcal_mol": Metric("kcal/mol", "mean over generated chains of the smallest such difference to a reference"),
        "mmff_energy_per_atom_kcal_mol": Metric("kcal/mol", "median of the energies of emat_r_kcal_mol", "reference"),
        "mmff_energy_error_kcal_mol": Metric("kcal/mol", "|mmff_energy_per_atom - that of the references|"),
        "nll_nats_per_heavy_atom": Metric(
            "nat", "mean over references of -log density under the model / heavy atoms; only of objectives that have a density"
        ),
    },
    "legacy": {
        "smat_r_legacy_ang": Metric(
            "angstrom", "as rmsd_recall without symmetries, after up to five cycles that drop atoms farther off than twice the RMSD"
        ),
        "smat_p_legacy_ang": Metric("angstrom", "as rmsd_precision, likewise"),
        "emat_r_legacy_hartree": Metric(
            "hartree",
            "mean over references of the smallest signed difference (generated - reference) of MMFF94 energy without hydrogens per heavy "
            "atom: one low energy among the generated is enough",
        ),
        "emat_p_legacy_hartree": Metric("hartree", "mean over generated chains of the smallest such difference: to the highest reference"),
    },
    "cost": {
        "seconds_per_conformation": Metric("s", "wall time of making conformations / conformations attempted, in batches, on this machine"),
        "network_calls_per_conformation": Metric("1", "forward passes of score networks that a conformation went through, in batches"),
    },
}
METRICS: dict[str, Metric] = {name: replace(metric, group=group) for group, members in GROUPS.items() for name, metric in members.items()}


def distances(x_ang: NDArray[np.floating], pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """(..., H, 3) positions and (Q, 2) atoms -> (..., Q) angstrom."""
    return np.asarray(np.linalg.norm(x_ang[..., pairs[:, 0], :] - x_ang[..., pairs[:, 1], :], axis=-1), dtype=np.float64)


def angles_deg(x_ang: NDArray[np.floating], triples: NDArray[np.integer]) -> NDArray[np.float64]:
    """(..., H, 3) positions and (R, 3) atoms i, centre, k -> (..., R) degrees; by arctan2, exact near 0 and 180."""
    centre = x_ang[..., triples[:, 1], :].astype(np.float64)
    left, right = x_ang[..., triples[:, 0], :] - centre, x_ang[..., triples[:, 2], :] - centre
    sine = np.linalg.norm(np.cross(left, right), axis=-1)
    return np.asarray(np.arctan2(sine, (left * right).sum(-1)) * DEG_PER_RAD)


def dihedrals_rad(x_ang: NDArray[np.floating], quads: NDArray[np.integer]) -> NDArray[np.float64]:
    """(..., H, 3) positions and (..., 4) atoms of any leading shape Y -> (..., Y) rad in (-pi, pi], IUPAC sign."""
    points = torch.from_numpy(np.ascontiguousarray(x_ang[..., quads, :], dtype=np.float64))
    return np.asarray(dihedral(*points.unbind(-2)).numpy())


def class_means(values: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, Q) values of K conformations and (Q,) classes -> (Q,) mean of each value's class."""
    _, place = np.unique(classes, return_inverse=True)
    total = np.bincount(place, weights=values.mean(axis=0))
    return np.asarray((total / np.bincount(place))[place])


def histogram(angle_rad: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., M) angles -> (..., NUM_BINS) counts over (-pi, pi]."""
    place = _bins(angle_rad)
    rows = place.reshape(math.prod(place.shape[:-1]), place.shape[-1])
    flat = rows + np.arange(len(rows))[:, None] * NUM_BINS
    counts = np.bincount(flat.ravel(), minlength=len(rows) * NUM_BINS).astype(np.float64)
    return counts.reshape(*place.shape[:-1], NUM_BINS)


def histogram_of_pairs(first_rad: NDArray[np.floating], second_rad: NDArray[np.floating]) -> NDArray[np.float64]:
    """(M,) and (M,) angles -> (NUM_BINS, NUM_BINS) counts, the first along rows, bins as in histogram."""
    place = _bins(first_rad) * NUM_BINS + _bins(second_rad)
    return np.bincount(place, minlength=NUM_BINS**2).astype(np.float64).reshape(NUM_BINS, NUM_BINS)


def _bins(angle_rad: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.clip(np.floor((angle_rad + np.pi) / (2 * np.pi) * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)


def jensen_shannon_bits(p: NDArray[np.floating], q: NDArray[np.floating]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence, 0 for equal and 1 for disjoint distributions.

    Args:
        p, q: (..., M) counts or weights; NaN where one of them is empty.

    Returns:
        (...,) bits.

    Source: Lin, IEEE Trans. Inf. Theory 37 (1991) 145, eq. 4.1.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p = p / p.sum(-1, keepdims=True)
        q = q / q.sum(-1, keepdims=True)
        middle = (p + q) / 2
        terms = [np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / np.where(a > 0, middle, 1.0)), 0.0 * a) for a in (p, q)]
    return np.asarray((terms[0] + terms[1]).sum(-1) / 2 * BITS_PER_NAT)


def radius_of_gyration(x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., H, 3) -> (...,) angstrom, heavy atoms weighted equally."""
    centred = x_ang - x_ang.mean(axis=-2, keepdims=True)
    return np.sqrt((centred**2).sum(-1).mean(-1), dtype=np.float64)


def end_to_end(x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., H, 3) -> (...,) angstrom between head cap and tail cap."""
    return np.asarray(np.linalg.norm(x_ang[..., -1, :] - x_ang[..., 0, :], axis=-1), dtype=np.float64)


def rmsd_matrix(reference_ang: NDArray[np.floating], generated_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """Plain Kabsch RMSD of every pair: (J, H, 3) and (I, H, 3) -> (J, I) angstrom."""
    _, rmsd = kabsch(_tensor(generated_ang)[None], _tensor(reference_ang)[:, None])
    return rmsd.numpy()


def align_matrix(reference_ang: NDArray[np.floating], generated_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """RMSD after outlier rejection of every pair, the published protocol: (J, H, 3) and (I, H, 3) -> (J, I) angstrom.

    Superpose; drop atom pairs that deviate by more than twice the RMSD; repeat, at most five times, until none is dropped.

    Source: behaviour of PyMOL's align on matched atoms. Differs: all pairs of chains at once.
    """
    y, x = _tensor(reference_ang)[:, None], _tensor(generated_ang)[None]
    kept = torch.ones(len(reference_ang), len(generated_ang), x.shape[-2], dtype=torch.bool)
    motion, rmsd = kabsch(x, y, kept)
    for _ in range(ALIGN_CYCLES):
        error = (motion.apply(x.expand(len(y), -1, -1, -1)) - y).norm(dim=-1)
        fewer = kept & (error <= ALIGN_CUTOFF * rmsd[..., None])
        if torch.equal(fewer, kept):
            break
        kept = fewer
        motion, rmsd = kabsch(x, y, kept)
    return rmsd.numpy()


def recall_and_precision(matrix: NDArray[np.floating]) -> tuple[float, float]:
    """(J, I) of references and generated chains -> mean over references of the minimum, mean over generated of the minimum."""
    return float(matrix.min(axis=1).mean()), float(matrix.min(axis=0).mean())


def signed_energies(reference: NDArray[np.floating], generated: NDArray[np.floating]) -> NDArray[np.float64]:
    """E-MAT of the published protocol: (J,) and (I,) energies per atom -> (J, I) signed differences, generated - reference.

    Its recall is min(generated) - mean(reference) and its precision mean(generated) - max(reference).
    """
    return np.asarray(generated[None, :] - reference[:, None])


def absolute_energies(reference: NDArray[np.floating], generated: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sound E-MAT: (J,) and (I,) energies per atom -> (J, I) distances; an energy too low is as wrong as one too high."""
    return np.abs(signed_energies(reference, generated))


def count_clashes(x_ang: NDArray[np.floating], find: Callable[[NDArray[np.floating]], NDArray[np.integer]]) -> NDArray[np.int64]:
    """(K, H, 3) conformations and a finder of clashing pairs of one -> (K,) clashes."""
    return np.array([len(find(x)) for x in x_ang], dtype=np.int64)


def _tensor(x: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))
