"""Dynamics samples what statistical mechanics says: energy, temperature, virial and torsions against analytic and brute-force numbers."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms

from data_shards.chem.chain import chain_mol
from data_shards.chem.repeat_unit import build_unit
from data_shards.chem.stereo import measure_signs
from data_shards.conformers import dynamics
from data_shards.conformers.dynamics import chain_energy_kcal_mol, relax_chain, sample_chain
from data_shards.conformers.force_field import with_positions
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.mmff_system import THETA, VACUUM, Environment
from data_shards.conformers.quality import check_chain
from data_shards.conformers.simulation import Simulation
from data_shards.conformers.statistics import (
    RESOLVED,
    WINDOW,
    autocorrelation,
    autocorrelation_time,
    backbone_path,
    backbone_positions,
    radius_of_gyration_ang,
    torsions_rad,
)
from data_shards.errors import InputError, PolymerError
from data_shards.recipe import MdSettings
from data_shards.schema import chain_bonds, unit_slots

R_KCAL_MOL_K = 1.987204e-3
SHORT = MdSettings(anneal_ps=0.02, run_ps=0.04, minimise_iterations=20)


def grown(psmiles: str, num_units: int, seed: int = 0) -> np.ndarray:
    """(A, 3) of one chain as the builder leaves it."""
    chain = grow_chain(build_unit(psmiles), num_units, num_conformations=1, seed=seed)
    return np.concatenate([chain.heavy_ang[0], chain.hydrogen_ang[0]]).astype(np.float64)


def langevin(kelvin: float, timestep_fs: float, friction_per_ps: float = 10.0, seed: int = 1) -> openmm.LangevinMiddleIntegrator:
    integrator = openmm.LangevinMiddleIntegrator(kelvin, friction_per_ps, timestep_fs / 1000)
    integrator.setRandomNumberSeed(seed)
    return integrator


# ---- how long a quantity remembers itself


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9, 0.98])
def test_autocorrelation_time_of_an_ar1_process(kept: float) -> None:
    """x[t] = a x[t-1] + noise has tau = (1 + a) / (2 (1 - a)); the estimate's own error is that of Sokal's window."""
    noise = np.random.default_rng(3).normal(size=200_000)
    series = np.empty_like(noise)
    value = 0.0
    for step, kick in enumerate(noise):
        value = kept * value + kick
        series[step] = value
    exact = (1 + kept) / (2 * (1 - kept))
    spread = exact * np.sqrt(2 * (2 * WINDOW + 1) * exact / len(series))
    assert autocorrelation_time(series) == pytest.approx(exact, abs=4 * spread + 0.02 * exact)  # the window leaves out exp(-5)


def test_autocorrelation_is_the_sum_over_products() -> None:
    series = np.random.default_rng(0).normal(size=(60, 2, 3)).cumsum(axis=0)
    flat = series.reshape(60, -1)
    direct = np.array([(flat[: 60 - lag] * flat[lag:]).sum(axis=1).mean() for lag in range(60)])
    np.testing.assert_allclose(autocorrelation(series), direct / direct[0], atol=1e-12)
    assert autocorrelation_time(np.zeros(50)) == pytest.approx(49.5)  # what never moves never forgets


def test_a_torsion_that_never_leaves_its_well_is_not_at_rest() -> None:
    """Two units in different wells, each rattling quickly: about the mean of both they remember for ever, about their own they do not."""
    unit = build_unit("*CC*")
    run = dynamics.Run(unit.topology, 2, SHORT, 0)
    rng = np.random.default_rng(0)
    for _ in range(400):
        angles = np.array([np.pi, 0.0, 1.1]) + 0.2 * rng.normal(size=3)
        run.sizes.append(rng.normal(size=2).tolist())
        run.torsions.append(np.stack([np.cos(angles), np.sin(angles)]))
    known = run.memory()
    assert known["radius_of_gyration_ps"] < 2 * run.frame_ps
    assert known["torsions_ps"] > 400 * run.frame_ps / RESOLVED
    assert not known["resolved"]


# ---- backbone


def test_backbone_of_polystyrene() -> None:
    """Three units, sixteen own atoms each: the path runs through CH2 and CH, everything else hangs on them."""
    topology = build_unit("*CC(*)c1ccccc1").topology
    mol = chain_mol(topology, 3, hydrogens=True)
    path = backbone_path(topology, 3)
    assert path.tolist() == list(Chem.GetShortestPath(mol, 0, int(unit_slots(topology.key_atoms, topology.num_atoms, 3).max())))
    hops = Chem.GetDistanceMatrix(mol)
    assert backbone_positions(topology, 3).tolist() == hops[:, path].argmin(axis=1).tolist()


@pytest.mark.parametrize("psmiles", ["*C*", "*OCCOC(=O)c1ccc(C(*)=O)cc1", "*c1cccc(*)c1", "*C1CCC(*)CC1", "*O[Si](*)(C)CCC"])
def test_positions_grow_by_one_along_the_path(psmiles: str) -> None:
    topology = build_unit(psmiles).topology
    path, where = backbone_path(topology, 4), backbone_positions(topology, 4)
    assert where[path].tolist() == list(range(len(path)))
    bonds, _ = chain_bonds(topology, 4)
    assert np.abs(np.diff(where[bonds], axis=1)).max() == (2 if psmiles == "*c1cccc(*)c1" else 1)  # where two ways round a ring meet
    assert len(where) == chain_mol(topology, 4, hydrogens=True).GetNumAtoms()


def test_torsions_and_size_are_those_of_rdkit() -> None:
    topology = build_unit("*OCC(*)C").topology
    x_ang = grown("*OCC(*)C", 4)
    mol = with_positions(chain_mol(topology, 4, hydrogens=True), x_ang)
    path = backbone_path(topology, 4)
    expected = [rdMolTransforms.GetDihedralRad(mol.GetConformer(), *path[k : k + 4].tolist()) for k in range(len(path) - 3)]
    np.testing.assert_allclose(np.exp(1j * torsions_rad(x_ang[path])), np.exp(1j * np.array(expected)), atol=1e-9)
    masses = np.array([atom.GetMass() for atom in mol.GetAtoms()])
    pairs = (np.linalg.norm(x_ang[:, None] - x_ang[None], axis=-1) ** 2 * masses[:, None] * masses).sum() / 2
    assert radius_of_gyration_ang(x_ang, masses) == pytest.approx(np.sqrt(pairs) / masses.sum())


# ---- the integrator


def energies_kcal_mol(simulation: Simulation, steps: int, every: int) -> np.ndarray:
    """Total energies along a run."""
    found = []
    for _ in range(steps // every):
        simulation.integrator.step(every)
        state = simulation.context.getState(getEnergy=True)
        found.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / 4.184)
    return np.array(found)


def test_energy_is_conserved_to_second_order() -> None:
    """Without a thermostat the energy of Verlet's scheme oscillates by an amount that grows with the square of the time step."""
    topology, x_ang = build_unit("*CC(*)C").topology, grown("*CC(*)C", 4)
    spread = []
    for timestep_fs in (0.5, 1.0, 2.0):
        simulation = Simulation(topology, 4, THETA, "Reference", lambda dt=timestep_fs: openmm.VerletIntegrator(dt / 1000), 4.0)
        simulation.place(x_ang)
        simulation.minimise(200)
        simulation.context.setVelocitiesToTemperature(800, 7)  # half of it goes into potential energy
        spread.append(energies_kcal_mol(simulation, round(500 / timestep_fs), round(2 / timestep_fs)).std())
    ratios = np.array(spread[1:]) / np.array(spread[:-1])
    assert ((ratios > 3.4) & (ratios < 4.8)).all(), ratios
    per_freedom = spread[-1] / np.sqrt(3 * len(x_ang)) / (R_KCAL_MOL_K * 400)
    assert per_freedom < 0.05, per_freedom  # of kT, at the default step; measured 0.03


