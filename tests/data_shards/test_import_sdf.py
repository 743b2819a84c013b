"""Real chains cut into units: found whatever the order of atoms and the end groups, atom by atom; SD records with every defect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rdkit import Chem
from scipy.spatial import cKDTree

from data_shards.chem import decompose
from data_shards.chem.decompose import UNKNOWN, ChainGraph, find_units
from data_shards.chem.repeat_unit import RepeatUnit, build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.imported import Structure, structure_of
from data_shards.errors import PolymerError
from data_shards.schema import chain_bonds, chain_elements, chain_hydrogens
from data_shards.sources import sdf
from data_shards.sources.sdf import SdfSource, read_structure
from foundation.geometry.assembly import assemble_links, assemble_overlap, chain_coordinates, chain_layout
from foundation.geometry.assembly import decompose as to_units

POLYMERS = ["*CC*", "*C*", "*CCO*", "*CC(*)c1ccccc1", "*C=CCC*", "*c1ccc(O*)cc1", "*O[Si](*)(C)C", "*NC(=O)CCCCC(*)=O"]
FLUORINATED = "*CC(*)(C(F)(F)F)C(=O)OC(C(F)(F)F)(C(F)(F)F)C(F)(F)C(F)(F)C(F)(F)F"  # 20 equal pairs and triples of atoms in a unit


def graph_of(unit: RepeatUnit, num_units: int, *, hydrogens: bool = True, tacticity: str = "atactic", seed: int = 3) -> ChainGraph:
    """A grown chain as a graph, its atoms in an order that tells nothing."""
    topology = unit.topology
    chain = grow_chain(unit, num_units, num_conformations=1, tacticity=tacticity, seed=seed)
    bonds, counts = chain_bonds(topology, num_units)[0], chain_hydrogens(topology, num_units)
    elements, x_ang = chain_elements(topology, num_units), chain.heavy_ang[0].astype(np.float64)
    if hydrogens:
        owner = np.repeat(np.arange(len(counts)), counts)
        bonds = np.concatenate([bonds, np.stack([owner, len(counts) + np.arange(len(owner))], axis=1)])
        elements = np.concatenate([elements, np.ones(len(owner), dtype=np.uint8)])
        x_ang = np.concatenate([x_ang, chain.hydrogen_ang[0].astype(np.float64)])
    known = np.zeros(len(elements), dtype=np.int64)
    known[: len(counts)] = counts if hydrogens else UNKNOWN
    order = np.random.default_rng(seed).permutation(len(elements))
    return ChainGraph(elements[order], np.argsort(order)[bonds], known[order], x_ang[order])


def without(graph: ChainGraph, atoms: list[int]) -> ChainGraph:
    """The rest of a structure, hydrogen counts as they are left."""
    kept = np.setdiff1d(np.arange(len(graph.elements)), atoms)
    place = np.full(len(graph.elements), -1)
    place[kept] = np.arange(len(kept))
    bonds = place[graph.bonds]
    return ChainGraph(graph.elements[kept], bonds[(bonds >= 0).all(axis=1)], graph.hydrogens[kept], graph.x_ang[kept])


def positions(found: Structure) -> NDArray[np.float64]:
    return found.heavy_ang[0] + np.array(found.facts["origin_ang"])


def assert_whole(found: Structure, graph: ChainGraph) -> None:
    """Brute force: atoms, elements and bonds of the import are those of the structure, and no bond of an own atom is missing."""
    topology, num_units = found.topology, found.num_units
    away, place = cKDTree(graph.x_ang).query(positions(found))
    assert away.max() < 2e-4
    assert len(set(place.tolist())) == len(place)
    assert (graph.elements[place] == chain_elements(topology, num_units)).all()
    bonds = {frozenset(bond) for bond in place[chain_bonds(topology, num_units)[0]].tolist()}
    assert len(bonds) == num_units * (len(topology.bonds) - 1) + 1
    heavy = {frozenset(bond) for bond in graph.bonds.tolist() if (graph.elements[bond] > 1).all()}
    assert bonds <= heavy
    own = set(place[1:-1].tolist())
    assert {bond for bond in heavy if bond & own} <= bonds
    owner = place[np.repeat(np.arange(len(place)), chain_hydrogens(topology, num_units))]
    lengths = np.linalg.norm(found.hydrogen_ang[0] + np.array(found.facts["origin_ang"]) - graph.x_ang[owner], axis=1)
    assert ((lengths > 0.8) & (lengths < 1.7)).all()


def assert_assembles(structures: list[Structure]) -> None:
    """decompose -> assemble is the identity, for chains of one batch."""
    made = [(s.topology, s.num_units, torch.tensor(s.heavy_ang[0])) for s in structures]
    num = torch.tensor([n for _, n, _ in made])
    rows = [torch.tensor(np.array([getattr(t, name) for t, *_ in made])).long() for name in ("key_atoms", "frame_atoms", "link_atoms")]
    key, frame, link = (r.repeat_interleave(num, 0) for r in rows)
    atoms = torch.tensor([t.num_atoms for t, *_ in made]).repeat_interleave(num)
    start = torch.cat([torch.arange(n) == 0 for n in num.tolist()])
    layout = chain_layout(key, atoms, start, int(atoms.max()))
    x = torch.cat([x for *_, x in made])
    parts = to_units(x, layout, key, frame, link)
    origin = layout.heavy_ptr[:-1].repeat_interleave(layout.heavy_ptr.diff())
    built = chain_coordinates(assemble_overlap(parts.world_from_unit.rot, parts.x_unit_ang, key, start), layout)
    assert ((built - built[origin]) - (x - x[origin])).abs().max() < 1e-4
    linked = chain_coordinates(assemble_links(parts.x_unit_ang, key, link, start, parts.link_dihedral_rad)[0], layout)
    for first, last in zip(layout.heavy_ptr[:-1].tolist(), layout.heavy_ptr[1:].tolist(), strict=True):
        wanted = torch.cdist(x[first:last].double(), x[first:last].double())
        assert (torch.cdist(linked[first:last], linked[first:last]) - wanted).abs().max() < 1e-3  # through float32 dihedrals


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_a_chain_of_any_order_of_atoms_is_found_whole(psmiles: str) -> None:
    unit = build_unit(psmiles)
    found = []
    for hydrogens in (True, False):
        graph = graph_of(unit, 7, hydrogens=hydrogens)
        structure = structure_of(graph, unit, {})
        assert structure.num_units == 7
        assert structure.facts["heavy_atoms_left_out"] == 0
        assert structure.facts["hydrogens"] == ("given" if hydrogens else "added")
        assert structure.facts["hydrogens_added"] == (0 if hydrogens else structure.hydrogen_ang.shape[1])
        assert_whole(structure, graph)
        found.append(structure)
    assert_assembles(found)


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*NC(=O)CCCCC(*)=O", "*CCO*"])
def test_ends_that_are_no_whole_units_are_left_out(psmiles: str) -> None:
    """Atoms are taken away from one end, one after the other: whole units with a neighbour on either side stay."""
    unit = build_unit(psmiles)
    own = unit.topology.num_atoms - 2
    graph = graph_of(unit, 5, hydrogens=False)
    whole = find_units(graph, unit)
    star1 = int(unit.topology.key_atoms[3])
    last_unit = sorted(set(whole[-1].tolist()) - set(whole[-2].tolist()))
    cut = structure_of(without(graph, [int(whole[-1, star1])]), unit, {})
    assert cut.num_units >= 4
    assert_whole(cut, graph)
    shorter = structure_of(without(graph, last_unit), unit, {})
    assert shorter.num_units in (3, 4)
    remaining = len(graph.elements) - len(last_unit)
    assert shorter.facts["heavy_atoms_left_out"] == remaining - (shorter.num_units * own + 2)
    assert_whole(shorter, graph)


def test_caps_take_their_hydrogens_from_the_structure_and_one_is_added_where_the_chain_went_on() -> None:
    unit = build_unit("*CC(*)c1ccccc1")
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCC" + "CC(c1ccccc1)" * 3 + "CCCC"))
    x_ang = np.array(embedded(mol))
    elements = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    bonds = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
    hydrogens = np.array([sum(n.GetAtomicNum() == 1 for n in atom.GetNeighbors()) for atom in mol.GetAtoms()])
    found = structure_of(ChainGraph(elements, bonds, hydrogens, x_ang), unit, {}, energy_kcal_mol=-5.0)
    assert found.num_units == 3
    assert found.facts["heavy_atoms_left_out"] == 6
    assert found.facts["hydrogens"] == "given"
    assert found.facts["hydrogens_added"] == found.facts["hydrogens_added_at_caps"] == 2
    assert found.energies_kcal_mol is None
    assert found.facts["energy_of_record_kcal_mol"] == -5.0
    assert_whole(found, ChainGraph(elements, bonds, hydrogens, x_ang))
    away = cKDTree(x_ang[elements == 1]).query(found.hydrogen_ang[0] + np.array(found.facts["origin_ang"]))[0]
    assert sorted(away > 1e-3)[-3:] == [False, True, True]  # all hydrogens but two are the structure's own
    arms = np.concatenate([found.hydrogen_ang[0, :3], found.heavy_ang[0, 1:2]]) - found.heavy_ang[0, 0]
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    angles = np.degrees(np.arccos((arms @ arms.T)[np.triu_indices(4, 1)]))
    assert ((angles > 95) & (angles < 125)).all()  # a tetrahedron
    new = found.hydrogen_ang[0][away > 1e-3] + np.array(found.facts["origin_ang"])
    lengths, ends = cKDTree(x_ang[elements > 1]).query(new, k=2)  # the cap, and the carbon that was left out behind it
    i, j = np.flatnonzero(elements > 1)[ends].T
    assert lengths.sum(axis=1) == pytest.approx(np.linalg.norm(x_ang[i] - x_ang[j], axis=1), abs=1e-3)  # on the bond between the two
    assert lengths.max(axis=1) == pytest.approx([1.1, 1.1], abs=1e-3)


def embedded(mol: Chem.Mol) -> NDArray[np.float64]:
    """One conformer's positions."""
    from rdkit.Chem import rdDistGeom

    assert rdDistGeom.EmbedMolecule(mol, randomSeed=5) == 0
    return mol.GetConformer().GetPositions()


