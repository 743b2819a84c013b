"""ZeRO stages, numbers of ranks and continuation on others: one curve. Two gloo processes train all jobs one after the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from foundation.track.tracker import read_metrics
from foundation.train.loop import train
from tests.train.conftest import FOUR, Pair, curve, losses, small

TOLERANCE = 1e-5


def train_on_two_ranks(jobs: list[dict], folder: Path) -> None:
    """Train jobs on two processes, one after the other."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ranks = Pair([["-m", "tests.train.ranks", str(folder / "jobs.json")]] * 2, folder)
    assert ranks.ends(timeout_sec=280) == [0, 0], ranks.said()[-6000:]


def job(shards: str, out: Path, *overrides: str) -> dict:
    return {"config": small(*FOUR, *overrides).model_dump(mode="json"), "shards": shards, "out": str(out)}


@pytest.mark.dist
def test_zero_stages_on_two_ranks_and_accumulation_on_four_steps_give_one_curve(shards: str, four_steps: Path, tmp_path: Path) -> None:
    """ZeRO 0 to 3 on two ranks = one rank with twice the accumulation, and a checkpoint of one goes on as another."""
    half = tmp_path / "one-then-two"
    shutil.copytree(four_steps, half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    jobs = [job(shards, tmp_path / f"zero{stage}", f"train.zero_stage={stage}") for stage in range(4)]
    train_on_two_ranks([*jobs, job(shards, half, "train.zero_stage=3")], tmp_path)
    expected = curve(four_steps)
    assert len(set(expected)) == 4
    for name in ("zero0", "zero1", "zero2", "zero3", "one-then-two"):
        got = curve(tmp_path / name)
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < TOLERANCE, name
        norms = [[row["train/grad_norm"] for row in read_metrics(run / "metrics.jsonl")] for run in (tmp_path / name, four_steps)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4), name  # a sum in place of a mean would hide behind Adam otherwise
        assert losses(tmp_path / name)[-1][2] == pytest.approx(losses(four_steps)[-1][2], abs=TOLERANCE)
    # and back: what two ranks wrote under ZeRO-3 goes on here, on one rank without
    shutil.rmtree(tmp_path / "zero3" / "checkpoints" / "step-00000004")
    result = train(small(*FOUR), tmp_path / "zero3", shards)
    assert result.step == 4
    assert [step for step, _, _ in losses(tmp_path / "zero3")] == [1, 2, 3, 4]
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "zero3"), expected, strict=True)) < TOLERANCE


@pytest.mark.dist
def test_the_curve_would_show_a_difference(shards: str, four_steps: Path, tmp_path: Path) -> None:
    """The tolerance above is far below what a wrong update does: one percent of the learning rate is seen."""
    train(small(*FOUR, "train.lr=0.0101"), tmp_path / "other", shards)
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "other"), curve(four_steps), strict=True)) > 3 * TOLERANCE
