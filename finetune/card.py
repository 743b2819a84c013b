"""The card of a property model: how it was made, how well it predicts, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.tasks import get_task

NAMES = {
    "ours": "this model",
    "untrained": "the same heads on an untrained network",
    "lightgbm": "LightGBM on Morgan counts and RDKit descriptors",
    "mean": "mean of the training values",
}
NOT_FOR = (
    "Polymers unlike those it was trained on: `in_domain` is false where the nearest training polymer is farther than it is for 95 % of"
    " the training polymers from theirs.",
    "Copolymers, blends, networks, additives, molar mass, tacticity, crystallinity, thermal history: the input is one repeat unit.",
    "Decisions about safety or health without an independent check.",
)


def number(score: Mapping[str, Any] | None, digits: int = 4) -> str:
    """Mean and standard deviation over folds."""
    if not score or score["mean"] is None:
        return "-"
    return f"{score['mean']:.{digits}g}" + (f" ± {score['sd']:.2g}" if score["sd"] is not None else "")


def card(facts: Mapping[str, Any]) -> str:
    """results.json as Markdown for people."""
    task, own, settings = get_task(facts["task"]), facts["scores"]["ours"], facts["settings"]
    rows = [
        f"| {NAMES.get(kind, kind)} | {' | '.join(number(score[metric]) for metric in ('rmse', 'mae', 'r2', 'spearman'))} |"
        for kind, score in facts["scores"].items()
    ]
    rows += [
        f"| {name} head alone | {' | '.join(number(score[metric]) for metric in ('rmse', 'mae', 'r2', 'spearman'))} |"
        for name, score in facts["scores_of_heads"].items()
    ]
    leak = facts["leak"]
    seen = "not known" if leak is None else f"{leak['in_pretraining']} of {leak['polymers']}, their shapes, not their values"
    teachers = ", ".join(f"{name} ({own['polymers']} polymers)" for name, own in facts["teachers"].items()) or "none"
    return "\n".join(
        [
            f"# {facts['title']}",
            "",
            f"Predicts the {task.title} of a homopolymer from its repeat unit, in {task.unit}, with an interval. Written by"
            " `python -m finetune.property`; used by `python -m finetune.predict`.",
            "",
            "| | |",
            "|---|---|",
            f"| command | `{' '.join(facts['command'])}` |",
            f"| polymers | {facts['polymers']} of {facts['data']['rows']['rows']} rows of column {facts['data']['column']} |",
            f"| learned together with | {teachers} |",
            f"| folds | {facts['split']} |",
            f"| pretrained model | {facts['checkpoint']}, sha256 `{facts['weights_sha256']}` |",
            f"| polymers that it was pretrained on | {seen} |",
            f"| heads | {', '.join(settings['heads'])}; adapter {settings['adapter']}; {settings['members']} of each but the process |",
            f"| commit | `{facts['commit']}` |",
            f"| source of the public table of this task | {task.citation} |",
            "",
            "## How well it predicts",
            "",
            f"Cross-validated, mean ± standard deviation over {len(own['rmse']['folds'])} folds; errors in {task.unit}. No polymer is in"
            " two folds, however it is written. What stops training is a part of the training fold.",
            "",
            "| method | RMSE | MAE | R² | Spearman |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"{facts['coverage']:.0%} intervals, each calibrated on the other folds, hold {number(own['coverage'], 3)} of the values; mean"
            f" width {number(own['width'])}.",
            "",
            "## What it is not for",
            "",
            *(f"- {line}" for line in NOT_FOR),
            "",
        ]
    )


__all__ = ["NAMES", "card", "number"]
