"""How fast shards become batches, and how long training waits for them.

    python -m benchmarks.loader --shards shards/corpus --run runs/corpus --out docs/results

writes loader.json and a section of throughput.md: samples per second of the loader alone, with and without reading processes, in the first
epoch (samples read and decoded) and in the second (samples kept); and the share of step time that rank 0 of a run waited, from the run's
metrics.jsonl.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import typer

from benchmarks.setting import commit, processor, replace_section
from data_shards.mixture import Mixture, open_mixture
from foundation.data.loader import Reading, StepLoader, order_of
from foundation.errors import InputError
from foundation.track.tracker import read_metrics

FIRST_STEPS = 20  # of a run: its processes start, its caches fill


def main(
    shards: str = typer.Option(..., help="shard folder; its training split is read"),
    run: Path | None = typer.Option(None, help="run folder whose metrics.jsonl says how long training waited"),
    budget: int = typer.Option(2048, help="atoms of a micro-batch"),
    workers: list[int] = typer.Option([0, 1, 2], help="reading processes; 0 reads in the process that trains"),
    most: int = typer.Option(2000, help="samples of an epoch that are timed at most"),
    out: Path = typer.Option(Path("runs/bench"), help="folder of loader.json and throughput.md"),
) -> None:
    """Measure, write, print."""
    opened = open_mixture(shards)
    results = {
        "command": f"python -m benchmarks.loader --shards {shards}" + (f" --run {run}" if run else "") + f" --budget {budget}",
        "commit": commit(),
        "processor": processor(),
        "loader": [measure(opened, budget, num, most) for num in workers],
        "run": stall(run) if run else None,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "loader.json").write_text(json.dumps(results, indent=1) + "\n")
    text = section(results)
    replace_section(out / "throughput.md", "# Throughput", "## Reading", text)
    print(text)


def measure(shards: Mixture, budget: int, num_workers: int, most: int) -> dict[str, float]:
    """Samples per second of wall clock, epoch by epoch, nothing else being done with them."""
    order = order_of(shards, "train", 0, budget)
    epoch = min(sum(len(micro.samples) for micro in order.coming(0)), most)
    steps = StepLoader(shards, "train", order, Reading(num_workers), per_step=1).steps()
    rates, atoms = [], 0
    for _ in range(2):
        began, read = time.perf_counter(), 0
        while read < epoch:
            step = next(steps)
            read += step.num_chains
            atoms += step.num_atoms
        rates.append(read / (time.perf_counter() - began))
    steps.close()
    return {"workers": num_workers, "first_epoch": rates[0], "second_epoch": rates[1], "atoms_per_sample": atoms / (2 * epoch)}


def stall(run: Path) -> dict[str, Any]:
    """Share of the time of its steps that rank 0 waited for batches, and of the median step.

    Raises:
        InputError: the run has fewer steps than are left out at its start.
    """
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/step_sec" in row][FIRST_STEPS:]
    if not rows:
        raise InputError(f"{run} has no step after step {FIRST_STEPS}; name a longer run")
    waited, took = ([row[f"train/{name}"] for row in rows] for name in ("loader_wait_sec", "step_sec"))
    workers = json.loads((run / "config.json").read_text())["data"]["num_workers"]
    return {
        "steps": len(rows),
        "workers": workers,
        "share": sum(waited) / sum(took),
        "median_wait_sec": statistics.median(waited),
        "median_step_sec": statistics.median(took),
        "chains_per_sec": statistics.median(row["train/chains_per_sec"] for row in rows),
    }


def section(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "## Reading",
        "",
        f"`{results['command']}`, commit {results['commit']}, {results['processor']}. Raw numbers: [loader.json](loader.json). "
        "Samples per second of the loader alone; a sample is one chain with one conformation, decomposed into unit frames and packed.",
        "",
        "| reading processes | first epoch, samples/s | second epoch, samples/s | atoms a sample |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['workers']} | {r['first_epoch']:.0f} | {r['second_epoch']:.0f} | {r['atoms_per_sample']:.0f} |" for r in results["loader"]
    ]
    if results["run"]:
        r = results["run"]
        lines += [
            "",
            f"In a run ({r['steps']:,} steps, {r['workers']} reading processes) rank 0 waited {r['share']:.1%} of the time of its steps: "
            f"median {r['median_wait_sec'] * 1e3:.1f} ms of {r['median_step_sec'] * 1e3:.0f} ms, {r['chains_per_sec']:.1f} chains/s.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
