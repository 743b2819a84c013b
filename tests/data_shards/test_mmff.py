"""MMFF94 in OpenMM is MMFF94 in RDKit: every kind of term, energy and forces; and a copied chain is a chain typed as a whole."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import openmm
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from data_shards.chem.chain import chain_mol
from data_shards.chem.psmiles import parse
from data_shards.chem.repeat_unit import build_unit, substitute_stars
from data_shards.conformers import mmff, mmff_system
from data_shards.conformers.mmff import Rows, Terms, chain_terms, read_terms
from data_shards.conformers.mmff_system import KINDS, Environment, build_system, evaluate
from data_shards.conformers.statistics import backbone_positions
from data_shards.errors import InputError, PolymerError

SWITCHES = dict(zip(KINDS, ("Bond", "Angle", "StretchBend", "Torsion", "Oop", "VdW", "Ele")))  # RDKit's names
JITTER_ANG = 0.1  # away from the minimum, and planar centres away from planar
RELATIVE, ABSOLUTE = 1e-6, 1e-8  # wanted are 1e-4 of an energy and 1e-3 of a force; measured are 1e-13 and 1e-14

DIFFICULT = {
    "linear angles": ["CC#N", "CC#CC#CC", "C#CC1CC1", "C=C=C", "CC=C=C=CC", "CN=C=O", "CN=C=NC", "CN=[N+]=[N-]", "C[N+]#[C-]"],
    "small rings": [
        "CC1CC1",
        "C1=CC1",
        "C=C1CC1",
        "C1C2CC12",
        "C1CC2CC12",
        "C1CC12CC2",
        "CC1OC1",
        "CC1CN1",
        "CC1CS1",
        "CC1CCC1",
        "C1=CCC1",
    ],
    "small hetero rings": ["C1COC1", "O=C1CCN1", "O=C1CCO1", "O=C1CC1", "C1CN1C(C)=O", "C[Si]1(C)CCC1"],
    "sulfur and phosphorus": [
        "CS(C)=O",
        "CS(=O)(=O)c1ccccc1",
        "CNS(C)(=O)=O",
        "COS(=O)(=O)[O-]",
        "COP(=O)(OC)OC",
        "COP(=O)([O-])OC",
        "CP(C)C",
    ],
    "hypervalent": ["CS(C)(C)C", "CS(C)(=O)=NC", "CP(C)(C)=O", "C=S=O", "CSSC", "CC(=S)NC"],
    "planar nitrogen": [
        "CC(=O)NC",
        "CN(C)C=O",
        "CNC(=O)OC",
        "CNC(=O)NC",
        "CN1C(=O)c2ccccc2C1=O",
        "Nc1ccccc1",
        "C[N+](=O)[O-]",
        "O=[N+]([O-])c1ccccc1",
    ],
    "ions": ["CC(=O)[O-]", "CC[NH3+]", "C[N+](C)(C)C", "CC(N)=[NH2+]", "NC(N)=[NH2+]", "C[n+]1ccn(C)c1", "C[n+]1ccccc1"],
    "halogens and silicon": ["CC(F)(F)F", "FC(F)=C(F)F", "CC(Cl)CBr", "CCI", "C[Si](C)(C)O[Si](C)(C)C", "C[SiH2]c1ccccc1"],
    "five-membered aromatic": ["Cc1ccco1", "Cc1cccs1", "Cc1c[nH]cn1", "Cn1ccnc1", "c1nnco1", "c1nc2ccccc2s1", "c1ccc2cccc2cc1"],
    "conjugated": ["C=CC=C", "CN=NC", "CC=NN=CC", "O=C1C=CC(=O)C=C1", "O=c1cc[nH]cc1", "O=C1OC(=O)C=C1", "C1=CC=C1", "O"],
}
NITROGEN = ["CC(=O)NC", "Nc1ccccc1", "CNC(=O)NC", "C=CN(C)C"]  # where MMFF94s differs from MMFF94

UNITS = [
    "*C*",
    "*CC*",
    "*O*",
    "*O[Si](*)(C)C",
    "*C=C*",
    "*C#C*",
    "*=CC=*",
    "*c1ccc(*)s1",
    "*c1ccc(*)cc1",
    "*C(=O)N*",
    "*CC[N+](*)(C)C",
    "*CC(*)C(=O)[O-]",
    "*CC(*)c1ccccc1",
    "*OC(C)C(*)=O",
    "*c1nc2cc3nc(*)sc3cc2s1",
    "*NC(=O)c1ccc(cc1)C(=O)Nc1ccc(*)cc1",
]


def conformer(mol: Chem.Mol, seed: int = 0) -> tuple[Chem.Mol, np.ndarray] | None:
    """Molecule with all hydrogens and (A, 3) jittered coordinates in angstrom, or None where it does not embed at once."""
    full = Chem.AddHs(mol)
    if rdDistGeom.EmbedMolecule(full, maxAttempts=5, randomSeed=seed, useRandomCoords=True) < 0:
        return None
    x_ang = full.GetConformer().GetPositions()
    x_ang += JITTER_ANG * np.random.default_rng(seed).normal(size=x_ang.shape)
    full.GetConformer().SetPositions(x_ang)
    return full, x_ang


def rdkit_term(mol: Chem.Mol, kind: str, variant: str) -> tuple[float, np.ndarray]:
    """Energy kcal/mol and forces (A, 3) kcal/mol/angstrom of one kind of term alone."""
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=variant)
    for name, switch in SWITCHES.items():
        getattr(properties, f"SetMMFF{switch}Term")(name == kind)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, nonBondedThresh=1e6)
    field.Initialize()
    return field.CalcEnergy(), -np.array(field.CalcGrad()).reshape(-1, 3)


def assert_agrees(mol: Chem.Mol, x_ang: np.ndarray, variant: str = "MMFF94s") -> None:
    energies, forces = evaluate(read_terms(mol, variant), x_ang)
    for kind in KINDS:
        energy, force = rdkit_term(mol, kind, variant)
        assert energies[kind] == pytest.approx(energy, rel=RELATIVE, abs=ABSOLUTE), kind
        np.testing.assert_allclose(forces[kind], force, rtol=0, atol=ABSOLUTE + RELATIVE * np.abs(force).max(), err_msg=kind)


def assert_same(terms: Terms, expected: Terms) -> None:
    for name, value in vars(expected).items():
        found = getattr(terms, name)
        for one, other in zip(*((r if isinstance(r, Rows) else (r,)) for r in (found, value)), strict=True):
            if one.dtype == np.int64:
                np.testing.assert_array_equal(one, other, err_msg=name)
            else:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("smiles", [smiles for group in DIFFICULT.values() for smiles in group])
def test_every_term_agrees_with_rdkit(smiles: str) -> None:
    embedded = conformer(Chem.MolFromSmiles(smiles))
    assert embedded is not None
    assert_agrees(*embedded)


@pytest.mark.parametrize(
    ("smiles", "heavy_ang"),
    [("C#CC#C", [[-1.9, 0, 0], [-0.7, 0, 0], [0.7, 0, 0], [1.9, 0, 0]]), ("C=C", [[-0.66, 0, 0], [0.66, 0, 0]])],
)
def test_exactly_straight_and_exactly_flat(smiles: str, heavy_ang: list[list[float]]) -> None:
    """Where angles of 180 degrees and Wilson angles of 0 have no direction, forces are finite and those of RDKit."""
    mol = Chem.MolFromSmiles(smiles)
    conformation = Chem.Conformer(len(heavy_ang))
    conformation.SetPositions(np.array(heavy_ang))
    mol.AddConformer(conformation)
    full = Chem.AddHs(mol, addCoords=True)
    assert_agrees(full, full.GetConformer().GetPositions())


@pytest.mark.parametrize("smiles", NITROGEN)
def test_both_variants_agree_and_differ(smiles: str) -> None:
    embedded = conformer(Chem.MolFromSmiles(smiles))
    assert embedded is not None
    assert_agrees(*embedded, variant="MMFF94")
    one, other = (read_terms(embedded[0], variant) for variant in ("MMFF94", "MMFF94s"))
    assert one.out_of_plane.values.tolist() != other.out_of_plane.values.tolist()


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_real_polymers_agree(shared_data: Path, count: int) -> None:
    with (shared_data / "corpus" / "psmiles.csv").open() as table:
        strings = [row["psmiles"] for row in csv.DictReader(table) if int(row["n_heavy_atoms"]) <= 40]
    random.Random(count).shuffle(strings)
    agreed = 0
    for psmiles in strings:
        try:
            mol, _ = substitute_stars(parse(psmiles), psmiles)
            embedded = conformer(mol)
            if embedded is not None:
                assert_agrees(*embedded)
                agreed += 1
        except PolymerError:  # not a chain, or none that MMFF94 knows
            continue
        if agreed == count:
            return
    pytest.fail(f"only {agreed} polymers")


def test_a_folded_chain_agrees() -> None:
    """Pairs near and far, among them pairs across units."""
    embedded = conformer(chain_mol(build_unit("*OCC(*)C(=O)OC").topology, 5))
    assert embedded is not None
    assert_agrees(*embedded)


@pytest.mark.parametrize("psmiles", UNITS)
def test_a_copied_chain_is_one_typed_as_a_whole(psmiles: str) -> None:
    topology = build_unit(psmiles).topology
    short = mmff._Copies(topology, 1).short
    for num_units in (1, 2, 3, 6, 12, short, short + 1, short + 2, short + 9):
        whole = read_terms(chain_mol(topology, num_units, hydrogens=True))
        assert_same(chain_terms(topology, num_units), whole)


@pytest.mark.slow
def test_real_polymers_copy(shared_data: Path) -> None:
    with (shared_data / "corpus" / "psmiles.csv").open() as table:
        strings = [row["psmiles"] for row in csv.DictReader(table) if int(row["n_heavy_atoms"]) <= 40]
    for psmiles in random.Random(1).sample(strings, 60):
        try:
            topology = build_unit(psmiles).topology
            num_units = mmff._Copies(topology, 1).short + 2
            assert_same(chain_terms(topology, num_units), read_terms(chain_mol(topology, num_units, hydrogens=True)))
        except PolymerError:
            continue


def test_a_charge_spread_over_the_whole_chain_is_not_copied() -> None:
    """In a run of N-C-N cations RDKit's charges depend on the length of the chain."""
    topology = build_unit("*NC(*)=[NH2+]").topology
    copies = mmff._Copies(topology, 30)
    assert not copies.would_repeat(read_terms(chain_mol(topology, copies.short, hydrogens=True)))
    assert_same(chain_terms(topology, 30), read_terms(chain_mol(topology, 30, hydrogens=True)))


