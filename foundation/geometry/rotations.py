"""Rotations: exponential and logarithm, quaternions (w first), nearest rotation, uniform draws.

Column vectors, right-handed angles, body-frame tangent vectors: R <- R Exp(v).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.vectors import cross, product, safe_norm, skew, unit_vector

SMALL_ANGLE_SQ = 1e-4  # below it the series of sin and cos are exact to float64 after four terms


@full_precision
def exp_so3(v: Tensor) -> Tensor:
    """Rotation by |v| about v.

    Args:
        v: (..., 3) axis times angle in rad.

    Returns:
        (..., 3, 3).
    """
    dtype, v = v.dtype, v.double()  # so that columns are orthonormal to the last float32 digit
    square = (v * v).sum(-1)
    small = square < SMALL_ANGLE_SQ
    angle = torch.where(small, 1.0, square).sqrt()
    sinc = torch.where(small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle)
    versine = torch.where(small, 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)), 2 * ((angle / 2).sin() / angle) ** 2)
    k = skew(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return (eye + sinc[..., None, None] * k + versine[..., None, None] * product(k, k)).to(dtype)


@full_precision
def log_so3(rot: Tensor) -> Tensor:
    """Axis times angle of a rotation, angle in [0, pi].

    Goes through the quaternion, whose largest component is always well away from zero: exact at both 0 and pi, and
    differentiable everywhere except for the sign jump at pi itself.

    Args:
        rot: (..., 3, 3).

    Returns:
        (..., 3) rad.
    """
    quat = matrix_to_quat(rot)
    w, v = quat[..., 0], quat[..., 1:]
    sine = safe_norm(v)
    small = sine < 1e-3
    ratio_sq = (v * v).sum(-1) / torch.where(small, w, 1.0) ** 2
    series = 2 / torch.where(small, w, 1.0) * (1 - ratio_sq / 3 * (1 - ratio_sq * 3 / 5))
    factor = torch.where(small, series, 2 * torch.atan2(torch.where(small, 1.0, sine), w) / torch.where(small, 1.0, sine))
    return factor[..., None] * v


@full_precision
def quat_to_matrix(quat: Tensor) -> Tensor:
    """(..., 4) quaternions w, x, y, z of any non-zero length -> (..., 3, 3)."""
    w, x, y, z = (quat / quat.square().sum(-1, keepdim=True).sqrt()).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).reshape(*w.shape, 3, 3)  # fmt: skip


@full_precision
def matrix_to_quat(rot: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 4) unit quaternion w, x, y, z with w >= 0.

    The sixteen products 4 q_i q_j are linear in the matrix; the row of the largest q_i is normalised.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rot.unbind(-2))
    rows = torch.stack(
        [
            1 + xx + yy + zz, zy - yz, xz - zx, yx - xy,
            zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx,
            xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz,
            yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz,
        ],
        dim=-1,
    ).reshape(*xx.shape, 4, 4)  # fmt: skip
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quat = row / row.square().sum(-1, keepdim=True).sqrt()
    return torch.where(quat[..., :1] < 0, -quat, quat)


def random_rotations(
    shape: tuple[int, ...] | torch.Size, rng: torch.Generator, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform rotations (Haar measure).

    Args:
        shape: leading dimensions.
        rng: draws happen on its device, so that a CPU generator gives the same rotations on every device.
        device: of the result; the generator's unless given.
        dtype: of the result.

    Returns:
        (*shape, 3, 3).
    """
    quat = torch.randn(*shape, 4, generator=rng, device=rng.device, dtype=torch.float64)
    return quat_to_matrix(quat).to(device=device or rng.device, dtype=dtype)


@full_precision
def geodesic_angle(rot1: Tensor, rot2: Tensor) -> Tensor:
    """Angle of the rotation between two: (..., 3, 3) twice -> (...,) rad in [0, pi]; gradient zero where they coincide."""
    quat = matrix_to_quat(product(rot1.transpose(-1, -2), rot2))
    return 2 * torch.atan2(safe_norm(quat[..., 1:]), quat[..., 0])


@full_precision
def axis_rotation(axis: Tensor, angle_rad: Tensor) -> Tensor:
    """Right-handed rotation about a unit axis.

    Args:
        axis: (..., 3) of length one.
        angle_rad: (...,).

    Returns:
        (..., 3, 3).
    """
    k = skew(axis)
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    versine = 2 * (angle_rad / 2).sin() ** 2
    return eye + angle_rad.sin()[..., None, None] * k + versine[..., None, None] * product(k, k)


@full_precision
def align_vectors(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation that carries one unit vector onto another.

    Among all rotations that do so it is the one nearest to the identity (largest trace). Opposite vectors: half a turn about
    the coordinate axis most perpendicular to them.

    Args:
        source, target: (..., 3) of length one.

    Returns:
        (..., 3, 3) with rotation @ source = target.
    """
    cosine = (source * target).sum(-1, keepdim=True)
    axis = cross(source, target)
    opposite = 1 + cosine < 1e-12
    flip = unit_vector(cross(source, most_perpendicular_axis(source)))
    quat = torch.where(opposite, torch.cat([torch.zeros_like(cosine), flip], -1), torch.cat([1 + cosine, axis], -1))
    return quat_to_matrix(quat)


def most_perpendicular_axis(v: Tensor) -> Tensor:
    """(..., 3) -> (..., 3): the coordinate axis with the smallest component along v, the first of equals."""
    index = v.detach().abs().argmin(-1)
    return torch.nn.functional.one_hot(index, 3).to(v.dtype)


@full_precision
def nearest_rotation(m: Tensor) -> Tensor:
    """Rotation nearest to a matrix in the Frobenius norm (determinant +1 enforced): (..., 3, 3) -> (..., 3, 3).

    The gradient is that of the polar factor, finite also where singular values coincide, as they do for every rotation.
    """
    rot: Tensor = _PolarFactor.apply(m)  # type: ignore[no-untyped-call]
    return rot


class _PolarFactor(torch.autograd.Function):
    """M = R P with R a rotation and P symmetric; with W = R^T dR antisymmetric, W P + P W = R^T dM - dM^T R."""

    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        u, s, vt = torch.linalg.svd(m)
        sign = torch.where(torch.linalg.det(u) * torch.linalg.det(vt) < 0, -1.0, 1.0).to(m.dtype)
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        rot = product(u * flip[..., None, :], vt)
        ctx.save_for_backward(rot, s * flip, vt)
        return rot

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        rot, s, vt = ctx.saved_tensors
        v = vt.transpose(-1, -2)
        x = product(vt, product(product(rot.transpose(-1, -2), grads[0]), v))
        pair = s[..., :, None] + s[..., None, :]
        tiny = torch.finfo(s.dtype).eps * s[..., :1, None].clamp_min(torch.finfo(s.dtype).tiny)
        b = (x - x.transpose(-1, -2)) / torch.where(pair.abs() > tiny, pair, torch.inf)
        return product(rot, product(product(v, b), vt))
