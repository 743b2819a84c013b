"""What a worker does with an exception: which ones deserve another try, which end the job at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.plan import Plan
from cluster.restarts import RankFailure
from cluster.workers import Ledger, Notes, train_worker, worker_environment
from data_shards.errors import InputError
from foundation.config import apply_overrides
from foundation.recipes import get_recipe
from foundation.train.health import StopRequest

PLAN = Plan(get_recipe("polyconfm_tiny"), "/s", "/o", 2, 1, 0.0, 2.0, 0, 60.0, "checksums", ())


class Remote:
    """A Ray actor handle without Ray: `ledger.method.remote(...)` calls at once."""

    def __init__(self, actor: Ledger) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ledger, Callable[..., None]], None]:
    """Run train_worker as rank 1 of 2 with another training loop."""
    import ray
    import ray.train

    import foundation.train.loop

    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)

    def run(ledger: Ledger, loop: Callable[..., None]) -> None:
        monkeypatch.setattr(foundation.train.loop, "train", loop)
        train_worker({"config": PLAN.config.model_dump(mode="json"), "shards": "/s", "out": "/o", "ledger": Remote(ledger)})

    return run


def raising(error: Exception) -> Callable[..., None]:
    def train(*args: Any, **kwargs: Any) -> None:
        raise error

    return train


def test_the_loop_gets_what_the_plan_says(work: Callable[..., None]) -> None:
    seen: list[Any] = []
    ledger = Ledger()
    work(ledger, lambda *args, **kwargs: seen.append((args, kwargs)))
    assert ledger.read() == Notes(begun=frozenset({1}))
    ((places, named),) = seen
    assert places == (PLAN.config, Path("/o"), "/s")
    assert isinstance(named.pop("stop"), StopRequest)
    assert named == {"rank": 1, "world_size": 2}


def test_bad_input_is_kept_in_one_line(work: Callable[..., None]) -> None:
    ledger = Ledger()
    with pytest.raises(InputError):
        work(ledger, raising(InputError("shard 3\nis torn")))
    assert ledger.read().bad_input == "shard 3 is torn"


def test_a_defect_is_kept(work: Callable[..., None]) -> None:
    ledger = Ledger()
    with pytest.raises(TypeError):
        work(ledger, raising(TypeError("no such argument")))
    assert ledger.read().defect == "TypeError: no such argument"


@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), ConnectionResetError("gone")])
def test_a_lost_peer_deserves_another_try(work: Callable[..., None], error: Exception) -> None:
    ledger = Ledger()
    with pytest.raises(type(error)):
        work(ledger, raising(error))
    assert ledger.read() == Notes(begun=frozenset({1}), failures={1: RankFailure(type(error).__name__, str(error))})


def test_after_bad_input_nothing_is_tried_again(work: Callable[..., None]) -> None:
    ledger = Ledger()
    ledger.blame_input("first")
    ledger.blame_input("second")
    work(ledger, raising(AssertionError("must not be called")))
    assert ledger.read().bad_input == "first"


def test_what_is_said_of_an_attempt_ends_with_it() -> None:
    ledger = Ledger()
    ledger.begin(0)
    ledger.fail(0, RankFailure("OSError", "gone"))
    ledger.stop()
    ledger.blame_program("KeyError: 'x'")
    ledger.open(frozenset({("/o/stacks/rank-0.txt", 5)}))
    assert ledger.read() == Notes(None, "KeyError: 'x'", True, old_stacks=frozenset({("/o/stacks/rank-0.txt", 5)}))


def test_a_request_to_stop_reaches_the_loop_of_rank_zero(work: Callable[..., None]) -> None:
    import ray.train

    ray.train.get_context = lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 2)
    ledger = Ledger()

    def loop(*args: Any, stop: StopRequest, **kwargs: Any) -> None:
        ledger.stop()
        until = time.monotonic() + 30
        while not stop.asked and time.monotonic() < until:
            time.sleep(0.01)
        assert stop.asked

    work(ledger, loop)


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
