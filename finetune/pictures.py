"""Pictures of a cross-validation: parity, calibration, learning curve."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.manifest import write_atomic

FIGURES = "figures"
LEVELS = np.linspace(0.05, 0.95, 19)  # promised coverages of the calibration plot


def draw(out: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write figures/parity.png, calibration.png and, where there is one, learning_curve.png."""
    from matplotlib.figure import Figure

    (out / FIGURES).mkdir(exist_ok=True)
    rows = facts["predictions"]
    y, predicted, fold = (np.array([row[name] for row in rows]) for name in ("measured", "predicted", "fold"))
    unit = "" if facts["unit"] == "1" else f", {facts['unit']}"
    made = {"parity": _parity(Figure, facts, y, predicted, unit), "calibration": _calibration(Figure, facts, y, predicted, fold)}
    if len(facts["learning_curve"]) > 1:
        made["learning_curve"] = _learning(Figure, facts, unit)
    paths = []
    for name, figure in made.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, metadata={"Software": None})
        paths.append(out / FIGURES / f"{name}.png")
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def _axes(kind: Any, width: float = 4.6, height: float = 4.2) -> tuple[Any, Any]:
    figure = kind(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _parity(kind: Any, facts: Mapping[str, Any], y: Any, predicted: Any, unit: str) -> Any:
    figure, axes = _axes(kind)
    ends = [min(y.min(), predicted.min()), max(y.max(), predicted.max())]
    axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
    axes.scatter(y, predicted, s=6 if len(y) > 1000 else 14, alpha=0.35, linewidths=0, color="#2b6cb0")
    own, after = facts["scores"]["ours"], unit.replace(",", "")
    axes.set_title(f"{facts['title']}: {len(y)} polymers, none seen in training", fontsize=10)
    axes.text(
        0.03,
        0.97,
        f"RMSE {own['rmse']['mean']:.3g}{after}\nMAE {own['mae']['mean']:.3g}{after}\nR² {own['r2']['mean']:.3f}",
        va="top",
        transform=axes.transAxes,
    )
    axes.set_xlabel(f"in the table{unit}")
    axes.set_ylabel(f"predicted{unit}")
    axes.set_aspect("equal", "datalim")
    return figure


def _calibration(kind: Any, facts: Mapping[str, Any], y: Any, predicted: Any, fold: Any) -> Any:
    """Share of values inside intervals against what was promised, of absolute errors calibrated on the other folds."""
    from finetune.conformal import cross_intervals

    figure, axes = _axes(kind)
    found = []
    for level in LEVELS:
        low, high = cross_intervals(y, predicted, fold, float(level))
        found.append(float(((low <= y) & (y <= high)).mean()))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.plot(LEVELS, found, marker="o", markersize=3, color="0.5", label="one width for all")
    own = facts["scores"]["ours"]["coverage"]
    if own["mean"] is not None:
        axes.errorbar(
            [facts["coverage"]], [own["mean"]], yerr=own["sd"] or 0, fmt="s", color="#2b6cb0", label="width by polymer, as predicted"
        )
    axes.set_xlabel("promised")
    axes.set_ylabel("share of values inside")
    axes.set_title(f"{facts['title']}: intervals", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _learning(kind: Any, facts: Mapping[str, Any], unit: str) -> Any:
    figure, axes = _axes(kind)
    shares, errors, sd = (np.array([point[name] or 0.0 for point in facts["learning_curve"]]) for name in ("share", "error", "sd"))
    number = shares * facts["polymers"] * (1 - 1 / max(len(facts["scores"]["ours"]["rmse"]["folds"]), 2))
    axes.errorbar(number, errors, yerr=sd, marker="o", markersize=4, color="#2b6cb0", capsize=2)
    axes.set_xscale("log")
    axes.set_xlabel("polymers with a value in the training fold")
    axes.set_ylabel(f"{facts['metric'].upper()}{unit}")
    axes.set_title(f"{facts['title']}: Gaussian process alone", fontsize=10)
    return figure


__all__ = ["FIGURES", "draw"]
