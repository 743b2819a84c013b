"""Best superposition of point sets (Kabsch), batched or packed."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.rigid import Rigid
from foundation.geometry.rotations import nearest_rotation
from foundation.geometry.vectors import broadcast, rotate


@full_precision
def kabsch(x: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Rigid, Tensor]:
    """Proper rigid motion of x that is nearest to y.

    Args:
        x, y: (..., P, 3), broadcast over leading dimensions.
        weights: (..., P) non-negative, or a bool mask (True = counts); all one unless given.

    Returns:
        (...,) y_from_x and the (...,) weighted root mean square deviation after it, in the dtype of x. Sums run in float64.

    Source: Kabsch, Acta Cryst. A32 (1976) 922. Differs: proper rotation enforced, gradient through the polar factor.
    """
    dtype = x.dtype
    x, y = broadcast(x.double(), y.double())
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double().expand(x.shape[:-1])
    w = (w / w.sum(-1, keepdim=True).clamp_min(1e-300))[..., None]  # (..., P, 1)
    centre_x, centre_y = (w * x).sum(-2), (w * y).sum(-2)
    flat_x, flat_y = x - centre_x[..., None, :], y - centre_y[..., None, :]
    rot = nearest_rotation((w[..., None] * flat_y[..., :, None] * flat_x[..., None, :]).sum(-3))
    square = (w * (rotate(rot[..., None, :, :], flat_x) - flat_y).square()).sum((-2, -1))
    return Rigid(rot.to(dtype), (centre_y - rotate(rot, centre_x)).to(dtype)), _safe_sqrt(square).to(dtype)


@full_precision
def kabsch_packed(x: Tensor, y: Tensor, ptr: Tensor) -> tuple[Rigid, Tensor]:
    """Kabsch of B ragged point sets.

    Args:
        x, y: (N, 3) packed.
        ptr: (B + 1,) int64 offsets; every set holds at least one point.

    Returns:
        (B,) y_from_x and (B,) root mean square deviations, in the dtype of x.
    """
    dtype, x, y = x.dtype, x.double(), y.double()
    count = ptr.diff()
    owner = torch.repeat_interleave(torch.arange(len(count), device=x.device), count)
    mean_x, mean_y = _segment_mean(x, owner, count), _segment_mean(y, owner, count)
    flat_x, flat_y = x - mean_x[owner], y - mean_y[owner]
    rot = nearest_rotation(_segment_mean(flat_y[:, :, None] * flat_x[:, None, :], owner, count))
    square = _segment_mean((rotate(rot[owner], flat_x) - flat_y).square().sum(-1), owner, count)
    return Rigid(rot.to(dtype), (mean_y - rotate(rot, mean_x)).to(dtype)), _safe_sqrt(square).to(dtype)


def kabsch_rmsd_packed(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """Root mean square deviation after superposition: (N, 3), (N, 3), (B + 1,) -> (B,)."""
    return kabsch_packed(x, y, ptr)[1]


def _segment_mean(value: Tensor, owner: Tensor, count: Tensor) -> Tensor:
    total = value.new_zeros(len(count), *value.shape[1:]).index_add(0, owner, value)
    return total / count.reshape(-1, *[1] * (value.dim() - 1))


def _safe_sqrt(square: Tensor) -> Tensor:
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
