"""Paths from prior to data, what is learned on them, and how they are followed: loss and sampling on the same schedule object.

    x_t = (1 - t) x0 + t x1 + gamma(t) z          t = 0 prior, t = 1 data, z ~ N(0, 1)

`bridge`: gamma = s sqrt(t (1 - t)), Albergo et al., Stochastic interpolants, arXiv 2303.08797, eq. 2.1; `none`: 0, Lipman et al.,
arXiv 2210.02747; `const`: s at all times, as the public code of DiTMC (arXiv 2506.15378) has it. The flow that carries the law of x_t is

    v = E[x1 - x0 | x_t] + gamma'(t) E[z | x_t]

A network that says E[x1 | x_t] and E[z | x_t] knows all three, as x0 = (x_t - t x1 - gamma z) / (1 - t). With noise of constant size
and no E[z], (x1 - x_t) / (1 - t) is not that flow: it adds - s E[z] / (1 - t) and contracts what is drawn. `const` is kept to measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.nn.ode import integrate
from foundation.objectives.ditmc.config import DiTMCConfig

LATEST_WEIGHT = 0.9  # time beyond which the weight of a clean prediction no longer grows
EDGE = 1e-3  # of time, which velocities are not learned in, as they need not be finite there
MOVED_ANG = 1.5  # how far atoms move from prior to data, about: root mean square of a coordinate
BEND = 0.025  # t (1 - t) below which the weight of predicted noise no longer grows

Heads = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # x (B, n, 3), t (B,) -> what is predicted: clean and noise, or velocity and nothing


@dataclass(frozen=True)
class Path:
    """A noise schedule.

    Attributes:
        noise: bridge, none or const.
        size_ang: s.
        velocity: the network predicts v itself.
    """

    noise: str
    size_ang: float
    velocity: bool = False

    @staticmethod
    def of(config: DiTMCConfig) -> Path:
        """That of a configuration."""
        return Path(config.noise, config.noise_ang, config.predict == "velocity")

    def gamma(self, t: Tensor) -> Tensor:
        """Size of the noise at times t."""
        if self.noise == "none":
            return torch.zeros_like(t)
        return self.size_ang * (torch.ones_like(t) if self.noise == "const" else (t * (1 - t)).clamp(min=0).sqrt())

    def gamma_rate(self, t: Tensor) -> Tensor:
        """Its derivative, for 0 < t < 1."""
        if self.noise != "bridge":
            return torch.zeros_like(t)
        return self.size_ang * (1 - 2 * t) / (2 * (t * (1 - t)).sqrt())

    def draw_times(self, number: int, kind: str, rng: torch.Generator, device: torch.device) -> Tensor:
        """(number,) times of training."""
        t = torch.rand(number, generator=rng, device=device)
        if kind == "late":  # of Beta(1.9, 1) the cumulative chance is t^1.9
            late = torch.rand(number, generator=rng, device=device) ** (1 / 1.9)
            t = torch.where(torch.rand(number, generator=rng, device=device) < 0.02, t, late)
        return t.clamp(EDGE, 1 - EDGE) if self.velocity else t

    def between(self, x0: Tensor, x1: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """x_t, (B, ...) at times t (B,)."""
        t = _over(t, x1)
        return (1 - t) * x0 + t * x1 + self.gamma(t) * z

    def clean(self, x: Tensor, t: Tensor, said: Tensor) -> Tensor:
        """Clean atoms (B, ...) of what a network says, (B, ...) of order one: x + said x how far x is away, about.

        A network that had to say the atoms themselves would have to copy them at late times, which it does badly; so it says a difference
        (Karras et al., EDM, arXiv 2206.00364, table 1: predictions that are preconditioned).
        """
        t = _over(t, x)
        return x + (((1 - t) * MOVED_ANG).square() + self.gamma(t).square()).sqrt() * said

    def errors(self, predicted: tuple[Tensor, Tensor], x0: Tensor, x1: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) weighted squared errors of each atom, a third of the sum over x, y, z: of clean or velocity, and of noise."""
        if self.velocity:
            rate = self.gamma_rate(_over(t, x1))
            return (predicted[0] - (x1 - x0 + rate * z)).square().mean(-1), torch.zeros_like(x1[..., 0])
        weight = (1 - t.clamp(max=LATEST_WEIGHT)) ** -2
        clean = weight[:, None] * (predicted[0] - x1).square().mean(-1)
        if self.noise != "bridge":
            return clean, torch.zeros_like(clean)
        bend = self.size_ang**2 / (4 * (t * (1 - t)).clamp(min=BEND))
        return clean, bend[:, None] * (predicted[1] - z).square().mean(-1)

    def rate(self, heads: Heads, x: Tensor, t: Tensor) -> Tensor:
        """v at times 0 < t < 1."""
        first, z = heads(x, t)
        if self.velocity:
            return first
        t = _over(t, x)
        moved = (first - x) / (1 - t)
        return moved + self.size_ang / (2 * (t * (1 - t)).sqrt()) * z if self.noise == "bridge" else moved

    def moved(self, x: Tensor, at: float, predicted: tuple[Tensor, Tensor], t: float, s: float) -> Tensor:
        """How far points go from time t to s > t, by what was predicted of x at the time `at`, held.

        Clean predictions and noise name the whole path, x0 = (x - at x1 - gamma z) / (1 - at), which is followed from t to s: Euler's step
        wherever that is finite, and from t = at to s = 1 the predicted clean points themselves. With constant noise, of which nothing is
        predicted, it is the published sampler.
        """
        first, z = predicted
        if self.velocity:
            return (s - t) * first
        at_x, now, then = (
            float(self.gamma(torch.tensor(time, dtype=torch.float64))) if self.noise == "bridge" else 0.0 for time in (at, t, s)
        )
        origin = (x - at * first - at_x * z) / (1 - at)
        return (s - t) * (first - origin) + (then - now) * z


