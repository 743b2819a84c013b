"""Molecules, not polymers, as arrays: what atoms and bonds are, and which configurations are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from data_shards.chem.capped import embed
from data_shards.chem.oligomer import BOND_CODES, BOND_TYPES, add_atom
from data_shards.chem.psmiles import atoms_of
from data_shards.errors import PolymerError
from data_shards.schema import MoleculeGraph

LARGEST_RING = 9  # as in ATOM_FEATURES: that or more


def read_molecule(mol: Chem.Mol) -> MoleculeGraph:
    """Arrays of an RDKit molecule, in the order of its atoms; configurations are those that its tags say."""
    atoms, rings = list(atoms_of(mol)), mol.GetRingInfo().AtomRings()
    ring_sizes = np.zeros(len(atoms), dtype=np.int64)
    for ring in sorted(rings, key=len, reverse=True):
        ring_sizes[list(ring)] = min(len(ring), LARGEST_RING)
    bonds = list(mol.GetBonds())
    centres = [found for atom in atoms if (found := _centre(atom)) is not None]
    sides = [found for bond in bonds for found in _sides(mol, bond)]
    return MoleculeGraph(
        smiles=Chem.MolToSmiles(mol),
        elements=np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.int64),
        degrees=np.array([atom.GetDegree() for atom in atoms], dtype=np.int64),
        hydrogens=np.array([atom.GetTotalNumHs() for atom in atoms], dtype=np.int64),
        charges=np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int64),
        aromatic=np.array([atom.GetIsAromatic() for atom in atoms], dtype=bool),
        ring_sizes=ring_sizes,
        bonds=np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds], dtype=np.int64).reshape(-1, 2),
        bond_orders=np.array([BOND_CODES.get(bond.GetBondType(), 0) for bond in bonds], dtype=np.int64),
        bond_rings=np.array([bond.IsInRing() for bond in bonds], dtype=bool),
        around=np.array([found[0] for found in centres], dtype=np.int64).reshape(-1, 3),
        signs=np.array([found[1] for found in centres], dtype=np.int64),
        across=np.array([found[:2] for found in sides], dtype=np.int64).reshape(-1, 2),
        sides=np.array([found[2] for found in sides], dtype=np.int64),
    )


def standard_molecule(smiles: str, most_atoms: int) -> tuple[str, str, Chem.Mol]:
    """Canonical SMILES, the same without configurations, and the molecule, its hydrogens as atoms.

    Raises:
        PolymerError: reasons unreadable, fragments, star, too-large.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or not mol.GetNumAtoms():
        raise PolymerError(smiles, "unreadable", "RDKit cannot read it as SMILES; mend or leave out the row")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise PolymerError(smiles, "fragments", f"has {len(Chem.GetMolFrags(mol))} fragments; give one molecule a row")
    if any(atom.GetAtomicNum() == 0 for atom in atoms_of(mol)):
        raise PolymerError(smiles, "star", "has a star; polymers are read by --source table")
    full = Chem.AddHs(mol)
    if full.GetNumAtoms() > most_atoms:
        raise PolymerError(smiles, "too-large", f"{full.GetNumAtoms()} atoms must be <= {most_atoms}; raise --max-atoms-per-unit")
    plain = Chem.RemoveHs(mol)
    return Chem.MolToSmiles(plain), Chem.MolToSmiles(plain, isomericSmiles=False), full


def embedded(mol: Chem.Mol, smiles: str, number: int, seed: int, *, relax: bool = True) -> NDArray[np.float32]:
    """(K, n, 3) conformations by ETKDG, as many of `number` as succeed; relaxed in MMFF94 where it has parameters, unless told otherwise.

    Raises:
        PolymerError: none succeeds.
    """
    found = embed(mol, number, seed, keep_isomer=True)
    if not found:
        raise PolymerError(smiles, "embedding", f"ETKDG finds no conformation in {number} tries; leave the molecule out")
    with rdBase.BlockLogs():
        if relax and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol)
    return np.stack([mol.GetConformer(k).GetPositions() for k in found]).astype(np.float32)


