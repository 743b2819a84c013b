"""Wrapped normal distribution and variance-exploding diffusion on the circle."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.torsions import wrap_angle
from foundation.geometry.vectors import broadcast

FOURIER_FROM_SIGMA = 2.0  # above it the Fourier series converges in 6 terms, below it 7 windings do (both to float64)
NUM_WINDINGS = 3
NUM_FOURIER = 6


@full_precision
def log_density(x_rad: Tensor, sigma_rad: Tensor) -> Tensor:
    """Log of the wrapped normal density with respect to dx on (-pi, pi].

    Args:
        x_rad: (...,) any angle.
        sigma_rad: (...,) standard deviation before wrapping, broadcast.

    Returns:
        (...,) finite for every sigma > 0.
    """
    x, sigma = broadcast(wrap_angle(x_rad), sigma_rad)
    wide = sigma >= FOURIER_FROM_SIGMA
    narrow_sigma = torch.where(wide, 1.0, sigma)
    exponent = -_windings(x).square() / (2 * narrow_sigma.square())[..., None]
    narrow = exponent.logsumexp(-1) - narrow_sigma.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(wide, _fourier(x, torch.where(wide, sigma, FOURIER_FROM_SIGMA))[0].log() - math.log(2 * math.pi), narrow)


@full_precision
def score(x_rad: Tensor, sigma_rad: Tensor) -> Tensor:
    """d log_density / dx.

    Args:
        x_rad: (...,) any angle.
        sigma_rad: (...,) broadcast.

    Returns:
        (...,) 1 / rad.

    Source: Jing et al., Torsional diffusion, arXiv 2206.01729, section 3.1. Differs: evaluated exactly (softmax over windings, or the
        Fourier series where sigma is large) instead of looked up in a table.
    """
    x, sigma = broadcast(wrap_angle(x_rad), sigma_rad)
    wide = sigma >= FOURIER_FROM_SIGMA
    narrow_sigma = torch.where(wide, 1.0, sigma)
    windings = _windings(x)
    weight = (-windings.square() / (2 * narrow_sigma.square())[..., None]).softmax(-1)
    narrow = -(weight * windings).sum(-1) / narrow_sigma.square()
    density, slope = _fourier(x, torch.where(wide, sigma, FOURIER_FROM_SIGMA))
    return torch.where(wide, slope / density, narrow)


def _windings(x: Tensor) -> Tensor:
    k = torch.arange(-NUM_WINDINGS, NUM_WINDINGS + 1, device=x.device, dtype=x.dtype)
    return x[..., None] + 2 * math.pi * k


def _fourier(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """2 pi times the density, and its derivative."""
    n = torch.arange(1, NUM_FOURIER + 1, device=x.device, dtype=x.dtype)
    amplitude = 2 * torch.exp(-n.square() * (sigma.square() / 2)[..., None])
    phase = n * x[..., None]
    return 1 + (amplitude * phase.cos()).sum(-1), -(amplitude * n * phase.sin()).sum(-1)


def score_norm_sq(sigma_rad: Tensor) -> Tensor:
    """E ||score||^2 under the wrapped normal itself, the natural weight of score matching.

    Args:
        sigma_rad: (...,) > 0.

    Returns:
        (...,) 1 / rad^2, same dtype.
    """
    sigma = sigma_rad.double()
    log_sigma, log_norm = _norm_table(str(sigma.device))
    step = log_sigma[1] - log_sigma[0]
    place = (sigma.log() - log_sigma[0]) / step
    left = place.floor().clamp(0, len(log_sigma) - 2).long()
    middle = (torch.lerp(log_norm[left], log_norm[left + 1], place - left) - sigma.square()).exp()
    wide = 2 * torch.exp(-sigma.square())  # leading Fourier term, right to 1e-6 where it is used
    norm = torch.where(sigma < NORM_TABLE[0], sigma.pow(-2), torch.where(sigma > NORM_TABLE[1], wide, middle))
    return norm.to(sigma_rad.dtype)


NORM_TABLE = (0.2, 4.0)  # below: no winding is felt; above: one Fourier term is all


@cache
def _norm_table(device: str) -> tuple[Tensor, Tensor]:
    """log sigma (1024,) and log E s^2 + sigma^2 (nearly straight), by the trapezoid rule: exponentially exact on a circle."""
    log_sigma = torch.linspace(math.log(NORM_TABLE[0]), math.log(NORM_TABLE[1]), 1024, dtype=torch.float64, device=device)
    x = torch.arange(256, dtype=torch.float64, device=device) * (2 * math.pi / 256)
    sigma = log_sigma.exp()[:, None]
    norm = (log_density(x, sigma).exp() * score(x, sigma).square()).sum(-1) * (2 * math.pi / 256)
    return log_sigma, norm.log() + sigma[:, 0].square()


def sample(shape: tuple[int, ...] | torch.Size, sigma_rad: Tensor, rng: torch.Generator) -> Tensor:
    """Draws of the wrapped normal about 0: (*shape) rad on the device and in the dtype of sigma_rad, which is broadcast to shape."""
    noise = torch.randn(*shape, generator=rng, device=rng.device, dtype=sigma_rad.dtype).to(sigma_rad.device)
    return wrap_angle(sigma_rad * noise)


def uniform(
    shape: tuple[int, ...] | torch.Size, rng: torch.Generator, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform angles in (-pi, pi]: the prior of the reverse process."""
    unit = torch.rand(*shape, generator=rng, device=rng.device, dtype=dtype).to(device or rng.device)
    return math.pi - 2 * math.pi * unit


def sigma_at(t: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Geometric schedule: (...,) t in [0, 1] -> (...,) sigma from sigma_min at 0 to sigma_max at 1."""
    return sigma_min * (sigma_max / sigma_min) ** t


def reverse_ode_step(x_rad: Tensor, score: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step of the probability-flow equation from noise sigma to the smaller sigma_next.

    Euler in sigma, which is exact for a single known target: x - target shrinks by sigma_next / sigma.
    """
    return wrap_angle(x_rad + sigma * (sigma - sigma_next) * score)


class ReverseSDE:
    """Steps of one trajectory down the noise levels: ancestral, of second order, with one evaluation of the score each.

    The denoised mean at a level is extrapolated, in log sigma, from there and from the level before; then the full drift towards it and the
    noise of the posterior (none at sigma_next = 0). The first step and the last one do not extrapolate.

    Source: Lu et al., DPM-Solver++, arXiv 2211.01095, SDE-DPM-Solver++(2M), for the variance-exploding process; without extrapolation it is
    the ancestral step of Song et al., arXiv 2011.13456, appendix F. Differs: on the circle, in turns, so that nothing jumps at the seam.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, Tensor] | None = None  # denoised mean of the level before, seen from here; log ratio of levels

    def turn(self, score: Tensor, sigma: Tensor, sigma_next: Tensor, rng: torch.Generator) -> Tensor:
        """Turn of every angle in rad.

        Args:
            score: (...,) at the angles that all turns so far have led to.
            sigma, sigma_next: () noise levels, falling from call to call.
        """
        mean, ratio = sigma.square() * score, sigma_next / sigma  # the denoised mean, seen from the angle
        step, share = -ratio.clamp(min=1e-12).log(), 1 - ratio.square()
        ahead = mean
        if self._before is not None:
            ahead = mean + (mean - self._before[0]) * (step / (2 * self._before[1])) * (ratio > 0)
        noise = torch.randn(score.shape, generator=rng, device=rng.device, dtype=score.dtype).to(score.device)
        turn = share * ahead + sigma_next * share.sqrt() * noise
        self._before = mean - turn, step
        return turn
