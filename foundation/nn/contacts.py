"""What contacts do to a rotatable bond: energies and torques of learned pair potentials between the atoms on its two sides.

The score of a Boltzmann law of pair potentials U(d) in an angle is - sum over pairs of U'(d) dd/dangle. With U' written in a radial
basis, the sums of basis functions, and of basis functions times dd/dangle, are all that a network needs to know of the contacts. The
first are even under reflection, the second odd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.nn.embedding import RadialBasis
from foundation.nn.parity import Graded

NUM_KINDS = 3  # of pairs: three bonds apart, further in the same or the next unit, two units apart
LEFT_OUT = -1
Pairs = tuple[Tensor, Tensor]  # (P,) and (P,) int64, an atom of one set and one of another


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

    def forward(
        self, pairs: Pairs, distance_ang: Tensor, kind: Tensor, first: Tensor, second: Tensor, moved: Tensor, rate_ang: Tensor
    ) -> Graded:
        """Sums over pairs.

        Args:
            pairs: of atoms of ``first`` and of ``second``, from every_pair or pairs_within.
            distance_ang: (R, P).
            kind: (R, P) int64, LEFT_OUT where a pair does not count.
            first, second: (R, I, D) and (R, J, D) even features of the atoms.
            moved: (R, T or 1, P or 1) bool, True where turning bond t changes the distance.
            rate_ang: (R, T, P) angstrom per radian.

        Returns:
            (R, T, num_features) even and odd.
        """
        of_kind = (kind[:, None] == torch.arange(NUM_KINDS, device=kind.device)[:, None]).to(rate_ang.dtype)  # (R, K, P), 0 if left out
        one, other = (self.atom(x).transpose(1, 2).index_select(2, index) for x, index in zip((first, second), pairs, strict=True))
        share = one * other * (self.kind.weight.T @ of_kind)  # (R, C, P)
        basis = self.radial(distance_ang, dim=-2).to(share.dtype)  # (R, M, P)
        felt = torch.cat([moved.to(rate_ang.dtype).expand_as(rate_ang), rate_ang * moved], 1).to(share.dtype)  # (R, 2 T, P)
        # two of the three factors are multiplied pair by pair, the fewer rows the better; a matrix product with the third sums
        few, many = (felt, basis) if felt.shape[1] <= basis.shape[1] else (basis, felt)
        total = (share[:, :, None] * few[:, None]).flatten(1, 2) @ many.transpose(1, 2)
        total = total.unflatten(1, (share.shape[1], -1))  # (R, C, 2 T, M) or (R, C, M, 2 T)
        total = (total if few is basis else total.transpose(2, 3)).unflatten(3, (2, -1))  # (R, C, M, 2, T)
        even, odd = torch.asinh(total).permute(3, 0, 4, 2, 1).flatten(3)
        return Graded(even, odd)


def every_pair(first: int, second: int, device: torch.device) -> Pairs:
    """Indices of all first x second pairs."""
    index = torch.arange(first * second, device=device)
    return index // second, index % second


def pairs_within(count: int, device: torch.device) -> Pairs:
    """Indices of the pairs of a set, each once."""
    first, second = torch.triu_indices(count, count, 1, device=device).unbind()
    return first, second


def pair_geometry(x_first_ang: Tensor, x_second_ang: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(R, P) distances, and (R, 6, P) what turning_rate needs of the pairs: first x second and second - first.

    Args:
        x_first_ang, x_second_ang: (R, I, 3) and (R, J, 3).
        pairs: of them.
    """
    x, y = (x.transpose(1, 2).index_select(2, index) for x, index in zip((x_first_ang, x_second_ang), pairs, strict=True))  # (R, 3, P)
    offset = y - x
    across = x.roll(-1, 1) * y.roll(-2, 1) - x.roll(-2, 1) * y.roll(-1, 1)
    return offset.square().sum(1).clamp(min=1e-12).sqrt(), torch.cat([across, offset], 1)


def turning_rate(distance_ang: Tensor, plane: Tensor, origin_ang: Tensor, axis: Tensor) -> Tensor:
    """dd/dangle of pairs when their second atom turns about an axis; the negative where the first one does.

    With the second atom at y, turning about a through o, and the first at x: a x (y - o) . (y - x) / d = a . ((x - o) x (y - o)) / d.

    Args:
        distance_ang: (R, P).
        plane: (R, 6, P) of pair_geometry.
        origin_ang, axis: (R, T, 3) a point of each axis, its direction.

    Returns:
        (R, T, P) angstrom per radian.
    """
    moment = torch.linalg.cross(origin_ang, axis)
    return torch.cat([axis, moment], -1) @ plane / distance_ang[:, None].clamp(min=1e-3)
