"""A run as one self-contained HTML page: `python -m foundation.report runs/demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="run folder, or a folder that holds a run with shards, structures and eval beside it")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; FOLDER/report.html by default")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read everything and say what was found, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a page that is there")] = False,
) -> None:
    """Funnel, training, metrics against baselines, shapes, chains in 3-D and configuration on one page. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.report.page import NAME, size_text, write_report
    from foundation.report.sources import read_run

    target = out if out is not None else folder / NAME
    if target.is_dir():
        raise InputError(f"--out {target} is a folder; name a file in it")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; choose another --out or pass --overwrite")
    if dry_run:
        found = read_run(folder)
        for part, place in found.places.items():
            print(f"{part}: {place}")
        for path in found.structures:
            print(f"structures: {path}")
        print(f"dry run: {target} was not written")
    else:
        found = write_report(folder, target)
        print(f"report: {target}, {size_text(target)}")
    for trouble in found.troubles.values():
        print(f"left out: {trouble}")


if __name__ == "__main__":
    run(app)
