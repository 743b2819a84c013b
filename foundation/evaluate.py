"""Measure a model on a split: `python -m foundation.evaluate --checkpoint runs/y --shards shards/x --split test --out runs/y/eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")],
    shards: Annotated[str, typer.Option(help="shard folder, local or any fsspec address")],
    out: Annotated[Path, typer.Option(help="folder of results.json, table.md and figures; made here")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    num: Annotated[int, typer.Option(help="conformations per polymer and method")] = 4,
    limit: Annotated[int | None, typer.Option(help="evaluate at most this many polymers of the split")] = None,
    seed: Annotated[int, typer.Option(help="seed of the conformations, the baselines and the intervals")] = 0,
    batch_atoms: Annotated[
        int | None, typer.Option(help="heavy atoms of all units of a batch; by default 16000 on a CPU and 20000 on a GPU")
    ] = None,
    train_limit: Annotated[int, typer.Option(help="training polymers read for the histogram baseline")] = 1000,
    suite: Annotated[str, typer.Option(help="chains, or full: repeat units and oligomers of three against ETKDG as well")] = "chains",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    track: Annotated[bool, typer.Option(help="add the results to the W&B run of the checkpoint's run folder, where it is tracked")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an evaluation that lies in --out")] = False,
) -> None:
    """Metrics with 95 % intervals, trivial baselines beside them. Exit 0 done, 2 bad input."""
    from foundation.sampling.request import check_numbers, check_seed

    check_numbers(num=num, limit=limit, batch_atoms=batch_atoms, train_limit=train_limit)
    check_seed(seed)
    check_suite(suite)
    check_folder(out, overwrite)

    from data_shards.progress import progress
    from data_shards.reader import open_shards
    from foundation.evaluation import figures, table
    from foundation.evaluation.parts import PartSuite
    from foundation.evaluation.protocol import Settings, evaluate, results_of, select
    from foundation.sampling.provenance import provenance, write_json
    from foundation.sampling.run import BATCH_ATOMS, choose_device
    from foundation.track.attach import attach
    from foundation.train.checkpoint import load_model

    where = choose_device(device)
    settings = Settings(split, num, limit, seed, batch_atoms or BATCH_ATOMS[where.type], train_limit, suite)
    opened = open_shards(shards)
    entries = select(opened, settings)
    model, _ = load_model(checkpoint)
    if dry_run:
        print(f"{len(entries)} polymers of {split}, {num} conformations by the model and each baseline, {suite} suite, on {where}")
        print(f"dry run: nothing was written to {out}")
        return
    parts = PartSuite(num, seed) if suite == "full" else None
    records = evaluate(model.to(where), opened, settings, where, progress(), parts.add if parts else None)
    origin = {**provenance(model, checkpoint), "shards": {"path": shards, "fingerprint": opened.fingerprint}, "device": str(where)}
    results = results_of(records, settings, len(opened.samples("train")[:train_limit]), origin)
    if parts:
        results["parts"] = parts.results()
    out.mkdir(parents=True, exist_ok=True)
    names = figures.draw(results, out)
    (out / "table.md").write_text(table.markdown(results, names))
    write_json(out / "results.json", results)  # last: its presence says that the evaluation is whole
    table.show(results)
    print(f"results: {out / 'results.json'}, table.md, {', '.join(names)}")
    if track and attach(checkpoint, out):
        print("W&B: the run of the checkpoint has the evaluation")


def check_suite(suite: str) -> None:
    """Refuse an unknown suite.

    Raises:
        InputError: neither chains nor full.
    """
    from foundation.errors import InputError

    if suite not in ("chains", "full"):
        raise InputError(f"suite {suite!r} must be chains or full; change --suite")


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuse to write over an evaluation.

    Raises:
        InputError: out is a file, or holds results and overwrite is False.
    """
    from foundation.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if (out / "results.json").exists() and not overwrite:
        raise InputError(f"{out} holds results.json already; choose another --out or pass --overwrite")


if __name__ == "__main__":
    run(app)
