"""Isotropic Gaussian on SO(3) and its diffusion (T24-T29, T33, T35 and the golden table)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from foundation.geometry import igso3
from foundation.geometry.igso3 import SO3Schedule
from foundation.geometry.rotations import exp_so3, geodesic_angle, log_so3, random_rotations
from foundation.geometry.vectors import product

F64 = torch.float64
SCHEDULE = SO3Schedule()
GOLDEN = torch.tensor(
    [  # t, sigma, g, E[omega], sqrt(E|s|^2 / 3)
        [0.01, 0.13009, 0.87827, 0.20745, 7.67044],
        [0.10, 0.36660, 1.30991, 0.58173, 2.68172],
        [0.25, 0.66747, 1.52064, 1.04524, 1.41279],
        [0.50, 1.02727, 1.57588, 1.55665, 0.76848],
        [0.75, 1.29131, 1.54832, 1.84934, 0.42995],
        [1.00, 1.50000, 1.50340, 2.00653, 0.24535],
    ],
    dtype=F64,
)


def brute_force(omega: Tensor, sigma: float, levels: int = 2000) -> tuple[Tensor, Tensor]:
    """f and df/domega by the defining series in float64; only good where f is not tiny."""
    level = torch.arange(levels, dtype=F64)
    weight = (2 * level + 1) * torch.exp(-level * (level + 1) * sigma**2 / 2)
    w = omega[:, None]
    up, half = torch.sin((level + 0.5) * w), torch.sin(w / 2)
    slope = ((level + 0.5) * torch.cos((level + 0.5) * w) * half - up * torch.cos(w / 2) / 2) / half**2
    return (weight * up / half).sum(-1), (weight * slope).sum(-1)


@pytest.mark.parametrize("t", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_angle_density_integrates_to_one(t: float) -> None:
    omega = (torch.arange(2000, dtype=F64) + 0.5) / 2000 * math.pi
    density = igso3.angle_density(omega, SCHEDULE.sigma(torch.tensor(t, dtype=F64)))
    assert abs(density.mean().item() * math.pi - 1) < 1e-5


def test_golden_table() -> None:
    t, sigma, g, mean_angle, norm = GOLDEN.unbind(1)
    assert torch.allclose(SCHEDULE.sigma(t), sigma, rtol=1e-4)
    assert torch.allclose(SCHEDULE.g(t), g, rtol=1e-4)
    omega = (torch.arange(2000, dtype=F64) + 0.5) / 2000 * math.pi
    density = igso3.angle_density(omega, SCHEDULE.sigma(t)[:, None])
    assert torch.allclose((density * omega).mean(-1) * math.pi, mean_angle, rtol=1e-4)
    assert torch.allclose(igso3.score_norm(SCHEDULE.sigma(t)), norm, rtol=1e-4)


def test_golden_scores() -> None:
    sigma, omega = torch.tensor([[0.5, 0.5, 1.0, 1.5], [0.5, 1.0, 1.0, 2.0]], dtype=F64)
    expected = torch.tensor([-1.958159, -3.915244, -0.915205, -0.542767], dtype=F64)
    assert torch.allclose(igso3.dlog_density(omega, sigma), expected, rtol=1e-6)
    assert torch.allclose(igso3.dlog_density(omega.float(), sigma.float()).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.9, 0.999, 1.0, 1.001, 1.5, 3.0])
def test_density_and_slope_equal_the_defining_series(sigma: float) -> None:
    omega = torch.linspace(1e-3, min(math.pi - 1e-3, 6 * sigma), 300, dtype=F64)
    level, slope = brute_force(omega, sigma)
    s = torch.tensor(sigma, dtype=F64)
    usable = level > 1e-6
    assert usable.sum() > 100
    assert torch.allclose(igso3.log_density(omega, s)[usable], level[usable].log(), atol=1e-8)
    assert torch.allclose(igso3.dlog_density(omega, s)[usable], (slope / level)[usable], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.02, 0.13, 0.5, 0.9, 1.0, 1.5])
def test_slope_is_the_derivative_of_the_log_density(sigma: float) -> None:
    omega = torch.cat([torch.logspace(-6, -1, 50, dtype=F64), torch.linspace(0.1, 3.14, 200, dtype=F64)]).requires_grad_()
    s = torch.tensor(sigma, dtype=F64)
    (expected,) = torch.autograd.grad(igso3.log_density(omega, s).sum(), omega)
    assert torch.allclose(igso3.dlog_density(omega.detach(), s), expected, rtol=1e-6, atol=1e-8)


def test_small_noise_limit_and_tail() -> None:
    sigma = torch.tensor(0.13, dtype=F64)
    omega = torch.linspace(0.01, 1.5, 100, dtype=F64)
    assert (igso3.dlog_density(omega, sigma) / (-omega / sigma**2) - 1).abs().max() < 0.01
    whole = torch.linspace(1e-4, math.pi, 2000, dtype=F64)
    slope, level = igso3.dlog_density(whole, sigma), igso3.log_density(whole, sigma)
    assert slope.isfinite().all()
    assert level.isfinite().all()
    assert (level.diff() < 0).all()
    # the score grows until the two ways round a half turn meet, over a width of sigma^2 / pi, and is zero there
    before = whole < math.pi - 5 * sigma**2 / math.pi
    assert (slope[before].diff() < 0).all()
    assert abs(igso3.dlog_density(torch.tensor([0.7, 1.0], dtype=F64), sigma) - torch.tensor([-41.3, -59.0])).max() < 0.2
    assert abs(slope[-1].item()) < 1e-6


def test_score_is_the_body_frame_gradient(rng: torch.Generator) -> None:
    v = torch.randn(50, 3, generator=rng, dtype=F64)
    sigma = torch.linspace(0.2, 1.5, 50, dtype=F64)
    step = torch.zeros_like(v).requires_grad_()
    moved = log_so3(product(exp_so3(v), exp_so3(step)))
    (expected,) = torch.autograd.grad(igso3.log_density(moved.norm(dim=-1), sigma).sum(), step)
    assert torch.allclose(igso3.score(v, sigma), expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(igso3.score_of_rotation(exp_so3(v), sigma), expected, rtol=1e-6, atol=1e-8)
    zero = igso3.score(torch.zeros(2, 3), torch.tensor([0.1, 1.5]))
    assert torch.equal(zero, torch.zeros(2, 3))


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5, 1.0])
def test_angles_follow_the_distribution(t: float, rng: torch.Generator) -> None:
    sigma = SCHEDULE.sigma(torch.tensor(t, dtype=F64))
    rot = igso3.sample((100_000,), sigma, rng)
    rotvec = log_so3(rot)
    angle = rotvec.norm(dim=-1).sort().values
    grid = torch.linspace(0, math.pi, 4001, dtype=F64)
    density = igso3.angle_density(grid, sigma)
    cdf = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(density, grid)])
    empirical = torch.arange(1, 100_001, dtype=F64) / 100_000
    assert (cdf[torch.searchsorted(grid, angle).clamp(max=4000)] - empirical).abs().max() < 0.01
    assert (rotvec / rotvec.norm(dim=-1, keepdim=True)).mean(0).abs().max() < 0.01


def test_table_inversion_is_accurate_between_rows() -> None:
    """Quantiles of one draw equal those of the exact distribution, for sigmas off the table's rows."""
    sigma = torch.tensor([0.0042, 0.0123, 0.0771, 0.31234, 0.98765, 1.41421, 2.71828], dtype=F64).repeat_interleave(60)
    u = torch.rand(420, generator=torch.Generator().manual_seed(3), dtype=F64)
    angle = igso3.sample_angle(sigma, torch.Generator().manual_seed(3))
    fine = (torch.arange(1000, dtype=F64) + 0.5) / 1000 * angle[:, None]
    exact = igso3.angle_density(fine, sigma[:, None]).mean(-1) * angle
    assert (exact - u).abs().max() < 3e-4


