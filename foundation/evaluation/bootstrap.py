"""Intervals by resampling polymers, seeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where no polymer has a value."""

    value: float | None
    low: float | None
    high: float | None
    num_polymers: int


def resample_weights(num_polymers: int, seed: int) -> NDArray[np.float64]:
    """(NUM_RESAMPLES, P) how often each polymer is drawn, with replacement, in each resample."""
    rng = np.random.default_rng([seed, num_polymers])
    return rng.multinomial(num_polymers, np.full(num_polymers, 1.0 / num_polymers), size=NUM_RESAMPLES).astype(np.float64)


def mean_over_polymers(values: NDArray[np.floating], seed: int) -> Estimate:
    """Mean and percentile interval.

    Args:
        values: (P,) one number a polymer, NaN where it has none.
        seed: of the resamples.

    Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return Estimate(None, None, None, 0)
    means = resample_weights(len(known), seed) @ known / len(known)
    return with_interval(float(known.mean()), means, len(known))


def paired(values: Mapping[str, NDArray[np.floating]], first: str, seed: int) -> dict[str, dict[str, Any]]:
    """Mean of ``first`` minus another method over the same polymers, with its interval, for every other method.

    What polymers have in common falls out of a difference, so it tells methods apart that two intervals side by side do not.

    Args:
        values: method -> (P,) one number a polymer, NaN where it has none; a pair needs both.
        first: the method that others are taken from; nothing is compared where it is absent.
        seed: of the resamples.
    """
    if first not in values:
        return {}
    made = {name: mean_over_polymers(values[first] - own, seed) for name, own in values.items() if name != first}
    return {name: asdict(estimate) for name, estimate in made.items() if estimate.num_polymers}


def pooled_divergence(generated: NDArray[np.floating], reference: NDArray[np.floating], seed: int) -> Estimate:
    """Jensen-Shannon divergence, in bits, of histograms pooled over polymers.

    Args:
        generated, reference: (P, M) counts a polymer. A polymer without counts on either side is left out.
        seed: of the resamples.
    """
    from foundation.evaluation.metrics import jensen_shannon_bits  # with torch, which the rest does without

    known = (generated.sum(1) > 0) & (reference.sum(1) > 0)
    if not known.any():
        return Estimate(None, None, None, 0)
    generated, reference = generated[known], reference[known]
    weights = resample_weights(len(generated), seed)
    spread = jensen_shannon_bits(weights @ generated, weights @ reference)
    value = float(jensen_shannon_bits(generated.sum(0), reference.sum(0)))
    return with_interval(value, spread, len(generated))


def with_interval(value: float, spread: NDArray[np.floating], num_polymers: int) -> Estimate:
    """A number with the percentile interval of what the resamples gave, spread (NUM_RESAMPLES,)."""
    low, high = np.quantile(spread, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    # a divergence of resampled counts lies above that of all counts, so the interval is stretched to hold the value
    return Estimate(value, min(float(low), value), max(float(high), value), num_polymers)
