"""Rigid transforms and their prefix products along packed ragged chains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.vectors import product, rotate


@dataclass(frozen=True)
class Rigid:
    """x_to = rot @ x_from + trans, named ``to_from_from``; composition cancels: world_from_unit @ unit_from_local.

    Attributes:
        rot: (..., 3, 3).
        trans: (..., 3), may be wider than rot (float64 translations of float32 rotations).
    """

    rot: Tensor
    trans: Tensor

    def __matmul__(self, other: Rigid) -> Rigid:
        return Rigid(product(self.rot, other.rot), rotate(self.rot, other.trans) + self.trans)

    def inverse(self) -> Rigid:
        back = self.rot.transpose(-1, -2)
        return Rigid(back, -rotate(back, self.trans))

    def apply(self, x: Tensor) -> Tensor:
        """Move points.

        Args:
            x: (..., A, 3) points of every transform, or (..., 3) one point each.

        Returns:
            The same shape, in the wider of the dtypes.
        """
        if x.dim() == self.rot.dim():
            return rotate(self.rot[..., None, :, :], x) + self.trans[..., None, :]
        return rotate(self.rot, x) + self.trans

    def __getitem__(self, index: Tensor | slice | int) -> Rigid:
        return Rigid(self.rot[index], self.trans[index])

    def to(self, dtype: torch.dtype) -> Rigid:
        return Rigid(self.rot.to(dtype), self.trans.to(dtype))

    @staticmethod
    def identity(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Rigid:
        rot = torch.eye(3, dtype=dtype, device=device).expand(*shape, 3, 3)
        return Rigid(rot, torch.zeros(*shape, 3, dtype=dtype, device=device))


@full_precision
def segmented_scan(rot: Tensor, trans: Tensor, start_mask: Tensor) -> Rigid:
    """Prefix products X_0, X_0 @ X_1, ... of rigid transforms inside every chain of a packed batch.

    Doubling in ceil(log2 of the longest chain) vectorised steps. Composed in float64: the rounding of 400 float32 rotations would add up
    along a chain.

    Args:
        rot: (U, 3, 3).
        trans: (U, 3).
        start_mask: (U,) bool, True at the first unit of every chain.

    Returns:
        (U,) float64 transforms; unit u holds X_start @ ... @ X_u.

    Source: Hillis, Steele, Data parallel algorithms, CACM 29 (1986). Differs: segments by a head flag that travels with the scan.
    """
    rot, trans, closed = rot.double(), trans.double(), start_mask
    starts = start_mask.nonzero()[:, 0]
    ends = starts.new_tensor([0]), starts.new_tensor([len(start_mask)])
    longest = int(torch.cat([ends[0], starts, ends[1]]).diff().max())
    step = 1
    while step < longest:
        before = Rigid(rot[:-step], trans[:-step]) @ Rigid(rot[step:], trans[step:])
        keep = closed[step:]
        rot = torch.cat([rot[:step], torch.where(keep[:, None, None], rot[step:], before.rot)])
        trans = torch.cat([trans[:step], torch.where(keep[:, None], trans[step:], before.trans)])
        closed = torch.cat([closed[:step], keep | closed[:-step]])
        step *= 2
    return Rigid(rot, trans)


def cumulative_compose(rigid: Rigid, ptr: Tensor | None = None) -> Rigid:
    """Prefix products over the first dimension.

    Args:
        rigid: (U,) transforms.
        ptr: (B + 1,) offsets of the chains; one chain unless given.

    Returns:
        (U,) float64 transforms.
    """
    first = torch.arange(len(rigid.rot), device=rigid.rot.device) == 0
    return segmented_scan(rigid.rot, rigid.trans, first if ptr is None else start_mask(ptr))


def start_mask(ptr: Tensor) -> Tensor:
    """(B + 1,) offsets of chains into units -> (U,) bool, True at the first unit of every chain."""
    position = torch.arange(int(ptr[-1]), device=ptr.device)
    return torch.isin(position, ptr[:-1])
