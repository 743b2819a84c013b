"""A generator of polymers for target properties: `python -m finetune.design --task gas --data o2_n2_co2.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[
        str, typer.Option(help="gas (o2, n2 and co2 permeability), any task of finetune.property, or structures (no property)")
    ] = "tg",
    data: Annotated[
        str | None, typer.Option(help="CSV, TSV or Parquet file with P-SMILES and values; by default the bundled table of tg")
    ] = None,
    column: Annotated[str | None, typer.Option(help="column of the values, where the task is one property")] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="table of more polymers, whose values the property models predict; the more, the better")
    ] = None,
    fitted: Annotated[
        list[str] | None,
        typer.Option(
            help="finished folder of finetune.property, whose model is taken instead of fitting one; may be repeated", metavar="FOLDER"
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="pretrained model of property models and references: run folder, checkpoint folder, address, or small")
    ] = "small",
    start: Annotated[
        str | None,
        typer.Option(
            help="folder of a generator that training begins from, or none; by default the bundled one of structures, where there is one"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; by default runs/design-TASK")] = None,
    adapter: Annotated[
        str, typer.Option(help="what of the pretrained model is trained with the property models, which guide: none, lora or full")
    ] = "none",
    steps: Annotated[int, typer.Option(help="of training")] = 2_000,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of each table")] = None,
    seed: Annotated[int, typer.Option(help="of everything drawn")] = 0,
    workers: Annotated[int | None, typer.Option(help="Ray processes, a core each; 0 works here without Ray; by default as needed")] = None,
    track: Annotated[bool, typer.Option(help="mirror the training to W&B, offline unless WANDB_MODE says otherwise")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="begin anew in --out")] = False,
) -> None:
    """Train property models and a generator of repeat units that is told the properties.

    Writes property/, a model for each property as finetune.property does; generator/, what finetune.propose draws from; metrics.jsonl. The
    same command goes on where it was stopped. Exit 0 done, 2 bad input.
    """
    from finetune.design.job import DesignJob, prepare, show_plan, work
    from foundation.sampling.request import check_numbers, check_seed

    check_numbers(steps=steps, limit=limit)
    check_seed(seed)
    job = DesignJob(
        task, data, column, unlabelled, tuple(fitted or ()), checkpoint, start, out, adapter, steps, limit, seed, workers, track
    )
    ready = prepare(job, overwrite=overwrite, writing=not dry_run)
    if dry_run:
        show_plan(ready)
        print(f"dry run: nothing was written to {ready.out}")
        return
    work(ready)


if __name__ == "__main__":
    run(app)
