"""The arithmetic behind docs/scaling.md, against a simulated ring, the ZeRO paper and its own limits; and the page against its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scaling_model
from benchmarks.scaling_model import Link, Machine, Recipe

ROOT = Path(__file__).parents[2]
LINK = Link(1e-5, 1e9)
BASE = Recipe(140e6, 300e6, 20_000, 32_768, 16, 2)
LOADING = {
    "atoms_per_sample": 300.0,
    "read_cpu_seconds_per_sample": 1e-3,
    "pack_cpu_seconds_per_sample": 1e-4,
    "manifest_cpu_seconds_per_sample": 1e-5,
    "plan_cpu_seconds_per_sample": 1e-6,
    "manifest_memory_bytes_per_sample": 500.0,
    "plan_bytes_per_sample": 50.0,
    "cpu_seconds_per_byte": 5e-9,
}


def simulate_ring(numbers: int, ranks: int) -> tuple[int, int]:
    """Sum a vector over a ring of ranks chunk by chunk, check the sum; messages and numbers that one rank sent."""
    rng = np.random.default_rng(0)
    held = rng.integers(0, 9, (ranks, ranks, numbers // ranks))  # rank, chunk, numbers
    expected = held.sum(0)
    messages = sent = 0
    for phase in range(2):  # partial sums travel, then whole sums
        for step in range(ranks - 1):
            moving = [(rank, (rank - step + phase) % ranks) for rank in range(ranks)]
            values = [held[rank, chunk].copy() for rank, chunk in moving]
            for (rank, chunk), value in zip(moving, values, strict=True):
                there = held[(rank + 1) % ranks, chunk]
                there[:] = value if phase else there + value
            messages, sent = messages + 1, sent + numbers // ranks
    assert (held == expected).all()
    return messages, sent


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_ring_sends_what_the_formula_says(ranks: int) -> None:
    messages, sent = simulate_ring(240, ranks)
    expected = messages * LINK.latency_sec + sent / LINK.bytes_per_sec
    assert scaling_model.ring_all_reduce(240, ranks, LINK) == pytest.approx(expected, rel=1e-12, abs=0)


def test_limits_of_the_ring_and_the_tree() -> None:
    """Many ranks send every byte twice; a tree has fewer messages, a ring of two the same bytes."""
    free = replace(LINK, latency_sec=0.0)
    assert scaling_model.ring_all_reduce(1e9, 10**6, free) == pytest.approx(2.0, rel=1e-5)
    assert scaling_model.ring_all_reduce(1e9, 2, free) == pytest.approx(1.0)
    assert scaling_model.tree_all_reduce(1e9, 1, LINK) == 0.0
    assert scaling_model.tree_all_reduce(1.0, 1024, LINK) < scaling_model.ring_all_reduce(1.0, 1024, LINK) / 50


def test_nodes_are_used() -> None:
    machine = Machine()
    inside = scaling_model.all_reduce(1e9, 8, machine)
    assert inside == pytest.approx(scaling_model.ring_all_reduce(1e9, 8, machine.inside))
    flat = scaling_model.ring_all_reduce(1e9, 64, machine.between)
    assert inside < scaling_model.all_reduce(1e9, 64, machine) < flat  # eight cards share what one would carry
    times = [scaling_model.all_reduce(1e9, gpus, machine) for gpus in (1, 2, 8, 64, 512, 4096)]
    assert times == sorted(times)
    assert times[0] == 0.0


@pytest.mark.parametrize(("stage", "volume"), [(0, 2), (1, 3), (2, 3), (3, 2)])
def test_volumes_of_a_step(stage: int, volume: int) -> None:
    """2 psi for data parallelism; 1.5 times as much for stage 3 of large models, as in the paper; the others as DeepSpeed does them."""
    assert scaling_model.zero_volume(stage, 1e6, 1) == volume * 1e6
    assert scaling_model.zero_volume(3, 2e9, 1) == 3 * 2e9


def test_accumulation_costs_messages_under_zero_2_and_3() -> None:
    assert [scaling_model.zero_volume(stage, 1.0, 4) for stage in range(4)] == [2, 3, 9, 8]


def test_memory_of_the_stages() -> None:
    """One rank holds the same whatever the stage, but for the masters that ZeRO keeps beside the weights; ZeRO 3 divides everything."""
    alone = [scaling_model.memory_bytes(stage, 1.0, 1) for stage in range(4)]
    assert alone == [20, 24, 24, 24]
    many = [scaling_model.memory_bytes(stage, 1.0, 10**9) for stage in range(4)]
    assert many == pytest.approx([20, 12, 8, 0], abs=1e-6)


def test_rates_are_found_again() -> None:
    rows = [{"flops": f, "kernels": k, "cpu_seconds": 2e-9 * f + 3e-6 * k} for f, k in ((1e9, 2e3), (4e9, 2e3), (1e7, 9e3), (6e9, 1e4))]
    found = scaling_model.fit(rows, "flops", "kernels")
    assert found["flops"] == pytest.approx(2e-9)
    assert found["kernels"] == pytest.approx(3e-6)
    assert found["median_relative_error"] < 1e-9
    assert scaling_model.fit([{"bytes": 1.0, "cpu_seconds": 2.0}, {"bytes": 2.0, "cpu_seconds": 1.0}], "bytes")["bytes"] >= 0


def test_a_step_is_the_sum_of_its_terms() -> None:
    made = scaling_model.predict(BASE, 64, LOADING, Machine())
    terms = (made.compute, made.collectives, made.update, made.words, made.loader_stall, made.checkpoint)
    assert min(made.compute, made.collectives, made.words) > 0
    assert made.step == pytest.approx(sum(terms))
    assert made.compute == pytest.approx(20_000 * 5e-6)  # launches, not arithmetic
    assert made.launch_ratio == pytest.approx(0.1 / (300e6 * 32_768 / 0.35 / 989.4e12))
    assert made.micro_batches_per_step == 64


def test_the_model_in_its_limits() -> None:
    machine = Machine()
    alone = scaling_model.predict(BASE, 1, LOADING, machine)
    assert (alone.collectives, alone.words) == (0.0, 0.0)
    efficiencies = [scaling_model.predict(BASE, gpus, LOADING, machine).efficiency for gpus in (16, 64, 512, 4096)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    fast = replace(machine, inside=Link(0, 1e30), between=Link(0, 1e30), memory_bytes_per_sec=1e30)
    assert scaling_model.predict(BASE, 4096, LOADING, fast).efficiency_of_gpus == pytest.approx(1.0)
    slow = scaling_model.predict(BASE, 8, {**LOADING, "read_cpu_seconds_per_sample": 1.0}, machine)
    assert slow.step - slow.checkpoint == pytest.approx(slow.samples_per_step / 8 * 1.0001 / machine.loader_workers, rel=1e-3)


def test_what_is_over_its_bound() -> None:
    machine = Machine()

    def names(gpus: int, recipe: Recipe = BASE) -> dict[str, float]:
        return dict(scaling_model.limits(recipe, scaling_model.predict(recipe, gpus, LOADING, machine), machine))

    batch = "micro_batches_per_step of the recipe is below the number of ranks"
    sockets = "gloo connects every pair: sockets of a process against its open files"
    assert batch not in names(16)
    assert names(64)[batch] == 4
    assert sockets not in names(512)
    assert names(4096)[sockets] == 4
    assert list(names(4096).values()) == sorted(names(4096).values(), reverse=True)
    assert "operations are launched slower than they compute" not in names(8, replace(BASE, kernels_per_micro_batch=100))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return json.loads((ROOT / "docs/results/scaling_model.json").read_text())


def test_the_page_shows_the_numbers(result: dict[str, Any]) -> None:
    """Model and page are those that the committed measurements give."""
    measured = json.loads((ROOT / "docs/results/scaling_measured.json").read_text())
    again = json.loads(json.dumps(scaling_model.model(measured, Machine())))
    assert scaling_model.tables(again) == scaling_model.tables(result)
    page = (ROOT / "docs/scaling.md").read_text()
    assert scaling_model.fill(page, result) == page
    with pytest.raises(ValueError, match="0 places for the table"):
        scaling_model.fill("# another page", result)


def test_deepspeed_sends_what_the_formula_says(result: dict[str, Any]) -> None:
    """Bytes of its collectives, counted on two ranks; parameters that a micro-batch did not reach are not reduced."""
    rows = result["fits"]["zero_volumes"]
    assert {(row["stage"], row["accumulate"]) for row in rows} == {(stage, k) for stage in range(4) for k in (1, 2)}
    for row in rows:
        assert row["sent"] == pytest.approx(row["expected"], rel=0.1), row
