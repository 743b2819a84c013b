"""Proposals from proposals: the law is kept, parents are near what is asked for, nothing is counted or predicted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_shards.progress import Silent
from finetune.design import refine
from finetune.design.drawing import Outcome, Wishes
from finetune.design.goals import Target
from finetune.design.graphs import Graphs, collate, read_graph, write_psmiles
from finetune.design.guide import Said
from finetune.design.network import Asked
from finetune.design.process import STEPS
from finetune.design.refine import SINCE, Aim, Judged, children, draw_refined, nearest_known, parents
from finetune.design.sample import SampleSettings, sample
from finetune.tasks import TASKS
from tests.finetune.test_design_process import PRIOR, exact_denoiser

TEXTS = ("*CC(*)CCC", "*OC(C)C(=O)*", "*CC(F)(F)C*")
LAW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
DATA = collate([read_graph(text) for text in TEXTS])


class Exact(nn.Module):
    """The exact denoiser of three polymers."""

    def forward(self, now: Graphs, t: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        atoms, pairs = exact_denoiser(DATA, LAW, now, float(t[0]))
        return (atoms + 1e-30).log(), (pairs + 1e-30).log()


def drawn(begin: tuple[Graphs, float] | None, many: int) -> Tensor:
    """(M,) which of the three each is, -1: none."""
    rng, none = torch.Generator().manual_seed(3), Asked(torch.zeros(many, 0), torch.zeros(many, 0))
    made = sample(Exact(), PRIOR, DATA.size[:1].expand(many), none, SampleSettings(steps=80, guidance=1), rng, None, begin).plain
    same = [(made.atoms == DATA.atoms[k]).all(1) & (made.bonds == DATA.bonds[k]).flatten(1).all(1) for k in range(3)]
    return torch.where(torch.stack(same).any(0), torch.stack(same).long().argmax(0), -1)


@pytest.mark.parametrize("since", [0.2, 0.5, 0.8])
def test_children_of_the_law_are_of_the_law(since: float) -> None:
    """A parent drawn from the law and its child have the same law; the more noise, the less they have to do with each other."""
    many = 2_000
    own = torch.multinomial(LAW, many, replacement=True, generator=torch.Generator().manual_seed(1))
    found = drawn((Graphs(DATA.atoms[own], DATA.bonds[own], DATA.size[own]), since), many)
    assert (found >= 0).double().mean() > 0.97
    np.testing.assert_allclose(torch.bincount(found[found >= 0], minlength=3).double() / (found >= 0).sum(), LAW, atol=0.04)
    same = float((found == own).double().mean())
    assert {0.2: same > 0.95, 0.5: 0.5 < same < 0.99, 0.8: same < 0.7}[since], same
    assert float(LAW.square().sum()) < 0.4, "what unrelated ones would share"


def test_noise_begins_where_it_is_told_to() -> None:
    class Heard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def forward(self, now: Graphs, t: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
            self.times.append(float(t[0]))
            return torch.zeros(*now.atoms.shape, len(PRIOR.atoms)), torch.zeros(*now.bonds.shape, 5)

    heard, none = Heard(), Asked(torch.zeros(3, 0), torch.zeros(3, 0))
    sample(heard, PRIOR, DATA.size, none, SampleSettings(steps=20, guidance=1), torch.Generator().manual_seed(0), None, (DATA, 0.4))
    assert heard.times[0] == pytest.approx(0.4 * STEPS)
    assert heard.times == sorted(heard.times, reverse=True)
    assert 8 < len(heard.times) < 15, "steps of the whole process that lie before"


def said_of(values: Sequence[float]) -> Said:
    number = len(values)
    counts = np.eye(number, 40, dtype=np.int16)
    own = np.array(values, dtype=np.float64)[:, None]
    yes = np.ones(number, dtype=bool)
    names = tuple("" for _ in values)
    return Said(yes, own, own, own, np.ones(number), yes, names, np.zeros((number, 2), np.float32), counts, np.ones(number, dtype=np.int64))


class Guided:
    """Says the length of the text; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def say(self, psmiles: Sequence[str], bars: Any) -> Said:
        self.asked += psmiles
        return said_of([float(len(text)) for text in psmiles])


def test_nothing_is_predicted_twice() -> None:
    guide, texts = Guided(), ["*CC*", "*CCC*", "*CC*", "None", "*CCCCC*"]
    judged = Judged().more(texts, ["a", "b", "a", "", "c"], guide, Silent())  # type: ignore[arg-type]
    assert judged.groups == ("a", "b", "c")
    assert judged.more(["*CC*", "None"], ["a", ""], guide, Silent()) is judged  # type: ignore[arg-type]
    more = judged.more(["*C=C*", "*CCC*"], ["d", "b"], guide, Silent())  # type: ignore[arg-type]
    assert guide.asked == ["*CC*", "*CCC*", "*CCCCC*", "*C=C*"]
    assert more.said is not None
    assert more.said.value[:, 0].tolist() == [4, 5, 7, 5]
    other = Judged(("*O*", "*CC*"), ("e", "a"), said_of([9.0, 4.0]))
    both = other.joined(more)
    assert both.groups == ("e", "a", "b", "c", "d")
    assert both.said is not None
    assert both.said.value[:, 0].tolist() == [9, 4, 5, 7, 5]
    assert Judged().joined(more) is more
    assert more.joined(Judged()) is more


