"""Quality checks of a chain: every defect is found, a whole chain passes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from data_shards.chem.repeat_unit import RepeatUnit, build_unit
from data_shards.chem.topology import rings
from data_shards.conformers.fragments import fragment_library
from data_shards.conformers.grow import GrownChain, grow_chain
from data_shards.conformers.quality import (
    QualityReport,
    _pierced,
    check_chain,
    clash_limits_ang,
    find_clashes,
    vdw_radii_ang,
    within_bonds,
)
from data_shards.recipe import QualityLimits
from data_shards.schema import chain_bonds, chain_elements, chain_hydrogens, unit_slots

NUM_UNITS = 6


@lru_cache(maxsize=1)
def polypropylene() -> tuple[RepeatUnit, GrownChain]:
    unit = build_unit("*CC(C)*")
    library = fragment_library(unit, num_conformers=4, num_thermal=2)
    return unit, grow_chain(unit, NUM_UNITS, num_conformations=1, library=library, tacticity="isotactic")


def checked(heavy: NDArray[np.float32], hydrogen: NDArray[np.float32] | None = None, sign: int = 1) -> QualityReport:
    unit, chain = polypropylene()
    return check_chain(unit.topology, NUM_UNITS, heavy, hydrogen, handedness=sign * chain.handedness)


def test_a_whole_chain_passes() -> None:
    _, chain = polypropylene()
    report = checked(chain.heavy_ang[0], chain.hydrogen_ang[0])
    assert report.ok
    assert report.reason == ""
    assert report.worst_bond_error_ang < 0.1
    assert checked(chain.heavy_ang[0]).ok


def test_not_a_number_is_found() -> None:
    _, chain = polypropylene()
    hydrogen = chain.hydrogen_ang[0].copy()
    hydrogen[3, 1] = np.nan
    assert checked(chain.heavy_ang[0], hydrogen).reason == "not-finite"


def test_a_broken_bond_is_found_on_heavy_atoms_and_hydrogens() -> None:
    _, chain = polypropylene()
    heavy = chain.heavy_ang[0].copy()
    heavy[len(heavy) // 2 :] += np.array([9.0, 0.0, 0.0], dtype=np.float32)
    report = checked(heavy)
    assert report.reason == "broken-bond"
    assert report.num_broken_bonds >= 1
    hydrogen = chain.hydrogen_ang[0].copy()
    hydrogen[5] += np.float32(40.0)
    assert checked(chain.heavy_ang[0], hydrogen).reason == "broken-bond"


def test_bonds_are_compared_with_reference_lengths() -> None:
    unit, chain = polypropylene()
    shapes = fragment_library(unit, num_conformers=4, num_thermal=2).heavy_ang
    assert check_chain(unit.topology, NUM_UNITS, chain.heavy_ang[0], shapes_ang=shapes).ok
    short = check_chain(unit.topology, NUM_UNITS, chain.heavy_ang[0], shapes_ang=0.87 * shapes)
    assert short.reason == "broken-bond"
    assert short.num_broken_bonds == len(chain.heavy_ang[0]) - 1
    wide = QualityLimits(bond_error_ang=0.3)
    assert check_chain(unit.topology, NUM_UNITS, chain.heavy_ang[0], shapes_ang=0.87 * shapes, limits=wide).ok


def test_angles_are_compared_with_the_shapes() -> None:
    unit = build_unit("*C*")
    straight = np.zeros((8, 3))
    straight[:, 0], straight[:, 1] = 1.275 * np.arange(8), 0.846 * (np.arange(8) % 2)
    tetrahedral = straight[None, :3]
    assert check_chain(unit.topology, 6, straight, shapes_ang=tetrahedral).ok
    bent = straight.copy()  # the last bond turned by 30 degrees in the plane of the zigzag
    turn = np.deg2rad(30)
    bent[7] = bent[6] + np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ (bent[7] - bent[6])
    report = check_chain(unit.topology, 6, bent, shapes_ang=tetrahedral)
    assert (report.reason, report.num_bad_angles) == ("bad-angle", 1)
    assert check_chain(unit.topology, 6, bent, shapes_ang=tetrahedral, limits=QualityLimits(angle_error_deg=31)).ok
    assert check_chain(unit.topology, 6, bent).ok  # without shapes only impossible angles count
    folded = straight.copy()
    folded[7] = folded[6] + 1.53 * np.array([np.cos(2.8), np.sin(2.8), 0.0])
    assert check_chain(unit.topology, 6, folded, limits=QualityLimits(extra_bond=0.1)).num_bad_angles == 1


def test_a_pierced_ring_is_found() -> None:
    """A chain pulled through one of its own phenyl rings, and one that lies beside it."""
    unit = build_unit("*CC(*)c1ccccc1")
    topology = unit.topology
    chain = grow_chain(unit, 8, num_conformations=1, library=fragment_library(unit, num_conformers=4, num_thermal=2))
    x = chain.heavy_ang[0].astype(np.float64)
    assert check_chain(topology, 8, x).num_pierced_rings == 0
    (ring,) = rings(topology, 12)
    assert len(ring) == 6
    bonded = {tuple(sorted(pair)) for pair in topology.bonds.tolist()}
    assert all(tuple(sorted(pair)) in bonded for pair in zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True))
    last = unit_slots(topology.key_atoms, topology.num_atoms, 8)[0][ring]
    normal = np.cross(x[last[1]] - x[last[0]], x[last[2]] - x[last[0]])
    normal /= np.linalg.norm(normal)
    tail = len(x) - 1
    before = next(int(sum(bond)) - tail for bond in chain_bonds(topology, 8)[0] if tail in bond)
    for aside, pierced in ((0.0, 1), (0.5, 1), (2.0, 0)):  # the ring's corners are 1.39 angstrom from its centre
        through = x.copy()
        centre = x[last].mean(axis=0) + aside * (x[last[0]] - x[last].mean(axis=0)) / 1.39
        through[[before, tail]] = centre + 0.75 * np.array([[-1.0], [1.0]]) * normal
        report = check_chain(topology, 8, through)
        assert report.num_pierced_rings == pierced, aside
    assert check_chain(topology, 8, through, limits=QualityLimits(max_ring_size=5)).num_pierced_rings == 0


def test_piercing_equals_a_count_over_all_rings_and_bonds() -> None:
    """Against the linking of each segment with each triangle, one at a time, by signed volumes."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 7, (90, 3))
    bonds = rng.integers(0, 90, (80, 2))
    bonds = bonds[bonds[:, 0] != bonds[:, 1]]
    found_rings = [np.stack([rng.permutation(90)[:size] for _ in range(4)]) for size in (3, 5, 6)]

    def volume(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]) -> float:
        return float(np.linalg.det(np.stack([b - a, c - a, d - a])))

    expected = 0
    for atoms in np.concatenate([np.pad(r, ((0, 0), (0, 6 - r.shape[1])), constant_values=-1) for r in found_rings]):
        ring = atoms[atoms >= 0]
        centre = x[ring].mean(axis=0)
        for i, j in bonds:
            if i in ring or j in ring:
                continue
            cut = False
            for a, b in zip(x[ring], np.roll(x[ring], -1, axis=0), strict=True):
                sides = np.sign([volume(x[i], centre, a, x[j]), volume(x[i], a, b, x[j]), volume(x[i], b, centre, x[j])])
                crosses = volume(centre, a, b, x[i]) * volume(centre, a, b, x[j]) < 0
                cut |= bool(crosses and abs(sides.sum()) == 3)
            expected += cut
    assert _pierced(x, bonds, found_rings) == expected
    assert expected > 20


