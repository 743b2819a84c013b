"""Figures of conformations.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WIDTH_INCH, DOTS_PER_INCH = 9.0, 110
GREY, BLUE, ORANGE, GREEN = "#666666", "#1f5fa8", "#d9731a", "#2e8b57"


def draw(found: dict[str, Any], work: Path, folder: Path) -> None:
    """Every figure whose numbers are there."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _characteristic_ratios(found, folder)
    _memory(found, folder)
    _polyethylene(found, folder)
    if "real_chains" in found:
        _torsions(found["real_chains"], folder)
    if "dft_units" in found:
        _dft(found["dft_units"], folder)
    if "speed" in found:
        _conservation(found["speed"]["conservation"], folder)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)


def _grid(count: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH_INCH, height * rows), squeeze=False)
    for axis in axes.ravel()[count:]:
        axis.axis("off")
    return figure, list(axes.ravel()[:count])


def _characteristic_ratios(found: dict[str, Any], folder: Path) -> None:
    rows = [row for row in found["polymers"] if not row["name"].endswith("ideal")]
    ideal = {row["psmiles"]: row for row in found["polymers"] if row["name"].endswith("ideal")}
    figure, axes = _grid(len(rows), 3, 2.8)
    for axis, row in zip(axes, rows):
        axis.axhspan(*row["literature"], color=GREY, alpha=0.25, lw=0, label="literature, n to infinity")
        shown = [("grow", "grow engine", ORANGE), ("md", "theta, after the run", BLUE)]
        for key, label, colour in shown:
            if key in row:
                _ratio_line(axis, row[key], label, colour)
        if "md" in ideal.get(row["psmiles"], {}):
            _ratio_line(axis, ideal[row["psmiles"]]["md"], "ideal: no far repulsion", GREEN)
        axis.set_title(row["name"], fontsize=9)
        axis.set_xlabel("1 / n bonds", fontsize=8)
        axis.set_ylabel("$C_n$", fontsize=8)
        axis.set_xlim(0, 0.13)
        axis.set_ylim(0, None)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=7, loc="upper right")  # beyond the curves; the other panels have the same colours
    _save(figure, folder / "conformations-size.png")


def _ratio_line(axis: Any, sizes: dict[str, Any], label: str, colour: str) -> None:
    inverse = 1 / np.array(sizes["n"])
    low, high = np.array(sizes["c_n_interval"]).T
    axis.fill_between(inverse, low, high, color=colour, alpha=0.2, lw=0)
    axis.plot(inverse, sizes["c_n"], color=colour, lw=1.2, label=label)
    ends = np.array([0.0, 1 / 12])
    axis.plot(ends, sizes["c_inf"] + sizes["slope"] * ends, color=colour, lw=0.8, ls=":")


def _memory(found: dict[str, Any], folder: Path) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(WIDTH_INCH * 0.6, 3.2))
    for row in found["polymers"]:
        if row["name"].endswith("ideal") or "torsion_memory" not in row:
            continue
        values = row["torsion_memory"]["autocorrelation"]
        axis.plot(np.arange(len(values)) * row["torsion_memory"]["frame_ps"], values, lw=1.2, label=row["name"])
    axis.axhline(0, color=GREY, lw=0.6)
    axis.set_xlabel("time, ps")
    axis.set_ylabel("autocorrelation of backbone torsions")
    axis.set_ylim(-0.1, 1.02)
    axis.legend(fontsize=7)
    _save(figure, folder / "conformations-memory.png")


