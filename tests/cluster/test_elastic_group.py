"""A training group that loses workers and nodes: it goes on, at the size that there is, or ends with a sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.same_curve import kill_all
from foundation.track.tracker import read_metrics
from tests.cluster.conftest import Head, Job, started_head
from tests.train.conftest import SMALL, losses

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = ("train.num_steps=40", "train.checkpoint_every=4", "train.validate_every=40", "train.micro_batches_per_step=2")
BUG = '''
_whole = learning_rate

def learning_rate(step, settings):
    """As before, but for a mistake."""
    if step == {step}:
        {mistake}
    return _whole(step, settings)
'''


def arguments(shards: str, out: Path, *more: str) -> list[str]:
    """Of `ray job submit`."""
    return ["cluster/pretrain.yaml", f"shards={shards}", f"out={out}", "recipe=polyconfm_tiny", *SMALL, *STEPS, *more]


def while_it_runs(head: Head, words: list[str], run: Path, steps: int, deed: Callable[[], None]) -> Job:
    """Submit a job, do something once it has made so many steps, wait for its end."""
    with ThreadPoolExecutor(1) as pool:
        job: Future[Job] = pool.submit(head.submit, *words)
        while not job.done() and len(read_metrics(run / "metrics.jsonl")) < steps:
            time.sleep(0.05)
        if not job.done():
            deed()
        return job.result()


@pytest.fixture(scope="module")
def whole(head: Head, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers, undisturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = head.submit(*arguments(shards, run))
    assert done.exit_code == 0, done.log
    assert f"done: 40 steps in {run}\n" in done.log
    return run


def test_a_killed_worker_costs_no_step_and_no_bit(head: Head, shards: str, whole: Path, tmp_path: Path) -> None:
    """SIGKILL of one of two workers: both start again from the last checkpoint; every loss is the undisturbed run's to the last bit."""
    run = tmp_path / "run"
    done = while_it_runs(head, arguments(shards, run), run, 6, lambda: head.workers()[-1].kill())
    assert done.exit_code == 0, done.log
    assert "restart 1 (1 of 3 without progress): rank" in done.log
    assert f"done: 40 steps in {run} after 1 restart (last: rank" in done.log
    assert losses(run) == losses(whole)
    assert [step for step, _, _ in losses(run)] == list(range(1, 41))


def submit_with(mistake: str, step: int, head: Head, folder: Path, words: list[str]) -> Job:
    """Submit a job whose working directory is a copy of the project with a mistake in it."""
    copy = folder / "patched"
    shutil.copytree(head.project, copy, ignore=shutil.ignore_patterns("runs", "shards"))
    with (copy / "foundation/train/optim.py").open("a") as file:
        file.write(BUG.format(step=step, mistake=mistake))
    return head.submit("--working-dir", str(copy), "--", *words)


def test_an_error_that_comes_again_at_the_same_step_is_tried_twice(head: Head, shards: str, tmp_path: Path) -> None:
    run, mistake = tmp_path / "run", "raise RuntimeError(f'index {id(settings)} is out of bounds')"
    done = submit_with(mistake, 5, head, tmp_path, arguments(shards, run, "resources.max_failures=9"))
    assert "restart 1 (1 of 9 without progress): rank 0: RuntimeError: index" in done.log, done.log
    assert "the same error twice at step 6, so it would come again: rank 0: RuntimeError: index" in done.log
    assert "the same command continues from step 4" in done.log
    assert "restart 2" not in done.log
    assert "exit code 1" in done.log
    assert len(read_metrics(run / "metrics.jsonl")) == 5


def test_retries_without_progress_are_limited(head: Head, shards: str, tmp_path: Path) -> None:
    """A worker that is lost at every attempt: one restart is allowed, and the run stays resumable."""
    run, mistake = tmp_path / "run", "__import__('os').kill(__import__('os').getpid(), 9)"
    done = submit_with(mistake, 6, head, tmp_path, arguments(shards, run, "resources.max_failures=1"))
    assert "restart 1 (1 of 1 without progress)" in done.log, done.log
    assert "stopped: workers failed 2 times without a new checkpoint, resources.max_failures=1 allows 1 (last: rank" in done.log
    assert "the same command continues from step 4" in done.log
    assert "exit code 3" in done.log


def test_a_stopped_rank_is_found_and_the_group_starts_again(head: Head, shards: str, whole: Path, tmp_path: Path) -> None:
    """SIGSTOP of a worker: the watchdog of the other one ends the attempt, Ray ends the stopped process, nothing is lost."""
    run = tmp_path / "run"
    words = arguments(shards, run, "train.hang_timeout_sec=30")
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.extend(head.workers()[:1])
        stopped[0].suspend()

    done = while_it_runs(head, words, run, 6, stop)
    assert done.exit_code == 0, done.log
    assert "made no progress for 30 s (train.hang_timeout_sec)" in done.log
    assert "is silent, its process is stopped or its host is gone: at step" in done.log
    assert f"pid {stopped[0].pid}" in done.log
    assert losses(run) == losses(whole)
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE


def test_sigterm_of_the_driver_leaves_a_checkpoint(head: Head, shards: str, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def terminate() -> None:
        for process in head.processes():
            with suppress(psutil.NoSuchProcess):
                if "cluster.launch" in process.cmdline():
                    process.terminate()

    done = while_it_runs(head, arguments(shards, run, "train.num_steps=4000", "train.checkpoint_every=4000"), run, 3, terminate)
    made = len(read_metrics(run / "metrics.jsonl"))
    assert f"stopped: at step {made} of 4000" in done.log, done.log
    assert (run / "checkpoints" / f"step-{made:08d}" / "COMMITTED").exists()
    assert "exit code 3" in done.log


def test_a_group_that_finds_no_room_says_so(head: Head, shards: str, tmp_path: Path) -> None:
    words = arguments(shards, tmp_path / "run", "resources.max_workers=64", "resources.min_workers=64", "resources.restart_timeout_sec=3")
    done = head.submit(*words, "train.micro_batches_per_step=64")
    assert "stopped: the cluster had no room for 64 x {'CPU': 1.0} within resources.restart_timeout_sec=3" in done.log, done.log
    assert "exit code 3" in done.log


@pytest.fixture
def two_nodes(project: Path) -> Iterator[tuple[Head, int]]:
    """A head and a node with a CPU each, and the process group of the node."""
    with started_head(project, num_cpus=1) as head:
        node = head.add_node(1)
        try:
            yield head, node.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def test_a_lost_node_leaves_a_smaller_group_on_the_same_curve(
    two_nodes: tuple[Head, int], shards: str, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL of a node with one of two workers: one worker goes on with the same samples and, within 1e-4, the same losses."""
    head, node = two_nodes
    run = tmp_path / "run"
    words = arguments(shards, run, "resources.restart_timeout_sec=15", "resources.max_workers=2", "track.log_every=1")

    done = while_it_runs(head, words, run, 6, lambda: kill_all(node))
    assert done.exit_code == 0, done.log
    assert "restart 1 (1 of 3 without progress)" in done.log
    rows, expected = (read_metrics(path / "metrics.jsonl") for path in (run, whole))
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["train/samples_seen"] for row in rows] == [row["train/samples_seen"] for row in expected]
    assert max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(rows, expected)) < 1e-4
    assert json.loads((run / "run.json").read_text())["world_size"] == 1
