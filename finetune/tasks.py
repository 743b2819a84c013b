"""The properties that are learned: unit, transform, metric, where the numbers come from, and which may be trained together.

`teachers` are tasks whose labels another task may be trained with: as other outputs of the network, never as more rows of the same one.
Values of one quantity by different methods are not pooled: measured, molecular dynamics of another protocol, crystal and chain. The
polymers of a test fold are left out of the teachers too; folds are the same in every public table, so that `fold` alone does it. `leaks`
are tasks that nearly give away the answer for the same polymer: with them that rule decides the result, and who measures on polymers that
were kept apart has to know that these tables may still hold them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.errors import InputError

KUENNETH = "Kuenneth et al., Patterns 2 (2021) 100238; density functional theory"
KAGGLE = "Liu et al., NeurIPS Open Polymer Prediction (Kaggle, 2025); molecular dynamics"
GAS = "Liu et al., NeurIPS 2024 (Graph-DiT, arXiv:2401.13858), from the literature of membranes; measured"
YOURS = "your table"
POLYINFO = "PoLyInfo (NIMS) through Liu et al., KDD 2022 (GREA), and PolyMetriX (Zenodo 15210035); measured"


@dataclass(frozen=True)
class Task:
    """A property.

    Attributes:
        name: as on the command line.
        title: in words.
        unit: of the values in tables and of errors; "1" where there is none.
        transform: what is learned, the value itself or its natural logarithm.
        metric: the error that the task is judged by.
        citation: of the public table with this name.
        columns: what other public tables call it, such as pi1070.csv.
        teachers: tasks that may be trained together with it.
        leaks: tasks that nearly give away its value for the same polymer.
    """

    name: str
    title: str
    unit: str
    transform: Literal["none", "log"]
    metric: Literal["rmse", "mae"]
    citation: str
    columns: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    def forward(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values of a table -> what is learned.

        Raises:
            InputError: the logarithm of a value that is not positive.
        """
        if self.transform == "none":
            return np.asarray(values, dtype=np.float64)
        if (np.asarray(values) <= 0).any():
            raise InputError(
                f"task {self.name} learns the logarithm, but the smallest value is {np.min(values):g} and must be > 0; mend the column"
            )
        return np.log(values)

    def backward(self, learned: NDArray[np.floating]) -> NDArray[np.float64]:
        """What is learned -> values in `unit`. Increasing, so that quantiles and intervals go through it as they are."""
        return np.exp(learned) if self.transform == "log" else np.asarray(learned, dtype=np.float64)


DFT = ("egc", "egb", "eea", "ei", "eps", "nc", "eat")  # they share most of their polymers
MD = ("density", "rg", "tc", "ffv")
GASES = {"o2": "oxygen", "n2": "nitrogen", "co2": "carbon dioxide", "ch4": "methane"}


def _others(family: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in family if other != name)


# The logarithm: of permeabilities, which span nine powers of ten, and of thermal conductivity, which is positive, spans a factor of 34, is
# skewed, and scatters by a share of its value. The others span less than a factor of 5, may be negative (temperatures in degrees Celsius,
# energies), or come near 0 (gaps, crystallinity).
# egc has no teachers: egb, eea and ei are known for many of its polymers that are kept apart for testing, and the rest are few.
# tg has ffv only: the tables of Tg by molecular dynamics lie 22 and 79 degrees above it.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("tg", "glass transition temperature", "°C", "none", "mae", POLYINFO, ("tg_celsius",), ("ffv",)),
        Task("egc", "band gap of a chain", "eV", "none", "rmse", KUENNETH, (), (), ("egb", "eea", "ei")),
        Task("egb", "band gap of the bulk", "eV", "none", "rmse", KUENNETH, (), _others(DFT, "egb"), ("egc",)),
        Task("eea", "electron affinity", "eV", "none", "rmse", KUENNETH, (), _others(DFT, "eea"), ("egc", "egb", "ei")),
        Task("ei", "ionisation energy", "eV", "none", "rmse", KUENNETH, (), _others(DFT, "ei"), ("egc", "egb", "eea")),
        Task("xc", "crystallisation tendency", "%", "none", "rmse", KUENNETH, (), ("tg",)),
        Task("eps", "dielectric constant", "1", "none", "rmse", KUENNETH, ("static_dielectric_const",), _others(DFT, "eps"), ("nc",)),
        Task("nc", "refractive index", "1", "none", "rmse", KUENNETH, ("refractive_index",), _others(DFT, "nc"), ("eps",)),
        Task("eat", "atomisation energy", "eV/atom", "none", "rmse", KUENNETH, (), _others(DFT, "eat")),
        Task("density", "density", "g/cm³", "none", "rmse", KAGGLE, ("density",), _others(MD, "density")),
        Task("rg", "radius of gyration", "Å", "none", "rmse", KAGGLE, ("Rg",), _others(MD, "rg")),
        Task("tc", "thermal conductivity", "W/(m·K)", "log", "rmse", KAGGLE, ("thermal_conductivity",), _others(MD, "tc")),
        Task("ffv", "fractional free volume", "1", "none", "rmse", KAGGLE, ("FFV",), ("tg", *_others(MD, "ffv"))),
        *(Task(name, f"permeability of {title}", "Barrer", "log", "rmse", GAS, (name.upper(),)) for name, title in GASES.items()),
        Task("own", "property of your table", "unit of the table", "none", "rmse", YOURS),
        Task("own_log", "property of your table, positive, over powers of ten", "unit of the table", "log", "rmse", YOURS),
    )
}


def get_task(name: str) -> Task:
    """A task by its name.

    Raises:
        InputError: there is none of this name.
    """
    wanted = name.strip().lower()
    if wanted in TASKS:
        return TASKS[wanted]
    close = difflib.get_close_matches(wanted, TASKS, n=1, cutoff=0.4)
    by_title = [task.name for task in TASKS.values() if wanted in task.title or wanted in task.columns]
    hint = f"did you mean {(by_title or close)[0]}? " if wanted and (by_title or close) else ""
    raise InputError(f"there is no task {name!r}; {hint}--task must be one of {', '.join(TASKS)}")
