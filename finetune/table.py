"""Labels of one task by polymer, from a user's table or the bundled one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_shards.progress import Progress, Silent
from data_shards.sources import textbook
from finetune.tasks import Task, get_task
from foundation.errors import InputError
from foundation.evaluation.property_table import FOLD, PropertyTable, RefusedRow, read_table
from foundation.evaluation.ridge import FOLDS

BUNDLED = "tg"  # the task that the bundled table has values for


@dataclass(frozen=True)
class Labels(PropertyTable):
    """Polymers with the value of a task, in its unit; name is the task's.

    Attributes:
        task: the property.
    """

    task: Task


def load(
    task: Task | str, data: str | None = None, column: str | None = None, limit: int | None = None, *, bars: Progress | None = None
) -> Labels:
    """Labels of a task.

    Args:
        task: the property, or its name.
        data: CSV, TSV or Parquet; None: the bundled table, for tg alone.
        column: of the values; None: `value`, else one named like the task or in task.columns, else the only one with numbers.
        limit: read at most this many rows.
        bars: where progress is shown.

    Raises:
        InputError: no such task, no table, no such column, no row of use, one value alone, fewer polymers than folds, or a value whose
            logarithm cannot be taken.
    """
    task = get_task(task) if isinstance(task, str) else task
    if data is None and task.name != BUNDLED:
        raise InputError(f"no table of {task.title} comes with the program, only one of {BUNDLED}; pass yours with --data FILE")
    path = textbook().path if data is None else data
    table = read_table(task.name, path, column, limit, bars or Silent(), (task.name, *task.columns), "--column")
    _check(task, table)
    return Labels(**vars(table), task=task)


def _check(task: Task, table: PropertyTable) -> None:
    """Refuse a table that nothing can be learned from."""
    where, number = f"{table.path}, column {table.column}:", len(table.groups)
    if number == 0:
        first = table.refused[0]
        raise InputError(
            f"{where} none of {table.rows['rows']} rows can be used, the first because {first.psmiles!r} {_reason(first)};"
            " mend the rows or name another column with --column"
        )
    if number < FOLDS:
        raise InputError(f"{where} {number} polymers with a value are fewer than the {FOLDS} folds; give at least {FOLDS} polymers")
    if table.values.min() == table.values.max():
        raise InputError(f"{where} every polymer has the value {table.values[0]:g}; name another column with --column")
    if table.fold is not None and len(np.unique(table.fold)) < 2:
        raise InputError(f"{where} every polymer is in fold {table.fold[0]}, at least 2 are needed; mend or remove the column {FOLD}")
    task.forward(table.values)


def _reason(row: RefusedRow) -> str:
    return row.reason.partition(";")[0]


__all__ = ["Labels", "load"]
