"""What `finetune.design` does, from tables to a folder that finetune.propose draws from. Every part is kept, so that it goes on."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.manifest import write_atomic
from data_shards.progress import Progress, progress
from finetune.design.goals import properties_of
from finetune.design.material import Read, list_of, material_of, predicted_values, project, read_all
from finetune.design.network import Denoiser, DenoiserConfig
from finetune.design.process import Prior
from finetune.design.saved import Generator, Known, load_generator, released, save_generator
from finetune.design.train import STATE, Material, TrainSettings, step_of, train
from finetune.table import Labels, load
from finetune.tasks import Task
from foundation.errors import CheckpointError, InputError

GENERATOR, PROPERTY, INPUTS, PLAN, REFUSED = "generator", "property", "inputs.npz", "design.json", "refused.csv"
SMALL_TABLE = 1_000  # polymers below which starting Ray costs more than it saves
ADAPTERS = ("none", "lora", "full")
FEWEST = 20  # graphs that a generator is worth anything on


@dataclass(frozen=True)
class DesignJob:
    """What the user asked for; see the options of finetune.design."""

    task: str
    data: str | None
    column: str | None
    unlabelled: str | None
    fitted: tuple[str, ...]
    checkpoint: str
    start: str | None
    out: Path | None
    adapter: str
    steps: int
    limit: int | None
    seed: int
    workers: int | None
    track: bool


@dataclass(frozen=True)
class Ready:
    """Checked.

    Attributes:
        job: as asked.
        tasks: properties.
        labels: a table for each.
        others: P-SMILES without values.
        start: the generator that training begins from, or None.
        fitted: folders of finetune.property by task, which need not be fitted.
        out: folder.
    """

    job: DesignJob
    tasks: tuple[Task, ...]
    labels: tuple[Labels, ...]
    others: tuple[str, ...]
    start: Generator | None
    fitted: dict[str, Path]
    out: Path


def prepare(job: DesignJob, *, overwrite: bool, writing: bool) -> Ready:
    """Read and check everything before anything is written.

    Raises:
        InputError: bad input.
    """
    tasks = properties_of(job.task)
    if job.adapter not in ADAPTERS:
        raise InputError(f"--adapter {job.adapter!r} must be one of {', '.join(ADAPTERS)}; change it")
    out = job.out or Path("runs") / f"design-{job.task}"
    _check_out(out, overwrite)
    if not tasks and job.data is None:
        raise InputError(f"--task {job.task} learns from polymers without values; give a table of them with --data")
    labels = tuple(load(task, job.data, job.column if len(tasks) == 1 else None, job.limit, bars=progress()) for task in tasks)
    others = list_of(job.unlabelled, job.limit) if job.unlabelled is not None else []
    if not tasks:
        assert job.data is not None
        others = list_of(job.data, job.limit) + others
    start = None
    if job.start != "none":
        folder = released() if job.start is None else Path(job.start)
        start = load_generator(folder) if folder is not None else None
    fitted = _fitted(job, tasks)
    if overwrite and writing and out.exists():
        for name in (GENERATOR, PROPERTY):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (INPUTS, PLAN, REFUSED, STATE, "metrics.jsonl", "config.json", "run.json"):
            (out / name).unlink(missing_ok=True)
    return Ready(job, tasks, labels, tuple(others), start, fitted, out)


def _fitted(job: DesignJob, tasks: tuple[Task, ...]) -> dict[str, Path]:
    """Folders of fitted property models by task.

    Raises:
        InputError: no such folder, of another task, or of another pretrained model than the references.
    """
    from finetune.stream import Ready as PropertyModel

    found: dict[str, Path] = {}
    for folder in job.fitted:
        try:
            task = PropertyModel(Path(folder), job.checkpoint).saved.task.name
        except (InputError, CheckpointError) as error:
            raise InputError(str(error).replace("--model", "--fitted", 1)) from None
        if task in found or task not in [own.name for own in tasks]:
            why = "is given twice" if task in found else f"is not of --task {job.task}"
            raise InputError(f"--fitted {folder} predicts {task}, which {why}; leave it out")
        found[task] = Path(folder)
    return found


def _check_out(out: Path, overwrite: bool) -> None:
    """A new folder, or one of finetune.design that is not finished or may go.

    Raises:
        InputError: taken.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PLAN).is_file())):
        raise InputError(f"--out {out} exists and is no folder of finetune.design; pass another --out")
    if (out / GENERATOR / "config.json").is_file() and not overwrite:
        raise InputError(f"--out {out} holds a finished generator; pass --overwrite to begin anew, or another --out")


