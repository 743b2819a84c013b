"""Who does the work: this process or Ray tasks, with one retry rule for workers and nodes that die.

A task takes one item. What waits for the driver is bounded, whatever the number of items; a task that hangs in compiled code ends itself.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from data_shards.errors import InputError

HARD_LIMIT_FACTOR = 1.5  # a worker stuck in compiled code past this multiple of the time limit ends itself
CRASH_RETRIES = 2  # a worker may be killed for what another did; an item that ends three in a row is given up
LOST_RETRIES = 20  # a node that goes away is never the item's fault
OBJECT_STORE_BYTES = 256 * 2**20  # results wait there only until the driver has taken them


@dataclass(frozen=True)
class Crash:
    """What a task leaves when its worker process dies under it."""

    detail: str
    seconds: float  # from submission


@dataclass(frozen=True)
class Answer:
    """What a task returned."""

    value: Any  # of the function, or a Crash
    core_sec: float


Unordered = Callable[[Callable[[Any], Any], Iterable[Any], float], Iterator[tuple[Any, Answer]]]
"""(function, items, limit in seconds) -> (item, answer) in any order. Items are taken as they are needed."""


def crew(workers: int | None) -> AbstractContextManager[Unordered]:
    """Something that maps a function over items: this process (0 workers) or Ray tasks."""
    return _alone() if workers == 0 else _ray_crew(workers)


@contextmanager
def _alone() -> Iterator[Unordered]:
    def unordered(function: Callable[[Any], Any], items: Iterable[Any], limit_sec: float) -> Iterator[tuple[Any, Answer]]:
        for item in items:
            yield item, _timed(function, item)

    yield unordered


@contextmanager
def start_ray(workers: int | None) -> Iterator[None]:
    """Ray: the one already connected, else the cluster in RAY_ADDRESS, else one on this machine, stopped afterwards.

    Raises:
        InputError: the cluster in RAY_ADDRESS cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice about GPUs that no task here asks for
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    on_term = signal.getsignal(signal.SIGTERM)
    quiet = {"logging_level": "error", "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ray.exceptions.AuthenticationError):
            why = "no cluster answers there, or it asks for an access token that this process does not have"
            raise InputError(f"cannot join Ray at RAY_ADDRESS={address}: {why}; mend or unset RAY_ADDRESS, or pass --workers 0") from None
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray puts a handler of its own there, which prints a stack and leaves at once
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_crew(workers: int | None) -> Iterator[Unordered]:
    with start_ray(workers):
        import ray

        task = ray.remote(_in_worker).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
        not_its_fault = (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)

        def unordered(function: Callable[[Any], Any], items: Iterable[Any], limit_sec: float) -> Iterator[tuple[Any, Answer]]:
            shared = ray.put(function)
            rest = iter(items)
            again: deque[tuple[Any, int, int]] = deque()
            running: dict[Any, tuple[Any, int, int, float]] = {}
            hard_sec = limit_sec * HARD_LIMIT_FACTOR
            exhausted = False
            while True:
                # Two wait, so that no worker does; no more, so that what waits for the driver is bounded whatever the number of rows.
                while len(running) < (workers or int(ray.cluster_resources().get("CPU", 1))) + 2 and (again or not exhausted):
                    if again:
                        item, crashes, losses = again.popleft()
                    elif (found := next(rest, None)) is not None:
                        item, crashes, losses = found, 0, 0
                    else:
                        exhausted = True
                        continue
                    running[task.remote(shared, item, hard_sec)] = (item, crashes, losses, time.monotonic())
                if not running:
                    return
                (done,), _ = ray.wait(list(running), num_returns=1)
                item, crashes, losses, start = running.pop(done)
                try:
                    yield item, ray.get(done)
                except ray.exceptions.RayTaskError:
                    raise  # our own code failed outside the guard: a defect, not a polymer
                except not_its_fault as error:
                    if losses == LOST_RETRIES:
                        yield item, Answer(Crash(f"its node was lost {losses + 1} times ({type(error).__name__})", 0.0), 0.0)
                    else:
                        again.append((item, crashes, losses + 1))
                except ray.exceptions.RayError as error:
                    seconds = time.monotonic() - start
                    if crashes < CRASH_RETRIES and seconds < hard_sec:
                        again.append((item, crashes + 1, losses))
                    else:
                        yield item, Answer(Crash(f"the worker process died ({type(error).__name__})", seconds), 0.0)

        yield unordered


def _in_worker(function: Callable[[Any], Any], item: Any, limit_sec: float) -> Answer:
    with hard_limit(limit_sec):
        return _timed(function, item)


def _timed(function: Callable[[Any], Any], item: Any) -> Answer:
    start = time.process_time()
    value = function(item)
    return Answer(value, time.process_time() - start)


@contextmanager
def hard_limit(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer than `seconds`, even when compiled code never returns. For worker processes only."""
    with open(os.devnull, "w") as sink:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sink)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