def guided(told: tuple[Tensor, Tensor], null: tuple[Tensor, Tensor], scale: float) -> tuple[Tensor, Tensor]:
    """Predictions moved from those of the null branch through those of what was told: 1 is what was told, 0 the null branch."""
    first, second = (other + scale * (own - other) for own, other in zip(told, null, strict=True))
    return first, second


def _over(t: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) beside x (B, ...)."""
    return t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def follow(path: Path, heads: Heads, x: Tensor, solver: str, steps: int, tolerance: float = 1e-3) -> Tensor:
    """Carry x (B, ..., 3) from the prior to the data.

    Args:
        path: the schedule.
        heads: predictions.
        x: drawn from the prior.
        solver: euler; heun, which predicts again at the end of each step but the last; adaptive (Dormand, Prince) from EDGE to 1 - EDGE.
        steps: of euler and heun, of equal length.
        tolerance: of adaptive.
    """

    def predicted(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return heads(x, torch.full((len(x),), t, device=x.device, dtype=x.dtype))

    if solver == "adaptive":
        x = x + path.moved(x, 0.0, predicted(x, 0.0), 0.0, EDGE)
        x = integrate(lambda t, y: path.rate(heads, y, t.expand(len(y))), x, EDGE, 1 - EDGE, tolerance)
        return x + path.moved(x, 1 - EDGE, predicted(x, 1 - EDGE), 1 - EDGE, 1.0)
    grid = torch.linspace(0, 1, steps + 1).tolist()
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        moved = path.moved(x, t, predicted(x, t), t, s)
        if solver == "heun" and s < 1:
            ahead = x + moved
            moved = 0.5 * (moved + path.moved(ahead, s, predicted(ahead, s), t, s))
        x = x + moved
    return x


__all__ = ["EDGE", "Heads", "Path", "follow", "guided"]
