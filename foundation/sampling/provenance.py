"""Where a result came from: command, weights, software, commit. No clock, so that equal work gives equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.manifest import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGES = ("polymer-foundation", "torch", "rdkit", "numpy")


def provenance(model: nn.Module | None, checkpoint: str | None) -> dict[str, Any]:
    """What every result of a model records.

    Args:
        model: whose weights are fingerprinted.
        checkpoint: as the user named it.
    """
    return {
        "command": [Path(sys.argv[0]).stem, *sys.argv[1:]],
        "checkpoint": checkpoint,
        "weights_sha256": None if model is None else weights_fingerprint(model),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of the weights in use."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def commit(*paths: str) -> str | None:
    """Commit of this checkout, with ``+changes`` where tracked files differ from it; None outside a checkout.

    Args:
        paths: files and folders of the checkout whose changes count; all where there is none.
    """
    root = Path(__file__).resolve().parents[2]
    status = ["git", "status", "--porcelain", "-uno", "--", *paths]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run(status, cwd=root, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def processor() -> str:
    """Model name of the processor and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    return f"{model}, {os.cpu_count()} cores"


def hardware(device: torch.device) -> str:
    """What computes: the GPU and how many of its kind are here, or the processor."""
    import torch

    if device.type != "cuda":
        return processor()
    return f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} here; {processor()}"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """A JSON file that exists whole or not at all; numbers that JSON lacks (NaN) are refused by the writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
