"""Discrete diffusion of repeat-unit graphs. Every atom and every pair is either still itself or noise from a prior that knows the graph.

    q(z_t | z_0) = abar_t [z_t = z_0] + (1 - abar_t) P(z_t)

Atoms come in the order of a SMILES that begins at the first star, so that most bonds join neighbours in the order and rings close over a
few places. For atoms P is how often each class occurs. For pairs it is how often two atoms so many places apart are bonded, and how; the
first star sees places from the beginning, the second from the end; two stars are not bonded by noise either. What has been replaced stays
replaced by the same noise, so that an element is, at an earlier time s,

    z_0 with the chance rho, else z_t        rho = (abar_s - abar_t) / (1 - abar_t)

The two stars are never noise: every graph at every time has exactly two.

Source: Austin et al., D3PM, arXiv 2107.03006; Vignac et al., DiGress, arXiv 2209.14734 (marginal transitions); Liu et al., Graph-DiT, arXiv
2401.13858 (transitions that depend on the graph, cosine schedule); Campbell et al., arXiv 2402.04997 (the jumps of this process).
Differs: Graph-DiT lets noise of pairs depend on the classes of their atoms and the other way round. Its rows do not add up to one, and
its prior at t = T depends on the clean graph. The proper form, P(pair | both noisy classes), is no better: whenever a class changes, the
noise of all its pairs does, and a denoiser that speaks of every element by itself cannot follow. Given the exact denoiser, 86 % of three
polymers came back, whatever the number of steps (noise drawn anew at every step: none); here all do (tests).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.design.graphs import NONE, NUM_CLASSES, NUM_KINDS, STAR, Graph, Graphs

STEPS = 500
OFFSET = 0.008
REACH = 24  # places
EVERYWHERE = 0.1  # share of a prior of pairs that does not know places: what it never draws would tell noise from data for certain


def alpha_bar(t: Tensor) -> Tensor:
    """Share that is still itself at times 0 to STEPS; cosine schedule (Nichol, Dhariwal, arXiv 2102.09672)."""

    def squared(u: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * (u + OFFSET) / (1 + OFFSET)).square()

    u = (t.double() + 1) / (STEPS + 1)
    return (squared(u) / squared(torch.zeros_like(u))).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Prior:
    """What noise looks like.

    Attributes:
        atoms: (A,) of classes; a star has none.
        pairs: (3, REACH + 1, K) of the kinds, of the first star and an atom so many places from the beginning, of the second star and an
            atom so many places from the end, and of two atoms so many places apart; the last place is that far or farther.
    """

    atoms: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, graphs: Sequence[Graph]) -> Prior:
        """Counted in graphs."""
        atoms, bonds, pairs = np.zeros(NUM_CLASSES), np.zeros((3, REACH + 1, NUM_KINDS)), np.zeros((3, REACH + 1))
        for own in graphs:
            atoms += np.bincount(own.atoms, minlength=NUM_CLASSES)
            table, apart = (part.numpy() for part in _places(torch.tensor([len(own.atoms)]), len(own.atoms)))
            upper = np.triu(np.ones(table.shape[1:], dtype=bool), 1)
            upper[0, 1] = False  # the two stars
            np.add.at(pairs, (table[0][upper], apart[0][upper]), 1.0)
            i, j = np.sort(own.bonds[:, :2], axis=1).T
            np.add.at(bonds, (table[0, i, j], apart[0, i, j], own.bonds[:, 2]), 1.0)
        atoms[STAR] = 0.0
        everywhere = bonds.sum(axis=1, keepdims=True) / np.maximum(pairs.sum(axis=1), 1.0)[:, None, None]
        here = np.divide(bonds, pairs[..., None], out=np.broadcast_to(everywhere, bonds.shape).copy(), where=pairs[..., None] > 0)
        chances = (1 - EVERYWHERE) * here + EVERYWHERE * everywhere
        chances[..., NONE] = 1.0 - chances[..., NONE + 1 :].sum(-1)
        return cls(torch.from_numpy(atoms / atoms.sum()), torch.from_numpy(chances))

    def without(self, forbidden: Sequence[int]) -> Prior:
        """The same without some classes."""
        atoms = self.atoms.clone()
        atoms[list(forbidden)] = 0.0
        return Prior(atoms / atoms.sum(), self.pairs)

    def of_atoms(self, shape: Sequence[int]) -> Tensor:
        """(*shape, A) chances of each class."""
        return self.atoms.expand(*shape, NUM_CLASSES)

    def of_pairs(self, size: Tensor, width: int) -> Tensor:
        """(B, width, width, K) chances of each kind in graphs of these sizes (B,)."""
        found = self.pairs[_places(size, width)]
        found[:, :2, :2] = nn.functional.one_hot(torch.tensor(NONE), NUM_KINDS).double()
        return found


def _places(size: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(B, width, width) which of the tables of a prior a pair is looked up in, and how many places apart its atoms are there."""
    place = torch.arange(width)
    least, most = torch.minimum(place[:, None], place), torch.maximum(place[:, None], place)
    table = least.clamp(max=2).expand(len(size), -1, -1)
    from_end = size[:, None, None] - 1 - most
    apart = torch.where(table == 0, most - 2, torch.where(table == 1, from_end, most - least))
    return table, apart.clamp(min=0, max=REACH)


