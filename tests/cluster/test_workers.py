"""What a worker does with an exception: which ones deserve another try, which end the job at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.plan import Plan
from cluster.workers import Verdict, train_worker, worker_environment
from data_shards.errors import InputError
from foundation.config import apply_overrides
from foundation.recipes import get_recipe

PLAN = Plan(get_recipe("polyconfm_tiny"), "/s", "/o", 2, 0.0, 2.0, 0, "checksums", ())


class Remote:
    """A Ray actor handle without Ray: `verdict.method.remote(...)` calls at once."""

    def __init__(self, actor: Verdict) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Verdict, Callable[..., None]], None]:
    """Run train_worker as rank 1 of 2 with another training loop."""
    import ray
    import ray.train

    import foundation.train.loop

    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)

    def run(verdict: Verdict, loop: Callable[..., None]) -> None:
        monkeypatch.setattr(foundation.train.loop, "train", loop)
        train_worker({"config": PLAN.config.model_dump(mode="json"), "shards": "/s", "out": "/o", "verdict": Remote(verdict)})

    return run


def raising(error: Exception) -> Callable[..., None]:
    def train(*args: Any, **kwargs: Any) -> None:
        raise error

    return train


def test_the_loop_gets_what_the_plan_says(work: Callable[..., None]) -> None:
    seen: list[Any] = []
    work(Verdict(), lambda *args, **kwargs: seen.append((args, kwargs)))
    assert seen == [((PLAN.config, Path("/o"), "/s"), {"rank": 1, "world_size": 2})]


def test_bad_input_is_kept_in_one_line(work: Callable[..., None]) -> None:
    verdict = Verdict()
    with pytest.raises(InputError):
        work(verdict, raising(InputError("shard 3\nis torn")))
    assert verdict.read() == ("shard 3 is torn", None)


def test_a_defect_is_kept(work: Callable[..., None]) -> None:
    verdict = Verdict()
    with pytest.raises(TypeError):
        work(verdict, raising(TypeError("no such argument")))
    assert verdict.read() == (None, "TypeError: no such argument")


@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), ConnectionResetError("gone")])
def test_a_lost_peer_deserves_another_try(work: Callable[..., None], error: Exception) -> None:
    verdict = Verdict()
    with pytest.raises(type(error)):
        work(verdict, raising(error))
    assert verdict.read() == (None, None)


def test_after_a_verdict_nothing_is_tried_again(work: Callable[..., None]) -> None:
    verdict = Verdict()
    verdict.blame_input("first")
    verdict.blame_input("second")
    work(verdict, raising(AssertionError("must not be called")))
    assert verdict.read() == ("first", None)


def test_workers_get_threads_accelerator_and_an_offline_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert worker_environment(PLAN) == {
        "OMP_NUM_THREADS": "2",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "WANDB_MODE": "offline",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    asked = apply_overrides(PLAN.config, ["track.mode=online"])
    assert worker_environment(replace(PLAN, config=asked))["WANDB_MODE"] == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert worker_environment(replace(PLAN, gpus_per_worker=1.0, cpus_per_worker=0.5)) == {
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "WANDB_MODE": "online",
    }
