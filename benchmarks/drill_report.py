"""What came of a drill: steps, losses and samples of the disturbed run beside those of the undisturbed one, and the page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.setting import commit, processor
from foundation.track.tracker import read_metrics

HEADING = "## Fault drill"
TOLERANCE = 1e-4
SHOWN = 240  # characters of what was seen, in the table


@dataclass
class Fault:
    """One fault and what came of it."""

    kind: str
    at: int  # step
    seen: str = ""
    recovery_sec: float = 0.0
    world_size: int = 0  # afterwards


def compare(faults: list[Fault], quiet: Path, disturbed: Path, record: Path, chains: int, steps: int) -> dict[str, Any]:
    """Steps, losses and samples of the two runs.

    Args:
        faults: what was done to the disturbed run, in order.
        quiet: folder of the undisturbed run.
        disturbed: folder of the other one.
        record: folder of what its processes read.
        chains: samples of an epoch.
        steps: of each run.
    """
    rows, expected = (read_metrics(run / "metrics.jsonl") for run in (disturbed, quiet))
    losses, wanted = ([row["train/loss"] for row in each] for each in (rows, expected))
    stream = samples_read(record)
    epochs = [sorted(stream[k : k + chains]) for k in range(0, len(stream) - chains + 1, chains)]
    skipped = [[row["step"] for row in each if row["train/grad_norm"] is None] for each in (rows, expected)]
    differences = [abs(a - b) for a, b in zip(losses, wanted, strict=False) if a is not None and b is not None]
    smaller = next((fault.at for fault in faults if fault.world_size not in (0, 2)), steps + 1)
    checks = {
        f"{steps} steps, each once": [row["step"] for row in rows] == list(range(1, steps + 1)),
        f"every one of {chains} samples exactly once in each of {len(epochs)} epochs": bool(epochs)
        and all(epoch == list(range(chains)) for epoch in epochs),
        f"steps skipped because of a NaN gradient {skipped[1]}": skipped[0] == skipped[1]
        and skipped[1] == sorted(fault.at for fault in faults if fault.kind == "NaN gradient"),
        f"loss within {TOLERANCE:g} of the undisturbed run at every step (largest difference {max(differences):.1e})": max(differences)
        < TOLERANCE,
        f"bit-identical before step {smaller}, where the world size changes": losses[: smaller - 1] == wanted[: smaller - 1],
    }
    return {
        "machine": processor(),
        "commit": commit(),
        "load": round(os.getloadavg()[2], 1),
        "faults": [vars(fault) for fault in faults],
        "final_loss": losses[-1],
        "undisturbed_final_loss": wanted[-1],
        "checks": checks,
        "passed": all(checks.values()),
    }


def samples_read(record: Path) -> list[int]:
    """Samples in the order of the stream: what was read for every step, by whichever ranks; what was read again must be the same."""
    read: dict[int, tuple[str, str]] = {}
    for path in record.iterdir():
        for line in path.read_text().splitlines():
            step, seen, samples = line.split(" ", 2)
            known = read.setdefault(int(seen), (step, samples))
            assert known == (step, samples), f"micro-batch {seen} was read as {known} and as {(step, samples)}"
    return [int(sample) for seen in sorted(read) for sample in read[seen][1].split()]


def page(result: dict[str, Any]) -> str:
    """The table and the checks as Markdown."""
    lines = [
        HEADING,
        "",
        f"`python -m benchmarks.drill --seed {result['seed']}`: {len(result['faults'])} faults in one run of {result['steps']} steps,"
        f" a checkpoint every {result['checkpoint_every']}. {result['machine']}; two Ray nodes with a CPU each, commit {result['commit']}.",
        "",
        "| fault | at step | what was seen | seconds to recovery | workers then |",
        "|---|---|---|---|---|",
    ]
    for fault in result["faults"]:
        seen = fault["seen"].replace("|", "/").strip("; ") or "went on"
        seen = seen if len(seen) <= SHOWN else f"{seen[:SHOWN].rstrip()} ..."
        lines.append(f"| {fault['kind']} | {fault['at']} | {seen} | {fault['recovery_sec']:.0f} | {fault['world_size']} |")
    lines += ["", f"Final loss {result['final_loss']!r}, undisturbed {result['undisturbed_final_loss']!r}.", ""]
    if result["load"] > 4 * (os.cpu_count() or 1):
        lines += [f"Other work ran on the machine (load {result['load']}): the seconds are upper bounds.", ""]
    lines += [f"- {'yes' if passed else 'NO'}: {check}" for check, passed in result["checks"].items()]
    return "\n".join(lines) + "\n"
