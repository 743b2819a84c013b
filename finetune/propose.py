"""Polymers for target properties: `python -m finetune.propose --model runs/design-gas --target o2=100 co2=500 --out candidates.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

REFERENCES, REFINE = 0.5, 0.8  # shares of draws, by default
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True})
def main(
    words: typer.Context,
    model: Annotated[Path, typer.Option(help="folder of finetune.design")],
    out: Annotated[
        Path, typer.Option(help="CSV file of the candidates; a gallery (.svg) and what became of all draws (.json) lie beside it")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="a value or a range in the unit of the property, such as o2=100, 'tg>450' or '300<tg<350'; several may follow"),
    ] = None,
    num: Annotated[int, typer.Option(help="candidates proposed, at most")] = 100,
    draws: Annotated[float, typer.Option(help="graphs drawn for each candidate; the best and least alike are proposed")] = 6.0,
    guidance: Annotated[
        float, typer.Option(help="how strongly what is asked for is followed; 1 as it was learned, more is stronger")
    ] = 2.0,
    steps: Annotated[int, typer.Option(help="of each draw")] = 25,
    references: Annotated[
        float, typer.Option(help="share of draws that are also told what a polymer of the table with values near the targets looks like")
    ] = REFERENCES,
    refine: Annotated[
        float, typer.Option(help="share of draws that begin from polymers near the targets, of the table or drawn before, partly noise")
    ] = REFINE,
    like: Annotated[str | None, typer.Option(help="P-SMILES of a polymer that candidates should be like")] = None,
    keep: Annotated[str | None, typer.Option(help="SMILES of a fragment that every candidate has, such as c1ccccc1 or '*C(=O)O'")] = None,
    without: Annotated[str | None, typer.Option(help="elements that no candidate has, separated by commas, such as F,Cl")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="the pretrained model of the property models, where it is no longer at the place named then")
    ] = None,
    structures: Annotated[int, typer.Option(help="first candidates of which a chain is generated, in an SDF file beside --out")] = 0,
    num_units: Annotated[int, typer.Option(help="repeat units of these chains")] = 20,
    seed: Annotated[int, typer.Option(help="of everything drawn; equal seeds give equal candidates")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out and the files beside it")] = False,
) -> None:
    """Draw polymers, predict their properties, and propose those that are near the targets and unlike each other.

    Columns: psmiles, rank, each property with its 90 % interval, in_domain, similarity and nearest polymer of training, new (not among the
    polymers of training), synthetic accessibility (1 easy, 10 hard), miss (from the targets, in deviations). Exit 0 done, 2 bad input or no
    polymer was drawn.
    """
    from finetune.design.proposals import Request, prepare, propose
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers, check_seed
    from foundation.sampling.writers import check_absent

    if out.suffix.lower() != ".csv":
        raise InputError(f"--out {out} has the extension {out.suffix!r}; use .csv")
    for suffix in (".csv", ".svg", ".json", *([".sdf"] if structures else [])):
        check_absent(out.with_suffix(suffix), overwrite)
    check_numbers(num=num, steps=steps, num_units=num_units)
    check_seed(seed)
    for name, share in (("references", references), ("refine", refine)):
        if not 0 <= share <= 1:
            raise InputError(f"--{name} {share:g} must be from 0 to 1; change it")
    if draws < 1 or structures < 0 or guidance < 0:
        name, value, bound = next(
            own for own in (("draws", draws, 1), ("structures", structures, 0), ("guidance", guidance, 0)) if own[1] < own[2]
        )
        raise InputError(f"--{name} {value:g} must be >= {bound}; change it")
    targets = (*(target or ()), *words.args)
    asked = prepare(
        Request(
            model, targets, num, out, draws, guidance, steps, references, refine, like, keep, without, checkpoint,
            structures, num_units, seed,
        )
    )  # fmt: skip
    if dry_run:
        wanted = ", ".join(str(own) for own in asked.targets) or "any polymer"
        print(f"{num} polymers for {wanted}, from {int(-(-num * draws // 1))} draws; nothing was written to {out}")
        return
    propose(asked)


if __name__ == "__main__":
    run(app)
