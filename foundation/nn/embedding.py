"""Scalars as features: Fourier features of a noise level, harmonics of an angle, Gaussian radial basis of a distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foundation.nn.parity import Graded

LARGEST_EXPONENT = 40.0  # exp(-40) is 0 beside 1; without the bound denormal numbers make exp and the product after it five times slower


class FourierFeatures(nn.Module):
    """(...,) -> (..., D): sines and cosines of fixed geometric frequencies, then a small perceptron."""

    def __init__(self, width: int, num_frequencies: int = 16) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        frequency = math.pi * 2.0 ** torch.linspace(-2, 5, self.num_frequencies, device=x.device)
        angle = x.float()[..., None] * frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1))


def harmonics(angle_rad: Tensor, num: int) -> Graded:
    """(...,) angles -> cosines (even) and sines (odd) of 1 to ``num`` times the angle, (..., num) each.

    Barriers of rotation are threefold and sixfold, and a well is some 15 degrees wide: the first harmonic alone cannot say that.
    """
    multiple = angle_rad.float()[..., None] * torch.arange(1, num + 1, device=angle_rad.device)
    return Graded(multiple.cos(), multiple.sin())


class RadialBasis(nn.Module):
    """(...,) distances in angstrom -> (..., num) Gaussians evenly spaced on [nearest, reach]."""

    def __init__(self, num: int = 24, reach_ang: float = 12.0, nearest_ang: float = 0.0) -> None:
        super().__init__()
        self.num, self.reach_ang, self.nearest_ang = num, reach_ang, nearest_ang

    def forward(self, distance_ang: Tensor, dim: int = -1) -> Tensor:
        """dim: where the Gaussians stand in the result, -1 or -2."""
        sharpness = self.num / (self.reach_ang - self.nearest_ang)
        centre = torch.linspace(self.nearest_ang * sharpness, self.reach_ang * sharpness, self.num, device=distance_ang.device)
        scaled = distance_ang.float() * sharpness
        away = scaled.unsqueeze(dim) - (centre if dim == -1 else centre[:, None])
        return away.square().clamp_(max=LARGEST_EXPONENT).neg_().exp_()
