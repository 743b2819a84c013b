"""metrics.jsonl, one line a step, always; W&B as a mirror when asked for, offline unless the environment says otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from foundation.track.metrics import check_names


class Tracker:
    """Writes metrics of rank 0. Each step stands in the file once, also across restarts."""

    def __init__(self, out: Path, *, first_step: int, config: dict[str, Any], wandb: bool, project: str) -> None:
        self.path = out / "metrics.jsonl"
        _keep_until(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8")
        self.run: Any = None
        if wandb:
            import wandb as client

            os.environ.setdefault("WANDB_MODE", "offline")
            os.environ.setdefault("WANDB_SILENT", "true")
            self.run = client.init(project=project, dir=str(out), config=config, name=out.name, id=out.name, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add the line of a step."""
        check_names(metrics)
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        if self.run is not None:
            self.run.log(metrics, step=step)

    def close(self) -> None:
        """Finish the file and the mirror."""
        self.file.close()
        if self.run is not None:
            self.run.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a torn last line, left by a kill, is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _keep_until(path: Path, step: int) -> None:
    """Drop lines after a step: they belong to work that was lost and will be done again."""
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    if path.exists():
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, path)
