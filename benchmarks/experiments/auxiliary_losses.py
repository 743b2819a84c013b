"""Which auxiliary losses pay: linear probes of properties and torsion divergence after training with each, with all, and with none.

    python -m benchmarks.experiments.auxiliary_losses --checkpoint runs/y --shards shards/x --out runs/experiments/auxiliary_losses \\
        --probes shards/probes --table tg.csv --table egc.csv

The recipe of the checkpoint is trained for a while with each choice of weights; a network before training is probed beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
    RED,
    Checkpoint,
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
    number,
    plan,
    prepare,
    samples_of,
    verdict,
)
from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.schema import PolymerSample
    from foundation.evaluation.probes import ProbeSet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TERMS = ("token_weight", "agreement_weight", "statistics_weight", "descriptor_weight", "level_weight")
NONE, ALL, UNTRAINED = "none", "all", "before training"
JUDGED = ("unit_torsion_jsd_bits", "link_dihedral_jsd_bits")


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    table: Annotated[list[str], typer.Option(help="table with a property, as PATH or PATH:COLUMN; may be repeated")],
    probes: Annotated[str | None, typer.Option(help="shards with conformations of the polymers of the tables; by default --shards")] = None,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    weights: Annotated[list[float], typer.Option(help="weights of each term; may be repeated")] = [0.1],  # noqa: B006
    steps: Annotated[int, typer.Option(help="optimiser steps of each model")] = 400,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train with each auxiliary loss and compare. Exit 0 done, 2 bad input."""
    from data_shards.reader import open_shards
    from foundation.errors import InputError
    from foundation.evaluation.probes import open_probes
    from foundation.sampling.request import check_numbers
    from foundation.sampling.run import BATCH_ATOMS

    check_numbers(num=num, steps=steps)
    for weight in weights:
        if not weight > 0:
            raise InputError(f"weights {weight:g} must be above 0, no auxiliary loss is a case of its own; change --weights")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    steps, num = (2, 2) if quick else (steps, num)
    found = open_probes(open_shards(probes or shards), table, None, BATCH_ATOMS[place.device.type], place.bars)
    cases = choices(weights)
    if dry_run:
        plan(place, f"{len(cases)} models of {steps} steps, {len(samples)} polymers, {len(found.groups)} polymers probed")
        return
    finish(place, measure(place, samples, found, cases, steps, num))


def choices(weights: list[float]) -> dict[str, dict[str, float]]:
    """Name -> weights of the terms: none, each alone and all together with every weight."""
    cases = {NONE: dict.fromkeys(TERMS, 0.0)}
    for weight in weights:
        for term in TERMS:
            cases[f"{term.removesuffix('_weight')} {weight:g}"] = dict.fromkeys(TERMS, 0.0) | {term: weight}
        cases[f"{ALL} {weight:g}"] = dict.fromkeys(TERMS, weight)
    return cases


