"""A run killed at any moment and started again gives the same losses to the last bit; ZeRO stages and ranks give the same curve."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.track.tracker import read_metrics
from tests.train.conftest import command, environment, losses

Run = Callable[..., subprocess.CompletedProcess[str]]
STEPS = ("train.num_steps=12", "train.checkpoint_every=3", "train.validate_every=4")


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run([sys.executable, *command(shards, out, *STEPS)], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "done: step 12" in done.stdout
    return out


def kill_after(shards: str, out: Path, lines: int, number: signal.Signals) -> int:
    """Start the command, send a signal once metrics.jsonl has so many lines, return the exit code."""
    process = subprocess.Popen(
        [sys.executable, *command(shards, out, *STEPS)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and len(read_metrics(out / "metrics.jsonl")) < lines and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    return process.wait(timeout=120)


@pytest.mark.dist
def test_killed_and_started_again_gives_the_same_losses_to_the_last_bit(shards: str, whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    for lines in (2, 7):  # before the first checkpoint, and between two
        assert kill_after(shards, out, lines, signal.SIGKILL) == -signal.SIGKILL
    assert len(read_metrics(out / "metrics.jsonl")) < 12
    done = pretrain(out, *STEPS)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(whole)
    assert [row[0] for row in losses(out)] == list(range(1, 13))


@pytest.mark.dist
def test_sigterm_commits_a_checkpoint_and_leaves_with_exit_code_3(shards: str, whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    assert kill_after(shards, out, 4, signal.SIGTERM) == 3
    assert pretrain(out, *STEPS).returncode == 0
    assert losses(out) == losses(whole)


def test_a_half_written_checkpoint_does_not_exist_for_readers(whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    (newest / "COMMITTED").unlink()
    done = pretrain(out, *STEPS)
    assert done.returncode == 0, done.stderr
    assert "continues after step-00000009" in done.stdout
    assert losses(out) == losses(whole)


def test_a_damaged_checkpoint_is_refused_by_name(whole: Path, tmp_path: Path, pretrain: Run) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    weights = sorted((out / "checkpoints").glob("step-*"))[-1] / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    done = pretrain(out, *STEPS, "train.num_steps=13")
    assert done.returncode == 2
    assert "ema.safetensors is missing or damaged" in done.stderr


def test_other_model_other_shards_and_other_seed_are_refused(whole: Path, tmp_path: Path, pretrain: Run) -> None:
    before = sorted(p.name for p in whole.rglob("*"))
    for override, text in (
        ("objective.num_registers=4", "the run folder holds another model (objective.num_registers differs)"),
        ("train.seed=7", "train.seed is 7 but the run folder was made with 0"),
    ):
        done = pretrain(whole, *STEPS, override)
        assert done.returncode == 2
        assert text in done.stderr
    assert sorted(p.name for p in whole.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.dist
def test_zero_stages_on_two_ranks_and_accumulation_on_one_give_the_same_curve(tmp_path: Path, pretrain: Run) -> None:
    curves = {}
    for name, ranks, stage in (("one", 1, 0), *((f"zero{stage}", 2, stage) for stage in range(4))):
        done = pretrain(tmp_path / name, *STEPS, "train.micro_batches_per_step=2", f"train.zero_stage={stage}", ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        curves[name] = [row[1] for row in losses(tmp_path / name)]
    assert len(set(curves["one"])) == 12
    for name, curve in curves.items():
        assert max(abs(a - b) for a, b in zip(curve, curves["one"], strict=True)) < 1e-5, name


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_under_zero_3_resume_to_the_last_bit(tmp_path: Path, pretrain: Run) -> None:
    stage = ("train.micro_batches_per_step=2", "train.zero_stage=3")
    assert pretrain(tmp_path / "whole", *STEPS, *stage, ranks=2).returncode == 0
    assert pretrain(tmp_path / "cut", *STEPS, *stage, ranks=2).returncode == 0
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(newest)
    assert pretrain(tmp_path / "cut", *STEPS, *stage, ranks=2).returncode == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["train"]["zero_stage"] == 3
