"""Pretrain a model here: ``python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/x --out runs/y [key=value ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.mixture import Mixture
    from foundation.config import RunConfig

BEFORE_RUN_JSON = ("lock", "config.json", "checkpoints")  # what a run that was killed while it started has left
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    shards: Annotated[
        list[str],
        typer.Option(
            help="folder or address of shards made by data_shards.build; may be repeated, as PATH=WEIGHT (share of the samples; without"
            " weights: as many as each has)",
            metavar="PATH[=WEIGHT]",
        ),
    ],
    out: Annotated[Path, typer.Option(help="run folder; a run that it holds goes on from its last checkpoint")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, such as train.num_steps=100 objective.local_head=cartesian", metavar="[KEY=VALUE]..."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="polyconfm_tiny, polyconfm_small, polyconfm_base or polyconfm_large")] = "polyconfm_tiny",
    init_from: Annotated[
        str | None, typer.Option(help="run or checkpoint (folder or address), or small, whose weights start this run")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="delete the run in --out first")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print the plan and the configuration, write nothing")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True, help="passed by the deepspeed launcher")] = 0,
) -> None:
    """Pretrain on shards; with several ranks under torchrun or deepspeed.

    Exit 0 done, 2 bad input, 3 stopped by a signal after a checkpoint: the same command goes on.
    """
    import os

    from data_shards.mixture import open_mixture, parse_sources
    from foundation.config import apply_overrides
    from foundation.data.order import micro_batches_of_rank
    from foundation.errors import InputError
    from foundation.recipes import get_recipe
    from foundation.train import checkpoint

    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config = apply_overrides(get_recipe(recipe), overrides or [])
    sources = parse_sources(shards)
    opened = open_mixture(sources)
    micro_batches_of_rank(config.train.micro_batches_per_step, rank, world_size)
    check_out(out, overwrite)
    begin = checkpoint.start_of(None if overwrite else out, config, opened.fingerprint)
    if begin is not None and overwrite:
        raise InputError(
            f"--overwrite deletes {out} but not {config.train.checkpoint_store}, from which the run would go on after {begin};"
            " remove that yourself, or pass another train.checkpoint_store"
        )
    if begin is None and init_from is not None:
        init_from = str(checkpoint.find(init_from))
    if rank == 0:
        typer.echo(plan(config, opened, f"goes on after {begin}" if begin is not None else "starts at step 0", world_size))
    if dry_run:
        typer.echo(config.model_dump_json(indent=1))
        return
    if overwrite and rank == 0 and out.exists():
        import shutil

        shutil.rmtree(out)  # the other ranks meet rank 0 only after this

    from foundation.report.page import leave_report
    from foundation.train.loop import train

    result = train(config, out, sources, rank=rank, world_size=world_size, init_from=init_from)
    if rank == 0:
        losses = {"training": result.train_loss, "validation": result.val_loss}
        text = "".join(f", {name} loss {value:.4f}" for name, value in losses.items() if value is not None)
        typer.echo(f"done: step {result.step}{text}, {result.checkpoint}")
        leave_report(out)


def check_out(out: Path, overwrite: bool) -> None:
    """The run folder is new, empty or of a run; nothing else is ever deleted or written into.

    Raises:
        InputError: a file, or a folder with something else in it.
    """
    from foundation.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; pass a folder")
    is_run = (out / "run.json").exists()
    if out.exists() and not is_run and any(not p.name.startswith(".") and p.name not in BEFORE_RUN_JSON for p in out.iterdir()):
        deed = "delete" if overwrite else "write into"
        raise InputError(f"--out {out} holds files but no run.json, so it is no run folder to {deed}; pass another --out")


def plan(config: RunConfig, shards: Mixture, start: str, world_size: int) -> str:
    """What will happen, in a few words."""
    counts = {split: shards.count(split) for split in ("train", "val", "test")}
    text = (
        f"{config.recipe}: {config.train.num_steps} steps on {counts['train']} chains ({counts['val']} for validation), {start},"
        f" {world_size} rank{'s' if world_size > 1 else ''}, ZeRO-{config.train.zero_stage}, {config.train.precision}"
    )
    for place, (opened, weight, lost) in enumerate(zip(shards.sets, shards.weights, shards.left_out, strict=True)):
        if len(shards.sets) > 1:
            size = len(shards.samples("train")[place])
            text += f"\n  set {place + 1}: {float(weight):.1%} of the samples from {size} chains of {opened.path}"
            text += f"; {lost} left out, their polymers are in val or test of another set" if lost else ""
    return text


if __name__ == "__main__":
    run(app)
