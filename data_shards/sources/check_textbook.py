"""Compare the bundled polymers with a measured table: ``python -m data_shards.sources.check_textbook --reference tg.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from data_shards.console import run
from data_shards.errors import InputError, PolymerError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Comparison:
    """One bundled polymer beside the reference."""

    name: str
    psmiles: str
    tg_celsius: float
    reference_celsius: float | None  # median of the reference's rows of this polymer; None where it has none

    @property
    def difference(self) -> float:
        """Degrees by which the bundled value lies above the reference; nan without one."""
        return float("nan") if self.reference_celsius is None else self.tg_celsius - self.reference_celsius


def compare(reference: str, column: str = "value", textbook: str | None = None) -> list[Comparison]:
    """Match the bundled polymers with a table of glass transition temperatures by polymer group.

    Args:
        reference: table with a P-SMILES column and a column of temperatures, degrees Celsius; unusable P-SMILES rows are skipped.
        column: name of the temperature column.
        textbook: the table to check; the bundled one when None.

    Returns:
        One entry per bundled polymer, in its order.

    Raises:
        InputError: the reference cannot be read, or has no such column, or a cell is no number; the checked table names a polymer
            twice, has a temperature that is no number, or a P-SMILES that cannot be used.
    """
    from pathlib import Path
    from statistics import median

    from data_shards.chem.psmiles import canonicalise

    measured: dict[str, list[float]] = {}
    for psmiles, value in _pairs(reference, column):
        try:
            group = canonicalise(psmiles).group
        except PolymerError:
            continue
        measured.setdefault(group, []).append(value)
    textbook = textbook or str(Path(__file__).with_name("textbook.csv"))
    found: list[Comparison] = []
    names: dict[str, str] = {}
    for (psmiles, value), name in zip(_pairs(textbook, "tg_celsius"), _column(textbook, "name"), strict=True):
        group = canonicalise(psmiles).group
        if group in names:
            raise InputError(f"{textbook} has one polymer twice, as {names[group]!r} and {name!r}; keep one of the two rows")
        names[group] = name
        known = measured.get(group)
        found.append(Comparison(name, psmiles, value, median(known) if known else None))
    return found


def _column(path: str, column: str) -> list[str]:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if column not in frame.columns:
        raise InputError(f"{path} has no column {column!r}; it has {', '.join(map(repr, frame.columns))}; change --column")
    return [str(cell) for cell in frame[column]]


def _pairs(path: str, column: str) -> list[tuple[str, float]]:
    """(P-SMILES, number) of every row."""
    from math import isfinite

    from data_shards.sources.table import TableSource

    rows = TableSource(path).rows()
    pairs = []
    for row, cell in zip(rows, _column(path, column), strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            raise InputError(f"{path} row {row.number} has {column} {cell!r}, which is not a finite number; give degrees Celsius")
        pairs.append((row.psmiles, value))
    return pairs


@app.command()
def main(
    reference: Annotated[str, typer.Option(help="table of measured glass transition temperatures, degrees Celsius")],
    column: Annotated[str, typer.Option(help="column of the temperatures")] = "value",
    bound: Annotated[float, typer.Option(help="list the polymers that differ by more, degrees Celsius")] = 40.0,
) -> None:
    """Print how the bundled glass transition temperatures agree with a measured table."""
    from statistics import fmean, median

    if not bound > 0:
        raise InputError(f"bound {bound:g} must be greater than 0 degrees Celsius; change --bound")
    entries = compare(reference, column)
    known = [entry for entry in entries if entry.reference_celsius is not None]
    print(f"{len(entries)} polymers, {len(known)} of them in {reference}")
    if not known:
        return
    sizes = [abs(entry.difference) for entry in known]
    print(f"absolute difference: mean {fmean(sizes):.1f}, median {median(sizes):.1f}, largest {max(sizes):.1f} degrees Celsius")
    far = sorted((entry for entry in known if abs(entry.difference) > bound), key=lambda entry: -abs(entry.difference))
    print(f"{len(far)} differ by more than {bound:g}:")
    for entry in far:
        print(f"  {entry.name}  {entry.psmiles}  {entry.tg_celsius:g} here, {entry.reference_celsius:g} there")


if __name__ == "__main__":
    run(app)
