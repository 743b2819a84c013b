"""For how long do checkpoints hold up training? Written beside the training, written in between, and none at all.

    python -m benchmarks.checkpoint --shards shards/ps100 --out docs/results

writes checkpoint.json and the section "Checkpoints" of training-platform.md. Each kind is measured several times, in turns, each time in a
process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import typer

from benchmarks.same_curve import environment
from benchmarks.setting import commit, processor, replace_section

PAGE, TITLE, HEADING = "training-platform.md", "# The training platform, measured", "## Checkpoints"
KINDS = {"beside": "train.async_checkpoint=true", "in between": "train.async_checkpoint=false", "none": ""}


def main(
    shards: str = typer.Option("", help="Shard folder."),
    out: Path = typer.Option(Path("docs/results"), help="Folder for checkpoint.json and training-platform.md."),
    recipe: str = typer.Option("polyconfm_tiny", help="Recipe."),
    steps: int = typer.Option(151, help="Optimiser steps of a run; what follows the last one is not counted."),
    every: int = typer.Option(50, help="Steps between checkpoints."),
    token_budget: int = typer.Option(1024, help="Atoms of a micro-batch."),
    repeats: int = typer.Option(3, help="Runs of each kind."),
    one: str = typer.Option("", hidden=True, help="Measure one run of this kind and print it."),
) -> None:
    """Measure, write json and page."""
    if one:
        typer.echo(json.dumps(measure(one, shards, recipe, steps, every, token_budget)))
        return
    options = ["--shards", shards, "--recipe", recipe, "--steps", str(steps), "--every", str(every), "--token-budget", str(token_budget)]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, made in runs.items():
            command = [sys.executable, "-m", "benchmarks.checkpoint", *options, "--one", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])
            made.append(json.loads(done.stdout.splitlines()[-1]))
            typer.echo(f"{kind}: {made[-1]}", err=True)
    result = {"setting": setting(shards, recipe, steps, every, token_budget, repeats), "runs": runs}
    out.mkdir(parents=True, exist_ok=True)
    (out / "checkpoint.json").write_text(json.dumps(result, indent=1) + "\n")
    replace_section(out / PAGE, TITLE, HEADING, section(result))
    typer.echo(section(result))


def measure(kind: str, shards: str, recipe: str, steps: int, every: int, token_budget: int) -> dict[str, float]:
    """Seconds of one training from its first step logged to its last, and for how much of that checkpoints held it up."""
    from foundation.config import apply_overrides
    from foundation.recipes import get_recipe
    from foundation.track.tracker import Tracker, read_metrics
    from foundation.train import loop

    times: list[float] = []

    class Timed(Tracker):
        def log(self, step: int, metrics: Any) -> None:
            super().log(step, metrics)
            times.append(time.perf_counter())

    fields = [f"train.num_steps={steps}", f"train.checkpoint_every={every if kind != 'none' else steps}", "train.num_val_batches=0"]
    fields += [f"data.token_budget={token_budget}", "track.wandb=false", *([KINDS[kind]] if KINDS[kind] else [])]
    loop.Tracker = Timed  # type: ignore[misc]
    Path("runs").mkdir(exist_ok=True)  # on the disk of the project: the temporary folder may be memory
    with tempfile.TemporaryDirectory(dir="runs") as folder:
        result = loop.train(apply_overrides(get_recipe(recipe), fields), Path(folder) / "run", shards)
        rows = read_metrics(Path(folder) / "run" / "metrics.jsonl")
        blocked = [row["train/checkpoint_blocked_sec"] for row in rows if "train/checkpoint_blocked_sec" in row]
        size = sum(path.stat().st_size for path in result.checkpoint.iterdir())
    return {
        "loop_sec": times[-1] - times[0],
        "blocked_sec": sum(blocked),
        "longest_sec": max(blocked, default=0.0),
        "checkpoints": len(blocked),
        "checkpoint_mib": size / 2**20,
    }


def setting(shards: str, recipe: str, steps: int, every: int, token_budget: int, repeats: int) -> dict[str, Any]:
    """What the numbers hold for."""
    import torch

    return {
        "shards": Path(shards).name,
        "recipe": recipe,
        "steps": steps,
        "every": every,
        "token_budget": token_budget,
        "repeats": repeats,
        "commit": commit(),
        "machine": processor(),
        "load": round(os.getloadavg()[1], 1),
        "torch": torch.__version__,
    }


def section(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts, runs = result["setting"], result["runs"]
    some = runs["beside"][0]
    lines = [
        HEADING,
        "",
        f"`python -m benchmarks.checkpoint --shards shards/{facts['shards']} --recipe {facts['recipe']} --steps {facts['steps']}"
        f" --every {facts['every']} --token-budget {facts['token_budget']} --repeats {facts['repeats']}`",
        "",
        f"`{facts['recipe']}`, a checkpoint of {some['checkpoint_mib']:.1f} MiB every {facts['every']} steps, {some['checkpoints']:.0f} a"
        f" run, medians of {facts['repeats']} runs taken in turns; {facts['machine']}, torch {facts['torch']}, commit {facts['commit']}.",
        "",
        "| checkpoints | training, s | of it held up by checkpoints, s | share | longest hold, s |",
        "|---|---|---|---|---|",
    ]
    for kind, made in runs.items():
        seconds, blocked, longest = (median(run[key] for run in made) for key in ("loop_sec", "blocked_sec", "longest_sec"))
        share = median(run["blocked_sec"] / run["loop_sec"] for run in made)
        shown = f"{blocked:.2f} | {share:.2%} | {longest:.3f}" if kind != "none" else "0 | 0 % | 0"
        lines.append(f"| {'written ' + kind if kind != 'none' else 'none'} | {seconds:.1f} | {shown} |")
    if facts["load"] > (os.cpu_count() or 1):
        lines += [
            "",
            f"Other work ran on the machine (load {facts['load']}): compare the shares, not the seconds.",
        ]
    lines += ["", "Held up: from the call that saves to its return. The wait for the last checkpoint, after the last step, is not in it."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