def test_score_norm_is_the_second_moment(rng: torch.Generator) -> None:
    sigma = torch.tensor([0.0123, 0.2, 0.77, 1.2345, 2.2, 5.0], dtype=F64)
    omega = (torch.arange(4000, dtype=F64) + 0.5) / 4000 * math.pi
    moment = (igso3.angle_density(omega, sigma[:, None]) * igso3.dlog_density(omega, sigma[:, None]) ** 2).mean(-1) * math.pi
    assert torch.allclose(igso3.score_norm(sigma), (moment / 3).sqrt(), rtol=1e-4, atol=0)
    assert igso3.score_norm(torch.tensor(0.001)).item() == pytest.approx(1000, rel=1e-4)


def test_noise_commutes_with_turning_the_world(rng: torch.Generator) -> None:
    rot, turn = random_rotations((100,), rng), random_rotations((1,), rng)
    sigma = torch.linspace(0.1, 1.5, 100)
    plain, plain_score = igso3.perturb(rot, sigma, torch.Generator().manual_seed(5))
    turned, turned_score = igso3.perturb(product(turn, rot), sigma, torch.Generator().manual_seed(5))
    assert (turned - product(turn, plain)).abs().max() < 1e-6
    assert torch.equal(turned_score, plain_score)
    assert geodesic_angle(plain, rot).mean() > 0.1


