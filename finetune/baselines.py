"""What a model has to beat: the mean of the training values, and gradient-boosted trees on what fingerprints.py gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from finetune.trees import grow
from foundation.errors import InputError

Matrix = NDArray[np.floating]

SEEDS = 3  # regressions that are averaged


def fit_predict_mean(
    x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) the mean of all training values, validation part included; arguments as fit_predict_lightgbm."""
    return np.full(len(x_test), np.concatenate([y_train, y_valid]).mean())


def fit_predict_lightgbm(
    x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) predictions of gradient-boosted trees, the mean over SEEDS regressions.

    Args:
        x_train: (N, F) features, NaN where one is missing.
        y_train: (N,) values.
        x_valid: (V, F) of the validation part of the training fold.
        y_valid: (V,).
        x_test: (M, F).
        seed: of the sampling of columns and rows.
        threads: of LightGBM.

    Raises:
        InputError: lightgbm is not installed.
    """
    made = (grow(x_train, y_train, x_valid, y_valid, SEEDS * seed + k, threads) for k in range(SEEDS))
    return np.asarray(np.mean([trees.predict(x_test, threads) for trees in made], axis=0))


BASELINES: dict[str, Callable[..., NDArray[np.float64]]] = {"mean": fit_predict_mean, "lightgbm": fit_predict_lightgbm}


def fit_predict(
    name: str, x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) predictions of a baseline by its name; arguments and errors as fit_predict_lightgbm."""
    if name not in BASELINES:
        raise InputError(f"baseline {name!r} must be one of {', '.join(BASELINES)}; change it")
    return BASELINES[name](x_train, y_train, x_valid, y_valid, x_test, seed, threads)


__all__ = ["BASELINES", "SEEDS", "fit_predict", "fit_predict_lightgbm", "fit_predict_mean"]
