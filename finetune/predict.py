"""Predict a property of polymers: `python -m finetune.predict --model runs/tg --psmiles '*CC*'`, or --input polymers.csv --out p.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="folder of finetune.property")],
    psmiles: Annotated[list[str] | None, typer.Option(help="a polymer: repeat unit with two stars; may be repeated")] = None,
    input: Annotated[
        str | None, typer.Option(help="CSV, TSV or Parquet file with P-SMILES; - reads one P-SMILES a line from the standard input")
    ] = None,
    column: Annotated[str | None, typer.Option(help="column with the P-SMILES; by default psmiles or smiles, in any case")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file, one row per input row in input order; by default the screen")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="the pretrained model it was trained on, where it is no longer at the place named then")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of --input")] = None,
    neighbours: Annotated[int, typer.Option(help="training polymers named beside each prediction")] = 1,
    workers: Annotated[int | None, typer.Option(help="Ray processes, a core each; 0 works here without Ray; by default as needed")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and stop, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out")] = False,
) -> None:
    """Value, 90 % interval, whether the polymer is like those it was trained on, and the nearest of these.

    Columns: psmiles, prediction, lower, upper, in_domain, similarity, nearest, nearest_value, reason. A polymer that cannot be predicted
    has a reason and nothing else. Exit 0 at least one was predicted, 2 bad input or none.
    """
    from finetune.stream import Request, predict_stream
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers
    from foundation.sampling.writers import check_absent

    if (not psmiles) == (input is None):
        raise InputError(f"give either --psmiles or --input, {'neither' if not psmiles else 'both'} given")
    if out is not None and out.suffix.lower() != ".csv":
        raise InputError(f"--out {out} has the extension {out.suffix!r}; use .csv")
    check_absent(out, overwrite) if out is not None else None
    check_numbers(limit=limit, neighbours=neighbours)
    predict_stream(Request(model, tuple(psmiles or ()), input, column, out, checkpoint, limit, neighbours, workers, dry_run))


if __name__ == "__main__":
    run(app)
