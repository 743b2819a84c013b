"""ZeRO stages, numbers of ranks and continuation on others: one curve. Two gloo processes train all jobs one after the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.track.tracker import read_metrics
from foundation.train.loop import train
from tests.train.conftest import curve, environment, losses, small

STEPS = ("train.num_steps=4", "train.checkpoint_every=2", "train.validate_every=4", "train.micro_batches_per_step=4", "train.grad_clip=0.3")
TOLERANCE = 1e-5


def train_on_two_ranks(jobs: list[dict], folder: Path) -> None:
    """Train jobs on two processes that meet in a file."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "meeting").unlink(missing_ok=True)
    program = [sys.executable, "-m", "tests.train.ranks", str(folder / "jobs.json")]
    ranks = [
        subprocess.Popen([*program, str(rank), "2", str(folder / "meeting")], stderr=subprocess.PIPE, text=True, env=environment())
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=280)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]


def job(shards: str, out: Path, *overrides: str) -> dict:
    return {"config": small(*STEPS, *overrides).model_dump(mode="json"), "shards": shards, "out": str(out)}


@pytest.fixture(scope="module")
def one_rank(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank without ZeRO, accumulating what two ranks share."""
    out = tmp_path_factory.mktemp("one") / "run"
    train(small(*STEPS), out, shards)
    return out


@pytest.mark.dist
def test_zero_stages_on_two_ranks_and_accumulation_on_one_rank_give_one_curve(shards: str, one_rank: Path, tmp_path: Path) -> None:
    """ZeRO 0 to 3 on two ranks = one rank with twice the accumulation, and a checkpoint of one goes on as another."""
    half = tmp_path / "one-then-two"
    shutil.copytree(one_rank, half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    jobs = [job(shards, tmp_path / f"zero{stage}", f"train.zero_stage={stage}") for stage in range(4)]
    train_on_two_ranks([*jobs, job(shards, half, "train.zero_stage=3")], tmp_path)
    expected = curve(one_rank)
    assert len(set(expected)) == 4
    for name in ("zero0", "zero1", "zero2", "zero3", "one-then-two"):
        got = curve(tmp_path / name)
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < TOLERANCE, name
        norms = [[row["train/grad_norm"] for row in read_metrics(run / "metrics.jsonl")] for run in (tmp_path / name, one_rank)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4), name  # a sum in place of a mean would hide behind Adam otherwise
        assert losses(tmp_path / name)[-1][2] == pytest.approx(losses(one_rank)[-1][2], abs=TOLERANCE)
    # and back: what two ranks wrote under ZeRO-3 goes on here, on one rank without
    shutil.rmtree(tmp_path / "zero3" / "checkpoints" / "step-00000004")
    result = train(small(*STEPS), tmp_path / "zero3", shards)
    assert result.step == 4
    assert [step for step, _, _ in losses(tmp_path / "zero3")] == [1, 2, 3, 4]
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "zero3"), expected, strict=True)) < TOLERANCE


@pytest.mark.dist
def test_the_curve_would_show_a_difference(shards: str, one_rank: Path, tmp_path: Path) -> None:
    """The tolerance above is far below what a wrong update does: one percent of the learning rate is seen."""
    train(small(*STEPS, "train.lr=0.0101"), tmp_path / "other", shards)
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "other"), curve(one_rank), strict=True)) > 3 * TOLERANCE