def test_equal_side_groups_cost_nothing() -> None:
    """Every CF3 can be laid in six ways and every CF2 in two; a wrong atom at one end makes the last unit fail in all of them."""
    unit = build_unit(FLUORINATED)
    elements = chain_elements(unit.topology, 4)
    x_ang = np.random.default_rng(0).normal(size=(len(elements), 3))
    graph = ChainGraph(elements, chain_bonds(unit.topology, 4)[0], chain_hydrogens(unit.topology, 4), x_ang)
    steps: Counter[int] = Counter()
    follow = decompose._Matcher._follow

    def counted(self: decompose._Matcher, *place: int) -> dict[int, int] | None:
        steps[0] += 1
        return follow(self, *place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompose._Matcher, "_follow", counted)
        whole = find_units(graph, unit)
        assert len(whole) == 4
        spoilt = graph.elements.copy()
        slot = int(np.flatnonzero(unit.topology.elements == 9)[-1])
        spoilt[whole[-1, slot]] = 17
        assert len(find_units(ChainGraph(spoilt, graph.bonds, graph.hydrogens, graph.x_ang), unit)) == 3
    assert steps[0] < 100 * len(graph.elements)


def test_the_number_of_steps_is_proportional_to_the_length() -> None:
    unit = build_unit("*CC(*)c1ccccc1")
    known = []
    for num_units in (10, 40):
        matcher = decompose._Matcher(graph_of(unit, num_units, hydrogens=False), unit.topology)
        assert len(matcher.units()) >= num_units
        known.append(len(matcher.known))
    assert known[1] < 4.5 * known[0]


