"""Which polymers of property tables lie in a shard set, and in which split: `python -m data_shards.leaks shards/x --against tg.csv`.

A model that saw the shape of a polymer in pretraining is no longer blind to it. Polymers are compared, not strings: every spelling, cut and
stereo form counts. `data_shards.build --hold-out tg.csv` keeps the polymers of a table out of all shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.leak_count import Leak

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TABLES = (".csv", ".csv.gz", ".tsv", ".parquet")


@app.command()
def main(
    shards: Annotated[str, typer.Argument(help="folder or fsspec address of a shard set")],
    against: Annotated[list[Path] | None, typer.Option(help="table with P-SMILES, or a folder of tables; may be repeated")] = None,
    column: Annotated[str | None, typer.Option(help="column with the P-SMILES; by default psmiles or smiles, in any case")] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of each table")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray processes; 0 works here without Ray")] = 0,
    out: Annotated[Path | None, typer.Option(help="write the counts as JSON")] = None,
    fail: Annotated[bool, typer.Option("--fail", help="exit 2 where a polymer of a table lies in train or val")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the tables and stop")] = False,
) -> None:
    """Count the polymers of tables in train, val and test.

    Without --against the bundled table of glass transitions is taken. Exit 0 done, 2 bad input.
    """
    import json
    from dataclasses import asdict

    from data_shards.errors import InputError
    from data_shards.leak_count import count_leaks
    from data_shards.manifest import write_atomic
    from data_shards.progress import progress
    from data_shards.reader import open_shards
    from data_shards.sources import TableSource, textbook

    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; pass --overwrite to replace it")
    opened = open_shards(shards)
    paths = tables_of(against or [])
    sources = {path.name: TableSource(str(path), column, limit) for path in paths} if paths else {"textbook": textbook(limit=limit)}
    if dry_run:
        print(f"would compare {shards} with {', '.join(sources)}")
        return
    found = count_leaks(opened, sources, workers, progress())
    show(found)
    if out is not None:
        write_atomic(out, json.dumps([asdict(leak) for leak in found], indent=1).encode() + b"\n")
    leaking = [leak for leak in found if leak.train or leak.val]
    if fail and leaking:
        what = ", ".join(f"{leak.table} ({leak.train + leak.val})" for leak in leaking)
        raise InputError(f"polymers of {what} lie in train or val; build again with --hold-out")


def tables_of(given: list[Path]) -> list[Path]:
    """Files named, and the tables of folders named.

    Raises:
        InputError: a path does not exist, or a folder holds no table.
    """
    from data_shards.errors import InputError

    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(found for found in path.iterdir() if found.name.endswith(TABLES))
            if not inside:
                raise InputError(f"{path} holds no table; pass a file or a folder of CSV or Parquet files with --against")
            paths += inside
        else:
            paths.append(path)
    return paths


def show(leaks: list[Leak]) -> None:
    """Print one line per table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("table")
    for name in ("rows", "no polymer", "polymers", "in train", "in val", "in test", "in none"):
        table.add_column(name, justify="right")
    for leak in leaks:
        counts = (leak.rows, leak.useless, leak.polymers, leak.train, leak.val, leak.test, leak.none)
        table.add_row(leak.table, *map(str, counts), style="yellow" if leak.train or leak.val else None)
    Console().print(table)


if __name__ == "__main__":
    run(app)
