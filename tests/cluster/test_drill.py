"""The fault drill: its plan and its book-keeping here, all of it in the slow test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.drill import APART, FAULTS, STEPS, drill, plan
from benchmarks.drill_report import page, samples_read


def test_the_plan_is_twenty_faults_at_random_but_repeatable_steps() -> None:
    faults = plan(0, FAULTS)
    assert Counter(fault.kind for fault in faults) == FAULTS
    assert len(faults) == 20
    steps = [fault.at for fault in faults]
    assert steps == sorted(set(steps))
    assert 5 < steps[0] < steps[-1] < STEPS - APART
    assert min(b - a for a, b in zip(steps, steps[1:], strict=False)) >= APART
    assert [(f.kind, f.at) for f in plan(0, FAULTS)] == [(f.kind, f.at) for f in faults] != [(f.kind, f.at) for f in plan(1, FAULTS)]


def test_samples_are_put_into_the_order_of_the_stream_and_a_difference_is_seen(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("1 2 0 5\n2 6 3 4\n")
    (tmp_path / "2").write_text("1 4 1 2\n1 2 0 5\n")
    assert samples_read(tmp_path) == [0, 5, 1, 2, 3, 4]
    (tmp_path / "3").write_text("1 2 5 0\n")
    with pytest.raises(AssertionError, match="micro-batch 2 was read as"):
        samples_read(tmp_path)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(3600)
def test_twenty_faults_lose_nothing() -> None:
    result = drill(seed=0)
    print(page(result))
    assert result["passed"], page(result)
