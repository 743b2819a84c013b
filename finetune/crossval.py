"""Cross-validation of a task: pieces computed, intervals calibrated, everything scored beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.crew import Crash, crew
from data_shards.progress import Progress
from finetune import conformal, scores
from finetune.pieces import CURVE, FINAL, OURS, SHARES, Piece, Problem, compute, compute_here, read_piece
from finetune.tasks import get_task
from foundation.errors import InputError
from foundation.evaluation import ridge

TIME_LIMIT_SEC = 6 * 3600.0
Arrays = Mapping[str, NDArray[Any]]


def run_pieces(out: Path, problem: Problem, pieces: Sequence[Piece], workers: int | None, bars: Progress) -> dict[Piece, Arrays]:
    """Every piece, computed where it is not there yet; a run that was stopped goes on with those that are missing.

    Args:
        out: folder of the run, which every worker sees; problem.npz and inputs lie in it.
        problem: of that folder.
        pieces: wanted.
        workers: 0 computes here, one piece after the other with every core; else Ray processes with a core each, None for every processor.
        bars: where progress is shown.

    Raises:
        InputError: a piece cannot be computed.
    """
    import torch

    key = problem.key
    missing = [piece for piece in pieces if read_piece(out, piece, key) is None]
    with bars.stage("fit", len(pieces), len(pieces) - len(missing), unit="fits") as stage:
        if workers == 0:
            for piece in missing:
                compute(out, piece, torch.get_num_threads())
                stage.advance(1, piece.name)
        elif missing:
            with crew(workers) as unordered:
                items = [(str(out.resolve()), piece, 1) for piece in missing]
                for (_, piece, _), answer in unordered(compute_here, items, TIME_LIMIT_SEC):
                    problem_found = answer.value.detail if isinstance(answer.value, Crash) else answer.value
                    if problem_found:
                        raise InputError(f"{piece.name} failed ({problem_found}); the same command goes on with what is missing")
                    stage.advance(1, piece.name)
    found = {piece: read_piece(out, piece, key) for piece in pieces}
    lost = [piece.name for piece, arrays in found.items() if arrays is None]
    if lost:
        raise InputError(f"{lost[0]} was computed but is not in {out}; every worker must see that folder")
    return {piece: arrays for piece, arrays in found.items() if arrays is not None}


def gathered(problem: Problem, found: Mapping[Piece, Arrays], kind: str, name: str = "value") -> NDArray[np.float64] | None:
    """(P0,) learned values that pieces of one kind predict, in the order of problem.own; None where one is missing."""
    values = np.full(len(problem.groups), np.nan)
    for piece, arrays in found.items():
        if piece.kind == kind and piece.fold is not None and name in arrays:
            values[arrays["index"]] = arrays[name]
    own = values[problem.own]
    return own if np.isfinite(own).all() else None


def results(problem: Problem, found: Mapping[Piece, Arrays], coverage: float = conformal.COVERAGE) -> dict[str, Any]:
    """What results.json holds of a finished cross-validation: scores of every method, comparisons, predictions, interval width."""
    task = get_task(problem.tasks[0])
    learned, fold = problem.y[problem.own, 0], problem.fold[problem.own]
    y = task.backward(learned)
    kinds = list(dict.fromkeys(piece.kind for piece in found if piece.kind != FINAL and not piece.kind.startswith(CURVE)))
    values = {kind: own for kind in kinds if (own := gathered(problem, found, kind)) is not None}
    spread = gathered(problem, found, OURS, "spread")
    assert spread is not None
    low, high = conformal.cross_intervals(learned, values[OURS], fold, coverage, spread)
    half = conformal.calibrate(learned, values[OURS], coverage, spread)
    ends = task.backward(low), task.backward(high)
    predicted = {kind: task.backward(own) for kind, own in values.items()}
    names = [
        name.removeprefix("head_") for name in next(iter(found[piece] for piece in found if piece.kind == OURS)) if name.startswith("head_")
    ]
    heads = {name: gathered(problem, found, OURS, f"head_{name}") for name in names}
    scored = {kind: scores.over_folds(y, own, fold, *(ends if kind == OURS else ())) for kind, own in predicted.items()}
    alone = {name: scores.over_folds(y, task.backward(own), fold) for name, own in heads.items() if own is not None}
    seconds: dict[str, float] = {}
    for piece, arrays in found.items():
        seconds[piece.kind] = seconds.get(piece.kind, 0.0) + float(arrays["seconds"])
    rows = zip(problem.own.tolist(), y, predicted[OURS], *ends, fold, strict=True)
    return {
        "task": task.name,
        "title": task.title,
        "unit": task.unit,
        "metric": task.metric,
        "transform": task.transform,
        "polymers": len(y),
        "scores": scored,
        "scores_of_heads": alone,
        "differences": scores.compare(y, predicted, OURS, task.metric, problem.seed) if len(predicted) > 1 else {},
        "metrics": _pooled(y, predicted[OURS], *ends, task.unit, problem.seed),
        "coverage": coverage,
        "half": half if np.isfinite(half) else None,
        "learning_curve": learning_curve(problem, found),
        "seconds": seconds,
        "predictions": [
            {
                "psmiles": problem.psmiles[k],
                "measured": float(v),
                "predicted": float(p),
                "lower": _number(a),
                "upper": _number(b),
                "fold": int(f),
            }
            for k, v, p, a, b, f in rows
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pooled(
    y: NDArray[np.float64], predicted: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], unit: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores over the polymers of all folds together with 95 % intervals over polymers, as the report shows them."""
    found = ridge.scores(y, predicted, seed)
    square = ridge.paired_difference(y, predicted, np.atleast_2d(y), seed)  # squared error minus 0
    made = {"rmse": {key: float(np.sqrt(max(square[key], 0.0))) for key in ("value", "low", "high")}, **found}
    units = {"rmse": unit, "mae": unit, "r2": "1", "spearman": "1"}
    inside = ((low <= y) & (y <= high)).mean()
    return {name: {**made[name], "unit": units[name]} for name in units} | {"coverage": {"value": float(inside), "unit": "fraction"}}


def learning_curve(problem: Problem, found: Mapping[Piece, Arrays]) -> list[dict[str, float]]:
    """Mean error over folds of the Gaussian process alone against the share of the training fold that it was given."""
    task = get_task(problem.tasks[0])
    y, fold = task.backward(problem.y[problem.own, 0]), problem.fold[problem.own]
    whole = gathered(problem, found, OURS, "head_gp")
    points = [(share, gathered(problem, found, f"{CURVE}{share:g}")) for share in SHARES]
    curve = []
    for share, own in [*points, (1.0, whole)]:
        if own is not None:
            error = scores.over_folds(y, task.backward(own), fold)[task.metric]
            curve.append({"share": share, "error": error["mean"], "sd": error["sd"]})
    return curve


__all__ = ["gathered", "learning_curve", "results", "run_pieces"]
