"""Tables of a property by polymer: P-SMILES and a number in each row of a CSV, TSV or Parquet file.

A polymer is a group of canonical P-SMILES: ways of writing it, and its stereoisomers, are one point with the mean of their values. Rows
that cannot be used are kept with the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_shards.progress import Progress
from data_shards.sources.table import TableSource
from foundation.errors import InputError, PolymerError

if TYPE_CHECKING:
    import pandas as pd

FOLD, USUAL = "fold", "value"  # columns with a meaning of their own
FEWEST = 10  # polymers that a regression is worth anything on


@dataclass(frozen=True)
class RefusedRow:
    """A row that is not used.

    Attributes:
        row: 1 is the first below the header.
        psmiles: as written.
        reason: why, continues a sentence whose subject is the row.
    """

    row: int
    psmiles: str
    reason: str


@dataclass(frozen=True)
class PropertyTable:
    """Polymers with a property.

    Attributes:
        name: of the property, letters, digits and underscores.
        path, column: where it stands.
        psmiles: (P,) as written in the first row of each polymer.
        canonical: (P,) canonical P-SMILES of that row.
        groups: (P,) canonical names.
        values: (P,) mean of the rows of each polymer.
        spread: (P,) largest minus smallest value of the rows of each polymer.
        fold: (P,) of its first row with a value, or None where the table has no column of folds.
        rows: how many rows there are, and what became of them.
        refused: rows that belong to no polymer of the table.
    """

    name: str
    path: str
    column: str
    psmiles: tuple[str, ...]
    canonical: tuple[str, ...]
    groups: tuple[str, ...]
    values: NDArray[np.float64]
    spread: NDArray[np.float64]
    fold: NDArray[np.int64] | None
    rows: dict[str, int]
    refused: tuple[RefusedRow, ...]


def parse_tables(words: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Name -> path and column of `PATH` or `PATH:COLUMN`. The name is that of the file, with the column where a file is given twice.

    Raises:
        InputError: none, or one twice.
    """
    places = []
    for word in words:
        path, _, column = word.rpartition(":")
        places.append((path, column) if path and column and not set(column) & set("/\\") else (word, None))
    stems = Counter(_word(PurePosixPath(path).name.partition(".")[0]) for path, _ in places)
    found: dict[str, tuple[str, str | None]] = {}
    for path, column in places:
        stem = _word(PurePosixPath(path).name.partition(".")[0])
        name = stem if stems[stem] == 1 or column is None else f"{stem}_{_word(column)}"
        if name in found:
            raise InputError(
                f"tables {found[name][0]} and {path} both give the property {name}; name their columns (PATH:COLUMN), or rename one"
            )
        found[name] = path, column
    if not found:
        raise InputError("no table was given; pass one with --table tg.csv or --table tg.csv:COLUMN")
    return found


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "property"


def read_column(
    path: str, column: str | None, limit: int | None = None, known: Sequence[str] = (), option: str | None = None
) -> tuple[pd.DataFrame, str, str]:
    """Rows of a table as text, the name of their P-SMILES column and that of the property.

    Args:
        path: CSV, TSV or Parquet.
        column: of the property; None: `value`, else the first of `known` that is there, else the only one with numbers beside the folds.
        limit: read at most this many rows.
        known: names of columns that hold the property, in any case.
        option: how a command names the column, for messages.

    Raises:
        InputError: the table cannot be read, has no such column, or has several columns with numbers.
    """
    import pandas as pd

    source = TableSource(path, limit=limit)
    rows = pd.concat(list(source.frames()), ignore_index=True)
    names = [str(name) for name in rows.columns if name != source.column]
    if column is None:
        numeric = [name for name in names if name != FOLD and numbers(rows, name).notna().any()]
        wanted = [name for word in (USUAL, *known) for name in names if name.strip().lower() == word.lower()]
        numeric = wanted[:1] or numeric
        if len(numeric) != 1:
            found = f"numbers in {', '.join(numeric)}" if numeric else "numbers in none"
            raise InputError(f"{path} has {found} of its columns, so the property must be named; pass {option or f'{path}:COLUMN'}")
        column = numeric[0]
    if column not in names:
        raise InputError(f"{path} has no column {column!r}; the columns are {', '.join(names)}; change the column")
    return rows, source.column, column


