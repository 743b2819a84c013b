"""Does training give one curve whatever happens: ZeRO stages on two ranks, one rank, and runs killed with SIGKILL.

    python -m benchmarks.same_curve --shards shards/corpus --out docs/results

writes training.json and training.md. Every run is the command that a user types.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import typer

from benchmarks.setting import commit, processor
from foundation.track.tracker import read_metrics

METRICS = "metrics.jsonl"


def main(
    shards: str = typer.Option(..., help="Shard folder."),
    out: Path = typer.Option(Path("docs/results"), help="Folder for training.json and training.md."),
    steps: int = typer.Option(30, help="Optimiser steps of every run."),
    kills: int = typer.Option(3, help="Times that a run is killed, at random steps."),
    seed: int = typer.Option(0, help="Seed of these steps."),
) -> None:
    """Train, compare, write."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        curves = {"one rank": train(place / "one", shards, steps, 1)}
        for stage in range(4):
            curves[f"two ranks, ZeRO {stage}"] = train(place / f"zero{stage}", shards, steps, 2, f"train.zero_stage={stage}")
        at = {ranks: sorted(rng.sample(range(1, steps), kills)) for ranks in (1, 2)}
        killed = {
            "one rank": (at[1], killed_at(at[1], place / "killed1", shards, steps, 1), curves["one rank"]),
            "two ranks, ZeRO 2": (
                at[2],
                killed_at(at[2], place / "killed2", shards, steps, 2, "train.zero_stage=2"),
                curves["two ranks, ZeRO 2"],
            ),
        }
    reference = curves["two ranks, ZeRO 0"]
    result = {
        "setting": setting(shards, steps),
        "curves": curves,
        "stages": {name: max(abs(a - b) for a, b in zip(curve, reference, strict=True)) for name, curve in curves.items()},
        "killed": {
            name: {"at_steps": when, "bitwise": curve == whole, "steps": len(curve)} for name, (when, curve, whole) in killed.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "training.md").write_text(page(result))
    typer.echo(page(result))


def command(out: Path, shards: str, steps: int, ranks: int, *overrides: str) -> list[str]:
    """The command line of a run: the recipe of the demo, a checkpoint every five steps."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    fields = [f"train.num_steps={steps}", "train.checkpoint_every=5", "train.micro_batches_per_step=2", "data.token_budget=1024"]
    options = ["--recipe", "polyconfm_tiny", "--shards", shards, "--out", str(out)]
    return [sys.executable, *start, "-m", "foundation.pretrain", *options, *fields, *overrides]


def environment() -> dict[str, str]:
    """One thread a rank, nothing sent anywhere."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


def train(out: Path, shards: str, steps: int, ranks: int, *overrides: str) -> list[float]:
    """Losses of a run from start, or from where it stopped, to the end."""
    done = subprocess.run(command(out, shards, steps, ranks, *overrides), capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise RuntimeError(f"training failed with exit code {done.returncode}: {done.stderr[-6000:]}")
    return [row["train/loss"] for row in read_metrics(out / METRICS)]


def killed_at(when: list[int], out: Path, shards: str, steps: int, ranks: int, *overrides: str) -> list[float]:
    """Losses of a run that is killed as soon as it has done so many steps, and started again each time."""
    for step in when:
        process = subprocess.Popen(
            command(out, shards, steps, ranks, *overrides),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        while process.poll() is None and (not (rows := read_metrics(out / METRICS)) or rows[-1]["step"] < step):
            time.sleep(0.005)
        kill_all(process.pid)  # all ranks at once, as when a machine is lost
        process.wait()
    return train(out, shards, steps, ranks, *overrides)


def kill_all(pid: int) -> None:
    """SIGKILL a process, if it is there, and all that it started: torchrun's workers have sessions of their own and would live on."""
    family = []
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def setting(shards: str, steps: int) -> dict[str, Any]:
    """What the numbers hold for."""
    import torch

    return {
        "shards": shards,
        "steps": steps,
        "commit": commit(),
        "machine": processor(),
        "torch": torch.__version__,
    }


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts, curves = result["setting"], result["curves"]
    shown = [0, facts["steps"] // 2, facts["steps"] - 1]
    lines = [
        "# One curve, whatever happens",
        "",
        "`python -m benchmarks.same_curve --shards SHARDS --out docs/results`",
        "",
        f"`polyconfm_tiny`, {facts['steps']} steps of 2 micro-batches of 1,024 atoms on `{facts['shards']}`, a checkpoint every 5 steps;"
        f" {facts['machine']}, torch {facts['torch']}, gloo, commit {facts['commit']}.",
        "",
        "## ZeRO stages",
        "",
        "| run | " + " | ".join(f"loss, step {k + 1}" for k in shown) + " | largest difference of a step from two ranks, ZeRO 0 |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for name, curve in curves.items():
        values = " | ".join(f"{curve[k]:.7f}" for k in shown)
        lines.append(f"| {name} | {values} | {result['stages'][name]:.1e} |")
    lines += [
        "",
        "## Killed with SIGKILL and started again",
        "",
        "| run | killed at step | steps | equal to the last bit |",
        "|---|---|---|---|",
    ]
    for name, made in result["killed"].items():
        when = ", ".join(str(step) for step in made["at_steps"])
        lines.append(f"| {name} | {when} | {made['steps']} | {'yes' if made['bitwise'] else 'NO'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
