"""Morgan counts of a repeat unit: known by hand, the same for longer chains and for every way of writing; similarities by definition."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from data_shards.chem.descriptors import table, unit_descriptors
from data_shards.chem.fingerprint import backbone_shape
from data_shards.chem.oligomer import heavy_chain
from data_shards.chem.repeat_unit import build_unit, unit_graph
from data_shards.progress import Silent
from finetune.fingerprints import BITS, SHAPE, Neighbours, features, morgan_counts

POLYMERS = ("*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*CCO*", "*NCCCCCC(*)=O", "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1", "*=CC=*", "*C#C*")
POLYMERS += ("*c1ccc(*)cc1", "*c1ccc(*)s1", "*O[Si](*)(C)C", "*CC(*)C(=O)[O-]", "*N1C(=O)c2ccc(cc2C1=O)-c1ccc2c(c1)C(=O)N(*)C2=O")


def test_counts_of_polyethylene_and_polystyrene_by_hand() -> None:
    """One atom in a chain of its like has one environment of each radius; a unit has as many of radius 0 as heavy atoms."""
    counts = morgan_counts(unit_graph("*CC*"))
    assert counts.sum() == 4
    assert sorted(counts[counts > 0].tolist()) == [1, 1, 1, 1]
    atoms = morgan_counts(unit_graph("*CC(*)c1ccccc1"), radius=0)
    assert sorted(atoms[atoms > 0].tolist()) == [1, 1, 1, 5], "CH2, CH, ipso carbon, five CH of the ring"


@pytest.mark.parametrize(
    ("psmiles", "expected"),
    [  # heavy atoms, atoms of the backbone, its share, its share in rings
        ("*CC*", [1, 1, 1, 0]),
        ("*CC(*)c1ccccc1", [8, 2, 1 / 4, 0]),
        ("*c1ccc(*)cc1", [6, 4, 2 / 3, 1]),
        ("*Oc1cccc(*)c1", [7, 4, 4 / 7, 3 / 4]),
        ("*NCCCCCC(*)=O", [8, 7, 7 / 8, 0]),
    ],
)
def test_backbones_by_hand(psmiles: str, expected: list[float]) -> None:
    assert backbone_shape(unit_graph(psmiles)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("psmiles", POLYMERS)
@pytest.mark.parametrize("radius", [1, 3])
def test_one_more_unit_adds_the_same_to_a_much_longer_chain(psmiles: str, radius: int) -> None:
    unit = unit_graph(psmiles)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=BITS)
    shorter, longer = (generator.GetCountFingerprintAsNumPy(heavy_chain(unit, n)).astype(int) for n in (16, 17))
    counts = morgan_counts(unit, radius)
    assert np.array_equal(counts, longer - shorter)
    assert counts.min() >= 0
    assert morgan_counts(unit, 0).sum() == unit.num_atoms - 2


@pytest.mark.parametrize(
    "ways",
    [
        ("*CCO*", "*COC*", "*OCC*", "*CCOCCO*"),
        ("*CC*", "*C*", "*CCCC*"),
        ("*CC(*)c1ccccc1", "*C(C*)c1ccccc1", "*CC(c1ccccc1)CC(*)c1ccccc1"),
        ("*=CC=*", "*C=C*", "*/C=C/*"),
        ("*N[C@@H](C)C(*)=O", "*N[C@H](C)C(*)=O", "*C(=O)C(C)N*"),
    ],
)
def test_every_way_of_writing_a_polymer_has_the_same_features(ways: tuple[str, ...]) -> None:
    made = features(ways, 0, Silent())
    rows = made.matrix()
    assert made.kept.tolist() == list(range(len(ways)))
    assert rows.shape == (len(ways), BITS + len(table()[0]) + len(SHAPE))
    assert all(np.array_equal(row, rows[0], equal_nan=True) for row in rows)


def test_a_graph_without_conformers_is_that_of_the_unit() -> None:
    for psmiles in POLYMERS[:6]:
        graph, unit = unit_graph(psmiles), build_unit(psmiles).topology
        assert Chem.MolToSmiles(heavy_chain(graph, 3)) == Chem.MolToSmiles(heavy_chain(unit, 3))
        assert np.array_equal(unit_descriptors(graph), unit_descriptors(unit), equal_nan=True)
        assert np.array_equal(morgan_counts(graph), morgan_counts(unit))


def test_polymers_that_have_no_features_are_listed() -> None:
    made = features(["*CC*", "CC", "*CC(*)C", "", "*C" + "C" * 160 + "O*"], 0, Silent())
    assert made.kept.tolist() == [0, 2]
    assert made.atoms.tolist() == [1, 3]
    assert [(one.index, one.psmiles[:2]) for one in made.refused] == [(1, "CC"), (3, ""), (4, "*C")]
    assert made.refused[0].reason.startswith("has 0 stars")
    assert "the bound is 150" in made.refused[2].reason
    nothing = features(["CC"], 0, Silent())
    assert nothing.matrix().shape == (0, BITS + len(table()[0]) + len(SHAPE))


@pytest.mark.dist
def test_processes_find_what_one_finds() -> None:
    many = [f"*{'C' * k}O*" for k in range(1, 80)] + ["CC"]
    one, two = (features(many, workers, Silent()) for workers in (0, 2))
    assert np.array_equal(one.kept, two.kept)
    assert np.array_equal(one.matrix(), two.matrix(), equal_nan=True)
    assert one.refused == two.refused


def test_similarity_is_that_of_the_definition() -> None:
    made = features(POLYMERS, 0, Silent())
    x = made.counts / made.atoms[:, None]
    found = Neighbours(made.counts, made.atoms).similarity(made.counts, made.atoms)
    for i in range(len(x)):
        for j in range(len(x)):
            assert found[i, j] == pytest.approx(np.minimum(x[i], x[j]).sum() / np.maximum(x[i], x[j]).sum(), abs=1e-12)
    assert found.diagonal() == pytest.approx(1.0)
    assert np.array_equal(found, found.T) or found == pytest.approx(found.T)


def test_nearest_polymers_come_first() -> None:
    known = features(["*CC(*)c1ccccc1", "*NCCCCCC(*)=O", "*CC*", "*CC(*)C"], 0, Silent())
    asked = features(["*NCCCCCCNC(=O)CCCCC(*)=O", "*CC(*)c1ccc(C)cc1", "*CCCC*"], 0, Silent())
    order, similarity = Neighbours(known.counts, known.atoms).nearest(asked.counts, asked.atoms, 2)
    assert order[:, 0].tolist() == [1, 0, 2]
    assert similarity[2, 0] == pytest.approx(1.0)
    assert similarity[0, 0] > 0.8, "nylon-6,6 and nylon-6 are one composition"
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert Neighbours(known.counts, known.atoms).nearest(asked.counts, asked.atoms, 9)[0].shape == (3, 4)
