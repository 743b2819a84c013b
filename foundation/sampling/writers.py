"""Generated chains as SDF, PDB or XYZ: true bonds and charges, hydrogens placed, one record a conformation, written by rename."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.chain import chain_mol
from data_shards.errors import InputError
from data_shards.schema import atom_owners, chain_hydrogens
from foundation.sampling.request import ChainRequest

V2000_MAX = 999  # atoms or bonds that a V2000 block can count
PDB_MAX_ATOMS = 99_999  # five columns for the serial number
PDB_MAX_RESIDUES = 9_999  # four columns for the residue number; further units go to the next chain letter
PDB_CHAINS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PDB_MAX_ANG = 999.0  # eight columns for a coordinate, sign and three decimals included
PDB_REMARK = 69  # columns of text in a remark
PDB_RESIDUE = "UNL"  # the name that the PDB reserves for an unknown ligand

Properties = dict[str, str | int | float]


def conformation_mol(
    heavy_mol: Chem.Mol, x_ang: NDArray[np.floating], hydrogens: bool, hydrogen_ang: NDArray[np.floating] | None = None
) -> Chem.Mol:
    """A chain with coordinates.

    Args:
        heavy_mol: of ``chain_mol(topology, num_units)``.
        x_ang: (H, 3) heavy atoms, schema order.
        hydrogens: have the hydrogens too.
        hydrogen_ang: (h, 3) where they are, schema order; None: placed by RDKit from the geometry of their heavy atoms.

    Returns:
        A molecule with one conformer; hydrogens follow the heavy atoms.
    """
    mol = Chem.Mol(heavy_mol)
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.ascontiguousarray(x_ang, dtype=np.float64))
    mol.AddConformer(conformer, assignId=True)
    if not hydrogens:
        return mol
    full = Chem.AddHs(mol, addCoords=True)
    if hydrogen_ang is not None:
        full.GetConformer().SetPositions(np.concatenate([x_ang, hydrogen_ang]).astype(np.float64))
    return full


def sdf_record(mol: Chem.Mol, properties: Properties) -> str:
    """One SDF record; V3000 where V2000 cannot count the atoms."""
    named = Chem.Mol(mol)
    named.SetProp("_Name", str(properties.get("psmiles", properties.get("smiles", ""))))
    for name, value in properties.items():
        named.SetProp(name, _text(value))
    text = io.StringIO()
    writer = Chem.SDWriter(text)
    writer.SetForceV3000(max(mol.GetNumAtoms(), mol.GetNumBonds()) > V2000_MAX)
    writer.write(named)
    writer.close()
    return text.getvalue()


def xyz_record(mol: Chem.Mol, properties: Properties) -> str:
    """One frame; the comment line holds the properties as key=value (extended XYZ)."""
    x_ang = mol.GetConformer().GetPositions()
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    notes = " ".join(f'{name}="{_text(value)}"' for name, value in properties.items())
    lines = [f"{symbol:<2} {x:14.8f} {y:14.8f} {z:14.8f}" for symbol, (x, y, z) in zip(symbols, x_ang, strict=True)]
    return "\n".join([str(len(lines)), f"Properties=species:S:1:pos:R:3 {notes}", *lines]) + "\n"


def pdb_model(mol: Chem.Mol, number: int, properties: Properties) -> str:
    """One MODEL with its own bonds, as RDKit and Open Babel expect; a double bond is named twice."""
    notes = "; ".join(f"{name}={_text(value)}" for name, value in properties.items())
    lines = Chem.MolToPDBBlock(mol, flavor=4).removesuffix("END\n")
    remarks = "".join(f"REMARK 250 {notes[k : k + PDB_REMARK]}\n" for k in range(0, len(notes), PDB_REMARK))
    return f"MODEL     {number:>4}\n{remarks}{lines}ENDMDL\n"


def set_residues(mol: Chem.Mol, request: ChainRequest) -> None:
    """Name atoms for PDB: a residue a unit (caps belong to the first and last), atom names by slot, unique inside a residue."""
    unit, slot = atom_owners(request.topology.key_atoms, request.topology.num_atoms, request.num_units)
    count: dict[int, int] = {}
    for atom in mol.GetAtoms():
        index = atom.GetIdx()
        if index < len(unit):
            residue, name = int(unit[index]), _atom_name(atom.GetSymbol(), int(slot[index]) + 1)
        else:
            residue = int(unit[atom.GetNeighbors()[0].GetIdx()])
            count[residue] = count.get(residue, 0) + 1
            name = _atom_name("H", count[residue])
        info = Chem.AtomPDBResidueInfo(name, index + 1, "", PDB_RESIDUE, residue % PDB_MAX_RESIDUES + 1)
        info.SetChainId(PDB_CHAINS[residue // PDB_MAX_RESIDUES])
        info.SetIsHeteroAtom(True)
        atom.SetMonomerInfo(info)


def _atom_name(symbol: str, number: int) -> str:
    """Four columns: symbol and number; numbers that do not fit continue as A0, A1, ..., ZZ."""
    width = 4 - len(symbol)
    digits = str(number)
    if len(digits) > width:
        over = number - 10**width
        digits = chr(ord("A") + over // 36) + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[over % 36]
    name = symbol.upper() + digits
    return f" {name:<3}" if len(symbol) == 1 and len(digits) < width else f"{name:<4}"


def _text(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


RECORDS: dict[str, Callable[[Chem.Mol, Properties], str] | None] = {".sdf": sdf_record, ".xyz": xyz_record, ".pdb": None}


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that cannot be written.

    Raises:
        InputError: unknown extension, something is there already, or the folder is a file.
    """
    if path.suffix.lower() not in RECORDS:
        raise InputError(f"--out {path} has the extension {path.suffix!r}; use one of {', '.join(sorted(RECORDS))}")
    check_absent(path, overwrite)
    check_absent(provenance_path(path), overwrite)