def test_an_oligomer_too_short_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmff, "REACH_BONDS", 0)
    topology = build_unit("*CCO*").topology
    copies = mmff._Copies(topology, 30)
    assert not copies.would_repeat(read_terms(chain_mol(topology, copies.short, hydrogens=True)))


def test_a_long_chain_is_neutral_and_complete() -> None:
    terms = chain_terms(build_unit("*CC(*)c1ccccc1").topology, 624)
    assert len(terms.atom.atoms) == 624 * 16 + 8
    assert len(terms.bond.atoms) == len(terms.atom.atoms) - 1 + 624  # a tree and one ring in every unit
    assert terms.atom.values[:, 2].sum() == pytest.approx(0, abs=1e-6)
    assert len(np.unique(terms.bond.atoms, axis=0)) == len(terms.bond.atoms)
    assert np.array_equal(np.unique(terms.bond.atoms), np.arange(len(terms.atom.atoms)))


@pytest.mark.parametrize(
    ("psmiles", "detail"),
    [
        ("*CC(*)B(O)O", "no atom type for B in a molecule"),
        ("*c1ccc(*)[se]1", "no atom type for Se in a molecule"),
        ("*CC(*)S(F)(F)(F)(F)F", "no atom type for S with 6 neighbours"),
        ("*N=P(*)(C)C", "no atom type for this N: as type 62 the molecule has charge -3 instead of +0"),
    ],
)
def test_what_mmff_cannot_type_is_an_error(psmiles: str, detail: str) -> None:
    topology = build_unit(psmiles).topology
    with pytest.raises(PolymerError, match="MMFF94") as caught:
        chain_terms(topology, 3)
    assert (caught.value.psmiles, caught.value.reason) == (topology.psmiles, "no-force-field")
    assert detail in caught.value.detail


