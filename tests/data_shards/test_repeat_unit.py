"""Repeat units: star substitution, key atoms, stereocentres, frame and link atoms (T1, T2, T3, T5, T14 of the specification)."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem import repeat_unit
from data_shards.chem.capped import embed, positions
from data_shards.chem.repeat_unit import axis_sines, build_unit, substitute_stars
from data_shards.chem.stereo import measure_signs, sign_from_tag
from data_shards.errors import PolymerError

# P-SMILES -> (elements, key atoms, hydrogens, cap hydrogens, junction order) of the canonical unit, written by hand
UNITS = {
    "[*]Oc1ccc(CC([*])=O)cc1": ("C O C C C C C C O O C C", (0, 1, 7, 8), (0, 0, 0, 1, 1, 0, 2, 0, 0, 0, 1, 1), (3, 1), 1),
    "[*]CC([*])c1ccccc1": ("C C C C C C C C C C", (0, 1, 2, 3), (1, 2, 1, 2, 0, 1, 1, 1, 1, 1), (3, 3), 1),
    "[*]CC([*])(C)C(=O)OC": ("C C C C C C O O C", (0, 1, 2, 3), (0, 2, 0, 2, 3, 0, 0, 0, 3), (3, 3), 1),
    "[*]NC(=O)CCCCC([*])=O": ("C N C O C C C C C N O", (0, 1, 8, 9), (0, 1, 0, 0, 2, 2, 2, 2, 0, 1, 0), (3, 2), 1),
    "[*]C[*]": ("C C C", (0, 1, 1, 2), (2, 2, 2), (3, 3), 1),
    "[*]c1ccc([*])cc1": ("C C C C C C C C", (0, 1, 4, 5), (0, 0, 1, 1, 0, 0, 1, 1), (3, 3), 1),
    "[*]O[Si]([*])(C)C": ("Si O Si O C C", (0, 1, 2, 3), (0, 0, 0, 0, 3, 3), (3, 1), 1),
    "[*]C=C[*]": ("C C C C", (0, 1, 2, 3), (1, 1, 1, 1), (3, 3), 1),
    # a bond between two units may be double; the canonical unit is then cut at a single bond of the backbone where there is one
    "[*]=CC1CCC(C1)C=[*]": ("C C C C C C C C C", (0, 1, 6, 7), (1, 1, 1, 1, 2, 2, 1, 1, 2), (3, 3), 1),
    "*CC(*)c1ccccc1": ("C C C C C C C C C C", (0, 1, 2, 3), (1, 2, 1, 2, 0, 1, 1, 1, 1, 1), (3, 3), 1),
    "C(C([*])c1ccccc1)[*]": ("C C C C C C C C C C", (0, 1, 2, 3), (1, 2, 1, 2, 0, 1, 1, 1, 1, 1), (3, 3), 1),
}
TABLE = Chem.GetPeriodicTable()


@pytest.mark.parametrize("psmiles", UNITS)
def test_unit_equals_hand_written_table(psmiles: str) -> None:
    elements, key_atoms, hydrogens, caps, order = UNITS[psmiles]
    topology = build_unit(psmiles).topology
    assert [TABLE.GetElementSymbol(int(z)) for z in topology.elements] == elements.split()
    assert tuple(topology.key_atoms) == key_atoms
    assert tuple(topology.num_hydrogens) == hydrogens
    assert tuple(topology.cap_hydrogens) == caps
    assert topology.junction_order == order


@pytest.mark.parametrize("psmiles", UNITS)
def test_substituted_unit_is_a_molecule(psmiles: str) -> None:
    unit = build_unit(psmiles)
    star0, nbr0, nbr1, star1 = unit.topology.key_atoms
    assert unit.mol.GetNumAtoms() == unit.topology.num_atoms
    assert Chem.MolFromSmiles(Chem.MolToSmiles(unit.mol)) is not None
    assert unit.topology.elements[star0] == unit.topology.elements[nbr1]
    assert unit.topology.elements[star1] == unit.topology.elements[nbr0]
    bonds = unit.topology.bonds
    assert (bonds[:, 0] < bonds[:, 1]).all()
    assert (np.lexsort((bonds[:, 1], bonds[:, 0])) == np.arange(len(bonds))).all()


def test_a_junction_may_be_double() -> None:
    topology = build_unit("*=C1C=CC(=*)C=C1").topology
    assert topology.junction_order == 2
    assert tuple(topology.cap_hydrogens) == (2, 2)


@pytest.mark.parametrize("psmiles", ["[*]CC([*])(C)C(=O)OC", "[*]Oc1ccc(CC([*])=O)cc1", "*C[C@H](O)C(*)=O"])
def test_renumbered_atoms_give_the_same_unit(psmiles: str) -> None:
    mol = Chem.MolFromSmiles(psmiles)
    rng = np.random.default_rng(3)
    first = build_unit(psmiles).topology
    spellings = set()
    for _ in range(6):
        shuffled = Chem.RenumberAtoms(mol, rng.permutation(mol.GetNumAtoms()).tolist())
        spellings.add(Chem.MolToSmiles(shuffled, canonical=False))
        other = build_unit(Chem.MolToSmiles(shuffled, canonical=False)).topology
        assert other.psmiles == first.psmiles
        for name in ("elements", "bonds", "bond_orders", "key_atoms", "frame_atoms", "link_atoms", "stereo_specified"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))
    assert len(spellings) > 1


def test_any_element_can_stand_beside_a_star() -> None:
    for psmiles, symbols in (("*[Ge](C)(C)*", "Ge Ge Ge"), ("*O[Sn](C)(C)*", "Sn O"), ("*[Si](C)(C)[Si](*)(C)c1ccccc1", "Si Si")):
        topology = build_unit(psmiles).topology
        assert sorted(symbols.split())[0] in {TABLE.GetElementSymbol(int(z)) for z in topology.elements[topology.key_atoms]}


@pytest.mark.parametrize(
    ("psmiles", "centres"),
    [
        ("*CC*", 0),
        ("*CC(*)c1ccccc1", 1),
        ("*CC(*)(C)C", 0),
        ("*C(C)C(C)O*", 2),
        ("*C1CCC(*)CC1", 2),
        ("*OC(C)C(*)=O", 1),
        ("*CC(*)(F)Cl", 1),
    ],
)
def test_centres_are_those_of_a_long_chain(psmiles: str, centres: int) -> None:
    assert len(build_unit(psmiles).topology.stereo_centres) == centres


def test_marks_become_signs_of_triple_products() -> None:
    """The sign read from a chiral tag is the sign measured on an embedded molecule, for every order of the neighbours."""
    found = set()
    for smiles in ("C[C@H](O)Cl", "C[C@@H](O)Cl", "[C@](F)(Cl)(Br)C", "O[C@@](F)(Cl)Br", "[C@@H](F)(Cl)C", "C[S@](=O)CC", "C[S@@](=O)CC"):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        centre = next(atom for atom in mol.GetAtoms() if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED)
        triple = [other.GetIdx() for other in centre.GetNeighbors() if other.GetAtomicNum() > 1][:3]
        for ordered in (triple, triple[::-1]):
            (conformer,) = embed(mol, 1, 5)
            measured = measure_signs(positions(mol, [conformer]), np.array([centre.GetIdx()]), np.array([ordered]))
            assert sign_from_tag(centre, ordered) == measured.item()
            found.add(measured.item())
    assert found == {1, -1}


@pytest.mark.parametrize("psmiles", ["*C[C@H](O)C(*)=O", "*O[C@H](C)C(*)=O", "*O[C@@H](C)C(*)=O", "*C[C@](*)(C)C(=O)OC"])
def test_specified_centres_embed_with_their_sign(psmiles: str) -> None:
    unit = build_unit(psmiles)
    topology = unit.topology
    assert topology.stereo_specified.tolist() != [0]
    capped = unit.capped
    mol = capped.with_signs(topology.stereo_specified)
    x_ang = positions(mol, embed(mol, 3, 1))[:, capped.slots]
    assert (measure_signs(x_ang, topology.stereo_centres, topology.stereo_neighbours) == topology.stereo_specified).all()


def test_mirror_images_differ_where_the_chain_has_a_direction() -> None:
    left, right = (build_unit(f"*O[{mark}H](C)C(*)=O").topology for mark in ("C@", "C@@"))
    assert left.stereo_specified.tolist() == (-right.stereo_specified).tolist()


def test_rings_limit_the_configurations() -> None:
    """In norbornane the two bridgeheads have one relation; the two chain ends are free."""
    unit = build_unit("*C1CC2CC1CC2*")
    topology, patterns = unit.topology, unit.configurations
    assert len(topology.stereo_centres) == 4
    heads = [
        k
        for k, slot in enumerate(topology.stereo_centres)
        if not np.isin(topology.bonds[(topology.bonds == slot).any(1)], topology.key_atoms[[0, 3]]).any()
    ]
    relation = patterns[:, heads].prod(axis=1)
    assert len(heads) == 2
    assert (relation == relation[0]).all()
    assert len(np.unique(patterns, axis=0)) == len(patterns) > 1
    assert {tuple(row) for row in patterns.tolist()} == {tuple(row) for row in (-patterns).tolist()}


@pytest.mark.parametrize("psmiles", ["[*]CC([*])c1ccccc1", "[*]C[*]", "[*]NC(=O)CCCCC([*])=O"])
def test_frame_is_the_papers_where_it_can_be(psmiles: str) -> None:
    topology = build_unit(psmiles).topology
    assert topology.frame_atoms.tolist() == topology.key_atoms[[0, 2, 3]].tolist()


def test_collinear_frames_get_another_third_point() -> None:
    unit = build_unit("[*]c1ccc([*])cc1")
    topology = unit.topology
    assert topology.frame_atoms[2] not in topology.key_atoms
    capped = unit.capped
    x_ang = positions(capped.mol, embed(capped.mol, 3, 9))[:, capped.slots]
    star0, _, nbr1, star1 = topology.key_atoms
    sines = axis_sines(x_ang, int(nbr1), int(star0))
    assert sines[:, star1].max() < 0.2 < sines[:, topology.frame_atoms[2]].min()


def test_a_unit_on_one_line_keeps_the_papers_atoms() -> None:
    topology = build_unit("[*]C#C[*]").topology
    assert topology.frame_atoms.tolist() == topology.key_atoms[[0, 2, 3]].tolist()
    assert topology.link_atoms.tolist() == [1, 2]


def test_link_atoms_leave_the_axis() -> None:
    topology = build_unit("*C#Cc1ccc(*)cc1").topology
    capped = build_unit("*C#Cc1ccc(*)cc1").capped
    x_ang = positions(capped.mol, embed(capped.mol, 2, 9))[:, capped.slots]
    star0, nbr0, nbr1, star1 = topology.key_atoms.tolist()
    assert axis_sines(x_ang, nbr1, star1)[:, topology.link_atoms[0]].min() > 0.17
    assert axis_sines(x_ang, nbr0, star0)[:, topology.link_atoms[1]].min() > 0.17


@pytest.mark.parametrize(
    ("psmiles", "reason"),
    [
        ("*CC", "star-count"),
        ("*CC*.O", "fragments"),
        ("*C([2H])C*", "isotopic-hydrogen"),
        ("*=CC*", "junction-order"),
        ("*C(C", "unparsable"),
        ("*" + "C(F)" * 160 + "O*", "too-large"),
        ("*CC(N(C)(C)->[Fe])*", "bond-type"),
    ],
)
def test_unusable_polymers_say_why(psmiles: str, reason: str) -> None:
    with pytest.raises(PolymerError) as caught:
        build_unit(psmiles)
    assert caught.value.reason == reason
    assert psmiles in str(caught.value)


def test_too_large_names_the_bound() -> None:
    with pytest.raises(PolymerError, match=r"322 heavy atoms with its stars, the bound is 150; use a smaller unit"):
        build_unit("*" + "C(F)" * 159 + "CO*")


def test_a_unit_without_a_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_unit, "embed_heavy", lambda *_: np.zeros((0, 9, 3)))
    with pytest.raises(PolymerError, match="no three-dimensional shape of the repeat unit could be embedded"):
        repeat_unit._build.__wrapped__("*CC(*)CC")


def test_marks_that_no_shape_keeps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_unit, "measure_signs", lambda x, centres, _: np.zeros((len(x), len(centres)), dtype=np.int8))
    with pytest.raises(PolymerError, match="with the stereo marks of the P-SMILES could be embedded"):
        repeat_unit._build.__wrapped__("*C(C)C(C)O*")


def test_a_star_that_cannot_end_a_chain_is_refused() -> None:
    written = Chem.MolFromSmiles("*=CC(F)=*")
    written.GetAtomWithIdx(1).SetAtomicNum(9)  # a double bond to fluorine cannot be capped
    with pytest.raises(PolymerError, match="cannot end a chain with the bond to its neighbour"):
        substitute_stars(written, "*=CC(F)=*")
