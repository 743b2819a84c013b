"""Prediction intervals by split conformal prediction: they hold the stated share of values whatever the model and the noise.

Needed is only that calibration polymers and new ones come in no particular order. With n calibration polymers and continuous errors the
share of new values inside, given the calibration, follows Beta(k, n + 1 - k) with k = ceil((n + 1) * coverage): its mean is at least the
coverage and less than 1 / (n + 1) above it.

Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005); Lei et al. 2018, arXiv:1604.04173, algorithm 2 and section
5.2 (errors divided by a spread); the law of the coverage: Vovk 2012, arXiv:1209.2673.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from foundation.errors import InputError

COVERAGE = 0.9


def conformal_rank(num: int, coverage: float) -> int:
    """k of the k-th smallest calibration error that bounds a new one with probability coverage; num + 1 where there are too few."""
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage:g} must lie between 0 and 1, such as 0.9; change it")
    return min(math.ceil((num + 1) * coverage - 1e-9), num + 1)  # (9 + 1) * 0.9 is 9, whatever floats make of it


def calibrate(
    y: NDArray[np.floating], predicted: NDArray[np.floating], coverage: float = COVERAGE, spread: NDArray[np.floating] | None = None
) -> float:
    """Half width of the interval, or its multiple of the spread; infinite where the calibration polymers are too few for the coverage.

    Args:
        y: (N,) values of polymers that the model was not trained on.
        predicted: (N,) their predictions.
        coverage: share of new values inside.
        spread: (N,) positive, what the model says of its own error, such as the deviation of an ensemble plus a constant. It must not have
            seen y.
    """
    errors = np.abs(np.asarray(y) - predicted) / (1.0 if spread is None else _positive(spread))
    rank = conformal_rank(len(errors), coverage)
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else math.inf


def interval(
    predicted: NDArray[np.floating], half: float, spread: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends (M,) of the intervals of new polymers.

    Args:
        predicted: (M,).
        half: as calibrate gives it.
        spread: (M,) where calibrate was given one.
    """
    width = half * (np.ones(len(predicted)) if spread is None else _positive(spread))
    return predicted - width, predicted + width


def cross_intervals(
    y: NDArray[np.floating],
    predicted: NDArray[np.floating],
    fold: NDArray[np.integer],
    coverage: float = COVERAGE,
    spread: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intervals (P,) of every polymer of a cross-validation, calibrated on the polymers of the other folds.

    Their errors are those of models that were not trained on them, so that none of the training data is set aside. The models differ from
    fold to fold, hence the coverage is measured rather than guaranteed.

    Args:
        y: (P,) values.
        predicted: (P,) predictions of the model that did not see the polymer's fold.
        fold: (P,).
        coverage: share of values inside.
        spread: (P,) as in calibrate.

    Source: Barber et al. 2021, arXiv:1905.02928 (CV+). Differs: one centre, the model's own prediction, in place of those of all folds.
    """
    low, high = np.full(len(y), np.nan), np.full(len(y), np.nan)
    for k in np.unique(fold):
        own, rest = fold == k, fold != k
        half = calibrate(y[rest], predicted[rest], coverage, None if spread is None else spread[rest])
        low[own], high[own] = interval(predicted[own], half, None if spread is None else spread[own])
    return low, high


def _positive(spread: NDArray[np.floating]) -> NDArray[np.floating]:
    if not (np.asarray(spread) > 0).all():
        raise InputError(f"the smallest spread is {np.min(spread):g} and must be > 0; add a constant to it")
    return spread


__all__ = ["COVERAGE", "calibrate", "conformal_rank", "cross_intervals", "interval"]