def draw(chances: Tensor, rng: torch.Generator) -> Tensor:
    """(...) places drawn from (..., C) chances, which need not add up to one."""
    total = chances.cumsum(-1)
    at = torch.rand(chances.shape[:-1], generator=rng, dtype=chances.dtype)[..., None] * total[..., -1:]
    return (at >= total).sum(-1).clamp(max=chances.shape[-1] - 1)


def symmetric(pairs: Tensor, mask: Tensor) -> Tensor:
    """(B, N, N) of the upper triangle, mirrored; 0 on the diagonal, between the stars and beyond the end."""
    upper = torch.triu(pairs * (mask[:, :, None] & mask[:, None]), diagonal=1)
    upper[:, 0, 1] = NONE
    return upper + upper.transpose(1, 2)


def draw_prior(prior: Prior, size: Tensor, rng: torch.Generator) -> Graphs:
    """Noise: graphs of these sizes (B,) at t = STEPS."""
    width = int(size.max())
    mask = torch.arange(width) < size[:, None]
    atoms = stars_first(draw(prior.of_atoms(mask.shape), rng), mask)
    return Graphs(atoms, symmetric(draw(prior.of_pairs(size, width), rng), mask), size)


def noised(clean: Graphs, t: Tensor, prior: Prior, rng: torch.Generator) -> Graphs:
    """q(G_t | G_0) of graphs at times (B,)."""
    keep = alpha_bar(t)
    noise = draw_prior(prior, clean.size, rng)
    atoms = torch.rand(clean.atoms.shape, generator=rng, dtype=torch.float64) < keep[:, None]
    pairs = torch.rand(clean.bonds.shape, generator=rng, dtype=torch.float64) < keep[:, None, None]
    bonds = symmetric(torch.where(pairs, clean.bonds, noise.bonds), clean.mask)
    return Graphs(torch.where(atoms, clean.atoms, noise.atoms), bonds, clean.size)


def posterior(now: Tensor, chances: Tensor, at_s: Tensor, at_t: Tensor) -> Tensor:
    """(..., C) chances at an earlier time.

    Args:
        now: (...) at time t.
        chances: (..., C) of the clean class.
        at_s, at_t: abar of both times, broadcast against `now`.
    """
    rho = ((at_s - at_t) / (1 - at_t).clamp(min=1e-30))[..., None]
    return rho * chances + (1 - rho) * nn.functional.one_hot(now, chances.shape[-1])


def step_back(now: Graphs, atoms: Tensor, pairs: Tensor, t: float, s: float, rng: torch.Generator) -> Graphs:
    """Draw q(G_s | G_t), given chances of the clean classes.

    Args:
        now: at time t.
        atoms: (B, N, A) chances of clean atoms.
        pairs: (B, N, N, K) chances of clean pairs, symmetric.
        t, s: times, s < t.
        rng: of the draws.
    """
    at_t, at_s = (alpha_bar(torch.tensor([x])) for x in (t, s))
    drawn = stars_first(draw(posterior(now.atoms, atoms.double(), at_s, at_t), rng), now.mask)
    return Graphs(drawn, symmetric(draw(posterior(now.bonds, pairs.double(), at_s, at_t), rng), now.mask), now.size)


def stars_first(atoms: Tensor, mask: Tensor) -> Tensor:
    """The first two atoms are stars, and there is nothing beyond the end."""
    atoms = torch.where(mask, atoms, STAR)
    atoms[:, :2] = STAR
    return atoms


__all__ = [
    "STEPS", "Prior", "alpha_bar", "draw", "draw_prior", "noised", "posterior", "stars_first", "step_back", "symmetric",
]  # fmt: skip
