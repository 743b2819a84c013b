"""Energies, dyads and pairs of angles of chains; golden values of energies and alignment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, rdForceFieldHelpers

from data_shards.chem.chain import chain_mol
from data_shards.conformers.hydrogens import HydrogenRelaxation
from foundation.evaluation import metrics, mmff
from foundation.evaluation.baselines import pick_shapes
from foundation.evaluation.chains import assemble_chains, chain_tables
from foundation.evaluation.measure import Attempts, Reference, link_pair_counts, measure, reference_of
from foundation.evaluation.mmff import relaxed_energies
from foundation.sampling.writers import conformation_mol
from tests.evaluation.test_metrics import chain_units, grown_sample, rdkit_mol, reference_align
from tests.sampling.conftest import library, request_of

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.fixture(scope="module")
def styrene() -> Reference:
    return reference_of(grown_sample("*CC(*)c1ccccc1"))


def test_energies_without_hydrogens_are_rdkits(styrene: Reference) -> None:
    expected = []
    for x in styrene.x_ang:
        mol = rdkit_mol("*CC(*)c1ccccc1", 6, x)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol))
        expected.append(field.CalcEnergy() / mol.GetNumAtoms() / 627.5095)
    assert styrene.energies.bare_hartree == pytest.approx(np.array(expected), rel=1e-6)


def test_energies_with_relaxed_hydrogens_are_those_of_the_force_field() -> None:
    """Heavy atoms stay, the energy is RDKit's own MMFF94s, and RDKit's minimiser finds nothing lower."""
    sample = grown_sample("*CC(*)c1ccccc1", 4, 2)
    tables = chain_tables(sample.topology, 4)
    x = sample.heavy_ang.astype(np.float64)
    heavy = x.shape[1]
    mol = chain_mol(sample.topology, 4)
    placed = np.stack([conformation_mol(mol, one, hydrogens=True).GetConformer().GetPositions() for one in x])
    relaxed, energies = HydrogenRelaxation(sample.topology, 4, 200).relax(placed)
    assert np.abs(relaxed[:, :heavy] - x).max() < 1e-5
    num_atoms = placed.shape[1]
    for start, end, energy in zip(placed, relaxed, energies, strict=True):
        whole = Chem.AddHs(mol)
        conformer = Chem.Conformer(num_atoms)
        conformer.SetPositions(start)
        whole.AddConformer(conformer)
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(whole, mmffVariant="MMFF94s")
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(whole, properties, nonBondedThresh=1e6)
        field.Initialize()
        assert field.CalcEnergy(end.ravel().tolist()) == pytest.approx(energy, rel=1e-4)
        assert field.CalcEnergy(start.ravel().tolist()) > energy + 1.0
        for atom in range(heavy):
            field.AddFixedPoint(atom)
        field.Minimize(maxIts=2000)
        assert energy / num_atoms == pytest.approx(field.CalcEnergy() / num_atoms, abs=2e-3)
    found = relaxed_energies(tables, x[[0, 0, 1]])
    assert found[0] == found[1]
    assert found[[0, 2]] / num_atoms == pytest.approx(energies / num_atoms, abs=0.03), "fewer iterations, hydrogens placed in another frame"


def test_energies_against_the_references(styrene: Reference) -> None:
    same = measure(styrene, Attempts(styrene.x_ang)).values
    for name in ("emat_r_kcal_mol", "emat_p_kcal_mol", "mmff_energy_error_kcal_mol"):
        assert same[name] == pytest.approx(0, abs=1e-9), name
    bare = styrene.energies.bare_hartree
    assert same["emat_r_legacy_hartree"] == pytest.approx(bare.min() - bare.mean())
    assert same["emat_p_legacy_hartree"] == pytest.approx(bare.mean() - bare.max())
    assert same["mmff_energy_per_atom_kcal_mol"] == np.median(styrene.energies.relaxed_kcal_mol)
    squeezed = measure(styrene, Attempts(0.9 * styrene.x_ang)).values
    assert squeezed["mmff_energy_error_kcal_mol"] > 1
    assert squeezed["emat_r_kcal_mol"] > 1
    assert squeezed["mmff_energy_per_atom_kcal_mol"] > styrene.energies.median_kcal_mol


def test_a_polymer_without_a_force_field_has_no_energy() -> None:
    sample = grown_sample("*C[Sn](*)(C)C")
    reference = reference_of(sample)
    assert np.isnan(reference.energies.median_kcal_mol)
    values = measure(reference, Attempts(sample.heavy_ang.astype(np.float64))).values
    assert not [name for name in values if "energy" in name or "emat" in name]


def test_a_chain_with_too_many_pairs_has_no_energy(styrene: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmff, "MAX_ENERGY_ATOMS", styrene.tables.num_heavy_atoms)
    assert np.isfinite(relaxed_energies(styrene.tables, styrene.x_ang)).all()
    monkeypatch.setattr(mmff, "MAX_ENERGY_ATOMS", styrene.tables.num_heavy_atoms - 1)
    made = measure(styrene, Attempts(styrene.x_ang + 0.01))
    assert not [name for name in made.values if "emat" in name or "energy" in name]
    assert "rmsd_recall_ang" in made.values


def test_one_absurd_energy_improves_the_published_numbers_and_worsens_the_sound_ones() -> None:
    reference, good, absurd = np.array([1.0, 3.0]), np.array([1.0, 3.0, 2.0]), np.array([1.0, 3.0, -9.0])
    signed = [metrics.recall_and_precision(metrics.signed_energies(reference, generated)) for generated in (good, absurd)]
    sound = [metrics.recall_and_precision(metrics.absolute_energies(reference, generated)) for generated in (good, absurd)]
    assert signed == [(-1.0, -1.0), (-11.0, pytest.approx(-5 / 3 - 3.0))]
    assert sound == [(0.0, pytest.approx(1 / 3)), (0.0, pytest.approx(10 / 3))]


def test_dyads_are_compared_with_those_asked_for() -> None:
    """An inverted stereocentre in the middle spoils two dyads of five, a conformation that failed all of its own."""
    reference = reference_of(grown_sample("*CC(*)c1ccccc1", 6, 1))
    topology = reference.tables.topology
    signs = reference.handedness.copy()
    signs[2] *= -1
    shapes = pick_shapes(*library(topology.psmiles), signs, 1, np.random.default_rng(0))
    values = measure(reference, Attempts(assemble_chains(topology, shapes, np.full((1, 5), 2.0)), ("gave up",))).values
    assert values["chirality_kept_fraction"] == pytest.approx(5 / 6 / 2)
    assert values["tacticity_kept_fraction"] == pytest.approx(3 / 5 / 2)


def test_torsion_maps_count_neighbouring_angles_in_order() -> None:
    request = request_of("*CC(*)c1ccccc1", 4, "isotactic")
    x = assemble_chains(request.topology, chain_units(request), np.deg2rad([[-175.0, 5.0, 95.0]]))
    counts = link_pair_counts(chain_tables(request.topology, 4), x)
    assert counts.shape == (36, 36)
    assert counts.sum() == 2
    assert counts[0, 18] == counts[18, 27] == 1, "the first angle along rows"


def test_golden_energies_with_and_without_hydrogens() -> None:
    """MMFF94 of a stored conformation: the energy of the published protocol is that of another molecule."""
    golden = GOLDEN["energies"]
    mol = Chem.AddHs(Chem.MolFromSmiles(golden["smiles"]))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.array(golden["x_ang"]))
    mol.AddConformer(conformer)
    full, bare = (
        AllChem.MMFFGetMoleculeForceField(m, AllChem.MMFFGetMoleculeProperties(m)).CalcEnergy() for m in (mol, Chem.RemoveHs(mol))
    )
    assert full == pytest.approx(golden["with_hydrogens_kcal_mol"], abs=1e-4)
    assert bare == pytest.approx(golden["without_hydrogens_kcal_mol"], abs=1e-4)
    assert abs(full - bare) > 1


def test_golden_alignment_of_a_fixed_pair() -> None:
    """Positions and values are stored; the plain loop and the batched code agree on them."""
    golden = GOLDEN["pair"]
    x, y = np.array(golden["generated_ang"]), np.array(golden["reference_ang"])
    assert metrics.align_matrix(y[None], x[None])[0, 0] == pytest.approx(golden["align_ang"], abs=1e-6)
    assert reference_align(x, y) == pytest.approx(golden["align_ang"], abs=1e-6)
    assert metrics.rmsd_matrix(y[None], x[None])[0, 0] == pytest.approx(golden["kabsch_ang"], abs=1e-6)
    assert golden["align_ang"] < golden["kabsch_ang"] / 10
