"""Windows of chains and ETKDG of the same windows: atoms correspond, configuration kept, failures counted; the full suite end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.chem.chain import chain_mol
from data_shards.conformers.quality import connectivity
from data_shards.reader import ShardSet
from data_shards.schema import PolymerSample, chain_bonds, chain_elements
from foundation.evaluation import metrics, parts, table
from foundation.evaluation.ensembles import THRESHOLDS_ANG, automorphisms, name_of
from foundation.evaluation.measure import Attempts, handedness, reference_of
from foundation.evaluation.parts import PartReference, PartSuite, etkdg, measure_part, part_graph, part_reference, window_atoms, windows_of
from tests.evaluation.test_evaluate import command, model, timeless  # noqa: F401  (the fixture)
from tests.evaluation.test_metrics import grown_sample
from tests.sampling.conftest import FIXTURES, LibraryObjective, request_of

STYRENE = "*CC(*)c1ccccc1"


def reference(psmiles: str, part: str, num_units: int = 7, num: int = 4) -> tuple[PolymerSample, PartReference]:
    sample = grown_sample(psmiles, num_units, num)
    found = part_reference(sample, reference_of(sample), part, num, 0)
    assert found is not None
    return sample, found


# ------------------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("psmiles", FIXTURES)
@pytest.mark.parametrize("width", [1, 3])
def test_a_window_has_the_graph_of_a_chain_of_its_length(psmiles: str, width: int) -> None:
    topology = request_of(psmiles, 6).topology
    atoms = window_atoms(topology, 6, width)
    assert len(atoms) == 7 - width
    whole = {tuple(row) for row in chain_bonds(topology, 6)[0].tolist()}
    bonds, _ = chain_bonds(topology, width)
    for row in atoms:
        assert len(set(row)) == len(row)
        assert np.array_equal(chain_elements(topology, 6)[row], chain_elements(topology, width))
        mapped = {tuple(pair) for pair in np.sort(row[bonds], axis=1).tolist()}
        assert len(mapped) == len(bonds)
        assert mapped == {pair for pair in whole if set(pair) <= set(row)}
    step = topology.num_atoms - 2
    assert np.array_equal(np.diff(atoms[:, 1:-1], axis=0), np.full((len(atoms) - 1, width * step), step))


def test_stars_are_not_swapped_with_side_groups() -> None:
    propylene = request_of("*CC(*)C", 1).topology
    assert len(automorphisms(chain_mol(propylene, 1))) == 2, "as a molecule, the methyl is as good as the star"
    assert len(automorphisms(part_graph(propylene, 1))) == 1, "in the chain it is not"
    assert len(automorphisms(part_graph(request_of("*C*", 1).topology, 3))) == 2, "a palindrome reads backwards"
    assert len(automorphisms(part_graph(request_of(STYRENE, 1).topology, 3))) == 8


def test_references_are_inner_windows_of_one_handedness_and_differ() -> None:
    sample, found = reference(STYRENE, "unit")
    signs = reference_of(sample).handedness[:, 0]
    wanted = found.law.handedness[0, 0]
    inner = np.flatnonzero(signs[1:-1] == wanted) + 1
    assert np.array_equal(found.atoms, window_atoms(sample.topology, 7, 1)[inner])
    assert len(inner) >= 3
    assert len(found.law.x_ang) == 4 * len(inner)
    assert (handedness(found.law.tables, found.x_ang) == wanted).all()
    apart = parts.best_rmsd_matrix(found.x_ang, found.x_ang, found.relabellings)
    assert apart[np.triu_indices(len(apart), 1)].min() >= parts.DUPLICATE_ANG
    assert len(found.draws) == len(set(found.draws)) == 2 * len(found.x_ang) <= 4 * len(inner)
    again = reference(STYRENE, "unit")[1]
    assert np.array_equal(found.draws, again.draws)
    assert np.array_equal(found.x_ang, again.x_ang)


def test_a_short_chain_gives_the_windows_that_it_has() -> None:
    sample = grown_sample(STYRENE, 2, 2)
    chain = reference_of(sample)
    assert part_reference(sample, chain, "oligomer", 2, 0) is None
    assert part_reference(sample, chain, "unit", 2, 0) is not None
    suite = PartSuite(2, 0)
    suite.add(sample, chain, {"model": Attempts(chain.x_ang)})
    made = suite.results()
    assert made["oligomer"]["protocol"]["too_short_polymers"] == 1
    assert made["oligomer"]["attempts"] == {}
    assert made["unit"]["protocol"]["num_polymers"] == 1


def test_windows_of_failed_chains_fail_with_their_reason() -> None:
    _, found = reference(STYRENE, "unit")
    chains = np.arange(4.0)[:, None, None] * 100 + np.arange(7 * 8 + 2.0)[None, :, None] * np.ones(3)
    whole = windows_of(found, Attempts(chains))
    conformation, place = np.divmod(found.draws, len(found.atoms))
    assert np.array_equal(whole.x_ang[..., 0], conformation[:, None] * 100 + found.atoms[place])
    some = windows_of(found, Attempts(chains[:2], ("a", "b")))
    assert np.array_equal(some.x_ang, whole.x_ang[conformation < 2])
    assert sorted(some.reasons) == sorted({2: "a", 3: "b"}[k] for k in conformation[conformation >= 2])
    assert some.num_attempted == len(found.draws)


# --------------------------------------------------------------------------------------------------------------------------- ETKDG


@pytest.mark.parametrize("psmiles", FIXTURES)
@pytest.mark.parametrize("part", ["unit", "oligomer"])
def test_etkdg_atoms_are_those_of_the_window(psmiles: str, part: str) -> None:
    _, found = reference(psmiles, part, 5, 2)
    tables = found.law.tables
    mol, atoms = parts.capped_window(found)
    assert [mol.GetAtomWithIdx(int(k)).GetAtomicNum() for k in atoms] == tables.elements.tolist()
    place = {int(atom): k for k, atom in enumerate(atoms)}
    bonded = {
        tuple(sorted((place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()])))
        for b in mol.GetBonds()
        if {b.GetBeginAtomIdx(), b.GetEndAtomIdx()} <= place.keys()
    }
    assert bonded == {tuple(row) for row in tables.bonds.tolist()}
    plain, relaxed = etkdg(found)
    lengths = metrics.distances(found.law.x_ang, tables.bonds).mean(axis=0)
    for made, tolerance_ang in ((plain, 0.25), (relaxed, 0.06)):
        assert made.num_attempted == len(found.draws)
        assert made.reasons == ()
        assert (handedness(tables, made.x_ang) == found.law.handedness).all()
        assert np.abs(metrics.distances(made.x_ang, tables.bonds) - lengths).max() < tolerance_ang
        assert (connectivity(made.x_ang, found.law.covalent_ang, tables.bonds)[:, 0] == 0).all(), "a bond is missing"


@pytest.mark.parametrize(("psmiles", "cis"), [("*C/C=C\\C*", True), ("*C/C=C/C*", False)])
def test_etkdg_keeps_double_bonds(psmiles: str, cis: bool) -> None:
    sample, found = reference(psmiles, "oligomer")
    orders = sample.topology.bond_orders
    slots = sample.topology.bonds[orders == 2][0]
    order = chain_bonds(sample.topology, 3)[1]
    doubles = found.law.tables.bonds[order == 2]
    assert len(doubles) == 3, slots
    quads = np.array([(i - 1, i, j, j + 1) if j == i + 1 else (0, 0, 0, 0) for i, j in doubles])  # the backbone is in order
    assert (np.diff(quads, axis=1) == 1).all()
    for x_ang in (found.x_ang, *(made.x_ang for made in etkdg(found))):
        angle = np.abs(metrics.dihedrals_rad(x_ang, quads))
        assert ((angle < 0.5) if cis else (angle > 2.6)).all()


def test_a_polymer_that_mmff_cannot_type_fails_in_that_column_alone() -> None:
    _, found = reference("*CC(*)B(C)C", "unit", 5, 2)
    plain, relaxed = etkdg(found)
    assert plain.reasons == ()
    assert set(relaxed.reasons) == {"no-force-field"}
    assert relaxed.num_attempted == plain.num_attempted
    values = measure_part(found, plain).values
    assert "emat_r_kcal_mol" not in values
    assert "cov_r_050_fraction" in values
    assert measure_part(found, relaxed).values["mis_125_fraction"] == 1


def test_an_embedding_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = reference(STYRENE, "unit", 5, 2)
    monkeypatch.setattr(parts, "_embedded", lambda mol, count, seed: [])
    for made in etkdg(found):
        assert made.reasons == ("no-conformer",) * len(found.draws)
        assert made.x_ang.shape == (0, found.x_ang.shape[1], 3)


# ------------------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("part", ["unit", "oligomer"])
def test_a_perfect_generator_covers_everything_and_one_that_fails_is_not_flattered(part: str) -> None:
    _, found = reference(STYRENE, part)
    num = len(found.x_ang)
    perfect = measure_part(found, Attempts(found.x_ang))
    assert set(perfect.values) <= set(parts.PART_METRICS)
    for d in THRESHOLDS_ANG:
        assert perfect.values[name_of("cov_r", d)] == perfect.values[name_of("cov_p", d)] == 1
        assert perfect.values[name_of("mis", d)] == 0
    for name in ("amr_r_ang", "amr_p_ang", "emat_r_kcal_mol", "emat_p_kcal_mol"):
        assert perfect.values[name] < 1e-5, name
    law = measure_part(found, Attempts(found.law.x_ang)).values
    assert law["unit_torsion_jsd_bits"] < 1e-12
    assert ("link_dihedral_jsd_bits" in law) == (part == "oligomer")

    half = measure_part(found, Attempts(found.x_ang, ("gave up",) * num))
    assert half.reasons == {"gave up": num}
    assert half.num_attempted == 2 * num
    assert half.values["cov_r_050_fraction"] == 1
    assert half.values["cov_p_050_fraction"] == half.values["mis_050_fraction"] == 0.5
    assert half.values["chirality_kept_fraction"] == half.values["connectivity_exact_fraction"] == 0.5

    nothing = measure_part(found, Attempts(found.x_ang[:0], ("gave up",) * num)).values
    assert nothing["cov_r_125_fraction"] == nothing["cov_p_125_fraction"] == nothing["chirality_kept_fraction"] == 0
    assert nothing["mis_125_fraction"] == 1
    assert "amr_r_ang" not in nothing


def test_moving_mirroring_and_bending_the_generated_windows() -> None:
    _, found = reference(STYRENE, "unit")
    plain = measure_part(found, Attempts(found.law.x_ang)).values
    turned = found.law.x_ang[..., [1, 2, 0]] * [1, -1, -1] + 7.0
    moved = measure_part(found, Attempts(turned)).values
    assert moved == pytest.approx(plain, abs=1e-5)
    mirrored = measure_part(found, Attempts(found.law.x_ang * [1, 1, -1])).values
    assert mirrored["chirality_kept_fraction"] == 0
    assert mirrored["amr_r_ang"] > plain["amr_r_ang"] + 0.1
    stretched = measure_part(found, Attempts(found.law.x_ang * 1.1)).values
    mean = metrics.distances(found.law.x_ang, found.law.tables.bonds).mean()
    assert stretched["bond_mae_reference_ang"] == pytest.approx(0.1 * mean, rel=0.05)
    assert stretched["angle_mae_reference_deg"] == pytest.approx(plain["angle_mae_reference_deg"], abs=1e-9)


def test_energy_matching_is_the_loop_over_pairs() -> None:
    _, found = reference(STYRENE, "unit", num=2)
    plain, _ = etkdg(found)
    energy, own = parts.energies_per_atom(found.law, plain.x_ang), found.energy_kcal_mol
    values = measure_part(found, plain).values
    assert values["emat_r_kcal_mol"] == pytest.approx(np.mean([min(abs(e - r) for e in energy) for r in own]))
    assert values["emat_p_kcal_mol"] == pytest.approx(np.mean([min(abs(e - r) for r in own) for e in energy]))


# ---------------------------------------------------------------------------------------------------------------------- end to end


def test_full_suite_end_to_end(shards: ShardSet, model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    model.fail = (0, 3, 4, 5)  # chains: one of three, three of three, none
    assert command(shards, tmp_path / "full", "--suite", "full") == 0
    out = capsys.readouterr().out
    assert command(shards, tmp_path / "chains") == 0
    full, chains = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("full", "chains"))
    made = full.pop("parts")
    assert set(made) == {"unit", "oligomer"}
    assert "parts" not in chains
    assert (full["settings"].pop("suite"), chains["settings"].pop("suite")) == ("full", "chains")
    assert timeless(full) == timeless(chains), "the chains' numbers do not depend on the suite"
    methods = ["model", "grow engine", "ETKDG", "ETKDG + MMFF94", "reference"]
    page = (tmp_path / "full" / "table.md").read_text()
    for part, title in (("unit", "Repeat units"), ("oligomer", "Oligomers of three units")):
        own = made[part]
        assert set(own) == {"protocol", "attempts", "metrics", "polymers"}
        assert own["protocol"]["num_polymers"] == len(own["polymers"]) == 3
        assert list(own["attempts"]) == methods
        assert set(own["metrics"]) == set(parts.PART_METRICS)
        attempted = {own["attempts"][name]["attempted"] for name in methods[:4]}
        assert attempted == {2 * sum(polymer["num_references"] for polymer in own["polymers"])}
        assert own["attempts"]["ETKDG"]["failed"] == own["attempts"]["grow engine"]["failed"] == 0
        second = own["polymers"][1]["methods"]["model"]
        assert second["failed"] == {"gave up": second["attempted"]}
        assert second["values"]["cov_r_125_fraction"] == 0
        assert own["metrics"]["cov_r_125_fraction"]["methods"]["model"]["num_polymers"] == 3
        assert own["metrics"]["amr_r_ang"]["methods"]["model"]["num_polymers"] == 2
        assert set(own["metrics"]["cov_r_050_fraction"]["methods"]) == set(methods) - {"reference"}
        for name, metric in own["metrics"].items():
            assert metric["unit"], name
            assert metric["protocol"], name
            for estimate in metric["methods"].values():
                assert estimate["low"] <= estimate["value"] <= estimate["high"], name
        assert f"## {title}" in page
        assert title in out
    assert "| coverage | cov_r_075_fraction | fraction |" in page
    assert "model: " in out
    assert "gave up" in out
    assert len(table.sections(chains)) == 1


def test_an_unknown_suite_is_one_sentence(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(shards, tmp_path / "e", "--suite", "all") == 2
    assert capsys.readouterr().err == "error: suite 'all' must be chains or full; change --suite\n"
