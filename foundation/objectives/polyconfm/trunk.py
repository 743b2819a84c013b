"""Masked autoregression over repeat units: encode the visible ones, decode a condition for every masked one.

Positions enter through rotary attention alone. The encoder runs on visible units only; the decoder is bidirectional.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foundation.batch import Condition, dense_mask, ragged_coordinates
from foundation.nn.parity import Block, Graded, GradedLinear, GradedNorm, Learned, Width, key_bias, where


def draw_mask(
    condition: Condition, full_fraction: float, low_fraction: float, rng: torch.Generator, fixed_ratio: float | None = None
) -> Tensor:
    """Units to predict in training.

    The ratio of a chain comes from a truncated normal (mean 1, deviation 0.25, on [0.7, 1]); a fraction of chains is masked whole, so
    that the first unit is learned on purpose, and a fraction lightly (0.15 to 0.5), since downstream tasks see every unit. At least one
    unit is masked. A fixed ratio takes the place of all this.

    Returns:
        (U,) bool, True = to be predicted.

    Source: Li et al., MAR, arXiv 2406.11838, section 4; PolyConFM, arXiv 2510.16023. Differs: one ratio a chain instead of one a batch,
        and the mixture.
    """
    device, chains = condition.chain_ptr.device, condition.num_chains
    uniform = torch.rand(3, chains, generator=rng, device=device)
    low, high = (0.5 * (1 + math.erf((edge - 1.0) / 0.25 / math.sqrt(2))) for edge in (0.7, 1.0))
    ratio = 1.0 + 0.25 * math.sqrt(2) * torch.erfinv(2 * (low + (high - low) * uniform[0]) - 1)
    ratio = torch.where(uniform[1] < low_fraction, 0.15 + 0.35 * uniform[2], ratio.clamp(0.7, 1.0))
    ratio = torch.where(uniform[1] > 1 - full_fraction, 1.0, ratio)
    if fixed_ratio is not None:
        ratio = torch.full_like(ratio, fixed_ratio)
    count = (condition.num_units * ratio).ceil().long().clamp(min=1)
    return random_rank(condition, rng) < count[condition.unit_chain]


def random_rank(condition: Condition, rng: torch.Generator) -> Tensor:
    """(U,) place of every unit in a random order of its chain's units, from 0."""
    noise = torch.rand(len(condition.unit_chain), generator=rng, device=condition.chain_ptr.device, dtype=torch.float64)
    order = torch.argsort(condition.unit_chain + noise)  # chains stay in place, units inside are shuffled
    return torch.empty_like(order).scatter_(0, order, condition.unit_position)


def unit_steps(condition: Condition, num_steps: int, rng: torch.Generator) -> Tensor:
    """Autoregressive step at which every unit is generated: cosine schedule, random order, chain by chain.

    After step s of S, floor(N cos(pi/2 (s + 1) / S)) units remain, at least one fewer than before; S is at most N for each chain.

    Source: MAR, arXiv 2406.11838, section 4. Differs: the number of steps of a short chain does not leak into later ones.
    """
    num_units = condition.num_units
    steps = num_units.clamp(max=num_steps)
    step = torch.arange(num_steps, device=num_units.device)[None] + 1
    left = (num_units[:, None] * torch.cos(torch.pi / 2 * step / steps[:, None])).floor().long().clamp(min=1)
    left = torch.minimum((left + step).cummin(1).values, num_units[:, None]) - step  # at least one unit a step
    remain = torch.where(step >= steps[:, None], 0, left)
    done = (num_units[:, None] - remain)[condition.unit_chain]  # (U, S) units generated after each step
    return (random_rank(condition, rng)[:, None] >= done).sum(1)


