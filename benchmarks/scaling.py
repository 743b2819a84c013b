"""Training on one and two ranks and with every ZeRO stage: seconds a step, what a second rank brings, memory of a rank.

    python -m benchmarks.scaling --shards shards/corpus --recipe polyconfm_small --out docs/results
    python -m benchmarks.scaling --shards shards/corpus --recipe polyconfm_large --cases 2:3 --rounds 1 --steps 3 \\
        --change train.activation_checkpointing=true --out docs/results

writes scaling.json, one entry a recipe, and a section of throughput.md. Every case is the real command under torchrun in a folder of its
own, one thread a rank, in turns, so that what else the machine does falls on all. What the terms cost: benchmarks.scaling_measure.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from benchmarks.setting import commit, processor, replace_section
from foundation.errors import InputError
from foundation.track.tracker import read_metrics

FIRST_STEPS = 2  # of a run: allocations, gathering of the first weights


def main(
    shards: str = typer.Option(..., help="shard folder"),
    recipe: str = typer.Option("polyconfm_small", help="recipe"),
    cases: list[str] = typer.Option(["1:0", "2:0", "2:1", "2:2", "2:3"], help="RANKS:ZERO_STAGE"),
    change: list[str] = typer.Option([], help="field of the recipe, key=value"),
    budget: int = typer.Option(1024, help="atoms of a micro-batch"),
    micro_batches: int = typer.Option(4, help="micro-batches of a step, of all ranks together"),
    steps: int = typer.Option(8, help="steps of a run, the first two not counted"),
    rounds: int = typer.Option(2, help="runs of every case, in turns"),
    out: Path = typer.Option(Path("runs/bench"), help="folder of scaling.json and throughput.md"),
) -> None:
    """Measure, write, print."""
    if steps <= FIRST_STEPS:
        raise InputError(f"steps {steps} must be above {FIRST_STEPS}, which are not counted; change --steps")
    wanted = [parse_case(case) for case in cases]
    fields = [
        f"data.token_budget={budget}",
        f"train.micro_batches_per_step={micro_batches}",
        f"train.num_steps={steps}",
        f"train.checkpoint_every={steps}",
        "train.num_val_batches=0",
        "train.num_threads=1",
        "data.num_workers=0",
        "track.wandb=false",
        *change,
    ]
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in wanted}
    for _ in range(rounds):
        for ranks, stage in wanted:
            runs[ranks, stage].append(one_run(shards, recipe, ranks, [*fields, f"train.zero_stage={stage}"]))
    result = {
        "command": f"python -m benchmarks.scaling --shards {shards} --recipe {recipe} --cases {' --cases '.join(cases)} --budget {budget} "
        f"--micro-batches {micro_batches} --steps {steps} --rounds {rounds}" + "".join(f" --change {word}" for word in change),
        "commit": commit(),
        "processor": processor(),
        "cases": [{"ranks": ranks, "zero_stage": stage, **merged(found)} for (ranks, stage), found in runs.items()],
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scaling.json"
    results = {**(json.loads(path.read_text()) if path.exists() else {}), recipe: result}
    path.write_text(json.dumps(results, indent=1) + "\n")
    text = section(results)
    replace_section(out / "throughput.md", "# Throughput", "## Ranks and ZeRO stages", text)
    print(text)


def parse_case(words: str) -> tuple[int, int]:
    """Ranks and ZeRO stage of "2:3".

    Raises:
        InputError: anything else.
    """
    ranks, _, stage = words.partition(":")
    if not (ranks.isdecimal() and int(ranks) > 0 and stage in {"0", "1", "2", "3"}):
        raise InputError(f"case {words!r} must be RANKS:ZERO_STAGE with ranks >= 1 and a stage from 0 to 3; change --cases")
    return int(ranks), int(stage)


def one_run(shards: str, recipe: str, ranks: int, fields: list[str]) -> dict[str, Any]:
    """What the metrics of a run say of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        job = ["-m", "foundation.pretrain", "--recipe", recipe, "--shards", shards, "--out", str(run), *fields]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        surroundings = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run([sys.executable, *launch, *job], env=surroundings, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{' '.join(job)} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/step_sec" in row]
    counted = rows[FIRST_STEPS:]
    return {
        "step_sec": [row["train/step_sec"] for row in counted],
        "chains_per_sec": [row["train/chains_per_sec"] for row in counted],
        "host_peak_mib": max(row["memory/host_peak_mib"] for row in rows),
        "losses": [row["train/loss"] for row in rows],
    }


def merged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps of all runs of a case."""
    return {
        "step_sec": statistics.median(sec for run in found for sec in run["step_sec"]),
        "chains_per_sec": statistics.median(rate for run in found for rate in run["chains_per_sec"]),
        "host_peak_mib": max(run["host_peak_mib"] for run in found),
        "first_loss": found[0]["losses"][0],
        "last_loss": found[0]["losses"][-1],
        "steps": sum(len(run["step_sec"]) for run in found),
    }


def section(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "## Ranks and ZeRO stages",
        "",
        "One thread a rank, gloo, the same steps in every case of a recipe. Efficiency is chains per second over those of one rank times "
        "the ranks. Memory is the most that rank 0's process held, code and libraries included. Raw numbers: [scaling.json](scaling.json).",
    ]
    for recipe, result in results.items():
        lines += [
            "",
            f"`{result['command']}`, commit {result['commit']}, {result['processor']}:",
            "",
            "| recipe | ranks | ZeRO | s a step | chains/s | efficiency | memory, MiB | loss, first step | last |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        alone = next((case["chains_per_sec"] for case in result["cases"] if case["ranks"] == 1), math.nan)
        for case in result["cases"]:
            share = case["chains_per_sec"] / alone / case["ranks"]
            lines.append(
                f"| `{recipe}` | {case['ranks']} | {case['zero_stage']} | {case['step_sec']:.2f} | {case['chains_per_sec']:.2f} "
                f"| {'-' if math.isnan(share) else f'{share:.2f}'} | {case['host_peak_mib']:,.0f} | {case['first_loss']:.5f} "
                f"| {case['last_loss']:.5f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
