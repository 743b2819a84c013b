"""One record of an SD file as a graph with positions. V2000 and V3000; every defect of the text is a reason, never a crash."""

from __future__ import annotations

import re

import numpy as np
from rdkit import Chem, rdBase

from data_shards.chem.decompose import UNKNOWN, ChainGraph
from data_shards.errors import PolymerError

MAX_ATOMS = 200_000
FLAT_ANG = 1e-6  # z of every atom of a drawing
_NOT_A_NUMBER = re.compile(r"(?<!\S)[+-]?(nan|inf|infinity)(?!\S)", re.IGNORECASE)
_COUNTS_V3000 = re.compile(r"^M  V30 COUNTS +(\d+) +(\d+)", re.MULTILINE)


def read_molblock(text: str, psmiles: str) -> ChainGraph:
    """Atoms, bonds and positions of a record.

    Args:
        text: the record up to and with ``M  END``.
        psmiles: for the message.

    Returns:
        The structure. Numbers of hydrogens are known where the record has hydrogens on carbon (then all of them are taken to be there),
        or where it has bond orders above one, from which they follow; else they are UNKNOWN.

    Raises:
        PolymerError: unreadable-record, too-large, not-finite, no-conformer (a drawing), valence (RDKit cannot sanitise it).
    """
    _check_size(text, psmiles)
    with rdBase.BlockLogs():
        try:
            mol = Chem.MolFromMolBlock(text, sanitize=False, removeHs=False)
        except Exception as error:  # RDKit has no common exception type
            raise PolymerError(psmiles, "unreadable-record", f"RDKit cannot read the record ({_first_line(error)}); check it") from None
        if mol is None:
            lines = text.splitlines()
            if _NOT_A_NUMBER.search("\n".join(lines[4:])):
                raise PolymerError(psmiles, "not-finite", "a coordinate of the record is not a number; leave the record out")
            raise PolymerError(psmiles, "unreadable-record", "RDKit cannot read the record; check its counts line, atoms and bonds")
        if not mol.GetNumAtoms() or not mol.GetNumConformers():
            raise PolymerError(psmiles, "no-conformer", "the record has no atoms with coordinates; give 3-D structures")
        x_ang = np.array(mol.GetConformer().GetPositions(), dtype=np.float64)
        if not np.isfinite(x_ang).all():
            raise PolymerError(psmiles, "not-finite", "a coordinate of the record is not a number; leave the record out")
        if np.abs(x_ang[:, 2]).max() <= FLAT_ANG and text.splitlines()[1][20:22].upper() != "3D":
            raise PolymerError(psmiles, "no-conformer", "the record is a 2-D drawing, z is 0 for every atom; give 3-D structures")
        try:
            Chem.SanitizeMol(mol)
        except Exception as error:
            raise PolymerError(
                psmiles, "valence", f"RDKit cannot sanitise the record ({_first_line(error)}); mend charges or bonds"
            ) from None
    return _graph(mol, x_ang)


def _check_size(text: str, psmiles: str) -> None:
    counts = _COUNTS_V3000.search(text)
    claimed = int(counts.group(1)[:12]) if counts else 0
    if max(claimed, text.count("\n") if not counts else 0) > MAX_ATOMS:
        raise PolymerError(psmiles, "too-large", f"the record has more than {MAX_ATOMS} atoms or lines, the bound; split the structure")


def _graph(mol: Chem.Mol, x_ang: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> ChainGraph:
    elements = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    bonds = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()], dtype=np.int64).reshape(-1, 2)
    pairs = np.concatenate([bonds, bonds[:, ::-1]])
    on_carbon = (elements[pairs[:, 0]] == 6) & (elements[pairs[:, 1]] == 1)
    if on_carbon.any():
        hydrogens = np.bincount(pairs[elements[pairs[:, 1]] == 1, 0], minlength=len(elements))
    elif any(bond.GetBondType() != Chem.BondType.SINGLE for bond in mol.GetBonds()):
        hydrogens = np.array([atom.GetTotalNumHs(includeNeighbors=True) for atom in mol.GetAtoms()])
    else:
        hydrogens = np.full(len(elements), UNKNOWN)
    return ChainGraph(elements, bonds, hydrogens.astype(np.int64), x_ang)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
