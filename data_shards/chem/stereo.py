"""Tetrahedral stereocentres as signs of triple products, and RDKit's chiral tags as the same signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

CCW, CW = Chem.ChiralType.CHI_TETRAHEDRAL_CCW, Chem.ChiralType.CHI_TETRAHEDRAL_CW


def measure_signs(x_ang: NDArray[np.floating], centres: NDArray[np.integer], neighbours: NDArray[np.integer]) -> NDArray[np.int8]:
    """Handedness of stereocentres from coordinates.

    Args:
        x_ang: (..., n, 3) positions.
        centres: (c,) atoms.
        neighbours: (c, 3) three neighbours of each.

    Returns:
        (..., c) sign of (x1 - xc) . ((x2 - xc) x (x3 - xc)).
    """
    arms = x_ang[..., neighbours, :] - x_ang[..., centres, None, :]  # (..., c, 3, 3)
    return np.sign(np.linalg.det(arms.astype(np.float64))).astype(np.int8)


def _order_sign(atom: Chem.Atom, triple: Sequence[int]) -> int:
    """Parity of the triple against the order of the atom's bonds; a missing fourth neighbour (hydrogen, lone pair) counts as last."""
    around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
    places = [around.index(k) for k in triple]
    places.append(6 - sum(places))
    swaps = sum(places[i] > places[j] for i in range(4) for j in range(i + 1, 4))
    return -1 if swaps % 2 else 1


def sign_from_tag(atom: Chem.Atom, triple: Sequence[int]) -> int:
    """Triple-product sign that an atom's chiral tag asks for, 0 without a tag."""
    tag = {CCW: 1, CW: -1}.get(atom.GetChiralTag(), 0)
    return tag * _order_sign(atom, triple)


def tag_from_sign(atom: Chem.Atom, triple: Sequence[int], sign: int) -> Chem.ChiralType:
    """Chiral tag that asks for a triple-product sign (+1 or -1)."""
    return CCW if sign * _order_sign(atom, triple) > 0 else CW


def potential_centres(mol: Chem.Mol) -> list[int]:
    """Atoms with three or more heavy neighbours whose mirror images differ, specified or not, ring stereo included."""
    found = [
        info.centeredOn
        for info in Chem.FindPotentialStereo(mol, cleanIt=False, flagPossible=True)
        if info.type == Chem.StereoType.Atom_Tetrahedral
    ]
    return sorted(k for k in found if mol.GetAtomWithIdx(k).GetDegree() >= 3)
