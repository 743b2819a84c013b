"""What the experiments share: arguments, the setting of a result, json, page and figures.

An experiment measures once and writes NAME.json; NAME.md and its figures are drawn from that file alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from data_shards.mixture import Mixture
    from data_shards.progress import Progress
    from data_shards.reader import ShardSet
    from data_shards.schema import PolymerSample
    from foundation.config import RunConfig

Checkpoint = Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")]
Shards = Annotated[str, typer.Option(help="shard folder, local or any fsspec address")]
Out = Annotated[Path, typer.Option(help="folder of the json, the page and the figures; made here")]
Split = Annotated[str, typer.Option(help="train, val or test: whose polymers are generated")]
Limit = Annotated[int, typer.Option(help="at most this many polymers of the split")]
Num = Annotated[int, typer.Option(help="conformations of each polymer")]
Seed = Annotated[int, typer.Option(help="seed of all that is drawn")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Quick = Annotated[bool, typer.Option("--quick", help="a tiny version that shows that everything runs; its numbers mean nothing")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the result that lies in --out")]

FIGURE_INCH = (6.4, 4.0)
BLUE, RED, GREEN, ORANGE, GREY = "#30638e", "#d1495b", "#66a182", "#edae49", "#9aa0a6"


@dataclass(frozen=True)
class Table:
    """A table of a page: header and rows of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Experiment:
    """What an experiment is called and how its json becomes a page.

    Attributes:
        name: of module, json and page.
        line: one line for the list of experiments.
        question: what it answers, for the page.
        tables: json -> tables.
        figures: file name -> function that draws the json on axes.
    """

    name: str
    line: str
    question: str
    tables: Callable[[dict[str, Any]], list[Table]]
    figures: Mapping[str, Callable[[Any, dict[str, Any]], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Everything an experiment is given, opened and checked.

    Attributes:
        models: of the checkpoints, in eval mode on the device; the first is the one most experiments use.
        configs: of the same.
    """

    experiment: Experiment
    checkpoints: list[str]
    models: list[Any]
    configs: list[RunConfig]
    shards: ShardSet
    device: torch.device
    out: Path
    seed: int
    quick: bool
    bars: Progress
    began: float

    @property
    def model(self) -> Any:
        """The model of the first checkpoint."""
        return self.models[0]

    @property
    def config(self) -> RunConfig:
        """Its configuration."""
        return self.configs[0]

    @property
    def mixture(self) -> Mixture:
        """The shards as the trainer opens them."""
        from data_shards.mixture import open_mixture

        return open_mixture(self.shards.path)


def prepare(
    experiment: Experiment, checkpoints: str | Sequence[str], shards: str, out: Path, device: str, seed: int, quick: bool, overwrite: bool
) -> Place:
    """Open and check what an experiment needs; nothing is written yet.

    Raises:
        InputError: a result that would be overwritten, unreadable shards or checkpoints, a model without units, a number out of bounds.
    """
    from data_shards.progress import progress
    from data_shards.reader import open_shards
    from foundation.errors import InputError
    from foundation.sampling.request import check_seed
    from foundation.sampling.run import choose_device
    from foundation.train.checkpoint import load_model

    check_seed(seed)
    result = out / f"{experiment.name}.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if result.exists() and not overwrite:
        raise InputError(f"{out} holds {result.name} already; choose another --out or pass --overwrite")
    where = choose_device(device)
    opened = open_shards(shards)
    names = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    loaded = [load_model(name) for name in names]
    for name, (_, config) in zip(names, loaded, strict=True):
        kind = config.objective.model_dump()["name"]
        if kind != "polyconfm":
            raise InputError(f"checkpoint {name} is of objective {kind!r}, the experiments need units; pass one of polyconfm")
    models = [model.to(where) for model, _ in loaded]
    return Place(
        experiment, names, models, [config for _, config in loaded], opened, where, out, seed, quick, progress(), time.perf_counter()
    )


def samples_of(place: Place, split: str, limit: int) -> list[PolymerSample]:
    """The first polymers of a split with two units or more.

    Raises:
        InputError: the split has none.
    """
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(limit=limit)
    samples = (place.shards.read(entry) for entry in place.shards.samples(split))
    found: list[PolymerSample] = []
    for sample in samples:
        if len(found) == limit:
            break
        if sample.num_units > 1:
            found.append(sample)
    if not found:
        raise InputError(f"{place.shards.path} has no polymer of two units or more in split {split!r}; pass another --split")
    return found


def plan(place: Place, what: str) -> None:
    """Say what a run would do."""
    print(f"{place.experiment.name}: {what}, on {place.device}")
    print(f"dry run: nothing was written to {place.out}")


def finish(place: Place, found: Mapping[str, Any]) -> Path:
    """Write the json, then page and figures from the file; returns the page."""
    from foundation.sampling.provenance import write_json

    path = place.out / f"{place.experiment.name}.json"
    write_json(path, {"experiment": place.experiment.name, "setting": _setting(place), **found})
    page = draw(place.experiment, path)
    print("\n".join(verdict_lines(json.loads(path.read_text()))))
    print(f"result: {path}, {page.name}")
    return page


def draw(experiment: Experiment, path: Path) -> Path:
    """Page and figures beside a json; nothing but the file is read."""
    from matplotlib.figure import Figure

    result = json.loads(path.read_text())
    for name, plot in experiment.figures.items():
        figure = Figure(figsize=FIGURE_INCH, layout="constrained")
        plot(figure.add_subplot(), result)
        figure.savefig(path.with_name(name), dpi=150, metadata={"Software": None})
    page = path.with_suffix(".md")
    page.write_text(markdown(experiment, result))
    return page


def _setting(place: Place) -> dict[str, Any]:
    """What the numbers hold for."""
    import torch

    from benchmarks.setting import commit, processor
    from foundation.sampling.provenance import weights_fingerprint

    return {
        "command": ["python", "-m", f"benchmarks.experiments.{place.experiment.name}", *sys.argv[1:]],
        "checkpoints": place.checkpoints,
        "weights_sha256": [weights_fingerprint(model) for model in place.models],
        "shards": {"path": place.shards.path, "fingerprint": place.shards.fingerprint},
        "seed": place.seed,
        "quick": place.quick,
        "commit": commit(),
        "machine": processor(),
        "device": str(place.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[1], 1),
        "seconds": round(time.perf_counter() - place.began, 1),
    }


# -------------------------------------------------------------------------------------------------------------------------- page


def number(value: float | None, digits: int = 3) -> str:
    """A number as text; a dash where there is none."""
    if value is None:
        return "-"
    if value != 0 and (abs(value) < 10**-digits or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"


def interval(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Value [low, high] as text."""
    if estimate is None or estimate["value"] is None:
        return "-"
    value, low, high = (number(estimate[key], digits) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """Sentences of the verdict: yes or no, and what was asked."""
    return [f"- {'yes' if said['holds'] else 'NO'}: {said['text']}" for said in result.get("verdicts", [])]


def verdict(holds: bool, text: str) -> dict[str, Any]:
    """One entry of `verdicts`."""
    return {"holds": bool(holds), "text": text}


def markdown(experiment: Experiment, result: Mapping[str, Any]) -> str:
    """The page of a result."""
    facts = result["setting"]
    weights = ", ".join(f"`{name}` ({sha[:12]})" for name, sha in zip(facts["checkpoints"], facts["weights_sha256"], strict=True))
    lines = [
        f"# {experiment.name.replace('_', ' ').capitalize()}",
        "",
        experiment.question,
        "",
        f"`{' '.join(facts['command'])}`",
        "",
        f"Checkpoint {weights}, shards `{facts['shards']['path']}` ({facts['shards']['fingerprint'][:12]}), seed {facts['seed']}; "
        f"{facts['machine']}, {facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}, commit {facts['commit']}, "
        f"{facts['seconds']:.0f} s with load {facts['load']}. Every number is in [{experiment.name}.json]({experiment.name}.json).",
    ]
    if facts["quick"]:
        lines += ["", "Made with `--quick`: it shows that everything runs; its numbers mean nothing."]
    if result.get("verdicts"):
        lines += ["", "## Verdicts", "", *verdict_lines(result)]
    for table in experiment.tables(dict(result)):
        lines += ["", f"## {table.title}", "", "| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    lines += ["", *(f"![{name}]({name})" for name in experiment.figures)] if experiment.figures else []
    if result.get("notes"):
        lines += ["", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"