def test_energy_does_not_drift_at_the_default_step() -> None:
    """Ten thousand steps of 2 fs: less than a hundredth of kT per degree of freedom."""
    topology, x_ang = build_unit("*CC(*)C").topology, grown("*CC(*)C", 4)
    settings = MdSettings()
    make = lambda: openmm.VerletIntegrator(settings.timestep_fs / 1000)  # noqa: E731
    simulation = Simulation(topology, 4, THETA, "CPU", make, settings.hydrogen_mass_da)
    simulation.place(x_ang)
    simulation.minimise(200)
    simulation.context.setVelocitiesToTemperature(800, 7)
    energies = energies_kcal_mol(simulation, 10_000, 20)
    slope, _ = np.polyfit(np.arange(len(energies)), energies, 1)
    drift = abs(slope) * len(energies) / (3 * len(x_ang)) / (R_KCAL_MOL_K * 400)
    assert drift < 0.01, drift


def test_every_degree_of_freedom_has_half_a_kt() -> None:
    """At the default step: kinetic energy of heavy atoms and of hydrogens at 400 K; and at 10 K, where a minimum is harmonic, the
    potential energy of all but the six free degrees."""
    topology, x_ang = build_unit("*CC*").topology, grown("*CC*", 6)
    settings = MdSettings()
    make = lambda: langevin(settings.temperature_kelvin, settings.timestep_fs, 20.0)  # noqa: E731
    simulation = Simulation(topology, 6, THETA, "CPU", make, settings.hydrogen_mass_da)
    simulation.place(x_ang)
    simulation.minimise(10_000)
    lowest, heavy = simulation.energy_kcal_mol(), simulation.masses_da > 4
    for kelvin in (10.0, 400.0):
        simulation.integrator.setTemperature(kelvin)
        simulation.context.setVelocitiesToTemperature(kelvin, 5)
        simulation.integrator.step(2_000)
        kt_kcal_mol = R_KCAL_MOL_K * kelvin
        of_heavy, of_hydrogen, potential = [], [], []
        for _ in range(700):
            simulation.integrator.step(12)
            velocities = simulation.context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
            kinetic = simulation.masses_da[:, None] * velocities**2 / (4.184 * kt_kcal_mol)
            of_heavy.append(kinetic[heavy].mean())
            of_hydrogen.append(kinetic[~heavy].mean())
            potential.append((simulation.energy_kcal_mol() - lowest) / kt_kcal_mol / (3 * len(x_ang) - 6) * 2)
        for found in (of_heavy, of_hydrogen) + ((potential,) if kelvin == 10 else ()):
            error = error_of_mean(np.array(found))
            assert error < 0.015
            assert np.mean(found) == pytest.approx(1.0, abs=4 * error + 0.01)


