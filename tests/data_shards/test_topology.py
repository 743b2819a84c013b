"""Graph of a unit: torsions, rings, distances and backbone against RDKit and by hand (T16 of the specification)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem.repeat_unit import build_unit
from data_shards.chem.topology import backbone, graph_distances, ring_bonds, rotatable_bonds, smallest_ring_size

with (Path(__file__).parents[2] / "data_shards" / "sources" / "textbook.csv").open(newline="") as handle:
    TEXTBOOK = [row["psmiles"] for row in csv.DictReader(handle)]
POLYMERS = [
    "[*]Oc1ccc(CC([*])=O)cc1",
    "[*]C[*]",
    "[*]c1ccc([*])cc1",
    "[*]=CC1CCC(C1)C=[*]",
    "*C#Cc1ccc(*)cc1",
    "*CC(CC#N)C#CC*",
    "*CC=C=CC*",
    "*OC1C(CO)OC(*)C(O)C1O",
    *TEXTBOOK[3::14],
]


def expected_torsions(mol: Chem.Mol) -> dict[tuple[int, int], tuple[frozenset[int], frozenset[int]]]:
    """Rotatable bonds with the atoms of their two sides, from RDKit's fragments and hybridisation."""
    found = {}
    for bond in mol.GetBonds():
        i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        ends = mol.GetAtomWithIdx(i), mol.GetAtomWithIdx(j)
        if bond.IsInRing() or bond.GetBondType() != Chem.BondType.SINGLE:
            continue
        if any(end.GetHybridization() == Chem.HybridizationType.SP and end.GetDegree() == 2 for end in ends):
            continue
        cut = Chem.FragmentOnBonds(mol, [bond.GetIdx()], addDummies=False)
        sides = {i in part: frozenset(part) for part in Chem.GetMolFrags(cut)}
        if min(map(len, sides.values())) > 1:
            found[i, j] = sides[True], sides[False]
    return found


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_against_rdkit(psmiles: str) -> None:
    unit = build_unit(psmiles)
    topology, mol = unit.topology, unit.mol
    np.testing.assert_array_equal(graph_distances(topology), Chem.GetDistanceMatrix(mol))
    rings = mol.GetRingInfo()
    assert smallest_ring_size(topology).tolist() == [rings.MinAtomRingSize(k) for k in range(topology.num_atoms)]
    inside = [mol.GetBondBetweenAtoms(int(i), int(j)).IsInRing() for i, j in topology.bonds]
    assert ring_bonds(topology).tolist() == inside

    slots, moved = rotatable_bonds(topology)
    assert slots.dtype == np.int32
    assert moved.shape == (len(slots), topology.num_atoms)
    expected = expected_torsions(mol)
    assert {tuple(sorted(row)) for row in slots[:, 1:3].tolist()} == set(expected)
    for (a, b, c, d), turned in zip(slots.tolist(), moved, strict=True):
        sides = expected[min(b, c), max(b, c)]
        with_c = next(side for side in sides if c in side)
        assert set(np.flatnonzero(turned).tolist()) == with_c - {c}
        assert len(with_c) == min(map(len, sides))
        assert a == min({x.GetIdx() for x in mol.GetAtomWithIdx(b).GetNeighbors()} - {c})
        assert d == min({x.GetIdx() for x in mol.GetAtomWithIdx(c).GetNeighbors()} - {b})


@pytest.mark.parametrize("psmiles", ["*OCCOC(=O)c1ccc(cc1)C(*)=O", "*CC(*)(C)C(=O)OCCCC", "*Oc1ccc(cc1)S(=O)(=O)c1ccc(*)cc1"])
def test_turning_moves_one_dihedral_only(psmiles: str) -> None:
    unit = build_unit(psmiles)
    x_ang = unit.reference_ang[0, unit.capped.slots]
    slots, moved = rotatable_bonds(unit.topology)
    before = _dihedrals(x_ang, slots)
    for k, (_, b, c, _) in enumerate(slots):
        turned = x_ang.copy()
        turned[moved[k]] = _turn(x_ang[moved[k]], x_ang[c], x_ang[c] - x_ang[b], 0.7)
        lengths = [np.linalg.norm(x[unit.topology.bonds[:, 0]] - x[unit.topology.bonds[:, 1]], axis=1) for x in (x_ang, turned)]
        np.testing.assert_allclose(*lengths, atol=1e-9)
        change = np.angle(np.exp(1j * (_dihedrals(turned, slots) - before)))
        np.testing.assert_allclose(change, np.where(np.arange(len(slots)) == k, 0.7, 0.0), atol=1e-6)


def _turn(x: np.ndarray, origin: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    axis = axis / np.linalg.norm(axis)
    arms = x - origin
    along = np.outer(arms @ axis, axis)
    return origin + along + np.cos(angle) * (arms - along) + np.sin(angle) * np.cross(axis, arms)


def _dihedrals(x: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """IUPAC sign: positive when d is turned clockwise from a, seen along b -> c."""
    a, b, c, d = (x[slots[:, k]] for k in range(4))
    first, second = np.cross(b - a, c - b), np.cross(c - b, d - c)
    axis = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
    return np.arctan2((np.cross(first, second) * axis).sum(1), (first * second).sum(1))


@pytest.mark.parametrize(
    ("psmiles", "count"),
    [
        ("*C*", 0),
        ("*CC(*)c1ccccc1", 2),
        ("*C#C*", 0),
        ("*C#Cc1ccc(*)cc1", 0),
        ("*Oc1ccc(cc1)S(=O)(=O)c1ccc(*)cc1", 3),
        ("*OCCCCC(*)=O", 5),
        ("*CC(*)C#N", 1),
    ],
)
def test_number_of_torsions_by_hand(psmiles: str, count: int) -> None:
    assert len(rotatable_bonds(build_unit(psmiles).topology)[0]) == count


def test_backbone_by_hand() -> None:
    styrene = build_unit("*CC(*)c1ccccc1").topology
    assert np.flatnonzero(backbone(styrene)).tolist() == [0, 1, 2, 3]
    assert backbone(build_unit("*c1ccc(*)cc1").topology).all()  # both ways round the ring are equally short
    meta = build_unit("*c1cccc(*)c1").topology
    assert backbone(meta).sum() == 5


def test_order_is_deterministic_and_follows_the_chain() -> None:
    topology = build_unit("*OCCCCC(*)=O").topology
    slots, _ = rotatable_bonds(topology)
    hops = graph_distances(topology)[topology.key_atoms[0]].astype(int)
    depth = np.minimum(hops[slots[:, 1]], hops[slots[:, 2]])
    assert (np.diff(depth) >= 0).all()
    np.testing.assert_array_equal(slots, rotatable_bonds(topology)[0])
