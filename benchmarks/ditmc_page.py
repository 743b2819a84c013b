"""docs/results/ditmc.md and its figures from the numbers of benchmarks.ditmc_conformers, molecule_conformers and ditmc_speed.

python -m benchmarks.ditmc_page
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.ditmc_conformers import RESULTS as CHAINS
from benchmarks.ditmc_speed import RESULTS as SPEED
from benchmarks.molecule_conformers import RESULTS as MOLECULES

PAGE = Path(__file__).parents[1] / "docs" / "results" / "ditmc.md"
COLOURS = {"rpe": "#30638e", "ape": "#d1495b", "pe3": "#66a182", "ETKDG": "#888888", "ETKDG + MMFF94": "#222222"}
COLUMNS = {
    "cov_r_050_fraction": "COV-R 0.5 Å", "cov_r_075_fraction": "COV-R 0.75 Å", "amr_r_ang": "AMR-R, Å",
    "cov_p_050_fraction": "COV-P 0.5 Å", "cov_p_075_fraction": "COV-P 0.75 Å", "amr_p_ang": "AMR-P, Å",
}  # fmt: skip
TRAINING = """## What was trained

Chains: 1,600 rows of the public corpus with units of at most 12 heavy atoms and no flag, drawn at random.

```sh
python -m data_shards.build --input oligomers.csv --out shards/oligomers --num-units 3 --conformers 16 --test-fraction 0.06
python -m foundation.pretrain --recipe ditmc_tiny --shards shards/oligomers --out runs/ditmc-pe3 objective.scheme=pe3 objective.width=64 \\
    data.token_budget=400 train.micro_batches_per_step=1 train.num_threads=1 train.num_steps=4000 train.keep_every=1000
```

Molecules: QM9 (a sample of 10,994) and monomers of SPICE, as `benchmarks.molecule_sets` writes them; drug-like ones of Hutchison's set
to be tried on.

```sh
python -m data_shards.build --source molecules --input qm9.sdf --out shards/qm9 --test-fraction 0.1
python -m foundation.pretrain --recipe ditmc_tiny --shards shards/qm9=0.5 --shards shards/spice=0.5 --out runs/ditmc-molecules \\
    objective.scheme=pe3 objective.width=64 data.token_budget=400 train.micro_batches_per_step=1 train.num_threads=1 train.num_steps=4500
```
"""
HEADING = "# DiTMC, measured"
TOP = """Coverage and matching of generated conformations of polymers and molecules that no network saw. *R* asks how many references are
met, *P* how many of the generated meet one; everything that was attempted is counted, and RMSD is of heavy atoms, smallest over equivalent
ones."""
TRAINED = """## Repeat units and oligomers

{polymers} held-out polymers of `shards/oligomers` (chains of three repeat units of at most 12 heavy atoms, 16 conformations each of the
grow engine). A unit is the middle one, an oligomer the chain, stars included; two are generated for each reference. Numbers are means over
polymers; seconds of a chain are of one thread beside other work.

| network | parameters | updates | seconds of one core | loss of held-out chains | loss of the mean of the prior | ratio | command |
|---|---:|---:|---:|---:|---:|---:|---|
"""
SPEEDS = """## Speed

