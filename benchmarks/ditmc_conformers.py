"""Repeat units and oligomers of held-out polymers: DiTMC beside ETKDG and ETKDG with MMFF94, over training and over solver steps.

    python -m benchmarks.ditmc_conformers runs/ditmc shards/oligomers --set rpe

Windows, references and ETKDG are those of `foundation.evaluate --suite full`; every checkpoint that the run kept is measured with --at
solver steps, the last one with each number of --steps. Beside them: the loss of held-out polymers, the network's and that of the mean of
the prior.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.setting import commit, processor
from data_shards.console import run
from data_shards.mixture import open_mixture
from data_shards.progress import progress
from data_shards.reader import ShardSet, open_shards
from data_shards.schema import PolymerSample
from foundation.config import RunConfig
from foundation.data.loader import Reading, validation_batches
from foundation.errors import InputError
from foundation.evaluation.ensembles import best_rmsd_matrix, ensemble_values
from foundation.evaluation.measure import Attempts, Reference, reference_of
from foundation.evaluation.parts import ETKDG, PARTS, RELAXED, PartReference, etkdg, part_reference, windows_of
from foundation.evaluation.protocol import Settings, generated, select
from foundation.objectives.ditmc.model import DiTMC
from foundation.track.tracker import read_metrics
from foundation.train import checkpoint
from foundation.train.rng import generator
from foundation.train.snapshot import committed, step_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ditmc_conformers.json"
CPU = torch.device("cpu")
BATCH_ATOMS = 2000  # a batch is computed padded, pair by pair


@dataclass(frozen=True)
class Polymer:
    """A held-out polymer with its references, whole and by part."""

    sample: PolymerSample
    chain: Reference
    parts: dict[str, PartReference]


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="run folder of a ditmc recipe")],
    shards: Annotated[str, typer.Argument(help="what it was trained on")],
    name: Annotated[str, typer.Option("--set", help="name in the results")] = "chains",
    steps: Annotated[list[int] | None, typer.Option(help="solver steps of the last checkpoint; may be repeated")] = None,
    at: Annotated[int, typer.Option(help="solver steps of earlier checkpoints")] = 25,
    num: Annotated[int, typer.Option(help="conformations of each polymer")] = 16,
    limit: Annotated[int, typer.Option(help="polymers, at most")] = 40,
    out: Annotated[Path, typer.Option(help="numbers; other sets in the file stay")] = RESULTS,
    seed: Annotated[int, typer.Option(help="of everything drawn")] = 0,
) -> None:
    """Draw, compare, write."""
    opened, settings = open_shards(shards), Settings("test", num, limit, seed, BATCH_ATOMS, 0)
    polymers = read(opened, settings)
    kept = committed(model)
    if not kept:
        raise InputError(f"{model} has no checkpoint; pass a run folder of foundation.pretrain with a ditmc recipe")
    made: dict[str, Any] = {"command": f"python -m benchmarks.ditmc_conformers {model} {shards} --set {name}", "commit": commit()}
    made |= {"processor": processor(), "threads": torch.get_num_threads(), "polymers": len(polymers), **of_run(model, shards)}
    made["methods"] = {ETKDG: {}, RELAXED: {}}
    with progress().stage(ETKDG, len(polymers)) as stage:
        both = [{part: etkdg(own) for part, own in polymer.parts.items()} for polymer in stage_over(polymers, stage)]
    for place, method in enumerate((ETKDG, RELAXED)):
        made["methods"][method] = means(polymers, [{part: pair[place] for part, pair in own.items()} for own in both])
    every = checkpoint.load_model(str(model))[1].train.keep_every
    kept = [folder for folder in kept if (every and (step_of(folder.name) or 0) % every == 0) or folder == kept[-1]]
    wanted = [(folder, at) for folder in kept] + [(kept[-1], number) for number in steps or [5, 10, 50]]
    for folder, number in wanted:
        label = f"{step_of(folder.name)} updates, {number} steps"
        made["methods"][label] = of_network(folder, polymers, settings, number)
        print(label, json.dumps(made["methods"][label]))
        found = json.loads(out.read_text()) if out.is_file() else {}
        out.write_text(json.dumps({**found, name: made}, indent=1) + "\n")


def read(opened: ShardSet, settings: Settings) -> list[Polymer]:
    """Polymers of the split."""
    found = []
    entries = select(opened, settings)
    with progress().stage("references", len(entries)) as stage:
        for entry in stage_over(entries, stage):
            sample = opened.read(entry)
            chain = reference_of(sample)
            parts = {part: part_reference(sample, chain, part, settings.num, settings.seed) for part in PARTS}
            found.append(Polymer(sample, chain, {part: own for part, own in parts.items() if own is not None}))
    return found


def stage_over(items: Iterable[Any], stage: Any) -> Iterable[Any]:
    """The items, each counted when it is done."""
    for item in items:
        yield item
        stage.advance(1)


def of_run(model: Path, shards: str) -> dict[str, Any]:
    """What was trained, for how long, and its loss on held-out polymers beside that of the mean of the prior."""
    network, config = checkpoint.load_model(str(model))
    assert isinstance(network, DiTMC)
    rows = read_metrics(model / "metrics.jsonl")
    loss = held_out(network, config, shards)

    def mean_of_prior(x: torch.Tensor, t: torch.Tensor, known: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(x), torch.zeros_like(x)

    network.heads = mean_of_prior  # type: ignore[method-assign]
    return {
        "recipe": config.recipe,
        "objective": config.objective.model_dump(mode="json"),
        "parameters": sum(own.numel() for own in network.parameters()),
        "updates": rows[-1]["step"],
        "training seconds": sum(row["train/step_sec"] for row in rows),
        "curve": [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row],
        "loss": loss,
        "loss of the mean of the prior": held_out(network, config, shards),
    }


@torch.no_grad()
def held_out(network: DiTMC, config: RunConfig, shards: str) -> float:
    """Mean loss over the chains of the validation batches, as training measures it."""
    reading = Reading(**config.data.model_dump(exclude={"token_budget"}))
    count = max(1, config.train.num_val_batches)
    batches = validation_batches(open_mixture(shards), reading, token_budget=config.data.token_budget, count=count, rank=0, world_size=1)
    losses = [(own.weight, float(network.loss(own.batch, generator(own.noise_seed)).loss)) for own in batches]
    return sum(weight * loss for weight, loss in losses) / sum(weight for weight, _ in losses)


def of_network(folder: Path, polymers: list[Polymer], settings: Settings, steps: int) -> dict[str, Any]:
    """Of a checkpoint, its averaged weights."""
    network, _ = checkpoint.load_model(str(folder))
    network.config = network.config.model_copy(update={"steps": steps})  # type: ignore[assignment,operator,union-attr]
    samples, chains = [own.sample for own in polymers], [own.chain for own in polymers]
    began = time.perf_counter()
    with progress().stage(f"{folder.name}, {steps} steps", len(polymers)) as stage:
        made = list(stage_over(generated(network.eval(), samples, chains, settings, CPU), stage))
    seconds = (time.perf_counter() - began) / (len(polymers) * settings.num)
    drawn = [
        {part: windows_of(own, attempts) for part, own in polymer.parts.items()} for polymer, attempts in zip(polymers, made, strict=True)
    ]
    return means(polymers, drawn) | {"seconds a chain": seconds}


def means(polymers: list[Polymer], drawn: list[dict[str, Attempts]]) -> dict[str, Any]:
    """Part -> metric -> mean over polymers."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for polymer, of_parts in zip(polymers, drawn, strict=True):
        for part, attempts in of_parts.items():
            own = polymer.parts[part]
            matrix = best_rmsd_matrix(own.x_ang, attempts.x_ang, own.relabellings)
            for metric, value in ensemble_values(matrix, len(attempts.x_ang) + len(attempts.reasons)).items():
                values[part][metric].append(value)
    return {part: {metric: float(np.mean(each)) for metric, each in own.items()} for part, own in values.items()}


if __name__ == "__main__":
    run(app)
