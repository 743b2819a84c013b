"""Polymers from a table: CSV, TSV or Parquet, plain or compressed, on disk or at any fsspec address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PSMILES_NAMES = ("psmiles", "p_smiles", "p-smiles", "smiles")  # matched without regard to case, in this order
LABEL_NAMES = ("name", "class")  # carried into the provenance of a sample where the table has them
ROWS_PER_READ = 2000
PARQUET = (".parquet", ".pq")
_TAB = (".tsv", ".tab", ".tsv.gz")


@dataclass(frozen=True)
class Row:
    """One polymer as the user wrote it."""

    number: int  # 1 is the first row below the header
    psmiles: str
    labels: dict[str, str] = field(default_factory=dict)
    record: str = ""  # sha256 of the bytes of the structure that the source has for it, if any


class TableSource:
    """Rows of a table, a few at a time.

    Args:
        path: file name or address; `.parquet`/`.pq` is Parquet, `.tsv`/`.tab` is tab-separated, all else is CSV.
        column: name of the P-SMILES column; found by its usual names when None.
        limit: read at most this many rows.

    Raises:
        InputError: no path, or the file cannot be read, is empty, or has no such column.
    """

    def __init__(self, path: str | None, column: str | None = None, limit: int | None = None) -> None:
        if path is None:
            raise InputError("no table given; pass one with --input, or --source textbook")
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit} must be >= 1; change --limit")
        self.path, self.limit = path, limit
        with _one_sentence(path):
            first = next(_frames(path, 1), None)
        names = [] if first is None else [str(name) for name in first.columns]
        self.column = _psmiles_column(path, names, column)
        if first is None or len(first) == 0:
            raise InputError(f"{path} has a header but no row; give a table with at least one polymer")
        self._labels = {label: name for label in LABEL_NAMES for name in names if name.lower() == label and name != self.column}

    def settings(self) -> dict[str, Any]:
        """None: chains are to be built."""
        return {}

    def notes(self) -> list[str]:
        """Nothing to tell."""
        return []

    def facts(self) -> dict[str, Any]:
        """Nothing beside the rows."""
        return {}

    def rows(self) -> Iterator[Row]:
        """Rows in order; may be called again.

        Raises:
            InputError: the table breaks off.
        """
        number = 0
        for frame in self.frames():
            cells = [_text(value) for value in frame[self.column]]
            notes = {label: [_text(value) for value in frame[name]] for label, name in self._labels.items()}
            for index, psmiles in enumerate(cells):
                number += 1
                yield Row(number, psmiles, {label: values[index] for label, values in notes.items() if values[index]})

    def frames(self) -> Iterator[pd.DataFrame]:
        """The same rows with all their columns, some rows at a time; cells of a text file are text.

        Raises:
            InputError: the table breaks off.
        """
        left = self.limit
        with _one_sentence(self.path):
            for frame in _frames(self.path, ROWS_PER_READ):
                frame.columns = [str(name) for name in frame.columns]  # type: ignore[assignment]
                yield frame if left is None else frame.iloc[:left]
                if left is not None and (left := left - len(frame)) <= 0:
                    return

    def payload(self, number: int) -> bytes:
        """A table has no structures."""
        return b""


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None or value != value else str(value)


def _frames(path: str, num_rows: int) -> Iterator[pd.DataFrame]:
    """The table in parts of some rows; at least one part, which may be empty."""
    import pandas as pd

    lower = path.lower()
    if lower.endswith(PARQUET):
        import fsspec
        import pyarrow.parquet

        with fsspec.open(path, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file)
            empty = True
            for batch in table.iter_batches(batch_size=num_rows):
                empty = False
                yield batch.to_pandas()
            if empty:
                yield table.schema_arrow.empty_table().to_pandas()
        return
    separator = "\t" if lower.endswith(_TAB) else ","
    with pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, chunksize=num_rows, encoding_errors="replace") as frames:
        yield from frames


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    """Whatever goes wrong while a table is read, as one sentence."""
    import pandas as pd

    try:
        yield
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; give a table with a header and at least one polymer") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; pass the table of polymers with --input") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; pass a CSV or Parquet file with --input") from None
    except InputError:
        raise
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


def textbook(path: str | None = None, column: str | None = None, limit: int | None = None) -> TableSource:
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
    return TableSource(str(Path(__file__).with_name("textbook.csv")), limit=limit)
