"""A run killed at any moment and started again gives the same losses to the last bit. Commands here are what a user types."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.same_curve import kill_all
from foundation.track.tracker import read_metrics
from tests.train.conftest import STEPS, command, environment, losses, torchrun

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run([sys.executable, *command(shards, out, *STEPS)], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "starts at step 0" in done.stdout
    assert "done: step 12" in done.stdout
    assert len({loss for _, loss, _ in losses(out)}) == 12
    return out


def interrupt(shards: str, out: Path, lines: int, number: signal.Signals, *overrides: str, ranks: int = 1) -> int:
    """Start the command, send a signal once metrics.jsonl has so many lines, return the exit code."""
    process = subprocess.Popen(
        [sys.executable, *(torchrun(ranks) if ranks > 1 else []), *command(shards, out, *STEPS, *overrides)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and len(read_metrics(out / "metrics.jsonl")) < lines and time.monotonic() < deadline:
        time.sleep(0.002)
    if number == signal.SIGKILL:
        kill_all(process.pid)  # all ranks at once, as when a machine is lost
    else:
        os.kill(process.pid, number)
    return process.wait(timeout=120)


@pytest.mark.dist
def test_killed_and_started_again_gives_the_same_losses_to_the_last_bit(shards: str, whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    for lines in (random.randint(1, 2), random.randint(4, 10)):  # before the first checkpoint, and somewhere later
        print("killing after", lines)
        assert interrupt(shards, out, lines, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < len(read_metrics(out / "metrics.jsonl")) < 12
    done = pretrain(out, *STEPS)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(whole)
    assert [row[0] for row in losses(out)] == list(range(1, 13))
    for name in ("model", "ema", "optimizer"):
        files = [run / "checkpoints" / "step-00000012" / f"{name}.safetensors" for run in (out, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.dist
def test_sigterm_commits_a_checkpoint_and_leaves_with_exit_code_3(shards: str, whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    assert interrupt(shards, out, 4, signal.SIGTERM) == 3
    stopped = len(read_metrics(out / "metrics.jsonl"))
    assert (out / "checkpoints" / f"step-{stopped:08d}" / "COMMITTED").exists()
    done = pretrain(out, *STEPS)
    assert done.returncode == 0, done.stderr
    assert f"goes on after step-{stopped:08d}" in done.stdout
    assert losses(out) == losses(whole)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_killed_and_started_again_give_the_same_losses_to_the_last_bit(
    shards: str, tmp_path: Path, pretrain: Run, stage: int
) -> None:
    zero = f"train.zero_stage={stage}"
    done = pretrain(tmp_path / "whole", *STEPS, zero, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for lines in (2, random.randint(4, 10)):
        assert interrupt(shards, tmp_path / "cut", lines, signal.SIGKILL, zero, ranks=2) == -signal.SIGKILL
    assert len(read_metrics(tmp_path / "cut" / "metrics.jsonl")) < 12
    done = pretrain(tmp_path / "cut", *STEPS, zero, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
