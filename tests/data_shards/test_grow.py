"""Shapes of repeat units and chains grown from them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from data_shards.chem.repeat_unit import RepeatUnit, build_unit
from data_shards.chem.stereo import measure_signs
from data_shards.conformers import fragments, grow, junction, thermal
from data_shards.conformers.force_field import force_field, relax, with_positions
from data_shards.conformers.fragments import FragmentLibrary, fragment_library, seed_shapes
from data_shards.conformers.grow import GrownChain, grow_chain
from data_shards.conformers.junction import RT_KCAL_MOL, dihedral_rad, junction_ensemble
from data_shards.conformers.quality import check_chain
from data_shards.conformers.thermal import rotors, sample_torsions, turn
from data_shards.errors import InputError, PolymerError
from data_shards.schema import chain_hydrogens, unit_slots

COMMON = {
    "polyethylene": "*CC*",
    "polypropylene": "*CC(C)*",
    "polystyrene": "*CC(*)c1ccccc1",
    "PMMA": "*CC(*)(C)C(=O)OC",
    "PEO": "*CCO*",
    "PDMS": "*O[Si](*)(C)C",
    "PTFE": "*C(F)(F)C(*)(F)F",
    "PET": "*OCCOC(=O)c1ccc(C(*)=O)cc1",
    "nylon-6": "*NC(=O)CCCCC(*)=O",
    "Kapton": "*N1C(=O)c2cc3c(cc2C1=O)C(=O)N(c1ccc(Oc2ccc(*)cc2)cc1)C3=O",
    "polyacetylene": "*C=C*",
    "poly(p-phenylene)": "*c1ccc(*)cc1",
    "polyyne": "*C#C*",
    "poly(p-quinone methide)": "*=C1C=CC(=*)C=C1",
    "polynorbornane": "*C1CC2CC1CC2*",
}


@cache
def prepared(psmiles: str) -> tuple[RepeatUnit, FragmentLibrary]:
    unit = build_unit(psmiles)
    return unit, fragment_library(unit, num_conformers=8, num_thermal=4)


def whole(unit: RepeatUnit, library: FragmentLibrary, chain: GrownChain, k: int = 0) -> bool:
    report = check_chain(
        unit.topology,
        len(chain.handedness),
        chain.heavy_ang[k],
        chain.hydrogen_ang[k],
        handedness=chain.handedness,
        shapes_ang=library.heavy_ang,
    )
    assert report.ok, report
    return report.ok


@pytest.mark.parametrize("name", COMMON)
def test_common_polymers_grow_whole(name: str) -> None:
    unit, library = prepared(COMMON[name])
    chain = grow_chain(unit, 15, num_conformations=1, library=library, seed=2)
    assert whole(unit, library, chain)
    assert chain.heavy_ang.shape == (1, 15 * (unit.topology.num_atoms - 2) + 2, 3)
    assert chain.hydrogen_ang.shape == (1, chain_hydrogens(unit.topology, 15).sum(), 3)


@pytest.mark.parametrize("num_units", [1, 2, 3])
@pytest.mark.parametrize("name", ["polyethylene", "polystyrene", "PET"])
def test_short_chains(name: str, num_units: int) -> None:
    unit, library = prepared(COMMON[name])
    assert whole(unit, library, grow_chain(unit, num_units, num_conformations=1, library=library))


@pytest.mark.parametrize("tacticity", ["isotactic", "syndiotactic", "atactic"])
def test_tacticity_is_built(tacticity: str) -> None:
    unit, library = prepared("*CC(*)c1ccccc1")
    chain = grow_chain(unit, 12, num_conformations=2, tacticity=tacticity, seed=4, library=library)
    slots = unit_slots(unit.topology.key_atoms, unit.topology.num_atoms, 12)
    for x_ang in chain.heavy_ang:
        signs = measure_signs(x_ang[slots], unit.topology.stereo_centres, unit.topology.stereo_neighbours)
        np.testing.assert_array_equal(signs, chain.handedness)
    same = (chain.handedness[1:] == chain.handedness[:-1]).mean()
    assert {"isotactic": same == 1, "syndiotactic": same == 0, "atactic": 0 < same < 1}[tacticity]


def angles_rad(x: NDArray[np.floating], a: int, b: int, c: int) -> NDArray[np.float64]:
    first, second = x[..., a, :] - x[..., b, :], x[..., c, :] - x[..., b, :]
    cosine = (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    return np.arccos(cosine.clip(-1, 1))


@pytest.mark.parametrize("name", ["polystyrene", "PET", "PDMS", "nylon-6"])
def test_angles_are_right_on_both_sides_of_a_junction(name: str) -> None:
    unit, library = prepared(COMMON[name])
    topology = unit.topology
    chain = grow_chain(unit, 10, num_conformations=1, library=library)
    x_ang = chain.heavy_ang[0].astype(np.float64)[unit_slots(topology.key_atoms, topology.num_atoms, 10)]  # (N, n, 3)
    star0, nbr0, nbr1, star1 = topology.key_atoms.tolist()
    a, d = topology.link_atoms.tolist()
    for triple in ((a, nbr1, star1), (star0, nbr0, d)):
        built, known = angles_rad(x_ang, *triple), angles_rad(library.heavy_ang, *triple)
        assert np.abs(built[:, None] - known[None]).min(axis=1).max() < 5e-5
        assert np.ptp(known) > 2e-4  # the shapes differ, so the comparison can fail


def test_units_meet_at_the_dihedral_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, library = prepared("*CC(*)c1ccccc1")
    topology = unit.topology
    _, nbr0, nbr1, _ = topology.key_atoms.tolist()
    a, d = topology.link_atoms.tolist()
    draw = grow._Choice.draw
    monkeypatch.setattr(grow._Growth, "_contact_weights", lambda self, x, near: np.ones(len(x)))
    for wanted in (-2.5, -1.0, 0.3, 1.8):
        monkeypatch.setattr(grow._Choice, "draw", lambda *args, wanted=wanted: (draw(*args)[0], np.full(args[2], wanted)))
        chain = grow_chain(unit, 4, num_conformations=1, library=library)
        x = chain.heavy_ang[0].astype(np.float64)
        slots = unit_slots(topology.key_atoms, topology.num_atoms, 4)
        for i in range(3):
            found = dihedral_rad(x, (slots[i, a], slots[i, nbr1], slots[i + 1, nbr0], slots[i + 1, d]))
            assert found == pytest.approx(wanted, abs=1e-4)


def test_the_same_seed_gives_the_same_bits() -> None:
    unit, library = prepared("*CC(*)c1ccccc1")
    first, again = (grow_chain(unit, 6, num_conformations=2, seed=5, library=library) for _ in range(2))
    assert first.heavy_ang.tobytes() == again.heavy_ang.tobytes()
    assert first.hydrogen_ang.tobytes() == again.hydrogen_ang.tobytes()
    alone = grow_chain(unit, 6, num_conformations=1, seed=5, library=library)
    assert alone.heavy_ang[0].tobytes() == first.heavy_ang[0].tobytes()
    assert np.abs(first.heavy_ang[0] - first.heavy_ang[1]).max() > 1.0
    assert np.abs(first.heavy_ang - grow_chain(unit, 6, num_conformations=2, seed=6, library=library).heavy_ang).max() > 1.0


def test_a_library_is_the_same_bits_too() -> None:
    unit = build_unit("*CC(C)*")
    first, again, other = (fragment_library(unit, num_conformers=12, seed=seed) for seed in (1, 1, 2))
    for name in ("heavy_ang", "hydrogen_ang", "head_hydrogen_ang", "weights", "handedness"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.junction.probability.tobytes() == again.junction.probability.tobytes()
    assert first.heavy_ang.shape != other.heavy_ang.shape or not np.array_equal(first.heavy_ang, other.heavy_ang)


def test_both_hands_come_free_where_nothing_is_specified() -> None:
    _, library = prepared("*CC(*)c1ccccc1")
    assert set(library.handedness.ravel()) == {1, -1}
    right, left = library.heavy_ang[library.handedness[:, 0] == 1], library.heavy_ang[library.handedness[:, 0] == -1]
    np.testing.assert_allclose(right * [1, 1, -1], left)
    _, specified = prepared("*O[C@H](C)C(*)=O")
    assert len(set(specified.handedness.ravel())) == 1


def test_double_bonds_keep_their_marks() -> None:
    for psmiles, cis in (("*C/C=C\\C*", True), ("*C/C=C/C*", False), ("*CC=CC*", False)):
        unit, library = prepared(psmiles)
        double = unit.topology.bonds[unit.topology.bond_orders == 2][0]
        bonds = unit.topology.bonds
        outer = [int(next(k for k in bonds[(bonds == end).any(1)].ravel() if k not in double)) for end in double]
        for shape in library.heavy_ang:
            angle = dihedral_rad(shape, (outer[0], int(double[0]), int(double[1]), outer[1]))
            assert (abs(angle) < np.pi / 2) == cis


def test_steps_cost_the_same_however_long_the_chain() -> None:
    unit, library = prepared("*CC*")
    looked_at: list[int] = []
    near_units = grow._Growth._near_units

    class Counting(grow._Growth):
        def _near_units(self, start: NDArray[np.float64]) -> NDArray[np.int64]:
            units = near_units(self, start)
            looked_at.append(len(units))
            return units

    placement = grow.prepare(unit.topology, library)
    choice = grow._Choice.of(unit, library, np.zeros((500, 0), dtype=np.int8))
    Counting(placement, choice, 500, np.random.default_rng(0)).run("*C*")
    assert np.mean(looked_at[-100:]) < 40
    assert max(looked_at) < 120


def test_a_chain_that_cannot_avoid_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, library = prepared("*CC*")
    monkeypatch.setattr(grow._Growth, "_contact_weights", lambda self, x, near: np.full(len(x), float(near.tree.n == 0)))
    with pytest.raises(PolymerError, match=r"stopped at unit 1 of 8 after 240 dead ends; ask for a shorter chain") as caught:
        grow_chain(unit, 8, num_conformations=1, library=library)
    assert caught.value.reason == "no-self-avoiding-chain"


def test_bad_requests_name_value_and_bound() -> None:
    unit, library = prepared("*CC*")
    with pytest.raises(InputError, match="num_units 0 must be at least 1"):
        grow_chain(unit, 0, num_conformations=1, library=library)
    with pytest.raises(InputError, match="num_conformations 0 must be at least 1"):
        grow_chain(unit, 1, num_conformations=0, library=library)
    with pytest.raises(InputError, match="num_conformers 0 must be at least 1"):
        fragment_library(unit, num_conformers=0)


def test_units_without_force_field_or_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, _ = prepared("*CC(C)*")
    with monkeypatch.context() as patch:
        patch.setattr(fragments, "force_field", lambda _: None)
        with pytest.raises(PolymerError, match=r"neither MMFF94s nor UFF knows all of its atoms \(C\)") as caught:
            fragment_library(unit)
    assert caught.value.reason == "no-force-field"
    monkeypatch.setattr(fragments, "_starts", lambda unit, *_: unit.reference_ang[:0])
    with pytest.raises(PolymerError, match="no relaxed shape with the handedness") as caught:
        fragment_library(unit)
    assert caught.value.reason == "no-conformer"


def test_uff_stands_in_where_mmff_has_no_types() -> None:
    unit, library = prepared("*[Ge](C)(C)*")
    assert library.force_field == "UFF"
    chain = grow_chain(unit, 4, num_conformations=1, library=library)
    assert chain.info["force_field"] == "UFF"
    assert check_chain(unit.topology, 4, chain.heavy_ang[0], shapes_ang=library.heavy_ang).ok


def test_seed_shapes_are_relaxed_shapes_of_every_configuration() -> None:
    shapes, signs = seed_shapes("*CC(*)c1ccccc1", 6, 3)
    topology = build_unit("*CC(*)c1ccccc1").topology
    assert shapes.shape == (6, topology.num_atoms, 3)
    assert shapes.dtype == np.float32
    np.testing.assert_allclose(shapes.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_array_equal(measure_signs(shapes, topology.stereo_centres, topology.stereo_neighbours), signs)
    assert signs[:, 0].tolist() == [1, -1] * 3
    np.testing.assert_array_equal(seed_shapes("*CC(*)c1ccccc1", 6, 3)[0], shapes)
    star0, nbr0, nbr1, star1 = topology.key_atoms
    junctions = np.linalg.norm(shapes[:, [star0, star1]] - shapes[:, [nbr0, nbr1]], axis=-1)
    np.testing.assert_allclose(junctions, junctions[0, 0], atol=1e-5)
    np.testing.assert_allclose(junctions, 1.53, atol=0.05)
    assert seed_shapes("*C#C*", 3, 0)[0].shape == (3, 4, 3)
    with pytest.raises(InputError, match="num_conformers 0 must be at least 1"):
        seed_shapes("*CC*", 0, 0)


def test_link_dihedrals_of_polyethylene_are_trans_and_gauche() -> None:
    ensemble = prepared("*CC*")[1].junction
    profile = ensemble.probability[1, 1]
    trans, gauche = profile[[0, -1]].sum(), profile[[115, 116, 243, 244]].sum() / 2
    cis = profile[[179, 180]].sum()
    assert trans > 1.3 * gauche > 20 * cis
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-6)
    drawn = ensemble.draw(0, 0, (np.arange(20_000) + 0.5) / 20_000)
    counts = np.histogram(drawn, bins=36, range=(-np.pi, np.pi))[0] / len(drawn)
    np.testing.assert_allclose(counts, profile.reshape(36, 10).sum(1), atol=2e-4)


def test_link_dihedrals_turn_with_the_hand() -> None:
    ensemble = prepared("*CC(*)c1ccccc1")[1].junction
    assert ensemble.left >= 0 > ensemble.right
    right, left = ensemble.probability[2, 1], ensemble.probability[0, 1]
    np.testing.assert_allclose(right, left[::-1])
    assert np.abs(right - left).max() > 1e-3
    assert not ensemble.probability[1, 1].any()


def test_double_junctions_are_flat_and_alkynes_free() -> None:
    flat = prepared("*=C1C=CC(=*)C=C1")[1].junction.probability[1, 1]
    middle = np.abs((np.arange(360) + 0.5) - 180)
    assert flat[(middle < 20) | (middle > 160)].sum() > 0.99
    free = prepared("*C#C*")[1].junction
    assert free.force_field == "none"
    assert np.ptp(free.probability[1, 1]) == 0


def test_junction_without_force_field_turns_freely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junction, "force_field", lambda _: None)
    monkeypatch.setattr(junction, "_model_profile", junction._model_profile.__wrapped__)
    ensemble = junction_ensemble(build_unit("*CC*"))
    assert ensemble.force_field == "none"
    assert ensemble.probability[1, 1].sum() == pytest.approx(1.0)


def test_a_junction_is_the_same_bits_whatever_came_before() -> None:
    """Poly(vinyl esters) share a junction; so do methacrylates, whose models stand first or second in the cache."""
    names = ["*CC(*)(C)C(=O)OCC", "*CC(*)(C)C(=O)OC", "*CC(*)OC(C)=O", "*CC(*)OC(=O)CC", "*NC(=O)CCCCC(*)=O"]
    profiles = []
    for order in (names, names[::-1]):
        junction._model_profile.cache_clear()
        profiles.append({name: junction_ensemble(build_unit(name)).probability for name in order})
        assert junction._model_profile.cache_info().hits > 0
    for name in names:
        np.testing.assert_array_equal(profiles[0][name], profiles[1][name])


def test_turning_changes_one_dihedral_and_no_length() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCC"))
    x = np.random.default_rng(1).normal(size=(mol.GetNumAtoms(), 3))
    b, c, moved = next(entry for entry in rotors(mol) if {entry[0], entry[1]} == {1, 2})
    turned = turn(x, b, c, moved, 0.7)
    ends = (0, 1, 2, 3) if b == 1 else (3, 2, 1, 0)
    change = dihedral_rad(turned, ends) - dihedral_rad(x, ends)
    assert np.angle(np.exp(1j * (change - 0.7))) == pytest.approx(0, abs=1e-9)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        assert np.linalg.norm(turned[i] - turned[j]) == pytest.approx(np.linalg.norm(x[i] - x[j]))
    assert len(rotors(Chem.AddHs(Chem.MolFromSmiles("c1ccccc1")))) == 0
    assert len(rotors(Chem.AddHs(Chem.MolFromSmiles("CC#CC")))) == 0


def test_torsions_follow_boltzmann() -> None:
    """One rotor with a known curve: the share of trans butane equals the integral of its Boltzmann factor."""
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCC"))
    parameters = force_field(mol)
    assert parameters is not None
    from data_shards.chem.capped import embed, positions

    start, relaxed = relax(parameters, positions(mol, embed(mol, 1, 0)))
    b, c, moved = next(entry for entry in rotors(mol) if {entry[0], entry[1]} == {1, 2})
    states, energies = sample_torsions(parameters, start, relaxed, [(b, c, moved)], 300, RT_KCAL_MOL, np.random.default_rng(0))
    angles = np.array([dihedral_rad(x, (0, 1, 2, 3)) for x in states])
    first = dihedral_rad(start[0], (0, 1, 2, 3))
    grid = np.linspace(-np.pi, np.pi, 180, endpoint=False)
    sense = 1.0 if b == 1 else -1.0
    curve = []
    for angle in grid:
        kept = with_positions(mol, turn(start[0], b, c, moved, sense * sense * (angle - first)))
        curve.append(parameters.field(kept).CalcEnergy())
    weight = np.exp(-(np.array(curve) - min(curve)) / RT_KCAL_MOL)
    expected = weight[np.abs(grid) > 2 * np.pi / 3].sum() / weight.sum()
    assert (np.abs(angles) > 2 * np.pi / 3).mean() == pytest.approx(expected, abs=0.1)
    assert 0.3 < expected < 0.9
    assert energies.min() >= min(curve) - 1e-3


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*OCC(C)(C#N)CS(=O)(=O)CC[Si](C)(C)*"])
def test_walkers_count_what_rdkit_counts(psmiles: str) -> None:
    """After many turns the energy added up by the walk is that of RDKit's whole MMFF94s, however far atoms are and however they clash."""
    unit = build_unit(psmiles)
    parameters = force_field(unit.capped.mol)
    assert parameters is not None
    assert parameters.name == "MMFF94s"
    turning = rotors(unit.capped.mol)
    x, _ = relax(parameters, unit.reference_ang)
    rng = np.random.default_rng(0)
    order = rng.integers(len(turning), size=50).tolist()
    turns = rng.normal(0.0, 1.0, (50, len(x)))
    for tolerated in (np.full(turns.shape, np.inf), np.full(turns.shape, 5.0)):
        states, raised = thermal._walk_mmff(parameters, x, turning, order, turns, tolerated)
        assert raised.shape == (len(x), 50 // thermal.STEPS_PER_SAMPLE)
        whole = with_positions(unit.capped.mol, x[0])
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(whole, parameters.properties, nonBondedThresh=1e3)
        for start, walk, energies in zip(x, states, raised, strict=True):
            lowest = field.CalcEnergy(start.ravel().tolist())
            for state, energy in zip(walk, energies, strict=True):
                assert energy == pytest.approx(field.CalcEnergy(state.ravel().tolist()) - lowest, rel=1e-5, abs=1e-3)
    assert 0 < np.abs(raised).max() < 250.0  # of the walk that was bounded


def test_all_walkers_turn_as_one_does() -> None:
    unit = build_unit("*CC(*)C(=O)OCC")
    turning = rotors(unit.capped.mol)
    parameters = force_field(unit.capped.mol)
    assert parameters is not None
    angles = np.random.default_rng(1).normal(0.0, 1.0, len(unit.reference_ang))
    for part, rotor in zip(thermal._turnings(parameters, turning), turning, strict=True):
        turned = thermal._turn_all(unit.reference_ang, part, angles)
        for x, start, angle in zip(turned, unit.reference_ang, angles, strict=True):
            np.testing.assert_allclose(x, turn(start, *rotor, float(angle))[part.moved], atol=1e-10)


def test_junctions_of_halogenated_atoms_are_scanned_without_hydrogen() -> None:
    """With hydrogen in place of the chain a model of PTFE is CHF2CF2CF2CHF2, gauche nine times in ten, and no long chain can be grown."""
    model, dihedral = junction._model(build_unit("*C(*)(F)F"), 0, 0)
    assert Chem.MolToSmiles(Chem.RemoveHs(model)) == "FC(F)(F)C(F)(F)C(F)(F)C(F)(F)F"
    assert [model.GetAtomWithIdx(atom).GetAtomicNum() for atom in dihedral] == [6, 6, 6, 6]
    for psmiles, atoms in (("*CC(*)Cl", {1, 6, 17}), ("*CC(*)(F)F", {1, 6, 9})):
        model, _ = junction._model(build_unit(psmiles), 0, 0)
        assert {atom.GetAtomicNum() for atom in model.GetAtoms()} == atoms
    grown = grow_chain(build_unit("*C(*)(F)F"), 100, num_conformations=3, seed=1)
    assert max(grown.info["dead_ends"]) < 2500
