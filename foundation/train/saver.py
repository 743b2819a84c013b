"""Checkpoints written beside the training: the loop stops for a copy of the tensors in memory, a thread of rank 0 does the rest.

The thread writes aside, reads back, commits by rename, and only then removes what retention gives up. One copy is in memory at a time: the
next checkpoint waits for the write of the one before. What happens when a write fails is in docs/checkpoints.md.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from data_shards.manifest import write_atomic
from foundation.errors import CheckpointError, InputError
from foundation.train import snapshot
from foundation.train.snapshot import AVERAGE, FOLDER, LATEST, MODEL, OPTIMIZER, TrainState, step_name, step_of
from foundation.train.store import CheckpointStore, Uploads

if TYPE_CHECKING:
    from torch import Tensor

    from foundation.config import TrainConfig
    from foundation.train.ema import EMA
    from foundation.train.engine import Engine

log = logging.getLogger(__name__)
Content = dict[str, dict[str, "Tensor"]]


def commit(run: Path, state: TrainState, content: Content) -> Path:
    """Write a checkpoint of a run folder; killed at any point, the one before is as it was. Returns its folder.

    Raises:
        OSError, CheckpointError: the disk is full, refuses, or gives back something else.
    """
    folder = run / FOLDER
    final = folder / step_name(state.step)
    aside = folder / f".{final.name}.writing"
    for left in (*folder.glob(".step-*"), *folder.glob(f".{LATEST}.*.tmp")):  # of a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        snapshot.write(aside, state, content)
        if final.exists():  # not committed, or this step was done again: the newest that verified is before it
            snapshot.remove(final)
        os.replace(aside, final)
    except (OSError, CheckpointError):
        shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint on a full disk
        raise
    for path in (folder, run):
        snapshot.flush(path)
    return final


def tidy(run: Path, keep_last: int, keep_every: int, held: Iterable[str] = ()) -> None:
    """Retention, after a commit: what is left besides the newest checkpoints goes, and `latest` names the newest.

    Args:
        held: names of checkpoints that stay for now.

    Raises:
        OSError: the disk refuses.
    """
    found = snapshot.committed(run)
    for step in snapshot.outdated([step for path in found if (step := step_of(path.name)) is not None], keep_last, keep_every):
        if step_name(step) not in held:
            snapshot.remove(run / FOLDER / step_name(step))
    write_atomic(run / FOLDER / LATEST, f"{found[-1].name}\n".encode())


class Saver:
    """Saves checkpoints of a run; every rank has one and calls save and finish at the same steps.

    Args:
        run: run folder.
        settings: of the run.
        engine, ema: what is saved.
        saved: the checkpoint that the run goes on from.
    """

    def __init__(self, run: Path, settings: TrainConfig, engine: Engine, ema: EMA, saved: Path | None) -> None:
        self.run, self.settings, self.engine, self.ema, self.saved = run, settings, engine, ema, saved
        self.failed = 0  # writes so far
        self.failed_in_a_row = 0
        self.reason = ""  # of the last failure
        self.uploads: Uploads | None = None
        self._blocked_sec: float | None = None  # by the checkpoint since the last line of metrics
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None
        if settings.checkpoint_store is not None:
            engine.ranks.on_rank_zero(self._open_store)

    def _open_store(self) -> None:
        settings = self.settings
        store = CheckpointStore(settings.checkpoint_store or "")
        self.uploads = Uploads(store, settings.keep_last, settings.keep_every)
        if self.saved is not None and not store.has_copy(self.saved):
            self.uploads.offer(self.saved)

    def save(self, state: TrainState) -> None:
        """Copy everything to the memory of rank 0 and have it written; every rank must call it."""
        began = time.perf_counter()
        self._wait()
        rank = self.engine.ranks.rank
        content: Content = {
            MODEL: collect(self.engine.weights(), rank),
            AVERAGE: collect(self.ema.weights(), rank),
            OPTIMIZER: collect(self.engine.moments(), rank),
        }
        if rank == 0:
            self._thread = threading.Thread(target=self._write, args=(state, content), name="checkpoint-write")
            self._thread.start()
            if not self.settings.async_checkpoint:
                self._wait()
                if self.uploads is not None:
                    self.uploads.wait()
        self._blocked_sec = time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """For the line of the step just done."""
        blocked, self._blocked_sec = self._blocked_sec, None
        return {"train/failed_checkpoints": self.failed} | ({} if blocked is None else {"train/checkpoint_blocked_sec": blocked})

    @property
    def trouble(self) -> str | None:
        """Rank 0's word for all: why the run must stop, None where it need not."""
        if self._defect is not None:
            raise self._defect
        if self.failed_in_a_row <= self.settings.max_failed_checkpoints:
            return None
        return (
            f"{self.failed_in_a_row} checkpoints in a row could not be written, at most train.max_failed_checkpoints="
            f"{self.settings.max_failed_checkpoints} are allowed: {self._sentence()}"
        )

    def heed(self, trouble: str | None) -> None:
        """Stop where rank 0 said so; every rank must call it with the same word.

        Raises:
            CheckpointError: too many writes failed.
        """
        if trouble is not None:
            raise CheckpointError(trouble)

    def finish(self) -> Path | None:
        """Wait for the checkpoint that is being written and for its copy in the store; every rank must call it. Returns the newest one.

        Raises:
            CheckpointError: one of the two failed.
        """
        self._wait()
        trouble = self._sentence() if self.failed_in_a_row else None
        if trouble is None and self.uploads is not None and (problem := self.uploads.finish()) is not None:
            trouble = f"{self.saved} is complete but its copy in the checkpoint store is not: {problem}"
        trouble, saved = self.engine.ranks.gather((trouble, self.saved))[0]
        self.heed(trouble)
        return saved

    def _sentence(self) -> str:
        stays = f"{self.saved} stays the newest checkpoint" if self.saved is not None else "there is no checkpoint yet"
        return f"{self.reason}; {stays}, free or mend the disk, then the same command continues"

    def _write(self, state: TrainState, content: Content) -> None:
        """In the thread. Nothing is raised here; `trouble` and `finish` say what went wrong."""
        try:
            self.saved = commit(self.run, state, content)
        except (OSError, InputError) as error:
            refused = f"{getattr(error, 'filename', None) or self.run} cannot be written ({getattr(error, 'strerror', None) or error})"
            self.reason = refused if isinstance(error, OSError) else str(error)
            self.failed, self.failed_in_a_row = self.failed + 1, self.failed_in_a_row + 1
            log.warning("the checkpoint of step %d was not written: %s", state.step, self.reason)
        except BaseException as error:  # a defect of the program: the loop raises it
            self._defect = error
        else:
            self.failed_in_a_row = 0
            self._after(self.saved)

    def _after(self, folder: Path) -> None:
        """What follows a commit."""
        if self.uploads is not None:
            self.uploads.offer(folder)
        try:
            tidy(self.run, self.settings.keep_last, self.settings.keep_every, self.uploads.holds() if self.uploads is not None else ())
        except OSError as error:
            log.warning("older checkpoints of %s were not removed (%s)", self.run, error)
        except BaseException as error:
            self._defect = error

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._defect is not None:
            raise self._defect

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What is being written is finished, whatever else went wrong."""
        if self._thread is not None:
            self._thread.join()
        if self.uploads is not None:
            self.uploads.wait()


def collect(tensors: Iterable[tuple[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """Copies in the memory of rank 0; the others take part in the gathering and keep nothing."""
    kept = {}
    for name, tensor in tensors:
        if rank == 0:
            kept[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return kept
