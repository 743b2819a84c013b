"""How many steps sampling needs.

    python -m benchmarks.experiments.sampling_steps --checkpoint runs/y --shards shards/x --out runs/experiments/sampling_steps

A grid of autoregressive steps and diffusion steps of both heads; the budget with the most of both is what the others are held against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
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
JUDGED = ("unit_torsion_jsd_bits", "link_dihedral_jsd_bits", "clash_rate_per_heavy_atom")


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    ar_steps: Annotated[list[int], typer.Option(help="autoregressive steps; may be repeated")] = [1, 2, 4, 8, 16],  # noqa: B006
    diffusion_steps: Annotated[
        list[str], typer.Option(help="solver steps of both heads, or LOCAL:ORIENTATION; may be repeated, the most last")
    ] = ["5", "10", "20", "50", "200"],  # noqa: B006
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Sample on a grid of budgets and say which is within noise of the largest. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(num=num)
    if min(ar_steps) < 1:
        raise InputError(f"ar_steps {min(ar_steps)} must be >= 1; change --ar-steps")
    diffusion = [solver_steps(words) for words in diffusion_steps]
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    if quick:
        ar_steps, diffusion, num = [1, 2], [(2, 3), (4, 4)], 2
    budgets = grid(ar_steps, diffusion)
    if dry_run:
        plan(place, f"{len(samples)} polymers, {num} conformations with each of {len(budgets)} budgets")
        return
    finish(place, measure(place, samples, budgets, num))


Budget = tuple[int, int, int]  # autoregressive, local and orientation steps


def solver_steps(words: str) -> tuple[int, int]:
    """Steps of the local and of the orientation head: "20" means both, "10:20" each its own.

    Raises:
        InputError: anything else, or a number below 1.
    """
    from foundation.errors import InputError

    parts = words.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"diffusion_steps {words!r} must be a number >= 1, or two as LOCAL:ORIENTATION; change --diffusion-steps")
    return int(parts[0]), int(parts[-1])


def grid(ar_steps: list[int], diffusion_steps: list[tuple[int, int]]) -> list[Budget]:
    """Every pair but for the largest diffusion budget, which is taken with the most autoregressive steps alone."""
    few, most = sorted(set(diffusion_steps))[:-1], max(diffusion_steps)
    return [(a, *d) for a in sorted(set(ar_steps)) for d in few] + [(max(ar_steps), *most)]


def measure(place: Place, samples: list[PolymerSample], budgets: list[Budget], num: int) -> dict[str, Any]:
    """Metrics and seconds of every budget and their paired change against the last one."""
    from benchmarks.experiments.measure import difference, estimate, score, values_of, with_fields
    from foundation.evaluation.protocol import reference_of

    references = [reference_of(sample) for sample in samples]
    units = num * sum(sample.num_units for sample in samples)
    values, seconds = {}, {}
    with place.bars.stage("budgets", len(budgets), unit="budgets") as stage:
        for budget in budgets:
            model = with_fields(place.model, ar_steps=budget[0], local_steps=budget[1], orientation_steps=budget[2])
            scored, seconds[budget] = score(model, samples, references, num, place.seed, place.device)
            values[budget] = {name: values_of(scored, name) for name in JUDGED}
            stage.advance(1, f"{budget[0]} x {steps(budget[1:])}")
    largest = values[budgets[-1]]
    rows = [
        {
            "ar_steps": budget[0],
            "local_steps": budget[1],
            "orientation_steps": budget[2],
            "seconds_per_unit": seconds[budget] / units,
            "values": {name: estimate(own, place.seed) for name, own in values[budget].items()},
            "changes": {name: difference(own, largest[name], place.seed) for name, own in values[budget].items()},
        }
        for budget in budgets
    ]
    now = {"ar_steps": place.config.objective.model_dump()["ar_steps"]}
    now |= {name: place.config.objective.model_dump()[name] for name in ("local_steps", "orientation_steps")}
    return {
        "num_polymers": len(samples),
        "num": num,
        "defaults": now,
        "rows": rows,
        "verdicts": [enough(rows)],
        "notes": [
            "Seconds are processor seconds of sampling, clashes included, without the metrics.",
            "A budget is within noise where the paired bootstrap interval of its change against the largest budget does not lie above zero "
            "for any judged metric.",
        ],
    }


def steps(both: tuple[int, int]) -> str:
    """What is printed for the steps of both heads."""
    return str(both[0]) if both[0] == both[1] else f"{both[0]}:{both[1]}"


def _steps_of(row: dict[str, Any]) -> str:
    return steps((row["local_steps"], row["orientation_steps"]))


def within_noise(row: dict[str, Any]) -> bool:
    """No judged metric (all are better low) is worse than with the largest budget beyond its interval."""
    return all(row["changes"][name]["value"] is None or row["changes"][name]["low"] <= 0 for name in JUDGED)


def enough(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest budget within noise of the last row, which has the most steps."""
    largest = rows[-1]
    cheap = min((row for row in rows if within_noise(row)), key=lambda row: row["seconds_per_unit"])
    text = f"{cheap['ar_steps']} autoregressive x {_steps_of(cheap)} diffusion steps are within noise of "
    text += f"{largest['ar_steps']} x {_steps_of(largest)} at {cheap['seconds_per_unit'] / largest['seconds_per_unit']:.0%} of the time"
    tenth = all(10 * cheap[name] <= largest[name] for name in ("local_steps", "orientation_steps"))
    return verdict(tenth, f"a tenth of the diffusion steps is enough: {text}")


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a budget."""
    header = ["autoregressive steps", "diffusion steps (local:orientation)", "ms a unit", *JUDGED, "within noise of the last row"]
    rows = [
        [
            str(row["ar_steps"]),
            _steps_of(row),
            number(1000 * row["seconds_per_unit"], 1),
            *(interval(row["values"][name]) for name in JUDGED),
            "yes" if within_noise(row) else "no",
        ]
        for row in result["rows"]
    ]
    now = ", ".join(f"{name} {value}" for name, value in result["defaults"].items())
    return [Table(f"{result['num_polymers']} polymers, {result['num']} conformations each; the checkpoint's own: {now}", header, rows)]


def _budgets(axes: Any, result: dict[str, Any]) -> None:
    for ar in sorted({row["ar_steps"] for row in result["rows"]}):
        own = [row for row in result["rows"] if row["ar_steps"] == ar and row["values"]["unit_torsion_jsd_bits"]["value"] is not None]
        seconds = [1000 * row["seconds_per_unit"] for row in own]
        axes.plot(seconds, [row["values"]["unit_torsion_jsd_bits"]["value"] for row in own], "o-", label=f"{ar} autoregressive steps")
    axes.set(xlabel="ms a unit", ylabel="divergence of unit torsions, bit", xscale="log", title="Quality against the cost of sampling")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "sampling_steps",
    "autoregressive x diffusion steps: divergences, clashes, seconds; which budget is within noise of ten times the steps",
    "How many autoregressive and diffusion steps does sampling need before more of them change nothing?",
    tables,
    {"sampling_steps.png": _budgets},
)

if __name__ == "__main__":
    run(app)
