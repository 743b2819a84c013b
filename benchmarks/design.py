"""Polymers for gas permeabilities against baselines, judged by an oracle that learned from polymers the generator never saw.

    python -m benchmarks.design_corpus ../shared/data --out runs/design-corpus.csv
    python -m benchmarks.design ../shared/data/design/o2_n2_co2.csv --unlabelled runs/design-corpus.csv

Folds 0 to 2 of the table are the generator's; 3 and 4 are the oracle's, and their values are the targets. Every method is asked for the
same targets as often. What is no polymer stays in every denominator but those of errors, which cannot be had of it. Synthetic complexity
(SCScore; Coley et al., J. Chem. Inf. Model. 58, 252 (2018)) is what a model says that learned the table's column SC. benchmarks.design_page
writes the page.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.setting import commit, processor
from data_shards.console import run
from data_shards.progress import progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "design.json"
OURS_FOLDS, ORACLE_FOLDS = ("0", "1", "2"), ("3", "4")
TASK = "gas"
Texts = list[str | None]
# strings or None; reasons; share of all draws that are polymers where every atom and bond is drawn by itself; and as they are drawn, where
# the strings are chosen among them
Made = tuple[Texts, list[str], float | None, float | None]


@dataclass(frozen=True)
class Bench:
    """What all methods share.

    Attributes:
        model: folder of finetune.design.
        oracle: folders of finetune.property, one a property.
        wanted: (M, P) learned values asked for, one row a draw.
        target: (M,) which target each row belongs to.
        leaky: (M,) P-SMILES of the polymer whose values these are.
        complexity: folder of finetune.property for synthetic complexity.
        seed: of everything drawn.
    """

    model: Path
    oracle: list[Path]
    wanted: NDArray[np.float64]
    target: NDArray[np.int64]
    leaky: list[str]
    complexity: Path
    seed: int


@app.command()
def main(
    table: Path,
    unlabelled: Annotated[Path, typer.Option(help="polymers of benchmarks.design_corpus")],
    runs: Annotated[Path, typer.Option(help="where runs are kept; what is there is not made again")] = Path("runs/design-bench"),
    steps: Annotated[int, typer.Option(help="of training of the generator")] = 2_000,
    language_steps: Annotated[int, typer.Option(help="of training of the language model")] = 6_000,
    targets: Annotated[int, typer.Option(help="property vectors asked for")] = 60,
    each: Annotated[int, typer.Option(help="polymers of each method for each")] = 10,
    draws: Annotated[int, typer.Option(help="draws for each proposal where the property models choose")] = 4,
    options: Annotated[str, typer.Option(help="further options of finetune.design, separated by spaces")] = "",
    out: Annotated[Path, typer.Option(help="numbers; other parts of the file stay")] = RESULTS,
    seed: Annotated[int, typer.Option(help="of everything drawn")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="keep methods that --out has from a run with these options")] = False,
) -> None:
    """Train, draw, judge, write."""
    from finetune.design.goals import properties_of

    tasks = properties_of(TASK)
    ours, theirs, oracle = prepare(table, runs, [task.name for task in tasks])
    source = ["--task", TASK, "--data", str(ours), "--unlabelled", str(unlabelled), "--steps", str(steps), *options.split()]
    once(runs / TASK / "generator" / "config.json", "finetune.design", *source, "--out", str(runs / TASK), "--no-track")
    complexity = runs / "complexity"
    asked = ["--task", "own", "--column", "SC", "--data", str(table), "--no-baseline", "--no-track", "--out", str(complexity)]
    once(complexity / "results.json", "finetune.property", *asked)
    bench = _bench(runs / TASK, oracle, theirs, tasks, targets, each, complexity, seed)
    asked_for = {"steps": steps, "language_steps": language_steps, "targets": targets, "each": each, "draws": draws, "seed": seed}
    made: dict[str, Any] = {"commit": commit(), "processor": processor(), **asked_for}
    made |= {"oracle": _oracle_error(bench, ours, tasks), "methods": {}}
    made["complexity error"] = json.loads((complexity / "results.json").read_text())["scores"]["ours"]["rmse"]["mean"]
    before = json.loads(out.read_text()).get(TASK, {}) if resume and out.is_file() else {}
    if before and all(before.get(name) == value for name, value in asked_for.items()):
        made |= {"commit": before["commit"], "methods": before["methods"]}
    for name, method in methods(bench, draws, language_steps).items():
        if name in made["methods"]:
            continue
        began = time.perf_counter()
        texts, reasons, alone, valid = method()
        seconds = time.perf_counter() - began
        found = {**_judged(bench, tasks, texts, reasons), "valid atom by atom": alone, "seconds": seconds}
        made["methods"][name] = found if valid is None else {**found, "valid": valid}
        print(name, json.dumps(made["methods"][name]))
        store(out, TASK, made)


def store(file: Path, name: str, made: dict[str, Any]) -> None:
    """Put one part of the numbers into their file."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, name: made}, indent=1) + "\n")


