"""Configuration, recipes, schedule, command errors: bad input gets one sentence and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foundation.config import RunConfig, apply_overrides, parse_config
from foundation.errors import ConfigError
from foundation.objectives import build_objective
from foundation.recipes import RECIPES, get_recipe
from foundation.train.optim import build_optimizer, learning_rate
from tests.train.conftest import environment

TINY = get_recipe("polyconfm_tiny")


def test_overrides_are_typed_and_leave_the_rest() -> None:
    overrides = ["train.num_steps=7", "train.lr=2e-4", "objective.local_head=cartesian", "train.betas=[0.8,0.9]", "track.wandb=False"]
    config = apply_overrides(TINY, [*overrides, "deepspeed.zero_optimization.overlap_comm=true"])
    assert (config.train.num_steps, config.train.lr, config.objective.local_head) == (7, 2e-4, "cartesian")
    assert (config.train.betas, config.track.wandb) == ((0.8, 0.9), False)
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    assert config.data == TINY.data
    assert apply_overrides(TINY, []) == TINY


def test_a_configuration_survives_its_file() -> None:
    config = apply_overrides(TINY, ["deepspeed.a.b=[1,2]", "objective.local_head=cartesian"])
    assert parse_config(json.loads(config.model_dump_json())) == config
    assert parse_config(config.model_dump(mode="json")).objective == config.objective


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.num_stepz=7", "unknown key 'train.num_stepz'; did you mean 'train.num_steps'?"),
        ("optimizer.lr=1", "unknown key 'optimizer.lr'; did you mean"),
        ("objective.widht=64", "unknown key 'objective.widht'; did you mean 'objective.width'?"),
        ("train.num_steps", "override 'train.num_steps' is not of the form key=value, such as train.num_steps=100"),
        ("train.=7", "is not of the form key=value"),
        ("train=7", "override 'train=7' replaces the whole group train; name one key, such as train.num_steps"),
        ("train.num_steps=0", "train.num_steps 0 must be greater than or equal to 1"),
        ("train.num_steps=1.5", "train.num_steps 1.5 must be a valid integer"),
        ("train.lr=nan", "train.lr 'nan' must be a finite number"),
        ("train.betas=[0.9,1.0]", "train: betas [0.9, 1.0] must both be in [0, 1); set train.betas=[0.9,0.95]"),
        ("train.precision=fp8", "train.precision 'fp8' must be 'fp32' or 'bf16'"),
        ("train.zero_stage=4", "train.zero_stage 4 must be 0, 1, 2 or 3"),
        ("objective.width=100", "width 100 must be a multiple of 8 x num_heads = 32"),
        ("objective.name=alchemy", "name 'alchemy' must be one of polyconfm"),
        ("deepspeed.train_batch_size=8", "deepspeed.train_batch_size follows from train.micro_batches_per_step; set that instead"),
        ("deepspeed.zero_optimization.stage=1", "deepspeed.zero_optimization.stage follows from train.zero_stage; set that instead"),
        ("deepspeed.optimizer.type=Lamb", "deepspeed.optimizer follows from train.lr, train.betas and train.weight_decay"),
        ("deepspeed.bf16.enabled=true", "deepspeed.bf16 needs train.zero_stage 1, 2 or 3"),
    ],
)
def test_a_bad_override_is_one_sentence(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(TINY, [override])
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_two_overrides_that_contradict_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"override 'deepspeed.a.b=2': a holds the value 1 and no keys; remove one of the two"):
        apply_overrides(TINY, ["deepspeed.a=1", "deepspeed.a.b=2"])


def test_a_bad_file_is_one_sentence() -> None:
    good = TINY.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"unknown key 'train.colour'; did you mean 'train\.\w+'\?"):
        parse_config({**good, "train": {**good["train"], "colour": 1}})
    with pytest.raises(ConfigError, match=r"objective is missing; see config.json of any run"):
        parse_config({"recipe": "x"})


def test_every_field_is_described() -> None:
    groups = [RunConfig, *(type(getattr(TINY, name)) for name in ("data", "train", "track", "objective"))]
    missing = [f"{group.__name__}.{name}" for group in groups for name, field in group.model_fields.items() if not field.description]
    assert [name for name in missing if name.rsplit(".", 1)[1] not in ("data", "train", "track", "name")] == []


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'polyconfm_tny'; did you mean 'polyconfm_tiny'\?"):
        get_recipe("polyconfm_tny")


@pytest.mark.parametrize(
    ("name", "millions"), [("polyconfm_tiny", 1.4), ("polyconfm_small", 9.3), ("polyconfm_base", 139), ("polyconfm_large", 523)]
)
def test_recipes_have_the_sizes_they_claim(name: str, millions: float) -> None:
    assert RECIPES[name]().recipe == name
    with torch.device("meta"):
        model = build_objective(RECIPES[name]().objective)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


def test_learning_rate_rises_then_falls_to_its_floor() -> None:
    settings = apply_overrides(TINY, ["train.num_steps=100", "train.warmup_fraction=0.1", "train.lr=1.0"]).train
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.505)
    assert all(a > b for a, b in zip(rates[10:-1], rates[11:], strict=True))
    assert rates[-1] == pytest.approx(0.01)
    assert learning_rate(10_000, settings) == rates[-1]


def test_only_matrices_of_linear_maps_decay() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    module[2].bias.requires_grad_(False)
    groups = build_optimizer(module, TINY.train).param_groups
    decayed = [[p is module[1].weight for p in group["params"]] for group in groups if group["weight_decay"] > 0]
    assert decayed == [[True]]
    assert sum(len(group["params"]) for group in groups) == 4


def pretrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foundation.pretrain", *arguments], capture_output=True, text=True, check=False, env=environment()
    )


def test_bad_commands_exit_2_with_one_line_and_write_nothing(shards: str, tmp_path: Path) -> None:
    out, full, file = tmp_path / "run", tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").touch()
    file.touch()
    for arguments, text in (
        (["--shards", str(tmp_path / "none"), "--out", str(out)], str(tmp_path / "none")),
        (["--shards", shards, "--out", str(out), "--recipe", "nope"], "unknown recipe 'nope'"),
        (["--shards", shards, "--out", str(out), "--init-from", str(tmp_path / "none")], "does not exist"),
        (["--shards", shards, "--out", str(out), "train.num_stps=3"], "did you mean 'train.num_steps'"),
        (["--shards", shards, "--out", str(file)], f"--out {file} is a file; pass a folder"),
        (["--shards", shards, "--out", str(full), "--overwrite"], "holds files but no run.json, so it is no run folder to delete"),
    ):
        done = pretrain(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert text in done.stderr
        assert not out.exists()
    assert [p.name for p in full.iterdir()] == ["thesis.tex"]


def test_dry_run_prints_the_plan_and_the_configuration_and_writes_nothing(shards: str, tmp_path: Path) -> None:
    done = pretrain("--shards", shards, "--out", str(tmp_path / "run"), "--dry-run", "train.num_steps=77")
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("polyconfm_tiny: 77 steps on 8 chains (1 for validation), starts at step 0, 1 rank")
    assert parse_config(json.loads(rest)) == apply_overrides(TINY, ["train.num_steps=77"])
    assert not (tmp_path / "run").exists()


def test_help_is_light() -> None:
    times = []
    for _ in range(3):  # the fastest of three: others may be using this machine
        start = time.monotonic()
        done = pretrain("--help")
        times.append(time.monotonic() - start)
        assert done.returncode == 0
        assert "--shards" in done.stdout
        if times[-1] < 2:
            break
    assert min(times) < 2
    code = "import sys, foundation.pretrain; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
