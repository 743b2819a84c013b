"""Build shards from a table of polymers: `python -m data_shards.build --input polymers.csv --out shards/x`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.manifest import Manifest
    from data_shards.pipeline import Plan
    from data_shards.recipe import BuildRecipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MANY_REASONS = 30


@app.command()
def main(
    out: Annotated[str, typer.Option(help="folder of the shards, made here; or an fsspec address (s3://bucket/shards)")],
    input: Annotated[str | None, typer.Option(help="CSV, TSV or Parquet file with P-SMILES, or an fsspec address")] = None,
    source: Annotated[str, typer.Option(help="table (reads --input) or textbook (bundled well-known homopolymers)")] = "table",
    column: Annotated[str | None, typer.Option(help="column with the P-SMILES; by default psmiles or smiles, in any case")] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows")] = None,
    num_units: Annotated[int, typer.Option(help="repeat units per chain, counted as the P-SMILES is written")] = 20,
    conformers: Annotated[int, typer.Option(help="conformations per chain")] = 4,
    tacticity: Annotated[str, typer.Option(help="isotactic, syndiotactic or atactic, for centres the P-SMILES leaves open")] = "atactic",
    engine: Annotated[str, typer.Option(help="chain builder: grow (relaxed fragments, self-avoiding)")] = "grow",
    seed: Annotated[int, typer.Option(help="seed of tacticity and conformations")] = 0,
    max_atoms_per_unit: Annotated[int, typer.Option(help="heavy atoms per smallest repeat unit, stars included")] = 100,
    time_limit: Annotated[float, typer.Option(help="wall-clock limit per polymer, seconds")] = 300.0,
    workers: Annotated[int | None, typer.Option(help="Ray processes; 0 works here without Ray; default every CPU")] = None,
    shard_size: Annotated[int, typer.Option(help="polymers per shard")] = 256,
    val_fraction: Annotated[float, typer.Option(help="share of polymers for validation")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="share of polymers for test")] = 0.05,
    split_seed: Annotated[int, typer.Option(help="seed of the split")] = 0,
    holdout: Annotated[Path | None, typer.Option(help="file with one P-SMILES or group per line that must go to test")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read and check the polymers, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace shards that lie in --out")] = False,
) -> None:
    """P-SMILES in, WebDataset shards with 3-D chains out.

    A killed build continues with the same command. Exit 0 done, 2 bad input, 3 stopped but resumable.
    """
    import signal

    from data_shards import pipeline
    from data_shards.console import Resumable
    from data_shards.errors import InputError
    from data_shards.progress import progress
    from data_shards.recipe import make_recipe
    from data_shards.sources import SOURCES
    from data_shards.staging import check_out
    from data_shards.upload import build_remote, is_address

    if source not in SOURCES:
        raise InputError(f"source {source!r} must be one of {', '.join(SOURCES)}; change --source")
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers} must be >= 0; change --workers")
    recipe = make_recipe(
        num_units=num_units,
        num_conformations=conformers,
        tacticity=tacticity,
        engine=engine,
        seed=seed,
        max_atoms_per_unit=max_atoms_per_unit,
        time_limit_sec=time_limit,
        samples_per_shard=shard_size,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        holdout=read_holdout(holdout) if holdout else (),
    )
    rows = SOURCES[source](input, column=column, limit=limit)
    bars = progress()

    def build_local(folder: Path) -> Manifest:
        replace = overwrite or is_address(out)
        return pipeline.build(recipe, rows, folder, source=source, workers=workers, overwrite=replace, progress=bars)

    signal.signal(signal.SIGTERM, lambda number, frame: _interrupt())
    try:
        if dry_run:
            if not is_address(out):
                check_out(Path(out), recipe, pipeline.rows_digest(rows), overwrite)
            with pipeline.crew(0) as unordered:
                plan = pipeline.prepare(recipe, rows, source, unordered, bars)
            _show_plan(plan, recipe, out)
            return
        if is_address(out):
            manifest = build_remote(out, recipe, pipeline.rows_digest(rows), overwrite, bars, build_local)
        else:
            manifest = build_local(Path(out))
    except KeyboardInterrupt:
        raise Resumable("finished polymers are kept; the same command continues") from None
    show_funnel(manifest, out)


def _interrupt() -> None:
    raise KeyboardInterrupt


def read_holdout(path: Path) -> tuple[str, ...]:
    """Groups of the polymers in a file.

    Args:
        path: one P-SMILES or 12-digit group per line; blank lines and lines from # on are skipped.

    Raises:
        InputError: the file cannot be read or a line is neither.
    """
    import re

    from data_shards.chem.psmiles import canonicalise
    from data_shards.errors import InputError, PolymerError

    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); pass a text file with --holdout") from None
    groups = []
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        if re.fullmatch(r"[0-9a-f]{12,64}", word):
            groups.append(word)
            continue
        try:
            groups.append(canonicalise(word).group)
        except PolymerError as error:
            raise InputError(f"{path} line {number} is neither a P-SMILES nor a group ({error})") from None
    if not groups:
        raise InputError(f"{path} names no polymer; put one P-SMILES or group per line, or drop --holdout")
    return tuple(groups)


def show_funnel(manifest: Manifest, out: str) -> None:
    """Print what went in, what came out and where the rest was lost."""
    from rich.console import Console
    from rich.table import Table

    funnel = manifest.funnel
    table = Table(title=f"{out}", title_justify="left")
    table.add_column("stage")
    table.add_column("polymers", justify="right")
    table.add_row("rows read", str(funnel.attempted))
    for reason, count in sorted(funnel.dropped.items(), key=lambda item: (-item[1], item[0]))[:MANY_REASONS]:
        table.add_row(f"  - {reason}", str(count), style="yellow")
    table.add_row("kept", str(funnel.kept), style="bold")
    for split, shards in manifest.splits.items():
        samples = sum(shard.num_samples for shard in shards)
        size_mb = sum(shard.bytes for shard in shards) / 1e6
        table.add_row(f"  {split}", f"{samples}  (shards: {len(shards)}, {size_mb:.1f} MB)")
    Console().print(table)
    if funnel.dropped:
        print(f"every dropped row with its reason: {out.rstrip('/')}/funnel.csv")


def _show_plan(plan: Plan, recipe: BuildRecipe, out: str) -> None:
    from collections import Counter

    reasons = Counter(drop.reason for drop in plan.dropped)
    size = f"{recipe.num_units} units x {recipe.num_conformations} conformations"
    print(f"{plan.num_rows} rows read, {len(plan.work)} chains of {size} to build")
    for reason, count in reasons.most_common():
        print(f"  - {reason}: {count}")
    print(f"dry run: nothing was written to {out}")


if __name__ == "__main__":
    run(app)
