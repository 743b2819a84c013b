"""Every metric name and what it means. A name that is not here is refused, so dashboards never drift."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

METRICS: dict[str, str] = {
    "train/loss": "mean over the chains of the step; null where the step was skipped because it was not finite",
    "train/local": "loss of the local conformation head; 1 for a zero predictor of the torsional head",
    "train/orientation": "loss of the orientation head; 1 for a zero predictor",
    "train/lr": "learning rate of the step",
    "train/grad_norm": "norm of the gradient before clipping; null where the step was skipped",
    "train/skipped_steps": "steps so far that changed nothing: loss or gradient not finite, or the loss a spike",
    "train/chains_per_sec": "chains of all ranks per second of wall clock",
    "train/atoms_per_sec": "atoms of all ranks, the stars of every unit included, per second of wall clock",
    "train/padding_efficiency": "atoms over atoms with padding (chains x longest chain x largest unit, per micro-batch)",
    "train/samples_seen": "chains read so far, the cursor of the data order",
    "train/checkpoint_blocked_sec": "wall clock that the checkpoint after the step before held up training; absent after other steps",
    "train/failed_checkpoints": "checkpoints that could not be written since this process started",
    "train/step_sec": "wall clock of the step, from asking for its batches to its update; validation and checkpoints not included",
    "train/loader_wait_sec": "part of it that rank 0 waited for its batches",
    "val/loss": "mean over the chains of fixed micro-batches of the validation split, with fixed noise",
    "val/loss_of_set_1": "val/loss of the first shard set alone, and so on where there are several; val/loss is their mean by weight",
    "val/local": "as train/local",
    "val/orientation": "as train/orientation",
    "memory/host_peak_mib": "most memory that the process of rank 0 has had, MiB",
    "memory/device_peak_mib": "most memory that its tensors have had on the GPU, MiB; absent without one",
    "sample/failed": "1 where the sampled chain could not be made, else 0 (track.samples_every)",
    "sample/worst_bond_error_ang": "its largest difference between a bond and the same bond in the relaxed unit, angstrom",
    "sample/num_clashes": "its pairs of atoms that are too close",
    "sample/radius_of_gyration_ang": "its root mean square distance of heavy atoms from their centroid, angstrom",
    "sample/seconds": "wall clock of sampling it, in which training waits",
}


def check_names(metrics: Mapping[str, object]) -> None:
    """Assert that every name is listed."""
    unknown = sorted({name for name in metrics if re.sub(r"_of_set_\d+$", "_of_set_1", name) not in METRICS})
    assert not unknown, f"metrics {unknown} are not listed in foundation/track/metrics.py"


def memory_peaks(device: torch.device) -> dict[str, float | None]:
    """Most memory so far, in MiB, of this process and of its tensors on a GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    found: dict[str, float | None] = {"memory/host_peak_mib": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}
    if device.type == "cuda":
        import torch

        found["memory/device_peak_mib"] = torch.cuda.max_memory_allocated(device) / (1 << 20)
    return found
