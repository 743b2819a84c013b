"""Every metric name and what it means. A name that is not here is refused, so dashboards never drift."""

from __future__ import annotations

METRICS: dict[str, str] = {
    "train/loss": "mean over the chains of the step",
    "train/local": "loss of the local conformation head; 1 for a zero predictor of the torsional head",
    "train/orientation": "loss of the orientation head; 1 for a zero predictor",
    "train/lr": "learning rate of the step",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/skipped_micro_batches": "micro-batches so far whose loss or gradient was not finite and was left out",
    "train/chains_per_sec": "chains of all ranks per second of wall clock",
    "train/atoms_per_sec": "heavy atoms with stars, all ranks, per second of wall clock",
    "train/padding_efficiency": "atoms over atoms with padding",
    "train/samples_seen": "samples read so far",
    "val/loss": "fixed micro-batches and noise of the validation split",
    "val/local": "as train/local",
    "val/orientation": "as train/orientation",
}


def check_names(metrics: dict[str, float]) -> None:
    """Assert that every name is listed."""
    unknown = sorted(set(metrics) - set(METRICS) - {"step"})
    assert not unknown, f"metrics {unknown} are not listed in foundation/track/metrics.py"
