"""Three-vectors and 3 x 3 products with gradients that stay finite at zero length."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(rot: Tensor, x: Tensor) -> Tensor:
    """(..., 3, 3) times (..., 3), broadcast over leading dimensions."""
    return (rot * x[..., None, :]).sum(-1)


def rotate_back(rot: Tensor, x: Tensor) -> Tensor:
    """Transpose of (..., 3, 3) times (..., 3), broadcast over leading dimensions."""
    return (rot * x[..., :, None]).sum(-2)


def product(left: Tensor, right: Tensor) -> Tensor:
    """(..., 3, 3) times (..., 3, 3), broadcast over leading dimensions."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def safe_norm(x: Tensor) -> Tensor:
    """(..., 3) -> (...,) length; the gradient at zero is zero."""
    square = (x * x).sum(-1)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def unit_vector(x: Tensor, fallback: Tensor | None = None, shortest: float = 1e-12) -> Tensor:
    """(..., 3) -> (..., 3) of length one; vectors shorter than ``shortest`` become ``fallback`` (x axis unless given)."""
    if fallback is None:
        fallback = x.new_tensor([1.0, 0.0, 0.0]).expand_as(x)
    length = safe_norm(x)[..., None]
    usable = length > shortest
    return torch.where(usable, x / torch.where(usable, length, 1.0), fallback)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """(..., 3) x (..., 3), broadcast."""
    turned: Tensor = torch.linalg.cross(*broadcast(a, b), dim=-1)
    return turned


def broadcast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both at their common shape."""
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    return a.expand(shape), b.expand(shape)


def skew(v: Tensor) -> Tensor:
    """(..., 3) -> (..., 3, 3), the matrix of w -> v x w."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(*v.shape, 3)


def take_slots(x: Tensor, slot: Tensor) -> Tensor:
    """Atoms of every unit by slot: (U, A, 3) and (U, k) -> (U, k, 3)."""
    return x.gather(1, slot[..., None].expand(-1, -1, 3))
