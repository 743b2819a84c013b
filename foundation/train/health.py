"""When to stop: on request, or because training has broken."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from foundation.errors import InputError


class StopRequest:
    """Context that turns SIGTERM and SIGINT into a flag; the handlers of before come back at the end."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class SkipGuard:
    """Counts steps that were skipped because loss or gradient was not finite; too many in a row end the run."""

    def __init__(self, most_in_a_row: int, lr: float) -> None:
        self.most_in_a_row, self.lr = most_in_a_row, lr
        self.in_a_row = 0

    def see(self, step: int, *, applied: bool) -> None:
        """Take note of step number step, counted from 1.

        Raises:
            InputError: more than most_in_a_row in a row.
        """
        self.in_a_row = 0 if applied else self.in_a_row + 1
        if self.in_a_row > self.most_in_a_row:
            raise InputError(
                f"loss or gradient was not finite in {self.in_a_row} steps in a row up to step {step}, at most"
                f" train.max_consecutive_skips={self.most_in_a_row} are allowed; lower train.lr={self.lr:g}"
            )
