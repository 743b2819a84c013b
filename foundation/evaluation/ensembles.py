"""Two sets of conformations of one molecule compared as the papers on small molecules do: coverage, matching, mismatch.

The distance is the root mean square deviation (RMSD) after the best proper rotation, the smallest over the relabellings of equivalent
atoms. A mirror image is another molecule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from foundation.evaluation.metrics import Metric

THRESHOLDS_ANG = (0.5, 0.75, 1.25)  # DiTMC and ConfFlow on QM9; DiTMC on DRUGS; ConfFlow on DRUGS
MAX_AUTOMORPHISMS = 256  # of which the smallest deviation is taken; RDKit lists them by atom, so those of the last atoms come first
BLOCK_NUMBERS = 4_000_000  # floats of a block of relabelled coordinates or products
CONJUGATED_ENDS = Chem.MolFromSmarts("[O,N;D1;$([O,N;D1]-[*]=[O,N;D1]),$([O,N;D1]=[*]-[O,N;D1])]~[*]")


def name_of(kind: str, threshold_ang: float) -> str:
    """Metric at a threshold: ("cov_r", 0.75) -> cov_r_075_fraction."""
    return f"{kind}_{round(100 * threshold_ang):03d}_fraction"


ENSEMBLE_METRICS: dict[str, Metric] = {
    **{
        name_of("cov_r", d): Metric(
            "fraction", f"references with a generated conformation at an RMSD below {d:g} angstrom", "high", "zero", "coverage"
        )
        for d in THRESHOLDS_ANG
    },
    **{
        name_of("cov_p", d): Metric(
            "fraction", f"generated, of all attempted, with a reference at an RMSD below {d:g} angstrom", "high", "zero", "coverage"
        )
        for d in THRESHOLDS_ANG
    },
    **{
        name_of("mis", d): Metric("fraction", f"attempted without a reference within an RMSD of {d:g} angstrom", "low", "one", "coverage")
        for d in THRESHOLDS_ANG
    },
    "amr_r_ang": Metric(
        "angstrom", "mean over references of the smallest RMSD to a generated conformation (also called MAT-R)", group="coverage"
    ),
    "amr_p_ang": Metric(
        "angstrom", "mean over generated conformations of the smallest RMSD to a reference (also called MAT-P)", group="coverage"
    ),
}


def automorphisms(mol: Chem.Mol, limit: int = MAX_AUTOMORPHISMS) -> NDArray[np.int64]:
    """Relabellings of equivalent heavy atoms, the identity among them.

    The two ends of a carboxylate, a nitro or an amidine group count as equivalent, whatever bond and charge are drawn.

    Args:
        mol: heavy-atom graph.
        limit: at most this many are returned.

    Returns:
        (A, H): atom p[a] stands where atom a stood.

    Source: RDKit's GetBestRMS. Differs: bounded by 256 instead of a million.
    """
    graph = Chem.RWMol(mol)
    for end, centre in mol.GetSubstructMatches(CONJUGATED_ENDS):
        graph.GetAtomWithIdx(end).SetFormalCharge(0)
        graph.GetBondBetweenAtoms(end, centre).SetBondType(Chem.BondType.OTHER)
    found = np.array(graph.GetSubstructMatches(graph, uniquify=False, maxMatches=limit), dtype=np.int64)
    identity = np.arange(mol.GetNumAtoms())
    return found if (found == identity).all(axis=1).any() else np.concatenate([identity[None], found[: limit - 1]])


def best_rmsd_matrix(
    reference_ang: NDArray[np.floating], generated_ang: NDArray[np.floating], relabellings: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Smallest RMSD over relabellings and proper rotations of every pair: (J, H, 3), (I, H, 3), (A, H) -> (J, I) angstrom.

    Source: Kabsch, Acta Cryst. A32 (1976) 922: the deviation follows from the singular values of the covariance alone.
    """
    y, x = (points - points.mean(axis=1, keepdims=True) for points in (np.float64(reference_ang), np.float64(generated_ang)))
    num_y, num_x, size = len(y), len(x), y.shape[1]
    if num_x == 0:
        return np.zeros((num_y, 0))
    rows = np.moveaxis(y, 1, 2).reshape(num_y * 3, size)
    columns = np.moveaxis(x, 1, 0).reshape(size, num_x * 3)
    best = np.full((num_y, num_x), -np.inf)
    block = max(1, BLOCK_NUMBERS // (num_x * 3 * max(size, num_y * 3)))
    for first in range(0, len(relabellings), block):
        covariance = rows @ columns[relabellings[first : first + block]]  # (B, 3 J, 3 I)
        matrices = np.moveaxis(covariance.reshape(-1, num_y, 3, num_x, 3), 2, 3)
        values = np.linalg.svd(matrices, compute_uv=False)
        values[..., 2] *= np.where(np.linalg.det(matrices) < 0, -1.0, 1.0)  # a proper rotation may have to give up the smallest
        best = np.maximum(best, values.sum(-1).max(axis=0))
    square = (y**2).sum((1, 2))[:, None] + (x**2).sum((1, 2))[None] - 2 * best
    return np.sqrt(np.maximum(square, 0.0) / size)


def deduplicate(matrix: NDArray[np.floating], threshold_ang: float, most: int) -> NDArray[np.int64]:
    """Conformations in order, each at least the threshold away from those kept before it: (J, J) RMSD -> indices, at most ``most``."""
    kept: list[int] = []
    for k in range(len(matrix)):
        if len(kept) < most and (matrix[k, kept] >= threshold_ang).all():
            kept.append(k)
    return np.array(kept, dtype=np.int64)


def ensemble_values(matrix: NDArray[np.floating], num_attempted: int) -> dict[str, float]:
    """Coverage, mismatch and matching of one molecule.

    Args:
        matrix: (J, I) RMSD of references and generated conformations that exist, J >= 1.
        num_attempted: I and those that failed: a failure covers nothing and matches nothing.

    Returns:
        Metrics of ENSEMBLE_METRICS; without a generated conformation coverage is 0, mismatch 1, matching absent.

    Source: DiTMC and torsional diffusion (COV, AMR); ConfFlow (MIS, strictly above the threshold). Differs: failures stay in the
    denominator, where the public evaluations leave out molecules without conformations.
    """
    near_reference = matrix.min(axis=1, initial=np.inf)
    near_generated = matrix.min(axis=0)
    failed = num_attempted - matrix.shape[1]
    values = {}
    for d in THRESHOLDS_ANG:
        values[name_of("cov_r", d)] = float((near_reference < d).mean())
        values[name_of("cov_p", d)] = float((near_generated < d).sum() / num_attempted)
        values[name_of("mis", d)] = float(((near_generated > d).sum() + failed) / num_attempted)
    if matrix.shape[1]:
        values["amr_r_ang"], values["amr_p_ang"] = float(near_reference.mean()), float(near_generated.mean())
    return values
