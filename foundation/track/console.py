"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Console:
    """Shows loss, speed, padding efficiency and time left; rank 0 only."""

    def __init__(self, num_steps: int, first_step: int, log_every: int) -> None:
        self.num_steps, self.first_step, self.log_every = num_steps, first_step, log_every
        self.started = time.monotonic()
        self.progress: Any = None
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self.progress = Progress(*columns, TextColumn("{task.description}"))
            self.progress.start()
            self.task = self.progress.add_task("", total=num_steps, completed=first_step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a finished step."""
        parts = [f"loss {metrics['train/loss']:.4f}"]
        parts += [f"val {metrics['val/loss']:.4f}"] if "val/loss" in metrics else []
        parts.append(f"{metrics['train/chains_per_sec']:.1f} chains/s {metrics['train/atoms_per_sec']:.0f} atoms/s")
        parts.append(f"padding {metrics['train/padding_efficiency']:.0%}")
        if self.progress is not None:
            self.progress.update(self.task, completed=step, description="  ".join(parts))
        elif step % self.log_every == 0 or step == self.num_steps or "val/loss" in metrics:
            left = (time.monotonic() - self.started) / max(step - self.first_step, 1) * (self.num_steps - step)
            print(f"step {step}/{self.num_steps}  {'  '.join(parts)}  {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.progress is not None:
            self.progress.stop()
