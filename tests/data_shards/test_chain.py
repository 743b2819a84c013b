"""Chains as molecules, and tacticity (T4 of the specification)."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem.chain import chain_mol, tacticity_signs
from data_shards.chem.oligomer import BOND_CODES
from data_shards.chem.repeat_unit import build_unit
from data_shards.errors import InputError
from data_shards.schema import chain_bonds, chain_elements, chain_hydrogens

TRIMERS = {  # canonical unit three times, with the caps, written by hand
    "[*]Oc1ccc(CC([*])=O)cc1": "COc1ccc(CC(=O)Oc2ccc(CC(=O)Oc3ccc(CC(=O)O)cc3)cc2)cc1",
    "[*]CC([*])c1ccccc1": "CCC(c1ccccc1)CC(c1ccccc1)CC(C)c1ccccc1",
    "[*]CC([*])(C)C(=O)OC": "CCC(C)(C(=O)OC)CC(C)(C(=O)OC)CC(C)(C)C(=O)OC",
    "[*]NC(=O)CCCCC([*])=O": "CNC(=O)CCCCC(=O)NC(=O)CCCCC(=O)NC(=O)CCCCC(=O)N",
    "[*]C[*]": "CCCCC",
    "[*]c1ccc([*])cc1": "Cc1ccc(cc1)c1ccc(cc1)c1ccc(C)cc1",
    "[*]O[Si]([*])(C)C": "[SiH3]O[Si](C)(C)O[Si](C)(C)O[Si](C)(C)O",
    "[*]C=C[*]": "CC=CC=CC=CC",
    "[*]=CC1CCC(C1)C=[*]": "CC=CC1CCC(C1)C=CC1CCC(C1)C=CC1CCC(C)C1",
    "*C#C*": "CC#CC#CC#CC",
    "*=C1C=CC(=*)C=C1": "C=C1C=CC(=C2C=CC(=C3C=CC(=C)C=C3)C=C2)C=C1",
    "*C[N+](C)(C)C*": "NC[N+](C)(C)CC[N+](C)(C)CC[N+](C)(C)CC",
    "*c1ccc(*)[nH]1": "Cc1ccc([nH]1)c1ccc([nH]1)c1ccc(C)[nH]1",
}


@pytest.mark.parametrize("psmiles", [p for p in TRIMERS if "N+" not in p])
def test_chain_is_the_oligomer(psmiles: str) -> None:
    topology = build_unit(psmiles).topology
    chain = chain_mol(topology, 3)
    assert Chem.MolToSmiles(chain) == Chem.CanonSmiles(TRIMERS[psmiles])
    assert len(Chem.GetMolFrags(chain)) == 1


def test_charged_backbones_keep_their_charges() -> None:
    topology = build_unit("*C[N+](C)(C)C*").topology
    chain = chain_mol(topology, 4)
    assert Chem.GetFormalCharge(chain) == 4
    assert sum(atom.GetNumRadicalElectrons() for atom in chain.GetAtoms()) == 0


@pytest.mark.parametrize("psmiles", TRIMERS)
@pytest.mark.parametrize("num_units", [1, 2, 5])
def test_chain_agrees_with_the_schema(psmiles: str, num_units: int) -> None:
    topology = build_unit(psmiles).topology
    heavy, full = chain_mol(topology, num_units), chain_mol(topology, num_units, hydrogens=True)
    n, m = topology.num_atoms, len(topology.bonds)
    assert heavy.GetNumAtoms() == num_units * (n - 2) + 2
    assert heavy.GetNumBonds() == num_units * (m - 2) + (num_units - 1) + 2
    assert [atom.GetAtomicNum() for atom in heavy.GetAtoms()] == chain_elements(topology, num_units).tolist()
    counts = chain_hydrogens(topology, num_units)
    assert [atom.GetTotalNumHs() for atom in heavy.GetAtoms()] == counts.tolist()
    bonds, _ = chain_bonds(topology, num_units)
    assert {tuple(bond) for bond in bonds.tolist()} == {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in heavy.GetBonds()}
    assert {b.GetBondType() for b in heavy.GetBonds()} <= set(BOND_CODES)
    owners = [atom.GetNeighbors()[0].GetIdx() for atom in full.GetAtoms() if atom.GetAtomicNum() == 1]
    assert owners == np.repeat(np.arange(len(counts)), counts).tolist()
    # an independent count: RDKit decides the hydrogens from valences alone
    bare = Chem.MolFromSmiles(Chem.MolToSmiles(heavy))
    assert Chem.AddHs(bare).GetNumAtoms() == full.GetNumAtoms()


def test_tacticity_of_polystyrene() -> None:
    topology = build_unit("*CC(*)c1ccccc1").topology
    isotactic = tacticity_signs(topology, 6, "isotactic", 0)
    syndiotactic = tacticity_signs(topology, 6, "syndiotactic", 0)
    atactic = tacticity_signs(topology, 200, "atactic", 0)
    assert isotactic.shape == (6, 1)
    assert len(np.unique(isotactic)) == 1
    assert (syndiotactic[1:] == -syndiotactic[:-1]).all()
    assert 70 < (atactic == 1).sum() < 130
    np.testing.assert_array_equal(atactic, tacticity_signs(topology, 200, "atactic", 0))
    assert (atactic != tacticity_signs(topology, 200, "atactic", 1)).any()


def test_tacticity_keeps_specified_centres() -> None:
    topology = build_unit("*O[C@H](C)C(*)=O").topology
    for tacticity in ("isotactic", "syndiotactic", "atactic"):
        assert (tacticity_signs(topology, 5, tacticity, 7) == topology.stereo_specified).all()
    half = build_unit("*OC(C)C[C@H](CC)C(*)=O").topology
    signs = tacticity_signs(half, 40, "atactic", 7)
    fixed = half.stereo_specified != 0
    assert fixed.sum() == 1
    assert (signs[:, fixed] == half.stereo_specified[fixed]).all()
    assert len(np.unique(signs[:, ~fixed])) == 2
    syndiotactic = tacticity_signs(half, 4, "syndiotactic", 7)
    assert (syndiotactic[1:, ~fixed] == -syndiotactic[:-1, ~fixed]).all()


def test_without_centres_there_is_no_handedness() -> None:
    assert tacticity_signs(build_unit("*CC*").topology, 4, "atactic", 0).shape == (4, 0)


def test_handedness_is_written_as_tags() -> None:
    topology = build_unit("*CC(*)c1ccccc1").topology
    isotactic, syndiotactic = (
        Chem.MolToSmiles(chain_mol(topology, 4, handedness=tacticity_signs(topology, 4, tacticity, 0)))
        for tacticity in ("isotactic", "syndiotactic")
    )
    assert isotactic != syndiotactic
    assert isotactic.count("@")
    assert syndiotactic.count("@")
    ids = [code for _, code in Chem.FindMolChiralCenters(Chem.MolFromSmiles(isotactic), useLegacyImplementation=False)]
    assert len(ids) >= 3


def test_bad_requests_name_value_and_bound() -> None:
    topology = build_unit("*CC*").topology
    with pytest.raises(InputError, match="num_units 0 must be at least 1"):
        chain_mol(topology, 0)
    with pytest.raises(InputError, match="tacticity 'eutactic' is unknown; choose one of isotactic, syndiotactic, atactic"):
        tacticity_signs(topology, 3, "eutactic", 0)