def test_the_wrong_hand_is_found() -> None:
    _, chain = polypropylene()
    report = checked(chain.heavy_ang[0], sign=-1)
    assert report.reason == "wrong-chirality"
    assert report.num_wrong_centres == NUM_UNITS
    assert checked(chain.heavy_ang[0] * np.array([1, 1, -1], dtype=np.float32), sign=-1).ok


def test_a_specified_hand_is_held_without_asking() -> None:
    unit = build_unit("*O[C@H](C)C(*)=O")
    chain = grow_chain(unit, 3, num_conformations=1, library=fragment_library(unit, num_conformers=2, num_thermal=1))
    assert check_chain(unit.topology, 3, chain.heavy_ang[0]).ok
    assert check_chain(unit.topology, 3, -chain.heavy_ang[0]).reason == "wrong-chirality"


def test_a_clash_and_an_extra_bond_are_found() -> None:
    unit = build_unit("*C*")
    straight = np.zeros((8, 3), dtype=np.float32)
    straight[:, 0], straight[:, 1] = 1.275 * np.arange(8), 0.846 * (np.arange(8) % 2)
    assert check_chain(unit.topology, 6, straight).ok
    angle = 2 * np.pi * np.arange(8) / 6.6  # a coil: bonds of 1.53 angstrom, no extra bond, atoms one turn apart too close
    coil = np.stack([1.61 * np.cos(angle), 1.61 * np.sin(angle), 0.33 * np.arange(8)], axis=1)
    step = np.linalg.norm(coil[1] - coil[0])
    report = check_chain(unit.topology, 6, coil * 1.53 / step)
    assert report.reason == "clash"
    assert report.num_clashes > 0
    ring = np.stack([np.cos(angle), np.sin(angle), 0.01 * np.arange(8)], axis=1)
    report = check_chain(unit.topology, 6, ring * 1.53 / np.linalg.norm(ring[1] - ring[0]))
    assert report.num_extra_bonds > 0


