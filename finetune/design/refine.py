"""Proposals from proposals: polymers near the targets are turned partly into noise and drawn again, with what is asked for told.

Properties alone say too little where few polymers of training have such values. A polymer that has nearly what is asked for, half of its
atoms and bonds noise, is drawn from there; the best of these and of those before are parents of the next round. How much noise pays depends
on the target, so that a round chooses among amounts as often as they paid before (probability matching). Given parents that are distributed
as what was learned, so are children, whatever the noise.

Source: Meng et al., SDEdit, arXiv 2108.01073 (noise, then the reverse process); Thierens, GECCO 2005 (choice of operators). Differs:
discrete graphs; property models choose parents.
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

SINCE = (0.5, 0.35, 0.2)  # times up to which parents become noise, in shares of the whole process
ROUNDS = 4  # of children
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


class _Draws:
    """Everything drawn so far."""

    def __init__(self, generator: Generator, guide: Guide | None, settings: SampleSettings, seed: int, bars: Progress) -> None:
        self.generator, self.guide, self.settings, self.seed, self.bars = generator, guide, settings, seed, bars
        self.found: dict[int, Outcome] = {}
        self.names: dict[int, str] = {}
        self.judged, self.calls = Judged(), 0

    def add(self, rows: NDArray[np.int64], asked: Wishes) -> None:
        """Draw rows."""
        if len(rows):
            more = draw_polymers(self.generator, asked, self.settings, self.seed + 7919 * self.calls, self.bars)
            groups = [canonicalise(own.psmiles).group if own.psmiles else "" for own in more]
            self.judged = self.judged.more([str(own.psmiles) for own in more], groups, self.guide, self.bars)
            self.found.update(zip(rows.tolist(), more, strict=True))
            self.names.update(zip(rows.tolist(), groups, strict=True))
        self.calls += 1

    def worth(self, aim: Aim, rows: NDArray[np.int64], before: int) -> NDArray[np.bool_]:
        """Which rows are new polymers, none of the first `before` judged ones, and better than three quarters of all new ones drawn."""
        miss = missed(aim.targets, self.judged, self.generator) if self.judged.psmiles else np.zeros(0)
        new = np.array([name not in self.generator.seen for name in self.judged.groups], dtype=bool) & np.isfinite(miss)
        good = new & (miss <= np.quantile(miss[new], 0.25)) if new.any() else new
        place = {name: k for k, name in enumerate(self.judged.groups)}
        own = [place.get(self.names[row], -1) for row in rows.tolist()]
        return np.array([k >= before and bool(good[k]) and k not in own[:count] for count, k in enumerate(own)], dtype=bool)


class _Amounts:
    """Which amounts of noise paid: drawn among in proportion to their shares of good children."""

    def __init__(self) -> None:
        self.wins, self.tries = np.ones(len(SINCE)), np.full(len(SINCE), 2.0)

    def choose(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(number,) places in SINCE."""
        odds = self.wins / self.tries
        return rng.choice(len(SINCE), number, p=odds / odds.sum())

    def learn(self, place: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
        """What became of draws; place -1 had no parents."""
        own = place >= 0
        self.wins += np.bincount(place[own & good], minlength=len(SINCE))
        self.tries += np.bincount(place[own], minlength=len(SINCE))


def _bred(
    aims: Sequence[tuple[Aim, NDArray[np.int64]]], pool: Judged, generator: Generator, wishes: Wishes, rng: np.random.Generator
) -> dict[int, Graph]:
    """A parent for each of the rows of aims, where there are parents."""
    out: dict[int, Graph] = {}
    for aim, rows in aims:
        if len(rows) and pool.psmiles:
            graphs = parents(pool, missed(aim.targets, pool, generator), wishes.forbidden, len(rows), rng)
            out.update(zip(rows.tolist(), graphs, strict=False))
    return out


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
    split = [np.array_split(aim.rows[later[aim.rows]], ROUNDS) for aim in aims]
    every, none = np.arange(len(wishes.values)), np.zeros(0, dtype=np.int64)
    first = np.setdiff1d(every, np.concatenate([none, *(rows for own in split for rows in own)]))
    draws, known = _Draws(generator, guide, settings, seed, bars), Judged()
    draws.add(first, wishes.rows(first))
    if table and len(first) < len(every):
        labelled = np.flatnonzero(generator.known.labelled)
        values = generator.known.values[labelled]
        near = np.unique(np.concatenate([nearest_known(values, wishes.values[aim.rows], generator.deviation, KNOWN) for aim in aims]))
        own = labelled[near]
        known = known.more([generator.known.psmiles[k] for k in own], [generator.known.groups[k] for k in own], guide, bars)
    amounts = _Amounts()
    for number in range(ROUNDS if aims else 0):
        turn = [(aim, own[number]) for aim, own in zip(aims, split, strict=True)]
        rows, before = np.concatenate([none, *(own for _, own in turn)]), len(draws.judged.groups)
        bred = _bred(turn, known.joined(draws.judged), generator, wishes, rng)
        level = np.where([row in bred for row in rows.tolist()], amounts.choose(len(rows), rng), -1)
        orphans = rows[level == -1]
        draws.add(orphans, wishes.rows(orphans))
        for place, since in enumerate(SINCE):
            own = rows[level == place]
            draws.add(own, children(wishes, own, [bred[row] for row in own.tolist()], since))
        amounts.learn(level, np.concatenate([none > 0, *(draws.worth(aim, own, before) for aim, own in turn)]))
    return [draws.found[row] for row in every.tolist()], [draws.names[row] for row in every.tolist()], draws.judged


__all__ = ["KNOWN", "ROUNDS", "SINCE", "Aim", "Judged", "children", "draw_refined", "missed", "nearest_known", "parents"]
