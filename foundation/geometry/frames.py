"""Unit frames from three atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.rigid import Rigid
from foundation.geometry.rotations import most_perpendicular_axis
from foundation.geometry.vectors import cross, safe_norm, take_slots, unit_vector

COLLINEAR_SIN = 1e-3


@full_precision
def gram_schmidt(a: Tensor, o: Tensor, b: Tensor) -> Rigid:
    """Frame at o with its first axis along a -> o and b in the half plane of the second axis.

    e0 = norm(o - a), e1 = norm of the part of b - o perpendicular to e0, e2 = e0 x e1; the columns of the rotation are
    e0, e1, e2. Computed in float64 and rounded once, so that columns are orthonormal to float32 also for nearly collinear
    triples.

    Degenerate triples have a fixed answer and no equivariance. The angle between e0 and b - o has a sine below 1e-3, or b = o:
    e1 comes from the coordinate axis with the smallest component along e0 (x before y before z among equals), a piecewise
    constant choice, so the frame is continuous in e0 except where two components tie. a = o: e0 is the x axis.

    Args:
        a, o, b: (..., 3).

    Returns:
        (...,) world_from_unit in the dtype of o, trans = o.

    Source: Jumper et al., Highly accurate protein structure prediction with AlphaFold, 2021, supplement algorithm 21. Differs:
        float64 inside, no epsilon under the roots, degenerate triples completed.
    """
    start, origin, side = a.double(), o.double(), b.double()
    e0 = unit_vector(origin - start)
    towards = side - origin
    level = towards - (towards * e0).sum(-1, keepdim=True) * e0
    collinear = (safe_norm(level) < COLLINEAR_SIN * safe_norm(towards)) | (safe_norm(towards) < 1e-8)
    axis = most_perpendicular_axis(e0)
    completed = axis - (axis * e0).sum(-1, keepdim=True) * e0
    e1 = unit_vector(torch.where(collinear[..., None], completed, level))
    e1 = unit_vector(e1 - (e1 * e0).sum(-1, keepdim=True) * e0)  # once more: level of a flat triple has lost digits
    rot = torch.stack([e0, e1, cross(e0, e1)], dim=-1)
    return Rigid(rot.to(o.dtype), o)


def unit_frames(x_world_ang: Tensor, frame_slot: Tensor, atom_ptr: Tensor | None = None) -> Rigid:
    """Frame of every unit.

    Args:
        x_world_ang: (U, A, 3) dense, or (N, 3) packed.
        frame_slot: (U, 3) slots a, o, b. With packed atoms and no atom_ptr: rows of x_world_ang.
        atom_ptr: (U + 1,) offsets of the units into packed atoms.

    Returns:
        (U,) world_from_unit in the dtype of the coordinates.
    """
    if x_world_ang.dim() == 3:
        points = take_slots(x_world_ang, frame_slot)
    else:
        points = x_world_ang[frame_slot if atom_ptr is None else frame_slot + atom_ptr[:-1, None]]
    return gram_schmidt(*points.unbind(1))


@full_precision
def local_coordinates(world_from_unit: Rigid, x_world_ang: Tensor) -> Tensor:
    """Coordinates in the unit frames: (U,) frames and (U, A, 3) world -> (U, A, 3), subtracted in float64, dtype of the input."""
    return world_from_unit.to(torch.float64).inverse().apply(x_world_ang.double()).to(x_world_ang.dtype)