def prepare(table: Path, runs: Path, tasks: list[str]) -> tuple[Path, Path, list[Path]]:
    """The generator's part of a table, the oracle's, and a fitted oracle for each property."""
    ours, theirs = (_part(table, runs / name, folds) for name, folds in (("ours.csv", OURS_FOLDS), ("oracle.csv", ORACLE_FOLDS)))
    oracle = [runs / "oracle" / name for name in tasks]
    for name, folder in zip(tasks, oracle, strict=True):
        asked = ["--task", name, "--data", str(theirs), "--out", str(folder), "--no-baseline", "--no-track"]
        once(folder / "results.json", "finetune.property", *asked)
    return ours, theirs, oracle


def _part(table: Path, out: Path, folds: tuple[str, ...]) -> Path:
    """Rows of some folds."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] in folds]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out


def once(done: Path, *command: str) -> None:
    """Run a command whose result is not there yet."""
    if not done.is_file():
        subprocess.run([sys.executable, "-m", *command], check=True)


def _bench(model: Path, oracle: list[Path], theirs: Path, tasks: Any, targets: int, each: int, complexity: Path, seed: int) -> Bench:
    """Targets: the values of polymers that the generator never saw, drawn among those that have all."""
    with theirs.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[task.name.upper()] for task in tasks)]
    chosen = np.random.default_rng([seed, 6]).choice(len(rows), min(targets, len(rows)), replace=False)
    values = np.array([[task.forward(np.array([float(rows[k][task.name.upper()])]))[0] for task in tasks] for k in chosen])
    target = np.repeat(np.arange(len(chosen)), each)
    return Bench(model, oracle, values[target], target, [rows[chosen[k]]["psmiles"] for k in target], complexity, seed)


def methods(bench: Bench, draws: int, steps: int) -> dict[str, Callable[[], Made]]:
    """M polymers by each method."""
    from finetune.design.saved import load_generator

    made = load_generator(bench.model / "generator")

    def drawn(reference: str | None, guidance: float = 2.0, times: int = 1) -> Made:
        from finetune.design.drawing import Wishes, draw_polymers
        from finetune.design.sample import SampleSettings

        wanted = np.repeat(bench.wanted, times, axis=0)
        vectors = _references(bench, made, reference, times)
        outcomes = draw_polymers(made, Wishes(wanted, vectors), SampleSettings(guidance=guidance), bench.seed, progress())
        return _made(outcomes)

    def refined(times: int) -> Made:
        from finetune.design.drawing import Wishes
        from finetune.design.proposals import references_of
        from finetune.design.refine import Aim, draw_refined
        from finetune.design.sample import SampleSettings
        from finetune.propose import REFERENCES, REFINE

        wanted, which = (np.repeat(own, times, axis=0) for own in (bench.wanted, bench.target))
        guide, bars = _guide(bench, made), progress()
        vectors = references_of(made, guide, wanted, REFERENCES, np.random.default_rng([bench.seed, 8]), bars)
        aims = [Aim(_targets(made, wanted[which == target][0]), np.flatnonzero(which == target)) for target in np.unique(which)]
        found = draw_refined(made, guide, Wishes(wanted, vectors), aims, SampleSettings(), REFINE, bench.seed, bars)
        return _made(found[0])

    return {
        "properties only": lambda: drawn(None),
        "properties only, guidance 1": lambda: drawn(None, 1.0),
        "properties and a reference of training": lambda: drawn("training"),
        "leaky: the target's own embedding": lambda: drawn("target"),
        "properties only, chosen by the property models": lambda: _chosen(bench, made, draws, lambda times: drawn(None, times=times)),
        "as finetune.propose draws, chosen by the property models": lambda: _chosen(bench, made, draws, refined),
        "nearest of training": lambda: _nearest(bench, made),
        "language model": lambda: _language(bench, made, steps),
        "language model, chosen by the property models": lambda: _chosen(
            bench, made, draws, lambda times: _language(bench, made, steps, times)
        ),
        "genetic search": lambda: _genetic(bench, made, draws),
    }


def _made(outcomes: list[Any]) -> Made:
    alone = sum(own.plain for own in outcomes) / len(outcomes)
    return [own.psmiles for own in outcomes], [own.reason for own in outcomes], alone, None


def _references(bench: Bench, made: Any, kind: str | None, times: int) -> NDArray[np.float32]:
    """(M times, R) projected embeddings of nothing, of the polymer of training with the nearest values, or of the target itself."""
    width = made.projection.components.shape[1]
    if kind is None:
        return np.full((len(bench.wanted) * times, width), np.nan, dtype=np.float32)
    texts = bench.leaky if kind == "target" else [made.known.psmiles[k] for k in _near(bench, made, 1)[:, 0]]
    guide = _guide(bench, made)
    distinct = sorted(set(texts))
    embedding = made.projection(guide.read(distinct, progress()).embedding)
    place = {text: k for k, text in enumerate(distinct)}
    return np.repeat(embedding[[place[text] for text in texts]], times, axis=0)


def _near(bench: Bench, made: Any, number: int) -> NDArray[np.int64]:
    """(M, number) labelled polymers of training with the nearest values."""
    labelled = np.flatnonzero(made.known.labelled)
    away = (bench.wanted[:, None] - made.known.values[labelled][None]) / made.deviation
    return labelled[np.argsort(np.square(away).sum(axis=2), axis=1, kind="stable")[:, :number]]


def _guide(bench: Bench, made: Any) -> Any:
    return _guide_of([bench.model / "property" / task.name for task in made.tasks])


def _targets(made: Any, wanted: NDArray[np.float64]) -> tuple[Any, ...]:
    """Learned values (P,) as targets in their units."""
    from finetune.design.goals import Target

    values = [float(task.backward(np.array([value]))[0]) for task, value in zip(made.tasks, wanted, strict=True)]
    return tuple(Target(task, value, value) for task, value in zip(made.tasks, values, strict=True))


def _guide_of(folders: list[Path]) -> Any:
    from finetune.design.guide import Guide

    return Guide(folders)


def _costs(bench: Bench, made: Any, texts: list[str], bars: Any) -> Callable[[NDArray[np.float64]], dict[str, float]]:
    """How far polymers are expected to miss a target, as finetune.propose has it; infinite where there is no prediction."""
    from finetune.design.guide import misses

    said = _guide(bench, made).say(texts, bars)

    def of(wanted: NDArray[np.float64]) -> dict[str, float]:
        targets = _targets(made, wanted)
        cost = np.nan_to_num(misses(targets, said, range(len(targets)), made.deviation), nan=np.inf)
        return dict(zip(texts, cost.tolist(), strict=True))

    return of


def _chosen(bench: Bench, made: Any, draws: int, drawn: Callable[[int], Made]) -> Made:
    """The best of several draws by what the property models say, new ones alone, as finetune.propose has them; a polymer for one target."""
    from data_shards.chem.psmiles import canonicalise

    texts, _, alone, _ = drawn(draws)
    which = np.repeat(bench.target, draws)
    group = {text: canonicalise(text).group for text in dict.fromkeys(texts) if text}
    cost_of = _costs(bench, made, [text for text, name in group.items() if name not in made.seen], progress())
    offers = []
    for target in np.unique(bench.target):
        cost = cost_of(bench.wanted[bench.target == target][0])
        here = {text for k in np.flatnonzero(which == target) if (text := texts[k])}
        offers += [(cost[text], text, int(target)) for text in here if np.isfinite(cost.get(text, np.inf))]
    best: dict[int, list[str]] = {int(target): [] for target in np.unique(bench.target)}
    number, taken = int(np.bincount(bench.target)[0]), set[str]()
    for _, text, target in sorted(offers):
        if len(best[target]) < number and group[text] not in taken:
            best[target].append(text)
            taken.add(group[text])
    out: Texts = [text for own in best.values() for text in [*own, *[None] * (number - len(own))]]
    return out, ["" if text else "fewer polymers than asked for" for text in out], alone, sum(bool(text) for text in texts) / len(texts)


def _nearest(bench: Bench, made: Any) -> Made:
    """Polymers of training, those with the nearest values; a target's k-th polymer is the k-th nearest."""
    each = int(np.bincount(bench.target)[0])
    near = _near(bench, made, each)
    texts: Texts = [made.known.psmiles[near[row, row % each]] for row in range(len(near))]
    return texts, [""] * len(texts), None, None


