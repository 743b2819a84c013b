"""Progress of a long command: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class Stage(Protocol):
    """One counted stage."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished items; the note is shown beside the bar."""


class Silent:
    """Counts nothing; for library use and tests."""

    @contextmanager
    def stage(self, name: str, total: int | None, done: int = 0, unit: str = "polymers") -> Iterator[Stage]:
        yield _Nothing()

    def say(self, line: str) -> None:
        """Drop the line."""


class _Nothing:
    def advance(self, count: int = 1, note: str = "") -> None:
        pass


class Plain:
    """One line when a stage ends and one now and then in between; for log files."""

    @contextmanager
    def stage(self, name: str, total: int | None, done: int = 0, unit: str = "polymers") -> Iterator[Stage]:
        line = _Lines(name, total, done, unit)
        yield line
        line.close()

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


class _Lines:
    def __init__(self, name: str, total: int | None, done: int, unit: str) -> None:
        self.name, self.total, self.first, self.done, self.unit, self.note = name, total, done, done, unit, ""
        self.start = self.shown = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            rate = (self.done - self.first) / (self.shown - self.start)
            left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.total is not None else ""
            self._print(f"{rate:.2f} {self.unit}/s{left}")

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        done = self.done - self.first
        rate = f", {done / seconds:.2f} {self.unit}/s" if seconds > 1 and done else ""
        self._print(f"{seconds:.1f} s{rate}")

    def _print(self, tail: str) -> None:
        note = f"  {self.note}" if self.note else ""
        of = "" if self.total is None else f"/{self.total}"
        print(f"{self.name:<12} {self.done}{of} {self.unit}  {tail}{note}", file=sys.stderr, flush=True)


class Bars:
    """A rich bar per stage."""

    @contextmanager
    def stage(self, name: str, total: int | None, done: int = 0, unit: str = "polymers") -> Iterator[Stage]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield _Bar(bars, bars.add_task(name, total=total, completed=done, note="", rate=""), unit, done)

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, bars: object, task: object, unit: str, first: int) -> None:
        self.bars, self.task, self.unit, self.done, self.note = bars, task, unit, 0, ""
        self.start = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.bars.update(self.task, advance=count, note=self.note, rate=f"{rate:.2f} {self.unit}/s")  # type: ignore[attr-defined]


Progress = Silent | Plain | Bars


def progress() -> Progress:
    """Bars where someone watches, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Plain()
