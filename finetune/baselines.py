"""What a model has to beat: the mean of the training values, and gradient-boosted trees on what fingerprints.py gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.errors import InputError

Matrix = NDArray[np.floating]

SEEDS = 3  # regressions that are averaged
ROUNDS, PATIENCE = 2000, 50  # trees at most; trees without a better validation error before growing stops
SETTINGS: dict[str, Any] = {
    "objective": "l2",
    "learning_rate": 0.08,
    "num_leaves": 31,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.2,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "max_bin": 63,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
NOT_INSTALLED = "the baseline lightgbm needs the package lightgbm; install it with pip install -e '.[baselines]' or pass --no-baseline"


def fit_predict_mean(
    x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) the mean of all training values, validation part included; arguments as fit_predict_lightgbm."""
    return np.full(len(x_test), np.concatenate([y_train, y_valid]).mean())


def fit_predict_lightgbm(
    x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) predictions of gradient-boosted trees, the mean over SEEDS regressions.

    Each regression grows trees until the error of the validation part has not fallen for PATIENCE trees, then starts again with that
    number of trees on the training and validation parts together.

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

    Source: Ke et al., LightGBM, NeurIPS 2017.
    """
    try:
        import lightgbm
    except ImportError:
        raise InputError(NOT_INSTALLED) from None
    varies = np.ptp(np.nan_to_num(x_train), axis=0) > 0
    x_train, x_valid, x_test = (np.asarray(x[:, varies], dtype=np.float32) for x in (x_train, x_valid, x_test))
    centre, scale = float(y_train.mean()), float(y_train.std()) or 1.0  # values of 1e-12 and of 1e9 are regressed alike
    y_train, y_valid = (y_train - centre) / scale, (y_valid - centre) / scale
    part = lightgbm.Dataset(x_train, y_train, params=SETTINGS)
    held = lightgbm.Dataset(x_valid, y_valid, reference=part)
    whole = lightgbm.Dataset(np.concatenate([x_train, x_valid]), np.concatenate([y_train, y_valid]), params=SETTINGS)
    predicted = np.zeros(len(x_test))
    for k in range(SEEDS):
        settings = {**SETTINGS, "seed": SEEDS * seed + k, "num_threads": threads}
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        rounds = lightgbm.train(settings, part, ROUNDS, valid_sets=[held], callbacks=[stop]).best_iteration
        trees = lightgbm.train(settings, whole, max(rounds, 1))
        predicted += np.asarray(trees.predict(x_test, num_threads=threads)) / SEEDS
    return centre + scale * predicted


BASELINES: dict[str, Callable[..., NDArray[np.float64]]] = {"mean": fit_predict_mean, "lightgbm": fit_predict_lightgbm}


def fit_predict(
    name: str, x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, x_test: Matrix, seed: int, threads: int = 1
) -> NDArray[np.float64]:
    """(M,) predictions of a baseline by its name; arguments and errors as fit_predict_lightgbm."""
    if name not in BASELINES:
        raise InputError(f"baseline {name!r} must be one of {', '.join(BASELINES)}; change it")
    return BASELINES[name](x_train, y_train, x_valid, y_valid, x_test, seed, threads)


def installed() -> bool:
    """Whether lightgbm can be imported."""
    from importlib.util import find_spec

    return find_spec("lightgbm") is not None


__all__ = ["BASELINES", "SEEDS", "fit_predict", "fit_predict_lightgbm", "fit_predict_mean", "installed"]
