"""docs/results/design.md from design.json, as benchmarks.design and benchmarks.design_levels left it.

python -m benchmarks.design_page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.design import RESULTS

HEADING = "# Inverse design, measured"
GASES = ("O2", "N2", "CO2")
SHARES = {"valid": "valid", "stars": "stars right", "unique": "distinct", "novel": "new", "valid atom by atom": "valid, atom by atom"}
MARK = "leaky"
FOLDS = "out of fold on training"
GAS = """## Permeability of oxygen, nitrogen and carbon dioxide

`python -m benchmarks.design o2_n2_co2.csv --unlabelled design-corpus.csv`, commit {commit}, {processor}.

Folds 0 to 2 of the public table are the generator's, with pseudo-labelled polymers of the corpus. Folds 3 and 4 are the oracle's, and the
values of {targets} of their polymers are the targets, {each} polymers each: {number} of each method. The generator is trained for
{steps:,} steps from the bundled one of structures, which saw no polymer of folds 3 and 4; the language model, of as many weights, for
{language_steps:,} on the same polymers.

Shares are of all that was drawn (*valid*), of what is valid (*stars right*), of polymers (*distinct*; *new*: not among any polymers of
training). *Diversity* is 1 - mean Tanimoto of Morgan bits of all pairs; *fragments alike* the cosine of BRICS fragments with the labelled
polymers of training. Nothing is repaired: bonds are placed where valences allow them while a graph is drawn. *Atom by atom* is what would
be valid without that. *Chosen by the property models*: the best of {draws} draws a proposal among polymers not seen in training, each for
one target."""
ERRORS = """**Errors** are of the oracle's predictions against the targets, mean absolute, log10 Barrer. The oracle's own error on
{polymers} polymers that it never saw: {own}. SC (synthetic complexity) is predicted by a model of the table's column, whose own error is
{complexity:.2f}. *Fréchet* is the distance of pretrained embeddings to those of the labelled polymers of training."""
LEVELS = """## Levels of {task}

`python -m benchmarks.design_levels {task}.csv --task {task} ...`, commit {commit}, {processor}.

The generator ({steps:,} steps) and its property model learned from folds 0 to 2, the oracle from folds 3 and 4; its own mean absolute
error on the generator's polymers is {oracle:.1f}. Each target is `finetune.propose --num {num} --draws {draws:g}`, timed as a whole.
Beside it are as many labelled polymers of training with the nearest values, as the oracle sees them and as models of cross-validation see
them that did not learn from them."""


def main(numbers: Path = RESULTS) -> None:
    """Write the page beside the numbers."""
    found = json.loads(numbers.read_text())
    parts = [HEADING, *([_gas(found["gas"])] if "gas" in found else [])]
    parts += [_levels(own) for name, own in found.items() if name.startswith("levels ")]
    numbers.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _gas(made: dict[str, Any]) -> str:
    methods = made["methods"]
    told = GAS.format(**made, number=next(iter(methods.values()))["drawn"])
    quality, errors = [], []
    for name, own in methods.items():
        shown = f"*{name}*" if name.startswith(MARK) else name
        quality.append([shown, *(_share(own[key]) for key in SHARES)])
        quality[-1] += [f"{own['diversity']:.3f}", f"{own['fragments']:.3f}", f"{own['seconds']:.0f}"]
        errors.append([shown, *(f"{value:.3f}" for value in own["mae"]), *(f"{value:+.2f}" for value in own["bias"])])
        errors[-1] += [f"{own[key]:.2f}" for key in ("accessibility", "accessibility error", "complexity error", "frechet")]
    of_errors = ["method", *(f"error {gas}" for gas in GASES), *(f"bias {gas}" for gas in GASES), "SA", "SA error", "SC error", "Fréchet"]
    own = ", ".join(f"{gas} {value:.3f}" for gas, value in zip(GASES, made["oracle"]["mae"], strict=True))
    said = ERRORS.format(polymers=made["oracle"]["polymers"], own=own, complexity=made["complexity error"])
    first = _table(["method", *SHARES.values(), "diversity", "fragments alike", "seconds"], quality)
    return "\n\n".join([told, first, said, _table(of_errors, errors), _reasons(methods)])


def _reasons(methods: dict[str, Any]) -> str:
    told = {name: ", ".join(f"{count} {reason}" for reason, count in own["reasons"].items()) for name, own in methods.items()}
    return "What is no polymer, and why:\n\n" + "\n".join(f"- {name}: {line}" for name, line in told.items() if line)


def _levels(made: dict[str, Any]) -> str:
    whose = ("own model", "oracle", "oracle on training")
    rows = []
    for target, own in made["targets"].items():
        rows.append([target, *(f"{own['median'][key]:.1f}" for key in (*whose, FOLDS)), *(f"{own['mae'][key]:.1f}" for key in whose)])
        rows[-1] += [_share(own["funnel"]["valid"] / own["funnel"]["drawn"]), _share(own["new"]), f"{own['diversity']:.3f}"]
        rows[-1] += [_share(own["in domain"]), f"{own['seconds']:.0f}"]
    heads = ["target", *(f"median, {key}" for key in (*whose, FOLDS)), *(f"error, {key}" for key in whose)]
    heads += ["valid of all draws", "new", "diversity", "in domain", "seconds"]
    return "\n\n".join([LEVELS.format(**made), _table(heads, rows), *([made["note"]] if made["note"] else [])])


if __name__ == "__main__":
    main()
