"""Cross-validated ridge regression of a property on embeddings, and how well it predicts, with intervals over polymers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.evaluation.bootstrap import NUM_RESAMPLES, mean_over_polymers, resample_weights, with_interval

FOLDS = 5
ALPHAS = [10.0**k for k in range(-3, 7)]  # the largest predict the mean: an embedding that says nothing is then of no harm
WIDEST = 5.0  # standard deviations, as quartiles tell them: a polymer that lies farther out in a column is taken to lie here
BEYOND = 0.25  # of the range of the training values, on both sides: no prediction lies farther out
BLOCK = 200  # resamples at a time, which bounds memory


def make_folds(groups: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """(P,) a fold for each row; rows of one group share it, and the folds hold as many groups as each other, or one more."""
    names, group = np.unique(groups, return_inverse=True)
    return np.asarray(np.random.default_rng([seed, 7]).permutation(len(names))[group] % folds)


def cross_validate(x: NDArray[np.floating], y: NDArray[np.floating], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) predictions of a ridge regression for polymers that it was not trained on.

    Columns are cut off at WIDEST and standardised, predictions are cut off at BEYOND: one polymer whose embedding is unlike all others
    would else be predicted at thousands of degrees, or decide every standard deviation. The strength is chosen by leaving out one polymer
    at a time. All of it is fitted inside the training folds alone.

    Args:
        x: (P, D) embeddings.
        y: (P,) property.
        fold: (P,) of the cross-validation, two different ones at least.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler

    predicted = np.full(len(y), np.nan)
    for k in np.unique(fold):
        inside = fold != k
        low, high = y[inside].min(), y[inside].max()
        scale = (high - low) or 1.0  # values of 1e-12 and of 1e9 are regressed alike
        cut = FunctionTransformer(np.clip, kw_args={"a_min": -WIDEST, "a_max": WIDEST})
        model = make_pipeline(RobustScaler(unit_variance=True), cut, StandardScaler(), RidgeCV(ALPHAS))
        model.fit(x[inside], (y[inside] - low) / scale)
        predicted[~inside] = low + scale * np.clip(model.predict(x[~inside]), -BEYOND, 1 + BEYOND)
    return predicted


def r2(y: NDArray[np.floating], predicted: NDArray[np.floating]) -> float:
    """1 - squared error / squared deviation from the mean of all y, over the predictions of all folds together; NaN where y is constant."""
    total = np.square(y - y.mean()).sum()
    return float(1 - np.square(predicted - y).sum() / total) if total > 0 else float("nan")


def scores(y: NDArray[np.floating], predicted: NDArray[np.floating], seed: int) -> dict[str, dict[str, Any]]:
    """R2, mean absolute error and Spearman's rank correlation with intervals over polymers, as json.

    Args:
        y: (P,) property, not constant.
        predicted: (P,) or (S, P) predictions of several regressions, whose scores are averaged.
        seed: of the resamples.
    """
    predicted = np.atleast_2d(predicted)
    centred = y - y.mean()
    square = np.square(predicted - y).mean(0)
    weights = resample_weights(len(y), seed)
    total = weights @ centred**2 / len(y) - (weights @ centred / len(y)) ** 2
    spread = 1 - (weights @ square / len(y)) / np.maximum(total, 1e-12 * centred.var())
    ranks = np.mean([rank_correlations(y, own, weights) for own in predicted], axis=0)
    rank = np.mean([rank_correlations(y, own, np.ones((1, len(y))))[0] for own in predicted])
    return {
        "r2": asdict(with_interval(float(np.mean([r2(y, own) for own in predicted])), spread, len(y))),
        "mae": asdict(mean_over_polymers(np.abs(predicted - y).mean(0), seed)),
        "spearman": asdict(with_interval(float(rank), ranks, len(y))),
    }


def rank_correlations(a: NDArray[np.floating], b: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """(R,) Spearman's correlation of a and b (P,) in each resample that holds polymer p weights[r, p] times; 0 where a or b is constant.

    Equal values share the mean of their ranks. Source: Spearman, Am. J. Psychol. 15, 72 (1904).
    """
    found = []
    for start in range(0, len(weights), BLOCK):
        w = weights[start : start + BLOCK]
        ranks = [_mid_ranks(values, w) for values in (a, b)]
        ranks = [rank - (w * rank).sum(1, keepdims=True) / w.sum(1, keepdims=True) for rank in ranks]
        joint, first, second = ((w * left * right).sum(1) for left, right in ((ranks[0], ranks[1]), (ranks[0],) * 2, (ranks[1],) * 2))
        size = np.sqrt(first * second)
        found.append(np.where(size > 0, joint / np.where(size > 0, size, 1.0), 0.0))
    return np.concatenate(found)


def _mid_ranks(values: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """(R, P) mean rank of each value among the polymers of each resample."""
    order = np.argsort(values, kind="stable")
    _, first, place = np.unique(values[order], return_index=True, return_inverse=True)
    held = np.add.reduceat(weights[:, order], first, axis=1)  # polymers with each distinct value
    ranks = np.empty_like(weights)
    ranks[:, order] = (held.cumsum(1) - held / 2)[:, place]
    return ranks


def paired_difference(
    y: NDArray[np.floating], first: NDArray[np.floating], others: NDArray[np.floating], seed: int, error: np.ufunc = np.square
) -> dict[str, Any]:
    """Error of ``first`` minus that of ``others`` over the same polymers, mean and interval; negative where first is better.

    Args:
        y: (P,) property.
        first: (P,) predictions.
        others: (S, P) predictions; their errors are averaged polymer by polymer.
        seed: of the resamples.
        error: of a difference: np.square or np.abs.
    """
    change = error(first - y) - error(others - y).mean(0)
    return asdict(mean_over_polymers(change, seed))


__all__ = ["ALPHAS", "FOLDS", "NUM_RESAMPLES", "cross_validate", "make_folds", "paired_difference", "r2", "rank_correlations", "scores"]
