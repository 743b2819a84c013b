"""What a YAML may say, and the sentence for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.spec import (
    DesignSpec,
    FinetuneSpec,
    PreprocessSpec,
    PretrainSpec,
    SmokeSpec,
    build_options,
    command_arguments,
    design_options,
    load_spec,
    property_options,
)
from data_shards.errors import InputError

CLUSTER = Path(__file__).parents[2] / "cluster"
PRETRAIN, SMOKE, PREPROCESS = (CLUSTER / name for name in ("pretrain.yaml", "smoke.yaml", "preprocess.yaml"))


def test_the_files_of_the_project_are_valid() -> None:
    assert isinstance(load_spec(PRETRAIN, []), PretrainSpec)
    assert isinstance(load_spec(SMOKE, []), SmokeSpec)
    assert isinstance(load_spec(PREPROCESS, []), PreprocessSpec)


def test_assignments_reach_the_spec_and_the_recipe() -> None:
    spec = load_spec(
        PRETRAIN, ["out=7", "resources.num_workers=2", "train.lr=1e-3", "deepspeed.zero_optimization.stage=1", "overrides.train.seed=3"]
    )
    assert isinstance(spec, PretrainSpec)
    assert spec.out == "7"
    assert spec.resources.num_workers == 2
    assert spec.overrides == {"train.lr": "1e-3", "deepspeed.zero_optimization.stage": 1, "train.seed": 3}


def test_assignments_reach_the_build() -> None:
    spec = load_spec(SMOKE, ["build.limit=3"])
    assert isinstance(spec, SmokeSpec)
    assert spec.build["limit"] == 3


def test_build_options_become_flags() -> None:
    options = {"num_units": 5, "overwrite": True, "dry_run": False, "column": None, "out": "x"}
    arguments = command_arguments(options, build_options())
    assert arguments == ["--num-units", "5", "--overwrite", "--out", "x"]


def test_a_property_job_says_what_the_command_understands() -> None:
    spec = load_spec(CLUSTER / "finetune_tg.yaml", ["property.data=my.csv", "property.baseline=false", "property.members=2"])
    assert isinstance(spec, FinetuneSpec)
    arguments = command_arguments(spec.property, property_options())
    expected = ["--task", "tg", "--out", "runs/tg", "--checkpoint", "small", "--data", "my.csv", "--no-baseline", "--members", "2"]
    assert arguments == expected
    with pytest.raises(InputError, match=r"unknown key 'property\.chekpoint'; did you mean 'checkpoint'"):
        load_spec(CLUSTER / "finetune_tg.yaml", ["property.chekpoint=x"])


def test_a_design_job_says_what_the_command_understands() -> None:
    spec = load_spec(CLUSTER / "design.yaml", ["design.data=gas.csv", "design.task=gas", "design.steps=50"])
    assert isinstance(spec, DesignSpec)
    arguments = command_arguments(spec.design, design_options())
    assert arguments == ["--task", "gas", "--out", "runs/design-tg", "--checkpoint", "small", "--steps", "50", "--data", "gas.csv"]
    with pytest.raises(InputError, match=r"unknown key 'design\.step'; did you mean 'steps'"):
        load_spec(CLUSTER / "design.yaml", ["design.step=1"])


@pytest.mark.parametrize(
    ("file", "assignments", "sentence"),
    [
        (PRETRAIN, ["shard=3"], "unknown key 'shard'; did you mean 'shards'?"),
        (PRETRAIN, ["resources.nm_workers=2"], "unknown key 'resources.nm_workers'; did you mean 'num_workers'?"),
        (PRETRAIN, ["resources.num_workers=0"], "resources.num_workers 0 must be 'auto' or greater than or equal to 1"),
        (PRETRAIN, ["resources.num_workers=many"], "resources.num_workers 'many' must be 'auto' or a valid integer"),
        (PRETRAIN, ["resources.gpus_per_worker=-1"], "resources.gpus_per_worker -1 must be 'auto' or greater than or equal to 0"),
        (
            PRETRAIN,
            ["resources.max_workers=4", "resources.num_workers=2"],
            "resources: max_workers 4 needs num_workers=auto; give num_workers=4",
        ),
        (PRETRAIN, ["resources.max_workers=4", "resources.min_workers=5"], "resources: min_workers 5 must be at most 4; lower it"),
        (PRETRAIN, ["resources.num_workers=4", "resources.min_workers=5"], "resources: min_workers 5 must be at most 4; lower it"),
        (PRETRAIN, ["resources.restart_timeout_sec=-1"], "resources.restart_timeout_sec -1 must be greater than or equal to 0"),
        (PRETRAIN, ["resources=2"], "resources 2 must be a group of keys"),
        (PRETRAIN, ["resources=2", "resources.num_workers=2"], "resources is not a group of keys"),
        (PRETRAIN, ["overrides=3"], "replaces the whole group overrides; name one key, such as overrides.train.num_steps=100"),
        (PRETRAIN, ["verify=all"], "verify 'all' must be 'checksums' or 'sizes'"),
        (PRETRAIN, ["train.num_steps"], "'train.num_steps' must be key=value, such as train.num_steps=100"),
        (PRETRAIN, ["train..num_steps=2"], "must be key=value"),
        (PRETRAIN, ["kind=smoke"], "the kind of a job cannot be changed here"),
        (SMOKE, ["build.limt=2"], "unknown key 'build.limt'; did you mean 'limit'?"),
        (SMOKE, ["build.out=x"], "unknown key 'build.out'"),
        (PREPROCESS, ["build.out="], "build.out is missing; name the folder that the shards go to"),
        (PREPROCESS, ["train.lr=3"], "unknown key 'train.lr'; known: kind, build"),
        (Path("nowhere.yaml"), [], "nowhere.yaml cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, assignments: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        load_spec(file, assignments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [", "is not YAML"),
        ("- kind", "must hold keys and values, found list"),
        ("kind: pretrian", "kind 'pretrian' must be one of preprocess, finetune, design, pretrain, smoke; did you mean 'pretrain'?"),
        ("shards: x", "kind None must be one of"),
        ("kind: pretrain\nshards: x", "out is missing; run folder"),
        ("kind: pretrain\nshards: x\nout: 3", "out 3 must be a valid string"),
        ("kind: pretrain\nshards: {a: 1, b: 0}\nout: y", "must be a valid string or greater than 0"),
        ("kind: pretrain\nshards: x\nout: y\nlearning_rate: 3", "unknown key 'learning_rate'"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_spec(file, [])
    assert sentence in str(error.value)