def check_absent(path: Path, overwrite: bool) -> None:
    """Refuse to write over something.

    Raises:
        InputError: the path exists and overwrite is False, or is a folder, or its folder is a file.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it with --out")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another --out or pass --overwrite")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{parent} is a file, so {path} cannot be written; choose another --out")
            break


def check_format(path: Path, requests: list[ChainRequest], hydrogens: bool) -> None:
    """Refuse what a format cannot hold, before any work.

    Raises:
        InputError: several polymers, or a chain of more atoms than a PDB file can number.
    """
    if path.suffix.lower() != ".pdb":
        return
    if len(requests) > 1:
        raise InputError(f"{path} would hold {len(requests)} polymers but a PDB file holds models of one; use .sdf or .xyz")
    for request in requests:
        atoms = request.num_heavy_atoms + (int(chain_hydrogens(request.topology, request.num_units).sum()) if hydrogens else 0)
        if atoms > PDB_MAX_ATOMS:
            raise InputError(f"{path}: a chain of {atoms} atoms is over the {PDB_MAX_ATOMS} that a PDB file can number; use .sdf")


def provenance_path(path: Path) -> Path:
    """Where the provenance of a structure file lies."""
    return path.with_name(path.name + ".provenance.json")


class StructureFile:
    """A structure file in the making: written aside, renamed by commit, removed if commit is never reached."""

    def __init__(self, path: Path, hydrogens: bool) -> None:
        self.path, self.hydrogens = path, hydrogens
        self.kind = path.suffix.lower()
        self.num_records = 0
        self._aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._cached: tuple[ChainRequest, Chem.Mol] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = self._aside.open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    def refusal(self, x_ang: NDArray[np.floating]) -> str | None:
        """Why the format cannot hold these coordinates, or None."""
        if self.kind == ".pdb" and float(np.abs(x_ang).max()) > PDB_MAX_ANG:
            return f"a coordinate beyond {PDB_MAX_ANG:g} angstrom does not fit a PDB file"
        return None

    def add(
        self, request: ChainRequest, x_ang: NDArray[np.floating], properties: Properties, hydrogen_ang: NDArray[np.floating] | None = None
    ) -> None:
        """Append one conformation.

        Args:
            request: its chain.
            x_ang: (H, 3) heavy atoms, schema order.
            properties: stored with the record.
            hydrogen_ang: (h, 3), schema order; None: placed by RDKit.
        """
        mol = conformation_mol(self._heavy(request), x_ang, self.hydrogens, hydrogen_ang)
        if self.kind == ".pdb":
            set_residues(mol, request)
        self.write(mol, properties)

    def write(self, mol: Chem.Mol, properties: Properties) -> None:
        """Append a molecule with one conformer."""
        self.num_records += 1
        record = RECORDS[self.kind]
        self._file.write(pdb_model(mol, self.num_records, properties) if record is None else record(mol, properties))

    def commit(self) -> None:
        """Finish the file and give it its name."""
        if self.kind == ".pdb":
            self._file.write("END\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._aside, self.path)

    def _heavy(self, request: ChainRequest) -> Chem.Mol:
        if self._cached is None or self._cached[0] is not request:
            self._cached = (request, chain_mol(request.topology, request.num_units))
        return self._cached[1]
