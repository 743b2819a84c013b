"""Stiffness of chains against the laws of the freely rotating and the worm-like chain, and sizes against mdtraj."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.evaluation import metrics
from foundation.evaluation.backbone import STIFFEST, characteristic_ratio, mean_projection_ang, persistence_length_ang
from foundation.evaluation.chains import chain_tables
from tests.sampling.conftest import FIXTURES, chain_of, request_of


def freely_rotating(num: int, bonds: int, cosine: float, length: float, seed: int = 0) -> np.ndarray:
    """(num, bonds + 1, 3) chains of fixed bond length and angle between successive bonds, free dihedrals."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(num, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    steps = [u]
    for _ in range(bonds - 1):
        across = np.cross(u, rng.normal(size=(num, 3)))
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        u = cosine * u + np.sqrt(1 - cosine**2) * across
        steps.append(u)
    return np.concatenate([np.zeros((num, 1, 3)), length * np.cumsum(np.stack(steps, 1), 1)], 1)


@pytest.mark.parametrize(("cosine", "bonds"), [(1 / 3, 50), (0.9, 60), (0.0, 30), (-0.2, 40)])
def test_characteristic_ratio_of_the_freely_rotating_chain(cosine: float, bonds: int) -> None:
    x = freely_rotating(20_000, bonds, cosine, 1.53)
    expected = (1 + cosine) / (1 - cosine) - 2 * cosine / bonds * (1 - cosine**bonds) / (1 - cosine) ** 2
    found = characteristic_ratio(x)
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(len(x)))


@pytest.mark.parametrize(("cosine", "bonds"), [(1 / 3, 50), (0.9, 60), (0.98, 40)])
def test_projection_of_the_freely_rotating_chain(cosine: float, bonds: int) -> None:
    x = freely_rotating(5_000, bonds, cosine, 1.53)
    found, window = mean_projection_ang(x)
    half = bonds // 2
    assert found == pytest.approx(1.53 * (1 - cosine**half) / (1 - cosine), rel=0.02)
    assert window == pytest.approx(1.53 * half)


@pytest.mark.parametrize("persistence", [4.0, 20.0, 100.0])
def test_persistence_length_of_the_worm_like_chain(persistence: float) -> None:
    """A window shorter than the persistence length finds it all the same."""
    step = 0.2
    x = freely_rotating(4_000, 200, np.exp(-step / persistence), step)
    assert persistence_length_ang(x) == pytest.approx(persistence, rel=0.05)


def test_flexible_chains_have_florys_value_and_limits_are_finite() -> None:
    x = freely_rotating(20_000, 100, 1 / 3, 1.53)
    assert persistence_length_ang(x) == pytest.approx(1.53 * 1.5, rel=0.02)
    rod = np.arange(21.0)[None, :, None] * [1.0, 0, 0]
    window = 10.0
    rod_length = persistence_length_ang(rod)
    assert rod_length * -np.expm1(-window / rod_length) == pytest.approx(STIFFEST * window)
    assert characteristic_ratio(rod) == pytest.approx([20.0])
    folded = np.array([[[0, 0, 0], [1, 0, 0], [-0.5, 0, 0], [1, 0, 0], [-0.5, 0, 0]]])
    assert persistence_length_ang(folded) == 0.0
    assert np.isnan(persistence_length_ang(rod[:, :2]))
    assert persistence_length_ang(rod[:, ::-1]) == pytest.approx(rod_length), "the same from both ends"


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_backbone_is_bonded_from_cap_to_cap(psmiles: str) -> None:
    tables = chain_tables(request_of(psmiles, 5).topology, 5)
    path = tables.backbone
    assert (path[0], path[-1]) == (0, tables.num_heavy_atoms - 1)
    bonds = set(map(tuple, tables.bonds.tolist()))
    assert all(tuple(sorted(pair)) in bonds for pair in zip(path[:-1].tolist(), path[1:].tolist(), strict=True))


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*c1ccc(*)cc1", "*O[Si](*)(C)C"])
def test_sizes_agree_with_mdtraj(psmiles: str) -> None:
    """Radius of gyration, end-to-end distance and C_n, computed by another library in nanometre."""
    md = pytest.importorskip("mdtraj")
    request = request_of(psmiles, 12)
    tables = chain_tables(request.topology, 12)
    x = np.stack([chain_of(request, seed, 1.0) for seed in range(4)])
    topology = md.Topology()
    residue = topology.add_residue("POL", topology.add_chain())
    for number in tables.elements.tolist():
        topology.add_atom("X", md.element.Element.getByAtomicNumber(number), residue)
    trajectory = md.Trajectory(x / 10, topology)
    equal = np.ones(trajectory.n_atoms)
    assert metrics.radius_of_gyration(x) == pytest.approx(10 * md.compute_rg(trajectory, masses=equal), abs=1e-4)
    reach = 10 * md.compute_distances(trajectory, [[0, trajectory.n_atoms - 1]], periodic=False)[:, 0]
    assert metrics.end_to_end(x) == pytest.approx(reach, abs=1e-4)
    pairs = np.stack([tables.backbone[:-1], tables.backbone[1:]], 1)
    square = ((10 * md.compute_distances(trajectory, pairs, periodic=False)) ** 2).sum(1)
    assert characteristic_ratio(x[:, tables.backbone]) == pytest.approx(reach**2 / square, rel=1e-4)
