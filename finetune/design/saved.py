"""A generator as a folder: numbers in safetensors, everything else as JSON and CSV. Nothing is unpickled, nothing is imported by name.

<folder>/config.json        sizes, tasks, scales, the pretrained model of references, sha256 of the other files
<folder>/model.safetensors  weights, prior, what references are projected by; in bf16 where it is released
<folder>/polymers.csv       polymers with their values, labelled or predicted; empty for structures alone
<folder>/seen.json          canonical names of all polymers that it was trained on
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
from torch import Tensor

from data_shards.manifest import write_atomic
from finetune.design.graphs import CLASSES
from finetune.design.network import Denoiser, DenoiserConfig
from finetune.design.process import Prior
from finetune.tasks import Task, get_task
from foundation.errors import CheckpointError, InputError
from foundation.train import snapshot
from foundation.train.released import WEIGHTS as RELEASED
from foundation.train.snapshot import FIX

CONFIG, WEIGHTS, POLYMERS, SEEN, FORMAT = "config.json", "model.safetensors", "polymers.csv", "seen.json", 1


@dataclass(frozen=True)
class Known:
    """Polymers that a generator was trained on with values.

    Attributes:
        psmiles, groups: (G,) of each.
        size: (G,) atoms of the graph, stars included.
        values: (G, P) learned values, NaN where unknown.
        labelled: (G,) bool, from a table; otherwise predicted.
    """

    psmiles: tuple[str, ...]
    groups: tuple[str, ...]
    size: NDArray[np.int64]
    values: NDArray[np.float64]
    labelled: NDArray[np.bool_]

    @classmethod
    def none(cls, num_tasks: int) -> Known:
        """No polymer."""
        return cls((), (), np.zeros(0, dtype=np.int64), np.zeros((0, num_tasks)), np.zeros(0, dtype=bool))


@dataclass(frozen=True)
class Projection:
    """Embeddings of the pretrained model as references: standardised principal components.

    Attributes:
        checkpoint, weights: the pretrained model, as it was named, and the sha256 of its weights.
        mean: (D,) of embeddings.
        components: (D, R) directions over the deviation along each.
    """

    checkpoint: str
    weights: str
    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def __call__(self, embedding: NDArray[np.floating]) -> NDArray[np.float32]:
        """(K, R) of (K, D) embeddings."""
        return ((embedding - self.mean) @ self.components).astype(np.float32)


@dataclass(frozen=True)
class Generator:
    """A trained denoiser with what is needed to ask it.

    Attributes:
        denoiser: in eval mode.
        prior: of the process.
        tasks: its properties.
        mean, deviation: (P,) of the learned values.
        projection: of references; None where it knows none.
        known: polymers with values.
        sizes: (S,) how many polymers of its training had 0, 1, ... atoms.
        seen: canonical names of all polymers that it was trained on.
    """

    denoiser: Denoiser
    prior: Prior
    tasks: tuple[Task, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    projection: Projection | None
    known: Known
    sizes: NDArray[np.int64]
    seen: frozenset[str]


def save_generator(made: Generator, folder: Path, *, half: bool = False) -> None:
    """Write a generator.

    Args:
        made: to be written.
        folder: new, or overwritten file by file.
        half: weights in bf16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.bfloat16 if half else torch.float32
    tensors: dict[str, Tensor] = {f"denoiser.{name}": own.to(kind) for name, own in made.denoiser.state_dict().items()}
    tensors |= {"prior.atoms": made.prior.atoms, "prior.pairs": made.prior.pairs, "sizes": torch.from_numpy(made.sizes)}
    if made.projection is not None:
        tensors |= {f"projection.{name}": torch.from_numpy(getattr(made.projection, name)) for name in ("mean", "components")}
    snapshot.save_tensors(folder / WEIGHTS, {name: own.detach().contiguous() for name, own in tensors.items()})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["psmiles", "group", "atoms", "labelled", *(task.name for task in made.tasks)])
    own = made.known
    for k, psmiles in enumerate(own.psmiles):
        values = ["" if np.isnan(value) else repr(float(value)) for value in own.values[k]]
        table.writerow([psmiles, own.groups[k], int(own.size[k]), int(own.labelled[k]), *values])
    write_atomic(folder / POLYMERS, text.getvalue().encode())
    write_atomic(folder / SEEN, (json.dumps(sorted(made.seen)) + "\n").encode())
    config = {
        "format": FORMAT,
        "denoiser": asdict(made.denoiser.config),
        "classes": [[own.symbol, own.charge, own.hydrogen] for own in CLASSES],
        "tasks": [task.name for task in made.tasks],
        "mean": made.mean.tolist(),
        "deviation": made.deviation.tolist(),
        "reference": None if made.projection is None else [made.projection.checkpoint, made.projection.weights],
        "sha256": {name: snapshot.sha256(folder / name) for name in (WEIGHTS, POLYMERS, SEEN)},
    }
    write_atomic(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def load_generator(folder: Path) -> Generator:
    """What save_generator wrote.

    Raises:
        CheckpointError: none, damaged, or of another format.
    """
    config = snapshot.read_json(folder / CONFIG)
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']!r}, this program reads {FORMAT}")
        if [tuple(own) for own in config["classes"]] != [(own.symbol, own.charge, own.hydrogen) for own in CLASSES]:
            raise ValueError("its atoms are of other classes than those of this program")
        for name in (WEIGHTS, POLYMERS, SEEN):
            if snapshot.sha256(folder / name) != config["sha256"][name]:
                raise ValueError(f"{name} is not what was written")
        tensors = snapshot.load_tensors(folder / WEIGHTS)
        denoiser = Denoiser(DenoiserConfig(**config["denoiser"]))
        denoiser.load_state_dict({name: own.float() for name, own in _part(tensors, "denoiser").items()})
        tasks = tuple(get_task(name) for name in config["tasks"])
        projection = None
        if config["reference"] is not None:
            parts = {name: own.numpy() for name, own in _part(tensors, "projection").items()}
            checkpoint, weights = config["reference"]
            projection = Projection(checkpoint, weights, parts["mean"], parts["components"])
        return Generator(
            denoiser.eval(),
            Prior(tensors["prior.atoms"], tensors["prior.pairs"]),
            tasks,
            np.array(config["mean"], dtype=np.float64),
            np.array(config["deviation"], dtype=np.float64),
            projection,
            _known(folder / POLYMERS, tasks),
            tensors["sizes"].numpy(),
            frozenset(str(name) for name in json.loads((folder / SEEN).read_text(encoding="utf-8"))),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, InputError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{folder} is no generator that can be read ({why}); {FIX}") from None


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): own for key, own in tensors.items() if key.startswith(f"{name}.")}


def _known(path: Path, tasks: tuple[Task, ...]) -> Known:
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    if not rows:
        return Known.none(len(tasks))
    values = [[float(row[task.name]) if row[task.name] else np.nan for task in tasks] for row in rows]
    return Known(
        tuple(row["psmiles"] for row in rows),
        tuple(row["group"] for row in rows),
        np.array([int(row["atoms"]) for row in rows]),
        np.array(values, dtype=np.float64).reshape(len(rows), len(tasks)),
        np.array([row["labelled"] == "1" for row in rows]),
    )


def released(name: str = "structures") -> Path | None:
    """Folder of the bundled generator of this name, None where it is not part of the installation."""
    folder = RELEASED / name
    return folder if (folder / CONFIG).is_file() else None


__all__ = ["Generator", "Known", "Projection", "load_generator", "released", "save_generator"]
