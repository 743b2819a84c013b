"""Orientation head on link dihedrals: given unit shapes a chain of N units has N - 1 angles left, and this head draws them jointly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foundation.batch import Condition, dense_mask, ragged_coordinates
from foundation.geometry import torus
from foundation.geometry.assembly import NBR0, NBR1, assemble_links
from foundation.geometry.torsions import wrap_angle
from foundation.geometry.vectors import take_slots, unit_vector
from foundation.nn.contacts import LEFT_OUT, Contacts, every_pair, pair_geometry, turning_rate
from foundation.nn.embedding import FourierFeatures, harmonics
from foundation.nn.parity import Block, Graded, GradedMLP, GradedNorm, OddReadout, Width, cat, key_bias
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.view import GraphView, bonds_across


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
        self.near, self.far = Contacts(width.even), Contacts(width.even)
        extra = self.num_harmonics + self.near.num_features + self.far.num_features
        sides = Width(2 * width.even + extra, 2 * width.odd + extra)
        self.join = GradedMLP(sides, width, expand=2)
        self.noise = FourierFeatures(width.even)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, Width(width.even, 0)) for _ in range(config.orientation_layers))
        self.norm = GradedNorm(width)
        self.readout = OddReadout(Width(width.even + sides.even, width.odd + sides.odd), width)

    def forward(
        self, phi_rad: Tensor, sigma_rad: Tensor, x_unit_ang: Tensor, context: Graded, condition: Condition, graphs: GraphView
    ) -> Tensor:
        """Score / sqrt(E score^2) of every junction.

        Args:
            phi_rad: (U,) noisy angles of the junctions u -> u + 1.
            sigma_rad: (B,) one noise level a chain.
            x_unit_ang: (U, A, 3) unit shapes.
            context: (U, .) unit features.
            graphs: unit graphs of the chains.

        Returns:
            (U,), zero at the last unit of a chain.
        """
        joined = condition.has_next
        after = condition.unit_after
        contacts = self.contacts_of(phi_rad, x_unit_ang, condition, graphs)
        sides = cat(context, context[after], harmonics(phi_rad, self.num_harmonics), *contacts)
        row, column = ragged_coordinates(condition.chain_ptr)
        width = int(condition.num_units.max())
        h = Graded(*(t.new_zeros(condition.num_chains, width, t.shape[-1]).index_put((row, column), t) for t in self.join(sides)))
        mask = dense_mask(condition.chain_ptr, width) & (torch.arange(width, device=row.device)[None] < (condition.num_units - 1)[:, None])
        level = self.noise((sigma_rad / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min))[:, None]
        given = Graded(level, level.new_zeros(len(level), 1, 0))
        position = torch.arange(width, device=row.device)[None].expand(condition.num_chains, -1)
        bias = key_bias(mask)
        for block in self.blocks:
            h = block(h, bias, position, given)
        h = self.norm(h)[row, column]
        return self.readout(cat(h, sides)).float() * joined

    def contacts_of(self, phi_rad: Tensor, x_unit_ang: Tensor, condition: Condition, graphs: GraphView) -> tuple[Graded, Graded]:
        """(U, .) contacts that the junction u -> u + 1 turns: of units u and u + 1, and of units two places apart around it."""
        chain, start = condition.unit_chain, condition.unit_position == 0
        key, link = condition.key_slot[chain], condition.link_slot[chain]
        world, _ = assemble_links(x_unit_ang, key, link, start, phi_rad)
        joined, index = condition.has_next, torch.arange(len(chain), device=chain.device)
        before, after = condition.unit_before, condition.unit_after
        skips = joined & joined[after]
        second = torch.where(skips, index + 2, index)
        hinge = take_slots(world, key[:, [NBR1]])[:, 0]  # (U, 3), all that follows is seen from here
        origin = take_slots(world[after], key[:, [NBR0]])[:, 0]
        axis = unit_vector(origin - hinge).float()
        atoms = graphs.atoms[chain]
        across = bonds_across(condition, graphs.classes)[chain]
        close = torch.full_like(across, LEFT_OUT).masked_fill(across == 3, 0).masked_fill(across > 3, 1)

        grid = every_pair(condition.max_atoms, condition.max_atoms, chain.device)

        def pairs(other: Tensor, turns: Tensor, kind: Tensor, contacts: Contacts, mask: Tensor) -> Graded:
            """Contacts of unit u with unit other[u], turned by the junctions turns[u] (U, T)."""
            here, there = (world - hinge[:, None]).float(), (world[other] - hinge[:, None]).float()
            distance, plane = pair_geometry(here, there, grid)
            at = (origin[turns] - hinge[:, None]).float()
            rate = turning_rate(distance, plane, at, axis[turns])
            return contacts(grid, distance, kind.flatten(1), atoms, atoms[other], mask[:, None, None], rate)

        near = pairs(after, index[:, None], close, self.near, joined)[:, 0]
        apart = torch.where(across > 0, 2, LEFT_OUT)  # own atoms on both sides
        far = pairs(second, torch.stack([index, after], 1), apart, self.far, skips)  # (U, 2, .)
        return near, far[:, 0] + far[before, 1].masked(~start)

    def loss(
        self,
        batch: Condition,
        world_from_unit: Tensor,
        x_unit_ang: Tensor,
        phi_rad: Tensor,
        context: Graded,
        graphs: GraphView,
        rng: torch.Generator,
    ) -> Tensor:
        """(B,) denoising score matching, mean over junctions, 1 for a zero predictor; 0 for a chain of one unit."""
        t = torch.rand(batch.num_chains, generator=rng, device=phi_rad.device)
        sigma = torus.sigma_at(t, self.sigma_min, self.sigma_max)
        level = sigma[batch.unit_chain]
        tau = torus.sample(phi_rad.shape, level, rng)
        target = torus.score(tau, level) * torus.score_norm_sq(level).rsqrt()
        error = (self(phi_rad + tau, sigma, x_unit_ang, context, batch, graphs) - target).square() * batch.has_next
        total = error.new_zeros(batch.num_chains).index_add(0, batch.unit_chain, error)
        return total / (batch.num_units - 1).clamp(min=1)

    def sample(self, condition: Condition, x_unit_ang: Tensor, context: Graded, graphs: GraphView, rng: torch.Generator) -> Tensor:
        """(U,) link dihedrals from uniform angles, down a geometric grid of noise levels."""
        phi = torus.uniform(condition.has_next.shape, rng, context.even.device)
        grid = torus.sigma_at(torch.linspace(1, 0, self.num_steps, device=phi.device), self.sigma_min, self.sigma_max)
        grid, solver = torch.cat([grid, grid.new_zeros(1)]), torus.ReverseSDE()
        for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
            made = self(phi, sigma.expand(condition.num_chains), x_unit_ang, context, condition, graphs)
            score = made * torus.score_norm_sq(sigma).sqrt()
            phi = wrap_angle(phi + solver.turn(score, sigma, sigma_next, rng))
        return torch.where(condition.has_next, phi, 0.0)