Oligomers of polystyrene, {steps} Euler steps, {processor}, {threads} thread{s} beside other work, commit {commit}: seconds of a
conformation. The flow makes heavy atoms, ETKDG needs hydrogens too. ETKDG is not tried on more atoms once it needs more than two minutes.
`{command}`
"""


def main() -> None:
    """Write the page."""
    parts = [HEADING, TOP, TRAINING]
    if CHAINS.is_file():
        parts += _chains(json.loads(CHAINS.read_text()))
    if MOLECULES.is_file():
        parts += _molecules(json.loads(MOLECULES.read_text()))
    if SPEED.is_file():
        parts += _speeds(json.loads(SPEED.read_text()))
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1), *("| " + " | ".join(row) + " |" for row in rows)]
    )


def _cells(own: dict[str, float]) -> list[str]:
    return [f"{own[name]:.2f}" if name.startswith("amr") else f"{own[name]:.1%}" for name in COLUMNS]


def _chains(found: dict[str, Any]) -> list[str]:
    first = next(iter(found.values()))
    trained = TRAINED.format(**first)
    for name, own in found.items():
        prior = own["loss of the mean of the prior"]
        cells = [f"{own['parameters']:,}", f"{own['updates']:,}", f"{own['training seconds']:,.0f}", f"{own['loss']:.2f}", f"{prior:.0f}"]
        trained += f"| {name} | {' | '.join(cells)} | {prior / own['loss']:.0f} | `{own['command']}`, {own['commit']} |\n"
    made = [trained]
    for part, title in (("unit", "Repeat unit"), ("oligomer", "Oligomer of three units")):
        rows = [[method, *_cells(first["methods"][method][part]), ""] for method in ("ETKDG", "ETKDG + MMFF94")]
        for name, own in found.items():
            last = max(_updates(label) for label in own["methods"] if "updates" in label)
            rows += [
                [f"{name}, {label.partition(', ')[2]}", *_cells(values[part]), f"{values['seconds a chain']:.3f}"]
                for label, values in sorted(own["methods"].items(), key=lambda item: _steps(item[0]))
                if "updates" in label and _updates(label) == last
            ]
        made += [f"{title}:", _table(["method", *COLUMNS.values(), "seconds"], rows)]
    _figure(found)
    return [*made, "![Oligomers: coverage against updates and against solver steps](figures/ditmc-oligomers.png)"]


def _updates(label: str) -> int:
    return int(label.split()[0])


def _steps(label: str) -> int:
    found = re.search(r"(\d+) steps", label)
    return int(found[1]) if found else 0


def _figure(found: dict[str, Any]) -> None:
    """AMR of units and oligomers over updates (all with as many steps) and, of the last checkpoint, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    for row, part in zip(panels, ("unit", "oligomer"), strict=True):
        for name, own in found.items():
            colour = COLOURS.get(name)
            labels = [label for label in own["methods"] if "updates" in label]
            last = max(map(_updates, labels))
            at = {_steps(label) for label in labels if _updates(label) != last}
            over = {_updates(label): own["methods"][label][part] for label in labels if not at or _steps(label) in at}
            steps = {_steps(label): own["methods"][label][part] for label in labels if _updates(label) == last}
            for axes, points in ((row[1], over), (row[2], steps)):
                for kind, style in (("R", "o-"), ("P", "s--")):
                    curve = sorted((x, values[f"amr_{kind.lower()}_ang"]) for x, values in points.items())
                    axes.plot(*zip(*curve, strict=True), style, color=colour, label=f"{name}, AMR-{kind}")
            if part == "unit":
                row[0].plot(*zip(*own["curve"], strict=True), "o-", color=colour, label=name)
        for method in ("ETKDG", "ETKDG + MMFF94"):
            value = next(iter(found.values()))["methods"][method][part]["amr_r_ang"]
            for axes in row[1:]:
                axes.axhline(value, color=COLOURS[method], linestyle=":", label=f"{method}, AMR-R")
        row[1].set(xlabel="updates", ylabel="AMR, angstrom", title=f"{part}, over training")
        row[2].set(xlabel="solver steps", ylabel="AMR, angstrom", title=f"{part}, over solver steps", xscale="log")
        row[2].set_xticks(every := sorted(steps), [str(x) for x in every])
        row[2].minorticks_off()
    panels[0, 0].set(xlabel="updates", ylabel="loss", title="held-out loss")
    panels[0, 0].legend(frameon=False, fontsize=8)
    panels[1, 0].set_axis_off()
    handles, labels = panels[0, 1].get_legend_handles_labels()
    panels[1, 0].legend(handles, labels, frameon=False, loc="center", fontsize=9)
    figure.savefig(PAGE.parent / "figures" / "ditmc-oligomers.png", dpi=110, metadata={"Software": None})


def _molecules(found: dict[str, Any]) -> list[str]:
    made = ["## Molecules"]
    for name, own in found.items():
        size = f"{own['atoms']:.1f} atoms and {own['references']:.1f} references each"
        told = f"**{name}**: {own['molecules']} molecules, {size}; {own['about']}."
        rows = [[method, *_cells_or_none(values), f"{values['seconds_per_conformation']:.4f}"] for method, values in own["methods"].items()]
        made += [f"{told} `{own['command']}`, {own['commit']}", _table(["method", *COLUMNS.values(), "seconds"], rows)]
    return made


def _cells_or_none(own: dict[str, float]) -> list[str]:
    return _cells({name: own.get(name, float("nan")) for name in COLUMNS})


def _speeds(found: dict[str, Any]) -> list[str]:
    made = []
    for recipe, own in found.items():
        methods = list(own["rows"][0]["seconds"])
        rows = [[str(row["atoms"]), *(_seconds(row["seconds"].get(method)) for method in methods)] for row in own["rows"]]
        heads = [f"{method}, {own['parameters'][method] / 1e6:.1f} M" if method in own["parameters"] else method for method in methods]
        s = "" if own["threads"] == 1 else "s"
        made += [SPEEDS.format(**own, s=s) if not made else f"`{own['command']}`", f"{recipe}:", _table(["heavy atoms", *heads], rows)]
    return made


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
