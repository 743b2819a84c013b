"""Metrics against hand-made cases, loops and RDKit; rigid motion changes none of them."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds, rdForceFieldHelpers, rdMolAlign, rdMolTransforms

from data_shards.chem.chain import chain_mol
from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.quality import COVALENT_FACTOR, bonds_from_distances, connectivity, covalent_radii_ang
from data_shards.schema import PolymerSample
from foundation import units
from foundation.evaluation import metrics
from foundation.evaluation.chains import ChainTables, angle_triples, assemble_chains, chain_tables
from foundation.evaluation.measure import Attempts, Reference, handedness, measure, reference_of
from foundation.evaluation.mmff import equilibrium
from tests.sampling.conftest import FIXTURES, chain_of, request_of


def tables_of(psmiles: str, num_units: int) -> ChainTables:
    return chain_tables(request_of(psmiles, num_units).topology, num_units)


def grown_sample(psmiles: str, num_units: int = 6, num: int = 3, seed: int = 0) -> PolymerSample:
    unit = build_unit(psmiles)
    chain = grow_chain(unit, num_units, num_conformations=num, seed=seed)
    return PolymerSample(f"{seed:012x}", unit.topology, num_units, "atactic", seed, "grow", chain.heavy_ang, chain.hydrogen_ang, None)


@pytest.fixture(scope="module")
def styrene() -> Reference:
    return reference_of(grown_sample("*CC(*)c1ccccc1"))


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def rdkit_mol(psmiles: str, num_units: int, x_ang: np.ndarray) -> Chem.Mol:
    mol = chain_mol(request_of(psmiles, num_units).topology, num_units)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.ascontiguousarray(x_ang))
    mol.AddConformer(conformer)
    return mol


# ------------------------------------------------------------------------------------------------------------------- index tables


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_angles_are_those_of_the_molecular_graph(psmiles: str) -> None:
    tables = tables_of(psmiles, 3)
    mol = chain_mol(tables.topology, 3)
    pattern = Chem.MolFromSmarts("[*]~[*]~[*]")
    found = {(min(i, k), c, max(i, k)) for i, c, k in mol.GetSubstructMatches(pattern, uniquify=False, maxMatches=100_000)}
    assert set(map(tuple, tables.angles.tolist())) == found
    assert len(tables.angles) == len(found)


def test_angles_of_a_star_graph() -> None:
    bonds = np.array([[0, 1], [0, 2], [0, 3], [3, 4]])
    assert angle_triples(bonds, 5).tolist() == [[1, 0, 2], [1, 0, 3], [2, 0, 3], [0, 3, 4]]


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_classes_join_what_repeats_and_separate_what_differs(psmiles: str) -> None:
    """All bonds of a class have one length in a chain of identical units, and inner units have the same classes."""
    request = request_of(psmiles, 7, "isotactic")
    tables = chain_tables(request.topology, 7)
    shape = chain_units(request)
    x_ang = assemble_chains(request.topology, shape, np.full((1, 6), 2.0))
    lengths = metrics.distances(x_ang, tables.bonds)
    assert np.abs(lengths - metrics.class_means(lengths, tables.bond_class)).max() < 1e-9
    angles = metrics.angles_deg(x_ang, tables.angles)
    assert np.abs(angles - metrics.class_means(angles, tables.angle_class)).max() < 1e-6
    sizes = np.bincount(np.unique(tables.bond_class, return_inverse=True)[1])
    assert set(sizes.tolist()) <= {1, 6, 7}, "bonds inside a unit seven times, junctions six, caps once"


def chain_units(request) -> np.ndarray:
    from tests.sampling.conftest import library

    shapes, signs = library(request.topology.psmiles)
    same = (signs == request.handedness[0]).all(axis=1).argmax()
    return np.broadcast_to(shapes[same], (1, request.num_units, *shapes[same].shape)).copy()


def test_links_and_torsions_are_the_dihedrals_that_assembly_was_given() -> None:
    request = request_of("*CC(*)c1ccccc1", 6)
    tables = chain_tables(request.topology, 6)
    given = np.random.default_rng(0).uniform(-np.pi, np.pi, (1, 5))
    x_ang = assemble_chains(request.topology, chain_units(request), given)
    assert np.abs(metrics.dihedrals_rad(x_ang, tables.links) - given).max() < 1e-9
    mol = rdkit_mol("*CC(*)c1ccccc1", 6, x_ang[0])
    turned = metrics.dihedrals_rad(x_ang, tables.torsions)[0]  # (N, T)
    assert turned.shape == (6, 2)
    for quad, value in zip(tables.torsions.reshape(-1, 4).tolist(), turned.ravel(), strict=True):
        assert abs(rdMolTransforms.GetDihedralRad(mol.GetConformer(), *quad) - value) < 1e-6


# --------------------------------------------------------------------------------------------------------------------------- MMFF94


@pytest.mark.parametrize("psmiles", FIXTURES)
@pytest.mark.parametrize("num_units", [1, 2, 4, 5, 9])
def test_equilibrium_values_are_those_of_the_whole_chain(psmiles: str, num_units: int) -> None:
    tables = tables_of(psmiles, num_units)
    rest = equilibrium(tables)
    mol = chain_mol(tables.topology, num_units, hydrogens=True)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    assert rest.bond_ang.tolist() == [properties.GetMMFFBondStretchParams(mol, *b)[2] for b in tables.bonds.tolist()]
    assert rest.angle_deg.tolist() == [properties.GetMMFFAngleBendParams(mol, *a)[2] for a in tables.angles.tolist()]


def test_atoms_without_mmff_types_leave_the_metric_out() -> None:
    tables = tables_of("*CC(*)[Se]C", 5)
    rest = equilibrium(tables)
    assert np.isnan(rest.bond_ang).all()
    assert rest.bond_ang.shape == (len(tables.bonds),)
    request = request_of("*CC(*)[Se]C", 5)
    sample = PolymerSample(
        "0", request.topology, 5, "atactic", 0, "md", chain_of(request)[None].astype(np.float32), np.zeros((1, 0, 3)), None
    )
    values = measure(reference_of(sample), Attempts(chain_of(request, 1)[None])).values
    assert "bond_mae_mmff_ang" not in values
    assert "bond_within_mmff_fraction" not in values
    assert values["bond_mae_reference_ang"] < 0.05


# ----------------------------------------------------------------------------------------------------------- distributions and sizes


def test_divergence_bounds_symmetry_and_golden_value() -> None:
    p, q = np.array([3.0, 1.0, 0.0]), np.array([0.0, 0.0, 5.0])
    assert metrics.jensen_shannon_bits(p, p) == 0
    assert metrics.jensen_shannon_bits(p, q) == pytest.approx(1.0)
    golden = metrics.jensen_shannon_bits(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    assert golden == pytest.approx(0.311278124459, abs=1e-12)
    assert metrics.jensen_shannon_bits(q, p + q) == metrics.jensen_shannon_bits(p + q, q)
    assert np.isnan(metrics.jensen_shannon_bits(p, np.zeros(3)))
    assert metrics.jensen_shannon_bits(np.stack([p, q]), np.stack([q, q])).tolist() == pytest.approx([1.0, 0.0])


def test_histogram_counts_every_angle_once() -> None:
    angles = np.array([[-np.pi + 1e-9, 0.0, np.pi], [0.1, 0.1, -0.1]])
    counts = metrics.histogram(angles)
    assert counts.shape == (2, 36)
    assert counts.sum(1).tolist() == [3, 3]
    assert [np.flatnonzero(row).tolist() for row in counts] == [[0, 18, 35], [17, 18]]


def test_sizes_of_a_rod() -> None:
    rod = np.stack([np.arange(5.0), np.zeros(5), np.zeros(5)], 1)[None]
    assert metrics.end_to_end(rod) == pytest.approx([4.0])
    assert metrics.radius_of_gyration(rod) == pytest.approx([np.sqrt(2.0)])


# ---------------------------------------------------------------------------------------------------------------------- superposition


def test_kabsch_matrix_recovers_rigid_motion_and_refuses_mirrors() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 30, 3)) * 10
    moved = x @ rotation(rng).T + rng.normal(size=3) * 50
    matrix = metrics.rmsd_matrix(moved, x)
    assert np.abs(np.diag(matrix)).max() < 1e-5
    assert matrix[0, 1] > 1
    assert metrics.rmsd_matrix(x * [1, 1, -1], x)[0, 0] > 1, "a mirror image is no rigid motion"


def test_kabsch_matrix_is_rdkits_rmsd_pair_by_pair() -> None:
    chains = [chain_of(request_of("*CC(*)c1ccccc1", 4), seed, 1.0) for seed in range(5)]
    matrix = metrics.rmsd_matrix(np.stack(chains[:2]), np.stack(chains[2:]))
    for j in range(2):
        for i in range(3):
            pair = [rdkit_mol("*CC(*)c1ccccc1", 4, x) for x in (chains[j], chains[2 + i])]
            expected = rdMolAlign.AlignMol(pair[1], pair[0], atomMap=[(k, k) for k in range(len(chains[0]))])
            assert matrix[j, i] == pytest.approx(expected, abs=1e-4)


def reference_align(x: np.ndarray, y: np.ndarray) -> float:
    """One pair at a time, after the description of the published protocol."""
    kept = np.arange(len(x))
    for cycle in range(6):
        a, b = x[kept] - x[kept].mean(0), y[kept] - y[kept].mean(0)
        u, _, vt = np.linalg.svd(a.T @ b)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        error = np.linalg.norm(a @ turn - b, axis=1)
        rmsd = float(np.sqrt((error**2).mean()))
        if cycle == 5 or (error <= 2 * rmsd).all():
            return rmsd
        kept = kept[error <= 2 * rmsd]
    raise AssertionError


def test_align_matrix_rejects_a_bent_third_and_matches_a_plain_loop() -> None:
    rod = chain_of(request_of("*C*", 121), 0, 0.02)
    bent = rod.copy()
    tail = np.arange(len(rod)) >= 2 * len(rod) // 3
    pivot = rod[tail][0]
    angle = 1.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    bent[tail] = (rod[tail] - pivot) @ turn.T + pivot
    plain = metrics.rmsd_matrix(rod[None], bent[None])[0, 0]
    forgiving = metrics.align_matrix(rod[None], bent[None])[0, 0]
    assert forgiving < plain / 5
    assert forgiving == pytest.approx(reference_align(bent, rod), abs=1e-6)
    rng = np.random.default_rng(1)
    several = rod + rng.normal(size=(4, *rod.shape)) * rng.exponential(1.0, size=(4, len(rod), 1))
    matrix = metrics.align_matrix(several[:2], several[2:])
    assert matrix == pytest.approx(np.array([[reference_align(several[2 + i], several[j]) for i in range(2)] for j in range(2)]), abs=1e-6)


def test_recall_and_precision_of_a_hand_made_matrix() -> None:
    matrix = np.array([[3.0, 1.0, 5.0], [4.0, 2.0, 0.5]])  # two references, three generated
    assert metrics.recall_and_precision(matrix) == (0.75, pytest.approx((3.0 + 1.0 + 0.5) / 3))
    reference, generated = np.array([1.0, 3.0]), np.array([2.0, 5.0, 7.0])
    recall, precision = metrics.recall_and_precision(metrics.signed_energies(reference, generated))
    assert recall == generated.min() - reference.mean()
    assert precision == pytest.approx(generated.mean() - reference.max())
    by_hand = [[1.0, 4.0, 6.0], [1.0, 2.0, 4.0]]
    assert metrics.absolute_energies(reference, generated).tolist() == by_hand
    assert metrics.recall_and_precision(np.array(by_hand)) == (1.0, pytest.approx((1 + 2 + 4) / 3))


def test_unit_constants() -> None:
    assert pytest.approx(units.HARTREE_PER_KCAL_MOL, rel=1e-6) == 1 / 627.5095
    assert pytest.approx(0.00159360, abs=5e-9) == units.HARTREE_PER_KCAL_MOL
    assert units.BITS_PER_NAT * np.log(2) == pytest.approx(1.0)
    assert units.DEG_PER_RAD * np.pi == 180.0


# ----------------------------------------------------------------------------------------------------------------------- connectivity


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_connectivity_reads_back_and_agrees_with_rdkit(psmiles: str) -> None:
    request = request_of(psmiles, 5)
    tables = chain_tables(request.topology, 5)
    x_ang = chain_of(request, 0, 0.1)
    radii = covalent_radii_ang(tables.elements)
    missing, extra = connectivity(x_ang[None], radii, tables.bonds)[0]
    assert missing == 0
    assert extra == 0 or psmiles == "*CC(*)C[N+](C)(C)C", "only the crowded cation touches itself when it is stretched"
    bare = Chem.RWMol()
    for element in tables.elements:
        bare.AddAtom(Chem.Atom(int(element)))
    conformer = Chem.Conformer(len(x_ang))
    conformer.SetPositions(x_ang)
    bare.AddConformer(conformer)
    rdDetermineBonds.DetermineConnectivity(bare, useVdw=True, covFactor=COVALENT_FACTOR)
    theirs = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in bare.GetBonds()}
    assert theirs == set(map(tuple, bonds_from_distances(x_ang, radii).tolist()))


def test_a_stretched_and_a_collapsed_chain_are_caught(styrene: Reference) -> None:
    broken = styrene.x_ang[:1].copy()
    broken[:, 20:] += 30.0
    missing, extra = connectivity(broken, styrene.covalent_ang, styrene.tables.bonds)[0]
    assert missing >= 1
    assert extra == 0
    values = measure(styrene, Attempts(broken)).values
    assert values["connectivity_exact_fraction"] == 0
    assert values["bond_within_mmff_fraction"] < 1
    assert values["bond_mae_reference_ang"] > measure(styrene, Attempts(styrene.x_ang[1:2])).values["bond_mae_reference_ang"]
    flat = styrene.x_ang[:1] * [1, 1, 0.2]
    worse = measure(styrene, Attempts(flat)).values
    assert worse["clash_rate_per_heavy_atom"] > 0.1
    assert worse["connectivity_wrong_fraction"] > 0
    assert worse["angle_mae_mmff_deg"] > 5


# --------------------------------------------------------------------------------------------------------------- a polymer, a method


def test_rigid_motion_changes_no_number(styrene: Reference) -> None:
    rng = np.random.default_rng(3)
    x_ang = grown_sample("*CC(*)c1ccccc1", seed=1).heavy_ang.astype(np.float64)
    moved = np.stack([x @ rotation(rng).T + rng.normal(size=3) * 30 for x in x_ang])
    before, after = measure(styrene, Attempts(x_ang)).values, measure(styrene, Attempts(moved)).values
    assert before.keys() == after.keys()
    assert len(before) >= 17
    for name in before:
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


def test_mirror_images_are_noticed_by_signed_metrics_only(styrene: Reference) -> None:
    mirrored = measure(styrene, Attempts(styrene.x_ang * [1, 1, -1])).values
    same = measure(styrene, Attempts(styrene.x_ang)).values
    assert same["chirality_kept_fraction"] == 1
    assert mirrored["chirality_kept_fraction"] == 0
    assert same["tacticity_kept_fraction"] == mirrored["tacticity_kept_fraction"] == 1, "a mirror image keeps its dyads"
    assert same["link_dihedral_jsd_bits"] == 0
    assert mirrored["link_dihedral_jsd_bits"] > 0.2
    assert mirrored["bond_mae_mmff_ang"] == pytest.approx(same["bond_mae_mmff_ang"])
    assert same["rmsd_recall_ang"] < 1e-4 < 1 < mirrored["rmsd_recall_ang"]


def test_true_chains_are_whole(styrene: Reference) -> None:
    values = measure(styrene, Attempts(styrene.x_ang), against_reference=False).values
    assert values["bond_within_mmff_fraction"] == 1
    assert values["connectivity_exact_fraction"] == 1
    assert values["clash_rate_per_heavy_atom"] == 0
    assert values["bond_mae_mmff_ang"] < 0.035  # the whole chain relaxed in MMFF94s has 0.029: phenyl groups strain the backbone
    assert values["angle_mae_mmff_deg"] < 5
    assert not any(name.startswith(("rmsd", "smat", "emat", "link")) for name in values)
    for name in ("radius_of_gyration_ang", "end_to_end_ang", "characteristic_ratio", "persistence_length_ang"):
        assert values[name] > 0, "references have a size too"


def test_handedness_of_the_references_is_that_of_growth() -> None:
    sample = grown_sample("*CC(*)c1ccccc1")
    signs = handedness(chain_tables(sample.topology, sample.num_units), sample.heavy_ang)
    assert (signs == signs[0]).all()
    assert set(signs.ravel()) == {-1, 1}


def test_failures_stay_in_the_denominator(styrene: Reference) -> None:
    whole = measure(styrene, Attempts(styrene.x_ang[:2]))
    half = measure(styrene, Attempts(styrene.x_ang[:2], ("gave up", "gave up")))
    assert half.num_attempted == 4
    assert half.reasons == {"gave up": 2}
    for name, metric in metrics.METRICS.items():
        if name in whole.values:
            expected = whole.values[name] / 2 if metric.failures == "zero" else whole.values[name]
            assert half.values[name] == pytest.approx(expected), name
    none = measure(styrene, Attempts(styrene.x_ang[:0], ("gave up",) * 3))
    assert none.num_attempted == 3
    zero = {"bond_within_mmff_fraction", "connectivity_exact_fraction", "chirality_kept_fraction", "tacticity_kept_fraction"}
    assert zero == {name for name, metric in metrics.METRICS.items() if metric.failures == "zero"}
    assert none.values == dict.fromkeys(zero, 0)


def test_a_chain_of_one_unit_has_no_junction_metrics() -> None:
    reference = reference_of(grown_sample("*C*", 1))
    values = measure(reference, Attempts(reference.x_ang, (), np.zeros((3, 1, 3, 3)))).values
    assert not {name for name in values if name.startswith(("link", "unit_torsion", "junction", "chirality"))}
    assert values["bond_within_mmff_fraction"] == 1
    assert values["rmsd_recall_ang"] < 1e-4


def test_junction_residual_sees_a_shape_that_does_not_fit() -> None:
    request = request_of("*CC(*)c1ccccc1", 5, "isotactic")
    sample = grown_sample("*CC(*)c1ccccc1", 5)
    shapes = chain_units(request)
    x_ang = assemble_chains(request.topology, shapes, np.full((1, 4), 2.0))
    exact = measure(reference_of(sample), Attempts(x_ang, (), shapes)).values
    assert exact["junction_tail_residual_ang"] < 1e-6
    assert exact["junction_angle_residual_deg"] < 1e-4
    other = shapes.copy()
    star0, nbr0 = request.topology.key_atoms[:2]
    other[:, 2, star0] += 0.1 * (other[:, 2, star0] - other[:, 2, nbr0])
    found = measure(reference_of(sample), Attempts(x_ang, (), other)).values
    assert found["junction_head_residual_ang"] == pytest.approx(0.1 * 1.5, rel=0.1)
    assert found["junction_tail_residual_ang"] < 1e-6
