"""Polymers for values of one property that the user names, judged by an oracle that learned from polymers the generator never saw.

    python -m benchmarks.design_levels ../shared/data/property/tg.csv --task tg --unlabelled runs/design-corpus.csv \\
        --target -50 --target 100 --target 250 --target 400

Every target is the command that a user types, `finetune.propose --num 100`, timed as a whole. Beside it: as many polymers of training with
the nearest values, as the oracle sees them and as the own model does where it did not learn from them.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.design import RESULTS, once, prepare, store
from benchmarks.setting import commit, processor
from data_shards.console import run
from data_shards.progress import progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    table: Path,
    target: Annotated[list[float], typer.Option(help="value asked for, in the unit of the task; may be repeated")],
    unlabelled: Annotated[Path, typer.Option(help="polymers of benchmarks.design_corpus")],
    task: Annotated[str, typer.Option(help="of finetune.property")] = "tg",
    runs: Annotated[Path, typer.Option(help="where runs are kept; what is there is not made again")] = Path("runs/design-levels"),
    steps: Annotated[int, typer.Option(help="of training of the generator")] = 2_000,
    num: Annotated[int, typer.Option(help="polymers for each target")] = 100,
    draws: Annotated[float, typer.Option(help="graphs drawn for each, as finetune.propose has it")] = 6.0,
    out: Annotated[Path, typer.Option(help="numbers; other parts of the file stay")] = RESULTS,
    seed: Annotated[int, typer.Option(help="of everything drawn")] = 0,
    note: Annotated[str, typer.Option(help="sentence below the table, such as what ran beside")] = "",
) -> None:
    """Train, propose, judge, write."""
    ours, _, oracle = prepare(table, runs, [task])
    model = runs / task
    source = ["--task", task, "--data", str(ours), "--unlabelled", str(unlabelled), "--steps", str(steps)]
    once(model / "generator" / "config.json", "finetune.design", *source, "--out", str(model), "--no-track")
    made: dict[str, Any] = {
        "commit": commit(),
        "processor": processor(),
        "task": task,
        "steps": steps,
        "num": num,
        "draws": draws,
        "note": note,
        "targets": {},
    }
    made["oracle"] = _oracle_error(oracle[0], ours)
    for value in target:
        file = runs / f"{task}{value:g}.csv"
        began = time.perf_counter()
        asked = ["--model", str(model), "--target", f"{task}={value:g}", "--num", str(num), "--draws", f"{draws:g}", "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "finetune.propose", *asked, "--out", str(file), "--overwrite"], check=True)
        made["targets"][f"{value:g}"] = {"seconds": time.perf_counter() - began, **_judged(model, oracle[0], task, value, file, num)}
        print(value, json.dumps(made["targets"][f"{value:g}"]))
        store(out, f"levels {task}", made)


def _oracle_error(oracle: Path, ours: Path) -> float:
    """Mean absolute error of the oracle on the generator's polymers, which it never saw."""
    from finetune.design.guide import Guide
    from finetune.stream import Ready
    from finetune.table import load

    task = Ready(oracle).saved.task
    labels = load(task, str(ours), bars=progress())
    said = Guide([oracle]).say(labels.psmiles, progress())
    return float(np.nanmean(np.abs(task.backward(said.value[:, 0]) - labels.values)))


def out_of_fold(model: Path, task: str, value: float, num: int) -> float:
    """Median of what models of cross-validation, which did not learn from them, say of the polymers with the nearest measured values."""
    with (model / "property" / task / "predictions.csv").open(newline="") as opened:
        rows = [(float(row["measured"]), float(row["predicted"])) for row in csv.DictReader(opened)]
    measured, predicted = np.array(rows).T
    return float(np.median(predicted[np.argsort(np.abs(measured - value), kind="stable")[:num]]))


def _judged(model: Path, oracle: Path, task: str, value: float, file: Path, num: int) -> dict[str, Any]:
    """What the own model and the oracle say of the proposals, and of the nearest polymers of training."""
    from finetune.design.evaluate import diversity
    from finetune.design.guide import Guide
    from finetune.design.saved import load_generator

    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    generator = load_generator(model / "generator")
    known, kind = generator.known, generator.tasks[0]
    labelled = np.flatnonzero(known.labelled)
    held = kind.backward(known.values[labelled, 0])
    near = labelled[np.argsort(np.abs(held - value), kind="stable")[:num]]
    polymers, trained = [row["psmiles"] for row in rows], [known.psmiles[k] for k in near]
    judge = Guide([oracle])
    said = [kind.backward(judge.say(own, progress()).value[:, 0]) for own in (polymers, trained)]
    own = np.array([float(row[task]) for row in rows])
    middle = [*(float(np.nanmedian(values)) for values in (own, *said)), out_of_fold(model, task, value, num)]
    away = [float(np.nanmean(np.abs(values - value))) for values in (own, *said)]
    inside = [float(row[f"{task}_lower"]) <= value <= float(row[f"{task}_upper"]) for row in rows]
    return {
        "proposed": len(rows),
        "median": {"own model": middle[0], "oracle": middle[1], "oracle on training": middle[2], "out of fold on training": middle[3]},
        "mae": {"own model": away[0], "oracle": away[1], "oracle on training": away[2]},
        "interval holds the target": float(np.mean(inside)),
        "new": float(np.mean([row["new"] == "true" for row in rows])),
        "in domain": float(np.mean([row["in_domain"] == "true" for row in rows])),
        "diversity": diversity(polymers),
        "accessibility": float(np.mean([float(row["accessibility"]) for row in rows])),
        "funnel": json.loads(file.with_suffix(".json").read_text())["funnel"],
        "examples": polymers[:10],
    }


if __name__ == "__main__":
    run(app)
