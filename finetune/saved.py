"""A fitted predictor as a folder: numbers in safetensors, everything else as JSON. Nothing is unpickled, nothing is imported by name.

<model>/config.json        task, settings, the pretrained weights it needs, half width of its intervals, sha256 of the numbers
<model>/model.safetensors  scales, labels and their inputs, kernel, weights of networks and adapters
<model>/trees-0.txt        trees as lightgbm writes them, and so on
<model>/training.csv       polymers that it was fitted to, with their values
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.manifest import write_atomic
from finetune.fingerprints import NUMBERS, Features, Neighbours
from finetune.gaussian import GaussianProcess, Posterior
from finetune.network import Fitted, Perceptron
from finetune.pieces import Problem
from finetune.polymers import Polymers, Scaler
from finetune.predictor import Predictor, Scales, Settings
from finetune.tasks import Task, get_task
from finetune.trees import Trees
from foundation.errors import CheckpointError
from foundation.train import snapshot
from foundation.train.snapshot import FIX

CONFIG, WEIGHTS, TRAINING, FORMAT = "config.json", "model.safetensors", "training.csv", 2
FAR = 5.0  # percent of the training polymers whose nearest other one is farther than the bound of the domain


@dataclass(frozen=True)
class Saved:
    """A predictor with what a user needs to know of it.

    Attributes:
        predictor: fitted.
        task: what it predicts.
        psmiles: (P,) polymers that it was fitted to.
        values: (P,) theirs, in the unit of the task, NaN of teachers' polymers.
        polymers: their inputs.
        checkpoint, weights: the pretrained model that it needs, as it was named, and the sha256 of its weights.
        half: half width of an interval over the spread, in learned values; None until it is calibrated.
        coverage: of the intervals.
        similar: similarity to the nearest training polymer below which a polymer is outside the domain.
    """

    predictor: Predictor
    task: Task
    psmiles: tuple[str, ...]
    values: NDArray[np.float64]
    polymers: Polymers
    checkpoint: str
    weights: str
    half: float | None
    coverage: float
    similar: float

    @property
    def own(self) -> NDArray[np.int64]:
        """Training polymers with a value."""
        return np.flatnonzero(~np.isnan(self.values))

    def neighbours(self) -> Neighbours:
        """Of training polymers with a value, in the order of `own`."""
        own = self.polymers.features
        return Neighbours(own.counts[self.own], own.atoms[self.own])


def save_predictor(predictor: Predictor, problem: Problem, polymers: Polymers, rows: NDArray[np.int64], folder: Path) -> None:
    """Write a predictor that was fitted to all labels of a problem; intervals come later (calibrated)."""
    folder.mkdir(parents=True, exist_ok=True)
    own = polymers.features
    tensors: dict[str, Any] = {
        **{f"inputs.{name}": getattr(own, name)[rows] for name in NUMBERS},
        "inputs.embedding": polymers.embedding[rows],
        "labels.y": problem.y,
        "scales.mean": predictor.scales.mean,
        "scales.deviation": predictor.scales.deviation,
    }
    for name, scaler in predictor.scales.vectors.items():
        tensors |= {f"scales.{name}.mean": scaler.mean, f"scales.{name}.deviation": scaler.deviation}
    if predictor.posterior is not None:
        made = predictor.posterior
        tensors |= {f"gp.process.{name}": value for name, value in made.process.state_dict().items()}
        tensors |= {"gp.weights": made.weights, "gp.factor": made.factor, "gp.anchors": made.chosen}
    for k, one in enumerate(predictor.networks):
        tensors |= {f"network.{k}.head.{name}": value for name, value in one.head.state_dict().items()}
        tensors |= {f"network.{k}.adapted.{name}": value for name, value in one.adapted.items()}
    content = {name: torch.as_tensor(value).detach().contiguous() for name, value in tensors.items()}
    snapshot.save_tensors(folder / WEIGHTS, content)
    task = get_task(problem.tasks[0])
    values = np.full(len(problem.groups), np.nan)
    values[problem.own] = task.backward(problem.y[problem.own, 0])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["psmiles", "value"])
    table.writerows(
        [[psmiles, "" if np.isnan(value) else repr(float(value))] for psmiles, value in zip(problem.psmiles, values, strict=True)]
    )
    write_atomic(folder / TRAINING, text.getvalue().encode())
    for name, grown in zip(_trees_files(len(predictor.trees)), predictor.trees, strict=True):
        write_atomic(folder / name, grown.text.encode())
    near = Neighbours(own.counts[rows[problem.own]], own.atoms[rows[problem.own]])
    config = {
        "format": FORMAT,
        "task": task.name,
        "tasks": list(problem.tasks),
        "settings": asdict(predictor.settings),
        "checkpoint": problem.checkpoint,
        "weights": problem.weights,
        "networks": [{"epoch": one.epoch, "valid": one.valid} for one in predictor.networks],
        "similar": near.usual(FAR),
        "half": None,
        "coverage": 0.9,
        "trees": [{"columns": one.columns.tolist(), "centre": one.centre, "scale": one.scale} for one in predictor.trees],
        "valid": predictor.valid,
        "stacking": predictor.weights,
        "sha256": {name: snapshot.sha256(folder / name) for name in (WEIGHTS, TRAINING, *_trees_files(len(predictor.trees)))},
    }
    write_atomic(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def calibrated(folder: Path, half: float, coverage: float) -> None:
    """Give a saved predictor the half width of its intervals."""
    config = snapshot.read_json(folder / CONFIG)
    write_atomic(
        folder / CONFIG,
        (json.dumps({**config, "half": half if np.isfinite(half) else None, "coverage": coverage}, indent=1) + "\n").encode(),
    )


def load_predictor(folder: Path) -> Saved:
    """A saved predictor.

    Raises:
        CheckpointError: none, damaged, or of another format.
    """
    config = snapshot.read_json(folder / CONFIG)
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']!r}, this program reads {FORMAT}")
        for name in (WEIGHTS, TRAINING, *_trees_files(len(config["trees"]))):
            if snapshot.sha256(folder / name) != config["sha256"][name]:
                raise ValueError(f"{name} is not what was written")
        tensors = snapshot.load_tensors(folder / WEIGHTS)
        with (folder / TRAINING).open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        psmiles = tuple(row["psmiles"] for row in table)
        values = np.array([float(row["value"]) if row["value"] else np.nan for row in table])
        polymers = _polymers(tensors)
        predictor = _predictor(tensors, config, polymers, _read_trees(folder, config))
        place = config["checkpoint"], config["weights"], config["half"], config["coverage"], config["similar"]
        return Saved(predictor, get_task(config["task"]), psmiles, values, polymers, *place)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{folder} is no model of finetune.property ({why}){FIX}") from None


def _polymers(tensors: Mapping[str, torch.Tensor]) -> Polymers:
    embedding = tensors["inputs.embedding"].numpy()
    numbers = {name: tensors[f"inputs.{name}"].numpy() for name in NUMBERS}
    return Polymers(Features.of(np.arange(len(embedding)), numbers, ()), embedding)


def _predictor(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], polymers: Polymers, trees: tuple[Trees, ...]) -> Predictor:
    settings = Settings.parse(config["settings"])
    vectors = {
        name: Scaler(tensors[f"scales.{name}.mean"].numpy(), tensors[f"scales.{name}.deviation"].numpy())
        for name in ("descriptors", "levels", "embedding")
    }
    scales = Scales(vectors, tensors["scales.mean"].numpy(), tensors["scales.deviation"].numpy())
    y = tensors["labels.y"].numpy()
    posterior = None
    if "gp" in settings.heads:
        inputs = scales.inputs(polymers, np.flatnonzero(~np.isnan(y[:, 0])))
        process = GaussianProcess({name: x.shape[1] for name, x in inputs.items()}).requires_grad_(False)
        process.load_state_dict(_within(tensors, "gp.process."))
        posterior = Posterior(process, inputs, tensors["gp.weights"], tensors["gp.anchors"], tensors["gp.factor"])
    fitted = []
    for k, facts in enumerate(config["networks"]):
        state, adapted = (_within(tensors, f"network.{k}.{part}.") for part in ("head", "adapted"))
        width = polymers.embedding.shape[1]
        head = Perceptron(width, state["layers.0.weight"].shape[1] - width, y.shape[1], settings.network)
        head.load_state_dict(state)
        fitted.append(Fitted(head.eval(), adapted, int(facts["epoch"]), float(facts["valid"])))
    return Predictor(settings, scales, posterior, tuple(fitted), trees, config["valid"], config["stacking"])


def _trees_files(number: int) -> list[str]:
    return [f"trees-{k}.txt" for k in range(number)]


def _read_trees(folder: Path, config: Mapping[str, Any]) -> tuple[Trees, ...]:
    found = []
    for name, facts in zip(_trees_files(len(config["trees"])), config["trees"], strict=True):
        columns, text = np.array(facts["columns"], dtype=np.int64), (folder / name).read_text(encoding="utf-8")
        found.append(Trees(text, columns, float(facts["centre"]), float(facts["scale"]), np.empty(0)))
        found[-1].booster.num_trees()  # text that is not of trees is refused here
    return tuple(found)


def _within(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


__all__ = ["FAR", "Saved", "calibrated", "load_predictor", "save_predictor"]
