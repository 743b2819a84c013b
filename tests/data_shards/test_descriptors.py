"""Descriptors of a repeat unit: sums known by hand, one value for every way of writing, and what RDKit cannot say."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit.Chem import Descriptors

from data_shards.chem.descriptors import LARGEST, standardised_descriptors, table, unit_descriptors
from data_shards.chem.repeat_unit import build_unit
from foundation.data.collate import build_batch
from tests.polyconfm.chains import sample


def of(psmiles: str, *names: str) -> list[float]:
    return unit_descriptors(build_unit(psmiles).topology, names or None).tolist()


@pytest.mark.parametrize(
    ("psmiles", "expected"),
    [  # mass, polar surface, hydrogen-bond acceptors and donors, rings, rotatable bonds; of one unit, over its heavy atoms
        ("*CC*", [28.054 / 2, 0, 0, 0, 0, 1]),
        ("*CCO*", [44.053 / 3, 9.23 / 3, 1 / 3, 0, 0, 1]),
        ("*CC(*)c1ccccc1", [104.152 / 8, 0, 0, 0, 1 / 8, 3 / 8]),
        ("*NCCCCCC(*)=O", [113.160 / 8, 29.1 / 8, 1 / 8, 1 / 8, 0, 6 / 8]),
    ],
)
def test_sums_of_textbook_polymers(psmiles: str, expected: list[float]) -> None:
    names = ("MolWt", "TPSA", "NumHAcceptors", "NumHDonors", "RingCount", "NumRotatableBonds")
    assert of(psmiles, *names) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("ways", [("*CCO*", "*COC*", "*OCC*", "*CCOCCO*"), ("*CC(*)c1ccccc1", "*C(C*)c1ccccc1", "c1(C(*)C*)ccccc1")])
def test_every_way_of_writing_a_polymer_has_the_same_descriptors(ways: tuple[str, ...]) -> None:
    first, *others = (of(psmiles) for psmiles in ways)
    assert all(other == first for other in others)
    assert first != of("*CC(*)C")


def test_one_more_unit_adds_the_same_to_a_longer_chain() -> None:
    """Which makes them descriptors of the unit: those of atoms and their neighbours to rounding, charges and indices nearly."""
    from data_shards.chem.oligomer import heavy_chain

    for psmiles in ("*CC(*)c1ccccc1", "*NCCCCCC(*)=O", "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1"):
        unit = build_unit(psmiles).topology
        known = dict(Descriptors.descList)
        for name in ("MolWt", "TPSA", "MolLogP", "MolMR", "Chi1v", "LabuteASA", "SMR_VSA7", "SlogP_VSA6", "fr_benzene", "fr_amide"):
            values = [known[name](_read(heavy_chain(unit, num))) for num in (5, 6)]
            assert of(psmiles, name)[0] == pytest.approx((values[1] - values[0]) / (unit.num_atoms - 2), abs=1e-6), (psmiles, name)


def _read(chain: object) -> object:
    from rdkit import Chem

    return Chem.MolFromSmiles(Chem.MolToSmiles(chain))


def test_the_table_names_descriptors_of_this_rdkit_and_its_scales_are_those_of_polymers() -> None:
    names, mean, deviation = table()
    assert len(set(names)) == len(names) == len(mean) == len(deviation)
    assert set(names) <= {name for name, _ in Descriptors.descList}
    assert (deviation > 0).all()
    assert np.isfinite(mean).all()
    strings = ["*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*CC(*)Cl", "*OCC*", "*CC(*)(C)C(=O)OC", "*NCCCCCC(*)=O", "*c1ccc(*)cc1", "*CC(*)C#N"]
    strings += ["*Oc1ccc(CC(*)=O)cc1", "*CC(*)OC(C)=O", "*CC=CC*", "*Oc1ccc(cc1)S(=O)(=O)c1ccc(*)cc1", "*NC(=O)Nc1ccc(*)cc1"]
    x = np.stack([standardised_descriptors(build_unit(psmiles).topology) for psmiles in strings])
    assert x.dtype == np.float32
    assert np.abs(x).max() <= LARGEST
    assert (np.abs(x.mean(0)) < 2.5).all()
    assert 0.5 < np.median(x.std(0)[x.std(0) > 0]) < 2.0


def test_what_rdkit_cannot_say_is_missing_and_the_rest_is_there() -> None:
    names = table()[0]
    found = dict(zip(names, standardised_descriptors(build_unit("*[Sn](C)(C)CC*").topology), strict=True))
    assert np.isnan(found["PEOE_VSA1"])  # no charge model for tin
    assert np.isfinite(found["MolWt"])


def test_a_batch_has_them_when_asked_and_none_otherwise() -> None:
    samples = [sample("*CC(*)c1ccccc1", 5), sample("*C*", 6)]
    asked, plain = (build_batch(samples, [0, 1], [3, 4], targets=wanted) for wanted in (("descriptors",), ()))
    assert plain.descriptors is None
    assert asked.descriptors is not None
    assert asked.levels is None
    for row, one in zip(asked.descriptors.numpy(), samples, strict=True):
        np.testing.assert_array_equal(row, standardised_descriptors(one.topology))


def test_numbers_counted_here_are_rdkits() -> None:
    """Connectivity indices, valence electrons and electrotopological states, on rings of three and four too, which RDKit counts oddly."""
    from rdkit import Chem
    from rdkit.Chem import Descriptors
    from rdkit.Chem.EState import EState

    from data_shards.chem.graph_indices import e_states, graph_indices

    known = dict(Descriptors.descList)
    for smiles in (
        "C1CC1", "CC1CC1", "C1CCC1", "CC1CCC1C", "C1CC12CC2", "C1CC1(F)C1CC1", "C12C3C4C1C5C2C3C45", "C12CC1C2", "CCCCC", "C",
        "OC(=O)c1ccc(cc1)C(=O)OCCO", "C[Si](C)(C)O[Ge](C)(C)C", "CP(=O)(O)OCl", "C[N+](C)(C)CC(=O)[O-]", "FC(F)(F)C(Br)I", "C[Sn](C)(C)C",
        "[Na+].[Cl-]", "O=S(=O)(c1ccc(Oc2ccc(C(C)(C)c3ccc(O)cc3)cc2)cc1)c1ccc(O)cc1", 10 * "CC(c1ccccc1)" + "C" + 10 * "CC(Cl)",
    ):  # fmt: skip
        mol = Chem.MolFromSmiles(smiles)
        found = graph_indices(mol)
        assert len(found) == 13
        for name, value in found.items():
            assert value == pytest.approx(known[name](mol), rel=1e-12, abs=1e-12), (smiles, name)
        np.testing.assert_allclose(e_states(mol), EState.EStateIndices(mol, force=True), atol=1e-10, err_msg=smiles)


def test_states_are_where_rdkit_looks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdkit.Chem.EState import EState

    from data_shards.chem import descriptors
    from data_shards.chem.repeat_unit import unit_graph

    units = [unit_graph(p) for p in ("*CC(*)c1ccccc1", "*CC(F)(F)*", "*OS(=O)(=O)c1ccc(*)cc1", "*NCCCCCC(*)=O", "*[Si](C)(C)O*")]
    ours = [descriptors.unit_descriptors(unit) for unit in units]
    monkeypatch.setattr(descriptors, "e_states", lambda mol: EState.EStateIndices(mol, force=True))
    for unit, own in zip(units, ours, strict=True):
        np.testing.assert_allclose(own, descriptors.unit_descriptors(unit), atol=1e-12)
    monkeypatch.setattr(descriptors, "e_states", lambda mol: np.zeros(mol.GetNumAtoms()))
    assert not np.allclose(ours[0], descriptors.unit_descriptors(units[0]))  # RDKit does read them
