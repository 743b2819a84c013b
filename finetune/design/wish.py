"""Fragments that every polymer has, and elements that none has, as the user writes them."""

from __future__ import annotations

import numpy as np
import torch
from rdkit import Chem, rdBase

from data_shards.chem.psmiles import atoms_of
from finetune.design.graphs import CLASSES, CODE, MAX_ATOMS, PLACE, Graph, collate, key_of
from finetune.design.sample import Fixed
from foundation.errors import InputError


def fragment(smiles: str) -> Fixed:
    """A fragment from SMILES, such as c1ccccc1 or *C(=O)O; a star in it is an end of the repeat unit.

    Raises:
        InputError: not a fragment that can be kept.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or not mol.GetNumAtoms():
        raise InputError(f"--keep {smiles!r} cannot be read as SMILES; write a whole fragment, such as c1ccccc1 or *C(=O)O")
    if mol.GetNumAtoms() + 2 > MAX_ATOMS:
        raise InputError(f"--keep {smiles!r} has {mol.GetNumAtoms()} atoms, at most {MAX_ATOMS - 2} fit; keep a smaller fragment")
    atoms = atoms_of(mol)
    keys = [key_of(atom) for atom in atoms]
    strange = next((key[0] for key in keys if key not in PLACE), None)
    if strange is not None:
        raise InputError(f"--keep {smiles!r} has an atom {strange} that is not designed; leave it out")
    stars = [atom.GetIdx() for atom in atoms if atom.GetAtomicNum() == 0]
    if len(stars) > 2:
        raise InputError(f"--keep {smiles!r} has {len(stars)} stars, a repeat unit has 2; leave out the others")
    if any(
        mol.GetAtomWithIdx(k).GetDegree() != 1 or mol.GetAtomWithIdx(k).GetBonds()[0].GetBondType() != Chem.BondType.SINGLE for k in stars
    ):
        raise InputError(f"--keep {smiles!r} has a star without one single bond; bond it to one atom")
    place = {star: k for k, star in enumerate(stars)}
    place |= {atom.GetIdx(): 2 + k for k, atom in enumerate(own for own in atoms if own.GetAtomicNum())}
    classes = np.zeros(2 + len(atoms) - len(stars), dtype=np.uint8)
    classes[[place[k] for k in range(len(atoms))]] = [PLACE[key] for key in keys]
    bonds = [(place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()], CODE.get(b.GetBondType(), 0)) for b in mol.GetBonds()]
    if any(kind == 0 for _, _, kind in bonds):
        raise InputError(f"--keep {smiles!r} has a bond that is not designed; use single, double, triple and aromatic ones")
    graph = collate([Graph(classes, np.array(bonds, dtype=np.uint8).reshape(-1, 3))])
    given = torch.ones(len(classes), dtype=torch.bool)
    given[len(stars) : 2] = False
    return Fixed(graph, given[:, None] & given)


def classes_of(elements: str) -> tuple[int, ...]:
    """Classes of elements separated by commas.

    Raises:
        InputError: an element that is not designed anyway, or carbon.
    """
    symbols = [word.strip() for word in elements.split(",") if word.strip()]
    known = {own.symbol for own in CLASSES[1:]}
    strange = next((word for word in symbols if word not in known or word == "C"), None)
    if strange is not None:
        raise InputError(f"--without {strange} must be of {', '.join(sorted(known - {'C'}))}; change it")
    return tuple(k for k, own in enumerate(CLASSES) if k and own.symbol in symbols)


__all__ = ["classes_of", "fragment"]
