"""Gradient-boosted trees: what property models are compared with, and one of their heads. The only door of lightgbm, which is an extra.

Trees grow until the error of a validation part has not fallen for PATIENCE of them; then as many are grown on all values.

Source: Ke et al., LightGBM, NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.errors import InputError

Matrix = NDArray[np.floating]

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
NOT_INSTALLED = "gradient-boosted trees need the package lightgbm; install it with pip install -e '.[baselines]'"


@dataclass(frozen=True)
class Trees:
    """Grown trees.

    Attributes:
        text: of the model, as lightgbm writes it.
        columns: (C,) of the features that trees read.
        centre, scale: of the values.
        valid: (V,) what trees grown without the validation part say of it; empty where they were read from a file.
    """

    text: str
    columns: NDArray[np.int64]
    centre: float
    scale: float
    valid: NDArray[np.float64]

    @cached_property
    def booster(self) -> Any:
        """Read by lightgbm.

        Raises:
            ValueError: the text is not of trees.
        """
        lightgbm = _lightgbm()
        try:
            return lightgbm.Booster(model_str=self.text)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"lightgbm cannot read the trees: {error}") from None

    def predict(self, x: Matrix, threads: int = 1) -> NDArray[np.float64]:
        """(M,) values.

        Args:
            x: (M, F) features, NaN where one is missing.
            threads: of lightgbm.
        """
        found = self.booster.predict(np.asarray(x[:, self.columns], dtype=np.float32), num_threads=threads)
        return self.centre + self.scale * np.asarray(found, dtype=np.float64)


def grow(x_train: Matrix, y_train: Matrix, x_valid: Matrix, y_valid: Matrix, seed: int, threads: int = 1) -> Trees:
    """Trees of a training part and a validation part.

    Args:
        x_train: (N, F) features, NaN where one is missing.
        y_train: (N,) values.
        x_valid: (V, F).
        y_valid: (V,).
        seed: of the sampling of columns and rows.
        threads: of lightgbm.

    Raises:
        InputError: lightgbm is not installed.
    """
    lightgbm = _lightgbm()
    columns = np.flatnonzero(np.ptp(np.nan_to_num(x_train), axis=0) > 0)
    x_train, x_valid = (np.asarray(x[:, columns], dtype=np.float32) for x in (x_train, x_valid))
    centre, scale = float(y_train.mean()), float(y_train.std()) or 1.0  # values of 1e-12 and of 1e9 are regressed alike
    y_train, y_valid = (y_train - centre) / scale, (y_valid - centre) / scale
    part = lightgbm.Dataset(x_train, y_train, params=SETTINGS)
    held = lightgbm.Dataset(x_valid, y_valid, reference=part)
    whole = lightgbm.Dataset(np.concatenate([x_train, x_valid]), np.concatenate([y_train, y_valid]), params=SETTINGS)
    settings = {**SETTINGS, "seed": seed, "num_threads": threads}
    first = lightgbm.train(settings, part, ROUNDS, valid_sets=[held], callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)])
    valid = centre + scale * np.asarray(first.predict(x_valid, num_threads=threads), dtype=np.float64)
    grown = lightgbm.train(settings, whole, max(first.best_iteration, 1))
    return Trees(grown.model_to_string(), columns, centre, scale, valid)


def installed() -> bool:
    """Whether lightgbm can be imported."""
    from importlib.util import find_spec

    return find_spec("lightgbm") is not None


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise InputError(NOT_INSTALLED) from None
    return lightgbm


__all__ = ["NOT_INSTALLED", "PATIENCE", "ROUNDS", "SETTINGS", "Trees", "grow", "installed"]
