"""Polymers drawn from a generator: sizes and noise, then every graph as a P-SMILES or the reason why it is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.errors import PolymerError
from data_shards.progress import Progress
from finetune.design.graphs import MAX_ATOMS, Graph, collate, write_psmiles
from finetune.design.network import Asked
from finetune.design.sample import Fixed, SampleSettings, sample
from finetune.design.saved import Generator
from finetune.design.train import packed

BLOCK = 64  # rows compared at a time with all polymers of training, which bounds memory
NEAR = 0.35  # deviations within which polymers of training say how large a polymer with these values is


@dataclass(frozen=True)
class Outcome:
    """What became of a drawn graph.

    Attributes:
        psmiles: canonical, or None where it is no polymer.
        reason: "" or why it is none.
        plain: whether it would be one with every atom and bond drawn by itself.
    """

    psmiles: str | None
    reason: str
    plain: bool


@dataclass(frozen=True)
class Wishes:
    """What is asked of M polymers.

    Attributes:
        values: (M, P) learned values, NaN where nothing is asked.
        reference: (M, R) projected embeddings of polymers that they should be like; NaN: none.
        fixed: a fragment that all have.
        forbidden: classes of atoms that none has.
        parents: M graphs that drawing begins from, turned into noise up to the time `since`; none: from noise alone.
        since: share of the whole process.
    """

    values: NDArray[np.float64]
    reference: NDArray[np.float32]
    fixed: Fixed | None = None
    forbidden: tuple[int, ...] = ()
    parents: tuple[Graph, ...] = ()
    since: float = 1.0

    def rows(self, places: NDArray[np.int64]) -> Wishes:
        """Some of them, without parents."""
        return replace(self, values=self.values[places], reference=self.reference[places])


def draw_sizes(generator: Generator, values: NDArray[np.float64], rng: np.random.Generator, fewest: int = 3) -> NDArray[np.int64]:
    """(M,) atoms with stars: those of a polymer of training whose values are near what is asked; from all where nothing is.

    Args:
        generator: with its known polymers.
        values: (M, P) learned values, NaN where nothing is asked.
        rng: of the draws.
        fewest: atoms that a graph must have.
    """
    known = generator.known
    everywhere = np.repeat(np.arange(len(generator.sizes)), generator.sizes)
    everywhere = everywhere[everywhere >= fewest]
    everywhere = everywhere if len(everywhere) else np.array([min(fewest + 4, MAX_ATOMS)])
    out = rng.choice(everywhere, len(values))
    fits = np.flatnonzero(known.size >= fewest)
    if not len(fits):
        return out
    table = (known.values[fits] - generator.mean) / generator.deviation
    asked = (values - generator.mean) / generator.deviation
    told = np.flatnonzero(np.isfinite(asked).any(axis=1))
    for start in range(0, len(told), BLOCK):
        rows = told[start : start + BLOCK]
        square = np.nansum(np.square(asked[rows, None] - table), axis=2) / NEAR**2
        total = np.exp(-0.5 * (square - square.min(axis=1, keepdims=True))).cumsum(axis=1)
        at = rng.random((len(rows), 1)) * total[:, -1:]
        out[rows] = known.size[fits[np.minimum((at >= total).sum(axis=1), len(fits) - 1)]]
    return out


def draw_polymers(generator: Generator, wishes: Wishes, settings: SampleSettings, seed: int, bars: Progress) -> list[Outcome]:
    """One outcome for each row of wishes, in their order.

    Args:
        generator: trained.
        wishes: what is asked.
        settings: of the sampling.
        seed: of everything drawn.
        bars: where progress is shown.
    """
    fewest = 3 if wishes.fixed is None else wishes.fixed.graph.atoms.shape[1] + 1
    if wishes.parents:
        size = np.array([len(own.atoms) for own in wishes.parents])
    else:
        size = draw_sizes(generator, wishes.values, np.random.default_rng([seed, 3]), fewest)
    standard = ((wishes.values - generator.mean) / generator.deviation).astype(np.float32)
    prior = generator.prior.without(wishes.forbidden)
    found: dict[int, Outcome] = {}
    with bars.stage("draw", len(size)) as stage:
        for number, rows in enumerate(packed(np.argsort(size, kind="stable"), size, settings.pairs)):
            rng = torch.Generator().manual_seed(seed * 100_003 + number)
            asked = Asked(torch.from_numpy(standard[rows]), torch.from_numpy(wishes.reference[rows]))
            begin = (collate([wishes.parents[k] for k in rows]), wishes.since) if wishes.parents else None
            drawn = sample(generator.denoiser, prior, torch.from_numpy(size[rows]), asked, settings, rng, wishes.fixed, begin)
            for k, row in enumerate(rows.tolist()):
                found[row] = outcome(drawn.graphs.one(k), drawn.plain.one(k))
            stage.advance(len(rows))
    return [found[row] for row in range(len(size))]


def outcome(graph: Graph, plain: Graph) -> Outcome:
    """A graph as a polymer or a reason."""
    try:
        write_psmiles(plain)
        alone = True
    except PolymerError:
        alone = False
    try:
        return Outcome(write_psmiles(graph, settle=True), "", alone)
    except PolymerError as error:
        return Outcome(None, error.reason, alone)


def funnel(outcomes: Sequence[Outcome], groups: Sequence[str], seen: frozenset[str]) -> dict[str, object]:
    """What became of all that was drawn; nothing leaves the denominator.

    Args:
        outcomes: M of them.
        groups: (M,) canonical names, "" of those that are no polymer.
        seen: names of polymers of training.
    """
    valid = [name for name in groups if name]
    return {
        "drawn": len(outcomes),
        "valid": len(valid),
        "valid without bonds placed by valence": sum(own.plain for own in outcomes),
        "distinct": len(set(valid)),
        "new": len(set(valid) - seen),
        "reasons": dict(Counter(own.reason for own in outcomes if own.reason)),
    }


__all__ = ["Outcome", "Wishes", "draw_polymers", "draw_sizes", "funnel", "outcome"]
