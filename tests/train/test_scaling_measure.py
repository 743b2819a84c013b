"""The measurement behind the scaling model calls what training calls: one small round of its parts in this process."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import scaling_measure
from data_shards.reader import open_shards
from foundation.objectives import build_objective
from foundation.train.engine import Engine
from foundation.train.ranks import Ranks
from tests.train.conftest import small

ONE_CORE = small("data.token_budget=64", "train.micro_batches_per_step=2")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_measure, "WIDTHS", (32,))
    monkeypatch.setattr(scaling_measure, "BUDGETS", (64, 128))
    monkeypatch.setattr(scaling_measure, "PLANNED", (100, 300))


def test_two_ranks_read_the_steps_of_one(shards: str) -> None:
    alone, first, second = (
        list(itertools.islice(scaling_measure.steps_of(ONE_CORE, shards, *rank), 3)) for rank in ((0, 1), (0, 2), (1, 2))
    )
    for whole, *halves in zip(alone, first, second, strict=True):
        assert [m.noise_seed for m in whole.micro_batches] == [half.micro_batches[0].noise_seed for half in halves]
        assert [half.samples_seen for half in halves] == [whole.samples_seen] * 2


def test_a_step_changes_the_weights(shards: str) -> None:
    with Ranks.start(0, 1) as ranks:
        engine = Engine(build_objective(ONE_CORE.objective), ONE_CORE, ranks)
        before = {name: parameter.detach().clone() for name, parameter in engine.parameters.items()}
        scaling_measure.train_step(engine, next(scaling_measure.steps_of(ONE_CORE, shards)))
        assert any(not torch.equal(before[name], parameter) for name, parameter in engine.parameters.items())


def test_operations_grow_with_the_batch_and_bytes_are_those_on_disk(shards: str) -> None:
    low, high = scaling_measure.micro_batches(shards)
    assert low["atoms"] < high["atoms"]
    assert high["flops"] / high["atoms"] == pytest.approx(low["flops"] / low["atoms"], rel=0.3)  # a large batch costs its atoms
    assert low["parameters"] == high["parameters"] > 10_000
    opened = open_shards(shards)
    found = scaling_measure.loading(opened)
    entries = opened.samples("train")
    assert found["atoms_per_sample"] == pytest.approx(sum(e.atoms_per_unit * e.num_units for e in entries) / len(entries))
    stored = sum(shard.bytes for _, shard in opened.manifest.shards())
    assert found["bytes_per_sample"] == pytest.approx(stored / sum(shard.num_samples for _, shard in opened.manifest.shards()))
