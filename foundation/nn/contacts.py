"""What contacts do to a rotatable bond: energies and torques of learned pair potentials between the atoms on its two sides.

The score of a Boltzmann law of pair potentials U(d) in an angle is - sum over pairs of U'(d) dd/dangle. With U' written in a radial
basis, the sums of basis functions, and of basis functions times dd/dangle, are all that a network needs to know of the contacts. The
first are even under reflection, the second odd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.geometry.vectors import cross
from foundation.nn.embedding import RadialBasis
from foundation.nn.parity import Graded

NUM_KINDS = 3  # of pairs: three bonds apart, further in the same or the next unit, two units apart
LEFT_OUT = -1


class Contacts(nn.Module):
    """Features of contacts, (num_radial x num_channels) even and as many odd ones a bond.

    Source: none known to us; the force of a pair potential along a torsion, as in any molecular mechanics program.
    """

    recomputable = True

    def __init__(self, atom_width: int, num_channels: int = 4) -> None:
        super().__init__()
        self.radial = RadialBasis(num=12, nearest_ang=1.5, reach_ang=6.5)
        self.atom = nn.Linear(atom_width, num_channels)
        self.kind = nn.Embedding(NUM_KINDS, num_channels)
        self.num_features = self.radial.num * num_channels
        nn.init.ones_(self.atom.bias)
        nn.init.ones_(self.kind.weight)

    def forward(self, distance_ang: Tensor, kind: Tensor, staying: Tensor, turning: Tensor, moved: Tensor, rate_ang: Tensor) -> Graded:
        """Sums over pairs.

        Args:
            distance_ang: (R, I, J).
            kind: (R, I, J) int64, LEFT_OUT where a pair does not count.
            staying, turning: (R, I, D) and (R, J, D) even features of the atoms.
            moved: (R, T, I, J) bool, True where turning bond t changes the distance.
            rate_ang: (R, T, I, J) angstrom per radian.

        Returns:
            (R, T, num_features) even and odd.
        """
        counts = kind != LEFT_OUT
        share = self.atom(staying)[:, :, None] * self.atom(turning)[:, None] * self.kind(kind.clamp(min=0)) * counts[..., None]
        basis = self.radial(distance_ang).flatten(1, 2).transpose(1, 2)  # (R, M, I x J)
        felt = torch.stack([moved.to(rate_ang.dtype), rate_ang * moved], 2).flatten(3)  # (R, T, 2, I x J)
        # (R, M, I x J) times (R, I x J, T x 2 x C)
        weights = felt.permute(0, 3, 1, 2)[..., None] * share.flatten(1, 2)[:, :, None, None]
        total = basis @ weights.flatten(2).to(basis.dtype)
        total = total.unflatten(2, (*felt.shape[1:3], share.shape[-1]))  # (R, M, T, 2, C)
        even, odd = torch.asinh(total).permute(3, 0, 2, 1, 4).flatten(3)
        return Graded(even, odd)


def turning_rate(x_turning_ang: Tensor, offset_ang: Tensor, distance_ang: Tensor, origin_ang: Tensor, axis: Tensor) -> Tensor:
    """dd/dangle of pairs when the atoms of one side turn about an axis.

    Args:
        x_turning_ang: (..., J, 3) atoms that turn.
        offset_ang: (..., I, J, 3) from the atoms that stay to those that turn.
        distance_ang: (..., I, J).
        origin_ang, axis: (..., 3) a point of the axis, its direction.

    Returns:
        (..., I, J) angstrom per radian.
    """
    velocity = cross(axis[..., None, :].expand_as(x_turning_ang), x_turning_ang - origin_ang[..., None, :])
    return torch.einsum("...jd,...ijd->...ij", velocity, offset_ang) / distance_ang.clamp(min=1e-3)
