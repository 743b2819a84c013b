"""What train.activation_checkpointing saves and costs: bytes kept for the backward pass, and seconds of a forward and backward pass.

    python -m benchmarks.memory --recipes polyconfm_tiny --recipes polyconfm_small

prints one line a recipe. Bytes are exact and the same on every machine; seconds are the median of --repeats on this one.
"""

from __future__ import annotations

import statistics
import time

import torch
import typer

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.schema import PolymerSample
from foundation.batch import Batch
from foundation.data.collate import build_batch
from foundation.objectives import build_objective
from foundation.objectives.base import LossOut
from foundation.recipes import get_recipe
from foundation.train.memory import recompute_activations
from foundation.train.rng import generator

POLYMERS = ("*CC(*)c1ccccc1", "*CC(*)(C)C(=O)OC", "*Oc1ccc(CC(*)=O)cc1", "*CC(*)C")


def main(
    recipes: list[str] = typer.Option(["polyconfm_tiny", "polyconfm_small"], help="recipes, each with its layers"),
    units: int = typer.Option(20, help="repeat units of each chain"),
    repeats: int = typer.Option(5, help="timed passes"),
) -> None:
    """Measure and print."""
    batch = batch_of(units)
    print(f"{batch.num_chains} chains of {units} units, {len(batch.x_unit_ang)} atoms, {torch.get_num_threads()} threads")
    print("| recipe | kept, MB | kept with activation_checkpointing, MB | seconds | seconds with |")
    print("|---|---|---|---|---|")
    for recipe in recipes:
        rows = [measure(recipe, batch, repeats, twice=twice) for twice in (False, True)]
        print(f"| `{recipe}` | {rows[0][0] / 1e6:.1f} | {rows[1][0] / 1e6:.1f} | {rows[0][1]:.2f} | {rows[1][1]:.2f} |")


def batch_of(units: int) -> Batch:
    """One grown chain of every polymer."""
    samples = []
    for psmiles in POLYMERS:
        unit = build_unit(psmiles)
        chain = grow_chain(unit, units, num_conformations=1, tacticity="atactic", seed=0)
        samples.append(PolymerSample("k", unit.topology, units, "atactic", 0, "grow", chain.heavy_ang, chain.hydrogen_ang, None))
    return build_batch(samples, [0] * len(samples), range(len(samples)))


def measure(recipe: str, batch: Batch, repeats: int, *, twice: bool) -> tuple[int, float]:
    """(bytes kept, weights not counted; median seconds)."""
    torch.manual_seed(0)
    model = build_objective(get_recipe(recipe).objective)
    if twice:
        recompute_activations(model)
    kept, out = saved_bytes(model, batch, generator(0))
    out.loss.backward()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.loss(batch, generator(0)).loss.backward()
        seconds.append(time.perf_counter() - began)
    return kept, statistics.median(seconds)


def saved_bytes(model: torch.nn.Module, batch: Batch, rng: torch.Generator) -> tuple[int, LossOut]:
    """Bytes that the backward pass will find kept, weights not counted, and the loss."""
    kept: dict[int, int] = {}
    mine = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in mine:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out: LossOut = model.loss(batch, rng)  # type: ignore[operator]
    return sum(kept.values()), out


if __name__ == "__main__":
    typer.run(main)
