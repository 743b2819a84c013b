"""Orientation head on link dihedrals: given unit shapes a chain of N units has N - 1 angles left, and this head draws them jointly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.batch import Condition, dense_mask, ragged_coordinates
from foundation.geometry import torus
from foundation.nn.embedding import FourierFeatures, harmonics
from foundation.nn.parity import Block, Graded, GradedMLP, GradedNorm, OddReadout, Width, cat, key_bias
from foundation.objectives.polyconfm.config import PolyConFMConfig


class LinkTorsionHead(nn.Module):
    """Score network on the torus of the N - 1 link dihedrals of every chain, odd under reflection by construction.

    Source: the slot of PolyConFM's SO(3) orientation diffusion, arXiv 2510.16023, section 3.3. Differs: one angle a junction instead of
    three a unit, so junction bonds and angles are exact and the law does not depend on a global rotation.
    """

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.num_steps = (
            config.torsion_sigma_min_rad,
            config.torsion_sigma_max_rad,
            config.orientation_steps,
        )
        self.num_harmonics = config.num_harmonics
        sides = Width(2 * width.even + self.num_harmonics, 2 * width.odd + self.num_harmonics)
        self.join = GradedMLP(sides, width, expand=2)
        self.noise = FourierFeatures(width.even)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, width) for _ in range(config.orientation_layers))
        self.norm = GradedNorm(width)
        self.readout = OddReadout(Width(width.even + sides.even, width.odd + sides.odd), width)

    def forward(self, phi_rad: Tensor, sigma_rad: Tensor, context: Graded, condition: Condition) -> Tensor:
        """Score / sqrt(E score^2) of every junction.

        Args:
            phi_rad: (U,) noisy angles of the junctions u -> u + 1.
            sigma_rad: (B,) one noise level a chain.
            context: (U, .) unit features.

        Returns:
            (U,), zero at the last unit of a chain.
        """
        joined = condition.has_next
        unit = torch.arange(len(joined), device=joined.device)
        after = torch.where(joined, unit + 1, unit)
        sides = cat(context, context[after], harmonics(phi_rad, self.num_harmonics))
        row, column = ragged_coordinates(condition.chain_ptr)
        width = int(condition.num_units.max())
        h = Graded(*(t.new_zeros(condition.num_chains, width, t.shape[-1]).index_put((row, column), t) for t in self.join(sides)))
        mask = dense_mask(condition.chain_ptr, width) & (torch.arange(width, device=row.device)[None] < (condition.num_units - 1)[:, None])
        level = self.noise((sigma_rad / self.sigma_min).log() / torch.log(torch.tensor(self.sigma_max / self.sigma_min)))[:, None]
        given = Graded(level, h.odd.new_zeros(len(level), 1, h.odd.shape[-1]))
        position = torch.arange(width, device=row.device)[None].expand(condition.num_chains, -1)
        bias = key_bias(mask)
        for block in self.blocks:
            h = block(h, bias, position, given)
        h = self.norm(h)[row, column]
        return self.readout(cat(h, sides)).float() * joined

    def loss(
        self, batch: Condition, world_from_unit: Tensor, x_unit_ang: Tensor, phi_rad: Tensor, context: Graded, rng: torch.Generator
    ) -> Tensor:
        """(B,) denoising score matching, mean over junctions, 1 for a zero predictor; 0 for a chain of one unit."""
        t = torch.rand(batch.num_chains, generator=rng, device=phi_rad.device)
        sigma = torus.sigma_at(t, self.sigma_min, self.sigma_max)
        level = sigma[batch.unit_chain]
        tau = torus.sample(phi_rad.shape, level, rng)
        target = torus.score(tau, level) * torus.score_norm_sq(level).rsqrt()
        error = (self(phi_rad + tau, sigma, context, batch) - target).square() * batch.has_next
        total = error.new_zeros(batch.num_chains).index_add(0, batch.unit_chain, error)
        return total / (batch.num_units - 1).clamp(min=1)

    def sample(self, condition: Condition, context: Graded, rng: torch.Generator) -> Tensor:
        """(U,) link dihedrals from uniform angles, ancestral steps on a geometric grid of noise levels."""
        phi = torus.uniform(condition.has_next.shape, rng, context.even.device)
        grid = torus.sigma_at(torch.linspace(1, 0, self.num_steps, device=phi.device), self.sigma_min, self.sigma_max)
        grid = torch.cat([grid, grid.new_zeros(1)])
        for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
            score = self(phi, sigma.expand(condition.num_chains), context, condition) * torus.score_norm_sq(sigma).sqrt()
            phi = torus.reverse_sde_step(phi, score, sigma, sigma_next, rng)
        return torch.where(condition.has_next, phi, 0.0)
