"""The order of samples: arithmetic, complete, independent of ranks, resumable at every step."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from foundation.data.order import Order, counter, micro_batches_of_rank
from foundation.errors import ConfigError, InputError

ORDER = Order(
    atoms_per_unit=tuple(3 + (7 * i) % 23 for i in range(57)),
    num_units=tuple(5 + i % 16 for i in range(57)),
    num_conformations=tuple(1 + i % 4 for i in range(57)),
    seed=3,
    token_budget=600,
)


def take(order: Order, samples_seen: int, count: int) -> list:
    return list(itertools.islice(order.stream(samples_seen), count))


def test_the_order_is_that_of_earlier_versions() -> None:
    """Runs that were begun go on: 60 micro-batches of one set as they were before several sets could be read."""
    rows = [(m.epoch, m.samples, m.conformations, m.seen, m.noise_seed) for m in take(ORDER, 0, 60)]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert digest == "827451c5e0378c540dfd0557d067ca279fdcecf1ed2b31349693b69b58979c2a"


def test_an_epoch_holds_every_sample_once_and_another_order_follows() -> None:
    first, second = ([i for m in ORDER.plan(e) for i in m.samples] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(57))
    assert first != second


def test_micro_batches_stay_within_the_budget_and_hold_units_of_one_size() -> None:
    for micro in ORDER.plan(0):
        atoms = [ORDER.atoms_per_unit[i] * ORDER.num_units[i] for i in micro.samples]
        assert sum(atoms) <= 600 or len(atoms) == 1
    assert any(len(m.samples) > 3 for m in ORDER.plan(0))
    real = sum(ORDER.atoms_per_unit[i] for m in ORDER.plan(0) for i in m.samples)
    padded = sum(max(ORDER.atoms_per_unit[i] for i in m.samples) * len(m.samples) for m in ORDER.plan(0))
    assert real / padded > 0.85


def test_a_chain_over_the_budget_comes_alone() -> None:
    order = Order((10, 100, 10), (10, 100, 10), (1, 1, 1), 0, 300)
    assert (1,) in [m.samples for m in order.plan(0)]


def test_the_stream_continues_from_any_micro_batch() -> None:
    whole = take(ORDER, 0, 60)
    assert whole[-1].epoch >= 2
    for k in range(0, 50, 7):
        assert take(ORDER, whole[k].seen, 60 - k - 1) == whole[k + 1 :]


def test_a_place_inside_a_micro_batch_is_refused() -> None:
    inside = next(m.seen - 1 for m in ORDER.plan(0) if len(m.samples) > 1)
    with pytest.raises(InputError, match=rf"samples_seen {inside} is not the end of a micro-batch"):
        take(ORDER, inside, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_ranks_share_a_step_without_gap_or_overlap(world_size: int) -> None:
    shares = [list(micro_batches_of_rank(12, rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == list(range(12))
    assert {len(share) for share in shares} == {12 // world_size}


def test_a_world_size_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"4 ranks do not divide train.micro_batches_per_step 6; use one of \[1, 2, 3, 6\] ranks"):
        micro_batches_of_rank(6, 0, 4)


def test_conformations_change_from_epoch_to_epoch() -> None:
    picks = [dict(zip(m.samples, m.conformations, strict=True)) for e in range(8) for m in ORDER.plan(e)]
    of_three = {p[3] for p in picks if 3 in p}
    assert of_three == set(range(ORDER.num_conformations[3]))


def test_seeds_are_counters_not_draws() -> None:
    assert counter("noise", 1, 2, 3) == counter("noise", 1, 2, 3) != counter("noise", 1, 2, 4)
    seeds = [m.noise_seed for e in range(3) for m in ORDER.plan(e)]
    assert len(set(seeds)) == len(seeds)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="has 0 samples, at least 1 is needed"):
        Order((), (), (), 0, 1)
