"""Files read back by RDKit are the chain that was written: atoms, bonds, charges, coordinates, handedness, properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem.chain import chain_mol
from data_shards.chem.stereo import measure_signs
from data_shards.errors import InputError
from data_shards.schema import chain_bonds, chain_elements, chain_hydrogens, unit_slots
from foundation.sampling.request import ChainRequest
from foundation.sampling.writers import (
    PDB_MAX_ATOMS,
    StructureFile,
    check_format,
    check_output,
    conformation_mol,
    provenance_path,
    set_residues,
)
from tests.sampling.conftest import FIXTURES, chain_of, request_of


def write(path: Path, request: ChainRequest, *, num: int = 2, hydrogens: bool = True) -> list[np.ndarray]:
    chains = [chain_of(request, seed) for seed in range(num)]
    with StructureFile(path, hydrogens) as file:
        for k, x_ang in enumerate(chains):
            file.add(request, x_ang, {"psmiles": request.psmiles, "num_units": request.num_written_units, "seed": 3, "conformation": k})
        file.commit()
    return chains


def graph_of(mol: Chem.Mol) -> str:
    return Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)


def true_graph(request: ChainRequest) -> str:
    return Chem.MolToSmiles(chain_mol(request.topology, request.num_units), isomericSmiles=False)


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_sdf_reads_back_as_the_same_molecule(psmiles: str, tmp_path: Path) -> None:
    request = request_of(psmiles, 4)
    chains = write(tmp_path / "x.sdf", request)
    records = list(Chem.SDMolSupplier(str(tmp_path / "x.sdf"), removeHs=False))
    assert len(records) == 2
    bonds, _ = chain_bonds(request.topology, request.num_units)
    hydrogens = int(chain_hydrogens(request.topology, request.num_units).sum())
    for k, (mol, x_ang) in enumerate(zip(records, chains, strict=True)):
        assert graph_of(mol) == true_graph(request)
        assert mol.GetNumBonds() == len(bonds) + hydrogens
        heavy = len(x_ang)
        assert [atom.GetAtomicNum() for atom in mol.GetAtoms()][:heavy] == chain_elements(request.topology, request.num_units).tolist()
        assert np.abs(mol.GetConformer().GetPositions()[:heavy] - x_ang).max() < 1e-4
        properties = mol.GetPropsAsDict()
        assert (properties["psmiles"], properties["num_units"], properties["seed"], properties["conformation"]) == (psmiles, 4, 3, k)


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_pdb_reads_back_bonds_orders_and_charges(psmiles: str, tmp_path: Path) -> None:
    request = request_of(psmiles, 4)
    chains = write(tmp_path / "x.pdb", request)
    mol = Chem.MolFromPDBFile(str(tmp_path / "x.pdb"), removeHs=False, proximityBonding=False)
    assert graph_of(mol) == true_graph(request)
    assert mol.GetNumConformers() == 2
    for conformer, x_ang in zip(mol.GetConformers(), chains, strict=True):
        assert np.abs(conformer.GetPositions()[: len(x_ang)] - x_ang).max() < 1e-3
    residues = {atom.GetPDBResidueInfo().GetResidueNumber() for atom in mol.GetAtoms()}
    assert residues == set(range(1, request.num_units + 1))
    names = [(a.GetPDBResidueInfo().GetResidueNumber(), a.GetPDBResidueInfo().GetName()) for a in mol.GetAtoms()]
    assert len(set(names)) == len(names), "an atom name occurs twice in a residue"
    assert all(len(line) <= 80 for line in (tmp_path / "x.pdb").read_text().splitlines())


def test_xyz_holds_elements_coordinates_and_properties(tmp_path: Path) -> None:
    request = request_of("*CC(*)(C)C(=O)OC", 3)
    chains = write(tmp_path / "x.xyz", request, hydrogens=False)
    lines = (tmp_path / "x.xyz").read_text().splitlines()
    count = int(lines[0])
    assert count == request.num_heavy_atoms
    assert len(lines) == 2 * (count + 2)
    assert 'psmiles="*CC(*)(C)C(=O)OC"' in lines[1]
    assert 'conformation="1"' in lines[count + 3]
    x_ang = np.array([line.split()[1:] for line in lines[2 : count + 2]], dtype=float)
    assert np.abs(x_ang - chains[0]).max() < 1e-7
    mol = Chem.MolFromXYZBlock("\n".join(lines[: count + 2]) + "\n")
    assert [atom.GetAtomicNum() for atom in mol.GetAtoms()] == chain_elements(request.topology, request.num_units).tolist()


def test_long_chain_goes_to_v3000_and_keeps_handedness(tmp_path: Path) -> None:
    request = request_of("*CC(*)c1ccccc1", 64)
    (x_ang,) = write(tmp_path / "x.sdf", request, num=1)
    text = (tmp_path / "x.sdf").read_text()
    assert "V3000" in text
    mol = next(iter(Chem.SDMolSupplier(str(tmp_path / "x.sdf"), removeHs=False)))
    assert mol.GetNumAtoms() > 999
    assert graph_of(mol) == true_graph(request)
    slots = unit_slots(request.topology.key_atoms, request.topology.num_atoms, request.num_units)
    read = mol.GetConformer().GetPositions()[: len(x_ang)][slots]
    signs = measure_signs(read, request.topology.stereo_centres, request.topology.stereo_neighbours)
    assert set(signs.ravel()) == {-1, 1}
    assert np.array_equal(signs, request.handedness)


def test_placed_hydrogens_stand_at_bond_length_from_their_atom() -> None:
    request = request_of("*CC(*)c1ccccc1", 4)
    mol = conformation_mol(chain_mol(request.topology, 4), chain_of(request), True)
    x_ang = mol.GetConformer().GetPositions()
    lengths = [np.linalg.norm(x_ang[a.GetIdx()] - x_ang[a.GetNeighbors()[0].GetIdx()]) for a in mol.GetAtoms() if a.GetAtomicNum() == 1]
    assert len(lengths) == int(chain_hydrogens(request.topology, 4).sum())
    assert min(lengths) > 0.9
    assert max(lengths) < 1.2


def test_pdb_numbering_rolls_over_to_the_next_chain_letter() -> None:
    request = request_of("*C*", 10_050)
    mol = chain_mol(request.topology, request.num_units)
    set_residues(mol, request)
    infos = [mol.GetAtomWithIdx(k).GetPDBResidueInfo() for k in (1, 9_999, 10_000, 10_051)]
    assert [(i.GetChainId(), i.GetResidueNumber()) for i in infos] == [("A", 1), ("A", 9_999), ("B", 1), ("B", 51)]


def test_formats_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    short, long = request_of("*C*", 3), request_of("*CC(*)c1ccccc1", 6_500)
    with pytest.raises(InputError, match=r"would hold 2 polymers but a PDB file holds models of one; use \.sdf or \.xyz"):
        check_format(tmp_path / "x.pdb", [short, short], True)
    with pytest.raises(InputError, match=rf"a chain of 104008 atoms is over the {PDB_MAX_ATOMS} that a PDB file can number; use \.sdf"):
        check_format(tmp_path / "x.pdb", [long], True)
    check_format(tmp_path / "x.pdb", [long], False)
    check_format(tmp_path / "x.sdf", [short, long], True)
    with StructureFile(tmp_path / "x.pdb", False) as file:
        reason = file.refusal(np.full((3, 3), 1000.0))
        assert reason == "a coordinate beyond 999 angstrom does not fit a PDB file"
        assert file.refusal(np.full((3, 3), 998.0)) is None


def test_an_output_that_is_in_the_way_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.sdf"
    check_output(out, False)
    out.write_text("kept")
    with pytest.raises(InputError, match=r"x\.sdf exists already; choose another --out or pass --overwrite"):
        check_output(out, False)
    check_output(out, True)
    out.unlink()
    provenance_path(out).write_text("{}")
    with pytest.raises(InputError, match=r"x\.sdf\.provenance\.json exists already"):
        check_output(out, False)
    with pytest.raises(InputError, match=r"has the extension '\.mol2'; use one of \.pdb, \.sdf, \.xyz"):
        check_output(tmp_path / "x.mol2", False)
    (tmp_path / "folder.sdf").mkdir()
    with pytest.raises(InputError, match=r"folder\.sdf is a folder; name a file in it with --out"):
        check_output(tmp_path / "folder.sdf", True)
    with pytest.raises(InputError, match=r"json is a file, so .* cannot be written; choose another --out"):
        check_output(provenance_path(out) / "y.sdf", False)


def test_a_file_that_is_not_finished_leaves_nothing_and_spares_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "x.sdf"
    out.write_text("old")
    request = request_of("*C*", 3)

    def stopped() -> None:
        with StructureFile(out, True) as file:
            file.add(request, chain_of(request), {"psmiles": "*C*"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.sdf"]
