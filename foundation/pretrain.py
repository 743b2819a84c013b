"""Pretrain a foundation model here: ``python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/x --out runs/y [key=value ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["--help"]})
def main(
    shards: Annotated[str, typer.Option(help="Folder or address of shards made by data_shards.build.")],
    out: Annotated[Path, typer.Option(help="Run folder. If it holds a checkpoint of the same run, training goes on from there.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. train.num_steps=100 objective.local_head=cartesian")
    ] = None,
    recipe: Annotated[str, typer.Option(help="polyconfm_tiny, polyconfm_small, polyconfm_base or polyconfm_large.")] = "polyconfm_tiny",
    init_from: Annotated[str | None, typer.Option(help="Run or checkpoint folder whose weights start this run (second phase).")] = None,
    overwrite: Annotated[bool, typer.Option(help="Delete the run folder first.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan and stop.")] = False,
) -> None:
    """Pretrain on shards. Also works under torchrun or deepspeed with several ranks.

    Exit codes: 0 done, 2 bad input, 3 stopped by a signal after a checkpoint (the same command goes on).
    """
    import os

    from data_shards.reader import open_shards
    from foundation.config import apply_overrides
    from foundation.data.order import micro_batches_of_rank
    from foundation.recipes import get_recipe
    from foundation.train import checkpoint

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config = apply_overrides(get_recipe(recipe), overrides or [])
    opened = open_shards(shards)
    micro_batches_of_rank(config.train.micro_batches_per_step, rank, world_size)
    if init_from is not None:
        checkpoint.find(init_from)
    found = [] if overwrite else checkpoint.committed(out)
    if found:
        checkpoint.check_compatible(checkpoint.read_state(found[-1]), config, opened.fingerprint, world_size)
    if rank == 0:
        counts = {split: len(opened.samples(split)) for split in ("train", "val", "test")}
        start = f"continues after {found[-1].name}" if found else "starts at step 0"
        typer.echo(
            f"{recipe}: {config.train.num_steps} steps on {counts['train']} chains ({counts['val']} for validation), {start}, {world_size} rank(s)"
        )
    if dry_run:
        typer.echo(config.model_dump_json(indent=1))
        return
    if overwrite and rank == 0 and out.exists():
        import shutil

        shutil.rmtree(out)

    from foundation.train.loop import train

    result = train(config, out, shards, rank=rank, world_size=world_size, init_from=init_from)
    if rank == 0:
        val = "" if result.val_loss is None else f", validation loss {result.val_loss:.4f}"
        typer.echo(f"done: step {result.step}, training loss {result.train_loss:.4f}{val}, {result.checkpoint}")


if __name__ == "__main__":
    run(app)
