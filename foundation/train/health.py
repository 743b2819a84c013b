"""When to stop and what to leave out: requests to stop, steps that are not finite, loss spikes, ranks that differ."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import statistics
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from foundation.config import RunConfig, TrainConfig
from foundation.errors import InputError
from foundation.train.ranks import Ranks

log = logging.getLogger(__name__)
ROOMS = ("data_shards", "foundation")  # the code that decides what a training step does
MAD_TO_SIGMA = 1.4826  # median absolute deviation of a normal distribution to its standard deviation
SMALLEST_SPREAD = 1e-3  # of the median: a loss that hardly moves is not full of spikes


class StopRequest:
    """Context that turns SIGTERM and SIGINT into a flag; the handlers of before come back at the end. A second SIGINT kills at once."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class SkipGuard:
    """Counts steps that were skipped because of a spike or because loss or gradient was not finite; too many in a row end the run."""

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
                f"loss or gradient was not finite, or far above the recent ones, in {self.in_a_row} steps in a row up to step {step},"
                f" at most train.max_consecutive_skips={self.most_in_a_row} are allowed; lower train.lr={self.lr:g}"
            )


class SpikeRule:
    """A step whose loss lies far above the recent ones is not applied.

    A spike is a loss above median + factor * spread of the last `window` losses of applied steps; spread is their median absolute
    deviation, scaled to a standard deviation. Losses may have any sign. Nothing is judged before the window is full. The window is a
    function of metrics.jsonl, so a run that goes on judges as if it had never stopped.

    Args:
        settings: spike_factor, spike_window.
        loud: say when a step is left out.
    """

    def __init__(self, settings: TrainConfig, *, loud: bool) -> None:
        self.factor, self.loud = settings.spike_factor, loud
        self.recent: deque[float] = deque(maxlen=settings.spike_window)

    @property
    def is_on(self) -> bool:
        return self.factor > 0

    @property
    def limit(self) -> float:
        """Largest loss that is no spike."""
        if not self.is_on or len(self.recent) < (self.recent.maxlen or 0):
            return math.inf
        middle = statistics.median(self.recent)
        spread = MAD_TO_SIGMA * statistics.median(abs(loss - middle) for loss in self.recent)
        return middle + self.factor * max(spread, SMALLEST_SPREAD * abs(middle))

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Fill the window from lines of metrics.jsonl."""
        for row in rows:
            self.see(row["train/loss"], applied=row["train/grad_norm"] is not None)

    def see(self, loss: float | None, *, applied: bool) -> None:
        """Take note of a step: the loss agreed by all ranks."""
        if applied and loss is not None:
            self.recent.append(loss)

    def judge(self, step: int, loss: float) -> bool:
        """Whether step number step, counted from 1, has to be left out."""
        if not loss > self.limit:  # not finite: seen by the gradient's check
            return False
        if self.loud:
            log.warning("step %d is left out: loss %.6g is above %.6g (train.spike_factor=%g)", step, loss, self.limit, self.factor)
        return True


# ------------------------------------------------------------------------------------------------------------------- ranks that differ


def check_same_everywhere(ranks: Ranks, config: RunConfig, fingerprint: str, versions: Mapping[str, str]) -> None:
    """Compare shards, configuration, code and software of all ranks with those of rank 0; every rank must call it.

    Raises:
        InputError: on every rank; names the first rank that differs, what differs and both values.
    """
    mine = {"the shards": fingerprint[:12], "the code of": code_digest()[:12], **versions, "world size": ranks.world_size}
    mine |= _flat(config.model_dump(mode="json"))
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(ranks.gather(digest))) == 1:
        return
    everyone = ranks.gather(mine)
    for rank, theirs in enumerate(everyone):
        for name in sorted({*theirs, *everyone[0]}):
            here, there = theirs.get(name, "absent"), everyone[0].get(name, "absent")
            if here != there:
                raise InputError(
                    f"rank {rank} has {name} {here!r}, rank 0 has {there!r}; give every rank the same shards, configuration and software"
                )


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return flat


@cache
def code_digest() -> str:
    """sha256 over the source files of the rooms that decide what a step does, wherever they are installed."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
