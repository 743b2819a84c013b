"""Counting failures, finding their cause, sizes that share the work."""

from __future__ import annotations

import pytest

from cluster.restarts import Failure, RankFailure, Restarts, cause, sizes


def lost(step: int, checkpoint: int) -> Failure:
    return Failure("rank 1: lost (actor died)", False, step, checkpoint)


def error(step: int, checkpoint: int, message: str = "index 7 of 0x7f3a is out of bounds") -> Failure:
    return Failure(f"rank 0: RuntimeError: {message}", True, step, checkpoint)


def test_failures_without_progress_are_limited() -> None:
    restarts = Restarts(2)
    for step, exhausted in ((3, False), (4, False), (3, True)):
        assert not restarts.see(lost(step, 0)), "a lost process may be lost again at the same step"
        assert restarts.exhausted == exhausted
    assert restarts.words() == " after 3 restarts (last: rank 1: lost (actor died))"


def test_a_new_checkpoint_sets_the_count_to_zero() -> None:
    restarts = Restarts(1)
    for checkpoint in (0, 10, 20, 30):
        restarts.see(lost(checkpoint + 3, checkpoint))
        assert not restarts.exhausted
    restarts.see(lost(33, 30))
    assert restarts.exhausted
    assert restarts.total == 5


def test_the_same_error_at_the_same_step_comes_for_ever() -> None:
    restarts = Restarts(100)
    assert not restarts.see(error(5, 4))
    assert restarts.see(error(5, 4, "index 8 of 0x55d0 is out of bounds"))


@pytest.mark.parametrize("second", [error(6, 4), error(5, 4, "out of memory"), lost(5, 4)])
def test_another_error_or_another_step_does_not(second: Failure) -> None:
    restarts = Restarts(100)
    restarts.see(error(5, 4))
    assert not restarts.see(second)


@pytest.mark.parametrize(
    ("failures", "found"),
    [
        (
            {0: RankFailure("RuntimeError", "[gloo] Connection closed by peer"), 1: RankFailure(None, "lost (exit code 9)")},
            ("rank 1: lost (exit code 9)", False),
        ),
        (
            {0: RankFailure("RuntimeError", "Connection reset"), 1: RankFailure("RuntimeError", "shapes differ")},
            ("rank 1: RuntimeError: shapes differ", True),
        ),
        ({2: RankFailure("OSError", "broken pipe")}, ("rank 2: OSError: broken pipe", False)),
        ({-1: RankFailure(None, "the group did not start")}, ("the group did not start", False)),
    ],
)
def test_the_cause_is_not_the_rank_that_merely_noticed(failures: dict[int, RankFailure], found: tuple[str, bool]) -> None:
    assert cause(failures) == found


def test_sizes_share_the_micro_batches_and_the_largest_comes_first() -> None:
    assert sizes(12, 1, 8) == [6, 4, 3, 2, 1]
    assert sizes(4, 3, 3) == []
    assert all(12 % size == 0 for size in sizes(12, 1, 12))
