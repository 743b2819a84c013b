"""Isotropic Gaussian on SO(3), the heat kernel of rotations, and variance-exploding diffusion with it.

f(omega, sigma) is the density with respect to the uniform distribution of rotations: f = 1 everywhere at sigma = infinity. The angle
alone has density f(omega) (1 - cos omega) / pi on [0, pi]. All of it is evaluated in float64, exactly, without a table:

    sigma >= 1   f = sum_l (2 l + 1) exp(-l (l + 1) sigma^2 / 2) chi_l(omega)
    sigma <  1   f = exp(sigma^2 / 8) sqrt(2 pi) / sigma^3 * omega / sin(omega / 2) * exp(-omega^2 / 2 sigma^2) * B(omega)
                 B = 1 + sum_{k >= 1} (-1)^k exp(-a_k) (2 cosh y_k - 4 a_k sinh(y_k) / y_k),
                 a_k = 2 pi^2 k^2 / sigma^2,  y_k = 2 pi k omega / sigma^2

the second being the first after Poisson summation over half-integers l + 1/2 (windings omega + 2 pi k paired as +-k). Every exponent in
use is <= 0, so the logarithm is finite at any sigma > 0 and any angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.rotations import exp_so3, log_so3, random_rotations
from foundation.geometry.vectors import broadcast, product, safe_norm

SERIES_FROM_SIGMA = 1.0
NUM_LEVELS = 12
NUM_WINDINGS = 3


@dataclass(frozen=True)
class SO3Schedule:
    """Noise schedule on t in [0, 1], logarithmic in exp(sigma): finer steps at small noise than a linear one.

    Source: Yim et al., SE(3) diffusion model for protein backbones (FrameDiff), arXiv 2302.02277, appendix. Differs: none.
    """

    sigma_min: float = 0.1
    sigma_max: float = 1.5

    def sigma(self, t: Tensor) -> Tensor:
        """(...,) t -> (...,) rad."""
        return torch.log(t * math.exp(self.sigma_max) + (1 - t) * math.exp(self.sigma_min))

    def g(self, t: Tensor) -> Tensor:
        """(...,) t -> (...,) diffusion coefficient, g^2 = d sigma^2 / dt."""
        sigma = self.sigma(t)
        return torch.sqrt(2 * (math.exp(self.sigma_max) - math.exp(self.sigma_min)) * sigma * torch.exp(-sigma))


@full_precision
def log_density(omega_rad: Tensor, sigma: Tensor) -> Tensor:
    """log f with respect to the uniform distribution of rotations.

    Args:
        omega_rad: (...,) in [0, pi].
        sigma: (...,) broadcast, > 0.

    Returns:
        (...,) in the dtype of omega_rad.
    """
    omega, s = broadcast(omega_rad.double(), sigma.double())
    wide = s >= SERIES_FROM_SIGMA
    level, _ = _series(omega, torch.where(wide, s, SERIES_FROM_SIGMA))
    narrow_s = torch.where(wide, SERIES_FROM_SIGMA, s)
    bracket, _ = _windings(omega, narrow_s)
    half = omega / 2
    chord = torch.where(omega < 1e-4, 1 - half.square() / 6, half.sin() / torch.where(omega < 1e-4, 1.0, half))
    constant = narrow_s.square() / 8 + 0.5 * math.log(2 * math.pi) - 3 * narrow_s.log() + math.log(2)
    narrow = constant - omega.square() / (2 * narrow_s.square()) - chord.log() + bracket.log()
    return torch.where(wide, level.log(), narrow).to(omega_rad.dtype)


@full_precision
def dlog_density(omega_rad: Tensor, sigma: Tensor) -> Tensor:
    """d log f / d omega.

    Close to -omega / sigma^2 while omega is small against pi; it returns to zero at omega = pi, where the two ways round meet, over
    a width of sigma^2 / pi.

    Args:
        omega_rad: (...,) in [0, pi].
        sigma: (...,) broadcast, > 0.

    Returns:
        (...,) in the dtype of omega_rad.
    """
    omega, s = broadcast(omega_rad.double(), sigma.double())
    wide = s >= SERIES_FROM_SIGMA
    level, level_slope = _series(omega, torch.where(wide, s, SERIES_FROM_SIGMA))
    narrow_s = torch.where(wide, SERIES_FROM_SIGMA, s)
    bracket, bracket_slope = _windings(omega, narrow_s)
    small = omega < 1e-2
    safe = torch.where(small, 1.0, omega)
    curvature = torch.where(small, omega / 12 * (1 + omega.square() / 60), 1 / safe - 0.5 / torch.tan(safe / 2))
    narrow = -omega / narrow_s.square() + curvature + bracket_slope / bracket
    return torch.where(wide, level_slope / level, narrow).to(omega_rad.dtype)


def _series(omega: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """f and df/domega as a cosine series: chi_l = 1 + 2 cos omega + ... + 2 cos l omega."""
    order = torch.arange(NUM_LEVELS + 1, device=omega.device, dtype=omega.dtype)
    weight = (2 * order + 1) * torch.exp(-order * (order + 1) * (sigma.square() / 2)[..., None])
    amplitude = 2 * weight.flip(-1).cumsum(-1).flip(-1)  # of cos(j omega): every level l >= j
    amplitude = torch.cat([amplitude[..., :1] / 2, amplitude[..., 1:]], -1)
    phase = order * omega[..., None]
    return (amplitude * phase.cos()).sum(-1), -(amplitude * order * phase.sin()).sum(-1)


def _windings(omega: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """B and dB/domega of the header."""
    k = torch.arange(1, NUM_WINDINGS + 1, device=omega.device, dtype=omega.dtype)
    sign = 1 - 2 * (k % 2)
    rate = 2 * math.pi * k / sigma.square()[..., None]
    y, a = rate * omega[..., None], math.pi * k * rate
    plus, minus = torch.exp(y - a), torch.exp(-y - a)
    cosh, sinh = (plus + minus) / 2, (plus - minus) / 2  # both times exp(-a)
    small = y < 0.5
    safe = torch.where(small, 1.0, y)
    square = y.square()
    sinhc_series = 1 + square / 6 * (1 + square / 20 * (1 + square / 42 * (1 + square / 72 * (1 + square / 110))))
    slope_series = y / 3 * (1 + square / 10 * (1 + square / 28 * (1 + square / 54 * (1 + square / 88 * (1 + square / 130)))))
    decay = torch.exp(-a)
    sinhc = torch.where(small, decay * sinhc_series, sinh / safe)
    sinhc_slope = torch.where(small, decay * slope_series, (cosh - sinh / safe) / safe)
    value = 1 + (sign * (2 * cosh - 4 * a * sinhc)).sum(-1)
    slope = (sign * rate * (2 * sinh - 4 * a * sinhc_slope)).sum(-1)
    return value, slope


def angle_density(omega_rad: Tensor, sigma: Tensor) -> Tensor:
    """Density of the rotation angle on [0, pi]: f(omega) (1 - cos omega) / pi."""
    return log_density(omega_rad, sigma).exp() * 2 * (omega_rad / 2).sin().square() / math.pi


def score(rotvec_rad: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of log f in the body frame of the noisy rotation R_t = R_0 Exp(v).

    Args:
        rotvec_rad: (..., 3) v = Log(R_0^T R_t).
        sigma: (...,) broadcast over the leading dimensions.

    Returns:
        (..., 3) 1 / rad; moving R_t <- R_t Exp(epsilon s) climbs the density.
    """
    omega = safe_norm(rotvec_rad)
    small = omega < 1e-5
    probe = torch.where(small, 1e-5, omega)  # d log f is linear in omega there
    return (dlog_density(probe, sigma) / probe)[..., None] * rotvec_rad