def test_perfect_prediction_has_zero_loss(rng: torch.Generator) -> None:
    rot = random_rotations((50,), rng)
    sigma = torch.full((50,), 0.7)
    noisy, target = igso3.perturb(rot, sigma, rng)
    predicted = igso3.score_of_rotation(product(rot.transpose(-1, -2), noisy), sigma)
    assert (predicted - target).abs().max() < 2e-5  # float32 logarithm of float32 products
    assert igso3.score_of_rotation(torch.eye(3).expand(50, 3, 3), sigma).abs().max() < 1e-6
    wide, target64 = igso3.perturb(rot.double(), sigma.double(), rng)
    error = igso3.score_of_rotation(product(rot.double().transpose(-1, -2), wide), sigma.double()) - target64
    assert error.abs().max() < 1e-6


def test_oracle_score_finds_a_known_rotation_from_uniform_starts(rng: torch.Generator) -> None:
    target = random_rotations((1,), rng)
    rot = igso3.uniform((1000,), rng)
    sigmas = SCHEDULE.sigma(torch.cat([torch.linspace(1, 0.01, 100), torch.zeros(1)]))
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        score = igso3.score_of_rotation(product(target.transpose(-1, -2), rot), sigma.expand(1000))
        rot = igso3.reverse_sde_step(rot, score, sigma, after, rng, noise_scale=0.0)
    error = geodesic_angle(target, rot)
    assert error.mean() < 0.02
    assert error.max() < 0.05


@pytest.mark.parametrize("stepper", ["ode", "sde"])
def test_oracle_score_of_two_rotations_recovers_their_weights(stepper: str, rng: torch.Generator) -> None:
    targets, weight = random_rotations((2,), rng), torch.tensor([0.7, 0.3])
    assert geodesic_angle(*targets) > 1
    rot = igso3.uniform((2000,), rng)
    sigmas = SO3Schedule(0.05, 3.0).sigma(torch.linspace(1, 0, 81))
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        relative = log_so3(product(targets.transpose(-1, -2), rot[:, None]))  # (P, 2, 3)
        share = (igso3.log_density(relative.norm(dim=-1), sigma) + weight.log()).softmax(-1)
        score = (share[..., None] * igso3.score(relative, sigma)).sum(1)
        rot = (
            igso3.reverse_ode_step(rot, score, sigma, after) if stepper == "ode" else igso3.reverse_sde_step(rot, score, sigma, after, rng)
        )
    distance = geodesic_angle(targets, rot[:, None])
    nearest = distance.min(-1)
    assert (nearest.indices == 0).float().mean().item() == pytest.approx(0.7, abs=0.03)
    expected = igso3.sample_angle(torch.full((3000,), 0.05), rng).mean()
    assert nearest.values.mean().item() == pytest.approx(
        expected.item(), rel=0.1 if stepper == "sde" else 0.2
    )  # Euler at 80 steps; 2 % off at 320


def test_uniform_prior(rng: torch.Generator) -> None:
    angle = geodesic_angle(igso3.uniform((50_000,), rng), torch.eye(3)).double().sort().values
    empirical = torch.arange(1, 50_001, dtype=F64) / 50_000
    assert ((angle - angle.sin()) / math.pi - empirical).abs().max() < 0.01
    assert angle.mean().item() == pytest.approx(2.2074, abs=0.01)
    wide = igso3.log_density(torch.linspace(0, math.pi, 50, dtype=F64), torch.tensor(4.0, dtype=F64))
    assert wide.abs().max() < 1e-5


def test_device_gives_the_numbers_of_the_cpu(device: str) -> None:
    sigma, omega = torch.linspace(0.05, 2, 100), torch.linspace(0, math.pi, 100)
    assert torch.allclose(
        igso3.dlog_density(omega.to(device), sigma.to(device)).cpu(), igso3.dlog_density(omega, sigma), rtol=1e-5, atol=1e-6
    )
    draws = [igso3.sample((100,), sigma.to(place), torch.Generator().manual_seed(1)).cpu() for place in ("cpu", device)]
    assert torch.allclose(draws[0], draws[1], atol=1e-5)
