"""What the share of masked units in training does to the loss and to the diversity of what is generated.

    python -m benchmarks.experiments.masking_ratio --checkpoint runs/y --shards shards/x --out runs/experiments/masking_ratio

The recipe of the checkpoint is trained for a while with a fixed share of masked units, and with the mixture that it has by default.
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

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RATIOS = [0.3, 0.5, 0.7, 0.9]
ASKED = (0.3, 0.7, 1.0)  # shares of masked units at which every model is validated
MIXTURE = "default mixture"


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    ratios: Annotated[list[float], typer.Option(help="shares of masked units beside the default mixture; may be repeated")] = RATIOS,
    steps: Annotated[int, typer.Option(help="optimiser steps of each model")] = 400,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train with several masking ratios and compare. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(num=num, steps=steps)
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise InputError(f"ratios {ratio:g} must be above 0 and at most 1; change --ratios")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    ratios, steps, num = ([0.5], 2, 2) if quick else (ratios, steps, num)
    if dry_run:
        plan(place, f"{len(ratios) + 1} models of {steps} steps, {len(samples)} polymers, {num} conformations")
        return
    finish(place, measure(place, samples, ratios, steps, num))


def measure(place: Place, samples: list[PolymerSample], ratios: list[float], steps: int, num: int) -> dict[str, Any]:
    """Validation loss of the local head at common ratios, and the spread of generated chains beside that of the references."""
    import numpy as np

    from benchmarks.experiments.measure import entropy_bits, estimate, score, spread_ang, values_of, with_fields
    from benchmarks.experiments.training import briefly, validation, validation_loss
    from foundation.evaluation.measure import torsion_counts
    from foundation.evaluation.protocol import reference_of

    references, batches = [reference_of(sample) for sample in samples], validation(place)
    laws: dict[str, float | None] = {**{f"{ratio:g}": ratio for ratio in sorted(ratios)}, MIXTURE: None}
    rows = []
    with place.bars.stage("ratios", len(laws), unit="models") as stage:
        for name, ratio in laws.items():
            fields = [f"objective.mask_ratio={'null' if ratio is None else ratio}"]
            _, model, _ = briefly(place, f"mask-{name.replace(' ', '-')}", steps, fields)
            losses = {f"{at:g}": validation_loss(with_fields(model, mask_ratio=at), batches, "local") for at in ASKED}
            scored, _ = score(model, samples, references, num, place.seed, place.device)
            entropy, spread = [], []
            for one, reference in zip(scored, references, strict=True):
                made, own = one.attempts.x_ang, reference.torsion_counts
                links = entropy_bits(one.measured.link_counts) - entropy_bits(reference.link_counts)
                units = entropy_bits(torsion_counts(reference.tables, made)) - entropy_bits(own) if len(made) else np.full(len(own), np.nan)
                entropy.append((float(links), float(units.mean()) if units.size else np.nan))
                spread.append(spread_ang(made) / spread_ang(reference.x_ang))
            rows.append(
                {
                    "masking": name,
                    "validation_loss": {at: None if np.isnan(v) else v for at, v in losses.items()},
                    "unit_torsion_jsd_bits": estimate(values_of(scored, "unit_torsion_jsd_bits"), place.seed),
                    "spread_ratio": estimate(spread, place.seed),
                    "link_entropy_change_bits": estimate([a for a, _ in entropy], place.seed),
                    "torsion_entropy_change_bits": estimate([b for _, b in entropy], place.seed),
                }
            )
            stage.advance(1, name)
    return {
        "num_polymers": len(samples),
        "num": num,
        "steps": steps,
        "rows": rows,
        "verdicts": [mixture_is_near_best(rows)],
        "notes": [
            "Every model is validated at the same shares of masked units, on the same batches with the same noise.",
            "spread_ratio: mean RMSD between generated conformations / between references. Entropies: generated minus reference, 36 bins; "
            "the entropy of few samples is too low, of fewer the lower.",
        ],
    }


def mixture_is_near_best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Is the default's loss with every unit masked, which is how sampling starts, at most 1 % above the best fixed ratio's?"""
    loss = {row["masking"]: row["validation_loss"]["1"] for row in rows}
    mixture = loss.pop(MIXTURE)
    known = {name: value for name, value in loss.items() if value is not None}
    if mixture is None or not known:
        return verdict(False, "no validation loss to compare")
    best = min(known, key=lambda name: known[name])
    text = f"with every unit masked, the default mixture has loss {mixture:.3f}, the best fixed share ({best}) {known[best]:.3f}"
    return verdict(mixture <= 1.01 * known[best], text)


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a masking law."""
    asked = list(result["rows"][0]["validation_loss"])
    names = ("unit_torsion_jsd_bits", "spread_ratio", "link_entropy_change_bits", "torsion_entropy_change_bits")
    header = ["masked in training", *(f"loss with {float(at):.0%} masked" for at in asked), *names]
    rows = [
        [row["masking"], *(number(row["validation_loss"][at]) for at in asked), *(interval(row[name]) for name in names)]
        for row in result["rows"]
    ]
    return [Table(f"{result['steps']} steps, {result['num_polymers']} polymers, {result['num']} conformations each", header, rows)]


def _ratios(axes: Any, result: dict[str, Any]) -> None:
    place = range(len(result["rows"]))
    for at in result["rows"][0]["validation_loss"]:
        losses = [row["validation_loss"][at] for row in result["rows"]]
        axes.plot(place, [float("nan") if v is None else v for v in losses], "o-", label=f"loss with {float(at):.0%} masked")
    axes.set_xticks(place, [row["masking"] for row in result["rows"]])
    axes.set(xlabel="share of units masked in training", ylabel="validation loss of the local head", title="Masking ratio")
    axes.legend(fontsize=8, frameon=False)


def _diversity(axes: Any, result: dict[str, Any]) -> None:
    place = list(range(len(result["rows"])))
    for k, (name, label, colour) in enumerate(
        (("link_entropy_change_bits", "link dihedrals", BLUE), ("torsion_entropy_change_bits", "unit torsions", RED))
    ):
        axes.bar([i + 0.35 * k for i in place], [row[name]["value"] or 0.0 for row in result["rows"]], 0.33, color=colour, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks([i + 0.175 for i in place], [row["masking"] for row in result["rows"]])
    axes.set(xlabel="share of units masked in training", ylabel="entropy, generated - reference, bit", title="Diversity")
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "masking_ratio",
    "training with 30 to 90 % of the units masked against the default mixture: validation loss and diversity",
    "Which share of masked units trains best, and does it make what is generated more or less diverse?",
    tables,
    {"masking_ratio.png": _ratios, "masking_ratio_diversity.png": _diversity},
)

if __name__ == "__main__":
    run(app)