def score_of_rotation(rot_rel: Tensor, sigma: Tensor) -> Tensor:
    """score() for a matrix R_0^T R_t: (..., 3, 3) and (...,) -> (..., 3)."""
    return score(log_so3(rot_rel), sigma)


TABLE_SIGMA = (0.01, 4.0)
TABLE_ROWS, TABLE_COLUMNS = 384, 256
ANGLE_REACH = 10.0  # standard deviations that a table row spans, at most pi


@cache
def _tables(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """log sigma (rows,), cumulative distribution of the angle (rows, columns + 1), log sqrt(E|s|^2 / 3) + sigma^2 (rows,).

    The added sigma^2 is the decay at large sigma: what is left is nearly straight between rows.
    """
    log_sigma = torch.linspace(math.log(TABLE_SIGMA[0]), math.log(TABLE_SIGMA[1]), TABLE_ROWS, dtype=torch.float64, device=device)
    sigma = log_sigma.exp()[:, None]
    cell = _reach(sigma) / TABLE_COLUMNS
    node = torch.tensor([-math.sqrt(0.6), 0.0, math.sqrt(0.6)], dtype=torch.float64, device=device)  # Gauss, 3 points a cell
    share = torch.tensor([5 / 18, 8 / 18, 5 / 18], dtype=torch.float64, device=device)
    mass = torch.zeros(TABLE_ROWS, TABLE_COLUMNS, dtype=torch.float64, device=device)
    norm = torch.zeros(TABLE_ROWS, dtype=torch.float64, device=device)
    for point, part in zip(node, share, strict=True):
        omega = (torch.arange(TABLE_COLUMNS, dtype=torch.float64, device=device) + (1 + point) / 2) * cell
        piece = angle_density(omega, sigma) * cell * part
        mass += piece
        norm += (piece * dlog_density(omega, sigma).square()).sum(-1)
    cdf = torch.cat([torch.zeros_like(sigma), mass.cumsum(-1)], -1)
    return log_sigma, cdf / cdf[:, -1:], (norm / 3).sqrt().log() + sigma[:, 0].square()


def _reach(sigma: Tensor) -> Tensor:
    return (ANGLE_REACH * sigma).clamp_max(math.pi)


def _table_place(sigma: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    place = (sigma.log() - log_sigma[0]) / (log_sigma[1] - log_sigma[0])
    row = place.floor().clamp(0, TABLE_ROWS - 2).long()
    return row, place - row


def score_norm(sigma: Tensor) -> Tensor:
    """sqrt(E |s|^2 / 3) under the distribution itself: (...,) sigma > 0 -> (...,) 1 / rad, same dtype.

    Off the table it continues as 1 / sigma below and as exp(-sigma^2) above, which is what it is there.
    """
    log_sigma, _, log_norm = _tables(str(sigma.device))
    s = sigma.double()
    row, blend = _table_place(s, log_sigma)
    norm = (torch.lerp(log_norm[row], log_norm[row + 1], blend) - s.square()).exp()
    return torch.where(s < TABLE_SIGMA[0], 1 / s, norm).to(sigma.dtype)


def sample_angle(sigma: Tensor, rng: torch.Generator) -> Tensor:
    """Rotation angles by inversion of the tabulated distribution, one for every sigma.

    Args:
        sigma: (...,) > 0.
        rng: draws happen on its device.

    Returns:
        (...,) rad in [0, pi], same dtype.
    """
    s = sigma.double()
    log_sigma, cdf, _ = _tables(str(s.device))
    row, blend = _table_place(s, log_sigma)
    blend = blend.clamp(0, 1)  # below the table angles scale with sigma, above it they are uniform
    u = torch.rand(s.shape, generator=rng, device=rng.device, dtype=torch.float64).to(s.device)
    low, high = torch.zeros_like(row), torch.full_like(row, TABLE_COLUMNS)
    for _ in range(TABLE_COLUMNS.bit_length() - 1):  # bisection for the cell that holds u
        middle = (low + high) // 2
        right = torch.lerp(cdf[row, middle], cdf[row + 1, middle], blend) <= u
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    left_u = torch.lerp(cdf[row, low], cdf[row + 1, low], blend)
    right_u = torch.lerp(cdf[row, low + 1], cdf[row + 1, low + 1], blend)
    # the angle has density ~ omega^2 near 0, so the first cell is inverted as a cube root
    share = ((u - left_u) / (right_u - left_u).clamp_min(1e-300)).clamp(0, 1)
    share = torch.where(low == 0, share.pow(1 / 3), share)
    return (_reach(s) * (low + share) / TABLE_COLUMNS).to(sigma.dtype)


def sample(shape: tuple[int, ...] | torch.Size, sigma: Tensor, rng: torch.Generator) -> Tensor:
    """Random rotations about the identity: (*shape, 3, 3) on the device and in the dtype of sigma, which is broadcast to shape."""
    angle = sample_angle(sigma.expand(shape), rng)
    axis = torch.randn(*shape, 3, generator=rng, device=rng.device, dtype=torch.float64)
    axis = (axis / safe_norm(axis)[..., None]).to(device=sigma.device, dtype=sigma.dtype)
    return exp_so3(angle[..., None] * axis)


def uniform(
    shape: tuple[int, ...] | torch.Size, rng: torch.Generator, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform rotations (*shape, 3, 3): the prior of the reverse process."""
    return random_rotations(shape, rng, device, dtype)


def perturb(rot: Tensor, sigma: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forward process R_t = R_0 Exp(v), with its score.

    Args:
        rot: (..., 3, 3) clean rotations.
        sigma: (...,) broadcast over the leading dimensions.
        rng: noise; the same state gives the same v whatever the rotations are.

    Returns:
        (..., 3, 3) noisy rotations and (..., 3) body-frame score.
    """
    sigma = sigma.to(rot.dtype).expand(rot.shape[:-2])
    noise = sample(rot.shape[:-2], sigma, rng)
    return product(rot, noise), score_of_rotation(noise, sigma)


def reverse_ode_step(rot: Tensor, score: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step of the probability-flow equation, Euler in sigma, body frame: (..., 3, 3), (..., 3), (...,), (...,) -> (..., 3, 3)."""
    return product(rot, exp_so3((sigma * (sigma - sigma_next))[..., None] * score))


def reverse_sde_step(
    rot: Tensor, score: Tensor, sigma: Tensor, sigma_next: Tensor, rng: torch.Generator, noise_scale: float = 1.0
) -> Tensor:
    """One ancestral step from noise sigma to sigma_next: full drift, then noise_scale times the posterior's noise (body frame)."""
    variance = sigma.square() - sigma_next.square()
    noise = torch.randn(score.shape, generator=rng, device=rng.device, dtype=score.dtype).to(score.device)
    step = variance[..., None] * score + (noise_scale * sigma_next / sigma * variance.sqrt())[..., None] * noise
    return product(rot, exp_so3(step))