def test_handedness_is_measured_and_marks_are_held_against_it() -> None:
    plain, left, right = (build_unit(p) for p in ("*OC(C)C(*)=O", "*O[C@@H](C)C(*)=O", "*O[C@H](C)C(*)=O"))
    graph = graph_of(left, 5)
    found = structure_of(graph, plain, {})
    assert found.num_units >= 4
    assert abs(int(found.handedness.sum())) == found.num_units
    assert structure_of(graph, left, {}).num_units == 5
    with pytest.raises(PolymerError, match="stereo") as caught:
        structure_of(graph, right, {})
    assert caught.value.reason == "wrong-chirality"
    mixed = structure_of(graph_of(plain, 12, seed=1), plain, {})
    assert set(mixed.handedness.ravel().tolist()) == {-1, 1}


def test_ring_centres_are_matched_the_way_the_marks_say() -> None:
    """The two sides of a cyclohexane ring are alike but for the handedness that they give its centres."""
    for psmiles in ("*C[C@H]1CC[C@@H](*)CC1", "*C[C@H]1CC[C@H](*)CC1"):
        unit = build_unit(psmiles)
        graph = graph_of(unit, 4, seed=2)
        found = structure_of(graph, unit, {})
        assert found.num_units == 4
        assert (found.handedness == unit.topology.stereo_specified).all()


def test_double_bonds_are_held_against_their_marks() -> None:
    trans, cis = build_unit("*C/C=C/C*"), build_unit("*C/C=C\\C*")
    graph = graph_of(trans, 5)
    assert structure_of(graph, trans, {}).num_units >= 4
    with pytest.raises(PolymerError) as caught:
        structure_of(graph, cis, {})
    assert caught.value.reason == "wrong-chirality"


def test_hydrogens_or_bond_lengths_tell_where_a_double_bond_is() -> None:
    """Polybutadiene is four carbons in a row; hydrogens fix the cut, and without them the lengths of bonds."""
    unit = build_unit("*C=CCC*")
    doubles = unit.topology.bonds[unit.topology.bond_orders == 2][0]
    for hydrogens in (True, False):
        graph = graph_of(unit, 6, hydrogens=hydrogens)
        slots = find_units(graph, unit)
        ends = graph.x_ang[slots[:, doubles]]
        assert (np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) < 1.40).all()