def _language(bench: Bench, made: Any, steps: int, times: int = 1) -> Made:
    """A language model trained on the same polymers with the same values; its strings as polymers, or the reasons why they are none."""
    import torch

    from data_shards.chem.psmiles import canonicalise
    from data_shards.errors import PolymerError
    from finetune.design.language import speak

    model = _trained(bench, made, steps)
    wanted = np.repeat(bench.wanted, times, axis=0)
    asked = torch.from_numpy(((wanted - made.mean) / made.deviation).astype(np.float32))
    texts: Texts = []
    reasons = []
    for spoken in speak(model, asked, 2.0, torch.Generator().manual_seed(bench.seed)):
        try:
            texts.append(canonicalise(spoken).plain)
            reasons.append("")
        except PolymerError as error:
            texts.append(None)
            reasons.append(error.reason)
    return texts, reasons, None, None


def _trained(bench: Bench, made: Any, steps: int) -> Any:
    """The language model, trained once."""
    from finetune.design.language import LanguageConfig, LanguageModel, train_language
    from finetune.design.train import TrainSettings
    from foundation.train import snapshot

    known, config, file = made.known, LanguageConfig(num_properties=len(made.tasks)), bench.model / f"language-{steps}.safetensors"
    if file.is_file():
        model = LanguageModel(config)
        model.load_state_dict(snapshot.load_tensors(file))
        return model.eval()
    standard = ((known.values - made.mean) / made.deviation).astype(np.float32)
    labelled = int(known.labelled.sum())
    weight = np.where(known.labelled, np.clip(0.5 * (len(known.psmiles) - labelled) / max(labelled, 1), 1.0, 10.0), 1.0)
    with progress().stage("language model", steps, unit="steps") as stage:

        def tell(_: int, metrics: dict[str, float]) -> None:
            stage.advance(1, f"loss {metrics['design/loss']:.3f}")

        model = train_language(known.psmiles, standard, weight, config, TrainSettings(steps=steps), bench.seed, tell)
    snapshot.save_tensors(file, {name: own.detach().contiguous() for name, own in model.state_dict().items()})
    return model


