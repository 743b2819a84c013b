"""Loss of one or more runs against steps, as a figure: ``python -m benchmarks.loss_curve runs/corpus --out curve.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from foundation.track.tracker import read_metrics

COLOURS = ("#30638e", "#d1495b", "#edae49", "#66a182")
WINDOW = 50  # steps of the running mean of the training loss


def main(
    runs: list[Path] = typer.Argument(help="Run folders with metrics.jsonl."),
    out: Path = typer.Option(..., help="PNG file."),
) -> None:
    """One panel a loss term: training, running mean over 50 steps, as a line; validation as points."""
    from matplotlib.figure import Figure

    terms = ("local", "orientation")
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, len(terms))
    for run, colour in zip(runs, COLOURS, strict=False):
        rows = read_metrics(run / "metrics.jsonl")
        if not rows:
            raise typer.BadParameter(f"{run} has no metrics.jsonl with a whole line; name a run folder")
        for axes, term in zip(panels, terms, strict=True):
            step = np.array([row["step"] for row in rows if f"train/{term}" in row])
            loss = np.array([row[f"train/{term}"] for row in rows if f"train/{term}" in row])
            smooth = np.convolve(loss, np.ones(WINDOW) / WINDOW, mode="valid")
            axes.plot(step[WINDOW - 1 :], smooth, color=colour, linewidth=1, alpha=0.7, label=f"{run.name}, training")
            checks = [(row["step"], row[f"val/{term}"]) for row in rows if f"val/{term}" in row]
            axes.plot(*zip(*checks, strict=True), "o-", color=colour, markersize=3, linewidth=1.5, label=f"{run.name}, validation")
    for axes, term in zip(panels, terms, strict=True):
        axes.set(xlabel="step", ylabel="loss, 1 = zero predictor", title=term)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    typer.run(main)
