"""Discrete diffusion of repeat-unit graphs. Every atom and every pair is either still itself or drawn from a prior that knows the graph.

    q(z_t | z_0) = abar_t [z_t = z_0] + (1 - abar_t) P(z_t)

For atoms P is how often each class occurs. For pairs it is how often atoms of these two (noisy) classes are bonded, and how, in a graph of
this size; so two stars, or two fluorines, are not joined by noise either. Atoms are drawn before their pairs. What has been replaced stays
replaced, but is drawn anew at every time, so that the posterior of one element at an earlier time s is

    q(z_s | z_t, z_0) = k [z_s = z_0] + (1 - k) P(z_s),    k = 1 - r (1 - abar_s) / (1 - abar_t),
    r = (1 - abar_t) P(z_t) / (abar_t [z_t = z_0] + (1 - abar_t) P(z_t)),   the chance that z_t has been replaced.

The two stars are never noise: every graph at every time has exactly two.

Source: Austin et al., D3PM, arXiv 2107.03006; Vignac et al., DiGress, arXiv 2209.14734 (marginal transitions); Liu et al., Graph-DiT, arXiv
2401.13858 (transitions that depend on the graph, cosine schedule). Differs: there rows of the transition do not add up to one and the
prior at t = T depends on the clean graph; here both are proper, so that the posterior is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.design.graphs import NONE, NUM_CLASSES, NUM_KINDS, STAR, Graph, Graphs

STEPS = 500
OFFSET = 0.008
MOST_BONDED = 0.9  # chance of a bond between two atoms of the prior


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
        rates: (A, A, K) bonds of each kind between an atom of one class and all atoms of another, in a graph of one such atom per atom:
            a pair in a graph of n atoms has rate / n; 0 for NONE.
    """

    atoms: Tensor
    rates: Tensor

    @classmethod
    def of(cls, graphs: Sequence[Graph], forbidden: Sequence[int] = ()) -> Prior:
        """Counted in graphs; forbidden classes never occur."""
        atoms = np.zeros(NUM_CLASSES)
        bonds, pairs = np.zeros((NUM_CLASSES, NUM_CLASSES, NUM_KINDS)), np.zeros((NUM_CLASSES, NUM_CLASSES))
        for own in graphs:
            count = np.bincount(own.atoms, minlength=NUM_CLASSES).astype(float)
            atoms += count
            pairs += (np.outer(count, count) - np.diag(count)) / len(own.atoms)
            i, j, kind = own.bonds.T
            np.add.at(bonds, (own.atoms[i], own.atoms[j], kind), 1.0)
            np.add.at(bonds, (own.atoms[j], own.atoms[i], kind), 1.0)
        atoms[[STAR, *forbidden]] = 0.0
        rates = np.divide(bonds, pairs[..., None], out=np.zeros_like(bonds), where=pairs[..., None] > 0)
        return cls(torch.from_numpy(atoms / atoms.sum()), torch.from_numpy(rates))

    def of_atoms(self, atoms: Tensor) -> Tensor:
        """(..., A) chances of each class at places of this shape."""
        return self.atoms.expand(*atoms.shape, NUM_CLASSES)

    def of_pairs(self, atoms: Tensor, size: Tensor) -> Tensor:
        """(B, N, N, K) chances of each kind between atoms (B, N) of graphs of these sizes (B,)."""
        bonded = self.rates[atoms[:, :, None], atoms[:, None]] / size[:, None, None, None]
        bonded = bonded * (MOST_BONDED / bonded.sum(-1, keepdim=True).clamp(min=MOST_BONDED))
        bonded[..., NONE] = 1.0 - bonded[..., NONE + 1 :].sum(-1)
        return bonded


def draw(chances: Tensor, rng: torch.Generator) -> Tensor:
    """(...) places drawn from (..., C) chances, which need not add up to one."""
    total = chances.cumsum(-1)
    at = torch.rand(chances.shape[:-1], generator=rng, dtype=chances.dtype)[..., None] * total[..., -1:]
    return (at >= total).sum(-1).clamp(max=chances.shape[-1] - 1)


def symmetric(pairs: Tensor, mask: Tensor) -> Tensor:
    """(B, N, N) of the upper triangle, mirrored; 0 on the diagonal and beyond the end."""
    upper = torch.triu(pairs * (mask[:, :, None] & mask[:, None]), diagonal=1)
    return upper + upper.transpose(1, 2)


