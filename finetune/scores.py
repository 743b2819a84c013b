"""How well a property is predicted: errors in each fold, their mean and standard deviation over folds, and methods compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.errors import InputError
from foundation.evaluation import ridge

Values = NDArray[np.floating]


def rmse(y: Values, predicted: Values) -> float:
    """Root mean squared error, in the unit of y."""
    return float(np.sqrt(np.square(predicted - y).mean()))


def mae(y: Values, predicted: Values) -> float:
    """Mean absolute error, in the unit of y."""
    return float(np.abs(predicted - y).mean())


def spearman(y: Values, predicted: Values) -> float:
    """Rank correlation; 0 where all predictions are equal, NaN where all values are."""
    return float(ridge.rank_correlations(y, predicted, np.ones((1, len(y))))[0]) if np.ptp(y) > 0 else math.nan


METRICS: dict[str, Callable[[Values, Values], float]] = {"rmse": rmse, "mae": mae, "r2": ridge.r2, "spearman": spearman}


def over_folds(
    y: Values, predicted: Values, fold: NDArray[np.integer], low: Values | None = None, high: Values | None = None
) -> dict[str, dict[str, Any]]:
    """Scores of a cross-validation: metric -> {mean, sd, folds}; None where a number cannot be given.

    R2 of a fold is against the mean of that fold's own values. sd is the standard deviation over folds (n - 1).

    Args:
        y: (P,) values.
        predicted: (P,) predictions of the model that did not see the polymer's fold.
        fold: (P,).
        low, high: (P,) ends of the intervals, for `coverage` (share of values inside) and `width` (mean).

    Raises:
        InputError: a prediction is not finite.
    """
    if not np.isfinite(predicted).all():
        raise InputError(f"{int((~np.isfinite(predicted)).sum())} of {len(predicted)} predictions are not finite; the model has diverged")
    parts = [fold == k for k in np.unique(fold)]
    found = {name: [metric(y[own], predicted[own]) for own in parts] for name, metric in METRICS.items()}
    if low is not None and high is not None:
        inside = (low <= y) & (y <= high)
        found["coverage"] = [float(inside[own].mean()) for own in parts]
        found["width"] = [float((high - low)[own].mean()) for own in parts]
    return {name: _summary(values) for name, values in found.items()}


def _summary(values: list[float]) -> dict[str, Any]:
    known = np.array([value for value in values if math.isfinite(value)])
    whole = len(known) == len(values)
    return {
        "mean": float(known.mean()) if whole else None,
        "sd": float(known.std(ddof=1)) if whole and len(known) > 1 else None,
        "folds": [value if math.isfinite(value) else None for value in values],
    }


def compare(y: Values, predicted: Mapping[str, Values], first: str, metric: str, seed: int) -> dict[str, dict[str, Any]]:
    """Error of one method minus that of every other over the same polymers: mean and interval over polymers, negative where it is better.

    Args:
        y: (P,) values.
        predicted: method -> (P,) predictions, or (S, P) of several seeds, whose errors are averaged polymer by polymer.
        first: the method that others are taken from.
        metric: of the task; `mae`: absolute errors, `rmse`: squared ones.
        seed: of the resamples.
    """
    error = {"rmse": np.square, "mae": np.abs}[metric]
    others = {name: np.atleast_2d(own) for name, own in predicted.items() if name != first}
    return {name: ridge.paired_difference(y, predicted[first], own, seed, error) for name, own in others.items()}


__all__ = ["METRICS", "compare", "mae", "over_folds", "rmse", "spearman"]