def show_plan(ready: Ready) -> None:
    """What will be learned from what."""
    job = ready.job
    for task, labels in zip(ready.tasks, ready.labels, strict=True):
        fitted = f", predicted by {ready.fitted[task.name]}" if task.name in ready.fitted else ""
        print(f"{task.title}, {task.unit}: {len(labels.groups)} polymers of {labels.rows['rows']} rows{fitted}")
    values = "their values are predicted by the property models" if ready.tasks else "no values are asked for"
    print(f"{len(ready.others)} polymers without values; {values}")
    begun = "random weights" if ready.start is None else f"a generator that has seen {len(ready.start.seen)} polymers"
    print(f"{job.steps} steps from {begun}; embeddings of {job.checkpoint}")


def work(ready: Ready) -> None:
    """Do it: property models, inputs, training."""
    from foundation.sampling.provenance import write_json

    job, out, bars = ready.job, ready.out, progress()
    show_plan(ready)
    out.mkdir(parents=True, exist_ok=True)
    plan = {name: value for name, value in asdict(job).items() if name not in ("out", "workers", "track")}
    plan |= {"others": len(ready.others), "polymers": [len(labels.groups) for labels in ready.labels]}
    if (out / PLAN).is_file() and _plan_of(out) != _plain(plan):
        raise InputError(f"--out {out} was begun with other data or settings; pass the same ones, --overwrite, or another --out")
    write_json(out / PLAN, plan)
    models = [_property_model(ready, task) for task in ready.tasks]
    named = {group: psmiles for labels in ready.labels for group, psmiles in zip(labels.groups, labels.psmiles, strict=True)}
    groups = _groups(ready.others, bars)
    named |= {group: psmiles for group, psmiles in zip(groups, ready.others, strict=True) if group and group not in named}
    read = read_all(list(named.values()), _workers(job, len(named)), bars)
    _write_refused(out / REFUSED, list(named.values()), read)
    if len(read.graphs) < FEWEST:
        number = f"{len(read.graphs)} polymers of {len(named)} can be learned from, at least {FEWEST} are needed"
        raise InputError(f"{number}; {out / REFUSED} says why")
    made, material = _material(ready, models, named, read, bars)
    print(f"{len(material.graphs) // 2} polymers to learn from, {int(made.known.labelled.sum())} with values of a table")
    denoiser = _train(ready, made.denoiser, material, made.prior, bars)
    save_generator(replace(made, denoiser=denoiser), out / GENERATOR)
    example = " ".join(
        f"{task.name}={task.backward(np.array([middle]))[0]:.3g}" for task, middle in zip(made.tasks, made.mean, strict=True)
    )
    asked = f" --target {example}" if example else ""
    print(f"generator: {out / GENERATOR}; draw: python -m finetune.propose --model {out}{asked} --num 100 --out candidates.csv")


