"""Polymers that the generator of repeat units may be trained on.

    python -m benchmarks.design_corpus ../shared/data --out runs/design-corpus.csv

Left out: polymers kept apart for testing, and those of folds 3 and 4 of the tables that designs are judged on, so that an oracle trained
on these folds speaks of polymers that the generator never saw.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
GASES = ("o2_n2_co2", "o2_n2", "o2", "n2", "co2", "ch4")
TABLES = ("property/tg.csv", "property/egc.csv", *(f"design/{name}.csv" for name in GASES))
ORACLE_FOLDS = ("3", "4")


@app.command()
def main(data: Path, out: Annotated[Path, typer.Option(help="CSV file with psmiles and group")]) -> None:
    """Write the table and say how many were left out, and why."""
    judged = set()
    for name in TABLES:
        with (data / name).open(newline="") as file:
            judged |= {row["psmiles"] for row in csv.DictReader(file) if row["fold"] in ORACLE_FOLDS}
    groups = {group for psmiles in judged if (group := _group(psmiles))}
    kept: dict[str, str] = {}
    count = {"kept apart": 0, "judged": 0, "unreadable": 0, "twice": 0}
    with (data / "corpus" / "psmiles.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            group = _group(row["psmiles"])
            if not group:
                count["unreadable"] += 1
                continue
            why = (
                "kept apart" if row["heldout"] + row["heldout_twin"] else "judged" if group in groups else "twice" if group in kept else ""
            )
            if why:
                count[why] += 1
            else:
                kept[group] = row["psmiles"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["psmiles", "group"])
        table.writerows([psmiles, group] for group, psmiles in kept.items())
    print(f"{len(kept)} polymers in {out}; left out: {', '.join(f'{number} {why}' for why, number in count.items())}")


def _group(psmiles: str) -> str:
    """Name of a polymer, "" where there is none."""
    from data_shards.chem.psmiles import canonicalise
    from data_shards.errors import PolymerError

    try:
        return canonicalise(psmiles).group
    except PolymerError:
        return ""


if __name__ == "__main__":
    run(app)
