"""What is designed for: tasks of one or several properties, and targets such as o2=100, tg>450 or 300<tg<350."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.tasks import TASKS, Task, get_task
from foundation.errors import InputError

TOGETHER = {"gas": ("o2", "n2", "co2")}  # tasks of several properties; every property is a task of its own
STRUCTURES = "structures"  # no property: what polymers look like
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_POINT = re.compile(rf"(?P<name>\w+)\s*=\s*(?P<value>{_NUMBER})")
_SIDE = re.compile(rf"(?P<name>\w+)\s*(?P<sign>[<>])=?\s*(?P<value>{_NUMBER})")
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\s*<=?\s*(?P<name>\w+)\s*<=?\s*(?P<high>{_NUMBER})")
FAR = 1.5  # how far beyond the training values a target may lie, in their interquartile ranges


def properties_of(task: str) -> tuple[Task, ...]:
    """Properties that a design task has, none for `structures`.

    Raises:
        InputError: no such task.
    """
    wanted = task.strip().lower()
    if wanted == STRUCTURES:
        return ()
    if wanted in TOGETHER:
        return tuple(TASKS[name] for name in TOGETHER[wanted])
    try:
        return (get_task(wanted),)
    except InputError:
        known = ", ".join([*TOGETHER, STRUCTURES, *TASKS])
        raise InputError(f"there is no task {task!r}; --task must be one of {known}") from None


@dataclass(frozen=True)
class Target:
    """A value or a range of one property, in its unit.

    Attributes:
        task: the property.
        low, high: ends of the range, equal for a value; infinite where a side is open.
    """

    task: Task
    low: float
    high: float

    @property
    def is_value(self) -> bool:
        """Whether it is one value."""
        return self.low == self.high

    def __str__(self) -> str:
        if self.is_value:
            return f"{self.task.name}={self.low:g}"
        if np.isinf(self.low) or np.isinf(self.high):
            return f"{self.task.name}>{self.low:g}" if np.isinf(self.high) else f"{self.task.name}<{self.high:g}"
        return f"{self.low:g}<{self.task.name}<{self.high:g}"

    def expected(self, values: NDArray[np.floating], deviations: NDArray[np.floating]) -> NDArray[np.float64]:
        """(K,) expected squares of the miss of learned values that are known up to normal errors of these deviations."""
        low, high = self.learned
        return _beyond(low - values, deviations) + _beyond(values - high, deviations)

    @property
    def learned(self) -> tuple[float, float]:
        """The ends as learned values."""
        ends = [end if np.isinf(end) else float(self.task.forward(np.array([end]))[0]) for end in (self.low, self.high)]
        return ends[0], ends[1]

    def wish(self, number: int, values: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
        """(number,) learned values to ask for: the value, or values spread as the training values in the range are.

        An open side reaches as far as the training values do, or, where the range begins beyond them, a quarter of their interquartile
        range further.

        Args:
            number: of polymers.
            values: (G,) learned values of training.
            rng: of the draws.
        """
        low, high = self.learned
        if low == high:
            return np.full(number, low)
        inside = values[(values >= low) & (values <= high)]
        if len(inside) >= 5:
            return rng.choice(inside, number)
        step = 0.25 * float(np.subtract(*np.percentile(values, [75, 25])))
        low = low if np.isfinite(low) else min(float(values.min()), high - step)
        high = high if np.isfinite(high) else max(float(values.max()), low + step)
        return rng.uniform(low, high, number)


def _beyond(mean: NDArray[np.floating], deviation: NDArray[np.floating]) -> NDArray[np.float64]:
    """E[max(x, 0)^2] of normal x."""
    from scipy.stats import norm

    there = np.isfinite(mean)  # an open side is infinitely far
    mean, scale = np.where(there, mean, 0.0), np.maximum(deviation, 1e-12)
    found = (mean**2 + scale**2) * norm.cdf(mean / scale) + mean * scale * norm.pdf(mean / scale)
    return np.where(there, found, 0.0)


def parse_targets(words: Sequence[str], tasks: Sequence[Task]) -> tuple[Target, ...]:
    """Targets as the user wrote them.

    Args:
        words: such as o2=100, tg>450, 300<tg<350.
        tasks: that the model knows.

    Raises:
        InputError: not a target, another property, or one twice.
    """
    found = [_target(word, tasks) for word in words]
    names = [own.task.name for own in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--target names {twice} more than once; give one value or one range, such as 300<{twice}<350")
    return tuple(found)


def _target(word: str, tasks: Sequence[Task]) -> Target:
    text = word.strip()
    match = _POINT.fullmatch(text) or _SIDE.fullmatch(text) or _RANGE.fullmatch(text)
    known = {task.name: task for task in tasks}
    example = next(iter(known), "tg")
    if match is None:
        raise InputError(
            f"--target {word!r} must be a value or a range, such as {example}=100, {example}>100 or 50<{example}<100; change it"
        )
    parts = match.groupdict()
    name = parts["name"].lower()
    if name not in known:
        raise InputError(f"--target {word!r} names a property that this model does not know; it knows {', '.join(known) or 'none'}")
    if "low" in parts:
        low, high = float(parts["low"]), float(parts["high"])
    elif "sign" in parts:
        value = float(parts["value"])
        low, high = (value, np.inf) if parts["sign"] == ">" else (-np.inf, value)
    else:
        low = high = float(parts["value"])
    if low > high:
        raise InputError(f"--target {word!r} has no value, as {low:g} is above {high:g}; exchange them")
    if known[name].transform == "log" and min(high, low if np.isfinite(low) else high) <= 0:
        raise InputError(f"--target {word!r} must be above 0 {known[name].unit}; change it")
    return Target(known[name], low, high)


def check_reach(targets: Sequence[Target], values: NDArray[np.floating], tasks: Sequence[Task]) -> list[str]:
    """Sentences about targets that lie beyond the training values.

    Args:
        targets: asked for.
        values: (G, P) learned values of training, NaN where unknown.
        tasks: of the columns.

    Raises:
        InputError: a target so far away that nothing was learned about it.
    """
    said = []
    for target in targets:
        own = values[:, [task.name for task in tasks].index(target.task.name)]
        own = own[np.isfinite(own)]
        least, most = float(own.min()), float(own.max())
        low, high = target.learned
        away = max(low - most, least - high, 0.0)
        ends = target.task.backward(np.array([least, most]))
        known = f"the training values end at {ends[0]:.4g} and {ends[1]:.4g} {target.task.unit}"
        if away > FAR * float(np.subtract(*np.percentile(own, [75, 25]))):
            raise InputError(f"--target {target} is out of reach, {known}; choose a target nearer to them")
        if away > 0:
            said.append(f"{target} lies beyond the training data, {known}: predictions there are extrapolated")
    return said


__all__ = ["STRUCTURES", "TOGETHER", "Target", "check_reach", "parse_targets", "properties_of"]
