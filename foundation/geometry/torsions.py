"""Dihedral angles, and turning parts of units about bonds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.rotations import axis_rotation
from foundation.geometry.vectors import cross, rotate, safe_norm, take_slots, unit_vector


def wrap_angle(x: Tensor) -> Tensor:
    """Angle in (-pi, pi]; values already there pass unchanged."""
    return x - 2 * math.pi * torch.ceil((x - math.pi) / (2 * math.pi))


@full_precision
def dihedral(p0: Tensor, p1: Tensor, p2: Tensor, p3: Tensor) -> Tensor:
    """Dihedral angle p0-p1-p2-p3 with the IUPAC sign: cis is 0, trans is pi, clockwise from p0 to p3 seen from p1 is positive.

    Args:
        p0, p1, p2, p3: (..., 3).

    Returns:
        (...,) rad in (-pi, pi]; 0 with zero gradient where three of the points lie on a line.
    """
    b0, b1, b2 = p1 - p0, p2 - p1, p3 - p2
    n0, n1 = cross(b0, b1), cross(b1, b2)
    sine = safe_norm(b1) * (b0 * n1).sum(-1)
    cosine = (n0 * n1).sum(-1)
    flat = (sine == 0) & (cosine == 0)
    return torch.atan2(torch.where(flat, 0.0, sine), torch.where(flat, 1.0, cosine))


@full_precision
def rotate_torsions(x: Tensor, torsion_slot: Tensor, torsion_moved: Tensor, torsion_mask: Tensor, delta_rad: Tensor) -> Tensor:
    """Turn the moved side of every torsion by delta, one torsion after the other, all units at once.

    Torsion a-b-c-d turns its moved atoms, which lie on the side of c, right-handed about the axis b -> c: the dihedral grows by
    exactly delta, bond lengths and angles stay. Each turn is about the bond as earlier turns left it.

    Args:
        x: (U, A, 3) angstrom.
        torsion_slot: (U, T, 4) slots a, b, c, d.
        torsion_moved: (U, T, A) bool.
        torsion_mask: (U, T) bool, False for padding.
        delta_rad: (U, T).

    Returns:
        (U, A, 3).

    Source: Jing et al., Torsional diffusion for molecular conformer generation, arXiv 2206.01729, section 4. Differs: batched over
        units, axis named by the dihedral it turns.
    """
    for step in range(torsion_slot.shape[1]):  # T is the number of bonds of one unit, not of units
        b, c = take_slots(x, torsion_slot[:, step, 1:3]).unbind(1)
        angle = torch.where(torsion_mask[:, step], delta_rad[:, step], 0.0).to(x.dtype)
        turn = axis_rotation(unit_vector(c - b), angle)  # (U, 3, 3)
        turned = rotate(turn[:, None], x - c[:, None]) + c[:, None]
        moves = torsion_moved[:, step] & torsion_mask[:, step, None]
        x = torch.where(moves[..., None], turned, x)
    return x


def torsion_angles(x: Tensor, torsion_slot: Tensor, torsion_mask: Tensor) -> Tensor:
    """Dihedral of every torsion.

    Args:
        x: (U, A, 3).
        torsion_slot: (U, T, 4).
        torsion_mask: (U, T) bool.

    Returns:
        (U, T) rad, 0 in the padding.
    """
    points = take_slots(x, torsion_slot.flatten(1)).reshape(*torsion_slot.shape, 3)  # (U, T, 4, 3)
    return torch.where(torsion_mask, dihedral(*points.unbind(2)), 0.0)
