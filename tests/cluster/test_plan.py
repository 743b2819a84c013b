"""From YAML and cluster to what will run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.plan import Plan, make_plan
from cluster.spec import PretrainSpec
from data_shards.errors import InputError


def plan(available: dict[str, float], overrides: dict[str, object] | None = None, **fields: object) -> Plan:
    spec = PretrainSpec.model_validate({"kind": "pretrain", "shards": "/s", "out": "/o", "overrides": overrides or {}, **fields})
    return make_plan(spec, available)


def test_gpus_are_taken_where_there_are_any() -> None:
    chosen = plan({"CPU": 64, "GPU": 8}, {"train.micro_batches_per_step": 8})
    assert (chosen.num_workers, chosen.gpus_per_worker, chosen.config.recipe) == (8, 1, "polyconfm_small")
    assert chosen.notes == ()


def test_cpus_with_a_recipe_that_fits_where_there_are_none() -> None:
    chosen = plan({"CPU": 2}, {"train.micro_batches_per_step": 2})
    assert (chosen.num_workers, chosen.gpus_per_worker, chosen.config.recipe) == (2, 0, "polyconfm_tiny")


def test_a_named_recipe_is_kept() -> None:
    assert plan({"CPU": 2}, recipe="polyconfm_small").config.recipe == "polyconfm_small"


@pytest.mark.parametrize(("cpus", "micro_batches", "workers"), [(1, 4, 1), (3, 4, 2), (4, 4, 4), (5, 6, 3), (7, 5, 5), (100, 6, 6)])
def test_auto_takes_the_most_workers_that_divide_the_micro_batches(cpus: int, micro_batches: int, workers: int) -> None:
    chosen = plan({"CPU": cpus}, {"train.micro_batches_per_step": micro_batches})
    assert chosen.num_workers == workers
    assert bool(chosen.notes) == (workers < cpus)


def test_the_note_says_how_to_use_the_rest() -> None:
    (note,) = plan({"CPU": 8}, {"train.micro_batches_per_step": 2}).notes
    assert "room for 8 workers" in note
    assert "train.micro_batches_per_step=8" in note


def test_cores_of_a_worker_count() -> None:
    chosen = plan({"CPU": 8}, {"train.micro_batches_per_step": 8}, resources={"cpus_per_worker": 4})
    assert chosen.num_workers == 2


@pytest.mark.parametrize(
    ("cpus", "resources", "workers"),
    [
        (4, {}, (4, 1)),
        (4, {"min_workers": 2}, (4, 2)),
        (4, {"min_workers": 3}, (4, 4)),
        (2, {"max_workers": 6}, (4, 1)),
        (4, {"max_workers": 3}, (2, 1)),
        (4, {"num_workers": 2}, (2, 2)),
        (4, {"num_workers": 4, "min_workers": 1}, (4, 1)),
        (3, {"num_workers": 4, "min_workers": 2}, (4, 2)),
    ],
)
def test_sizes_after_a_loss_lie_between_the_fewest_and_the_most(cpus: int, resources: dict[str, int], workers: tuple[int, int]) -> None:
    """All share four micro-batches; a size that the cluster lacks now is waited for."""
    chosen = plan({"CPU": cpus}, {"train.micro_batches_per_step": 4}, resources=resources)
    assert (chosen.num_workers, chosen.min_workers) == workers


def test_overrides_reach_the_recipe_and_text_numbers_are_numbers() -> None:
    chosen = plan({"CPU": 2}, {"train.num_steps": 7, "train.lr": "1e-4", "train.precision": "bf16", "deepspeed.wall_clock_breakdown": True})
    assert (chosen.config.train.num_steps, chosen.config.train.lr, chosen.config.train.precision) == (7, 1e-4, "bf16")
    assert chosen.config.deepspeed == {"wall_clock_breakdown": True}


@pytest.mark.parametrize(
    ("available", "overrides", "fields", "sentence"),
    [
        ({"CPU": 2}, {}, {"resources": {"num_workers": 3}}, "the job needs 3 x 1 CPU, the cluster has 2 CPU and 0 GPU"),
        ({"CPU": 2}, {}, {"resources": {"gpus_per_worker": 1}}, "the job needs 1 x 1 CPU and 1 x 1 GPU, the cluster has 2 CPU and 0 GPU"),
        ({"CPU": 1}, {}, {"resources": {"cpus_per_worker": 2}}, "the job needs 1 x 2 CPU"),
        (
            {"CPU": 4},
            {"train.micro_batches_per_step": 4},
            {"resources": {"num_workers": 3}},
            "train.micro_batches_per_step 4 must be a multiple of resources.num_workers 3; set train.micro_batches_per_step=3",
        ),
        ({"CPU": 1}, {}, {"resources": {"min_workers": 2}}, "the job needs 2 x 1 CPU, the cluster has 1 CPU and 0 GPU"),
        (
            {"CPU": 8},
            {"train.micro_batches_per_step": 4},
            {"resources": {"min_workers": 5}},
            "no number of workers from 5 to 8 divides train.micro_batches_per_step 4; set train.micro_batches_per_step=8",
        ),
        ({"CPU": 2}, {"train.num_stepz": 4}, {}, "unknown key 'train.num_stepz'; did you mean 'train.num_steps'?"),
        ({"CPU": 2}, {}, {"recipe": "polyconfm_tny"}, "unknown recipe 'polyconfm_tny'; did you mean 'polyconfm_tiny'?"),
        ({"CPU": 2}, {}, {"out": "s3://bucket/run"}, "out 's3://bucket/run' must be a folder that every node sees"),
    ],
)
def test_a_plan_that_cannot_be(available: dict[str, float], overrides: dict[str, object], fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        plan(available, overrides, **fields)
    assert sentence in str(error.value)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYMER_HOME", str(tmp_path))
    chosen = plan({"CPU": 2}, shards="a/b", out="c")
    assert (chosen.shards, chosen.out) == (str(tmp_path / "a/b"), str(tmp_path / "c"))
    assert plan({"CPU": 2}, shards="s3://bucket/a").shards == "s3://bucket/a"
    mixed = plan({"CPU": 2}, shards={"a": 0.8, "s3://bucket/b": 0.2})
    assert mixed.shards == {str(tmp_path / "a"): 0.8, "s3://bucket/b": 0.2}
    assert f"shards   {tmp_path}/a=0.8 s3://bucket/b=0.2" in mixed.lines()
    probed = plan({"CPU": 2}, {"train.probe_shards": "s3://bucket/p", "train.probe_tables": ["tg.csv:tg_celsius"]}).config.train
    assert (probed.probe_shards, probed.probe_tables) == ("s3://bucket/p", (str(tmp_path / "tg.csv:tg_celsius"),))
    assert chosen.config.train.probe_shards is None


def test_the_plan_reads_as_a_few_lines() -> None:
    text = "\n".join(plan({"CPU": 4, "GPU": 2}, {"train.micro_batches_per_step": 2}).lines())
    assert "workers  2 x (1 GPU + 1 CPU), at least 1 after a loss, at most 3 restarts without progress" in text
    assert "recipe   polyconfm_small" in text