def numbers(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column as float64, NaN where there is no finite number."""
    import pandas as pd

    return pd.to_numeric(rows[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def read_table(
    name: str,
    path: str,
    column: str | None,
    limit: int | None,
    bars: Progress,
    known: Sequence[str] = (),
    option: str | None = None,
) -> PropertyTable:
    """A table as polymers; known and option as in read_column.

    Raises:
        InputError: as read_column, or a row with a value has a fold that is no whole number.
    """
    from data_shards.chem.psmiles import canonicalise

    rows, psmiles_column, column = read_column(path, column, limit, known, option)
    values = numbers(rows, column).to_numpy()
    fold = numbers(rows, FOLD).to_numpy() if FOLD in rows.columns else None
    written = [str(psmiles).strip() for psmiles in rows[psmiles_column]]
    count = Counter({"rows": len(rows), "without a number": int(np.isnan(values).sum())})
    found: dict[str, list[int]] = {}
    canonical: dict[str, str] = {}
    refused = []
    with bars.stage(name[:12], len(rows), unit="rows") as stage:
        for row, psmiles in enumerate(written):
            stage.advance(1)
            if np.isnan(values[row]):
                refused.append(
                    RefusedRow(row + 1, psmiles, f"has no finite number in column {column}, but {str(rows[column][row])[:40]!r}")
                )
                continue
            try:
                made = canonicalise(psmiles)
            except PolymerError as error:
                count[error.reason] += 1
                refused.append(RefusedRow(row + 1, psmiles, error.detail))
                continue
            if fold is not None and not float(fold[row]).is_integer():
                raise InputError(f"{path} has no whole number in column {FOLD} of row {row + 1}; mend it or remove the column")
            found.setdefault(made.group, []).append(row)
            canonical.setdefault(made.group, made.psmiles)
    count["of a polymer that came before"] = sum(len(own) - 1 for own in found.values())
    if fold is not None:
        count["in another fold than the first row of their polymer"] = sum(int((fold[own] != fold[own[0]]).sum()) for own in found.values())
    firsts = [own[0] for own in found.values()]
    return PropertyTable(
        name,
        path,
        column,
        tuple(written[row] for row in firsts),
        tuple(canonical.values()),
        tuple(found),
        np.array([values[own].mean() for own in found.values()]),
        np.array([np.ptp(values[own]) for own in found.values()]),
        None if fold is None else fold[firsts].astype(np.int64),
        dict(count),
        tuple(refused),
    )


def check_table(table: PropertyTable, usable: NDArray[np.bool_], why: str) -> None:
    """Refuse a table that no regression can be judged on.

    Args:
        table: its polymers.
        usable: (P,) those that are left.
        why: what the others lack.

    Raises:
        InputError: too few polymers, one value alone, or one fold alone.
    """
    where = f"{table.path}, column {table.column}:"
    if usable.sum() < FEWEST:
        raise InputError(
            f"{where} {int(usable.sum())} of {len(usable)} polymers with a value {why}, at least {FEWEST} are needed; build shards from"
            f" this table (python -m data_shards.build --input {table.path})"
        )
    if len(np.unique(table.values[usable])) < 2:
        raise InputError(f"{where} every polymer has the value {table.values[usable][0]:g}; name another column")
    if table.fold is not None and len(np.unique(table.fold[usable])) < 2:
        raise InputError(f"{where} every polymer is in fold {table.fold[usable][0]}, at least 2 folds are needed; mend the column {FOLD}")
