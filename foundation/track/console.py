"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

WINDOW = 50  # steps that the estimate of the time left looks back on


class Console:
    """Shows loss, speed, padding efficiency and time left; rank 0 only.

    Args:
        num_steps: of the whole run.
        first_step: steps done before.
        log_every: steps between plain lines.
        clock: seconds.
    """

    def __init__(self, num_steps: int, first_step: int, log_every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_steps, self.log_every, self.clock = num_steps, log_every, clock
        self.times = deque([clock()], maxlen=WINDOW)
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = TextColumn("[bold]train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
            self.bar = Progress(*columns, console=Terminal(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=num_steps, completed=first_step)

    def show(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Metrics of a finished step, counted from 1."""
        self.times.append(self.clock())
        text = "  ".join([*_parts(metrics), f"{_duration(self._seconds_left(step))} left"])
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif step % self.log_every == 0 or step == self.num_steps or "val/loss" in metrics or metrics["train/grad_norm"] is None:
            print(f"step {step}/{self.num_steps}  {text}", file=sys.stderr, flush=True)

    def _seconds_left(self, step: int) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) * (self.num_steps - step)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


def _parts(metrics: Mapping[str, float | None]) -> list[str]:
    loss = metrics["train/loss"]
    parts = ["not finite" if loss is None or not math.isfinite(loss) else f"loss {loss:.4f}"]
    parts = [f"{parts[0]}, skipped"] if metrics["train/grad_norm"] is None else parts
    parts += [f"val {value:.4f}" for name, value in metrics.items() if name == "val/loss" and value is not None]
    parts.append(f"{metrics['train/chains_per_sec']:.1f} chains/s  {metrics['train/atoms_per_sec']:.0f} atoms/s")
    return [*parts, f"padding {metrics['train/padding_efficiency']:.0%}"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
