"""A property head on the pretrained model, cross-validated: `python -m finetune.property --task tg [--data my.csv]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, typer.Option(help="tg, egc, egb, eea, ei, xc, eps, nc, eat, density, rg, tc, ffv, o2, n2, co2 or ch4")] = "tg",
    data: Annotated[
        str | None, typer.Option(help="CSV, TSV or Parquet file with P-SMILES and values; by default the bundled table of tg")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="column of the values; by default value, or one named like the task, or the only one with numbers")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="TASK=FILE, a table of another task that is learned with it; may be repeated", metavar="TASK=FILE"),
    ] = None,
    teachers: Annotated[bool, typer.Option(help="also learn from tables of related tasks that lie beside --data, such as eea.csv")] = True,
    checkpoint: Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")] = "small",
    out: Annotated[Path | None, typer.Option(help="folder of the results and the model; by default runs/TASK")] = None,
    heads: Annotated[
        str | None, typer.Option(help="of gp, network and trees, separated by commas; by default all; validation parts weight them")
    ] = None,
    adapter: Annotated[str, typer.Option(help="what of the pretrained model is trained with the network: none, lora or full")] = "none",
    rank: Annotated[int, typer.Option(help="of LoRA adapters")] = 4,
    members: Annotated[int, typer.Option(help="networks, and sets of trees, that are averaged")] = 3,
    conformations: Annotated[
        int, typer.Option(help="chains that the pretrained model generates of each polymer and reads beside its graph; about a second each")
    ] = 0,
    split: Annotated[
        str, typer.Option(help="folds: the column fold of the table, else drawn; cluster: polymers that are alike together")
    ] = "folds",
    baseline: Annotated[bool, typer.Option(help="run gradient-boosted trees, the untrained model and the mean beside it")] = True,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of --data")] = None,
    seed: Annotated[int, typer.Option(help="of folds that no column gives, and of everything drawn")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Ray processes, a core each; 0 works here without Ray; by default as many as cores")
    ] = None,
    track: Annotated[bool, typer.Option(help="mirror the folds to W&B, offline unless WANDB_MODE says otherwise")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="begin anew in --out")] = False,
) -> None:
    """Train, cross-validate and save heads that predict a property.

    Writes results.json, predictions.csv, report.html, card.md, figures and the model that finetune.predict takes. The same command goes on
    where it was stopped. Exit 0 done, 2 bad input.
    """
    from finetune.job import Job, prepare, show_plan, work
    from finetune.predictor import HEADS, Settings
    from finetune.trees import NOT_INSTALLED, installed
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers, check_seed

    check_numbers(rank=rank, members=members, limit=limit)
    check_seed(seed)
    there = HEADS if installed() else tuple(name for name in HEADS if name != "trees")
    chosen = there if heads is None else tuple(dict.fromkeys(word.strip() for word in heads.split(",")))
    if not chosen or set(chosen) - set(HEADS):
        raise InputError(f"--heads {heads!r} must be of {', '.join(HEADS)}; change it")
    if not set(chosen) <= set(there):
        raise InputError(f"{NOT_INSTALLED}, or pass --heads {','.join(there)}")
    if adapter not in ("none", "lora", "full"):
        raise InputError(f"--adapter {adapter!r} must be one of none, lora, full; change it")
    if adapter != "none" and "network" not in chosen:
        raise InputError(
            f"--adapter {adapter} is trained with a network, but --heads is {','.join(chosen)}; add network, or pass --adapter none"
        )
    if conformations < 0 or (conformations and adapter != "none"):
        bound = ">= 0" if conformations < 0 else "0 with an adapter, which is trained on graphs"
        raise InputError(f"conformations {conformations} must be {bound}; change --conformations")
    settings = Settings(chosen, adapter, rank, members, conformations)
    job = Job(task, data, column, tuple(teacher or ()), teachers, checkpoint, out, settings, split, baseline, limit, seed, workers, track)
    ready = prepare(job, overwrite=overwrite, writing=not dry_run)
    if dry_run:
        show_plan(ready)
        print(f"dry run: nothing was written to {ready.out}")
        return
    work(ready)


if __name__ == "__main__":
    run(app)
