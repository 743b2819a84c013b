"""Every metric name, what it means and how W&B sums it up. A name that is not here is refused, so dashboards never drift."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STEP = "step"  # x axis of every metric


@dataclass(frozen=True)
class Metric:
    """One number of a step.

    Attributes:
        meaning: one sentence, the same as on docs/tracking.md.
        summary: what W&B keeps of it for the table of runs: min, max, mean, last, several with commas; None for the last value alone.
        hidden: W&B draws no panel of it by itself; a dashboard may name it all the same.
    """

    meaning: str
    summary: str | None = None
    hidden: bool = False


METRICS: dict[str, Metric] = {
    "train/loss": Metric("mean over the chains of the step; null where the step was skipped because it was not finite", "min,last"),
    "train/local": Metric("loss of the local conformation head; 1 for a zero predictor of the torsional head", "min,last"),
    "train/orientation": Metric("loss of the orientation head; 1 for a zero predictor", "min,last"),
    "train/clean": Metric(
        "ditmc: squared error of predicted atoms per coordinate over (1 - t)^2, at most 100-fold, angstrom^2", "min,last"
    ),
    "train/noise": Metric("ditmc: squared error of predicted noise on the path, weighted as it moves atoms, angstrom^2", "min,last"),
    "train/velocity": Metric("ditmc: squared error of predicted velocities per coordinate, angstrom^2", "min,last"),
    "train/tokens": Metric("cross-entropy of hidden P-SMILES tokens, nat; 5.04 for equal odds", "min,last"),
    "train/agreement": Metric(
        "agreement of the 1-D, 2-D and 3-D views of a chain, nat; log(polymers of a micro-batch) by chance, 0 with one polymer", "min,last"
    ),
    "train/statistics": Metric(
        "squared error of sizes of chain and unit and of stiffness, standardised; about 1 for a predictor of the mean",
        "min,last",
    ),
    "train/descriptors": Metric(
        "Huber loss of standardised RDKit descriptors of the repeat unit, from each view of a chain; about 0.3 for a predictor of the mean",
        "min,last",
    ),
    "train/levels": Metric(
        "Huber loss of standardised tight-binding levels of the chain, from each view of it; about 0.43 for a predictor of the mean",
        "min,last",
    ),
    "train/lr": Metric("learning rate of the step"),
    "train/grad_norm": Metric("norm of the gradient before clipping; null where the step was skipped", "max,mean,last"),
    "train/skipped_steps": Metric("steps so far that changed nothing: loss or gradient not finite, or the loss a spike"),
    "train/chains_per_sec": Metric("chains of all ranks per second of wall clock", "mean,last"),
    "train/atoms_per_sec": Metric("atoms of all ranks, the stars of every unit included, per second of wall clock", "mean,last"),
    "train/padding_efficiency": Metric("atoms over atoms with padding (chains x longest chain x largest unit, per micro-batch)", "mean"),
    "train/samples_seen": Metric("chains read so far, the cursor of the data order", hidden=True),
    "train/checkpoint_blocked_sec": Metric(
        "wall clock that the checkpoint after the step before held up training; absent after other steps", "max,mean"
    ),
    "train/failed_checkpoints": Metric("checkpoints that could not be written since this process started", "max,last"),
    "train/step_sec": Metric(
        "wall clock of the step, from asking for its batches to its update; validation and checkpoints not included", "mean,max"
    ),
    "train/loader_wait_sec": Metric("part of it that rank 0 waited for its batches", "mean,max"),
    "val/loss": Metric("mean over the chains of fixed micro-batches of the validation split, with fixed noise", "min,last"),
    "val/loss_of_set_1": Metric(
        "val/loss of the first shard set alone, and so on where there are several; val/loss is their mean by weight", "min,last"
    ),
    "val/local": Metric("as train/local", "min,last"),
    "val/orientation": Metric("as train/orientation", "min,last"),
    "val/clean": Metric("as train/clean", "min,last"),
    "val/noise": Metric("as train/noise", "min,last"),
    "val/velocity": Metric("as train/velocity", "min,last"),
    "val/tokens": Metric("as train/tokens", "min,last"),
    "val/agreement": Metric("as train/agreement", "min,last"),
    "val/statistics": Metric("as train/statistics", "min,last"),
    "val/descriptors": Metric("as train/descriptors", "min,last"),
    "val/levels": Metric("as train/levels", "min,last"),
    "probe/NAME_r2": Metric(
        "R2 of a cross-validated ridge regression of the property NAME on the embeddings of the averaged weights (train.probe_every)",
        "max,last",
    ),
    "probe/failed": Metric("1 where the probes could not be measured, else 0", "mean,last"),
    "probe/seconds": Metric("wall clock of measuring them, in which training waits", "mean"),
    "property/rmse": Metric(
        "root mean squared error on a fold of finetune.property, in the unit of the task; the step counts folds", "mean"
    ),
    "property/mae": Metric("mean absolute error on it", "mean"),
    "property/r2": Metric("1 - squared error over squared deviation of the fold's own values", "mean"),
    "property/spearman": Metric("rank correlation on the fold", "mean"),
    "property/coverage": Metric("share of the fold's values inside their intervals", "mean"),
    "property/untrained_error": Metric("error that the task is judged by, of the same heads on an untrained network", "mean"),
    "design/loss": Metric("cross entropy of clean atoms and pairs of finetune.design, nats per atom of a graph", "min,last"),
    "design/atoms": Metric("its part of atoms", "last"),
    "design/pairs": Metric("its part of pairs of atoms", "last"),
    "property/lightgbm_error": Metric("the same of gradient-boosted trees on fingerprints", "mean"),
    "memory/host_peak_mib": Metric("most memory that the process of rank 0 has had, MiB", "max"),
    "memory/device_peak_mib": Metric("most memory that its tensors have had on the GPU, MiB; absent without one", "max"),
    "sample/failed": Metric("1 where the sampled chain could not be made, else 0 (track.samples_every)", "mean,last"),
    "sample/worst_bond_error_ang": Metric(
        "its largest difference between a bond and the same bond in the relaxed unit, angstrom", "max,last"
    ),
    "sample/num_clashes": Metric("its pairs of atoms that are too close", "mean,last"),
    "sample/radius_of_gyration_ang": Metric("its root mean square distance of heavy atoms from their centroid, angstrom"),
    "sample/seconds": Metric("wall clock of sampling it, in which training waits", "mean"),
}


def listed(name: str) -> Metric | None:
    """What the table says of a name; the shard sets share one line, and so do the properties. None where it is not listed."""
    return METRICS.get(re.sub(r"^probe/\w+_r2$", "probe/NAME_r2", re.sub(r"_of_set_\d+$", "_of_set_1", name)))


def defined_name(name: str) -> str:
    """Name under which W&B is told of a line of the table: the shard sets share one definition too, and so do the properties."""
    return re.sub(r"^probe/NAME_r2$", "probe/*", re.sub(r"_of_set_1$", "_of_set_*", name))


class Totals:
    """The summary of a run over all its steps: W&B's own is of one piece, and a run that was started again has several."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.counts: dict[str, int] = {}

    def add(self, row: Mapping[str, object]) -> None:
        """A line of metrics.jsonl, in order. What is null or not listed counts for nothing."""
        for name, value in row.items():
            if isinstance(value, int | float) and (name == STEP or listed(name)):
                count = self.counts[name] = self.counts.get(name, 0) + 1
                old = self.found.get(name, {"min": value, "max": value, "mean": value})
                mean = old["mean"] + (value - old["mean"]) / count
                self.found[name] = {"min": min(old["min"], value), "max": max(old["max"], value), "mean": mean, "last": value}

    def summary(self) -> dict[str, float | dict[str, float]]:
        """By name what the table says: the last value, or several kinds of numbers by kind."""
        out: dict[str, float | dict[str, float]] = {}
        for name, kinds in self.found.items():
            metric = listed(name)
            out[name] = kinds["last"] if metric is None or metric.summary is None else {k: kinds[k] for k in metric.summary.split(",")}
        return out


def check_names(metrics: Mapping[str, object]) -> None:
    """Assert that every name is listed."""
    unknown = sorted({name for name in metrics if listed(name) is None})
    assert not unknown, f"metrics {unknown} are not listed in foundation/track/metrics.py"


def memory_peaks(device: torch.device) -> dict[str, float | None]:
    """Most memory so far, in MiB, of this process and of its tensors on a GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    found: dict[str, float | None] = {"memory/host_peak_mib": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}
    if device.type == "cuda":
        import torch

        found["memory/device_peak_mib"] = torch.cuda.max_memory_allocated(device) / (1 << 20)
    return found