def draw_prior(prior: Prior, size: Tensor, rng: torch.Generator) -> Graphs:
    """Noise: graphs of these sizes (B,) at t = STEPS."""
    width = int(size.max())
    mask = torch.arange(width) < size[:, None]
    atoms = _with_stars(draw(prior.of_atoms(torch.zeros(len(size), width)), rng), mask)
    return Graphs(atoms, symmetric(draw(prior.of_pairs(atoms, size), rng), mask), size)


def noised(clean: Graphs, t: Tensor, prior: Prior, rng: torch.Generator) -> Graphs:
    """q(G_t | G_0) of graphs at times (B,)."""
    keep = alpha_bar(t)
    kept = torch.rand(clean.atoms.shape, generator=rng, dtype=torch.float64) < keep[:, None]
    atoms = torch.where(kept, clean.atoms, draw(prior.of_atoms(clean.atoms), rng))
    atoms = _with_stars(atoms, clean.mask)
    stays = torch.rand(clean.bonds.shape, generator=rng, dtype=torch.float64) < keep[:, None, None]
    bonds = torch.where(stays, clean.bonds, draw(prior.of_pairs(atoms, clean.size), rng))
    return Graphs(atoms, symmetric(bonds, clean.mask), clean.size)


def keep_chance(now: Tensor, clean: Tensor, prior_now: Tensor, at_s: Tensor, at_t: Tensor) -> Tensor:
    """k of the posterior: the chance that an element is its clean self at an earlier time.

    Args:
        now: (...) at time t.
        clean: (...) at time 0.
        prior_now: (...) prior's chance of what is there at time t.
        at_s, at_t: abar of both times, broadcast against the others.
    """
    replaced = (1 - at_t) * prior_now
    r = replaced / (at_t * (now == clean) + replaced).clamp(min=1e-30)
    return 1 - r * (1 - at_s) / (1 - at_t).clamp(min=1e-30)


def posterior(now: Tensor, chances: Tensor, prior_t: Tensor, prior_s: Tensor, at_s: Tensor, at_t: Tensor) -> Tensor:
    """(..., C) chances at an earlier time, where the clean class has these chances.

    Args:
        now: (...) at time t.
        chances: (..., C) of the clean class.
        prior_t, prior_s: (..., C) of both times.
        at_s, at_t: abar of both times, broadcast against `now`.
    """
    own = prior_t.gather(-1, now[..., None])
    every = torch.arange(chances.shape[-1]).expand_as(chances)
    keep = keep_chance(now[..., None], every, own, at_s[..., None], at_t[..., None])
    return chances * keep + (chances * (1 - keep)).sum(-1, keepdim=True) * prior_s


def step_back(now: Graphs, atoms: Tensor, pairs: Tensor, t: float, s: float, prior: Prior, rng: torch.Generator) -> Graphs:
    """Draw q(G_s | G_t), given chances of the clean classes, atoms first.

    Args:
        now: at time t.
        atoms: (B, N, A) chances of clean atoms.
        pairs: (B, N, N, K) chances of clean pairs, symmetric.
        t, s: times, s < t.
        prior: of the process.
        rng: of the draws.
    """
    at_t, at_s = (alpha_bar(torch.tensor([x])) for x in (t, s))
    before = prior.of_atoms(now.atoms)
    drawn = _with_stars(draw(posterior(now.atoms, atoms.double(), before, before, at_s, at_t), rng), now.mask)
    old, new = (prior.of_pairs(own, now.size) for own in (now.atoms, drawn))
    bonds = draw(posterior(now.bonds, pairs.double(), old, new, at_s, at_t), rng)
    return Graphs(drawn, symmetric(bonds, now.mask), now.size)


def _with_stars(atoms: Tensor, mask: Tensor) -> Tensor:
    """The first two atoms are stars, and there is nothing beyond the end."""
    atoms = torch.where(mask, atoms, STAR)
    atoms[:, :2] = STAR
    return atoms


__all__ = [
    "STEPS", "Prior", "alpha_bar", "draw", "draw_prior", "keep_chance", "noised", "posterior", "step_back", "symmetric",
]  # fmt: skip
