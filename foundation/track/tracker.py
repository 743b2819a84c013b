"""metrics.jsonl, one line a step, always; W&B mirrors it from a process of its own (mirror.py)."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_shards.manifest import write_atomic
from foundation.config import TrackConfig
from foundation.track.metrics import check_names

log = logging.getLogger(__name__)
MODES = ("offline", "online")
RUN_ID = re.compile(r"[0-9a-f]{8}")
FINISH_SEC = 45.0  # from the end of training to the end of the mirror, whatever a server does
CLOSE_SEC = FINISH_SEC + 10.0  # a mirror that is stuck is killed
ROOT = Path(__file__).parents[2]
WAITING_BYTES = 2**24  # of lines that a full disk has not taken yet


class Tracker:
    """Writes metrics; rank 0 only. Each step stands in the file once, also across restarts. A context: leaving it ends the mirror.

    Args:
        out: run folder; config.json and run.json lie in it already.
        first_step: steps done before; lines of later ones belong to work that was lost and are dropped.
        track: what to do besides the file.
    """

    def __init__(self, out: Path, *, first_step: int, track: TrackConfig) -> None:
        self.path = out / "metrics.jsonl"
        keep_until(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8", buffering=WAITING_BYTES)
        self.late = False  # the disk is full, lines wait in memory
        mode = mirror_mode(track, os.environ)
        self.mirror = None if mode is None else start_mirror(out, mode, track.project)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the file, and give the mirror CLOSE_SEC to finish too."""
        with suppress(OSError):  # said already; the checkpoint of these steps was not written either
            self.file.close()
        if self.mirror is None:
            return
        assert self.mirror.stdin is not None
        with suppress(OSError):  # it may have ended long ago
            if kind is None:
                self.mirror.stdin.write(b".")
            self.mirror.stdin.close()
        try:
            self.mirror.wait(CLOSE_SEC)
        except subprocess.TimeoutExpired:
            self.mirror.kill()
            self.mirror.wait()


def mirror_mode(track: TrackConfig, environment: Mapping[str, str]) -> str | None:
    """offline, online, or None for no mirror; the environment's WANDB_MODE wins."""
    mode = environment.get("WANDB_MODE") or track.mode
    if not track.wandb or mode == "disabled":
        return None
    if mode not in MODES:
        log.warning("WANDB_MODE %r is none of offline, online, disabled; W&B stays offline", mode)
        return "offline"
    return mode


def start_mirror(out: Path, mode: str, project: str) -> subprocess.Popen[bytes]:
    """A process that outlives signals to this one's group, and ends when this one has ended."""
    return subprocess.Popen(
        [sys.executable, "-m", "foundation.track.mirror", str(out), mode, project],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=mirror_environment(mode),
        bufsize=0,
        start_new_session=True,
    )


def mirror_environment(mode: str) -> dict[str, str]:
    """Of a process that talks to W&B: quiet, and able to find this package."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"WANDB_MODE": mode, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "PYTHONPATH": path}
    return os.environ | quiet


# ---------------------------------------------------------------------------------------------------------------- metrics.jsonl


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """A line as {"step": int, name: number or None}; None where it is torn or something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl up to the first that is torn: a kill leaves one at the end."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        row = parse_row(line)
        if row is None:
            break
        rows.append(row)
    return rows


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, all at once or not at all."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