class Trunk(nn.Module):
    """Encoder on visible units and bidirectional decoder for masked ones."""

    def __init__(self, width: Width, num_layers: int, num_heads: int, num_registers: int) -> None:
        super().__init__()
        self.registers = Learned(num_registers, width.even)
        self.mask_token = Learned(width.even)
        self.ends = nn.Embedding(4, width.even)  # head of the chain, tail, both, neither
        self.encoder = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.encoder_norm = GradedNorm(width)
        self.bridge = GradedLinear(width, width)
        self.decoder = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.decoder_norm = GradedNorm(width)
        self.width, self.num_registers = width, num_registers

    def _flags(self, condition: Condition) -> Tensor:
        first = condition.unit_position == 0
        return self.ends(first.long() + 2 * (~condition.has_next).long())

    def _with_registers(self, rows: Graded, klass: Graded, position: Tensor, mask: Tensor) -> tuple[Graded, Tensor, Tensor]:
        count = self.num_registers
        even = self.registers()[None] + klass.even[:, None]
        odd = klass.odd[:, None].expand(-1, count, -1)
        x = Graded(torch.cat([even.to(rows.even.dtype), rows.even], 1), torch.cat([odd.to(rows.odd.dtype), rows.odd], 1))
        position = torch.cat([position.new_zeros(len(position), count), position], 1)
        return x, position, torch.cat([mask.new_ones(len(mask), count), mask], 1)

    def encode(self, tokens: Graded, klass: Graded, condition: Condition, visible: Tensor, *, dense: bool = False) -> tuple[Graded, Graded]:
        """Context of the visible units.

        Args:
            tokens: (U, .) fused unit tokens; rows of masked units are ignored.
            klass: (B, .) class condition.
            visible: (U,) bool.
            dense: keep masked units in place and mask them as keys instead of leaving them out; the same numbers, for tests.

        Returns:
            (U, .) context, zero for masked units, and (B, registers, .) memory.
        """
        keep = torch.ones_like(visible) if dense else visible
        chain = condition.unit_chain[keep]
        counts = torch.bincount(chain, minlength=condition.num_chains)
        ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        width = int(counts.max())
        row, column = ragged_coordinates(ptr)
        tokens = Graded(tokens.even + self._flags(condition), tokens.odd)[keep]
        x = Graded(*(t.new_zeros(condition.num_chains, width, t.shape[-1]).index_put((row, column), t) for t in tokens))
        position = condition.chain_ptr.new_zeros(condition.num_chains, width).index_put((row, column), condition.unit_position[keep])
        mask = dense_mask(ptr, width)
        if dense:
            mask = mask.index_put((row, column), visible[keep])
        x, position, mask = self._with_registers(x, klass, position, mask)
        bias = key_bias(mask)
        for block in self.encoder:
            x = block(x, bias, position)
        x = self.encoder_norm(x)
        memory = x[:, : self.num_registers]
        rows = x[row, column + self.num_registers]
        unit = torch.nonzero(keep)[:, 0]
        size = len(visible)
        context = Graded(*(t.new_zeros(size, t.shape[-1]).index_put((unit,), t) for t in rows)).masked(visible)
        return context, memory

    def decode(self, context: Graded, memory: Graded, query: Graded, condition: Condition, visible: Tensor) -> Graded:
        """Condition of every unit for the local head.

        Args:
            context: (U, .) of visible units.
            memory: (B, registers, .).
            query: (U, .) what is known of a unit without its shape: graph, sequence, handedness.

        Returns:
            (U, .) features; rows of visible units are computed too and unused.
        """
        asked = Graded(query.even + self.mask_token() + self._flags(condition), query.odd)
        known = self.bridge(context)
        units = where(visible, known + query, asked)
        row, column = ragged_coordinates(condition.chain_ptr)
        width = int(condition.num_units.max())
        x = Graded(*(t.new_zeros(condition.num_chains, width, t.shape[-1]).index_put((row, column), t) for t in units))
        position = torch.arange(width, device=row.device)[None].expand(condition.num_chains, -1)
        mask = dense_mask(condition.chain_ptr, width)
        x = Graded(torch.cat([memory.even, x.even], 1), torch.cat([memory.odd, x.odd], 1))
        position = torch.cat([position.new_zeros(len(position), self.num_registers), position], 1)
        bias = key_bias(torch.cat([mask.new_ones(len(mask), self.num_registers), mask], 1))
        for block in self.decoder:
            x = block(x, bias, position)
        return self.decoder_norm(x)[row, column + self.num_registers]