def error_of_mean(series: np.ndarray) -> float:
    return float(series.std() * np.sqrt(2 * autocorrelation_time(series - series.mean()) / len(series)))


# ---- torsions against a Boltzmann integral

TRIOXIDE = ((1.449, 0.972), (110.4, 95.7))  # O-O and O-H, O-O-O and O-O-H: where the proposal sits


def trioxide_ang(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """HOOOH in schema order (count, 5, 3), bonds and angles Gaussian, torsions uniform; and the log of (volume element / density)."""
    lengths = np.array([TRIOXIDE[0][0]] * 2 + [TRIOXIDE[0][1]] * 2)
    angles = np.deg2rad([TRIOXIDE[1][0]] + [TRIOXIDE[1][1]] * 2)
    kicks = rng.normal(size=(count, 7))
    r, theta = lengths + kicks[:, :4] * [0.06, 0.06, 0.045, 0.045], angles + kicks[:, 4:] * [0.10, 0.13, 0.13]
    phi = rng.uniform(-np.pi, np.pi, size=(count, 2))
    x_ang = np.zeros((count, 5, 3))  # O, middle O, O, H, H
    x_ang[:, 0, 0] = r[:, 0]
    x_ang[:, 2, :2] = r[:, 1, None] * np.stack([np.cos(theta[:, 0]), np.sin(theta[:, 0])], axis=1)
    for oxygen, other, hydrogen in ((0, 2, 3), (2, 0, 4)):
        back = -x_ang[:, oxygen] / np.linalg.norm(x_ang[:, oxygen], axis=1, keepdims=True)  # to the middle
        normal = np.cross(x_ang[:, oxygen], x_ang[:, other])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        side = np.cross(normal, -back) if hydrogen == 3 else np.cross(-back, normal)  # towards the other oxygen
        k = hydrogen - 3
        along, out = theta[:, 1 + k, None], phi[:, k, None]
        x_ang[:, hydrogen] = x_ang[:, oxygen] + r[:, 2 + k, None] * (
            np.cos(along) * back + np.sin(along) * (np.cos(out) * side + np.sin(out) * np.cross(-back, side))
        )
    return x_ang, 2 * np.log(r).sum(axis=1) + np.log(np.sin(theta)).sum(axis=1) + 0.5 * (kicks**2).sum(axis=1)


def test_torsions_are_those_of_the_boltzmann_integral() -> None:
    """HOOOH, a chain of one unit: its nine internal coordinates integrated by weighted draws, against Langevin dynamics."""
    topology, kelvin = build_unit("*O*").topology, 700.0
    x_ang, log_volume = trioxide_ang(np.random.default_rng(1), 9_000)
    energies = chain_energy_kcal_mol(topology, 1, x_ang[:, :3], x_ang[:, 3:], platform="Reference")
    log_weight = log_volume - energies / (R_KCAL_MOL_K * kelvin)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 500  # draws that the integral is worth

    simulation = Simulation(topology, 1, VACUUM, "CPU", lambda: langevin(kelvin, 1.0, 5.0))
    simulation.place(x_ang[np.argmin(energies)])
    simulation.context.setVelocitiesToTemperature(kelvin, 5)
    frames = []
    for _ in range(5_000):
        simulation.integrator.step(15)
        frames.append(simulation.positions_ang())
    sampled = np.array(frames)

    def features(x: np.ndarray) -> np.ndarray:
        """(T, 6) of |phi| of both torsions in thirds, opposite signs, and the O-O-O angle's cosine."""
        phi = torsions_rad(x[:, [[3, 0, 1, 2], [0, 1, 2, 4]]])[..., 0]
        thirds = np.stack([(np.abs(phi) // (np.pi / 3) == k).mean(axis=1) for k in range(3)], axis=1)
        one, other = x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]
        cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        return np.column_stack([thirds, phi[:, 0] * phi[:, 1] < 0, np.linalg.norm(x[:, 3] - x[:, 4], axis=1), cosine])

    drawn, run = features(x_ang), features(sampled)
    expected = weight @ drawn
    expected_error = np.sqrt(((weight[:, None] * (drawn - expected)) ** 2).sum(axis=0))
    found_error = np.array([error_of_mean(column) for column in run.T])
    error = np.hypot(expected_error, found_error)
    assert error[:4].max() < 0.03
    np.testing.assert_array_less(np.abs(run.mean(axis=0) - expected), 4 * error + 1e-3)
    flat = np.array([1 / 3, 1 / 3, 1 / 3, 1 / 2])
    assert (np.abs(expected[:4] - flat) > 5 * error[:4]).any()  # a free rotor would be told apart


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three minutes of one core that nobody else uses
def test_butane_has_the_populations_of_a_monte_carlo_walk() -> None:
    """Trans share of butane at 900 K: dynamics at the default step against Metropolis moves, which know no time step."""
    topology, kelvin = build_unit("*C*").topology, 900.0
    settings = MdSettings(temperature_kelvin=kelvin)
    path = backbone_path(topology, 2)
    make = lambda: langevin(kelvin, settings.timestep_fs, settings.friction_per_ps)  # noqa: E731
    simulation = Simulation(topology, 2, VACUUM, "CPU", make, settings.hydrogen_mass_da)
    simulation.place(grown("*C*", 2))
    simulation.context.setVelocitiesToTemperature(kelvin, 5)
    run = []
    for _ in range(20_000):
        simulation.integrator.step(25)
        run.append(np.cos(torsions_rad(simulation.positions_ang()[path]))[0] < -0.5)

    rng = np.random.default_rng(2)
    walker = Simulation(topology, 2, VACUUM, "CPU")
    hops = Chem.GetDistanceMatrix(chain_mol(topology, 2, hydrogens=True))
    turned = np.flatnonzero(hops[:, path[2]] < hops[:, path[1]])
    assert len(turned) == 7
    x_ang = grown("*C*", 2)
    walker.place(x_ang)
    energy = walker.energy_kcal_mol()
    walk = []
    for step in range(200_000):
        trial = x_ang + rng.normal(scale=0.012, size=x_ang.shape)
        if step % 3 == 0:
            axis = x_ang[path[2]] - x_ang[path[1]]
            axis /= np.linalg.norm(axis)
            angle, from_axis = rng.uniform(-np.pi, np.pi), x_ang[turned] - x_ang[path[1]]
            along = (from_axis @ axis)[:, None] * axis
            trial = x_ang.copy()
            trial[turned] = x_ang[path[1]] + along + np.cos(angle) * (from_axis - along) + np.sin(angle) * np.cross(axis, from_axis)
        walker.place(trial)
        raised = walker.energy_kcal_mol()
        if rng.random() < np.exp(min(0.0, (energy - raised) / (R_KCAL_MOL_K * kelvin))):
            x_ang, energy = trial, raised
        walk.append(np.cos(torsions_rad(x_ang[path]))[0] < -0.5)
    one, other = np.array(run, dtype=np.float64), np.array(walk[5_000:], dtype=np.float64)
    error = np.hypot(error_of_mean(one), error_of_mean(other))
    assert error < 0.045
    assert one.mean() == pytest.approx(other.mean(), abs=4 * error)
    assert 0.35 < one.mean() < 0.8  # a free rotor has a third


# ---- relaxing


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*C/C=C/C*", "*OC(C)C(*)=O"])
def test_relaxing_lowers_the_energy_and_keeps_the_chain(psmiles: str) -> None:
    unit = build_unit(psmiles)
    chain = grow_chain(unit, 4, num_conformations=2, seed=1)
    relaxed = relax_chain(unit.topology, 4, chain.heavy_ang, chain.hydrogen_ang, max_iterations=3_000)
    assert relaxed.reasons == ("", "")
    assert relaxed.converged.all()
    assert (relaxed.energy_after_kcal_mol < relaxed.energy_before_kcal_mol - 1).all()
    for before, after in ((chain.heavy_ang, relaxed.energy_before_kcal_mol), (relaxed.heavy_ang, relaxed.energy_after_kcal_mol)):
        hydrogens = chain.hydrogen_ang if before is chain.heavy_ang else relaxed.hydrogen_ang
        energies = chain_energy_kcal_mol(unit.topology, 4, before, hydrogens, environment=THETA, platform="Reference")
        np.testing.assert_allclose(energies, after, rtol=1e-4, atol=1e-3)
    for heavy, hydrogen in zip(relaxed.heavy_ang, relaxed.hydrogen_ang):
        assert check_chain(unit.topology, 4, heavy, hydrogen, handedness=chain.handedness).ok
    slots = unit_slots(unit.topology.key_atoms, unit.topology.num_atoms, 4)
    signs = measure_signs(relaxed.heavy_ang[0][slots], unit.topology.stereo_centres, unit.topology.stereo_neighbours)
    assert np.array_equal(signs, chain.handedness)


def test_relaxing_gives_the_same_bits_again_and_each_conformation_stands_alone() -> None:
    unit = build_unit("*CC(*)C(=O)OC")
    chain = grow_chain(unit, 5, num_conformations=2, seed=1)
    both, again = (relax_chain(unit.topology, 5, chain.heavy_ang, chain.hydrogen_ang, max_iterations=60) for _ in range(2))
    alone = relax_chain(unit.topology, 5, chain.heavy_ang[1], chain.hydrogen_ang[1], max_iterations=60)
    assert np.array_equal(both.heavy_ang, again.heavy_ang)
    assert np.array_equal(both.hydrogen_ang, again.hydrogen_ang)
    assert np.array_equal(both.heavy_ang[1:], alone.heavy_ang)
    assert not both.converged.any()
    assert both.heavy_ang.dtype == np.float32


def test_what_is_not_finite_is_reported_and_left_alone() -> None:
    unit = build_unit("*CCO*")
    chain = grow_chain(unit, 3, num_conformations=2)
    heavy = chain.heavy_ang.copy()
    heavy[0, 2, 1] = np.nan
    relaxed = relax_chain(unit.topology, 3, heavy, chain.hydrogen_ang, max_iterations=50)
    assert relaxed.reasons == ("not-finite", "")
    assert np.isnan(relaxed.energy_after_kcal_mol).tolist() == [True, False]
    assert np.array_equal(relaxed.heavy_ang[0], heavy[0], equal_nan=True)
    assert np.isnan(chain_energy_kcal_mol(unit.topology, 3, heavy, chain.hydrogen_ang)).tolist() == [True, False]


@pytest.mark.parametrize(("psmiles", "reason"), [("*CC(*)c1ccccc1", "wrong-chirality"), ("*C/C=C/C*", "turned-double-bond")])
def test_a_chain_that_became_another_is_noticed(psmiles: str, reason: str) -> None:
    topology, x_ang = build_unit(psmiles).topology, grown(psmiles, 3)
    checks = dynamics._Checks(topology, 3)
    assert checks.defect(x_ang, x_ang) == ""
    if reason == "wrong-chirality":
        assert checks.defect(x_ang, x_ang * [1, 1, -1]) == reason
        return
    mol = with_positions(chain_mol(topology, 3, hydrogens=True), x_ang)
    rdMolTransforms.SetDihedralDeg(mol.GetConformer(), *dynamics._stiff_torsions(topology, 3)[1].tolist(), 0.0)
    assert checks.defect(x_ang, mol.GetConformer().GetPositions()) in (reason, "clash", "extra-bond")
    turned = np.cos(torsions_rad(mol.GetConformer().GetPositions()[checks.double_bonds]))[:, 0] > 0
    assert turned.tolist() == [False, True, False]


@pytest.mark.parametrize(("psmiles", "count"), [("*C/C=C/C*", 3), ("*CC(*)=O", 0), ("*C=C*", 3), ("*CC*", 0), ("*CC(*)c1ccccc1", 0)])
def test_double_bonds_that_can_turn(psmiles: str, count: int) -> None:
    topology = build_unit(psmiles).topology
    torsions = dynamics._stiff_torsions(topology, 3)
    assert len(torsions) == count
    bonds = {tuple(bond) for bond in chain_bonds(topology, 3)[0].tolist()}
    for torsion in torsions.tolist():
        assert all(tuple(sorted(pair)) in bonds for pair in zip(torsion, torsion[1:]))
        assert len(set(torsion)) == 4


# ---- sampling


def test_the_same_seed_gives_the_same_bits() -> None:
    unit = build_unit("*CC(*)C")
    first, again, other = (sample_chain(unit, 5, num_conformations=2, seed=seed, settings=SHORT) for seed in (4, 4, 5))
    for name in ("heavy_ang", "hydrogen_ang", "energies_kcal_mol"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert first.info == again.info
    assert not np.array_equal(first.heavy_ang, other.heavy_ang)


def test_a_sample_is_whole_and_says_how_it_was_made() -> None:
    unit = build_unit("*CC(*)C#N")
    chain = sample_chain(unit, 4, num_conformations=3, tacticity="isotactic", seed=2, settings=SHORT)
    assert (chain.heavy_ang.shape, chain.heavy_ang.dtype) == ((3, 4 * 4 + 2, 3), np.dtype(np.float32))
    assert len(set(chain.handedness[:, 0].tolist())) == 1
    for heavy, hydrogen in zip(chain.heavy_ang, chain.hydrogen_ang):
        report = check_chain(unit.topology, 4, heavy, hydrogen, handedness=chain.handedness)
        assert report.reason in ("", "clash")
    energies = chain_energy_kcal_mol(unit.topology, 4, chain.heavy_ang, chain.hydrogen_ang, environment=THETA, platform="Reference")
    np.testing.assert_allclose(chain.energies_kcal_mol, energies, rtol=1e-4, atol=5e-3)
    assert chain.info["run_of_conformation"] == [0, 1, 2]
    assert [run["resolved"] for run in chain.info["runs"]] == [False] * 3
    assert chain.info["environment"] == "theta"
    np.testing.assert_allclose(chain.heavy_ang.mean(axis=1), 0, atol=1e-4)


def test_a_run_longer_than_its_memory_gives_several_conformations() -> None:
    """HOOOH at 1200 K turns within a fraction of a picosecond."""
    settings = MdSettings(temperature_kelvin=1200, run_ps=40, max_spacing_ps=40, anneal_ps=0, environment="vacuum")
    chain = sample_chain(build_unit("*O*"), 1, num_conformations=4, settings=settings)
    assert chain.info["run_of_conformation"] == [0, 0, 0, 0]
    (run,) = chain.info["runs"]
    assert run["resolved"]
    assert chain.info["spacing_ps"][0] == pytest.approx(40)
    assert chain.info["spacing_ps"][-1] == pytest.approx(2 * run["longest_ps"], rel=0.5)
    assert len(np.unique(chain.energies_kcal_mol)) == 4


def test_a_chain_that_breaks_is_replaced_and_three_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = build_unit("*CC*")
    whole = dynamics.Run.advance
    calls: list[int] = []

    def once(self: dynamics.Run, length_ps: float) -> tuple[float, str]:
        calls.append(1)
        return (0.0, "not-finite") if len(calls) == 1 else whole(self, length_ps)

    monkeypatch.setattr(dynamics.Run, "advance", once)
    chain = sample_chain(unit, 3, num_conformations=2, settings=SHORT)
    assert chain.info["broken"] == ["not-finite"]
    assert chain.info["run_of_conformation"] == [1, 2]
    monkeypatch.setattr(dynamics.Run, "advance", lambda self, length_ps: (0.0, "wrong-chirality"))
    with pytest.raises(PolymerError, match="3 chains broke") as caught:
        sample_chain(unit, 3, num_conformations=2, settings=SHORT)
    assert caught.value.reason == "broken-chain"


def test_numbers_that_blow_up_are_a_broken_chain() -> None:
    """A step of 4 fs with hydrogens of 1 Da at 2000 K cannot hold."""
    settings = MdSettings(timestep_fs=4, hydrogen_mass_da=1, temperature_kelvin=2000, anneal_ps=0, run_ps=4)
    with pytest.raises(PolymerError, match="lower anneal_kelvin or timestep_fs"):
        sample_chain(build_unit("*CC*"), 3, num_conformations=1, settings=settings)


def test_bad_requests() -> None:
    unit = build_unit("*CC*")
    chain = grow_chain(unit, 3, num_conformations=1)
    with pytest.raises(InputError, match="5 heavy atoms and 12 hydrogens"):
        relax_chain(unit.topology, 3, chain.heavy_ang[:, 1:], chain.hydrogen_ang)
    with pytest.raises(InputError, match="at least 1"):
        relax_chain(unit.topology, 0, chain.heavy_ang, chain.hydrogen_ang)
    with pytest.raises(InputError, match="platform 'HIP'"):
        relax_chain(unit.topology, 3, chain.heavy_ang, chain.hydrogen_ang, platform="HIP")
    with pytest.raises(PolymerError) as caught:
        sample_chain(build_unit("*CC(*)B(O)O"), 3, num_conformations=1, settings=SHORT)
    assert caught.value.reason == "no-force-field"
    fastest = relax_chain(unit.topology, 3, chain.heavy_ang, chain.hydrogen_ang, platform="auto", environment=Environment(cutoff_ang=10))
    assert fastest.reasons == ("",)
