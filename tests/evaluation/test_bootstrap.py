"""Intervals: seeded, of the right width, and honest about what has no value."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.evaluation.bootstrap import mean_over_polymers, paired, pooled_divergence, resample_weights
from foundation.evaluation.metrics import jensen_shannon_bits


def test_interval_of_a_mean_has_the_width_of_theory() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    estimate = mean_over_polymers(values, 1)
    assert estimate.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)
    assert mean_over_polymers(values, 1) == estimate
    assert mean_over_polymers(values, 2) != estimate


def test_polymers_without_a_value_are_left_out_and_counted() -> None:
    estimate = mean_over_polymers(np.array([1.0, np.nan, 3.0]), 0)
    assert (estimate.value, estimate.num_polymers) == (2.0, 2)
    empty = mean_over_polymers(np.array([np.nan]), 0)
    assert (empty.value, empty.low, empty.high, empty.num_polymers) == (None, None, None, 0)
    alone = mean_over_polymers(np.array([4.0]), 0)
    assert (alone.low, alone.high) == (4.0, 4.0)


def test_weights_draw_every_polymer_equally_often() -> None:
    weights = resample_weights(10, 0)
    assert (weights.sum(1) == 10).all()
    assert np.abs(weights.mean(0) - 1).max() < 0.1
    assert (weights == 0).any()


def test_pooled_divergence_pools_counts_not_divergences() -> None:
    rng = np.random.default_rng(0)
    generated, reference = rng.poisson(5.0, (20, 36)).astype(float), rng.poisson(5.0, (20, 36)).astype(float)
    generated[3] = 0  # a polymer whose conformations all failed
    estimate = pooled_divergence(generated, reference, 0)
    kept = np.arange(20) != 3
    assert estimate.value == pytest.approx(float(jensen_shannon_bits(generated[kept].sum(0), reference[kept].sum(0))))
    assert estimate.num_polymers == 19
    assert estimate.value < jensen_shannon_bits(generated[kept], reference[kept]).mean() / 5
    assert estimate.low is not None
    assert estimate.low < estimate.high < 0.1
    assert pooled_divergence(np.zeros((2, 36)), reference[:2], 0).value is None


def test_a_difference_over_the_same_polymers_tells_apart_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0.0, 5.0, 40)  # what polymers have in common
    ours, other = hard + rng.normal(0.0, 0.1, 40), hard + 1.0 + rng.normal(0.0, 0.1, 40)
    other[0] = np.nan
    one, two = mean_over_polymers(ours, 0), mean_over_polymers(other, 0)
    assert one.high is not None
    assert two.low is not None
    assert one.high > two.low
    found = paired({"model": ours, "other": other, "none": np.full(40, np.nan)}, "model", 0)
    assert set(found) == {"other"}
    assert found["other"]["num_polymers"] == 39
    assert found["other"]["value"] == pytest.approx(np.nanmean(ours - other))
    assert found["other"]["high"] < -0.9
    assert paired({"other": other}, "model", 0) == {}
