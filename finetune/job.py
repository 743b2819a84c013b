"""What `finetune.property` does, from tables to a folder of results."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.manifest import write_atomic
from data_shards.progress import Progress, progress
from finetune.card import NAMES, card
from finetune.crossval import results, run_pieces
from finetune.leak import pretrained_on
from finetune.pictures import FIGURES
from finetune.pieces import (
    INPUTS,
    MODEL,
    OURS,
    PIECES,
    PROBLEM,
    UNTRAINED,
    Piece,
    Problem,
    inputs_of,
    load_problem,
    make_inputs,
    make_problem,
    planned,
    save_problem,
)
from finetune.polymers import How
from finetune.predictor import Settings
from finetune.splits import SPLITS, split
from finetune.table import Labels, load
from finetune.tasks import get_task
from finetune.trees import installed
from foundation.errors import InputError
from foundation.sampling.provenance import provenance, weights_fingerprint, write_json

RESULTS, PREDICTIONS, CARD, REFUSED = "results.json", "predictions.csv", "card.md", "refused.csv"
WRITTEN = (PROBLEM, RESULTS, PREDICTIONS, CARD, REFUSED, INPUTS, "metrics.jsonl", "config.json", "run.json", "report.html")
SMALL_TABLE = 1_000  # polymers below which starting Ray costs more than it saves
PICTURES = 10  # best and worst predictions that are drawn atom by atom
SHOWN = 5  # refused rows named on the screen


@dataclass(frozen=True)
class Job:
    """What the user asked for; see the options of finetune.property."""

    task: str
    data: str | None
    column: str | None
    teacher: tuple[str, ...]
    siblings: bool
    checkpoint: str
    out: Path | None
    settings: Settings
    split: str
    baseline: bool
    limit: int | None
    seed: int
    workers: int | None
    track: bool


@dataclass(frozen=True)
class Ready:
    """Checked, and everything that is needed loaded.

    Attributes:
        job: as asked.
        labels: of the task, then of its teachers.
        problem: labels by polymer; its fold is not drawn yet where polymers are split by cluster.
        pieces: that will be fitted; others of the same kinds where polymers are split by cluster or have no inputs.
        leak: how many polymers of the task the pretrained model has seen; None where nobody knows.
        model, config: pretrained.
        out: folder.
        bars: where progress is shown.
        workers: processes; 0 here.
    """

    job: Job
    labels: tuple[Labels, ...]
    problem: Problem
    pieces: list[Piece]
    leak: dict[str, int] | None
    model: Any
    config: Any
    out: Path
    bars: Progress
    workers: int


def prepare(job: Job, *, overwrite: bool, writing: bool) -> Ready:
    """Read and check everything before anything is written.

    Raises:
        InputError: bad input.
    """
    from foundation.train.checkpoint import load_model

    if job.split not in SPLITS:
        raise InputError(f"split {job.split!r} must be one of {', '.join(SPLITS)}; change --split")
    bars = progress()
    out = job.out or Path("runs") / get_task(job.task).name
    check_out(out, overwrite)
    labels = load(job.task, job.data, job.column, job.limit, bars=bars)
    taught = (labels, *_teachers(job, labels, bars))
    model, config = load_model(job.checkpoint)
    fold = split(labels, "folds", job.seed)
    problem = make_problem(taught, fold, job.settings, job.checkpoint, weights_fingerprint(model), job.seed)
    pieces = planned(fold, job.baseline, installed(), curve="gp" in job.settings.heads)
    cores = os.cpu_count() or 1
    workers = job.workers if job.workers is not None else 0 if len(problem.groups) < SMALL_TABLE else cores
    if overwrite and writing and out.exists():
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
        for name in (PIECES, MODEL, "figures"):
            shutil.rmtree(out / name, ignore_errors=True)
    return Ready(job, taught, problem, pieces, _leak(job.checkpoint, labels), model, config, out, bars, workers)


def check_out(out: Path, overwrite: bool) -> None:
    """A new folder, or one of finetune.property that is not finished or may go.

    Raises:
        InputError: taken.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / PROBLEM).is_file()):
        raise InputError(f"--out {out} exists and is no folder of finetune.property; pass another --out")
    if (out / RESULTS).is_file() and not overwrite:
        raise InputError(f"--out {out} holds finished results; pass --overwrite to begin anew, or another --out")


