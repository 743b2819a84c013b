"""Scores against scipy and by hand; conformal intervals against the law of their coverage, and a quantile found by trying all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from finetune import scores
from finetune.conformal import calibrate, conformal_rank, cross_intervals, interval
from foundation.errors import InputError


def test_scores_by_hand() -> None:
    y = np.array([0.0, 2.0, 4.0, 1.0, 3.0])
    predicted = np.array([1.0, 2.0, 3.0, 3.0, 1.0])
    fold = np.array([0, 0, 0, 4, 4])
    found = scores.over_folds(y, predicted, fold, predicted - 1, predicted + np.array([1, 1, 1, 3, 1]))
    assert found["rmse"]["folds"] == pytest.approx([math.sqrt(2 / 3), 2.0])
    assert found["mae"]["folds"] == pytest.approx([2 / 3, 2.0])
    assert found["r2"]["folds"] == pytest.approx([1 - 2 / 8, 1 - 8 / 2])
    assert found["spearman"]["folds"] == pytest.approx([1.0, -1.0])
    assert found["coverage"]["folds"] == pytest.approx([1.0, 0.0])
    assert found["width"]["folds"] == pytest.approx([2.0, 3.0])
    assert found["mae"]["mean"] == pytest.approx(4 / 3)
    assert found["mae"]["sd"] == pytest.approx(np.std([2 / 3, 2.0], ddof=1))


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 80).astype(float)
    predicted = np.round(y + rng.normal(size=80))
    assert scores.spearman(y, predicted) == pytest.approx(scipy.stats.spearmanr(y, predicted).statistic)
    assert scores.spearman(y, np.zeros(80)) == 0


def test_what_cannot_be_told_is_none_and_what_is_not_finite_is_refused() -> None:
    found = scores.over_folds(np.array([1.0, 1.0, 2.0, 5.0]), np.zeros(4), np.array([0, 0, 1, 1]))
    assert found["r2"]["folds"][0] is None
    assert found["r2"]["mean"] is None
    assert found["rmse"]["mean"] is not None
    with pytest.raises(InputError, match="1 of 2 predictions are not finite"):
        scores.over_folds(np.ones(2), np.array([np.nan, 0]), np.zeros(2, dtype=int))


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_methods_are_compared_polymer_by_polymer(metric: str) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=400)
    hard = rng.normal(size=400) * 3  # an error that both share
    good, bad = y + hard, y + hard + 0.5 * np.sign(hard)
    made = scores.compare(y, {"good": good, "bad": bad, "same": np.stack([good, good])}, "good", metric, 0)
    error = np.square if metric == "rmse" else np.abs
    assert made["bad"]["value"] == pytest.approx((error(good - y) - error(bad - y)).mean())
    assert made["bad"]["high"] < 0
    assert made["same"]["value"] == made["same"]["low"] == made["same"]["high"] == 0


def test_the_half_width_is_the_smallest_that_holds_the_wanted_number_of_errors() -> None:
    """By trying every error: with n of them the new one is the (n + 1)-th, and k = (n + 1) * coverage of all have to be inside."""
    rng = np.random.default_rng(2)
    for n in (1, 5, 9, 10, 19, 20, 57, 100):
        for coverage in (0.5, 0.8, 0.9, 0.95):
            errors = np.abs(rng.normal(size=n))
            enough = [w for w in sorted(errors) if (errors <= w).sum() * 1000 >= round(1000 * coverage) * (n + 1)]
            assert calibrate(np.zeros(n), errors, coverage) == (enough[0] if enough else math.inf), (n, coverage)
    assert conformal_rank(9, 0.9) == 9, "the largest of nine, and not more than there are"
    assert conformal_rank(8, 0.9) == 9
    with pytest.raises(InputError, match="coverage 1 must lie between 0 and 1"):
        conformal_rank(8, 1.0)


@pytest.mark.parametrize("scaled", [False, True])
def test_coverage_follows_its_law_whatever_the_noise(scaled: bool) -> None:
    """Given the calibration, the share of new values inside is Beta(k, n + 1 - k): exactly, for any continuous error."""
    rng = np.random.default_rng(3)
    n, coverage, trials = 39, 0.9, 4000
    k = conformal_rank(n, coverage)
    halves = []
    for _ in range(trials):
        spread = rng.uniform(0.2, 5.0, size=n) if scaled else None
        noise = rng.standard_t(3, size=n) * (spread if spread is not None else 1.0)
        halves.append(calibrate(noise, np.zeros(n), coverage, spread))
    shares = 2 * scipy.stats.t(3).cdf(halves) - 1  # of new values inside, known without drawing them
    law = scipy.stats.beta(k, n + 1 - k)
    assert scipy.stats.kstest(shares, law.cdf).pvalue > 1e-3
    assert abs(np.mean(shares) - k / (n + 1)) < 4 * law.std() / math.sqrt(trials)


def test_a_spread_makes_intervals_narrow_where_the_model_is_sure() -> None:
    rng = np.random.default_rng(4)
    spread = np.where(np.arange(2000) % 2 == 0, 0.1, 2.0)
    y = rng.normal(size=2000) * spread
    predicted, fold = np.zeros(2000), np.arange(2000) % 5
    low, high = cross_intervals(y, predicted, fold, 0.9, spread)
    inside = (low <= y) & (y <= high)
    assert abs(inside[::2].mean() - 0.9) < 0.04
    assert abs(inside[1::2].mean() - 0.9) < 0.04
    assert (high - low)[::2].mean() < 0.1 * (high - low)[1::2].mean()
    plain = cross_intervals(y, predicted, fold, 0.9)
    assert ((plain[0] <= y) & (y <= plain[1]))[::2].mean() == 1, "one width for all is too wide for the sure half"
    with pytest.raises(InputError, match="the smallest spread is 0 and must be > 0"):
        interval(predicted, 1.0, np.zeros(2000))


def test_intervals_of_a_fold_are_calibrated_without_it() -> None:
    y, predicted, fold = np.arange(60.0), np.zeros(60), np.repeat([0, 1, 2], 20)
    low, high = cross_intervals(y, predicted, fold, 0.9)
    changed = np.where(fold == 1, 1e6, y)
    again = cross_intervals(changed, predicted, fold, 0.9)
    assert np.array_equal(again[0][fold == 1], low[fold == 1])
    assert not np.array_equal(again[1][fold == 0], high[fold == 0])