def measure(
    place: Place, samples: list[PolymerSample], found: ProbeSet, cases: dict[str, dict[str, float]], steps: int, num: int
) -> dict[str, Any]:
    """Divergences and probes of every case; squared errors of probes against the network before training, polymer by polymer."""
    import numpy as np

    from benchmarks.experiments.measure import estimate, score, values_of
    from benchmarks.experiments.training import briefly, validation, validation_loss
    from foundation.evaluation import probes, ridge
    from foundation.evaluation.protocol import reference_of

    references, batches = [reference_of(sample) for sample in samples], validation(place)
    network = probes.random_model(place.config, place.seed).to(place.device)
    vectors, rows = {UNTRAINED: probes.embed(found, network, place.device, place.bars, UNTRAINED)}, []
    with place.bars.stage("cases", len(cases), unit="models") as stage:
        for name, fields in cases.items():
            words = [f"objective.{term}={weight:g}" for term, weight in fields.items()]
            _, model, _ = briefly(place, f"auxiliary-{name.replace(' ', '-')}", steps, words)
            vectors[name] = probes.embed(found, model, place.device, place.bars, name[:12])
            losses = {term: validation_loss(model, batches, term) for term in ("local", "orientation")}
            scored, _ = score(model, samples, references, num, place.seed, place.device)
            rows.append(
                {
                    "case": name,
                    "weights": fields,
                    "validation_loss": {term: None if np.isnan(loss) else loss for term, loss in losses.items()},
                    "values": {metric: estimate(values_of(scored, metric), place.seed) for metric in JUDGED},
                }
            )
            stage.advance(1, name)
    properties = {}
    for name, table in found.tables.items():
        chosen, predicted = probes.regress(table, found, list(vectors.values()), place.seed)
        y = table.values[chosen]
        made = dict(zip(vectors, predicted, strict=True))
        changes = {}
        for case, own in made.items():
            change = ridge.paired_difference(y, own, made[UNTRAINED][None], place.seed)
            changes[case] = {key: change[key] if key == "num_polymers" else change[key] / y.var() for key in change}
        properties[name] = {
            "polymers": len(chosen),
            "r2": {case: ridge.r2(y, own) for case, own in made.items()},
            "squared_error_change_of_variance": changes,
        }
    return {
        "num_polymers": len(samples),
        "num": num,
        "steps": steps,
        "rows": rows,
        "properties": properties,
        "verdicts": [pays(rows, properties)],
        "notes": [
            "Probes: ridge regression on chain embeddings, cross-validated; the change is that of the squared error against the network "
            "before training, over the variance of the property, so negative where training helps.",
            "One seed; a model of each case.",
        ],
    }


def mean_r2(properties: dict[str, Any], case: str) -> float:
    """Over the properties."""
    return sum(found["r2"][case] for found in properties.values()) / len(properties)


def pays(rows: list[dict[str, Any]], properties: dict[str, Any]) -> dict[str, Any]:
    """Does some case read more of the properties than training without auxiliary losses, and than no training?"""
    best = max((row["case"] for row in rows), key=lambda case: mean_r2(properties, case))
    text = f"mean R2 of the probes {mean_r2(properties, best):.3f} with {best}, {mean_r2(properties, NONE):.3f} with {NONE}, "
    text += f"{mean_r2(properties, UNTRAINED):.3f} {UNTRAINED}"
    return verdict(best != NONE and mean_r2(properties, best) > mean_r2(properties, UNTRAINED), text)


def tables(result: dict[str, Any]) -> list[Table]:
    """What the chains are like, and what the probes read."""
    header = ["auxiliary losses", "validation loss of units", "of links", *JUDGED]
    rows = [
        [
            row["case"],
            *(number(row["validation_loss"][term]) for term in ("local", "orientation")),
            *(interval(row["values"][name]) for name in JUDGED),
        ]
        for row in result["rows"]
    ]
    properties = result["properties"]
    cases = [UNTRAINED, *(row["case"] for row in result["rows"])]
    read = [[case, f"{mean_r2(properties, case):.3f}", *(f"{found['r2'][case]:.3f}" for found in properties.values())] for case in cases]
    return [
        Table(f"{result['steps']} steps, {result['num_polymers']} polymers, {result['num']} conformations each", header, rows),
        Table("R2 of linear probes", ["auxiliary losses", "mean", *properties], read),
    ]


def _probes(axes: Any, result: dict[str, Any]) -> None:
    cases = [UNTRAINED, *(row["case"] for row in result["rows"])]
    values = [mean_r2(result["properties"], case) for case in cases]
    axes.barh(cases[::-1], values[::-1], color=[*[BLUE] * (len(cases) - 1), RED])
    axes.set(xlabel=f"mean R2 of {len(result['properties'])} linear probes", title="Auxiliary losses")
    axes.set_xlim(left=0.9 * min([*values, 1.0]))


EXPERIMENT = Experiment(
    "auxiliary_losses",
    "training with each auxiliary loss, all and none: linear probes of properties, torsion divergences",
    "Which auxiliary losses make embeddings say more of properties, and what do they cost the conformations?",
    tables,
    {"auxiliary_losses.png": _probes},
)

if __name__ == "__main__":
    run(app)
