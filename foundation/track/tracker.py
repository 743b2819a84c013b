"""metrics.jsonl, one line a step, always; W&B as a mirror, offline unless told otherwise."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.manifest import write_atomic
from foundation.config import TrackConfig
from foundation.track.metrics import check_names

log = logging.getLogger(__name__)
WAITING_BYTES = 2**24  # of lines that a full disk has not taken yet


class Tracker:
    """Writes metrics; rank 0 only. Each step stands in the file once, also across restarts.

    Args:
        out: run folder.
        first_step: steps done before; lines of later ones belong to work that was lost and are dropped.
        config: of the whole run, for W&B.
        track: what to do besides the file.
        run_id: joins the pieces of an interrupted run in W&B.
    """

    def __init__(self, out: Path, *, first_step: int, config: dict[str, Any], track: TrackConfig, run_id: str) -> None:
        self.path = out / "metrics.jsonl"
        keep_until(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8", buffering=WAITING_BYTES)
        self.late = False  # the disk is full, lines wait in memory
        self.mirror = _start_wandb(out, config, track, run_id)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Add the line of a step, counted from 1. What is not finite becomes null."""
        check_names(metrics)
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        try:
            self.file.flush()
            self.late = False
        except OSError as error:  # what was not written stays in the buffer; a full disk ends training by its checkpoints, not here
            if not self.late:
                log.warning("%s cannot be written (%s); its lines wait in memory", self.path, error.strerror or error)
            self.late = True
        if self.mirror is not None:
            self.mirror.log({name: value for name, value in finite.items() if value is not None}, step=step)

    def close(self) -> None:
        """Finish the file and the mirror."""
        self.file.close()
        if self.mirror is not None:
            self.mirror.finish()


def _start_wandb(out: Path, config: dict[str, Any], track: TrackConfig, run_id: str) -> Any:
    """A W&B run inside the run folder, or None. It never asks for a login, and a mirror that fails does not stop training."""
    mode: Any = os.environ.get("WANDB_MODE", track.mode)
    if not track.wandb or mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    import wandb

    try:
        if mode == "online" and not wandb.api.api_key:
            log.warning("W&B is offline: no API key (set WANDB_API_KEY); `wandb sync %s` uploads the run later", out / "wandb")
            mode = "offline"
        return wandb.init(project=track.project, dir=str(out), config=config, name=out.name, id=run_id, resume="allow", mode=mode)
    except Exception as error:
        log.warning("W&B cannot be used (%s: %s); metrics.jsonl has everything", type(error).__name__, error)
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a torn last line, left by a kill, is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, all at once or not at all."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
