"""Orientation head on rotations: SO(3) diffusion of every unit's frame, translations derived from the overlap at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.batch import Condition, dense_mask, ragged_coordinates
from foundation.geometry import igso3
from foundation.geometry.assembly import NBR0, NBR1, STAR0, STAR1, overlap_translations, project_rotations
from foundation.geometry.igso3 import SO3Schedule
from foundation.geometry.torsions import dihedral
from foundation.geometry.vectors import cross, take_slots, unit_vector
from foundation.nn.embedding import FourierFeatures, RadialBasis, harmonics
from foundation.nn.parity import Block, Graded, GradedLinear, GradedMLP, GradedNorm, Width, cat, key_bias
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.view import GraphView

EVEN_ENTRIES = (0, 1, 3, 4, 8)  # of a 3 x 3 matrix, row by row: those that a reflection of both frames leaves
ODD_ENTRIES = (2, 5, 6, 7)
LENGTH_SCALE_ANG = 10.0
NUM_POLAR, NUM_AXIAL = 4, 2  # vectors of a unit's two junctions: bonds as both sides see them, turns that make the two views agree


class SO3Head(nn.Module):
    """Body-frame score of unit rotations. Inputs are relative rotations and positions, so a global rotation changes nothing.

    Source: Yim et al., FrameDiff, arXiv 2302.02277, section 3.2, as used by PolyConFM, arXiv 2510.16023. Differs: uniform prior, exact
    score, translations from the overlap in training and sampling alike, boolean masks, any batch size, optional projection onto the
    shared bond; a pair-bias transformer on relative frames takes the place of IPA; the score may point along the shared bonds and along
    the turns that make them agree, so the network weighs directions instead of inventing them.
    """

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.schedule = SO3Schedule()
        self.num_steps, self.project = config.orientation_steps, config.project_shared_bond
        self.num_harmonics = config.num_harmonics
        extra = Width(14 + 2 * NUM_POLAR + NUM_AXIAL + 2 * self.num_harmonics, 10 + NUM_POLAR + 2 * NUM_AXIAL + 2 * self.num_harmonics)
        sides = Width(3 * width.even + extra.even, 3 * width.odd + extra.odd)
        self.join = GradedMLP(sides, width, expand=2)
        self.noise = FourierFeatures(width.even)
        self.radial = RadialBasis(num=16, reach_ang=48.0)
        self.pair = nn.Linear(16, config.num_heads)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, Width(width.even, 0)) for _ in range(config.orientation_layers))
        self.norm = GradedNorm(width)
        self.mix = GradedMLP(Width(width.even + extra.even, width.odd + extra.odd), width, expand=2)
        self.out = GradedLinear(width, Width(1 + NUM_AXIAL, 2 + NUM_POLAR), zero=True)

    def forward(self, rot: Tensor, t: Tensor, x_unit_ang: Tensor, context: Graded, condition: Condition) -> Tensor:
        """Body-frame score divided by its typical size.

        Args:
            rot: (U, 3, 3) noisy world_from_unit.
            t: (B,) one time a chain.
            x_unit_ang: (U, A, 3) unit shapes.
            context: (U, .).

        Returns:
            (U, 3).
        """
        start = condition.unit_position == 0
        joined = condition.has_next
        before, after = condition.unit_before, condition.unit_after
        origin = overlap_translations(rot, x_unit_ang, condition.key_slot[condition.unit_chain], start).float()
        inverse = rot.transpose(1, 2)
        relative = [(inverse @ rot[k]).flatten(1) * mask[:, None] for k, mask in ((before, ~start), (after, joined))]
        shift = [(inverse @ (origin[k] - origin)[..., None])[..., 0] / LENGTH_SCALE_ANG for k in (before, after)]
        even = torch.cat([m[:, EVEN_ENTRIES] for m in relative] + [s[:, :2] for s in shift], -1)  # (U, 14)
        odd = torch.cat([m[:, ODD_ENTRIES] for m in relative] + [s[:, 2:] for s in shift], -1)  # (U, 10)
        sigma = self.schedule.sigma(t)[condition.unit_chain]
        polar, axial, angles = self.junctions(rot, sigma, x_unit_ang, condition)
        vectors = Graded(
            torch.cat([polar[..., :2].flatten(1), axial[..., 2]], -1), torch.cat([polar[..., 2], axial[..., :2].flatten(1)], -1)
        )
        local = cat(Graded(even, odd), vectors, angles)
        tokens = self.join(cat(context, context[before].masked(~start), context[after].masked(joined), local))
        row, column = ragged_coordinates(condition.chain_ptr)
        width = int(condition.num_units.max())
        h = Graded(*(x.new_zeros(condition.num_chains, width, x.shape[-1]).index_put((row, column), x) for x in tokens))
        place = origin.new_zeros(condition.num_chains, width, 3).index_put((row, column), origin)
        bias = self.pair(self.radial(torch.cdist(place, place))).permute(0, 3, 1, 2) + key_bias(dense_mask(condition.chain_ptr, width))
        position = torch.arange(width, device=rot.device)[None].expand(condition.num_chains, -1)
        level = self.noise(t)[:, None]
        given = Graded(level, level.new_zeros(len(t), 1, 0))
        for block in self.blocks:
            h = block(h, bias, position, given)
        out = self.out(self.mix(cat(self.norm(h)[row, column], local)))
        free = torch.cat([out.odd[:, :2], out.even[:, :1]], -1).float()  # rotation about z is even, about x and y odd
        along = (out.odd[:, 2:, None].float() * polar).sum(1) + (out.even[:, 1:, None].float() * axial).sum(1)
        return free + along

    def junctions(self, rot: Tensor, sigma: Tensor, x_unit_ang: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Graded]:
        """The two junctions of every unit, seen from its frame; zero where a chain ends.

        Args:
            rot: (U, 3, 3) noisy world_from_unit.
            sigma: (U,) noise level.
            x_unit_ang: (U, A, 3).

        Returns:
            (U, NUM_POLAR, 3) unit vectors of the shared bonds: own tail bond, the same as the next unit has it, own head bond, the same as
            the unit before has it. (U, NUM_AXIAL, 3) turns from the other's view to the own, at most 1 long, in units of the noise where
            they are small. Noisy link dihedrals of both junctions as harmonics.
        """
        chain = condition.unit_chain
        start, joined = condition.unit_position == 0, condition.has_next
        before, after = condition.unit_before, condition.unit_after
        x = take_slots(x_unit_ang, torch.cat([condition.key_slot[chain], condition.link_slot[chain]], 1)).to(rot.dtype)
        tail, head = unit_vector(x[:, STAR1] - x[:, NBR1]), unit_vector(x[:, NBR0] - x[:, STAR0])

        def seen(vector: Tensor, other: Tensor) -> Tensor:
            """A vector of the unit ``other`` in the own frame."""
            return torch.einsum("uji,ujk,uk->ui", rot, rot[other], vector[other])

        theirs_tail, theirs_head = seen(head, after), seen(tail, before)
        turns = torch.stack([cross(theirs_tail, tail), cross(theirs_head, head)], 1)
        turns = turns * (turns.square().sum(-1, keepdim=True) + sigma[:, None, None].square()).rsqrt()
        # x[:, 4], x[:, 5]: the atoms that the link dihedral is measured from
        phi = dihedral(x[:, 4], x[:, NBR1], x[:, STAR1], x[:, STAR1] + seen(x[:, 5] - x[:, NBR0], after))
        angles = harmonics(phi, self.num_harmonics)
        there = torch.stack([joined, start.logical_not()], 1)
        polar = torch.stack([tail, theirs_tail, head, theirs_head], 1) * there.repeat_interleave(2, 1)[..., None]
        return polar, turns * there[..., None], cat(angles.masked(joined), angles[before].masked(~start))

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
        """(B,) squared score error over its typical size, mean over units; 1 for a zero predictor."""
        t = 0.01 + 0.99 * torch.rand(batch.num_chains, generator=rng, device=world_from_unit.device)
        sigma = self.schedule.sigma(t)[batch.unit_chain]
        noisy, score = igso3.perturb(world_from_unit, sigma, rng)
        target = score / igso3.score_norm(sigma)[:, None]
        error = (self(noisy, t, x_unit_ang, context, batch) - target).square().mean(-1)
        total = error.new_zeros(batch.num_chains).index_add(0, batch.unit_chain, error)
        return total / batch.num_units

    def sample(self, condition: Condition, x_unit_ang: Tensor, context: Graded, graphs: GraphView, rng: torch.Generator) -> Tensor:
        """(U, 3, 3) float64 rotations: uniform prior, ancestral steps, then the shared bonds made exact if the configuration says so."""
        rot = igso3.uniform((len(condition.unit_chain),), rng, context.even.device)
        times = torch.linspace(1, 0.01, self.num_steps, device=rot.device)
        sigma = torch.cat([self.schedule.sigma(times), times.new_zeros(1)])
        for k, t in enumerate(times):
            level = sigma[k].expand(len(rot))
            score = self(rot, t.expand(condition.num_chains), x_unit_ang, context, condition) * igso3.score_norm(level)[:, None]
            rot = igso3.reverse_sde_step(rot, score, level, sigma[k + 1].expand(len(rot)), rng)
        if not self.project:
            return rot.double()
        return project_rotations(rot, x_unit_ang, condition.key_slot[condition.unit_chain], condition.unit_position == 0)
