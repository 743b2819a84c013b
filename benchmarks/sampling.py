"""Seconds of generating chains: by part, against length, against numbers of steps.

    python -m benchmarks.sampling --checkpoint runs/corpus --out docs/results

writes sampling.json and a section of throughput.md. What fewer steps do to quality is measured by benchmarks.experiments.sampling_steps.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer

from benchmarks.setting import commit, processor, replace_section
from foundation.errors import InputError
from foundation.objectives.polyconfm import model as model_file
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.sampling.request import ChainRequest, read_request
from foundation.sampling.run import BATCH_ATOMS, choose_device, generate_chains
from foundation.train.checkpoint import load_model

PARTS = {"know": "encoders", "sample_units": "units", "draw_links": "links", "redraw_clashing": "units drawn again"}
STEP_FIELDS = ("ar_steps", "local_steps", "orientation_steps")


def main(
    checkpoint: str = typer.Option(..., help="run folder, checkpoint folder, address of either, or small"),
    psmiles: str = typer.Option("*CC(*)c1ccccc1", help="polymer"),
    lengths: list[int] = typer.Option([20, 100, 1000], help="repeat units"),
    steps: list[str] = typer.Option(["4,5,5", "4,10,10", "8,10,10", "4,20,20", "4,100,100"], help="ar_steps,local_steps,orientation_steps"),
    num: int = typer.Option(10, help="chains of every length"),
    threads: int = typer.Option(torch.get_num_threads(), help="threads of torch"),
    device: str = typer.Option("auto", help="auto, cpu or cuda"),
    out: Path = typer.Option(Path("runs/bench"), help="folder of sampling.json and throughput.md"),
) -> None:
    """Measure, write, print."""
    torch.set_num_threads(threads)
    where = choose_device(device)
    model, config = load_model(checkpoint)
    if not isinstance(model, PolyConFM):
        raise InputError(f"{checkpoint} is a {config.objective.name} model; parts are known of polyconfm alone")
    model.to(where)
    generate(model, read_request(psmiles, 4, "atactic", 0), 1, where)  # unit shapes are made once a polymer
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.sampling --checkpoint {checkpoint} --threads {threads}",
        "commit": commit(),
        "processor": processor() if where.type == "cpu" else torch.cuda.get_device_name(where),
        "recipe": config.recipe,
        "psmiles": psmiles,
        "lengths": [],
        "steps": [],
    }
    for units in lengths:
        results["lengths"].append({"units": units, **generate(model, read_request(psmiles, units, "atactic", 0), num, where)})
    given = model.config
    for words in steps:
        changed = dict(zip(STEP_FIELDS, map(int, words.split(",")), strict=True))
        with stepped(model, changed):
            results["steps"].append({**changed, **generate(model, read_request(psmiles, 100, "atactic", 0), max(1, num // 2), where)})
    assert model.config == given
    out.mkdir(parents=True, exist_ok=True)
    (out / "sampling.json").write_text(json.dumps(results, indent=1) + "\n")
    text = section(results)
    replace_section(out / "throughput.md", "# Throughput", "## Sampling", text)
    print(text)


@contextmanager
def stepped(model: PolyConFM, changed: dict[str, int]) -> Iterator[None]:
    """Another number of steps while the context lasts."""
    config, heads = model.config, (model.local_head, model.orientation_head)
    before = [head.num_steps for head in heads]
    model.config = config.model_copy(update=changed)
    heads[0].num_steps, heads[1].num_steps = changed["local_steps"], changed["orientation_steps"]
    try:
        yield
    finally:
        model.config = config
        for head, number in zip(heads, before, strict=True):
            head.num_steps = number


def generate(model: PolyConFM, request: ChainRequest, num: int, device: torch.device) -> dict[str, Any]:
    """Seconds of wall clock, of all chains, and by part; chains that failed."""
    seconds: Counter[str] = Counter()
    with spied(model, seconds):
        began = time.perf_counter()
        made = list(generate_chains(model, [request], num, 0, BATCH_ATOMS[device.type], device))
        total = time.perf_counter() - began
    return {
        "chains": num,
        "failed": sum(chain.reason is not None for chain in made),
        "seconds": total,
        "seconds_per_chain": total / num,
        "chains_per_sec": num / total,
        "ms_per_unit": 1e3 * total / num / request.num_units,
        "parts": {part: seconds[part] for part in (*PARTS.values(), "untangling")} | {"rest": total - sum(seconds.values())},
    }


@contextmanager
def spied(model: PolyConFM, seconds: Counter[str]) -> Iterator[None]:
    """Times of the outermost of the parts, while the context lasts."""
    inside: list[str] = []

    def timed(work: Any, part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return work(*args, **kwargs)
            inside.append(part)
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[part] += time.perf_counter() - began
                inside.pop()

        return call

    untangle = model_file.untangle
    for name, part in PARTS.items():
        setattr(model, name, timed(getattr(model, name), part))
    model_file.untangle = timed(untangle, "untangling")
    try:
        yield
    finally:
        model_file.untangle = untangle
        for name in PARTS:
            delattr(model, name)


def section(results: dict[str, Any]) -> str:
    """Markdown."""
    parts = list(results["lengths"][0]["parts"])
    lines = [
        "## Sampling",
        "",
        f"`{results['command']}`, `{results['recipe']}`, commit {results['commit']}, {results['processor']}. Raw numbers: "
        f"[sampling.json](sampling.json). Chains of `{results['psmiles']}`, seconds of wall clock.",
        "",
        "| units | chains | failed | s a chain | ms a unit | " + " | ".join(f"{part}, s" for part in parts) + " |",
        "|---:|---:|---:|---:|---:|" + "---:|" * len(parts),
    ]
    for r in results["lengths"]:
        cells = " | ".join(f"{r['parts'][part]:.2f}" for part in parts)
        lines.append(
            f"| {r['units']:,} | {r['chains']} | {r['failed']} | {r['seconds_per_chain']:.2f} | {r['ms_per_unit']:.1f} | {cells} |"
        )
    lines += [
        "",
        "| autoregressive steps | local steps | orientation steps | chains of 100 units per second | s a chain |",
        "|" + "---:|" * 5,
    ]
    for r in results["steps"]:
        numbers = " | ".join(str(r[name]) for name in STEP_FIELDS)
        lines.append(f"| {numbers} | {r['chains_per_sec']:.3f} | {r['seconds_per_chain']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
