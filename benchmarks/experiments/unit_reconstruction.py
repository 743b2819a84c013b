"""Can the local head reproduce the unit of one polymer?

    python -m benchmarks.experiments.unit_reconstruction --checkpoint runs/y --shards shards/x --out runs/experiments/unit_reconstruction

A fresh local head is trained on the units of one polymer alone; its samples are compared with the units of the shards as the steps go by.
Beside it stand the given checkpoint, which is not trained here, the relaxed RDKit shapes that the torsional head starts from, and what
the units themselves would reach: one half of the chains against the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    Checkpoint,
    Device,
    DryRun,
    Experiment,
    Out,
    Overwrite,
    Place,
    Quick,
    Seed,
    Shards,
    Split,
    Table,
    finish,
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
NUM_COPIES = 8  # chains of a training batch
NUM_SAMPLES = 64  # units compared on each side


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    polymer: Annotated[int, typer.Option(help="which polymer of the split, from 0")] = 0,
    steps: Annotated[int, typer.Option(help="optimiser steps on the one polymer")] = 600,
    points: Annotated[int, typer.Option(help="points of the curve")] = 6,
    head: Annotated[str, typer.Option(help="local head that is trained: torsional or cartesian")] = "cartesian",
    lr: Annotated[float, typer.Option(help="largest learning rate")] = 3e-3,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a local head on one polymer and watch its samples come closer. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(steps=steps, points=points)
    if head not in ("torsional", "cartesian"):
        raise InputError(f"head {head!r} must be torsional or cartesian; change --head")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    if polymer < 0:
        raise InputError(f"polymer {polymer} must be >= 0; change --polymer")
    samples = samples_of(place, split, polymer + 1)
    if polymer >= len(samples):
        raise InputError(f"split {split!r} has {len(samples)} polymers of two units or more, not {polymer + 1}; change --polymer")
    if quick:
        steps, points = 6, 2
    if dry_run:
        plan(place, f"{steps} steps of the {head} head on {samples[polymer].topology.psmiles}, {points + 1} points")
        return
    finish(place, measure(place, samples[polymer], head, steps, points, lr))


def measure(place: Place, sample: PolymerSample, head: str, steps: int, points: int, lr: float) -> dict[str, Any]:
    """RMSD of sampled units to the nearest reference, and of references to the nearest sample, as training goes on."""
    import numpy as np

    from benchmarks.experiments.measure import numbers, shapes_of, true_units
    from foundation.evaluation.metrics import recall_and_precision, rmsd_matrix
    from foundation.sampling.request import library_shapes
    from foundation.sampling.run import stream_of

    num = min(NUM_COPIES, 2 if place.quick else NUM_COPIES)
    batch = next(true_units([sample], max(num, len(sample.heavy_ang)), place.device))
    shapes = numbers(shapes_of(batch), batch.num_chains)[: len(sample.heavy_ang)]  # every conformation once: (K, N, n, 3)
    rng = np.random.default_rng([place.seed, 1])
    units = shapes.reshape(-1, *shapes.shape[2:])
    units = units[rng.permutation(len(units))]
    reference = units[:NUM_SAMPLES]
    half = len(reference) // 2

    def compare(generated: Any, others: Any = reference) -> dict[str, float]:
        recall, precision = recall_and_precision(rmsd_matrix(others, generated[: len(others)]))
        return {"to_nearest_reference_ang": precision, "nearest_sample_ang": recall}

    model = fresh(place, head)
    curve = []
    with place.bars.stage("train", steps, unit="steps") as stage:
        for step in fit(model, [batch], steps, lr, place.seed):
            if step % max(1, steps // points) == 0 or step == steps:
                made = sample_units(model, sample, len(reference), stream_of(place.seed, 2), place)
                curve.append({"step": step, **compare(made)})
            stage.advance(int(step > 0))
    library = library_shapes(sample.topology.psmiles, sample.seed)[0].astype(np.float64)
    given = {
        "checkpoint, not trained here": compare(sample_units(place.model, sample, len(reference), stream_of(place.seed, 3), place)),
        "relaxed RDKit shapes": compare(library),
        "half of the units against the other half": compare(reference[half : 2 * half], reference[:half]),
    }
    first, last = curve[0]["to_nearest_reference_ang"], curve[-1]["to_nearest_reference_ang"]
    return {
        "psmiles": sample.topology.psmiles,
        "head": head,
        "num_references": len(reference),
        "curve": curve,
        "given": given,
        "verdicts": [verdict(last < first, f"training brings the samples closer: {first:.3f} to {last:.3f} angstrom")],
        "notes": [
            "RMSD after Kabsch superposition over the heavy atoms of a unit with both stars; to_nearest_reference is the mean over "
            "samples, nearest_sample the mean over references."
        ],
    }


def fresh(place: Place, head: str) -> Any:
    """An untrained model that has a local head alone to learn."""
    import torch

    from foundation.objectives import build_objective

    torch.manual_seed(place.seed)
    fields = {**place.config.objective.model_dump(), **place.config.objective.WHERE_ABSENT}  # without auxiliary losses
    fields |= {"local_head": head, "phase": "local", "clash_rounds": 0, "label_dropout": 0.0}
    return build_objective(type(place.config.objective).model_validate(fields)).to(place.device)


def fit(model: Any, batches: list[Any], steps: int, lr: float, seed: int) -> Any:
    """Train on the same batches over and over; yields the number of steps done, 0 first."""
    import torch

    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    rng = torch.Generator(batches[0].chain_ptr.device).manual_seed(seed)
    yield 0
    for step in range(steps):
        loss = model.loss(batches[step % len(batches)], rng).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step + 1


def sample_units(model: Any, sample: PolymerSample, num: int, seed: int, place: Place) -> Any:
    """(num, n, 3) units sampled by the local head, all units of as many chains as are needed."""
    import torch

    from benchmarks.experiments.measure import numbers
    from foundation.evaluation.protocol import reference_of
    from foundation.sampling.request import ChainRequest, chain_condition

    topology, chains = sample.topology, -(-num // sample.num_units)
    signs = reference_of(sample).handedness
    request = ChainRequest(topology.psmiles, sample.num_units, topology, sample.num_units, sample.tacticity, sample.seed, signs)
    condition = chain_condition(request, model.capabilities)
    from foundation.batch import select_chains

    condition = select_chains(condition, torch.zeros(chains, dtype=torch.int64)).to(place.device)
    rng = torch.Generator(place.device).manual_seed(seed)
    with torch.no_grad():
        x_unit, _ = model.sample_units(condition, model.know(condition), rng)
    shapes = numbers(x_unit, chains)
    return shapes.reshape(-1, *shapes.shape[2:])[:num]


def tables(result: dict[str, Any]) -> list[Table]:
    """The curve and what stands beside it."""
    header = ["", "sample to nearest reference, Å", "reference to nearest sample, Å"]
    rows = [[f"{result['head']} head, step {p['step']}", *_pair(p)] for p in result["curve"]]
    rows += [[name, *_pair(p)] for name, p in result["given"].items()]
    return [Table(f"Units of `{result['psmiles']}`, {result['num_references']} references", header, rows)]


def _pair(point: dict[str, float]) -> list[str]:
    return [number(point["to_nearest_reference_ang"]), number(point["nearest_sample_ang"])]


def _curve(axes: Any, result: dict[str, Any]) -> None:
    steps = [p["step"] for p in result["curve"]]
    axes.plot(steps, [p["to_nearest_reference_ang"] for p in result["curve"]], "o-", color=RED, label="sample to nearest reference")
    axes.plot(steps, [p["nearest_sample_ang"] for p in result["curve"]], "o--", color=BLUE, label="reference to nearest sample")
    for (name, point), colour in zip(result["given"].items(), (ORANGE, GREY, "black"), strict=True):
        axes.axhline(point["to_nearest_reference_ang"], color=colour, linewidth=1, linestyle=":", label=name)
    axes.set(xlabel="steps on the one polymer", ylabel="RMSD, angstrom", title=f"Units of {result['psmiles']}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "unit_reconstruction",
    "a local head trained on one polymer: RMSD of its units to the nearest reference against steps",
    "How near does a local head come to the units of one polymer when it is trained on nothing else, and how near is the checkpoint?",
    tables,
    {"unit_reconstruction.png": _curve},
)

if __name__ == "__main__":
    run(app)
