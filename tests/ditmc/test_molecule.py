"""Molecular graphs as tensors: distances, configurations, chains and pieces of chains against RDKit and the shards' own order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from data_shards.chem.molecule import read_molecule
from data_shards.chem.repeat_unit import build_unit
from data_shards.schema import chain_bonds, chain_elements
from foundation.molecules import CIS, FAR, FEATURES, HOPS, TRANS, TURN_AFTER, TURN_BEFORE, Molecules, possible_classes
from tests.ditmc.given import SMILES, conditions, molecules_of


def bucket(hops: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(hops == 0, 0, np.where(hops > HOPS[-1], FAR, np.searchsorted(HOPS, hops) + 1)) * mask


def plain(classes: torch.Tensor) -> np.ndarray:
    """Distances without configurations, which lie at two and three bonds."""
    found = classes.numpy().copy()
    found[np.isin(found, (TURN_AFTER, TURN_BEFORE))] = 2
    found[np.isin(found, (CIS, TRANS))] = 3
    return found


def test_distances_are_those_of_rdkit() -> None:
    texts = [*SMILES, "C" * 60, "[Na+].[Cl-]"]
    molecules, mols = molecules_of(texts, hydrogens=False)
    for row, mol in enumerate(mols):
        n = mol.GetNumAtoms()
        hops = Chem.GetDistanceMatrix(mol)
        found = plain(molecules.classes[row])
        assert (found[:n, :n] == bucket(hops, np.ones_like(hops))).all(), texts[row]
        assert (found[n:] == 0).all()
        assert (found[:, n:] == 0).all()
    assert molecules.classes[-1, 0, 1] == FAR
    assert molecules.num_pieces == len(texts) + 1 + int((~molecules.mask).sum())


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 18, 24, 25, 64, 65, 300, 513, 514])
def test_few_atoms_cannot_be_far_apart(length: int) -> None:
    found = molecules_of(["C" * length], hydrogens=False)[0].classes.unique().tolist()
    possible = possible_classes(length)
    assert set(found) <= set(possible)
    hops = [k for k in possible if 0 < k < FAR]
    assert max(hops, default=0) == max((k for k in found if k < FAR), default=0), "and no class is listed in vain"


def test_long_distances_lie_in_a_few_classes() -> None:
    molecules, _ = molecules_of(["C" * 700], hydrogens=False)
    hops = np.abs(np.subtract.outer(np.arange(700), np.arange(700)))
    assert (molecules.classes[0].numpy() == bucket(hops, np.ones_like(hops))).all()
    assert (molecules.classes[0] == FAR).sum() == 2 * sum(range(1, 700 - 512))


@pytest.mark.parametrize("text", ["C[C@H](O)F", "C[C@@H](O)F", "N[C@@H](C)C(=O)O", "[C@](F)(Cl)(Br)I", "F[C@@](C)(Cl)Br", "C[S@](=O)CC"])
@pytest.mark.parametrize("hydrogens", [False, True])
def test_signs_are_those_of_a_conformer(text: str, hydrogens: bool) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(text))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    whole = mol if hydrogens else Chem.RemoveHs(mol)
    graph = read_molecule(whole)
    assert len(graph.signs) == 1
    x = whole.GetConformer().GetPositions()
    centre = next(atom.GetIdx() for atom in whole.GetAtoms() if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED)
    assert np.sign(np.linalg.det(x[graph.around[0]] - x[centre])) == graph.signs[0]


@pytest.mark.parametrize(("text", "side"), [("F/C=C/Cl", -1), ("F/C=C\\Cl", 1)])
def test_sides_of_a_double_bond(text: str, side: int) -> None:
    mol = Chem.MolFromSmiles(text)
    graph = read_molecule(mol)
    pairs = {tuple(sorted(pair)): int(own) for pair, own in zip(graph.across.tolist(), graph.sides, strict=True)}
    assert pairs == {(0, 3): side}
    full = read_molecule(Chem.AddHs(mol))
    assert len(full.sides) == 4
    assert sorted(full.sides.tolist()) == [-1, -1, 1, 1]
    molecules = Molecules.of_graphs([graph])
    assert molecules.classes[0, 0, 3] == molecules.classes[0, 3, 0] == (CIS if side > 0 else TRANS)


def test_numbering_changes_nothing_and_a_mirror_image_only_the_turns() -> None:
    mol = Chem.MolFromSmiles("C[C@H](O)c1ccc(F)cc1")
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms())
    other = Chem.RenumberAtoms(mol, order.tolist())
    one, two = Molecules.of_graphs([read_molecule(mol)]), Molecules.of_graphs([read_molecule(other)])
    place = torch.from_numpy(order)
    assert torch.equal(one.classes[0][place][:, place], two.classes[0])
    assert torch.equal(one.atom_feat[0][place], two.atom_feat[0])
    image = Molecules.of_graphs([read_molecule(Chem.MolFromSmiles("C[C@@H](O)c1ccc(F)cc1"))])
    swapped = torch.where(image.classes == TURN_AFTER, TURN_BEFORE, torch.where(image.classes == TURN_BEFORE, TURN_AFTER, image.classes))
    assert torch.equal(one.classes, swapped)
    assert (one.classes == TURN_AFTER).sum() == 3


@pytest.mark.parametrize(("psmiles", "num_units"), [("*CC(*)c1ccccc1", 3), ("*CO*", 1), ("*O[C@@H](C)C(=O)*", 4), ("*c1ccc(*)cc1", 5)])
def test_chains_are_the_molecules_of_the_shards(psmiles: str, num_units: int) -> None:
    unit = build_unit(psmiles).topology
    molecules, layout = Molecules.of_chains(conditions((psmiles, num_units), ("*CC(*)C", 2)))
    n = int(layout.heavy_ptr[1])
    elements = chain_elements(unit, num_units)
    assert molecules.mask[0].sum() == n == len(elements)
    assert (molecules.atom_feat[0, :n, 0].numpy() == elements).all()
    bonds, orders = chain_bonds(unit, num_units)
    width = molecules.mask.shape[1]
    mine = {
        (int(i), int(j)): int(order)
        for (i, j), order in zip((molecules.bond_atom.T).tolist(), molecules.bond_feat[:, 0], strict=True)
        if i < width and i < j
    }
    assert mine == {(min(i, j), max(i, j)): int(order) for (i, j), order in zip(bonds.tolist(), orders, strict=True)}
    assert molecules.num_pieces == 2 + int((~molecules.mask).sum())
    editable = Chem.RWMol()
    for element in elements:
        editable.AddAtom(Chem.Atom(int(element)))
    for i, j in bonds.tolist():
        editable.AddBond(i, j, Chem.BondType.SINGLE)
    hops = Chem.GetDistanceMatrix(editable)
    assert (plain(molecules.classes[0])[:n, :n] == bucket(hops, np.ones_like(hops))).all()
    assert (molecules.classes[0] == TURN_AFTER).sum() == 3 * num_units * len(unit.stereo_centres)


def test_features_are_a_class_each_and_strange_elements_stay_inside() -> None:
    molecules, mols = molecules_of([*SMILES, "[U]"], hydrogens=True)
    sizes = torch.tensor(list(FEATURES.values()))
    assert ((molecules.atom_feat >= 0) & (molecules.atom_feat < sizes)).all()
    assert [molecules.atom_feat[row, 0, 0].item() for row in range(len(mols))] == [mol.GetAtomWithIdx(0).GetAtomicNum() for mol in mols]


def test_repeated_molecules_are_the_same_molecules() -> None:
    once, _ = molecules_of(["CCO.CN", "C1CC1"], hydrogens=False)
    twice, other = once.repeated(2), molecules_of(["CCO.CN", "CCO.CN", "C1CC1", "C1CC1"], hydrogens=False)[0]
    assert torch.equal(twice.classes, other.classes)
    assert torch.equal(twice.atom_feat, other.atom_feat)
    assert set(map(tuple, twice.bond_atom.T.tolist())) == set(map(tuple, other.bond_atom.T.tolist()))
    same = twice.piece[:, None] == twice.piece
    assert torch.equal(same, other.piece[:, None] == other.piece)
    assert twice.num_pieces == other.num_pieces == int(twice.piece.max()) + 1
