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

from data_shards.chem.psmiles import canonicalise
from data_shards.errors import PolymerError
from finetune.design.drawing import Outcome, Wishes, draw_polymers
from finetune.design.graphs import Graph, read_graph
from finetune.design.guide import Said, misses, rank

if TYPE_CHECKING:
    from data_shards.progress import Progress
    from finetune.design.goals import Target
    from finetune.design.guide import Guide
    from finetune.design.sample import SampleSettings
    from finetune.design.saved import Generator

SINCE = (0.5, 0.35, 0.25, 0.2, 0.15)  # times of the rounds, in shares of the whole process
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
    usable = np.sort(usable[np.argsort(cost[usable], kind="stable")[: 10 * PARENTS]])
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


@dataclass(frozen=True)
class Aim:
    """Draws for the same targets.

    Attributes:
        targets: at least one.
        rows: of the wishes.
    """

    targets: tuple[Target, ...]
    rows: NDArray[np.int64]


def missed(targets: Sequence[Target], judged: Judged, generator: Generator) -> NDArray[np.float64]:
    """(K,) how far polymers are expected to miss targets, in deviations."""
    assert judged.said is not None
    columns = [[task.name for task in generator.tasks].index(target.task.name) for target in targets]
    return misses(targets, judged.said, columns, generator.deviation)


def _of_table(generator: Generator, guide: Guide | None, wishes: Wishes, aims: Sequence[Aim], bars: Progress) -> Judged:
    """Labelled polymers with the nearest values to those of any aim."""
    labelled = np.flatnonzero(generator.known.labelled)
    values = generator.known.values[labelled]
    near = np.unique(np.concatenate([nearest_known(values, wishes.values[aim.rows], generator.deviation, KNOWN) for aim in aims]))
    own = labelled[near]
    return Judged().more([generator.known.psmiles[k] for k in own], [generator.known.groups[k] for k in own], guide, bars)


def draw_refined(
    generator: Generator,
    guide: Guide | None,
    wishes: Wishes,
    aims: Sequence[Aim],
    settings: SampleSettings,
    share: float,
    seed: int,
    bars: Progress,
    *,
    table: bool = True,
) -> tuple[list[Outcome], list[str], Judged]:
    """One outcome for each row of wishes, the canonical names ("": no polymer), and what property models say of the distinct ones.

    Args:
        generator: trained.
        guide: its property models; they choose parents.
        wishes: what is asked.
        aims: which rows are for which targets; rows of none are drawn from noise alone.
        settings: of the sampling.
        share: of the rows of aims that are kept for rounds of children.
        seed: of everything drawn.
        bars: where progress is shown.
        table: whether polymers of training are parents too.
    """
    rng = np.random.default_rng([seed, 6])
    later = rng.random(len(wishes.values)) < share
    split = [np.array_split(aim.rows[later[aim.rows]], len(SINCE)) for aim in aims]
    rounds = [np.concatenate([own[number] for own in split]) for number in range(len(SINCE))] if split else []
    first = np.setdiff1d(np.arange(len(wishes.values)), np.concatenate([np.zeros(0, dtype=np.int64), *rounds]))
    found: dict[int, Outcome] = {}
    names: dict[int, str] = {}
    judged = known = Judged()

    def add(rows: NDArray[np.int64], asked: Wishes, shift: int) -> None:
        nonlocal judged
        if not len(rows):
            return
        more = draw_polymers(generator, asked, settings, seed + 7919 * shift, bars)
        groups = [canonicalise(own.psmiles).group if own.psmiles else "" for own in more]
        judged = judged.more([str(own.psmiles) for own in more], groups, guide, bars)
        found.update(zip(rows.tolist(), more, strict=True))
        names.update(zip(rows.tolist(), groups, strict=True))

    add(first, wishes.rows(first), 0)
    if table and any(len(rows) for rows in rounds):
        known = _of_table(generator, guide, wishes, aims, bars)
    for number, rows in enumerate(rounds):
        pool = known.joined(judged)
        bred: list[tuple[NDArray[np.int64], list[Graph]]] = []
        for aim, own in zip(aims, split, strict=True):
            if len(own[number]) and pool.psmiles:
                graphs = parents(pool, missed(aim.targets, pool, generator), wishes.forbidden, len(own[number]), rng)
                bred += [(own[number], graphs)] if graphs else []
        theirs = np.concatenate([np.zeros(0, dtype=np.int64), *(own for own, _ in bred)])
        add(theirs, children(wishes, theirs, [graph for _, graphs in bred for graph in graphs], SINCE[number]), 2 * number + 1)
        orphans = np.setdiff1d(rows, theirs)
        add(orphans, wishes.rows(orphans), 2 * number + 2)
    every = range(len(wishes.values))
    return [found[row] for row in every], [names[row] for row in every], judged


__all__ = ["KNOWN", "SINCE", "Aim", "Judged", "children", "draw_refined", "missed", "nearest_known", "parents"]
