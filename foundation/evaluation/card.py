"""The model card of a released checkpoint: how it was made, what it measures beside the baselines, what it is not for."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foundation.config import RunConfig, without_places
from foundation.errors import ConfigError
from foundation.evaluation.table import rows
from foundation.recipes import get_recipe

CURVE, RESULTS, CARD = "curve.png", "results.json", "card.md"
WINDOW = 50  # steps of the running mean of the training loss
KEPT = ("weights_sha256", "commit", "settings", "protocol", "attempts", "metrics")  # of results.json: neither paths nor single polymers
KEPT_OF_PART = ("protocol", "attempts", "metrics")
TITLES = {"unit": "Repeat units", "oligomer": "Oligomers"}
NOT_FOR = (
    "Properties. It generates conformations; a property head must be trained on it, and judged, by itself (`finetune/`).",
    "Thermodynamics. Conformations follow those of the shards it was trained on, single chains, and are no better than these; they are"
    " no melt, glass or crystal. Energies, densities and free energies do not follow from them.",
    "Anything but linear homopolymers of one repeat unit with two stars: no copolymer sequences, networks, branches, ladders, end groups,"
    " solvents, ions in solution.",
    "Chemistry far from its training set. Evaluate it on polymers of your kind, and look at the failures and clashes that `generate`"
    " counts, before you rely on it.",
    "Decisions about safety or health without an independent check.",
)


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        name: of the checkpoint, as users will say it.
        config: of the run.
        run: content of run.json.
        metrics: lines of metrics.jsonl up to the step.
        step, samples_seen, fingerprint: of the checkpoint.
        num_parameters: of the model.
        num_bytes, sha256: of the file of weights.
        hardware: in words.
        results: what `kept` leaves of results.json, None where the model was not evaluated.
        evaluated: in words, which weights the evaluation loaded.
    """

    name: str
    config: RunConfig
    run: dict[str, Any]
    metrics: Sequence[dict[str, Any]]
    step: int
    samples_seen: int
    fingerprint: str
    num_parameters: int
    num_bytes: int
    sha256: str
    hardware: str
    results: dict[str, Any] | None
    evaluated: str


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """results.json without paths, single polymers and distributions."""
    found = {name: results[name] for name in KEPT} | {"shards_fingerprint": results["shards"]["fingerprint"]}
    if "parts" in results:
        found["parts"] = {name: {key: part[key] for key in KEPT_OF_PART} for name, part in results["parts"].items()}
    return found