def test_a_chain_has_a_unit() -> None:
    with pytest.raises(InputError, match="at least 1"):
        chain_terms(build_unit("*CC*").topology, 0)


def test_forces_without_charges_and_with_a_cutoff() -> None:
    embedded = conformer(chain_mol(build_unit("*OCC(*)C(=O)OC").topology, 3))
    assert embedded is not None
    mol, x_ang = embedded
    terms = read_terms(mol)
    whole, _ = evaluate(terms, x_ang)
    neutral, _ = evaluate(terms, x_ang, Environment(electrostatics=False))
    assert neutral == whole | {"electrostatics": 0.0}
    wide, _ = evaluate(terms, x_ang, Environment(cutoff_ang=200))
    assert wide == pytest.approx(whole, rel=1e-9)
    near, _ = evaluate(terms, x_ang, Environment(cutoff_ang=6))
    assert near["van_der_waals"] > whole["van_der_waals"]  # attraction beyond the cutoff is left out
    assert {k for k in KINDS if near[k] != pytest.approx(whole[k], rel=1e-9)} == {"van_der_waals", "electrostatics"}


def test_the_system_runs_on_other_platforms() -> None:
    embedded = conformer(chain_mol(build_unit("*CC(*)C#N").topology, 3))
    assert embedded is not None
    mol, x_ang = embedded
    terms = read_terms(mol)
    system = build_system(terms)
    assert [system.getParticleMass(k)._value for k in range(3)] == pytest.approx([12.011, 12.011, 12.011])
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(x_ang / 10)
    total = context.getState(getEnergy=True).getPotentialEnergy()._value / mmff_system.KJ_PER_KCAL
    assert total == pytest.approx(sum(evaluate(terms, x_ang)[0].values()), rel=1e-4)


