"""Local head by DiTMC: flow matching of a unit's atoms with its transformer, told the unit token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.encoders.unit import BONDED, THREE_BONDS, TWO_BONDS
from foundation.molecules import FAR, Molecules
from foundation.nn.parity import Graded, Width
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.flow import Path, follow, guided
from foundation.objectives.ditmc.network import Known, Transformer
from foundation.objectives.ditmc.prior import centre, draw_prior
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.view import UnitView

FLIP = (1.0, 1.0, -1.0)


class DiTMCHead(nn.Module):
    """Bridge from the harmonic prior of the unit's bonds to its atoms in the unit frame, relative positions.

    What is said of a unit and of its mirror image, with odd conditions reversed, is averaged, so that reflection is exact.

    Source: DiTMC, arXiv 2506.15378, in the slot of PolyConFM's local diffusion, arXiv 2510.16023, eq. 8. Differs: the frame fixes the pose,
    so that nothing is turned at random; the unit token takes the conditioner's place.
    """

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.num_steps = config.local_steps
        inner = DiTMCConfig(width=config.width, num_heads=config.num_heads, num_layers=config.local_layers)
        self.path = Path.of(inner)
        self.network = Transformer(inner)
        self.element = nn.Linear(width.even, config.width)
        self.condition = nn.Linear(2 * width.even + width.odd + 1, config.width)

    def forward(self, x_ang: Tensor, t: Tensor, view: UnitView, z: Graded) -> tuple[Tensor, Tensor]:
        """Predicted clean unit and noise, (M, A, 3) each and centred, of x_t (M, A, 3) at times t (M,)."""
        flip = torch.tensor(FLIP, device=x_ang.device)
        one = self._said(x_ang, t, view, z, view.handedness)
        other = self._said(x_ang * flip, t, view, Graded(z.even, -z.odd), -view.handedness)
        first, second = (0.5 * (own + image * flip) for own, image in zip(one.chunk(2, -1), other.chunk(2, -1), strict=True))
        return centre(self.path.clean(x_ang, t, first), view.mask), centre(second, view.mask)

    def _said(self, x: Tensor, t: Tensor, view: UnitView, z: Graded, handedness: Tensor) -> Tensor:
        given = torch.cat([z.even, z.odd], -1)[:, None].expand(-1, view.mask.shape[1], -1)
        atoms = self.condition(torch.cat([view.atoms, given, handedness[..., None]], -1)) * view.mask[..., None]
        no_bonds = x.new_zeros(0, 0), view.mask.new_zeros(0, dtype=torch.long)
        known = Known(self.element(view.atoms), atoms, no_bonds[0], hop_classes(view), no_bonds[1], view.mask)
        return self.network(x, t, known).float()

    def loss(self, x_ang: Tensor, view: UnitView, z: Graded, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(M,) sum over atoms of the errors of clean atoms and of noise, and (M,) number of atoms."""
        x1 = centre(x_ang, view.mask)
        x0 = draw_prior(skeleton(view), "harmonic", rng)
        noise = centre(torch.randn(x1.shape, generator=rng, device=x1.device), view.mask)
        t = self.path.draw_times(len(x1), "uniform", rng, x1.device)
        errors = self.path.errors(self(self.path.between(x0, x1, noise, t), t, view, z), x0, x1, noise, t)
        return ((errors[0] + errors[1]) * view.mask).sum(1), view.mask.sum(1).to(x1.dtype)

    def sample(
        self, seed_x_ang: Tensor | None, view: UnitView, z: Graded, rng: torch.Generator, null: Graded | None, guidance: float
    ) -> Tensor:
        """(M, A, 3) units in their frames; seeds are not used."""

        def heads(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            told = self(x, t, view, z)
            return told if null is None else guided(told, self(x, t, view, null), guidance)

        return view.reframe(follow(self.path, heads, draw_prior(skeleton(view), "harmonic", rng), "euler", self.num_steps))


def hop_classes(view: UnitView) -> Tensor:
    """(M, A, A) classes of DiTMC: one, two, three bonds apart, or more."""
    known = view.classes
    hops = torch.full_like(known, FAR).masked_fill(known == THREE_BONDS, 3).masked_fill(known == TWO_BONDS, 2)
    hops = hops.masked_fill((known >= 1) & (known <= BONDED), 1)
    hops.diagonal(dim1=1, dim2=2).zero_()
    return hops * (view.mask[:, :, None] & view.mask[:, None])


def skeleton(view: UnitView) -> Molecules:
    """Units as molecules of which nothing is known but their bonds."""
    rows, n = view.mask.shape
    classes = hop_classes(view)
    row, i, j = torch.nonzero(classes == 1, as_tuple=True)
    padding = ~view.mask.reshape(-1)
    piece = torch.where(padding, rows + padding.long().cumsum(0) - 1, torch.arange(rows * n, device=classes.device) // n)
    nothing = classes.new_zeros(rows, n, 0), classes.new_zeros(len(row), 0)
    return Molecules(nothing[0], view.mask, torch.stack([row * n + i, row * n + j]), nothing[1], classes, piece)


__all__ = ["DiTMCHead", "hop_classes", "skeleton"]