def read_record(blob: bytes, smiles: str) -> tuple[MoleculeGraph, NDArray[np.float32]]:
    """Molecule and (1, n, 3) coordinates of a record, hydrogens as it has them, configurations as the coordinates have them.

    Raises:
        PolymerError: unreadable, flat, or another molecule than the SMILES says.
    """
    mol = _record(blob)
    if mol is None:
        raise PolymerError(smiles, "unreadable", "RDKit cannot read the record; mend it or leave it out")
    if not mol.GetConformer().Is3D() or not np.isfinite(mol.GetConformer().GetPositions()).all():
        raise PolymerError(smiles, "not-3d", "the record has no coordinates in space; give conformations")
    Chem.AssignStereochemistryFrom3D(mol)
    with rdBase.BlockLogs():
        found = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        wanted = Chem.MolFromSmiles(smiles)
    if wanted is None or found != Chem.MolToSmiles(Chem.RemoveHs(wanted), isomericSmiles=False):
        raise PolymerError(smiles, "smiles-mismatch", f"the record is {found}; mend its property or leave it out")
    return read_molecule(mol), mol.GetConformer().GetPositions().astype(np.float32)[None]


def mol_of(graph: MoleculeGraph, x_ang: NDArray[np.floating]) -> Chem.Mol:
    """A molecule with one conformation (n, 3) as RDKit has it, configurations as the coordinates have them.

    Raises:
        ValueError: RDKit does not accept its valences.
    """
    mol = Chem.RWMol()
    for number, charge, aromatic, hydrogens in zip(graph.elements, graph.charges, graph.aromatic, graph.hydrogens, strict=True):
        add_atom(mol, number, charge, hydrogens, aromatic)
    for (i, j), code in zip(graph.bonds.tolist(), graph.bond_orders.tolist(), strict=True):
        mol.AddBond(i, j, BOND_TYPES.get(code, Chem.BondType.SINGLE))
    conformer = Chem.Conformer(len(graph.elements))
    conformer.SetPositions(np.ascontiguousarray(x_ang, dtype=np.float64))
    mol.AddConformer(conformer)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
        Chem.AssignStereochemistryFrom3D(mol)
    return mol.GetMol()


def smiles_of_record(blob: bytes) -> str:
    """What a record's atoms and bonds are, "" where it cannot be read."""
    mol = _record(blob)
    return "" if mol is None else Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)


def _record(blob: bytes) -> Chem.Mol | None:
    with rdBase.BlockLogs():
        return Chem.MolFromMolBlock(blob.decode("utf-8", errors="replace").replace("\r\n", "\n"), removeHs=False)


def _centre(atom: Chem.Atom) -> tuple[list[int], int] | None:
    """Three neighbours and the sign of their triple product.

    CHI_TETRAHEDRAL_CCW: seen from the first neighbour the others, an implicit hydrogen last but for its place as written, turn
    counterclockwise. They point away from there, so that their triple product is negative.
    """
    sense = {Chem.ChiralType.CHI_TETRAHEDRAL_CCW: -1, Chem.ChiralType.CHI_TETRAHEDRAL_CW: 1}.get(atom.GetChiralTag())
    near = [own.GetIdx() for own in atom.GetNeighbors()]
    if sense is None or len(near) not in (3, 4):
        return None
    if len(near) == 4:
        return near[1:], sense
    # seen from the first, second and third turn with what is not drawn: exchanging that with the first changes the sense
    return near, -sense


def _sides(mol: Chem.Mol, bond: Chem.Bond) -> list[tuple[int, int, int]]:
    """Substituents of a double bond with a known configuration, each with each, and on which side they are."""
    sense = {
        Chem.BondStereo.STEREOZ: 1,
        Chem.BondStereo.STEREOCIS: 1,
        Chem.BondStereo.STEREOE: -1,
        Chem.BondStereo.STEREOTRANS: -1,
    }.get(bond.GetStereo())
    named = list(bond.GetStereoAtoms())
    if sense is None or len(named) != 2:
        return []
    ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    out = []
    near = [[own.GetIdx() for own in mol.GetAtomWithIdx(ends[k]).GetNeighbors() if own.GetIdx() != ends[1 - k]] for k in range(2)]
    for one in near[0]:
        for other in near[1]:
            turned = (one != named[0]) + (other != named[1])
            out.append((one, other, sense * (-1) ** turned))
    return out


__all__ = ["embedded", "mol_of", "read_molecule", "read_record", "smiles_of_record", "standard_molecule"]
