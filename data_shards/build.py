"""Build shards from a table of polymers: `python -m data_shards.build --input polymers.csv --out shards/x`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.pipeline import Summary
    from data_shards.plan import Plan
    from data_shards.recipe import BuildRecipe
    from data_shards.sources import Source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MANY_REASONS = 30


@app.command()
def main(
    out: Annotated[str, typer.Option(help="folder of the shards, made here; or an fsspec address (s3://bucket/shards)")],
    input: Annotated[str | None, typer.Option(help="CSV, TSV or Parquet file with P-SMILES, or what --source reads")] = None,
    source: Annotated[
        str,
        typer.Option(
            help="table (reads --input), textbook (bundled homopolymers), sdf (3-D chains with a psmiles property), shards (a set that is"
            " divided again, its chains as they are), polyconfm-lmdb, smiles (a table of molecules, no polymers, to be embedded)"
            " or molecules (SD files of them)"
        ),
    ] = "table",
    column: Annotated[
        str | None, typer.Option(help="column or SD property with the P-SMILES; by default psmiles or smiles, in any case")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows")] = None,
    num_units: Annotated[int, typer.Option(help="repeat units per chain, counted as the P-SMILES is written")] = 20,
    conformers: Annotated[int, typer.Option(help="conformations per chain")] = 4,
    tacticity: Annotated[str, typer.Option(help="isotactic, syndiotactic or atactic, for centres the P-SMILES leaves open")] = "atactic",
    engine: Annotated[str, typer.Option(help="chain builder: grow (relaxed fragments, self-avoiding) or md (Langevin dynamics)")] = "grow",
    md: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="setting of the md engine; may be repeated")] = None,
    relax: Annotated[bool, typer.Option("--relax", help="minimise each chain in MMFF94s; the raw one is stored beside it")] = False,
    quality: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="limit of the quality checks (heavy_clash=0.7); may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of tacticity and conformations")] = 0,
    max_atoms_per_unit: Annotated[int, typer.Option(help="heavy atoms per smallest repeat unit, stars included")] = 100,
    time_limit: Annotated[float, typer.Option(help="wall-clock limit per polymer, seconds")] = 300.0,
    workers: Annotated[int | None, typer.Option(help="Ray processes; 0 works here without Ray; default every CPU")] = None,
    shard_size: Annotated[int, typer.Option(help="polymers per shard")] = 256,
    val_fraction: Annotated[float, typer.Option(help="share of polymers for validation")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="share of polymers for test")] = 0.05,
    split_seed: Annotated[int, typer.Option(help="seed of the split")] = 0,
    to_test: Annotated[Path | None, typer.Option(help="file with polymers that must go to test: a table, or one per line")] = None,
    hold_out: Annotated[Path | None, typer.Option(help="file with polymers to keep out of all shards: a table, or one per line")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read and check the polymers, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace shards that lie in --out")] = False,
) -> None:
    """P-SMILES in, WebDataset shards with 3-D chains out.

    A killed build continues with the same command, and a finished one is checked: what is damaged is made again. Exit 0 done, 2 bad input,
    3 stopped but resumable.
    """
    import signal

    from data_shards import pipeline
    from data_shards.console import Resumable
    from data_shards.errors import InputError
    from data_shards.progress import progress
    from data_shards.recipe import make_recipe, read_settings
    from data_shards.sources import open_source
    from data_shards.staging import check_out
    from data_shards.store import open_store

    if workers is not None and workers < 0:
        raise InputError(f"workers {workers} must be >= 0; change --workers")
    rows = open_source(source, input, column, limit)
    chains = {
        "engine": engine,
        "md": read_settings("md", md) if md else None,
        "relax": relax,
        "quality": read_settings("quality", quality or []),
    }
    recipe = make_recipe(
        num_units=num_units,
        num_conformations=conformers,
        tacticity=tacticity,
        **with_settings(chains, rows, source, out),
        seed=seed,
        max_atoms_per_unit=max_atoms_per_unit,
        time_limit_sec=time_limit,
        samples_per_shard=shard_size,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        to_test=read_polymers(to_test, "--to-test") if to_test else (),
        hold_out=read_polymers(hold_out, "--hold-out") if hold_out else (),
    )
    bars = progress()
    for line in rows.notes():
        bars.say(line)
    signal.signal(signal.SIGTERM, lambda number, frame: _interrupt())
    try:
        if dry_run:
            check_out(open_store(out), recipe, pipeline.rows_digest(rows.rows()), overwrite)
            _show_plan(pipeline.dry_run(recipe, rows, bars), recipe, out)
            return
        summary = pipeline.build(recipe, rows, out, source_name=source, workers=workers, overwrite=overwrite, progress=bars)
    except KeyboardInterrupt:
        raise Resumable("finished polymers are kept; the same command continues") from None
    show_summary(summary, out, "molecule" if recipe.of_molecules else "polymer")


def with_settings(chains: dict[str, Any], rows: Source, source: str, out: str) -> dict[str, Any]:
    """How chains are made, as the command line and the source say together.

    Raises:
        InputError: the command line sets what the source decides, or the set that is read is the one that would be written.
    """
    from data_shards.errors import InputError

    decided = rows.settings()
    unset = {"engine": "grow", "relax": False, "quality": {}}
    for name, default in unset.items():
        if name in decided and chains[name] != default:
            word = f" {chains[name]}" if name == "engine" else ""
            raise InputError(f"--source {source} brings its own chains; drop --{name}{word}")
    if source == "shards":
        from data_shards.sources.shards import ShardsSource, check_apart

        assert isinstance(rows, ShardsSource)
        check_apart(rows.path, out)
    return chains | decided


def _interrupt() -> None:
    raise KeyboardInterrupt


def read_polymers(path: Path, flag: str) -> tuple[str, ...]:
    """Groups of the polymers in a file.

    Args:
        path: a table with a column of P-SMILES, or one P-SMILES or group (12 digits of the manifest) per line; there, blank lines and
            lines from # on are skipped. Rows of a table that are no polymer cannot be in a shard either and are only counted.
        flag: for messages.

    Raises:
        InputError: the file cannot be read, names no polymer, or a line is neither.
    """
    import re
    import sys

    from data_shards.chem.psmiles import canonicalise
    from data_shards.errors import InputError, PolymerError
    from data_shards.sources.table import PARQUET, PSMILES_NAMES, TableSource

    try:
        with path.open(errors="replace") as file:
            header = re.split(r"[,\t]", file.readline().strip().lower())
            file.seek(0)
            is_table = path.suffix in PARQUET or bool(set(header) & set(PSMILES_NAMES))
            words = [] if is_table else [line.strip() for line in file]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass a file with polymers with {flag}") from None
    if is_table:
        words = [row.psmiles for row in TableSource(str(path)).rows()]
    groups, useless = [], 0
    for number, word in enumerate(words, start=1):
        if not word or (word.startswith("#") and not is_table):
            continue
        if re.fullmatch(r"[0-9a-f]{12,64}", word):
            groups.append(word)
            continue
        try:
            groups.append(canonicalise(word).group)
        except PolymerError as error:
            if not is_table:
                raise InputError(f"{path} line {number} is neither a P-SMILES nor a group ({error})") from None
            useless += 1
    if not groups:
        raise InputError(f"{path} names no polymer; put one P-SMILES or group per line, or drop {flag}")
    if useless:
        print(f"{path}: {useless} of {len(words)} rows are no polymer that could be in a shard", file=sys.stderr)
    return tuple(groups)


def show_summary(summary: Summary, out: str, kind: str) -> None:
    """Print what went in, what came out and where the rest was lost; kind: what a sample is."""
    from rich.console import Console
    from rich.table import Table

    from data_shards.store import shown

    funnel = summary.funnel
    table = Table(title=shown(out), title_justify="left")
    table.add_column("stage")
    table.add_column(f"{kind}s", justify="right")
    table.add_row("rows read", str(funnel.attempted))
    for reason, count in sorted(funnel.dropped.items(), key=lambda item: (-item[1], item[0]))[:MANY_REASONS]:
        table.add_row(f"  - {reason}", str(count), style="yellow")
    table.add_row("kept", str(funnel.kept), style="bold")
    for split, (shards, samples, size) in summary.splits.items():
        table.add_row(f"  {split}", f"{samples}  (shards: {shards}, {size / 1e6:.1f} MB)")
    Console().print(table)
    if summary.seconds is not None and summary.seconds.count:
        seconds = summary.seconds
        print(f"core-seconds per {kind}: median {seconds.median:.2f}, 95 % below {seconds.p95:.2f}, in all {seconds.total:.0f}")
    if summary.rebuilt:
        print(f"made again: {', '.join(summary.rebuilt)}")
    if funnel.dropped:
        print(f"every dropped row with its reason: {shown(out).rstrip('/')}/funnel.csv; the stages: funnel.md")


def _show_plan(plan: Plan, recipe: BuildRecipe, out: str) -> None:
    if recipe.engine in ("import", "record"):
        size = "as imported"
    elif recipe.of_molecules:
        size = f"x {recipe.num_conformations} conformations"
    else:
        size = f"of {recipe.num_units} units x {recipe.num_conformations} conformations"
    print(f"{plan.num_rows} rows read, {plan.num_chains} {'molecules' if recipe.of_molecules else 'chains'} {size} to build")
    for reason, count in sorted(plan.funnel().dropped.items(), key=lambda item: -item[1]):
        print(f"  - {reason}: {count}")
    print(f"dry run: nothing was written to {out}")


if __name__ == "__main__":
    run(app)
