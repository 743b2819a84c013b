"""Checkpoints on an object store (or another disk), reached through fsspec. One appears there whole or not at all: its marker comes last.

    <address>/step-00000200/{model,ema,optimizer}.safetensors, state.json, COMMITTED

Credentials come from the environment, as for shards (data_shards/store.py).
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path

from data_shards.store import AGAIN, BUCKETS, Prefix, storage_errors, with_patience
from foundation.errors import CheckpointError, InputError
from foundation.train import snapshot
from foundation.train.snapshot import MARKER, STATE, TrainState, outdated, step_of

log = logging.getLogger(__name__)


def is_address(path: str | Path) -> bool:
    """Whether it names an object store rather than a folder."""
    return "://" in str(path)


class CheckpointStore(Prefix):
    """The checkpoints below an address; its names are those of the checkpoints that are whole, oldest first."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        super().__init__(self.address, patience_sec=None)  # a run that starts again in an outage

    def _list(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            names = {path.rsplit("/", 2)[-2] for path in self._fs.glob(f"{self._root}/step-*/{MARKER}")}
        except FileNotFoundError:  # no such bucket
            return []
        found = {step: name for name in names if (step := step_of(name)) is not None}
        return [found[step] for step in sorted(found)]

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint of that name; it need not be that of a step."""
        with storage_errors(self.name, AGAIN):
            self._fs.invalidate_cache()
            return bool(with_patience(lambda: self._fs.exists(f"{self._root}/{name}/{MARKER}")))

    def read_state(self, name: str) -> TrainState:
        """state.json of a checkpoint.

        Raises:
            CheckpointError: damaged.
        """
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
            self._get(f"{name}/{STATE}", Path(scratch) / STATE)
            return snapshot.read_state(Path(scratch))

    def download(self, name: str, folder: Path) -> None:
        """Copy a checkpoint into a folder that does not exist yet, and verify it there.

        Raises:
            CheckpointError: a file is missing or differs from the marker's sum.
        """
        folder.mkdir(parents=True)
        self._get(f"{name}/{MARKER}", folder / MARKER)
        for file in sorted(snapshot.read_sums(folder)):  # names of ours, whatever the marker says
            self._get(f"{name}/{file}", folder / file)
        snapshot.verify(folder)
        snapshot.flush(folder)

    def _get(self, name: str, path: Path) -> None:
        with storage_errors(self.name, AGAIN):
            self._fs.invalidate_cache()
            try:
                with_patience(lambda: self._fs.get_file(f"{self._root}/{name}", str(path)))
            except FileNotFoundError:
                raise CheckpointError(f"{self.name}/{name} is missing; use another checkpoint") from None
        snapshot.flush(path)

    def upload(self, folder: Path) -> None:
        """Copy a committed checkpoint there: files first, read back and compared with the sums of the marker; the marker last.

        Raises:
            CheckpointError: the store gives back something else than it was given.
        """
        there = f"{self._root}/{folder.name}"
        sums = snapshot.read_sums(folder)
        self.remove(f"{folder.name}/{MARKER}")
        with storage_errors(self.name, AGAIN):
            if self.address.partition("://")[0] not in BUCKETS:
                self._fs.makedirs(there, exist_ok=True)
            for name in sorted(sums):
                with_patience(lambda name=name: self._fs.put_file(str(folder / name), f"{there}/{name}"))  # type: ignore[misc]
                if self.sha256(f"{folder.name}/{name}") != sums[name]:
                    raise CheckpointError(
                        f"{self.name}/{folder.name}/{name} reads back otherwise than written; check the store and the disk"
                    )
            with_patience(lambda: self._fs.put_file(str(folder / MARKER), f"{there}/{MARKER}"))

    def has_copy(self, folder: Path) -> bool:
        """Whether a committed checkpoint of this machine lies there too, as far as marker and sizes tell."""
        there = f"{self._root}/{folder.name}"
        if not self.has(folder.name):
            return False
        with storage_errors(self.name, AGAIN):
            found = {info["name"].rsplit("/", 1)[-1]: info["size"] for info in with_patience(lambda: self._fs.ls(there, detail=True))}
            same_marker = with_patience(lambda: self._fs.cat_file(f"{there}/{MARKER}")) == (folder / MARKER).read_bytes()
        return same_marker and all(found.get(path.name) == path.stat().st_size for path in folder.iterdir())

    def retain(self, keep_last: int, keep_every: int) -> None:
        """Remove what retention gives up (snapshot.outdated), marker first."""
        steps = [step for name in self.names() if (step := step_of(name)) is not None]
        for step in outdated(steps, keep_last, keep_every):
            name = snapshot.step_name(step)
            self.remove(f"{name}/{MARKER}")
            with storage_errors(self.name, AGAIN):
                with_patience(lambda name=name: self._fs.rm(f"{self._root}/{name}", recursive=True))  # type: ignore[misc]


class Uploads:
    """Copies committed checkpoints to a store in a thread of its own. One that was overtaken by a newer one is left out.

    An upload that fails is said and tried again with the next checkpoint: training goes on, since the checkpoint lies in the run folder.
    """

    def __init__(self, store: CheckpointStore, keep_last: int, keep_every: int) -> None:
        self.store, self.keep_last, self.keep_every = store, keep_last, keep_every
        self.problem: str | None = None  # of the last copy that failed
        self._waiting: list[Path] = []  # the first may be on its way
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None

    def holds(self) -> set[str]:
        """Names of the checkpoints that are still to be copied: they must stay."""
        with self._lock:
            return {folder.name for folder in self._waiting}

    def offer(self, folder: Path) -> None:
        """Copy a committed checkpoint as soon as the one before is through."""
        with self._lock:
            busy = self._waiting[:1] if self._thread is not None else []
            stay = [one for one in self._waiting[len(busy) :] if self._stays(one)]
            self._waiting = [one for one in (*busy, *stay) if one != folder] + [folder]
        self._start()

    def _stays(self, folder: Path) -> bool:
        """Whether a checkpoint is still wanted there when a newer one is."""
        return bool(self.keep_every) and (step_of(folder.name) or 0) % self.keep_every == 0

    def finish(self) -> str | None:
        """Wait for the rest, with one more try where the last one failed. Returns what is wrong, None where all is there."""
        self.wait()
        if self.holds():
            self._start()
            self.wait()
        return self.problem if self.holds() else None

    def wait(self) -> None:
        """Until nothing is on its way."""
        thread = self._thread
        if thread is not None:
            thread.join()
        if self._defect is not None:
            raise self._defect

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and self._waiting:
                self._thread = threading.Thread(target=self._run, name="checkpoint-upload")
                self._thread.start()

    def _run(self) -> None:
        failed: set[Path] = set()  # each is tried once here
        while True:
            with self._lock:
                if not self._waiting or self._waiting[0] in failed:
                    self._thread = None
                    return
                folder = self._waiting[0]
            try:
                self.store.upload(folder)
                with self._lock:
                    self._waiting.remove(folder)
                self.store.retain(self.keep_last, self.keep_every)
            except InputError as error:
                log.warning("%s: the copy in the checkpoint store failed, it is tried again with the next one: %s", folder.name, error)
                failed.add(folder)
                with self._lock:  # behind those that were committed meanwhile, or out of their way
                    self.problem = str(error)
                    newer = [one for one in self._waiting if one != folder]
                    if len(newer) < len(self._waiting) and (not newer or self._stays(folder)):
                        newer.append(folder)
                    self._waiting = newer
            except BaseException as error:  # a defect of the program: the loop raises it
                with self._lock:
                    self._defect, self._thread = error, None
                return
