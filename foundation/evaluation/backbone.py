"""Size and stiffness of a chain read from its backbone: a path of P atoms from cap to cap, n = P - 1 bonds.

Around a ring the path takes the shorter way. Both numbers depend on the length of the chain: only chains of as many units compare.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

STIFFEST = 0.99  # projection / length of the window: straighter ones are told from a rod by noise alone


def characteristic_ratio(path_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """Square end-to-end distance over that of a freely jointed chain of the same bonds: (..., P, 3) -> (...,), C_n after averaging.

    Source: Flory, Statistical Mechanics of Chain Molecules (1969), chapter I; the sum of squared bonds stands for n l^2 where
    bonds differ.
    """
    bonds = np.diff(np.asarray(path_ang, dtype=np.float64), axis=-2)
    return np.asarray((bonds.sum(-2) ** 2).sum(-1) / (bonds**2).sum((-2, -1)))


def mean_projection_ang(path_ang: NDArray[np.floating]) -> tuple[float, float]:
    """Projection of half a backbone on the direction of its first bond, and the length of that half.

    Args:
        path_ang: (K, P, 3); every half chain of every conformation counts, read from both ends.

    Returns:
        Two numbers in angstrom; NaN for fewer than two bonds.
    """
    x = np.asarray(path_ang, dtype=np.float64)
    bonds = np.diff(x, axis=1)
    window = bonds.shape[1] // 2
    if window < 1:
        return math.nan, math.nan
    length = np.linalg.norm(bonds, axis=-1)
    direction = bonds / np.maximum(length, 1e-12)[..., None]
    half = x[:, window:] - x[:, :-window]  # (K, P - window, 3)
    first, last = direction[:, : half.shape[1]], direction[:, window - 1 :]
    return float(((half * first).sum(-1).mean() + (half * last).sum(-1).mean()) / 2), float(length.mean() * window)


def persistence_length_ang(path_ang: NDArray[np.floating]) -> float:
    """Projection method: P of the worm-like chain whose half has the projection a that was measured, a = P (1 - exp(-L / P)).

    Of a long flexible chain a is P itself; the formula takes off what a short window cannot see. A chain that folds back at once has 0;
    a rod has the value of STIFFEST, about 50 windows.

    Args:
        path_ang: (K, P, 3) backbone of the conformations of a polymer.

    Returns:
        Angstrom; NaN for fewer than two bonds.

    Source: Flory, Proc. Natl. Acad. Sci. 70 (1973) 1819 (persistence vector); Kratky and Porod, Rec. Trav.
    Chim. 68 (1949) 1106.
    """
    projection, window = mean_projection_ang(path_ang)
    if not math.isfinite(projection) or projection <= 0:
        return 0.0 if projection <= 0 else math.nan
    share = min(projection / window, STIFFEST)
    return window * float(brentq(lambda q: -q * math.expm1(-1.0 / q) - share, share / 2, 1.0 / (1.0 - share)))