def _polyethylene(found: dict[str, Any], folder: Path) -> None:
    figure, (left, right) = _grid(2, 2, 3.2)
    row = next(row for row in found["polymers"] if "torsions_grow" in row)
    angles = np.linspace(1.5, 178.5, 60)
    for key, label, colour in (("torsions_grow", "grow engine, 400 K", ORANGE), ("torsions", "theta, 413 K", BLUE)):
        if key in row:
            left.plot(angles, np.array(row[key]["histogram"]) / 3, color=colour, lw=1.2, label=label)
    left.set_xlabel("torsion, degrees (trans is 180)")
    left.set_ylabel("share per degree")
    left.set_ylim(0, None)
    left.legend(fontsize=8)
    bars = [
        ("model, energies\nof 1966", found["polyethylene_torsions"]["abe_jernigan_flory"], GREY),
        ("model, energies\nof MMFF94s", found["polyethylene_torsions"]["mmff94s"], GREY),
        ("grow", row["torsions_grow"], ORANGE),
    ]
    if "torsions" in row:
        bars.append(("theta", row["torsions"], BLUE))
    for k, (_, values, colour) in enumerate(bars):
        low, high = values.get("trans_interval", [values["trans"]] * 2)
        right.bar(k, values["trans"], color=colour, width=0.6)
        right.errorbar(k, values["trans"], [[values["trans"] - low], [high - values["trans"]]], color="black", capsize=3)
    right.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=7)
    right.set_ylabel("share of trans bonds")
    right.set_ylim(0, 1)
    _save(figure, folder / "conformations-polyethylene.png")


def _torsions(polymers: list[dict[str, Any]], folder: Path) -> None:
    """The most common torsions of every polymer."""
    picked = []
    for polymer in polymers:
        rows = [row for row in polymer["kinds"] if row["kind"].startswith("torsion") and row["md"] and row["grow"]]
        rows.sort(key=lambda row: -row["real"]["count"])
        picked += [(polymer, row) for row in rows[:4]]
    figure, axes = _grid(len(picked), 4, 2.2)
    for axis, (polymer, row) in zip(axes, picked):
        middle = (np.arange(len(row["real"]["histogram"])) + 0.5) * 180 / len(row["real"]["histogram"])
        axis.fill_between(middle, row["real"]["histogram"], color=GREY, alpha=0.4, lw=0, step="mid", label="their dynamics")
        axis.plot(middle, row["md"]["histogram"], color=BLUE, lw=1, label="md engine")
        axis.plot(middle, row["grow"]["histogram"], color=ORANGE, lw=1, label="grow engine")
        axis.set_title(row["kind"].removeprefix("torsion "), fontsize=8)
        axis.set_xlabel(f"degrees; {polymer['psmiles'][:18]}", fontsize=6)
        axis.set_xlim(0, 180)
        axis.set_ylim(0, None)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    axes[0].legend(fontsize=6, loc="upper center")
    _save(figure, folder / "conformations-torsions.png")


def _dft(found: dict[str, Any], folder: Path) -> None:
    """Mean change of every common kind of bond and angle from DFT to the minimum of MMFF94s."""
    figure, axes = _grid(2, 2, 5.2)
    for axis, what, unit in zip(axes, ("bond", "angle"), ("angstrom", "degrees")):
        rows = [row for row in found["huan2016_chain_units"]["kinds"] if row["kind"].startswith(what) and row["count"] >= 30]
        rows = sorted(sorted(rows, key=lambda row: -row["count"])[:30], key=lambda row: row["mean_change"])
        place = np.arange(len(rows))
        axis.barh(place, [row["mean_change"] for row in rows], xerr=None, color=BLUE, height=0.6)
        axis.set_yticks(place, [f"{row['kind'].split(' ')[1]} ({row['count']})" for row in rows], fontsize=6)
        axis.axvline(0, color="black", lw=0.6)
        axis.set_xlabel(f"mean change of {what}s from DFT to MMFF94s, {unit}", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
    _save(figure, folder / "conformations-dft.png")


def _conservation(found: dict[str, Any], folder: Path) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(WIDTH_INCH * 0.5, 3.2))
    for mass, colour in ((1.008, ORANGE), (4.0, BLUE)):
        rows = [row for row in found["rows"] if row["hydrogen_mass_da"] == mass]
        steps = [row["step_fs"] for row in rows]
        axis.loglog(steps, [row["fluctuation_kt_per_root_freedom"] for row in rows], "o-", color=colour, label=f"hydrogen {mass:g} Da")
    steps = np.array([0.25, 3.0])
    axis.loglog(steps, 0.0065 * steps**2, color=GREY, ls=":", label="square of the step")
    axis.set_xticks([0.25, 0.5, 1.0, 2.0, 3.0], ["0.25", "0.5", "1", "2", "3"])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("time step, fs")
    axis.set_ylabel("fluctuation of the energy,\nkT per root of the degrees of freedom")
    axis.legend(fontsize=8)
    _save(figure, folder / "conformations-energy.png")
