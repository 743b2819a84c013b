"""Local head x orientation head, on true and on generated units.

    python -m benchmarks.experiments.head_ablation --checkpoint runs/y --shards shards/x --out runs/experiments/head_ablation

trains the four pairs for a while with the recipe of the checkpoint; with --checkpoint given several times, those are compared as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
    RED,
    Device,
    DryRun,
    Experiment,
    Limit,
    Num,
    Out,
    Overwrite,
    Place,
    Quick,
    Seed,
    Shards,
    Split,
    Table,
    finish,
    interval,
    plan,
    prepare,
    samples_of,
)
from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.schema import PolymerSample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PAIRS = [(local, orientation) for local in ("torsional", "cartesian") for orientation in ("torsion", "so3")]
GENERATED = ("unit_torsion_jsd_bits", "link_dihedral_jsd_bits", "bond_mae_reference_ang", "clash_rate_per_heavy_atom", "rmsd_recall_ang")
TRUE_UNITS = ("link_dihedral_jsd_bits", "clash_rate_per_heavy_atom", "radius_of_gyration_error")


@app.command()
def main(
    checkpoint: Annotated[list[str], typer.Option(help="one: its recipe is trained with each pair of heads; several: they are compared")],
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    steps: Annotated[int, typer.Option(help="optimiser steps of each pair")] = 400,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare the pairs of heads. Exit 0 done, 2 bad input."""
    from foundation.sampling.request import check_numbers

    check_numbers(num=num, steps=steps)
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    pairs = PAIRS[1:3] if quick else PAIRS  # between them, every head once
    steps, num = (2, 2) if quick else (steps, num)
    if dry_run:
        what = f"{len(checkpoint)} checkpoints" if len(checkpoint) > 1 else f"{len(pairs)} pairs of heads, {steps} steps each"
        plan(place, f"{what}, {len(samples)} polymers, {num} conformations")
        return
    if len(checkpoint) == 1:
        place = trained(place, pairs, steps)
    finish(place, measure(place, samples, num, steps if len(checkpoint) == 1 else None))


def trained(place: Place, pairs: list[tuple[str, str]], steps: int) -> Place:
    """The same place with one model a pair, trained by the usual trainer in run folders beside the result."""
    from benchmarks.experiments.training import briefly

    paths, models, configs = [], [], []
    with place.bars.stage("train", len(pairs), unit="pairs") as stage:
        for local, orientation in pairs:
            fields = [f"objective.local_head={local}", f"objective.orientation_head={orientation}"]
            path, model, config = briefly(place, f"{local}-{orientation}", steps, fields)
            paths.append(str(path))
            models.append(model)
            configs.append(config)
            stage.advance(1, f"{local} x {orientation}")
    return replace(place, checkpoints=paths, models=models, configs=configs)


def measure(place: Place, samples: list[PolymerSample], num: int, steps: int | None) -> dict[str, Any]:
    """Metrics of every pair on generated units, and of its orientation head on true ones."""
    from benchmarks.experiments.measure import Scored, estimate, join_true_units, score, true_units, values_of
    from foundation.evaluation.measure import Attempts
    from foundation.evaluation.measure import measure as measure_attempts
    from foundation.evaluation.protocol import reference_of

    references = [reference_of(sample) for sample in samples]
    rows = []
    with place.bars.stage("measure", len(place.models), unit="models") as stage:
        for name, model in zip(place.checkpoints, place.models, strict=True):
            scored, seconds = score(model, samples, references, num, place.seed, place.device)
            on_true = []
            for index, (reference, batch) in enumerate(zip(references, true_units(samples, num, place.device), strict=True)):
                x_ang, _ = join_true_units(model, batch, place.seed, index)
                attempts = Attempts(x_ang)
                on_true.append(Scored(attempts, measure_attempts(reference, attempts)))
            rows.append(
                {
                    "checkpoint": name,
                    "local_head": model.config.local_head,
                    "orientation_head": model.config.orientation_head,
                    "seconds": seconds,
                    "failed": sum(len(one.attempts.reasons) for one in scored),
                    "generated": {metric: estimate(values_of(scored, metric), place.seed) for metric in GENERATED},
                    "true_units": {metric: estimate(values_of(on_true, metric), place.seed) for metric in TRUE_UNITS},
                }
            )
            stage.advance(1, f"{model.config.local_head} x {model.config.orientation_head}")
    return {
        "num_polymers": len(samples),
        "num": num,
        "steps": steps,
        "rows": rows,
        "notes": ["On true units the orientation head alone is at work: shapes are those of the stored chains."],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Generated units, then true ones."""
    title = f"{result['num_polymers']} polymers, {result['num']} conformations each"
    title += f", {result['steps']} training steps" if result["steps"] else ""
    found = []
    for kind, names in (("generated", GENERATED), ("true_units", TRUE_UNITS)):
        rows = [
            [f"{row['local_head']} x {row['orientation_head']}", *(interval(row[kind][name]) for name in names)] for row in result["rows"]
        ]
        found.append(Table(f"{kind.replace('_', ' ').capitalize()}: {title}", ["heads", *names], rows))
    return found


def _bars(axes: Any, result: dict[str, Any]) -> None:
    names = [f"{row['local_head']}\nx {row['orientation_head']}" for row in result["rows"]]
    shown = (
        ("generated", "unit_torsion_jsd_bits", "unit torsions", RED),
        ("true_units", "link_dihedral_jsd_bits", "links on true units", BLUE),
    )
    for k, (kind, metric, label, colour) in enumerate(shown):
        values = [row[kind][metric]["value"] or 0.0 for row in result["rows"]]
        axes.bar([i + 0.35 * k for i in range(len(names))], values, width=0.33, color=colour, label=label)
    axes.set_xticks([i + 0.175 for i in range(len(names))], names, fontsize=8)
    axes.set(ylabel="divergence, bit", title="Pairs of heads")
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "head_ablation",
    "local head x orientation head, on true and on generated units",
    "Which pair of heads serves best, and how much of the error is the orientation head's own?",
    tables,
    {"head_ablation.png": _bars},
)

if __name__ == "__main__":
    run(app)