def command_of(config: RunConfig, second_phase: bool) -> str:
    """The training command, its places replaced by words in capitals; rebuilt from the configuration, so that it says all that differs."""
    ours = _flat(without_places(config).model_dump(mode="json"))
    try:
        recipe = _flat(without_places(get_recipe(config.recipe)).model_dump(mode="json"))
    except ConfigError:  # of a program that had more recipes
        recipe = {}
    changed = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in ours.items() if recipe.get(key) != value]
    words = ["python", "-m", "foundation.pretrain", "--recipe", config.recipe, "--shards", "SHARDS", "--out", "RUN"]
    words += ["--init-from", "FIRST_RUN"] if second_phase else []
    return shlex.join([*words, *(word for word in changed if not word.startswith("recipe="))])


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of a configuration, two levels deep."""
    return {
        key: value
        for top, group in data.items()
        for key, value in ({f"{top}.{low}": v for low, v in group.items()} if isinstance(group, dict) else {top: group}).items()
    }


def curve(metrics: Sequence[dict[str, Any]]) -> bytes:
    """PNG of the loss: training, running mean, as a line, validation as points."""
    import numpy as np
    from matplotlib.figure import Figure

    trained = [(row["step"], row["train/loss"]) for row in metrics if row.get("train/loss") is not None]
    checks = [(row["step"], row["val/loss"]) for row in metrics if row.get("val/loss") is not None]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    if trained:
        step, loss = np.array(trained).T
        width = min(WINDOW, len(step))
        axes.plot(
            step[width - 1 :], np.convolve(loss, np.ones(width) / width, mode="valid"), linewidth=1, label=f"training, mean of {width}"
        )
    if checks:
        axes.plot(*zip(*checks, strict=True), "o-", markersize=3, label="validation")
    axes.set(xlabel="step", ylabel="loss")
    if trained or checks:
        axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def card(facts: Facts) -> str:
    """The page."""
    trained, checks = ([row[key] for row in facts.metrics if row.get(key) is not None] for key in ("train/loss", "val/loss"))
    seconds = sum(row.get("train/step_sec") or 0.0 for row in facts.metrics)
    losses = [f"training {trained[0]:.4g} at the first step, {trained[-1]:.4g} at the last"] if trained else []
    losses += [f"validation {checks[-1]:.4g}, lowest {min(checks):.4g}"] if checks else []
    listed = {row["step"] for row in facts.metrics}
    missing = facts.step - len(listed)
    partly = f" (steps that metrics.jsonl lacks and that are not counted: {missing})" if missing else ""
    versions = ", ".join(f"{name} {number}" for name, number in sorted(facts.run.get("versions", {}).items()))
    ranks, threads = facts.run.get("world_size", "?"), facts.run.get("threads", "?")
    table = {
        "command": f"`{command_of(facts.config, facts.run.get('init_from') is not None)}`",
        "shards": f"fingerprint `{facts.fingerprint}`",
        "steps": f"{facts.step}, {facts.samples_seen} chains seen",
        "seconds": f"{seconds:.0f} of training steps; validation and checkpoints come on top{partly}",
        "hardware": f"{facts.hardware}; ranks: {ranks}, threads of each: {threads}",
        "loss": "; ".join(losses) or "metrics.jsonl has none",
        "commit": f"`{facts.run.get('commit', 'unknown')}`",
        "software": versions,
        "weights": f"{facts.num_parameters} parameters, moving average, rounded to bf16, {facts.num_bytes / 1e6:.2f} MB",
        "sha256": f"`{facts.sha256}`",
    }
    lines = [
        f"# {facts.name}: {facts.config.recipe}",
        "",
        f"A pretrained `{getattr(facts.config.objective, 'name', 'objective')}` model of polymer conformations. Written by"
        " `python -m foundation.release` from the files of the run.",
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in table.items()),
        "",
        f"![Loss against steps]({CURVE})",
        "",
        *_measured(facts),
        "## What it is not for",
        "",
        *(f"- {text}" for text in NOT_FOR),
        "",
        "## Licence",
        "",
        "Apache-2.0, like the project that it comes with.",
    ]
    return "\n".join(lines) + "\n"


def _measured(facts: Facts) -> list[str]:
    """Lines of the section of metrics."""
    results = facts.results
    if results is None:
        return ["## What it measures", "", "It was not evaluated when this page was written.", ""]
    settings = results["settings"]
    lines = [
        "## What it measures",
        "",
        f"On the {settings['split']} split of shards with the fingerprint `{results['shards_fingerprint'][:16]}`"
        f"{'' if results['shards_fingerprint'] == facts.fingerprint else ', which are not those it was trained on'},"
        f" {results['protocol']['num_polymers']} polymers, {settings['num']} conformations each; {facts.evaluated}."
        f" [low, high]: {results['protocol']['interval']}. Every number with its protocol: `{RESULTS}`.",
        "",
        *_table(results),
    ]
    for name, part in results.get("parts", {}).items():
        lines += [f"### {TITLES.get(name, name)}", "", *_table(part)]
    return lines


def _table(results: dict[str, Any]) -> list[str]:
    header, body = rows(results, len(results["attempts"]))
    marks = ["---", "---", *["---:"] * (len(header) - 2)]
    return [*("| " + " | ".join(cells) + " |" for cells in (header, marks, *body)), ""]
