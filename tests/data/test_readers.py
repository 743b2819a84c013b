"""Reading processes: the same answers in the same order whatever happens to the processes, and an end to replacing them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from foundation.data.readers import MOST_REPLACED, Readers
from foundation.errors import ShardError, StorageError

LARGE = 100_000  # numbers of an answer: more than a pipe holds, so that processes are killed in the middle of an answer


def square(question: int) -> np.ndarray:
    return np.full(LARGE, question**2)


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


@pytest.mark.parametrize("num", [1, 3])
def test_killed_processes_are_replaced_and_the_order_stays(num: int, caplog: pytest.LogCaptureFixture) -> None:
    before = set(children())
    answers = Readers(square, num, timeout_sec=60).answers(itertools.count())
    for k in range(40):
        answer = next(answers)
        assert (answer[0], answer[-1], len(answer)) == (k**2, k**2, LARGE)
        if k % 7 == 3:
            for pid in set(children()) - before:
                os.kill(pid, signal.SIGKILL)
    said = [record.message for record in caplog.records]
    assert len(said) >= 5
    assert set(said) == {
        "a reading process was killed by SIGKILL, as the kernel does where memory runs out; another takes its place and the order stays"
    }
    answers.close()
    assert set(children()) <= before


def test_a_process_that_hangs_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    before = set(children())
    answers = Readers(square, 2, timeout_sec=1.0).answers(itertools.count())
    assert [next(answers)[0] for _ in range(3)] == [0, 1, 4]
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGSTOP)
    assert [next(answers)[0] for _ in range(8)] == [k**2 for k in range(3, 11)]
    answers.close()
    assert any("gave no answer for data.worker_timeout_sec=1" in record.message for record in caplog.records)
    assert set(children()) <= before


def test_a_question_that_always_kills_ends_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def poisoned(question: int) -> int:
        if question == 5:
            with (tmp_path / "tries").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return question

    answers = Readers(poisoned, 2, timeout_sec=60).answers(itertools.count())
    assert [next(answers) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(
        StorageError, match=r"^4 reading processes in a row ended over the same micro-batch \(the last was killed by SIGKILL"
    ):
        next(answers)
    assert (tmp_path / "tries").read_text() == "x" * (MOST_REPLACED + 1)
    assert len(caplog.records) == MOST_REPLACED


def test_an_error_arrives_with_its_type_and_place() -> None:
    def broken(question: int) -> int:
        if question == 1:
            raise ShardError("x.tar is torn")
        if question == 3:
            return {}[question]  # type: ignore[index, no-any-return]
        return question

    answers = Readers(broken, 1, timeout_sec=60).answers(itertools.count())
    assert next(answers) == 0
    with pytest.raises(ShardError, match=r"^x.tar is torn$"):
        next(answers)
    answers = Readers(broken, 1, timeout_sec=60).answers(itertools.count(2))
    assert next(answers) == 2
    with pytest.raises(KeyError) as error:
        next(answers)
    assert "in a reading process" in error.value.__notes__[0]
    assert "in broken" in error.value.__notes__[0]


def test_processes_end_when_the_trainer_is_killed() -> None:
    program = (
        "import itertools, psutil, time\n"
        "from foundation.data.readers import Readers\n"
        "from tests.data.test_readers import square\n"
        "answers = Readers(square, 3, 60).answers(itertools.count())\n"
        "next(answers)\n"
        "print(*[p.pid for p in psutil.Process().children()], flush=True)\n"
        "time.sleep(600)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 3
    assert all(psutil.pid_exists(pid) for pid in pids)
    trainer.kill()
    trainer.wait()
    wait_until(lambda: not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids))
