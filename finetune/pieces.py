"""A cross-validation as pieces: what is fitted to one training fold, computed anywhere, kept on disk, never computed twice.

<out>/problem.npz            labels, folds, names; its key says which pieces belong to it
<out>/inputs.npz             what heads read of every polymer, of the pretrained model and of an untrained one
<out>/pieces/ours-0.npz      predictions of fold 0 by heads that did not see it, and so on
<out>/model                  heads fitted to all labels (saved.py)
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.manifest import write_atomic
from finetune.polymers import How, Polymers, load_polymers, make_polymers
from finetune.predictor import Encoder, Predictor, Settings, fit
from finetune.splits import validation_part
from finetune.tasks import get_task
from foundation.errors import InputError

PROBLEM, INPUTS, PIECES, MODEL = "problem.npz", "inputs.npz", "pieces", "model"
OURS, UNTRAINED, FINAL, CURVE = "ours", "untrained", "final", "curve"
TREES, MEAN = "lightgbm", "mean"
NOWHERE = -1  # fold of a polymer that no fold tests: only teachers know it
SHARES = (0.125, 0.25, 0.5)  # of a training fold, for the learning curve
FEWEST = 4  # polymers of such a share


@dataclass(frozen=True)
class Problem:
    """Labels of a task and its teachers on one list of P polymers.

    Attributes:
        tasks: the first is the one that is predicted.
        groups, psmiles: (P,) canonical names, and one way of writing each.
        y: (P, T) learned values, NaN where a task has none.
        fold: (P,) NOWHERE where the first task has no value.
        settings: what is fitted.
        checkpoint: of the pretrained model, as the user named it.
        weights: sha256 of its weights.
        seed: of everything drawn.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    psmiles: tuple[str, ...]
    y: NDArray[np.float64]
    fold: NDArray[np.int64]
    settings: Settings
    checkpoint: str
    weights: str
    seed: int

    @property
    def key(self) -> str:
        """sha256 of everything that decides a piece."""
        text = json.dumps([self.tasks, self.groups, asdict(self.settings), self.weights, self.seed])
        return hashlib.sha256(text.encode() + self.y.tobytes() + self.fold.tobytes()).hexdigest()

    @property
    def own(self) -> NDArray[np.int64]:
        """Polymers with a value of the first task."""
        return np.flatnonzero(~np.isnan(self.y[:, 0]))

    def training(self, fold: int | None) -> NDArray[np.int64]:
        """Polymers that a piece is fitted to: all but a fold, whose polymers teachers do not show either."""
        return np.flatnonzero(self.fold != fold) if fold is not None else np.arange(len(self.groups))

    def subset(self, keep: NDArray[np.bool_]) -> Problem:
        """Some of the polymers."""
        chosen = np.flatnonzero(keep).tolist()
        groups, psmiles = (tuple(names[k] for k in chosen) for names in (self.groups, self.psmiles))
        own = {**vars(self), "groups": groups, "psmiles": psmiles, "y": self.y[keep], "fold": self.fold[keep]}
        return Problem(**own)


def save_problem(problem: Problem, out: Path) -> None:
    """Write problem.npz."""
    facts: dict[str, Any] = {"tasks": problem.tasks, "settings": asdict(problem.settings), "key": problem.key}
    facts |= {"checkpoint": problem.checkpoint, "weights": problem.weights, "seed": problem.seed}
    names = {"groups": np.array(problem.groups), "psmiles": np.array(problem.psmiles)}
    _write(out / PROBLEM, facts=np.array(json.dumps(facts)), y=problem.y, fold=problem.fold, **names)


