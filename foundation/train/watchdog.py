"""A rank that makes no progress dumps its stacks, says whom it waits for, and leaves, so that the launcher can start the group again.

    <run>/.beats/rank-N         what rank N does, written by a thread of its own while the process lives
    <run>/stacks/rank-N.txt     stacks of all threads at the moment when its patience ended

Only monotonic clocks are used, each by its own process: clocks of hosts are never compared.
"""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

BEATS, STACKS = ".beats", "stacks"
EXIT_HANG = 75  # EX_TEMPFAIL of sysexits.h: try again
PHASES = ("start", "read", "compute", "update", "agree", "validate", "sample", "probe", "checkpoint")  # of a step, in order
TICKS = 20  # looks during one timeout
SHORTEST_TICK_SEC, LONGEST_TICK_SEC = 0.05, 15.0
DUMP_LIMIT_SEC = 10.0  # the disk may be what hangs


@dataclass(frozen=True)
class Beat:
    """What a rank was doing: comparable between ranks, since all go through the same phases."""

    tick: int  # grows as long as the process lives
    step: int  # optimiser steps done
    phase: int  # index into PHASES
    host: str
    pid: int

    def line(self) -> str:
        return f"{self.tick} {self.step} {self.phase} {self.host} {self.pid}\n"

    @classmethod
    def parse(cls, text: str) -> Beat | None:
        """Inverse of line; None where the file is torn or empty."""
        words = text.split()
        if len(words) != 5 or not text.endswith("\n"):
            return None
        return cls(int(words[0]), int(words[1]), int(words[2]), words[3], int(words[4]))

    def __str__(self) -> str:
        return f"at step {self.step + 1} ({PHASES[self.phase]}), host {self.host}, pid {self.pid}"


class Watchdog:
    """Context in which the loop says what it does; off where timeout_sec is 0.

    Args:
        out: run folder, seen by all ranks.
        rank, world_size: this process.
        timeout_sec: longest time without a beat. Time in which this process itself was stopped does not count.
    """

    def __init__(self, out: Path, rank: int, world_size: int, timeout_sec: float) -> None:
        self.out, self.rank, self.world_size, self.timeout_sec = out, rank, world_size, timeout_sec
        self.mine = out / BEATS / f"rank-{rank}"
        self.tick_sec = min(max(timeout_sec / TICKS, SHORTEST_TICK_SEC), LONGEST_TICK_SEC)
        self.beats, self.stalled_sec = 0, 0.0
        self.step, self.phase = 0, 0
        self.peers: dict[int, tuple[Beat | None, float]] = {}  # last beat that was read, and when it changed
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []

    def beat(self, step: int, phase: str) -> None:
        """Step number step + 1 has come to a phase."""
        self.step, self.phase = step, PHASES.index(phase)
        self.beats += 1

    def __enter__(self) -> Watchdog:
        if self.timeout_sec:
            self.threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._tell)]
            for thread in self.threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(DUMP_LIMIT_SEC)
        with suppress(OSError):
            self.mine.unlink(missing_ok=True)
            self.mine.parent.rmdir()  # by the last one

    # ------------------------------------------------------------------------------------------------------------------ threads

    def _watch(self) -> None:
        """Count the time without a beat; touches no disk, which may be what hangs."""
        seen, before = self.beats, time.monotonic()
        while not self.ended.wait(self.tick_sec):
            now = time.monotonic()
            asleep, before = now - before, now
            self.stalled_sec = self.stalled_sec + min(asleep, 2 * self.tick_sec) if self.beats == seen else 0.0
            seen = self.beats
            if self.stalled_sec > self.timeout_sec:
                dump = threading.Thread(target=self._dump, daemon=True)
                dump.start()
                dump.join(DUMP_LIMIT_SEC)
                time.sleep(max(1.0, 2 * self.tick_sec))  # others are about to dump: when this rank leaves, they fail otherwise
                os._exit(EXIT_HANG)

    def _tell(self) -> None:
        """Write this rank's beat; once it is stalled, follow those of the others."""
        tick = 0
        while not self.ended.wait(self.tick_sec):
            tick += 1
            try:
                self.mine.parent.mkdir(exist_ok=True)
                self.mine.write_text(Beat(tick, self.step, self.phase, platform.node(), os.getpid()).line(), encoding="utf-8")
            except OSError:
                continue  # a full disk is for the checkpoint to complain about
            if self.stalled_sec > self.timeout_sec / 2:
                self._follow()
            else:
                self.peers.clear()

    def _follow(self) -> None:
        for rank in range(self.world_size):
            if rank == self.rank:
                continue
            try:
                beat = Beat.parse((self.out / BEATS / f"rank-{rank}").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                beat = None
            known, since = self.peers.get(rank, (None, time.monotonic()))
            if beat is not None and beat != known:
                known, since = beat, time.monotonic()
            self.peers[rank] = known, since

    # --------------------------------------------------------------------------------------------------------------------- dump

    def _dump(self) -> None:
        path = self.out / STACKS / f"rank-{self.rank}.txt"
        where = Beat(0, self.step, self.phase, platform.node(), os.getpid())
        line = f"rank {self.rank} made no progress for {self.timeout_sec:g} s (train.hang_timeout_sec) {where}; {self.suspect()}"
        print(f"hang: {line}; stacks in {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def suspect(self) -> str:
        """Whom this rank probably waits for."""
        now = time.monotonic()
        silent = [rank for rank, (_, since) in self.peers.items() if now - since > max(4 * self.tick_sec, self.timeout_sec / 4)]
        if silent:
            rank = min(silent, key=lambda r: self.peers[r][1])
            last = self.peers[rank][0]
            return f"rank {rank} is silent, its process is stopped or its host is gone: {last or 'it never said anything'}"
        behind = [(beat.step, beat.phase, rank) for rank, (beat, _) in self.peers.items() if beat is not None]
        if behind and min(behind)[:2] < (self.step, self.phase):
            rank = min(behind)[2]
            return f"rank {rank} is behind: {self.peers[rank][0]}"
        return "no other rank is behind" if self.peers else "no other rank was seen"