def test_clashes_equal_a_count_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 9, (120, 3))
    elements = rng.choice([1, 6, 8, 17], 120)
    bonds = np.stack([np.arange(60), np.arange(60) + 1], axis=1)
    limits = clash_limits_ang(elements, elements)
    expected = [
        (i, j) for i in range(120) for j in range(i + 1, 120) if np.linalg.norm(x[i] - x[j]) < limits[i, j] and not (j <= 60 and j - i <= 3)
    ]
    found = find_clashes(x, vdw_radii_ang(elements), bonds, hydrogen=elements == 1)
    assert found.tolist() == [list(pair) for pair in expected]
    assert 20 < len(expected) < 2000
    assert len(find_clashes(x, vdw_radii_ang(elements), bonds)) > len(found)  # hydrogens may come closer


def test_pairs_held_by_bonds_are_those_of_the_graph() -> None:
    near = within_bonds(np.array([[0, 1], [1, 2], [2, 3], [3, 4], [1, 5]]), 7).toarray() > 0
    assert near[0].tolist() == [True, True, True, True, False, True, False]
    assert near[4].tolist() == [False, True, True, True, True, False, False]
    assert near[6].tolist() == [False] * 6 + [True]


@pytest.mark.parametrize(("first", "second", "limit"), [(6, 6, 2.55), (1, 1, 1.56), (1, 6, 1.885), (1, 8, 1.7875)])
def test_documented_limits(first: int, second: int, limit: float) -> None:
    assert clash_limits_ang(np.array([first]), np.array([second])).item() == pytest.approx(limit, abs=0.03)


def test_a_hydrogen_bond_is_no_clash() -> None:
    """A hydroxyl hydrogen may come within 1.5 angstrom of an oxygen; a hydrogen of a CH may not."""
    unit = build_unit("*CC(*)O")
    chain = grow_chain(
        unit, 12, num_conformations=1, library=fragment_library(unit, num_conformers=4, num_thermal=2), tacticity="isotactic"
    )
    heavy, hydrogen = chain.heavy_ang[0].astype(np.float64), chain.hydrogen_ang[0].astype(np.float64)
    assert check_chain(unit.topology, 12, heavy, hydrogen).ok
    elements, counts = chain_elements(unit.topology, 12), chain_hydrogens(unit.topology, 12)
    owner = np.repeat(np.arange(len(counts)), counts)
    oxygen = np.flatnonzero(elements == 8)
    place = {int(owner[k]): k for k in range(len(owner)) if elements[owner[k]] == 8}  # hydroxyl hydrogen of each oxygen
    first, second = int(oxygen[0]), int(oxygen[-1])
    for length, clashes in ((1.6, 0), (1.4, 1)):
        x, h = heavy.copy(), hydrogen.copy()
        away = np.array([500.0, 0.0, 0.0])  # an oxygen and its hydrogen far from all others, the last oxygen beside that hydrogen
        x[first], h[place[first]] = away, away + np.array([0.96, 0.0, 0.0])
        x[second] = away + np.array([0.96 + length, 0.0, 0.0])
        report = check_chain(unit.topology, 12, x, h)
        assert report.num_clashes == clashes, length
    strict = QualityLimits(hydrogen_bond_ang=5.0)
    x[second] = away + np.array([0.96 + 1.6, 0.0, 0.0])
    assert check_chain(unit.topology, 12, x, h, limits=strict).num_clashes == 1