def test_the_nearest_of_the_table_are_those_of_all_that_was_asked() -> None:
    values = np.array([[0.0, 0.0], [1.0, np.nan], [1.05, 5.0], [0.9, 0.1]])
    one, both = np.array([[1.0, np.nan]] * 3), np.array([[1.0, 0.0]] * 3)
    assert nearest_known(values, one, np.ones(2), 3).tolist() == [1, 2, 3]
    assert nearest_known(values, both, np.ones(2), 3).tolist() == [3, 0, 2], "what is not known is not near"
    assert nearest_known(values, np.array([[0.8, np.nan], [1.3, np.nan]]), np.array([1.0, 1.0]), 1).tolist() == [2], "the middle of a range"


def test_parents_are_near_and_none_has_what_is_forbidden() -> None:
    texts = ["*CCO*", "*CC(F)(F)*", "*CC(*)c1ccccc1", "*C[Fe]*"]
    judged = Judged(tuple(texts), tuple(texts), replace(said_of([0.0] * 4), kept=np.array([True, True, False, True])))
    rng = np.random.default_rng(0)
    fluorine = set(read_graph("*CC(F)(F)*").atoms.tolist()) - set(read_graph("*CCC*").atoms.tolist())
    found = parents(judged, np.zeros(4), tuple(fluorine), 30, rng)
    assert {write_psmiles(own) for own in found} == {write_psmiles(read_graph("*CCO*"))}, "not predicted, not drawable or forbidden: none"
    assert len({own.atoms.tobytes() for own in found}) == 2, "either way of writing a unit"
    assert parents(judged, np.full(4, np.nan), (), 5, rng) == []
    wishes = Wishes(np.arange(6.0)[:, None], np.ones((6, 2), np.float32))
    own = children(wishes, np.array([1, 4]), found[:2], 0.3)
    assert own.values[:, 0].tolist() == [1, 4]
    assert np.isnan(own.reference).all()
    assert own.since == 0.3
    assert len(own.parents) == 2


def ether(length: int) -> str:
    """A unit of so many atoms with stars, which is as long as text."""
    return f"*{'C' * (length - 3)}O*"


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_every_row_is_drawn_once_and_children_are_of_parents_near_their_own_aim(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Property models that say the length: one aim asks for short units, one for long ones, and ten rows are of no aim."""
    calls: list[Wishes] = []

    def draw(_: Any, wishes: Wishes, *rest: Any) -> list[Outcome]:
        calls.append(wishes)
        rows = wishes.values[:, 1].astype(int)
        return [Outcome(None, "odd", False) if row % 7 == 3 else Outcome(ether(row + 4), "", True) for row in rows]

    lengths = np.arange(4, 45)
    values = np.stack([lengths, np.full(len(lengths), np.nan)], axis=1)
    texts = [ether(length) for length in lengths]
    known = SimpleNamespace(labelled=lengths > 7, values=values, psmiles=texts, groups=texts)
    generator: Any = SimpleNamespace(tasks=(TASKS["tg"],), known=known, deviation=np.ones(2), seen=frozenset())
    rows = np.arange(60)
    wishes = Wishes(np.stack([np.where(rows % 2, 40.0, 10.0), rows], axis=1), np.zeros((60, 2), np.float32))
    aims = [Aim((Target(TASKS["tg"], value, value),), rows[:50][rows[:50] % 2 == odd]) for odd, value in enumerate((10.0, 40.0))]
    monkeypatch.setattr(refine, "draw_polymers", draw)
    monkeypatch.setattr(refine, "KNOWN", 5)
    monkeypatch.setattr(refine, "PARENTS", 3)
    near = nearest_known
    monkeypatch.setattr(refine, "nearest_known", lambda table, own, scale, number: near(table[:, :1], own[:, :1], scale[:1], number))
    guide: Any = Guided()
    found, names, judged = draw_refined(generator, guide, wishes, aims, SampleSettings(), share, 0, Silent())
    assert sorted(np.concatenate([own.values[:, 1] for own in calls]).tolist()) == rows.tolist()
    expected = [None if row % 7 == 3 else ether(row + 4) for row in rows.tolist()]
    assert [own.psmiles for own in found] == expected, "in the order of the rows"
    assert [name == "" for name in names] == [text is None for text in expected]
    assert set(judged.groups) == {name for name in names if name}, "polymers of training are parents, not proposals"
    bred = [own for own in calls if own.parents]
    assert tuple(own.since for own in bred) == (SINCE if share else ())
    for own in bred:
        assert len(own.parents) == len(own.values)
        assert own.values[:, 1].max() < 50, "rows of no aim"
        assert np.abs([len(graph.atoms) for graph in own.parents] - own.values[:, 0]).max() <= 3, "of either aim"
        assert np.isnan(own.reference).all()
    assert 35 * share <= sum(len(own.parents) for own in bred) <= 65 * share
