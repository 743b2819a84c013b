"""Linear probes of a checkpoint: `python -m foundation.probe --checkpoint runs/y --shards shards/x --table tg.csv --out probes.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from foundation.evaluation.probes import ProbeSet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")],
    shards: Annotated[
        str, typer.Option(help="shards with conformations of the polymers of the tables, local or any fsspec address; all splits are used")
    ],
    table: Annotated[
        list[str],
        typer.Option(
            help="CSV, TSV or Parquet file with P-SMILES and a property; without a column `value`, or the only one with numbers;"
            " may be repeated",
            metavar="PATH[:COLUMN]",
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON file")],
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of each table")] = None,
    random_inits: Annotated[int, typer.Option(help="random networks to compare with; their seeds are --seed and those that follow")] = 1,
    seed: Annotated[int, typer.Option(help="seed of the random networks, of folds that no column gives, and of the intervals")] = 0,
    batch_atoms: Annotated[
        int | None, typer.Option(help="heavy atoms of all units of a batch; by default 16000 on a CPU and 20000 on a GPU")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out")] = False,
) -> None:
    """R2 of a cross-validated ridge regression on the chain embeddings, trained beside random initialisation. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers, check_seed
    from foundation.sampling.writers import check_absent

    if out.suffix.lower() != ".json":
        raise InputError(f"--out {out} has the extension {out.suffix!r}; use .json")
    check_absent(out, overwrite)
    check_numbers(limit=limit, random_inits=random_inits, batch_atoms=batch_atoms)
    check_seed(seed)

    from data_shards.progress import progress
    from data_shards.reader import open_shards
    from foundation.evaluation import probes
    from foundation.sampling.provenance import provenance, write_json
    from foundation.sampling.run import BATCH_ATOMS, choose_device
    from foundation.train.checkpoint import load_model

    where, bars = choose_device(device), progress()
    opened = open_shards(shards)
    model, config = load_model(checkpoint)
    found = probes.open_probes(opened, table, limit, batch_atoms or BATCH_ATOMS[where.type], bars)
    if dry_run:
        show_plan(found, random_inits, str(where))
        print(f"dry run: nothing was written to {out}")
        return
    trained = probes.embed(found, model.to(where), where, bars)
    seeds = range(seed, seed + random_inits)
    random = {k: probes.embed(found, probes.random_model(config, k).to(where), where, bars, f"random {k}") for k in seeds}
    results = {
        **provenance(model, checkpoint),
        "shards": {"path": shards, "fingerprint": opened.fingerprint},
        "device": str(where),
        "settings": {"seed": seed, "random_seeds": list(seeds), "limit": limit},
        "protocol": probes.PROTOCOL,
        "lost": found.lost,
        "properties": probes.compare(found, trained, random, seed),
    }
    write_json(out, results)
    show(results)
    print(f"probes: {out}")


def show_plan(found: ProbeSet, random_inits: int, device: str) -> None:
    """What would be measured."""
    for name, table in found.tables.items():
        folds = "folds of the table" if table.fold is not None else "folds drawn"
        there = len(set(table.groups) & set(found.groups))
        print(f"{name}: {there} of {len(table.groups)} polymers with {table.column} of {table.path}, {folds}")
    print(f"{len(found.groups)} polymers embedded by the checkpoint and {random_inits} random networks, on {device}")


def show(results: dict[str, Any]) -> None:
    """One row a property, then what dropped out."""
    from rich.console import Console
    from rich.table import Table

    from foundation.evaluation.table import WIDTH, number

    screen = Console()
    screen = screen if screen.is_terminal else Console(width=WIDTH)
    title = f"linear probes of {results['checkpoint']}, {len(results['settings']['random_seeds'])} random initialisations"
    made = Table(title=title, title_justify="left")
    for name in ("property", "polymers", "R2 trained", "R2 random", "squared error, trained - random, / variance", "training is"):
        made.add_column(name, justify="left" if name in ("property", "training is") else "right", no_wrap=name == "property")
    for name, row in results["properties"].items():
        scores = (number(row[who]["r2"], True) for who in ("trained", "random"))
        made.add_row(name, str(row["polymers"]["compared"]), *scores, number(row["difference_of_variance"], True), row["verdict"])
    screen.print(made)
    print(f"[low, high]: {results['protocol']['interval']}")
    for name, row in results["properties"].items():
        dropped = {what: count for what, count in row["rows"].items() if what != "rows" and count}
        polymers = row["polymers"]
        dropped |= {"polymers not in the shards": polymers["not in the shards"]} if polymers["not in the shards"] else {}
        dropped |= {f"polymers without an embedding ({who})": count for who, count in polymers["without an embedding"].items() if count}
        said = "; ".join(f"{count} {what}" for what, count in dropped.items()) or "none dropped"
        print(f"{name}: {row['rows']['rows']} rows of {row['path']}: {said}")


if __name__ == "__main__":
    run(app)
