"""Training steps: seconds by part, operations against the rate of the machine, padding, memory, and the straightforward way beside it.

    python -m benchmarks.objectives --shards shards/corpus --recipes polyconfm_tiny --recipes polyconfm_small --out docs/results

writes objectives.json and a section of throughput.md. Micro-batches are those that training reads, in its order. The straightforward way
(one chain a step, units padded to the largest of the shards, masked units carried along, every head on every unit) is timed in
turns with ours on the same chains, so that a ratio does not depend on what else the machine does. A step is loss, gradient, clipping and
AdamW: the straightforward way pays the last two for every chain.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks.memory import saved_bytes
from benchmarks.setting import commit, finish, model_of, processor, replace_section
from benchmarks.straightforward import against_straightforward
from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.mixture import Mixture, open_mixture
from data_shards.schema import PolymerSample
from foundation.batch import Batch
from foundation.data.collate import build_batch
from foundation.data.loader import Reader, Reading, order_of
from foundation.data.order import MicroBatch
from foundation.objectives.polyconfm import model as model_file
from foundation.objectives.polyconfm.arithmetic import Flops, Sizes, step_flops
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.recipes import get_recipe
from foundation.train.optim import build_optimizer
from foundation.train.rng import generator

MATRIX_SIZE = 1024
PARTS = {  # method -> part; a part inside another is taken out of it
    "know": "1-D and 2-D encoders",
    "encode_units": "3-D encoder",
    "trunk.encode": "trunk",
    "trunk.decode": "trunk",
    "local_head.loss": "local head",
    "orientation_head.loss": "orientation head",
}


def main(
    shards: str = typer.Option(..., help="shard folder; its training split is read"),
    recipes: list[str] = typer.Option(["polyconfm_tiny", "polyconfm_small"], help="recipes, each with its layers and micro-batch"),
    budget: int = typer.Option(2048, help="atoms of a micro-batch"),
    batches: int = typer.Option(6, help="micro-batches that are timed, the same for all recipes"),
    threads: int = typer.Option(1, help="threads of torch"),
    large: str = typer.Option("polyconfm_base", help="recipe of whole steps on one large polymer"),
    large_psmiles: str = typer.Option("*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1", help="that polymer"),
    large_units: int = typer.Option(100, help="its repeat units"),
    repeats: int = typer.Option(5, help="steps on it"),
    device: str = typer.Option("cpu", help="cpu or cuda"),
    out: Path = typer.Option(Path("runs/bench"), help="folder of objectives.json and throughput.md"),
) -> None:
    """Measure, write, print."""
    torch.set_num_threads(threads)
    where, opened = torch.device(device), open_mixture(shards)
    plan = planned(opened, budget, batches)
    read = [Reader(opened, "train", Reading()).batch(micro).to(where) for micro in plan]
    rate = matrix_rate(where)
    results = {
        "command": f"python -m benchmarks.objectives --shards {shards} --budget {budget} --batches {batches} --threads {threads}",
        "commit": commit(),
        "processor": processor() if where.type == "cpu" else torch.cuda.get_device_name(where),
        "torch": torch.__version__,
        "matrix_gflops_per_sec": rate / 1e9,
        "padding": padding(opened, budget),
        "recipes": {recipe: measure(recipe, read, rate) for recipe in recipes},
        "large": one_polymer(large, large_psmiles, large_units, repeats, rate, where),
        "straightforward": {recipe: against_straightforward(recipe, opened, plan, read, where) for recipe in recipes},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "objectives.json").write_text(json.dumps(results, indent=1) + "\n")
    text = section(results)
    replace_section(out / "throughput.md", "# Throughput", "## Training steps", text)
    print(text)


def planned(shards: Mixture, budget: int, count: int) -> list[MicroBatch]:
    """The first micro-batches of training; their order is random."""
    return order_of(shards, "train", 0, budget).coming(0)[:count]


def padding(shards: Mixture, budget: int) -> dict[str, float]:
    """Atoms over atoms with padding of an epoch, as training does it and packed in the order of the shards without buckets."""
    order = order_of(shards, "train", 0, budget)
    epoch = order.coming(0)
    entries = shards.samples("train")[0]
    plain, row = [], []
    for index in range(len(entries)):
        row.append(index)
        if sum(entries[k].atoms_per_unit * entries[k].num_units for k in row) >= budget or index == len(entries) - 1:
            plain.append(replace(epoch[0], samples=tuple(row)))
            row = []
    return {
        name: sum(order.num_atoms(m) for m in group) / sum(order.padded_atoms(m) for m in group)
        for name, group in (("size buckets", epoch), ("order of the shards", plain))
    }


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Most operations per second of a square matrix product, of several tries."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        finish(device)
        best = max(best, 4 * 2 * MATRIX_SIZE**3 / (time.perf_counter() - began))
    return best


# ------------------------------------------------------------------------------------------------------------- parts of a step


def measure(recipe: str, read: list[Batch], rate: float) -> dict[str, Any]:
    """Seconds, operations and memory of the micro-batches, summed over them."""
    device = read[0].chain_ptr.device
    model = model_of(recipe, device)
    timed_step(model, read[0], Counter())
    seconds: Counter[str] = Counter()
    flops: dict[str, Flops] = {}
    with spied_masks() as masks:
        for batch in read:
            timed_step(model, batch, seconds)
            for part, cost in step_flops(model.config, Sizes.of(batch, masks.pop())).items():
                flops[part] = flops.get(part, Flops()) + cost
    kept, _ = saved_bytes(model, read[0], generator(0, device))
    total = sum(flops.values(), Flops())
    step_sec = seconds["forward"] + seconds["backward"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "micro_batches": len(read),
        "atoms": sum(len(b.x_unit_ang) for b in read),
        "chains": sum(b.num_chains for b in read),
        "seconds": dict(seconds),
        "forward_gflop": {part: cost.forward / 1e9 for part, cost in flops.items()},
        "gflop": total.total / 1e9,
        "gflops_per_sec": total.total / step_sec / 1e9,
        "share_of_matrix_rate": total.total / step_sec / rate,
        "atoms_per_sec": sum(len(b.x_unit_ang) for b in read) / step_sec,
        "kept_for_backward_mib": kept / 2**20,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def timed_step(model: PolyConFM, batch: Batch, seconds: Counter[str]) -> None:
    """Forward by part, backward as a whole; adds to seconds."""
    device = batch.chain_ptr.device
    with spied_parts(model, seconds, device):
        began = time.perf_counter()
        out = model.loss(batch, generator(0, device))
        finish(device)
        middle = time.perf_counter()
    out.loss.backward()
    finish(device)
    seconds["forward"] += middle - began
    seconds["backward"] += time.perf_counter() - middle
    model.zero_grad()


def one_polymer(recipe: str, psmiles: str, units: int, repeats: int, rate: float, device: torch.device) -> dict[str, Any]:
    """Whole steps (loss, gradient, clipping, AdamW) on one grown chain, each with a mask of its own."""
    unit = build_unit(psmiles)
    chain = grow_chain(unit, units, num_conformations=1, tacticity="atactic", seed=0)
    sample = PolymerSample("k", unit.topology, units, "atactic", 0, "grow", chain.heavy_ang, chain.hydrogen_ang, None)
    batch = build_batch([sample], [0], [0]).to(device)
    model, config = model_of(recipe, device), get_recipe(recipe).train
    optimizer = build_optimizer(model, config)
    seconds, flops = [], []
    with spied_masks() as masks:
        for seed in range(repeats + 1):
            began = time.perf_counter()
            model.loss(batch, generator(seed, device)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            finish(device)
            seconds.append(time.perf_counter() - began)
            flops.append(sum(step_flops(model.config, Sizes.of(batch, masks.pop())).values(), Flops()).total)
    seconds, flops = seconds[1:], flops[1:]  # the first allocates
    return {
        "recipe": recipe,
        "psmiles": psmiles,
        "units": units,
        "heavy_atoms_per_unit": unit.topology.num_atoms - 2,  # without its stars
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": repeats,
        "median_seconds": statistics.median(seconds),
        "seconds": seconds,
        "mean_gflop": statistics.mean(flops) / 1e9,
        "share_of_matrix_rate": sum(flops) / sum(seconds) / rate,
    }


@contextmanager
def spied_parts(model: PolyConFM, seconds: Counter[str], device: torch.device) -> Iterator[None]:
    """Times of the methods of PARTS, while the context lasts."""
    spied = []
    for path, part in PARTS.items():
        owner_name, _, name = path.rpartition(".")
        owner = getattr(model, owner_name) if owner_name else model

        setattr(owner, name, _timed(getattr(owner, name), part, seconds, device))
        spied.append((owner, name))
    try:
        yield
    finally:
        for owner, name in spied:
            delattr(owner, name)


def _timed(work: Callable[..., Any], part: str, seconds: Counter[str], device: torch.device) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        made = work(*args, **kwargs)
        finish(device)
        seconds[part] += time.perf_counter() - began
        return made

    return timed


@contextmanager
def spied_masks() -> Iterator[list[Tensor]]:
    """The masks that losses draw, while the context lasts."""
    masks: list[Tensor] = []
    draw = model_file.draw_mask

    def spy(*args: Any) -> Tensor:
        masks.append(draw(*args))
        return masks[-1]

    model_file.draw_mask = spy
    try:
        yield masks
    finally:
        model_file.draw_mask = draw


# ------------------------------------------------------------------------------------------------------------------------ page


def section(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "## Training steps",
        "",
        f"`{results['command']}`, commit {results['commit']}, {results['processor']}, torch {results['torch']}. Raw numbers: "
        "[objectives.json](objectives.json).",
        "",
        f"Rate of a matrix product of {MATRIX_SIZE} x {MATRIX_SIZE}, single precision: {results['matrix_gflops_per_sec']:.0f} GFLOP/s. "
        f"Padding efficiency of an epoch: {results['padding']['size buckets']:.1%} with size buckets, "
        f"{results['padding']['order of the shards']:.1%} packed in the order of the shards.",
        "",
        "| recipe | parameters | chains | atoms | forward, s | backward, s | GFLOP | GFLOP/s | share of the matrix rate | atoms/s "
        "| kept for backward, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for recipe, r in results["recipes"].items():
        lines.append(
            f"| `{recipe}` | {r['parameters']:,} | {r['chains']} | {r['atoms']:,} "
            f"| {r['seconds']['forward']:.2f} | {r['seconds']['backward']:.2f} "
            f"| {r['gflop']:.1f} | {r['gflops_per_sec']:.1f} | {r['share_of_matrix_rate']:.0%} | {r['atoms_per_sec']:,.0f} "
            f"| {r['kept_for_backward_mib']:.0f} |"
        )
    lines += ["", "| forward by part, s (share of its operations) | " + " | ".join(f"`{r}`" for r in results["recipes"]) + " |"]
    lines.append("|---|" + "---:|" * len(results["recipes"]))
    for part in dict.fromkeys(PARTS.values()):
        cells = []
        for r in results["recipes"].values():
            own = r["forward_gflop"][part] + (r["forward_gflop"]["context of the orientation head"] if part == "trunk" else 0)
            cells.append(f"{r['seconds'][part]:.3f} ({own / sum(r['forward_gflop'].values()):.0%})")
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    big = results["large"]
    lines += [
        "",
        f"Whole steps of `{big['recipe']}` ({big['parameters']:,} parameters) on one chain of {big['units']} units of `{big['psmiles']}` "
        f"({big['heavy_atoms_per_unit']} heavy atoms each), clipping and AdamW included: median {big['median_seconds']:.2f} s of "
        f"{big['steps']}, {big['mean_gflop']:.0f} GFLOP, {big['share_of_matrix_rate']:.0%} of the matrix rate.",
        "",
        "Against the straightforward way (one chain a step, units padded to the largest of the shards, masked units carried along as "
        "hidden keys, local head on every unit; the same loss, see tests/benchmarks/test_throughput.py), in turns on the same chains. "
        "An update is clipping and AdamW, which it pays for every chain and ours once for the chains of a step:",
        "",
        "| recipe | s a chain: ours | straightforward | without padding | update, s | chains of our step "
        "| **ratio of steps** | without padding | ratio of loss and gradient | without padding |",
        "|---|" + "---:|" * 9,
    ]
    for recipe, r in results["straightforward"].items():
        lines.append(
            f"| `{recipe}` | {r['seconds_per_chain']:.4f} | {r['straightforward_seconds_per_chain']:.4f} "
            f"| {r['straightforward_unpadded_seconds_per_chain']:.4f} | {r['update_seconds']:.4f} | {r['chains_per_step']:.0f} "
            f"| **{r['ratio_with_update']:.1f}** | {r['ratio_unpadded_with_update']:.1f} | {r['ratio']:.1f} | {r['ratio_unpadded']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
