"""Configuration, recipes, schedule, command errors: bad input gets one sentence and exit code 2, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.config import TrackConfig, apply_overrides, parse_config
from foundation.errors import CheckpointError, ConfigError
from foundation.objectives import build_objective
from foundation.recipes import RECIPES, get_recipe
from foundation.track.metrics import check_names
from foundation.track.tracker import Tracker, read_metrics
from foundation.train.checkpoint import find
from foundation.train.optim import build_optimizer, learning_rate


def test_overrides_are_typed_and_leave_the_rest() -> None:
    config = apply_overrides(
        get_recipe("polyconfm_tiny"),
        ["train.num_steps=7", "train.lr=2e-4", "objective.local_head=cartesian", "deepspeed.zero_optimization.overlap_comm=true"],
    )
    assert (config.train.num_steps, config.train.lr, config.objective.local_head) == (7, 2e-4, "cartesian")
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    assert config.data == get_recipe("polyconfm_tiny").data
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.num_stepz=7", "unknown key 'train.num_stepz'; did you mean 'train.num_steps'?"),
        ("optimizer.lr=1", "unknown key 'optimizer.lr'; did you mean"),
        ("train.num_steps", "is not of the form key=value"),
        ("train.num_steps=0", "train.num_steps 0 must be greater than or equal to 1"),
        ("train.precision=fp8", "train.precision 'fp8' must be 'fp32' or 'bf16'"),
        ("objective.width=100", "width 100 must be a multiple of 8 x num_heads = 32"),
    ],
)
def test_a_bad_override_is_one_sentence(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(get_recipe("polyconfm_tiny"), [override])
    assert text in str(error.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'polyconfm_tny'; did you mean 'polyconfm_tiny'\?"):
        get_recipe("polyconfm_tny")


@pytest.mark.parametrize(("name", "millions"), [("polyconfm_tiny", 1.4), ("polyconfm_small", 9.3), ("polyconfm_base", 140)])
def test_recipes_have_the_sizes_they_claim(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_objective(RECIPES[name]().objective)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


def test_learning_rate_rises_then_falls_to_its_floor() -> None:
    settings = apply_overrides(get_recipe("polyconfm_tiny"), ["train.num_steps=100", "train.warmup_fraction=0.1", "train.lr=1.0"]).train
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[10:-1], rates[11:], strict=True))
    assert rates[-1] == pytest.approx(0.01)


def test_only_matrices_decay() -> None:
    optimizer = build_optimizer(torch.nn.Linear(3, 4), get_recipe("polyconfm_tiny").train)
    assert [(g["weight_decay"] > 0, [p.ndim for p in g["params"]]) for g in optimizer.param_groups] == [(True, [2]), (False, [1])]


def test_metrics_stand_once_and_lost_steps_are_dropped(tmp_path: Path) -> None:
    for first, steps in ((0, range(1, 6)), (3, range(4, 8))):
        tracker = Tracker(tmp_path, first_step=first, config={}, track=TrackConfig(wandb=False), run_id="r")
        for step in steps:
            tracker.log(step, {"train/loss": float(step)})
        tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tr')  # torn by a kill
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]


def test_an_unlisted_metric_is_refused() -> None:
    with pytest.raises(AssertionError, match="not listed"):
        check_names({"train/los": 1.0})


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; pass a run folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        find(tmp_path)


def pretrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "foundation.pretrain", *arguments], capture_output=True, text=True, check=False)


def test_bad_commands_exit_2_with_one_line_and_write_nothing(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for arguments, text in (
        (["--shards", str(tmp_path / "none"), "--out", str(out)], str(tmp_path / "none")),
        (["--shards", shards, "--out", str(out), "--recipe", "nope"], "unknown recipe 'nope'"),
        (["--shards", shards, "--out", str(out), "--init-from", str(tmp_path / "none")], "does not exist"),
        (["--shards", shards, "--out", str(out), "train.num_stps=3"], "did you mean 'train.num_steps'"),
    ):
        done = pretrain(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert text in done.stderr
        assert not out.exists()


def test_dry_run_prints_the_plan_and_writes_nothing(shards: str, tmp_path: Path) -> None:
    done = pretrain("--shards", shards, "--out", str(tmp_path / "run"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "starts at step 0" in done.stdout
    assert not (tmp_path / "run").exists()
