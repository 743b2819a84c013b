"""The processes of a run: who I am, what we agree on. Tensors travel through the engine, words through here."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_shards.console import leave_at_once
from foundation.errors import CheckpointError, InputError

T = TypeVar("T")
SHORTEST_TIMEOUT_SEC = 600.0  # ranks may start minutes apart


def group_timeout(hang_timeout_sec: float) -> timedelta:
    """How long a collective may wait: longer than the watchdog, which says more; without one, a day."""
    return timedelta(seconds=max(SHORTEST_TIMEOUT_SEC, 2 * hang_timeout_sec)) if hang_timeout_sec else timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """One process among world_size.

    Attributes:
        rank, world_size: this process and how many there are.
        device: where its tensors live.
        words: gloo group for small Python objects; None where the default group is gloo already.
        started_here: whether leaving the context ends the process group.
    """

    rank: int
    world_size: int
    device: torch.device
    words: Any
    started_here: bool

    @classmethod
    def start(cls, rank: int, world_size: int, hang_timeout_sec: float = 0.0) -> Ranks:
        """Join the process group: the one that exists, the one that the environment names, or one of this process alone.

        Args:
            rank, world_size: this process.
            hang_timeout_sec: of the watchdog; see group_timeout.

        Raises:
            InputError: several ranks are wanted but the environment does not say where they meet, or the existing group has another size.
        """
        cuda = torch.cuda.is_available()
        local = int(os.environ.setdefault("LOCAL_RANK", "0"))  # deepspeed reads it too
        device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        started_here = not dist.is_initialized()
        if started_here:
            backend = "nccl" if cuda else "gloo"
            if world_size == 1:
                dist.init_process_group(
                    backend,
                    store=torch.distributed.HashStore(),  # type: ignore[attr-defined]
                    rank=0,
                    world_size=1,
                )
                atexit.register(dist.destroy_process_group)
            elif "MASTER_ADDR" in os.environ:
                dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=group_timeout(hang_timeout_sec))
            else:
                raise InputError(f"{world_size} ranks do not know where to meet (MASTER_ADDR is not set); start them with torchrun")
        if dist.get_world_size() != world_size:
            raise InputError(f"world_size {world_size} is not the size of the running process group, {dist.get_world_size()}; pass that")
        words = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=group_timeout(hang_timeout_sec))
        return cls(rank, world_size, device, words, started_here)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.words)
        return values

    def on_rank_zero(self, work: Callable[[], None]) -> None:
        """Do something once while the other ranks wait; if it fails, it fails on all of them.

        Raises:
            CheckpointError: the file system refused.
        """
        said: tuple[type[InputError], str] | None = None
        if self.rank == 0:
            try:
                work()
            except OSError as error:
                said = (
                    CheckpointError,
                    f"{error.filename or 'the run folder'} cannot be written ({error.strerror or error}); free or change it",
                )
            except InputError as error:
                said = type(error), str(error)
        said = self.gather(said)[0]
        if said is not None:
            raise said[0](said[1])

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A group of one stays for the next run of this process: deepspeed keeps references to the first group that it sees.
        if not self.started_here or self.world_size == 1:
            return
        if error is None:  # otherwise the other ranks may be inside a collective, for which ending the group would wait
            dist.destroy_process_group()
        # Either way gloo's threads may still be giving back tensors, and C++ aborts the process if Python ends beneath them: exit code -6
        # instead of the right one. Seen after a stop too, on a busy machine, with the group ended in order.
        leave_at_once()
