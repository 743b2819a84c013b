"""Wrapped normal and diffusion on the circle (T21, T23)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import kstest
from torch import Tensor

from foundation.geometry import torus

SIGMAS = [0.01, 0.0314, 0.1, 0.3, 0.5, 1.0, 1.5, 1.999, 2.0, math.pi, 2 * math.pi]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_integrates_to_one(sigma: float) -> None:
    x = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * 2 * math.pi - math.pi
    density = torus.log_density(x, torch.tensor(sigma, dtype=torch.float64)).exp()
    assert abs(density.mean().item() * 2 * math.pi - 1) < 1e-6


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_derivative_of_the_log_density(sigma: float) -> None:
    x = torch.linspace(-3.1, 3.1, 101, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(sigma, dtype=torch.float64)
    (expected,) = torch.autograd.grad(torus.log_density(x, s).sum(), x)
    assert torch.allclose(torus.score(x.detach(), s), expected, rtol=1e-10, atol=1e-12)
    single = torus.score(x.detach().float(), s.float())
    assert ((single - expected).abs() / expected.abs().max()).max() < 1e-5


def test_golden_values(device: str) -> None:
    def score(sigma: float, *x: float) -> Tensor:
        return torus.score(torch.tensor(x, device=device), torch.tensor(sigma, device=device)).cpu()

    assert torch.allclose(score(0.5, 0.5, 3.0), torch.tensor([-2.0, -11.3041]), rtol=1e-5)
    assert torch.allclose(score(2.0, 0.5, 2.0, 3.0), torch.tensor([-0.105740, -0.276354, -0.051621]), rtol=2e-5)
    sigma = torch.tensor([0.5, 1.0, 1.5, 2.0, math.pi], device=device)
    expected = torch.tensor([4.000, 0.94892, 0.230906, 0.0372901, 1.03452e-4])
    assert torch.allclose(torus.score_norm_sq(sigma).cpu(), expected, rtol=1e-4)


def test_no_nan_at_the_smallest_noise() -> None:
    x = torch.linspace(-math.pi, math.pi, 1001)
    sigma = torch.tensor(0.0314)
    assert torus.score(x, sigma).isfinite().all()
    assert torus.log_density(x, sigma).isfinite().all()
    assert torus.log_density(torch.tensor([1e4]), torch.tensor([1e-3])).isfinite().all()


def test_norm_is_the_second_moment_of_the_score_at_every_sigma() -> None:
    sigma = torch.logspace(math.log10(0.01), math.log10(2 * math.pi * 1.2), 60, dtype=torch.float64)
    x = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * 2 * math.pi - math.pi
    moment = [(torus.log_density(x, s).exp() * torus.score(x, s) ** 2).mean() * 2 * math.pi for s in sigma]
    assert (torus.score_norm_sq(sigma) / torch.stack(moment) - 1).abs().max() < 1e-5


def test_samples_follow_the_density(rng: torch.Generator) -> None:
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    for sigma in (0.3, 1.2, 2.5):
        s = torch.tensor(sigma)
        density = torus.log_density(grid, s.double()).exp()
        cdf = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, grid)])
        draws = torus.sample((20_000,), s, rng).double().sort().values
        assert draws.min() > -math.pi - 1e-6
        assert draws.max() < math.pi + 1e-6
        empirical = torch.arange(1, 20_001, dtype=torch.float64) / 20_000
        place = torch.searchsorted(grid, draws).clamp(max=20_000)
        assert (cdf[place] - empirical).abs().max() < 0.012
    prior = torus.uniform((20_000,), rng)
    assert kstest(prior.numpy(), lambda v: (v + math.pi) / (2 * math.pi)).pvalue > 0.01


def test_geometric_schedule() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(torus.sigma_at(t, 0.01, 4.0), torch.tensor([0.01, 0.2, 4.0]))


def test_both_steppers_reach_a_single_known_angle_exactly() -> None:
    target, x = torch.tensor(2.9), torch.tensor([-3.0, 2.0, 1.5])
    s, zero = torch.tensor(0.4), torch.tensor(0.0)
    score = torus.score(x - target, s)
    assert torch.allclose(torus.reverse_ode_step(x, score, s, zero), target.expand(3), atol=1e-5)
    turned = torus.wrap_angle(x + torus.ReverseSDE().turn(score, s, zero, torch.Generator()))
    assert torch.allclose(torus.wrap_angle(turned - target), zero, atol=1e-5)


MEANS, WIDTHS, WEIGHTS = torch.tensor([-2.6, 0.4, 1.9]), torch.tensor([0.35, 0.2, 0.5]), torch.tensor([0.5, 0.2, 0.3])


def mixture_log_density(x: Tensor, sigma: Tensor) -> Tensor:
    """Mixture of wrapped normals after noise sigma: components of variance width^2 + sigma^2."""
    return (torus.log_density(x[:, None] - MEANS, (WIDTHS**2 + sigma**2).sqrt()) + WEIGHTS.log()).logsumexp(-1)


def mixture_score(x: Tensor, sigma: Tensor) -> Tensor:
    width = (WIDTHS**2 + sigma**2).sqrt()
    share = (torus.log_density(x[:, None] - MEANS, width) + WEIGHTS.log()).softmax(-1)
    return (share * torus.score(x[:, None] - MEANS, width)).sum(-1)


def mixture_cdf() -> Callable[[Tensor], Tensor]:
    grid = torch.linspace(-math.pi, math.pi, 8001, dtype=torch.float64)
    density = mixture_log_density(grid, torch.tensor(0.0, dtype=torch.float64)).exp()
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, grid)])
    return lambda x: cdf[torch.searchsorted(grid, torch.as_tensor(x).double()).clamp(max=8000)].numpy()


def drawn(stepper: str, steps: int, count: int, rng: torch.Generator, lowest: float = 0.01) -> Tensor:
    """Draws of the mixture by its exact score."""
    x, solver = torus.uniform((count,), rng), torus.ReverseSDE()
    sigmas = torch.cat([torus.sigma_at(torch.linspace(1, 0, steps), lowest, math.pi), torch.zeros(1)])
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        score = mixture_score(x, sigma)
        if stepper == "ode":
            x = torus.reverse_ode_step(x, score, sigma, after)
        elif stepper == "second order":
            x = torus.wrap_angle(x + solver.turn(score, sigma, after, rng))
        else:  # a solver that has seen nothing is of first order
            x = torus.wrap_angle(x + torus.ReverseSDE().turn(score, sigma, after, rng))
    return x


@pytest.mark.parametrize(("stepper", "steps"), [("ode", 80), ("first order", 80), ("second order", 20)])
def test_oracle_score_recovers_the_mixture(stepper: str, steps: int, rng: torch.Generator) -> None:
    cdf = mixture_cdf()
    assert kstest(torus.uniform((4000,), rng).numpy(), cdf).pvalue < 1e-6  # the prior is not the answer
    assert kstest(drawn(stepper, steps, 4000, rng).numpy(), cdf).pvalue > 0.01


def test_extrapolation_makes_twelve_steps_better_than_twenty(rng: torch.Generator) -> None:
    """Divergence of 5 degree histograms from the mixture, on the levels that the heads use."""
    edges = torch.linspace(-math.pi, math.pi, 73)
    truth = mixture_log_density((edges[1:] + edges[:-1]).double() / 2, torch.tensor(0.0, dtype=torch.float64)).exp()

    def divergence(stepper: str, steps: int) -> float:
        counts = torch.histogram(drawn(stepper, steps, 100_000, rng, lowest=0.01 * math.pi), edges).hist
        return float(jensenshannon(counts.numpy(), truth.numpy()) ** 2)

    assert divergence("second order", 12) < divergence("first order", 20)
    assert divergence("second order", 10) < divergence("first order", 10) / 2
