"""Baselines: the mean is the mean, trees learn what trees can, nothing of the test or validation part leaks in, seeds decide."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from finetune import baselines
from foundation.errors import InputError


def data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12))
    x[:, 10] = 0  # a column that never changes
    y = 100 * np.sign(x[:, 0]) + 30 * x[:, 1] + rng.normal(size=n)
    x[rng.uniform(size=n) < 0.02, 5] = np.nan
    return x, y


def test_the_mean_is_that_of_the_training_fold() -> None:
    x, y = data(10)
    assert baselines.fit_predict("mean", x[:6], y[:6], x[6:8], y[6:8], x[8:], 0) == pytest.approx([y[:8].mean()] * 2)
    with pytest.raises(InputError, match="baseline 'forest' must be one of mean, lightgbm"):
        baselines.fit_predict("forest", x, y, x, y, x, 0)


def test_trees_learn_a_step_and_a_slope() -> None:
    pytest.importorskip("lightgbm")
    (x, y), (new, wanted) = data(), data(200, 1)
    predicted = baselines.fit_predict_lightgbm(x[:340], y[:340], x[340:], y[340:], new, 0)
    assert np.sqrt(np.square(predicted - wanted).mean()) < 0.6 * wanted.std(), "though a tree sees two of the twelve columns"
    assert np.corrcoef(predicted, wanted)[0, 1] > 0.9
    assert np.array_equal(predicted, baselines.fit_predict_lightgbm(x[:340], y[:340], x[340:], y[340:], new, 0))
    assert not np.array_equal(predicted, baselines.fit_predict_lightgbm(x[:340], y[:340], x[340:], y[340:], new, 1))
    unit = 2.0**-30  # a power of two: standardised values are the same to the last bit
    assert np.array_equal(baselines.fit_predict_lightgbm(x[:340], unit * y[:340], x[340:], unit * y[340:], new, 0), unit * predicted)


def test_noise_is_predicted_by_its_mean() -> None:
    """Growing stops at once: the validation part shows that nothing is learned."""
    pytest.importorskip("lightgbm")
    x, _ = data(600)
    y = np.random.default_rng(5).normal(size=600)
    predicted = baselines.fit_predict_lightgbm(x[:300], y[:300], x[300:400], y[300:400], x[400:], 0)
    assert predicted.std() < 0.5
    assert np.square(predicted - y[400:]).mean() < 1.25 * y[400:].var()


def test_few_polymers_are_no_error() -> None:
    pytest.importorskip("lightgbm")
    x, y = data(12)
    predicted = baselines.fit_predict_lightgbm(x[:8], y[:8], x[8:9], y[8:9], x[9:], 0)
    assert np.isfinite(predicted).all()


def test_without_the_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lightgbm":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    x, y = data(20)
    with pytest.raises(InputError, match=r"need the package lightgbm; install it with pip install -e '.\[baselines\]'"):
        baselines.fit_predict_lightgbm(x, y, x, y, x, 0)
