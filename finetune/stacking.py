"""Weights of heads: what of each goes into a prediction, by what heads said of polymers that they were not fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIOR = 1.0  # polymers' worth of evidence for equal weights, in squares of the deviation of labels


def stack(predicted: NDArray[np.floating], y: NDArray[np.floating], prior: float = PRIOR) -> NDArray[np.float64]:
    """(H,) weights, none negative, that sum to 1 and make the smallest squared error.

    Args:
        predicted: (V, H) of each head, standardised as y.
        y: (V,) standardised values.
        prior: pull towards equal weights.

    Source: Breiman, Machine Learning 24, 49 (1996).
    """
    from scipy.optimize import nnls

    heads = predicted.shape[1]
    heavy = 1e3 * np.sqrt(len(y) + prior)  # of the row that holds the sum at 1
    rows = np.concatenate([predicted - y[:, None], np.sqrt(prior) * (np.eye(heads) - 1 / heads), np.full((1, heads), heavy)])
    found, _ = nnls(rows, np.concatenate([np.zeros(len(y) + heads), [heavy]]))
    return np.asarray(found / found.sum())


__all__ = ["PRIOR", "stack"]