def load_problem(out: Path) -> Problem:
    """What save_problem wrote.

    Raises:
        InputError: none, or a damaged one.
    """
    try:
        with np.load(out / PROBLEM, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            settings = Settings.parse(facts["settings"])
            groups, psmiles = (tuple(file[name].tolist()) for name in ("groups", "psmiles"))
            where = facts["checkpoint"], facts["weights"], facts["seed"]
            return Problem(tuple(facts["tasks"]), groups, psmiles, file["y"], file["fold"], settings, *where)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{out / PROBLEM} is missing or damaged ({why}); pass --overwrite to begin anew") from None


# -------------------------------------------------------------------------------------------------------------------------- pieces


@dataclass(frozen=True)
class Piece:
    """One fit.

    Attributes:
        kind: OURS, UNTRAINED, TREES, MEAN, FINAL, or CURVE with a share, such as curve0.25.
        fold: that is left out and predicted; None for FINAL.
    """

    kind: str
    fold: int | None

    @property
    def name(self) -> str:
        """Of its file."""
        return self.kind if self.fold is None else f"{self.kind}-{self.fold}"


def planned(fold: NDArray[np.int64], baselines: bool, trees: bool, curve: bool) -> list[Piece]:
    """Pieces of a cross-validation, long ones first.

    Args:
        fold: (P,) of each polymer.
        baselines: trees, the untrained network and the mean beside.
        trees: can be grown.
        curve: shares of training folds that have FEWEST polymers, for the learning curve.
    """
    folds, counts = np.unique(fold, return_counts=True)
    least = len(fold) - int(counts.max())  # polymers of the smallest training fold
    kinds = [OURS, *([UNTRAINED] if baselines else []), *([TREES] if baselines and trees else []), *([MEAN] if baselines else [])]
    kinds += [f"{CURVE}{share:g}" for share in SHARES[::-1] if curve and share * least >= FEWEST]
    return [Piece(FINAL, None), *(Piece(kind, int(fold)) for kind in kinds for fold in folds)]


def read_piece(out: Path, piece: Piece, key: str) -> dict[str, NDArray[Any]] | None:
    """What compute wrote; None where there is none for this key."""
    try:
        with np.load(out / PIECES / f"{piece.name}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files} if str(file["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError):
        return None


def compute(out: Path, piece: Piece, threads: int) -> None:
    """Fit a piece and write it."""
    import torch

    torch.set_num_threads(threads)
    start = time.perf_counter()
    problem = load_problem(out)
    polymers, rows = inputs_of(problem, out, UNTRAINED if piece.kind == UNTRAINED else OURS)
    train = problem.training(piece.fold)
    test = np.flatnonzero(problem.fold == piece.fold) if piece.fold is not None else np.empty(0, dtype=np.int64)
    found: dict[str, Any] = {"index": test}
    if piece.kind in (TREES, MEAN):
        found["value"] = _baseline(piece.kind, problem, polymers, rows, train, test, threads)
    else:
        made = _fit(problem, polymers, rows, train, piece)
        if piece.fold is None:
            from finetune.saved import save_predictor

            save_predictor(made[0], problem, polymers, rows, out / MODEL)
        else:
            predicted = made[0].predict(polymers, rows[test], made[1])
            found |= {"value": predicted.value, "spread": predicted.spread}
            found |= {f"head_{name}": value for name, value in predicted.of_head.items()}
    seconds = time.perf_counter() - start
    (out / PIECES).mkdir(exist_ok=True)
    _write(out / PIECES / f"{piece.name}.npz", key=np.array(problem.key), seconds=np.array(seconds), threads=np.array(threads), **found)


def compute_here(item: tuple[str, Piece, int]) -> str:
    """compute, for a crew: '' where it went well, else why not."""
    folder, piece, threads = item
    try:
        compute(Path(folder), piece, threads)
    except InputError as error:
        return str(error)
    return ""


def _fit(
    problem: Problem, polymers: Polymers, rows: NDArray[np.int64], train: NDArray[np.int64], piece: Piece
) -> tuple[Predictor, Encoder | None]:
    settings = problem.settings
    if piece.kind.startswith(CURVE):
        share = float(piece.kind.removeprefix(CURVE))
        own = np.intersect1d(train, problem.own)
        train = validation_part(problem.groups, own, share, seed=problem.seed + 99)[1]
        settings = Settings(heads=("gp",))
    encoder = encoder_of(problem, settings, untrained=piece.kind == UNTRAINED) if settings.adapter != "none" else None
    groups = [problem.groups[k] for k in train]
    part = encoder if encoder is None else encoder.part(train)
    made = fit(polymers, rows[train], problem.y[train], groups, settings, problem.seed, part)
    test = np.flatnonzero(problem.fold == piece.fold)
    return made, encoder if encoder is None else encoder.part(test)


def _baseline(
    kind: str,
    problem: Problem,
    polymers: Polymers,
    rows: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    threads: int,
) -> NDArray[np.float64]:
    from finetune import baselines

    own = np.intersect1d(train, problem.own)
    inside, valid = validation_part(problem.groups, own, seed=problem.seed)
    x = [polymers.features.matrix(rows[part]) for part in (inside, valid, test)]
    y = [problem.y[part, 0] for part in (inside, valid)]
    return baselines.fit_predict(kind, x[0], y[0], x[1], y[1], x[2], problem.seed, threads)


# -------------------------------------------------------------------------------------------------------------------------- inputs


def make_inputs(problem: Problem, out: Path, models: Mapping[str, Any], how: How) -> None:
    """Write what heads read of the polymers of a problem, of the pretrained model and, for comparison, of others."""
    make_polymers(dict(zip(problem.groups, problem.psmiles, strict=True)), _inputs_key(problem), out / INPUTS, models, how)


def inputs_of(problem: Problem, out: Path, name: str = OURS) -> tuple[Polymers, NDArray[np.int64]]:
    """What make_inputs wrote, of one of the models, and the row of each polymer of the problem, -1 where it has none.

    Raises:
        InputError: nothing of the kind is there.
    """
    found = load_polymers(out / INPUTS, _inputs_key(problem), name)
    if found is None:
        raise InputError(f"{out / INPUTS} is missing, damaged or of another model; pass --overwrite to begin anew")
    return found[1], np.array([found[0].get(group, -1) for group in problem.groups], dtype=np.int64)


def _inputs_key(problem: Problem) -> str:
    return f"{problem.weights} {problem.seed} {problem.settings.conformations} conformations"


def encoder_of(problem: Problem, settings: Settings, untrained: bool) -> Encoder:
    """The pretrained model, or the same untrained, with what of it will be trained."""
    import torch

    from data_shards.chem.repeat_unit import unit_graph
    from foundation.evaluation.probes import random_model
    from foundation.train.checkpoint import load_model

    model, config = load_model(problem.checkpoint)
    model = random_model(config, problem.seed) if untrained else model
    return Encoder(adapted(model, settings), [unit_graph(psmiles) for psmiles in problem.psmiles], torch.device("cpu"))


def adapted(model: Any, settings: Settings) -> Any:
    """The model with what the settings leave to train, in place."""
    from finetune.lora import LoraSettings, attach, linear_layers
    from finetune.network import PATHS

    if settings.adapter == "lora":
        attach(model, LoraSettings(rank=settings.rank, alpha=2.0 * settings.rank, targets=linear_layers(model, PATHS)))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(settings.adapter == "full" and name.startswith(PATHS))
    return model


def _write(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def make_problem(labels: Sequence[Any], fold: NDArray[np.int64], settings: Settings, checkpoint: str, weights: str, seed: int) -> Problem:
    """Labels of a task and its teachers, put together by polymer.

    Args:
        labels: of the task, then of its teachers (finetune.table.Labels).
        fold: (P0,) of the polymers of the task.
        settings, checkpoint, weights, seed: as Problem.
    """
    psmiles: dict[str, str] = {}
    for table in labels:
        for group, written in zip(table.groups, table.psmiles, strict=True):
            psmiles.setdefault(group, written)
    place = {group: k for k, group in enumerate(psmiles)}
    y = np.full((len(place), len(labels)), np.nan)
    for column, table in enumerate(labels):
        y[[place[group] for group in table.groups], column] = get_task(table.name).forward(table.values)
    folds = np.full(len(place), NOWHERE, dtype=np.int64)
    folds[: len(fold)] = fold  # polymers of the task come first
    names = tuple(table.name for table in labels)
    return Problem(names, tuple(psmiles), tuple(psmiles.values()), y, folds, settings, checkpoint, weights, seed)


__all__ = [
    "CURVE", "FINAL", "MEAN", "MODEL", "OURS", "SHARES", "TREES", "UNTRAINED", "Piece", "Problem", "compute", "compute_here", "inputs_of",
    "load_problem", "make_inputs", "make_problem", "planned", "read_piece", "save_problem",
]  # fmt: skip
