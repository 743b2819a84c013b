"""Processes that read ahead. One that dies or hangs is replaced, and the answers come in the order of the questions all the same.

torch's DataLoader is not used: when a worker of it is killed, an error is raised wherever the main thread happens to be, or the main
thread waits for ever for the rest of an answer (docs/decisions/0003-reading-processes.md). Here every process has a pipe of its own, whose
end is seen at once, and a thread that empties it.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch

from foundation.errors import InputError, StorageError

log = logging.getLogger(__name__)
AHEAD = 2  # questions that a process has at a time
MOST_REPLACED = 3  # times that the same question may end a process
GONE = object()  # what a thread says when its pipe has ended
Q = TypeVar("Q")
A = TypeVar("A")


class _Process(Generic[Q, A]):
    """One process, its pipe, the thread that empties the pipe, and the questions that are not answered yet."""

    def __init__(self, answer: Callable[[Q], A], others: list[_Process[Q, A]]) -> None:
        context = multiprocessing.get_context("fork")  # the manifest of millions of samples is shared, not copied
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(answer, theirs, [self.pipe, *(o.pipe for o in others)]), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: a process that hangs is replaced
            self.process.start()
        theirs.close()  # the only end that writes is in the process: when it dies the pipe ends
        self.asked: deque[Q] = deque()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._empty, daemon=True)
        self.thread.start()

    def _empty(self) -> None:
        try:
            while True:
                self.answers.put(self.pipe.recv())
        except (EOFError, OSError):
            self.answers.put(GONE)

    def ask(self, question: Q) -> None:
        self.asked.append(question)
        with suppress(OSError):  # a dead process is noticed where its answer is awaited
            self.pipe.send(question)

    def end(self) -> int | None:
        """Kill; returns the exit code it had, or that of the kill."""
        self.process.kill()
        self.process.join()
        self.thread.join(timeout=10)
        self.pipe.close()
        return self.process.exitcode


def _serve(answer: Callable[[Any], Any], pipe: Connection, not_mine: list[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    for other in not_mine:
        other.close()  # held open here, another process would not notice that the trainer is gone
    with suppress(EOFError, OSError):  # the trainer is gone
        while True:
            question = pipe.recv()
            try:
                made = answer(question)
            except Exception as error:
                if not isinstance(error, InputError):  # those are for the user, and say all in one sentence
                    error.add_note(f"in a reading process:\n{traceback.format_exc()}")
                made = error
            pipe.send(made)


class Readers(Generic[Q, A]):
    """Answers to an endless row of questions, in order, computed ahead by num processes.

    Args:
        answer: what a process does with a question; both must be picklable values.
        num: processes.
        timeout_sec: a process that has been awaited for so long is replaced.
    """

    def __init__(self, answer: Callable[[Q], A], num: int, timeout_sec: float) -> None:
        self.answer, self.num, self.timeout_sec = answer, num, timeout_sec
        self.processes: list[_Process[Q, A]] = []

    def answers(self, questions: Iterator[Q]) -> Generator[A]:
        """The processes end with the iterator.

        Raises:
            StorageError: one question ended MOST_REPLACED + 1 processes in a row.
        """
        try:
            for _ in range(self.num):
                self.processes.append(_Process(self.answer, self.processes))
            for _ in range(AHEAD):
                for process in self.processes:
                    process.ask(next(questions))
            while True:
                for place in range(self.num):  # question k goes to process k modulo num, so the order needs no bookkeeping
                    answer = self._await(place)
                    self.processes[place].ask(next(questions))
                    yield answer
        finally:
            for process in self.processes:
                process.end()
            self.processes.clear()

    def _await(self, place: int) -> A:
        for attempt in range(MOST_REPLACED + 1):
            process = self.processes[place]
            try:
                got = process.answers.get(timeout=self.timeout_sec)
            except queue.Empty:
                why = f"gave no answer for data.worker_timeout_sec={self.timeout_sec:g}"
                process.end()
            else:
                if got is not GONE:
                    process.asked.popleft()
                    if isinstance(got, Exception):
                        raise got
                    return got  # type: ignore[no-any-return]
                why = _ended(process.end())
            if attempt < MOST_REPLACED:
                log.warning("a reading process %s; another takes its place and the order stays", why)
                self._replace(place)
        raise StorageError(
            f"{MOST_REPLACED + 1} reading processes in a row ended over the same micro-batch (the last {why}); look at the machine's memory"
            " and the storage, or lower data.num_workers and data.cache_mib"
        )

    def _replace(self, place: int) -> None:
        asked = self.processes[place].asked
        new = _Process(self.answer, [p for k, p in enumerate(self.processes) if k != place])
        self.processes[place] = new
        for question in asked:
            new.ask(question)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (", as the kernel does where memory runs out" if name == "SIGKILL" else "")
    return f"ended with exit code {code}"
