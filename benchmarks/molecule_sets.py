"""Public conformations of molecules as SD files, which `data_shards.build --source molecules` reads.

    python -m benchmarks.molecule_sets ../shared/data/conformers --out runs/molecules

A record is left out, and counted, where its atoms and distances are not the molecule that the set names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import AllChem, rdDetermineBonds
from rdkit.Geometry import Point3D

from data_shards.console import run
from data_shards.progress import progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Record = tuple[str, Chem.Mol | None]


@app.command()
def main(
    data: Annotated[Path, typer.Argument(help="folder of the npz files")],
    out: Annotated[Path, typer.Option(help="folder of the SD files")],
    limit: Annotated[int | None, typer.Option(help="molecules of each set, at most")] = None,
) -> None:
    """Write qm9.sdf, spice.sdf and hutchison.sdf."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (file, records) in SETS.items():
        kept = lost = 0
        with np.load(data / file) as arrays, Chem.SDWriter(str(out / f"{name}.sdf")) as writer, rdBase.BlockLogs():
            content = {key: arrays[key] for key in arrays.files}
            with progress().stage(name, None) as stage:
                for smiles, mol in records(content, limit):
                    stage.advance(1)
                    if mol is None:
                        lost += 1
                        continue
                    mol.SetProp("smiles", smiles)
                    writer.write(mol)
                    kept += 1
        print(f"{out / name}.sdf: {kept} records; {lost} left out")


def _built(elements: NDArray[np.integer], x_ang: NDArray[np.floating], bonds: NDArray[np.integer] | None = None) -> Chem.RWMol:
    mol = Chem.RWMol()
    for number in elements.tolist():
        mol.AddAtom(Chem.Atom(int(number)))
    for i, j in [] if bonds is None else bonds.tolist():
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(elements))
    for k, place in enumerate(x_ang.astype(float).tolist()):
        conformer.SetAtomPosition(k, Point3D(*place))
    mol.AddConformer(conformer)
    return mol


def _same(mol: Chem.Mol, smiles: str) -> bool:
    wanted = Chem.MolFromSmiles(smiles)
    flat = {"isomericSmiles": False}
    return wanted is not None and Chem.MolToSmiles(Chem.RemoveHs(mol), **flat) == Chem.MolToSmiles(wanted, **flat)


def _qm9(content: dict[str, NDArray[np.generic]], limit: int | None) -> Iterator[Record]:
    """One conformation of each molecule, bonds by distances."""
    ptr = content["ptr"]
    for k, smiles in enumerate(content["smiles"].tolist()[:limit]):
        mol = _built(content["Z"][ptr[k] : ptr[k + 1]], content["xyz"][ptr[k] : ptr[k + 1]])
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=0)
            yield smiles, mol if _same(mol, smiles) else None
        except (ValueError, RuntimeError):
            yield smiles, None


def _spice(content: dict[str, NDArray[np.generic]], limit: int | None) -> Iterator[Record]:
    """Fifty conformations of each molecule, from dynamics."""
    params = Chem.SmilesParserParams()
    params.removeHs = False
    atom_ptr, conf_ptr, xyz = content["atom_ptr"], content["conf_ptr"], content["xyz"]
    start = 0
    for k, mapped in enumerate(content["mapped_smiles"].tolist()[:limit]):
        mol = Chem.MolFromSmiles(mapped, params)
        mol = Chem.RenumberAtoms(mol, np.argsort([atom.GetAtomMapNum() for atom in mol.GetAtoms()]).tolist())
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)
        smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
        size, number = int(atom_ptr[k + 1] - atom_ptr[k]), int(conf_ptr[k + 1] - conf_ptr[k])
        for x in xyz[start : start + size * number].reshape(number, size, 3):
            own = Chem.Mol(mol)
            own.AddConformer(_built(content["Z"][atom_ptr[k] : atom_ptr[k + 1]], x).GetConformer())
            yield smiles, own
        start += size * number


def _hutchison(content: dict[str, NDArray[np.generic]], limit: int | None) -> Iterator[Record]:
    """Several conformations of drug-like molecules; orders of bonds and charges from the SMILES of the geometry."""
    ptr, bond_ptr = content["ptr"], content["bond_ptr"]
    seen: set[str] = set()
    for k, smiles in enumerate(content["smiles_from_geometry"].tolist()):
        seen.add(str(content["molecule"][k]))
        if limit is not None and len(seen) > limit:
            return
        bonds = content["bonds"][bond_ptr[k] : bond_ptr[k + 1], :2]
        mol = _built(content["Z"][ptr[k] : ptr[k + 1]], content["xyz"][ptr[k] : ptr[k + 1]], bonds)
        try:
            template = Chem.AddHs(Chem.MolFromSmiles(smiles))
            made = AllChem.AssignBondOrdersFromTemplate(template, mol)
            yield smiles, made if _same(made, smiles) else None
        except (ValueError, RuntimeError, Chem.AtomValenceException):
            yield smiles, None


Reader = Callable[[dict[str, NDArray[np.generic]], int | None], Iterator[Record]]
SETS: dict[str, tuple[str, Reader]] = {
    "qm9": ("qm9_11k.npz", _qm9),
    "spice": ("spice_des_monomers.npz", _spice),
    "hutchison": ("hutchison_conformers.npz", _hutchison),
}


if __name__ == "__main__":
    run(app)