def brute_force_theta(terms: Terms, x_ang: np.ndarray, hops: np.ndarray, path: list[int], reach: int) -> tuple[float, float, int]:
    """Van der Waals and Coulomb energy of every pair of atoms in kcal/mol, pair by pair in a table of all of them, and how many are far."""
    where = hops[:, path].argmin(axis=1)
    i, j = np.triu_indices(len(x_ang), 1)
    r_ang = np.linalg.norm(x_ang[i] - x_ang[j], axis=1)
    apart = hops[i, j]
    near = (np.abs(where[i] - where[j]) <= reach) & (apart <= 10)
    kind = np.searchsorted(terms.vdw_types, terms.atom.values[:, 1])
    r_star, eps = terms.vdw_r_star_ang[kind[i], kind[j]], terms.vdw_eps_kcal_mol[kind[i], kind[j]]
    q = r_ang / r_star
    whole = eps * (1.07 / (q + 0.07)) ** 7 * (1.12 / (q**7 + 0.12) - 2)
    vdw = np.where(near, whole, np.where(q < 1, whole + eps, 0.0))
    charge = terms.atom.values[:, 2]
    coulomb = np.where(near, 332.0716 * charge[i] * charge[j] / (r_ang + 0.05) * np.where(apart == 3, 0.75, 1.0), 0.0)
    counted = apart > 2
    return float(vdw[counted].sum()), float(coulomb[counted].sum()), int((~near & (q < 1)).sum())


@pytest.mark.parametrize("reach", [2, 4])
@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*CC(*)(C)C(=O)OC", "*CCO*", "*O[Si](*)(C)C", "*OC(=O)CCCCCCCCC(*)C"])
def test_theta_is_the_sum_over_all_pairs(psmiles: str, reach: int) -> None:
    """Energy in double precision; forces by moving the atoms a little."""
    topology = build_unit(psmiles).topology
    mol = chain_mol(topology, 5, hydrogens=True)
    embedded = conformer(chain_mol(topology, 5))
    assert embedded is not None
    x_ang = embedded[1] * 0.93  # closer together: far atoms touch
    terms, hops = chain_terms(topology, 5), Chem.GetDistanceMatrix(mol)
    path = list(Chem.GetShortestPath(mol, 0, chain_mol(topology, 5).GetNumAtoms() - 1))
    where = backbone_positions(topology, 5)
    theta = Environment(reach_bonds=reach)
    energies, forces = evaluate(terms, x_ang, theta, positions_bonds=where)
    vdw, coulomb, touching = brute_force_theta(terms, x_ang, hops, path, reach)
    assert touching > 0
    assert energies["van_der_waals"] == pytest.approx(vdw, rel=1e-9)
    assert energies["electrostatics"] == pytest.approx(coulomb, rel=1e-9, abs=1e-9)
    bonded, _ = evaluate(terms, x_ang)
    assert all(energies[kind] == pytest.approx(bonded[kind], rel=1e-12) for kind in KINDS[:5])
    step = 1e-5 * np.random.default_rng(0).normal(size=x_ang.shape)
    ahead, behind = (sum(brute_force_theta(terms, x_ang + side * step, hops, path, reach)[:2]) for side in (1, -1))
    pushed = ((forces["van_der_waals"] + forces["electrostatics"]) * step).sum()
    assert behind - ahead == pytest.approx(2 * pushed, rel=1e-5, abs=1e-9)


def test_an_ideal_chain_has_no_far_repulsion_and_a_wide_reach_is_everything() -> None:
    topology = build_unit("*CCO*").topology
    embedded = conformer(chain_mol(topology, 2))
    assert embedded is not None
    terms, x_ang, where = chain_terms(topology, 2), embedded[1] * 0.9, backbone_positions(topology, 2)
    whole, _ = evaluate(terms, x_ang)
    wide, _ = evaluate(terms, x_ang, Environment(reach_bonds=50), positions_bonds=where)  # no two atoms are more than 10 bonds apart
    assert wide == pytest.approx(whole, rel=1e-12)
    crossing, repelling = (
        evaluate(terms, x_ang, Environment(reach_bonds=1, far_repulsion=far), positions_bonds=where)[0] for far in (False, True)
    )
    assert repelling["van_der_waals"] > crossing["van_der_waals"] + 0.1
    uncharged, _ = evaluate(terms, x_ang, Environment(reach_bonds=50, electrostatics=False), positions_bonds=where)
    assert uncharged == wide | {"electrostatics": 0.0}
    with pytest.raises(InputError, match="positions_bonds"):
        evaluate(terms, x_ang, Environment(reach_bonds=4))
