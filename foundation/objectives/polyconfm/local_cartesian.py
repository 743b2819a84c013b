"""Local head on coordinates: flow matching of a unit's atoms in its frame. Bonds, angles, rings and chirality are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.encoders.unit import COORDINATE_SCALE_ANG, NUM_PAIR_CLASSES, TWO_BONDS, UnitGeometry
from foundation.geometry.vectors import safe_norm
from foundation.nn.embedding import FourierFeatures, RadialBasis
from foundation.nn.parity import Block, Graded, GradedLinear, GradedNorm, Width
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.view import UnitView

LATEST_TIME = 0.98  # the weight 1 / (1 - t)^2 of the velocity error is capped here
PAIR_WIDTH = 32


class CartesianHead(nn.Module):
    """x1-prediction of the straight path x_t = (1 - t) x0 + t x1, x0 ~ N(0, scale^2), in the unit frame.

    The frame fixes the pose, so the flow lives on shapes; reflection is exact (x, y even, z odd). After every block the atoms move, and
    the next block sees where they are.

    Source: Lipman et al., Flow matching, arXiv 2210.02747, eq. 23; the slot of PolyConFM's SE(3) local diffusion, arXiv 2510.16023, eq. 8;
    moves along the lines between atoms: Satorras et al., EGNN, arXiv 2102.09844, eq. 4. Differs: x1-prediction, canonical frame instead of
    equivariant noise, distance error on bonded and 1-3 pairs late in time; attention in place of messages, free moves in the frame too.
    """

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.num_steps, self.bond_weight = config.local_steps, config.bond_weight
        self.geometry = UnitGeometry(width, width.even, config.num_heads)
        self.time = FourierFeatures(width.even)
        self.condition = GradedLinear(width, width)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, width) for _ in range(config.local_layers))
        self.moves = nn.ModuleList(Move(width) for _ in range(config.local_layers))

    def forward(self, x_ang: Tensor, t: Tensor, view: UnitView, z: Graded) -> Tensor:
        """Predicted clean unit (M, A, 3) from x_t (M, A, 3) at times t (M,)."""
        given = self.condition(z)
        given = Graded(given.even + self.time(t), given.odd)[:, None]
        # the best linear guess when data and prior have the same spread; the network adds the rest
        skip = t / (t.square() + (1 - t).square())
        x = skip[:, None, None] * x_ang
        reach = COORDINATE_SCALE_ANG * (1 - t).clamp(min=1 - LATEST_TIME)[:, None, None]
        h = Graded(*(torch.zeros((), device=x.device) for _ in range(2)))
        for block, move in zip(self.blocks, self.moves, strict=True):
            place, bias = self.geometry(x, view.handedness, view.atoms, view.classes, view.mask)
            h = block(h + place, bias, condition=given)
            x = (x + move(x, h, view, reach)) * view.mask[..., None]
        return x

    def loss(self, x_ang: Tensor, view: UnitView, z: Graded, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(M,) sum over atoms of the velocity error in units of the prior, and (M,) number of atoms."""
        t = torch.rand(len(x_ang), generator=rng, device=x_ang.device) * LATEST_TIME
        x0 = torch.randn(x_ang.shape, generator=rng, device=x_ang.device) * COORDINATE_SCALE_ANG * view.mask[..., None]
        x_t = (1 - t)[:, None, None] * x0 + t[:, None, None] * x_ang
        predicted = self(x_t, t, view, z)
        weight = 1 / (1 - t).square()
        error = (predicted - x_ang).square().sum(-1) * weight[:, None] / COORDINATE_SCALE_ANG**2
        loss = (error * view.mask).sum(1) / 3
        if self.bond_weight > 0:
            near = (view.classes >= 1) & (view.classes <= TWO_BONDS)
            gap = (_pair_distance(predicted) - _pair_distance(x_ang)).square() * near
            loss = loss + self.bond_weight * t.square() * weight.clamp(max=25.0) * gap.sum((1, 2)) / 2
        return loss, view.mask.sum(1).to(loss.dtype)

    def sample(
        self, seed_x_ang: Tensor | None, view: UnitView, z: Graded, rng: torch.Generator, null: Graded | None, guidance: float
    ) -> Tensor:
        """(M, A, 3) units in their frames by Euler steps of dx/dt = (x1_hat - x) / (1 - t), finer near the data; seeds are not used."""
        shape = (*view.mask.shape, 3)
        x = torch.randn(shape, generator=rng, device=view.mask.device) * COORDINATE_SCALE_ANG * view.mask[..., None]
        grid = 1 - (1 - torch.linspace(0, 1, self.num_steps + 1, device=x.device)).pow(1.5)
        for t, t_next in zip(grid[:-1], grid[1:], strict=True):
            level = t.clamp(max=LATEST_TIME).expand(len(x))
            clean = self(x, level, view, z)
            if null is not None:
                free = self(x, level, view, null)
                clean = free + guidance * (clean - free)
            x = x + (t_next - t) / (1 - t) * (clean - x)
        return view.reframe(x)


class Move(nn.Module):
    """How far every atom goes: along the lines to all others, linear in their distance as springs are, and freely in the frame."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.norm = GradedNorm(width)
        self.free = GradedLinear(width, Width(2, 1), zero=True)
        self.here, self.there = nn.Linear(width.even, PAIR_WIDTH), nn.Linear(width.even, PAIR_WIDTH, bias=False)
        self.radial = RadialBasis()
        self.distance = nn.Linear(self.radial.num, PAIR_WIDTH, bias=False)
        self.pair = nn.Embedding(NUM_PAIR_CLASSES, PAIR_WIDTH)
        self.spring = nn.Linear(PAIR_WIDTH, 2)
        nn.init.zeros_(self.spring.weight)
        nn.init.zeros_(self.spring.bias)

    def forward(self, x_ang: Tensor, h: Graded, view: UnitView, reach_ang: Tensor) -> Tensor:
        """(M, A, 3) displacements in angstrom of atoms at x_ang (M, A, 3); reach_ang (M, 1, 1) scales the free part."""
        h = self.norm(h)
        free = self.free(h)
        offset = x_ang[:, :, None] - x_ang[:, None]
        distance = safe_norm(offset)
        pairs = self.here(h.even)[:, :, None] + self.there(h.even)[:, None] + self.distance(self.radial(distance)) + self.pair(view.classes)
        push, pull = self.spring(nn.functional.gelu(pairs)).float().unbind(-1)
        both = view.mask[:, :, None] & view.mask[:, None]
        along = (push / distance.clamp(min=0.1) - pull) * both
        return (along[..., None] * offset).sum(2) + reach_ang * torch.cat([free.even, free.odd], -1).float()


def _pair_distance(x: Tensor) -> Tensor:
    """(M, A, 3) -> (M, A, A), gradient finite for coinciding atoms."""
    return ((x[:, :, None] - x[:, None]).square().sum(-1) + 1e-6).sqrt()