def _plan_of(out: Path) -> dict[str, Any]:
    from foundation.train import snapshot

    return snapshot.read_json(out / PLAN)


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it."""
    import json

    found: dict[str, Any] = json.loads(json.dumps(plan))
    return found


def _workers(job: DesignJob, number: int) -> int:
    return job.workers if job.workers is not None else 0 if number < SMALL_TABLE else os.cpu_count() or 1


def _property_model(ready: Ready, task: Task) -> Any:
    """The fitted model of a property, with intervals; made by finetune.property where it is not there yet."""
    from finetune import job as property_job
    from finetune import stream
    from finetune.predictor import HEADS, Settings
    from finetune.trees import installed

    job, folder = ready.job, ready.out / PROPERTY / task.name
    if task.name in ready.fitted and not folder.exists():
        aside = folder.with_name(f".{task.name}.copying")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(ready.fitted[task.name], aside)
        aside.rename(folder)
    if not (folder / property_job.RESULTS).is_file():
        heads = tuple(name for name in HEADS if name != "trees" or installed())
        column = job.column if len(ready.tasks) == 1 else None
        settings = Settings(heads, job.adapter)
        asked = property_job.Job(
            task=task.name, data=job.data, column=column, teacher=(), siblings=False, checkpoint=job.checkpoint, out=folder,
            settings=settings, split="folds", baseline=False, limit=job.limit, seed=job.seed, workers=job.workers, track=False,
        )  # fmt: skip
        property_job.work(property_job.prepare(asked, overwrite=False, writing=True))
    return stream.Ready(folder)


def _groups(psmiles: tuple[str, ...], bars: Progress) -> list[str]:
    """Canonical names, "" where there is none."""
    from data_shards.chem.psmiles import canonicalise
    from data_shards.errors import PolymerError

    found = []
    with bars.stage("names", len(psmiles)) as stage:
        for text in psmiles:
            try:
                found.append(canonicalise(text).group)
            except PolymerError:
                found.append("")
            stage.advance()
    return found


def _material(ready: Ready, models: list[Any], named: dict[str, str], read: Read, bars: Progress) -> tuple[Generator, Material]:
    """The generator before it is trained, and what it is trained on."""
    import torch

    from finetune.pieces import OURS
    from finetune.polymers import How, load_polymers, make_polymers
    from foundation.sampling.provenance import weights_fingerprint
    from foundation.sampling.run import BATCH_ATOMS
    from foundation.train.checkpoint import load_model

    job, tasks = ready.job, ready.tasks
    names = [list(named)[k] for k in read.kept]
    ways, values, projection = [read.graphs, read.turned], np.zeros((len(names), 0)), None
    references, labelled = np.zeros((len(names), 0), dtype=np.float32), [False] * len(names)
    if tasks:
        model, _ = load_model(job.checkpoint)
        weights = weights_fingerprint(model)
        how = How(torch.device("cpu"), BATCH_ATOMS["cpu"], _workers(job, len(names)), bars)
        make_polymers({name: named[name] for name in names}, weights, ready.out / INPUTS, {OURS: model}, how)
        found = load_polymers(ready.out / INPUTS, weights, OURS)
        assert found is not None
        rows = np.array([found[0].get(name, -1) for name in names])
        keep = np.flatnonzero(rows >= 0)
        names, ways, rows = [names[k] for k in keep], [[way[k] for k in keep] for way in ways], rows[keep]
        polymers = found[1].subset(rows)
        values = np.full((len(names), len(tasks)), np.nan)
        place = {name: k for k, name in enumerate(names)}
        for column, (task, labels) in enumerate(zip(tasks, ready.labels, strict=True)):
            learned = task.forward(labels.values)
            there = [(place[group], k) for k, group in enumerate(labels.groups) if group in place]
            values[[row for row, _ in there], column] = learned[[k for _, k in there]]
        labelled = [bool(np.isfinite(row).any()) for row in values]
        with bars.stage("values", len(names)) as stage:
            values = predicted_values(models, polymers, [named[name] for name in names], values)
            stage.advance(len(names))
        projection = project(polymers.embedding, job.checkpoint, weights)
        references = projection(polymers.embedding)
    size = np.array([len(own.atoms) for own in ways[0]])
    known = Known(tuple(named[name] for name in names), tuple(names), size, values, np.array(labelled, dtype=bool))
    mean, deviation = (values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)) if tasks else (np.zeros(0), np.ones(0))
    denoiser = begin(ready.start, len(tasks), references.shape[1], job.seed)
    prior = Prior.of([own for way in ways for own in way]) if ready.start is None else ready.start.prior
    seen = frozenset(names) | (frozenset() if ready.start is None else ready.start.seen)
    kept = known if tasks else Known.none(0)
    made = Generator(denoiser, prior, tasks, mean, deviation, projection, kept, np.bincount(size), seen)
    return made, material_of(known, ways, mean, deviation, references)


def begin(start: Generator | None, num_properties: int, reference_width: int, seed: int) -> Denoiser:
    """A denoiser with these conditions, and with the weights of another where that has them."""
    import torch

    config = DenoiserConfig() if start is None else start.denoiser.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(replace(config, num_properties=num_properties, reference_width=reference_width))
    if start is not None:
        own = denoiser.state_dict()
        fits = {name: value for name, value in start.denoiser.state_dict().items() if name in own and own[name].shape == value.shape}
        denoiser.load_state_dict({**own, **fits})
    return denoiser


def _train(ready: Ready, denoiser: Denoiser, material: Material, prior: Prior, bars: Progress) -> Denoiser:
    """Train with a bar and metrics.jsonl."""
    import secrets

    from foundation.config import TrackConfig
    from foundation.sampling.provenance import provenance, write_json
    from foundation.track.tracker import Tracker

    job, out = ready.job, ready.out
    settings = TrainSettings(steps=job.steps)
    config = {"recipe": "design", "objective": job.task, "seed": job.seed, "denoiser": asdict(denoiser.config), "train": asdict(settings)}
    write_json(out / "config.json", config)
    if not (out / "run.json").is_file():
        write_json(out / "run.json", {"run_id": secrets.token_hex(4), "job_type": "design", **provenance(None, None)})
    done = step_of(out)
    with (
        Tracker(out, first_step=done, track=TrackConfig(wandb=job.track)) as tracker,
        bars.stage("train", job.steps, done=done, unit="steps") as stage,
    ):

        def tell(step: int, metrics: dict[str, float]) -> None:
            tracker.log(step, metrics)
            stage.advance(1, f"loss {metrics['design/loss']:.3f}")

        return train(denoiser, material, prior, settings, job.seed, out, tell)


def _write_refused(path: Path, psmiles: list[str], read: Read) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["psmiles", "reason"])
    table.writerows([[psmiles[k], reason] for k, reason in read.refused])
    write_atomic(path, text.getvalue().encode())


__all__ = ["GENERATOR", "PROPERTY", "DesignJob", "Ready", "begin", "prepare", "show_plan", "work"]
