"""Several sets as one stream: shares, epochs of each, the place from one integer; the order of one set as a property of seed and sizes."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.blend import Blend
from foundation.data.order import MicroBatch, Order
from foundation.errors import CheckpointError

SIZES = st.lists(st.tuples(st.integers(3, 30), st.integers(1, 12), st.integers(1, 4)), min_size=1, max_size=30)


def order_of(sizes: list[tuple[int, int, int]], seed: int, budget: int) -> Order:
    return Order(*zip(*sizes, strict=True), seed=seed, token_budget=budget)


@st.composite
def blends(draw: st.DrawFn) -> Blend:
    sets = draw(st.lists(SIZES, min_size=2, max_size=4))
    parts = draw(st.lists(st.integers(1, 20), min_size=len(sets), max_size=len(sets)))
    orders = tuple(order_of(sizes, seed, draw(st.integers(20, 500))) for seed, sizes in enumerate(sets))
    return Blend(orders, tuple(Fraction(part, sum(parts)) for part in parts))


def take(order: Order | Blend, samples_seen: int, count: int) -> list[MicroBatch]:
    return list(itertools.islice(order.stream(samples_seen), count))


@given(SIZES, st.integers(0, 2**40), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_and_epochs_differ(sizes: list[tuple[int, int, int]], seed: int, budget: int) -> None:
    order = order_of(sizes, seed, budget)
    epochs = [[i for micro in order.plan(epoch) for i in micro.samples] for epoch in range(6)]
    for epoch, samples in enumerate(epochs):
        assert sorted(samples) == list(range(len(sizes)))
        assert order.plan(epoch)[-1].seen == (epoch + 1) * len(sizes)
        assert all(len(micro.samples) <= order.largest for micro in order.plan(epoch))
    if len(sizes) >= 8 and len({(a, n) for a, n, _ in sizes}) == 1:
        assert len({tuple(samples) for samples in epochs}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_epochs_and_seeds_are_shuffled_anew(seed: int) -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [i for micro in order_of([(10, 5, 1)] * 40, seed, 100).plan(number) for i in micro.samples]

    orders = [epoch(seed, number) for number in range(5)] + [epoch(seed + 1, 0)]
    assert all(sum(a == b for a, b in zip(one, other, strict=True)) < 15 for one, other in itertools.combinations(orders, 2))
    assert epoch(seed, 3) == epoch(seed, 3)


@given(blends())
@settings(max_examples=60, deadline=None)
def test_shares_hold_at_every_moment_and_each_set_runs_through_its_epochs(blend: Blend) -> None:
    taken = take(blend, 0, 150)
    read, total = Counter[int](), 0
    for micro in taken:
        read[micro.source] += len(micro.samples)
        total += len(micro.samples)
        assert micro.seen == total
        for source, weight in enumerate(blend.weights):
            others = sum(order.largest for k, order in enumerate(blend.orders) if k != source)
            assert -weight * others <= read[source] - weight * total <= blend.orders[source].largest * (1 - weight)
    for source, order in enumerate(blend.orders):  # what is read of a set is its own stream, untouched by the others
        mine = [(m.epoch, m.samples, m.conformations, m.noise_seed) for m in taken if m.source == source]
        assert mine == [(m.epoch, m.samples, m.conformations, m.noise_seed) for m in take(order, 0, len(mine))]


@given(blends(), st.integers(0, 140))
@settings(max_examples=60, deadline=None)
def test_the_stream_goes_on_from_one_integer(blend: Blend, k: int) -> None:
    taken = take(blend, 0, 160)
    seen = taken[k].seen
    assert take(blend, seen, 160 - k - 1) == taken[k + 1 :]
    fresh = Blend(
        tuple(
            order_of(list(zip(o.atoms_per_unit, o.num_units, o.num_conformations, strict=True)), o.seed, o.token_budget)
            for o in blend.orders
        ),
        blend.weights,
    )
    assert fresh.position(seen) == blend.position(seen)
    ends = {micro.seen for micro in taken}
    for inside in set(range(1, taken[40].seen)) - ends:
        with pytest.raises(CheckpointError, match=rf"samples_seen {inside} is not the end of a micro-batch of these shards and weights"):
            blend.position(inside)
        break


def test_a_place_far_away_needs_the_plans_of_a_few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []
    real = Order.plan

    def counting(self: Order, epoch: int) -> list[MicroBatch]:
        if epoch not in self._plans:
            planned.append(epoch)
        return real(self, epoch)

    monkeypatch.setattr(Order, "plan", counting)
    orders = tuple(order_of([(5 + k % 7, 3 + k % 5, 2) for k in range(n)], n, 200) for n in (300, 50))
    blend = Blend(orders, (Fraction(9, 10), Fraction(1, 10)))
    whole, ends = blend.stream(), set[int]()
    while not ends or max(ends) < 40_000:
        ends.add(next(whole).seen)
    far = max(ends)
    planned.clear()
    fresh = Blend(tuple(Order(o.atoms_per_unit, o.num_units, o.num_conformations, o.seed, o.token_budget) for o in orders), blend.weights)
    assert sum(fresh.position(far)) == far
    assert len(planned) <= 4
    assert min(planned) > 50
    assert [m.seen for m in take(fresh, far, 30)] == [next(whole).seen for _ in range(30)]


def test_the_coming_epochs_of_all_sets_are_known() -> None:
    blend = Blend((order_of([(5, 4, 1)] * 9, 0, 60), order_of([(7, 3, 1)] * 4, 1, 60)), (Fraction(1, 2), Fraction(1, 2)))
    coming = blend.coming(blend_end := take(blend, 0, 5)[-1].seen)
    read = blend.position(blend_end)
    for source, order in enumerate(blend.orders):
        mine = [m for m in coming if m.source == source]
        assert sorted(i for m in mine for i in m.samples) == list(range(order.num_samples))
        assert {m.epoch for m in mine} == {read[source] // order.num_samples}
    assert [blend.num_atoms(m) for m in coming] == [blend.orders[m.source].num_atoms(m) for m in coming]
    assert all(blend.padded_atoms(m) >= blend.num_atoms(m) for m in coming)
