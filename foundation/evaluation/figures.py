"""Figures of an evaluation, drawn from results.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "reference": "black",
    "model": "#d1495b",
    "grow engine": "#30638e",
    "random links": "#9aa0a6",
    "train histogram": "#edae49",
    "extended": "#66a182",
}
TORSION_MAPS = "torsion_maps.png"
MAP_METHODS = ("reference", "model", "random links")
SIZE_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Write the figures of an evaluation.

    Args:
        results: content of results.json.
        folder: where the PNG files go.

    Returns:
        File names.
    """
    from matplotlib.figure import Figure

    names = []
    for name, plot in (("link_dihedrals.png", _links), ("chain_size.png", _sizes), ("bond_errors.png", _bonds)):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        plot(figure.add_subplot(), results)
        figure.savefig(folder / name, dpi=150, metadata={"Software": None})
        names.append(name)
    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    _torsion_maps(figure, results)
    figure.savefig(folder / TORSION_MAPS, dpi=150, metadata={"Software": None})
    return [*names, TORSION_MAPS]


def _torsion_maps(figure: Figure, results: dict[str, Any]) -> None:
    """Consecutive link dihedrals as densities on one scale of colours, 1 where all angles are as frequent; white where none was seen."""
    from matplotlib.colors import LogNorm

    found = results["distributions"]["torsion_maps"]
    panels = figure.subplots(1, len(MAP_METHODS), sharex=True, sharey=True)
    for axes, method in zip(panels, MAP_METHODS, strict=True):
        counts = np.array(found["maps"].get(method, np.zeros((found["bins"],) * 2)))
        density = np.where(counts > 0, counts * counts.size / max(counts.sum(), 1.0), np.nan)
        image = axes.imshow(density.T, origin="lower", extent=(-180, 180, -180, 180), cmap="magma_r", norm=LogNorm(0.1, 100, clip=True))
        axes.set(xticks=np.arange(-180, 181, 90), yticks=np.arange(-180, 181, 90), xlabel="link dihedral i, degree")
        axes.set_title(f"{method}, {counts.sum():.0f} pairs", fontsize=10, loc="left")
    panels[0].set_ylabel("link dihedral i + 1, degree")
    figure.colorbar(image, ax=panels, label="density / uniform")


def _links(axes: Axes, results: dict[str, Any]) -> None:
    bins = results["distributions"]["link_bins"]
    edges = np.linspace(-180, 180, bins + 1)
    for method in ("reference", "model", "grow engine", "train histogram", "random links"):
        counts = np.array(results["distributions"]["link_counts"].get(method, []))
        if counts.sum() > 0:
            width = 2.0 if method in ("reference", "model") else 1.0
            axes.stairs(counts / counts.sum() / (360 / bins), edges, color=COLOURS[method], label=_named(results, method), linewidth=width)
    axes.set(xlabel="link dihedral, degree", ylabel="density, 1 / degree", xlim=(-180, 180), xticks=np.arange(-180, 181, 60))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    number = sum(results["distributions"]["link_counts"]["reference"])
    title = f"Link dihedrals of {results['protocol']['num_polymers']} polymers, {number:.0f} in the references"
    axes.set_title(title, fontsize=10, loc="left")


def _named(results: dict[str, Any], method: str) -> str:
    estimate = results["metrics"]["link_dihedral_pooled_jsd_bits"]["methods"].get(method)
    return method if estimate is None else f"{method}, divergence {estimate['value']:.3f} bit"


def _sizes(axes: Axes, results: dict[str, Any]) -> None:
    from matplotlib.ticker import NullLocator

    ratios = {m: v for m, v in results["distributions"]["size_ratio"].items() if v}
    axes.boxplot(list(ratios.values()), orientation="horizontal", widths=0.6, showfliers=False, medianprops={"color": "black"})
    rng = np.random.default_rng(0)  # spreads the points so that they can be told apart
    for row, (method, values) in enumerate(ratios.items(), start=1):
        height = row + rng.uniform(-0.2, 0.2, len(values))
        axes.plot(values, height, ".", markersize=3, alpha=0.5, color=COLOURS.get(method, "grey"))
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(1, len(ratios) + 1), [f"{m} (n = {len(v)})" for m, v in ratios.items()])
    axes.invert_yaxis()
    axes.set(xlabel="radius of gyration / mean of the polymer's references", xscale="log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in SIZE_TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Size of the chains", fontsize=10, loc="left")


def _bonds(axes: Axes, results: dict[str, Any]) -> None:
    edges = np.array(results["distributions"]["bond_error_edges_ang"])
    for method in ("reference", "model", "random links"):
        counts = np.array(results["distributions"]["bond_error_counts"].get(method, []))
        if counts.sum() > 0:
            beyond = counts[-1] / counts.sum()
            label = f"{method} ({beyond:.1%} beyond {edges[-1]:g})" if beyond else method
            axes.stairs(counts[:-1] / counts.sum() / np.diff(edges), edges, color=COLOURS[method], label=label)
    axes.axvline(0.1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="|bond length - MMFF94 equilibrium|, angstrom", ylabel="density, 1 / angstrom", xlim=(0, edges[-1]), yscale="log")
    axes.legend(fontsize=8, frameon=False)
    number = sum(results["distributions"]["bond_error_counts"]["model"])
    axes.set_title(f"Bonds between heavy atoms, {number:.0f} of the model", fontsize=10, loc="left")
