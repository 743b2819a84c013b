"""Turning half a chain about a bond: which half, what stays, and that many turns sample what the Boltzmann integral says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_shards.chem.chain import chain_mol
from data_shards.chem.repeat_unit import build_unit
from data_shards.chem.stereo import measure_signs
from data_shards.conformers.dynamics import Run, sample_chain
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.mmff_system import THETA, VACUUM
from data_shards.conformers.simulation import Simulation
from data_shards.conformers.statistics import backbone_path, torsions_rad
from data_shards.conformers.thermal import turn
from data_shards.conformers.torsion_moves import TorsionMoves
from data_shards.recipe import MdSettings
from data_shards.schema import unit_slots

R_KCAL_MOL_K = 1.987204e-3
SHORT = MdSettings(anneal_ps=0.02, run_ps=0.04, minimise_iterations=20, torsion_moves_per_ps=200)


def grown(psmiles: str, num_units: int) -> np.ndarray:
    """(A, 3) of one chain as the builder leaves it."""
    chain = grow_chain(build_unit(psmiles), num_units, num_conformations=1, seed=0)
    return np.concatenate([chain.heavy_ang[0], chain.hydrogen_ang[0]]).astype(np.float64)


@pytest.mark.parametrize(
    ("psmiles", "num_units", "count"),
    [("*C*", 4, 3), ("*CC(*)(C)C(=O)OC", 3, 11), ("*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1", 2, 11), ("*C#C*", 3, 2), ("*C*", 1, 0)],
)
def test_the_smaller_side_of_every_rotatable_bond_turns(psmiles: str, num_units: int, count: int) -> None:
    topology = build_unit(psmiles).topology
    moves = TorsionMoves.of_chain(topology, num_units)
    assert len(moves.bonds) == count
    mol = chain_mol(topology, num_units, hydrogens=True)
    edges = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
    size = mol.GetNumAtoms()
    for k, bond in enumerate(moves.bonds.tolist()):
        rest = edges[~(np.sort(edges) == sorted(bond)).all(axis=1)]
        assert len(rest) == len(edges) - 1
        number, side = connected_components(coo_array((np.ones(len(rest)), tuple(rest.T)), shape=(size, size)), directed=False)
        assert number == 2
        turned = set(moves.turned_by(k).tolist())
        assert len(turned) + 1 <= size / 2
        assert any(turned == set(np.flatnonzero(side == side[end]).tolist()) - {end} for end in bond)


def test_a_turn_keeps_bonds_angles_handedness_and_velocities() -> None:
    unit = build_unit("*CC(*)(C)C(=O)OC")
    simulation = Simulation(unit.topology, 4, THETA)
    start = grown("*CC(*)(C)C(=O)OC", 4)
    simulation.place(start)
    simulation.context.setVelocitiesToTemperature(400, 1)
    speed = simulation.context.getState(getVelocities=True).getVelocities(asNumpy=True)._value.copy()
    moves = TorsionMoves.of_chain(unit.topology, 4)
    assert moves.run(simulation, 300, 2000.0, np.random.default_rng(0)) > 20
    x_ang = simulation.positions_ang()
    assert np.abs(x_ang - start).max() > 1.0
    np.testing.assert_array_equal(simulation.context.getState(getVelocities=True).getVelocities(asNumpy=True)._value, speed)
    mol = chain_mol(unit.topology, 4, hydrogens=True)
    near = [[other.GetIdx() for other in atom.GetNeighbors()] for atom in mol.GetAtoms()]
    pairs = np.array([(i, j) for i, about in enumerate(near) for j in about] + [p for about in near for p in product(about, about)])
    for x in (x_ang, start):
        np.testing.assert_allclose(
            np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1),
            np.linalg.norm((start[pairs[:, 0]] - start[pairs[:, 1]]), axis=1),
            atol=1e-9,
        )
    slots = unit_slots(unit.topology.key_atoms, unit.topology.num_atoms, 4)
    one, other = (measure_signs(x[slots], unit.topology.stereo_centres, unit.topology.stereo_neighbours) for x in (start, x_ang))
    np.testing.assert_array_equal(one, other)


def test_pentane_has_the_populations_of_the_integral() -> None:
    """Two torsions on rigid bonds and angles: Metropolis moves against the sum over a grid of the same energy."""
    topology, kelvin, bins = build_unit("*C*").topology, 500.0, 24
    path = backbone_path(topology, 3)
    simulation = Simulation(topology, 3, VACUUM, "Reference")
    x_ang = grown("*C*", 3)
    moves = TorsionMoves.of_chain(topology, 3)
    assert len(moves.bonds) == 2

    centres = (np.arange(bins) + 0.5) * 2 * np.pi / bins - np.pi
    start = torsions_rad(x_ang[path])
    where = [int(np.flatnonzero((np.sort(path[k : k + 2]) == np.sort(moves.bonds, axis=1)).all(axis=1))[0]) for k in (1, 2)]
    sense = []  # how the torsion answers to a turn of its bond
    for k, bond in enumerate(where):
        turned = turn(x_ang, *moves.bonds[bond].tolist(), moves.turned_by(bond), 0.1)
        change = np.angle(np.exp(1j * (torsions_rad(turned[path]) - start)))
        assert np.abs(change).round(6).tolist() == [0.1 * (j == k) for j in (0, 1)]
        sense.append(float(np.sign(change[k])))
    energies = np.empty((bins, bins))
    for i, j in product(range(bins), repeat=2):
        x = x_ang
        for k, angle in enumerate((centres[i], centres[j])):
            x = turn(x, *moves.bonds[where[k]].tolist(), moves.turned_by(where[k]), float(sense[k] * (angle - start[k])))
        simulation.place(x)
        energies[i, j] = simulation.energy_kcal_mol()
    weight = np.exp(-(energies - energies.min()) / (R_KCAL_MOL_K * kelvin))
    weight /= weight.sum()
    state = np.digitize(np.abs(centres), [2 * np.pi / 3]) * 1 + np.where(
        (np.abs(centres) < 2 * np.pi / 3) & (centres > 0), 2, 0
    )  # 1 t, 0 g-, 2 g+
    expected = np.array([[weight[np.ix_(state == a, state == b)].sum() for b in range(3)] for a in range(3)])

    rng, seen = np.random.default_rng(3), []
    simulation.place(x_ang)
    for _ in range(2_500):
        moves.run(simulation, 5, kelvin, rng)
        seen.append(torsions_rad(simulation.positions_ang()[path]))
    phi = np.array(seen)
    found_state = np.where(np.abs(phi) >= 2 * np.pi / 3, 1, np.where(phi > 0, 2, 0))
    found = np.array([[((found_state == (a, b)).all(axis=1)).mean() for b in range(3)] for a in range(3)])
    blocks = np.array([[[((part == (a, b)).all(axis=1)).mean() for b in range(3)] for a in range(3)] for part in np.split(found_state, 20)])
    error = blocks.std(axis=0) / np.sqrt(19)
    assert error.max() < 0.02
    np.testing.assert_array_less(np.abs(found - expected), 4 * error + 0.004)
    assert expected[1, 1] > 0.3  # trans trans, where a free rotor has a ninth
    assert expected[0, 2] < 0.03 < expected[0, 0]  # the pentane effect


def test_moves_are_counted_and_the_same_seed_gives_the_same_bits() -> None:
    unit = build_unit("*CCO*")
    one, other = (sample_chain(unit, 4, num_conformations=2, seed=3, settings=SHORT) for _ in range(2))
    np.testing.assert_array_equal(one.heavy_ang, other.heavy_ang)
    assert one.info["torsion_moves"] == other.info["torsion_moves"]
    assert one.info["torsion_moves"]["tried"] == 2 * round(0.06 * 200)  # two chains, cooling and run
    assert 0 < one.info["torsion_moves"]["taken"] < one.info["torsion_moves"]["tried"]
    without = sample_chain(unit, 4, num_conformations=2, seed=3, settings=SHORT.model_copy(update={"torsion_moves_per_ps": 0.0}))
    assert without.info["torsion_moves"] == {"tried": 0, "taken": 0}


def test_moves_forget_torsions_that_dynamics_keeps() -> None:
    """A fifth of a picosecond of polyethylene: with moves many torsions are in another well at its end, without hardly any."""
    unit = build_unit("*C*")
    start = grown("*C*", 14)
    changed = []
    for per_ps in (0.0, 3000.0):
        run = Run(unit.topology, 14, MdSettings(anneal_ps=0, run_ps=0.2, torsion_moves_per_ps=per_ps), 1)
        run.begin(start)
        run.advance(0.2)
        angles = [np.arctan2(*torsions[::-1]) for torsions in (run.torsions[0], run.torsions[-1])]
        changed.append(float(np.mean(np.cos(angles[1] - angles[0]) < 0.5)))
    assert changed[1] > changed[0] + 0.15