@pytest.mark.parametrize("other", ["*CC(C)*", "*CCO*", "*CC(*)C1CCCCC1", "*CC(*)c1ccncc1", "*CC(C)(*)c1ccccc1"])
def test_another_polymer_is_a_mismatch(other: str) -> None:
    with pytest.raises(PolymerError) as caught:
        structure_of(graph_of(build_unit("*CC(*)c1ccccc1"), 4), build_unit(other), {})
    assert caught.value.reason == "psmiles-mismatch"


def test_a_side_chain_of_ethylene_units_is_no_polyethylene() -> None:
    """A hexyl group holds whole units of *CC*; a molecule is a chain of units only where most of it is in them."""
    graph = graph_of(build_unit("*CC(*)CCCCCC"), 4)
    with pytest.raises(PolymerError, match="only") as caught:
        structure_of(graph, build_unit("*CC*"), {})
    assert caught.value.reason == "psmiles-mismatch"
    assert structure_of(graph, build_unit("*CC(*)CCCCCC"), {}).num_units == 4


def test_a_ring_of_units_gives_a_chain_in_which_no_atom_stands_twice() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("C1COCCOCCOCCOCCOCCOCCO1"))
    x_ang = embedded(mol)
    elements = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    bonds = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
    hydrogens = np.array([sum(n.GetAtomicNum() == 1 for n in atom.GetNeighbors()) for atom in mol.GetAtoms()])
    found = structure_of(ChainGraph(elements, bonds, hydrogens, x_ang), build_unit("*CCO*"), {})
    assert found.num_units == 6  # of seven: two atoms of the last one are the caps
    assert len(np.unique(found.heavy_ang[0].round(3), axis=0)) == 20


REAL = [("md_polymer_chains", 38, {13: 24, 25: 14}), ("polyverse_md_chains", 30, {2: 30}), ("huan2016_chain_units", 331, None)]


@pytest.mark.parametrize(("name", "count", "lengths"), REAL[:2])
def test_chains_of_molecular_dynamics_are_imported(name: str, count: int, lengths: dict[int, int], shared_data: Path) -> None:
    assert_imported(shared_data / "conformers" / f"{name}.sdf", count, lengths)


@pytest.mark.slow
def test_all_periods_of_crystals_are_imported(shared_data: Path) -> None:
    name, count, lengths = REAL[2]
    assert_imported(shared_data / "conformers" / f"{name}.sdf", count, lengths)


def assert_imported(path: Path, count: int, lengths: dict[int, int] | None) -> None:
    """Every record is kept, holds up to the assembly of units, and stands on the atoms of the file."""
    source = SdfSource(str(path))
    found = [read_structure(source.payload(row.number), row.psmiles) for row in source.rows()]
    assert len(found) == count
    assert_assembles(found)
    if lengths is not None:
        assert Counter(s.num_units for s in found) == lengths
        for row, structure in list(zip(source.rows(), found, strict=True))[:5]:
            mol = Chem.MolFromMolBlock(source.payload(row.number).decode(), removeHs=False)
            x_ang = mol.GetConformer().GetPositions()
            away, place = cKDTree(x_ang).query(positions(structure))
            assert away.max() < 2e-4
            assert [mol.GetAtomWithIdx(int(k)).GetAtomicNum() for k in place] == chain_elements(
                structure.topology, structure.num_units
            ).tolist()
            assert len(set(place.tolist())) == len(place)


def test_periods_of_crystals_are_closed_by_their_translation(shared_data: Path) -> None:
    """Every atom of a chain is an atom of the cell or its image one period away, and a whole period is there."""
    source = SdfSource(str(shared_data / "conformers" / "huan2016_chain_units.sdf"), limit=12)
    found = []
    for row in source.rows():
        payload = source.payload(row.number)
        structure = read_structure(payload, row.psmiles)
        found.append(structure)
        mol = Chem.MolFromMolBlock(payload.decode(), removeHs=False)
        heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
        assert structure.num_units * (structure.topology.num_atoms - 2) == len(heavy)
        text = sdf.properties_of(payload.decode())[1]["translation_A"]
        period = np.array([float(word) for word in text.split()])
        x_ang = mol.GetConformer().GetPositions()[heavy]
        images = np.concatenate([x_ang + k * period for k in (-2, -1, 0, 1, 2)])
        away, place = cKDTree(images).query(positions(structure))
        assert away.max() < 1e-3
        assert len(set((place[1:-1] % len(heavy)).tolist())) == len(heavy)
        elements = [mol.GetAtomWithIdx(heavy[k % len(heavy)]).GetAtomicNum() for k in place]
        assert elements == chain_elements(structure.topology, structure.num_units).tolist()
        assert structure.facts["period_ang"] == pytest.approx(np.linalg.norm(period), abs=1e-4)
    assert_assembles(found)