def _genetic(bench: Bench, made: Any, draws: int) -> Made:
    """Search with as many calls of the property models as the chosen draws had."""
    from finetune.design.genetic import search

    near = _near(bench, made, 50)
    out: Texts = []
    for target in np.unique(bench.target):
        rows = np.flatnonzero(bench.target == target)
        wanted = bench.wanted[rows[0]]

        def score(texts: list[str], wanted: NDArray[np.float64] = wanted) -> NDArray[np.float64]:
            from data_shards.progress import Silent

            cost = _costs(bench, made, list(texts), Silent())(wanted)
            return np.array([cost[text] for text in texts])

        parents = [made.known.psmiles[k] for k in near[rows[0]]]
        found = search(parents, score, len(rows) * draws, np.random.default_rng([bench.seed, 7, int(target)]), size=20)
        out += [*found[: len(rows)], *[None] * (len(rows) - len(found))]
    return out, ["" if text else "fewer polymers than asked for" for text in out], None, None


def _said(bench: Bench, texts: list[str]) -> Any:
    return _guide_of(bench.oracle).say(texts, progress())


def _scale(tasks: Any) -> list[float]:
    """Powers of ten for what is learned as a logarithm."""
    return [1 / np.log(10) if task.transform == "log" else 1.0 for task in tasks]


def _oracle_error(bench: Bench, ours: Path, tasks: Any) -> dict[str, Any]:
    """The oracle on the generator's polymers, which it never saw."""
    from finetune.design.evaluate import errors

    with ours.open(newline="") as file:
        rows = list(csv.DictReader(file))
    said = _said(bench, [row["psmiles"] for row in rows])
    truth = np.array([[task.forward(np.array([float(row[task.name.upper()])]))[0] for task in tasks] for row in rows])
    return {"polymers": len(rows), **errors(said.value, truth, _scale(tasks))}


def _judged(bench: Bench, tasks: Any, texts: Texts, reasons: list[str]) -> dict[str, Any]:
    """Quality and errors of a method."""
    from finetune.design.evaluate import errors, frechet, judge, quality
    from finetune.design.guide import synthetic_accessibility
    from finetune.design.saved import load_generator

    made = load_generator(bench.model / "generator")
    judged = judge(texts, reasons)
    training = [text for text, own in zip(made.known.psmiles, made.known.labelled, strict=True) if own]
    there = np.flatnonzero([bool(text) for text in judged.psmiles])
    polymers = [judged.psmiles[k] for k in there]
    said, whole = _said(bench, polymers), _said(bench, training)
    vectors = [made.projection(own.embedding[own.kept]) for own in (said, whole)]
    asked = synthetic_accessibility(bench.leaky)[there]
    found = {**quality(judged, made.seen, training), **errors(said.value, bench.wanted[there], _scale(tasks))}
    complexity = _guide_of([bench.complexity])
    asked_sc = dict(zip(distinct := sorted(set(bench.leaky)), complexity.say(distinct, progress()).value[:, 0], strict=True))
    sc = complexity.say(polymers, progress()).value[:, 0]
    found["complexity"] = float(np.nanmean(sc))
    found["complexity error"] = float(np.nanmean(np.abs(sc - np.array([asked_sc[bench.leaky[k]] for k in there]))))
    found["accessibility"] = float(synthetic_accessibility(polymers).mean())
    found["accessibility error"] = float(np.abs(synthetic_accessibility(polymers) - asked).mean())
    found["frechet"] = frechet(vectors[0], vectors[1])
    found["reasons"] = {name: reasons.count(name) for name in sorted(set(reasons)) if name}
    found["examples"] = polymers[:20]
    return found


if __name__ == "__main__":
    run(app)
