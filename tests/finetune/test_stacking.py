"""Weights of heads: the least squared error on a simplex, by brute force; equal where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.stacking import stack


@pytest.fixture
def said() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y = rng.normal(size=300)
    return y[:, None] + rng.normal(size=(300, 3)) * [0.2, 0.4, 0.9] + [0.0, 0.1, -0.2], y


@pytest.mark.parametrize("prior", [0.0, 1.0, 30.0])
def test_weights_are_the_best_of_the_simplex(said: tuple[np.ndarray, np.ndarray], prior: float) -> None:
    predicted, y = said
    grid = np.linspace(0, 1, 201)
    every = np.array([(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1 + 1e-12])
    cost = ((every @ predicted.T - y) ** 2).sum(1) + prior * ((every - 1 / 3) ** 2).sum(1)
    found = stack(predicted, y, prior)
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, every[cost.argmin()], atol=0.006)


def test_a_head_that_knows_takes_all_and_one_that_misleads_nothing(said: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, y = said
    found = stack(np.stack([y, predicted[:, 2], -y], axis=1), y, prior=0.0)
    np.testing.assert_allclose(found, [1, 0, 0], atol=1e-6)


def test_without_evidence_weights_are_equal(said: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, y = said
    np.testing.assert_allclose(stack(predicted[:1], y[:1], prior=1e9), [1 / 3] * 3, atol=1e-6)
    np.testing.assert_allclose(stack(np.repeat(predicted[:, :1], 3, axis=1), y), [1 / 3] * 3, atol=1e-6)
