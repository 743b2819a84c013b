"""Polymers from a table: CSV, TSV or Parquet, plain or compressed, on disk or at any fsspec address."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PSMILES_NAMES = ("psmiles", "p_smiles", "p-smiles", "smiles")  # matched without regard to case, in this order
LABEL_NAMES = ("name", "class")  # carried into the provenance of a sample where the table has them
_PARQUET = (".parquet", ".pq")
_TAB = (".tsv", ".tab", ".tsv.gz")


@dataclass(frozen=True)
class Row:
    """One polymer as the user wrote it."""

    number: int  # 1 is the first row below the header
    psmiles: str
    labels: dict[str, str] = field(default_factory=dict)


def read_table(path: str | None, *, column: str | None = None, limit: int | None = None) -> list[Row]:
    """Rows of a table.

    Args:
        path: file name or address; `.parquet`/`.pq` is Parquet, `.tsv`/`.tab` is tab-separated, all else is CSV.
        column: name of the P-SMILES column; found by its usual names when None.
        limit: read at most this many rows.

    Raises:
        InputError: no path, or the file cannot be read, is empty, or has no such column.
    """
    if path is None:
        raise InputError("no table given; pass one with --input, or --source textbook")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} must be >= 1; change --limit")
    frame = _frame(path, limit)
    names = [str(name) for name in frame.columns]
    frame.columns = names  # type: ignore[assignment]
    chosen = _psmiles_column(path, names, column)
    if len(frame) == 0:
        raise InputError(f"{path} has a header but no row; give a table with at least one polymer")
    labels = {label: name for label in LABEL_NAMES for name in names if name.lower() == label and name != chosen}
    cells = [_text(value) for value in frame[chosen]]
    notes = {label: [_text(value) for value in frame[name]] for label, name in labels.items()}
    return [
        Row(index + 1, psmiles, {label: values[index] for label, values in notes.items() if values[index]})
        for index, psmiles in enumerate(cells)
    ]


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None or value != value else str(value)


def _frame(path: str, limit: int | None) -> pd.DataFrame:
    import pandas as pd

    lower = path.lower()
    try:
        if lower.endswith(_PARQUET):
            frame = pd.read_parquet(path)
            return frame if limit is None else frame.head(limit)
        separator = "\t" if lower.endswith(_TAB) else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, nrows=limit)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; give a table with a header and at least one polymer") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; pass the table of polymers with --input") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; pass a CSV or Parquet file with --input") from None
    except (OSError, ValueError, ImportError, pd.errors.ParserError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a table ({first_line}); give a CSV or Parquet file with a header") from None


def _psmiles_column(path: str, names: list[str], column: str | None) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    if column is not None:
        if column not in names:
            raise InputError(f"{path} has no column {column!r}; it has {shown}; change --column")
        return column
    for wanted in PSMILES_NAMES:
        for name in names:
            if name.strip().lower() == wanted:
                return name
    raise InputError(f"{path} has no column named psmiles or smiles; it has {shown}; name the P-SMILES column with --column")


def read_textbook(path: str | None = None, *, column: str | None = None, limit: int | None = None) -> list[Row]:
    """The bundled well-known homopolymers.

    Args:
        path: must be None; the table comes with the program.
        column: must be None.
        limit: read at most this many rows.

    Raises:
        InputError: a file or a column was named.
    """
    if path is not None:
        raise InputError(f"--source textbook reads its own table, not {path}; drop --input or pass --source table")
    if column is not None:
        raise InputError(f"--source textbook has its own columns, not {column!r}; drop --column")
    return read_table(str(Path(__file__).with_name("textbook.csv")), limit=limit)
