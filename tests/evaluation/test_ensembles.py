"""Coverage and matching: hand-made matrices, RDKit's symmetric RMSD, a loop over relabellings, invariances."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolAlign
from scipy.spatial.transform import Rotation

from foundation.evaluation import ensembles
from foundation.evaluation.ensembles import (
    ENSEMBLE_METRICS,
    THRESHOLDS_ANG,
    automorphisms,
    best_rmsd_matrix,
    deduplicate,
    ensemble_values,
    name_of,
)

MOLECULES = {  # relabellings of the heavy atoms, counted by hand
    "CCC(O)Cc1ccccc1": 2,
    "OCC(C)CC(F)(F)F": 6,
    "CC(C(F)(F)F)c1ccccc1": 12,
    "C[C@H](O)CC(=O)[O-]": 2,
    "OC(=O)CCc1ccc([N+](=O)[O-])cc1": 8,
    "CC(C)(C)CC(C)(C)C": 72,
    "NC(=N)CCO": 2,
    "C[C@H](F)Cl": 1,
    "CC#CC": 2,
}


def conformers(smiles: str, num: int = 4) -> tuple[Chem.Mol, np.ndarray]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMultipleConfs(mol, num, randomSeed=5)
    mol = Chem.RemoveHs(mol)
    return mol, np.array([conformer.GetPositions() for conformer in mol.GetConformers()])


@pytest.mark.parametrize(("smiles", "count"), MOLECULES.items())
def test_relabellings_and_rmsd_are_those_of_rdkit(smiles: str, count: int) -> None:
    mol, x_ang = conformers(smiles)
    relabellings = automorphisms(mol)
    assert len(relabellings) == count
    assert len(np.unique(relabellings, axis=0)) == count
    assert (np.sort(relabellings, axis=1) == np.arange(mol.GetNumAtoms())).all()
    found = best_rmsd_matrix(x_ang[:3], x_ang, relabellings)
    wanted = [[rdMolAlign.GetBestRMS(Chem.Mol(mol), Chem.Mol(mol), i, j) for i in range(4)] for j in range(3)]
    assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(found[:, :3].diagonal()).max() < 1e-6


def test_rmsd_is_the_smallest_of_a_loop_over_relabellings_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    mol, x_ang = conformers("CC(C(F)(F)F)c1ccccc1")
    relabellings = automorphisms(mol)
    centred = x_ang - x_ang.mean(axis=1, keepdims=True)
    loop = np.array(
        [
            [min(Rotation.align_vectors(y, x[p])[1] for p in relabellings) / np.sqrt(mol.GetNumAtoms()) for x in centred]  # rssd to rmsd
            for y in centred[:2]
        ]
    )
    assert np.abs(best_rmsd_matrix(x_ang[:2], x_ang, relabellings) - loop).max() < 1e-6
    monkeypatch.setattr(ensembles, "BLOCK_NUMBERS", 1)
    assert np.abs(best_rmsd_matrix(x_ang[:2], x_ang, relabellings) - loop).max() < 1e-6


def test_moving_and_relabelling_change_nothing_and_a_mirror_image_is_another_molecule() -> None:
    rng = np.random.default_rng(0)
    mol, x_ang = conformers("C[C@H](F)CC(F)(F)F")
    relabellings = automorphisms(mol)
    plain = best_rmsd_matrix(x_ang, x_ang, relabellings)
    turned = Rotation.random(4, random_state=1).as_matrix() @ np.swapaxes(x_ang[:, relabellings[3]], 1, 2)
    moved = np.swapaxes(turned, 1, 2) + rng.normal(0, 20, (4, 1, 3))
    assert np.abs(best_rmsd_matrix(x_ang, moved, relabellings) - plain).max() < 1e-6
    assert np.abs(best_rmsd_matrix(moved, x_ang, relabellings) - plain).max() < 1e-6
    assert best_rmsd_matrix(x_ang, x_ang * [1, 1, -1], relabellings).min() > 0.1
    assert best_rmsd_matrix(x_ang, x_ang[:0], relabellings).shape == (4, 0)


def test_the_limit_of_relabellings_bounds_the_rmsd_from_above() -> None:
    mol, x_ang = conformers("CC(C)(C)CC(C)(C)C")
    some = automorphisms(mol, 10)
    assert len(some) == 10
    assert (some == np.arange(mol.GetNumAtoms())).all(axis=1).any()
    assert (best_rmsd_matrix(x_ang, x_ang, some) >= best_rmsd_matrix(x_ang, x_ang, automorphisms(mol)) - 1e-9).all()


def test_a_known_matrix_gives_known_numbers() -> None:
    matrix = np.array([[0.4, 0.9, 2.0], [0.6, 0.5, 3.0]])  # two references, three generated
    values = ensemble_values(matrix, 3)
    assert values == pytest.approx(
        {
            "cov_r_050_fraction": 1 / 2,  # 0.4 < 0.5, and 0.5 is not below 0.5
            "cov_p_050_fraction": 1 / 3,
            "mis_050_fraction": 1 / 3,  # 2.0; 0.5 is not above 0.5
            "cov_r_075_fraction": 1.0,
            "cov_p_075_fraction": 2 / 3,
            "mis_075_fraction": 1 / 3,
            "cov_r_125_fraction": 1.0,
            "cov_p_125_fraction": 2 / 3,
            "mis_125_fraction": 1 / 3,
            "amr_r_ang": 0.45,
            "amr_p_ang": (0.4 + 0.5 + 2.0) / 3,
        }
    )
    assert set(values) == set(ENSEMBLE_METRICS)


def test_failures_cover_nothing_and_mismatch() -> None:
    matrix = np.array([[0.1, 0.1], [2.0, 0.2]])
    whole, half = ensemble_values(matrix, 2), ensemble_values(matrix, 4)
    for d in THRESHOLDS_ANG:
        assert half[name_of("cov_p", d)] == whole[name_of("cov_p", d)] / 2 == 0.5
        assert half[name_of("mis", d)] == 0.5
        assert half[name_of("cov_r", d)] == whole[name_of("cov_r", d)] == 1
    assert half["amr_p_ang"] == whole["amr_p_ang"]
    nothing = ensemble_values(np.zeros((3, 0)), 6)
    assert nothing == {name_of(kind, d): float(kind == "mis") for kind in ("cov_r", "cov_p", "mis") for d in THRESHOLDS_ANG}


def test_coverage_grows_with_the_threshold_and_completes_mismatch() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        values = ensemble_values(rng.gamma(2.0, 0.6, (5, 9)), 12)
        for kind in ("cov_r", "cov_p"):
            own = [values[name_of(kind, d)] for d in THRESHOLDS_ANG]
            assert own == sorted(own)
        for d in THRESHOLDS_ANG:
            assert values[name_of("cov_p", d)] + values[name_of("mis", d)] == pytest.approx(1)


def test_duplicates_go_in_order() -> None:
    place = np.array([0.0, 0.05, 0.2, 0.26, 0.5])
    matrix = np.abs(place[:, None] - place)
    assert deduplicate(matrix, 0.125, 9).tolist() == [0, 2, 4]
    assert deduplicate(matrix, 0.125, 2).tolist() == [0, 2]
    assert deduplicate(matrix, 0.0, 9).tolist() == [0, 1, 2, 3, 4]