def _teachers(job: Job, labels: Labels, bars: Progress) -> list[Labels]:
    """Tables named, and those of related tasks beside --data."""
    found = {}
    for word in job.teacher:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise InputError(f"--teacher {word!r} must be TASK=FILE, such as eea=eea.csv; change it")
        found[get_task(name).name] = path
    if job.siblings and job.data is not None and "://" not in job.data:
        for name in labels.task.teachers:
            beside = Path(job.data).with_name(f"{name}.csv")
            if Path(job.data).stem == labels.task.name and beside.is_file():
                found.setdefault(name, str(beside))
    if labels.task.name in found:
        raise InputError(f"--teacher {labels.task.name} is the task itself; put its rows into --data")
    return [load(name, path, bars=bars) for name, path in found.items()]


def show_plan(ready: Ready) -> None:
    """What will be learned from what."""
    labels, job = ready.labels[0], ready.job
    folds = f"column fold of {labels.path}" if labels.fold is not None else f"drawn by seed {job.seed}"
    folds = folds if job.split == "folds" else "clusters of like polymers"
    print(f"{labels.task.title}, {labels.task.unit}: {len(labels.groups)} polymers of {labels.rows['rows']} rows; folds: {folds}")
    for teacher in ready.labels[1:]:
        both = len(set(labels.groups) & set(teacher.groups))
        near = f"; it nearly gives away {labels.name}" if teacher.name in labels.task.leaks else ""
        print(f"with it {teacher.task.title}: {len(teacher.groups)} polymers, {both} shared and left out where they are tested{near}")
    for refused in labels.refused[:SHOWN]:
        print(f"row {refused.row} {refused.psmiles[:60]}: {refused.reason}")
    if len(labels.refused) > SHOWN:
        print(f"and {len(labels.refused) - SHOWN} more rows that cannot be used, in {ready.out / REFUSED}")
    seen = ready.leak
    if seen is None:
        print(f"leak check: not known which polymers {job.checkpoint} was pretrained on")
    else:
        share = f"{seen['in_pretraining']} of {seen['polymers']} polymers"
        print(f"leak check: {job.checkpoint} was pretrained on the shapes, not the values, of {share}")
    if not installed():
        print("gradient-boosted trees are left out, as the package lightgbm is not installed; pip install -e '.[baselines]' brings it")
    how = "in this process" if ready.workers == 0 else f"by {ready.workers} Ray processes"
    heads = ", ".join(job.settings.heads)
    print(f"{len(ready.pieces)} fits {how}; pretrained model {job.checkpoint}, heads {heads}, adapter {job.settings.adapter}")


