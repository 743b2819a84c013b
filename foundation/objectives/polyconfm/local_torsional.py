"""Local head on the torus: torsions of a unit by score matching; bond lengths, angles and rings come from seed geometries."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foundation.encoders.unit import FAR, THREE_BONDS, UnitGeometry
from foundation.geometry import torus
from foundation.geometry.torsions import rotate_torsions, torsion_angles
from foundation.geometry.vectors import take_slots, unit_vector
from foundation.nn.contacts import LEFT_OUT, Contacts, pair_geometry, pairs_within, turning_rate
from foundation.nn.embedding import FourierFeatures, harmonics
from foundation.nn.parity import Block, Graded, GradedLinear, GradedNorm, OddReadout, Width, cat
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.view import UnitView


class TorsionalHead(nn.Module):
    """Score network on the torus of a unit's rotatable bonds, odd under reflection by construction.

    Source: Jing et al., Torsional diffusion, arXiv 2206.01729, sections 3.1 to 3.4; as the local head of PolyConFM, arXiv 2510.16023.
    Differs: a parity-graded transformer in the unit frame instead of tensor products, any element, fresh noise for every unit, all units of
    a step in one batch, exact scores.
    """

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.num_steps = config.torsion_sigma_min_rad, config.torsion_sigma_max_rad, config.local_steps
        self.geometry = UnitGeometry(width, width.even, config.num_heads)
        self.noise = FourierFeatures(width.even)
        self.condition = GradedLinear(width, width)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, width) for _ in range(config.local_layers))
        self.norm = GradedNorm(width)
        self.num_harmonics = config.num_harmonics
        self.contacts = Contacts(width.even)
        extra = self.num_harmonics + self.contacts.num_features
        self.readout = OddReadout(Width(4 * width.even + extra, 4 * width.odd + extra), width)

    def forward(self, x_ang: Tensor, sigma_rad: Tensor, view: UnitView, z: Graded) -> Tensor:
        """Score / sqrt(E score^2).

        Args:
            x_ang: (M, A, 3) noisy units in their frames.
            sigma_rad: (M,).
            z: (M, .) condition of each unit.

        Returns:
            (M, T), zero in the padding.
        """
        h, bias = self.geometry(x_ang, view.handedness, view.atoms, view.classes, view.mask)
        level = self.noise((sigma_rad / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min))
        given = self.condition(z)
        given = Graded(given.even + level, given.odd)[:, None]
        for block in self.blocks:
            h = block(h, bias, condition=given)
        h = self.norm(h)
        row = torch.arange(len(x_ang), device=x_ang.device)[:, None]
        four = [h[row, view.torsion_slot[..., k]] for k in range(4)]  # (M, T, .) each
        angle = torsion_angles(x_ang, view.torsion_slot, view.torsion_mask)
        score = self.readout(cat(*four, harmonics(angle, self.num_harmonics), self.contacts_of(x_ang, view)))
        return score.float() * view.torsion_mask

    def contacts_of(self, x_ang: Tensor, view: UnitView) -> Graded:
        """(M, T, .) contacts between the atoms that a torsion turns and those that it does not."""
        pairs = pairs_within(x_ang.shape[1], x_ang.device)
        distance, plane = pair_geometry(x_ang, x_ang, pairs)
        classes = view.classes[:, *pairs]
        kind = torch.full_like(classes, LEFT_OUT).masked_fill(classes == THREE_BONDS, 0).masked_fill(classes == FAR, 1)
        kind = kind.masked_fill(~(view.mask[:, pairs[0]] & view.mask[:, pairs[1]]), LEFT_OUT)
        b, c = take_slots(x_ang, view.torsion_slot[..., 1:3].flatten(1)).unflatten(1, (-1, 2)).unbind(2)
        turns = view.torsion_moved & view.torsion_mask[..., None]
        first, second = turns[..., pairs[0]], turns[..., pairs[1]]  # (M, T, P) each
        rate = turning_rate(distance, plane, c, unit_vector(c - b))
        return self.contacts(pairs, distance, kind, view.atoms, view.atoms, first ^ second, torch.where(first, -rate, rate))

    def loss(self, x_ang: Tensor, view: UnitView, z: Graded, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Denoising score matching, 1 for a zero predictor.

        Args:
            x_ang: (M, A, 3) true units in their frames.

        Returns:
            (M,) sum over torsions of the squared error / E score^2, and (M,) number of torsions.
        """
        t = torch.rand(len(x_ang), generator=rng, device=x_ang.device)
        sigma = torus.sigma_at(t, self.sigma_min, self.sigma_max)
        tau = torus.sample(view.torsion_mask.shape, sigma[:, None], rng)
        noisy = rotate_torsions(x_ang, view.torsion_slot, view.torsion_moved, view.torsion_mask, tau)
        target = torus.score(tau, sigma[:, None]) * torus.score_norm_sq(sigma)[:, None].rsqrt()
        error = (self(view.reframe(noisy), sigma, view, z) - target).square() * view.torsion_mask
        return error.sum(1), view.torsion_mask.sum(1).to(error.dtype)

    def sample(self, seed_x_ang: Tensor, view: UnitView, z: Graded, rng: torch.Generator, null: Graded | None, guidance: float) -> Tensor:
        """Units from seed geometries: random torsions, then the reverse process.

        Args:
            seed_x_ang: (M, A, 3) geometries with the wanted handedness.
            z: (M, .); null: (M, .) condition without class, needed when guidance is not 1.

        Returns:
            (M, A, 3) in the unit frame.
        """
        turn = torus.uniform(view.torsion_mask.shape, rng, seed_x_ang.device)
        x = view.reframe(rotate_torsions(seed_x_ang, view.torsion_slot, view.torsion_moved, view.torsion_mask, turn))
        grid = torus.sigma_at(torch.linspace(1, 0, self.num_steps, device=x.device), self.sigma_min, self.sigma_max)
        grid, solver = torch.cat([grid, grid.new_zeros(1)]), torus.ReverseSDE()
        for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
            level = sigma.expand(len(x))
            score = self(x, level, view, z)
            if null is not None:
                free = self(x, level, view, null)
                score = free + guidance * (score - free)
            score = score * torus.score_norm_sq(sigma).sqrt()
            turn = solver.turn(score, sigma, sigma_next, rng)
            x = view.reframe(rotate_torsions(x, view.torsion_slot, view.torsion_moved, view.torsion_mask, turn))
        return x
