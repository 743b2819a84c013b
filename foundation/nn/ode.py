"""Ordinary differential equations by steps of the solver's own choice; solvers with steps of ours lie beside what they follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def integrate(rate: Callable[[Tensor, Tensor], Tensor], x: Tensor, start: float, end: float, tolerance: float) -> Tensor:
    """x at the end of dx/dt = rate(t, x), t a scalar tensor, by the pair of Dormand and Prince.

    Args:
        rate: is never asked beyond the end.
        x: at the start.
        start, end: times.
        tolerance: error of a step, absolute and relative.
    """
    from torchdiffeq import odeint

    times = torch.tensor([start, end], device=x.device, dtype=x.dtype)
    made: Tensor = odeint(rate, x, times, rtol=tolerance, atol=tolerance, options={"step_t": times[-1:]})
    return made[-1]


__all__ = ["integrate"]