def work(ready: Ready) -> None:
    """Do it: inputs, pieces, results."""
    import torch

    from finetune.pictures import draw
    from finetune.saved import calibrated
    from foundation.evaluation.probes import random_model
    from foundation.report.page import leave_report
    from foundation.sampling.run import BATCH_ATOMS

    job, out, problem = ready.job, ready.out, ready.problem
    show_plan(ready)
    out.mkdir(parents=True, exist_ok=True)
    models = {OURS: ready.model, **({UNTRAINED: random_model(ready.config, job.seed)} if job.baseline else {})}
    how = How(torch.device("cpu"), BATCH_ATOMS["cpu"], ready.workers, ready.bars, job.settings.conformations)
    make_inputs(problem, out, models, how)
    polymers, rows = inputs_of(problem, out)
    lost = [problem.psmiles[k] for k in np.flatnonzero(rows < 0)]
    problem = problem.subset(rows >= 0)
    if job.split != "folds":
        own = rows[rows >= 0][problem.own]
        fold = split(
            _with_inputs(ready.labels[0], problem), job.split, job.seed, polymers.features.counts[own], polymers.features.atoms[own]
        )
        folds = np.full(len(problem.groups), -1)
        folds[problem.own] = fold
        problem = Problem(**{**vars(problem), "fold": folds})
    if (out / PROBLEM).is_file() and load_problem(out).key != problem.key:
        raise InputError(f"--out {out} was begun with other data or settings; pass the same ones, --overwrite, or another --out")
    save_problem(problem, out)
    _write_refused(out / REFUSED, ready.labels[0], lost, polymers)
    pieces = planned(problem.fold[problem.own], job.baseline, installed(), curve="gp" in job.settings.heads)
    found = run_pieces(out, problem, pieces, ready.workers, ready.bars)
    made = results(problem, found)
    calibrated(out / MODEL, np.inf if made["half"] is None else made["half"], made["coverage"])
    labels = ready.labels[0]
    facts = {
        **provenance(ready.model, job.checkpoint),
        "data": {"path": labels.path, "column": labels.column, "rows": labels.rows, "without_inputs": len(lost)},
        "teachers": {teacher.name: {"path": teacher.path, "polymers": len(teacher.groups)} for teacher in ready.labels[1:]},
        "split": job.split if labels.fold is None or job.split != "folds" else "column fold",
        "settings": asdict(job.settings),
        "seed": job.seed,
        "leak": ready.leak,
        "methods": {kind: NAMES.get(kind, kind) for kind in made["scores"]},
        **made,
    }
    _write_predictions(out / PREDICTIONS, made)
    write_atomic(out / CARD, card(facts).encode())
    draw(out, facts)
    if "gp" in job.settings.heads:
        draw_attributions(out, problem, facts, ready.model)
    write_json(out / RESULTS, facts)
    track(out, facts, job.track)
    leave_report(out)
    show(facts)
    print(f"results: {out / RESULTS}; look: {out / 'report.html'}; predict: python -m finetune.predict --model {out} --psmiles '*CC*'")


def draw_attributions(out: Path, problem: Problem, facts: Mapping[str, Any], model: Any) -> None:
    """figures/best.svg and figures/worst.svg: the polymers whose fold predicted them best and worst, by the model of all labels."""
    from data_shards.chem.drawing import coloured_sheet
    from data_shards.chem.repeat_unit import unit_graph
    from finetune.attribution import atom_shares
    from finetune.saved import load_predictor

    saved = load_predictor(out / MODEL)
    rows = facts["predictions"]
    order = np.argsort([abs(row["predicted"] - row["measured"]) for row in rows])
    for name, chosen in (("best", order[:PICTURES]), ("worst", order[::-1][:PICTURES])):
        units = [unit_graph(problem.psmiles[problem.own[k]]) for k in chosen]
        shares = [
            atom_shares(saved.predictor, saved.polymers, int(problem.own[k]), unit, model) for k, unit in zip(chosen, units, strict=True)
        ]
        legends = [f"{rows[k]['measured']:.4g}, predicted {rows[k]['predicted']:.4g}" for k in chosen]
        sheet = coloured_sheet([unit.psmiles for unit in units], shares, legends)
        write_atomic(out / FIGURES / f"{name}.svg", sheet.encode())


