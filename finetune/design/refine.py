"""Proposals from proposals: polymers near the targets are turned partly into noise and drawn again, with what is asked for told.

Properties alone say too little where few polymers of training have such values. A polymer that has nearly what is asked for, half of its
atoms and bonds noise, is drawn from there; the best of these and of those before are parents of the next round, with less noise. Given
parents that are distributed as what was learned, so are children, whatever the noise.

Source: Meng et al., SDEdit, arXiv 2108.01073 (noise, then the reverse process). Differs: discrete graphs; property models choose parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import PolymerError
from finetune.design.drawing import Wishes
from finetune.design.graphs import Graph, read_graph
from finetune.design.guide import Said, rank

if TYPE_CHECKING:
    from data_shards.progress import Progress
    from finetune.design.guide import Guide

SINCE = (0.5, 0.4, 0.3)  # times of the rounds, in shares of the whole process
PARENTS = 50  # of each round, unlike each other
KNOWN = 200  # labelled polymers with the nearest values, which are parents too


@dataclass(frozen=True)
class Judged:
    """Distinct polymers in the order of being drawn, and what property models say of them; None where there are none."""

    psmiles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    said: Said | None = None

    def joined(self, other: Judged) -> Judged:
        """These, then those that are not among them."""
        if self.said is None or other.said is None:
            return other if self.said is None else self
        known = set(self.groups)
        kept = np.array([k for k, name in enumerate(other.groups) if name not in known], dtype=np.int64)
        texts, names = (tuple(own[k] for k in kept) for own in (other.psmiles, other.groups))
        return Judged(self.psmiles + texts, self.groups + names, self.said.and_then(other.said.some(kept)))

    def more(self, psmiles: Sequence[str], groups: Sequence[str], guide: Guide | None, bars: Progress) -> Judged:
        """With those of (psmiles, groups) that are not among them; "" are no polymers."""
        known, fresh = set(self.groups), dict[str, str]()
        for name, text in zip(groups, psmiles, strict=True):
            if name and name not in known:
                fresh.setdefault(name, text)
        if not fresh:
            return self
        names, texts = tuple(fresh), tuple(fresh.values())
        said = None if guide is None else guide.say(texts, bars)
        joined = said if self.said is None or said is None else self.said.and_then(said)
        return Judged(self.psmiles + texts, self.groups + names, joined)


def nearest_known(
    values: NDArray[np.float64], asked: NDArray[np.float64], deviation: NDArray[np.float64], number: int
) -> NDArray[np.int64]:
    """Places of the polymers (G, P) with the nearest values to what is asked (M, P), to its mean where it is a range; NaN: not asked."""
    told = np.isfinite(asked).any(axis=0)
    away = np.square((values[:, told] - np.nanmean(asked[:, told], axis=0)) / deviation[told]).sum(axis=1)
    return np.argsort(np.where(np.isnan(away), np.inf, away), kind="stable")[:number]


def parents(judged: Judged, cost: NDArray[np.float64], forbidden: Sequence[int], number: int, rng: np.random.Generator) -> list[Graph]:
    """Graphs of `number` parents: PARENTS polymers of low cost (K,) that are unlike each other, each as often as any other.

    Either way of writing a unit is as good; polymers that cannot be drawn, or have forbidden classes of atoms, are none.
    """
    assert judged.said is not None
    usable = np.flatnonzero(judged.said.kept & np.isfinite(cost))
    order = usable[rank(cost[usable], judged.said.counts[usable], judged.said.atoms[usable], 2 * PARENTS)]
    found: list[tuple[Graph, Graph]] = []
    for place in order:
        try:
            both = read_graph(judged.psmiles[place]), read_graph(judged.psmiles[place], backwards=True)
        except PolymerError:
            continue
        if not np.isin(both[0].atoms, list(forbidden)).any():
            found.append(both)
        if len(found) == PARENTS:
            break
    return (
        [found[k][side] for k, side in zip(rng.integers(len(found), size=number), rng.integers(2, size=number), strict=True)]
        if found
        else []
    )


def children(wishes: Wishes, rows: NDArray[np.int64], graphs: Sequence[Graph], since: float) -> Wishes:
    """What is asked of children: values of these rows, nothing of what they are like."""
    own = wishes.rows(rows)
    return replace(own, reference=np.full_like(own.reference, np.nan), parents=tuple(graphs), since=since)


__all__ = ["KNOWN", "SINCE", "Judged", "children", "nearest_known", "parents"]
