"""Real jobs on a real head: the two forms of the command, resuming, and how a mistake ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import Head, Job

pytestmark = pytest.mark.dist
TINY = ("objective.width=32", "objective.unit_layers=1", "objective.trunk_layers=1", "data.token_budget=256", "track.wandb=false")


def steps(run: Path) -> list[int]:
    """Steps in metrics.jsonl, in the order of its lines; validation lines aside."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def smoke(head: Head) -> Job:
    """`ray job submit cluster/smoke.yaml`: bundled polymers, shards, training with two workers."""
    small = ("build.limit=8", "build.num_units=3", "build.conformers=1", "train.num_steps=3", "train.checkpoint_every=2")
    return head.submit("cluster/smoke.yaml", *small, *TINY)


def test_the_smoke_job_goes_all_the_way(head: Head, smoke: Job) -> None:
    assert smoke.exit_code == 0, smoke.log
    assert "workers  2 x (1 CPU)" in smoke.log
    assert "contents: every checksum of" in smoke.log
    assert "done: 3 steps in" in smoke.log
    run = head.project / "runs/smoke/model"
    assert steps(run) == [1, 2, 3]
    assert sorted(path.parent.name for path in run.glob("checkpoints/step-*/COMMITTED")) == ["step-00000002", "step-00000003"]
    assert not list(run.glob(".ray*"))


def test_a_working_directory_that_is_a_copy_continues_the_same_run(head: Head, smoke: Job) -> None:
    """`--working-dir .`: relative paths lead to the project, not to Ray's copy; one worker goes on where two stopped."""
    arguments = ("shards=runs/smoke/shards", "out=runs/smoke/model", "recipe=polyconfm_tiny", "resources.num_workers=1")
    done = head.submit("--working-dir", ".", "--", "cluster/pretrain.yaml", *arguments, "train.num_steps=5", *TINY)
    assert done.exit_code == 0, done.log
    run = head.project / "runs/smoke/model"
    assert f"out      {run}" in done.log
    assert "start: continues after step-00000003" in done.log
    assert steps(run) == [1, 2, 3, 4, 5]


def test_a_mistake_ends_the_job_with_one_sentence(head: Head) -> None:
    done = head.submit("--", "cluster/pretrain.yaml", "out=runs/mistake", "train.num_stepz=3")
    assert done.exit_code == 1
    assert "error: unknown key 'train.num_stepz'; did you mean 'train.num_steps'?" in done.log
    assert "exit code 2" in done.log
    assert "Traceback" not in done.log
    assert not (head.project / "runs/mistake").exists()


def test_shards_are_built_as_a_job(head: Head) -> None:
    """`cluster/preprocess.yaml` on the cluster's own workers; settings of a group as a mapping; the same job again finds all done."""
    small = ("build.limit=4", "build.num_units=3", "build.conformers=1", "build.out=runs/job-shards", "build.quality={heavy_clash: 0.7}")
    done = head.submit("--", "cluster/preprocess.yaml", *small)
    assert done.exit_code == 0, done.log
    manifest = json.loads((head.project / "runs/job-shards/manifest.json").read_text())
    assert manifest["funnel"]["attempted"] == 4
    assert manifest["recipe"]["quality"]["heavy_clash"] == 0.7
    again = head.submit("--", "cluster/preprocess.yaml", *small)
    assert again.exit_code == 0, again.log
    assert "holds this build already, and every checksum is right" in again.log