def track(out: Path, facts: Mapping[str, Any], wanted: bool) -> None:
    """metrics.jsonl, a line a fold, and its W&B run."""
    import secrets

    from foundation.config import TrackConfig
    from foundation.track.tracker import Tracker

    run = {name: facts[name] for name in ("commit", "versions", "checkpoint", "weights_sha256")}
    config = {"recipe": "property", "objective": facts["task"], **{name: facts[name] for name in ("settings", "split", "seed", "data")}}
    write_json(out / "config.json", config)
    write_json(out / "run.json", {"run_id": secrets.token_hex(4), "job_type": "property", **run})
    (out / "metrics.jsonl").unlink(missing_ok=True)
    found, metric = facts["scores"], facts["metric"]
    names = {f"property/{name}": found["ours"][name] for name in ("rmse", "mae", "r2", "spearman", "coverage")}
    names |= {f"property/{kind}_error": found[kind][metric] for kind in ("untrained", "lightgbm") if kind in found}
    with Tracker(out, first_step=0, track=TrackConfig(wandb=wanted)) as tracker:
        for k in range(len(found["ours"]["rmse"]["folds"])):
            tracker.log(k + 1, {name: score["folds"][k] for name, score in names.items()})


def _with_inputs(labels: Labels, problem: Problem) -> Labels:
    """Labels of the polymers of a problem."""
    keep = np.isin(labels.groups, [problem.groups[k] for k in problem.own])
    chosen = np.flatnonzero(keep).tolist()
    names = {name: tuple(getattr(labels, name)[k] for k in chosen) for name in ("psmiles", "canonical", "groups")}
    return Labels(**{**vars(labels), **names, "values": labels.values[keep], "spread": labels.spread[keep], "fold": None})


def _leak(checkpoint: str, labels: Labels) -> dict[str, int] | None:
    seen = pretrained_on(checkpoint)
    return None if seen is None else {"polymers": len(labels.groups), "in_pretraining": sum(group in seen for group in labels.groups)}


def _write_refused(path: Path, labels: Labels, lost: list[str], polymers: Any) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "psmiles", "reason"])
    table.writerows([[one.row, one.psmiles, one.reason] for one in labels.refused])
    reasons = {one.psmiles: one.reason for one in polymers.features.refused}
    table.writerows([["", psmiles, reasons.get(psmiles, "has no inputs")] for psmiles in lost])
    write_atomic(path, text.getvalue().encode())


def _write_predictions(path: Path, made: Mapping[str, Any]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, ["psmiles", "measured", "predicted", "lower", "upper", "fold"], lineterminator="\n")
    table.writeheader()
    table.writerows(made["predictions"])
    write_atomic(path, text.getvalue().encode())


def show(facts: Mapping[str, Any]) -> None:
    """One row a method."""
    from rich.console import Console
    from rich.table import Table

    from foundation.evaluation.table import WIDTH

    screen = Console()
    screen = screen if screen.is_terminal else Console(width=WIDTH)
    folds = len(facts["scores"]["ours"]["rmse"]["folds"])
    made = Table(title=f"{facts['title']}, {facts['unit']}: {facts['polymers']} polymers, {folds} folds", title_justify="left")
    for name in ("method", "RMSE", "MAE", "R2", "Spearman", "error minus this model's"):
        made.add_column(name, justify="left" if name == "method" else "right")
    for kind, row in {**facts["scores"], **{f"{name} alone": row for name, row in facts["scores_of_heads"].items()}}.items():
        cells = [
            f"{row[m]['mean']:.4g} ± {row[m]['sd'] or 0:.2g}" if row[m]["mean"] is not None else "-"
            for m in ("rmse", "mae", "r2", "spearman")
        ]
        other = facts["differences"].get(kind)
        away = "" if other is None else f"{-other['value']:.3g} [{-other['high']:.3g}, {-other['low']:.3g}]"
        made.add_row(NAMES.get(kind, kind), *cells, away)
    screen.print(made)
    own = facts["scores"]["ours"]
    print(
        f"± standard deviation over folds; {'squared' if facts['metric'] == 'rmse' else 'absolute'} error with 95 % interval over polymers"
    )
    inside, width = own["coverage"]["mean"], own["width"]["mean"]
    if width is not None:
        print(f"{facts['coverage']:.0%} intervals hold {inside:.1%} of the values; mean width {width:.4g} {facts['unit']}")


__all__ = ["Job", "Ready", "prepare", "show", "show_plan", "work"]
