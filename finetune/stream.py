"""Predictions of any number of polymers, some thousand at a time: rows in, rows out, in the same order."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from data_shards.progress import Silent, progress
from finetune.pieces import MODEL, OURS, adapted
from finetune.polymers import How, read_polymers
from finetune.saved import Saved, load_predictor
from foundation.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from finetune.fingerprints import Neighbours

CHUNK = 2_048  # polymers in memory at a time
SMALL_CHUNK = 256  # polymers below which starting Ray costs more than it saves
COLUMNS = ("psmiles", "prediction", "lower", "upper", "in_domain", "similarity", "nearest", "nearest_value", "reason")


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of finetune.predict."""

    model: Path
    psmiles: tuple[str, ...]
    input: str | None
    column: str | None
    out: Path | None
    checkpoint: str | None
    limit: int | None
    neighbours: int
    workers: int | None
    dry_run: bool


class Ready:
    """A saved predictor with its pretrained model loaded.

    Args:
        folder: of finetune.property.
        checkpoint: of the pretrained model; None: where it was.

    Raises:
        InputError: no such folder, not calibrated, or another pretrained model.
    """

    def __init__(self, folder: Path, checkpoint: str | None = None) -> None:
        from foundation.sampling.provenance import weights_fingerprint
        from foundation.train.checkpoint import load_model

        if not (folder / MODEL).is_dir():
            raise InputError(f"--model {folder} holds no folder {MODEL}; pass a folder that finetune.property has finished")
        self.saved: Saved = load_predictor(folder / MODEL)
        if self.saved.half is None:
            raise InputError(f"--model {folder} has no intervals yet; let finetune.property finish, with the same command")
        self.base, _ = load_model(checkpoint or self.saved.checkpoint)
        given = weights_fingerprint(self.base)
        if given != self.saved.weights:
            raise CheckpointError(
                f"--model {folder} was trained on other weights (sha256 {self.saved.weights[:12]}) than those of"
                f" {checkpoint or self.saved.checkpoint} ({given[:12]}); pass that model with --checkpoint"
            )
        self.near: Neighbours = self.saved.neighbours()
        settings = self.saved.predictor.settings
        if settings.adapter != "none":
            self.tuned, _ = load_model(checkpoint or self.saved.checkpoint)
            adapted(self.tuned, settings)

    def rows(self, written: list[str], neighbours: int, workers: int) -> list[dict[str, Any]]:
        """A row of COLUMNS for each P-SMILES."""
        import torch

        from finetune.predictor import Encoder
        from foundation.sampling.run import BATCH_ATOMS

        saved, device = self.saved, torch.device("cpu")
        how = How(device, BATCH_ATOMS["cpu"], workers, Silent(), saved.predictor.settings.conformations)
        polymers = read_polymers(written, {OURS: self.base}, how)[OURS]
        made: list[dict[str, Any]] = [{"psmiles": psmiles} for psmiles in written]
        for refused in polymers.features.refused:
            made[refused.index]["reason"] = refused.reason
        if not len(polymers):
            return made
        encoder = None
        if saved.predictor.settings.adapter != "none":
            encoder = Encoder(self.tuned, polymers.features.units, device)
        found = saved.predictor.predict(polymers, np.arange(len(polymers)), encoder)
        assert saved.half is not None
        low, high = found.value - saved.half * found.spread, found.value + saved.half * found.spread
        value, lower, upper = (saved.task.backward(part) for part in (found.value, low, high))
        order, similarity = self.near.nearest(polymers.features.counts, polymers.features.atoms, neighbours)
        own = saved.own
        for k, index in enumerate(polymers.features.kept.tolist()):
            if not np.isfinite(value[k]):
                made[index]["reason"] = "the prediction is not finite"
                continue
            named = own[order[k]].tolist()
            made[index] |= {
                "prediction": f"{value[k]:.6g}",
                "lower": f"{lower[k]:.6g}",
                "upper": f"{upper[k]:.6g}",
                "in_domain": "true" if similarity[k, 0] >= saved.similar else "false",
                "similarity": f"{similarity[k, 0]:.3f}",
                "nearest": " ".join(saved.psmiles[place] for place in named),
                "nearest_value": " ".join(f"{saved.values[place]:.6g}" for place in named),
            }
        return made


def predict_stream(request: Request) -> None:
    """Read, predict and write in chunks.

    Raises:
        InputError: bad input, or no polymer that can be predicted.
    """
    from data_shards.crew import start_ray

    ready = Ready(request.model, request.checkpoint)
    task = ready.saved.task
    source = written(request)
    first = list(islice(source, CHUNK))
    if not first:
        raise InputError(f"--input {request.input} holds no polymer; give one row at least")
    if request.dry_run:
        print(f"{task.title}, {task.unit}: would be predicted by {request.model}; nothing was written")
        return
    workers = request.workers if request.workers is not None else 0 if len(first) < SMALL_CHUNK else os.cpu_count() or 1
    bars, done, failed = progress(), 0, 0
    reasons: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(start_ray(workers) if workers else nullcontext())
        writer = _writer(stack, request.out)
        stage = stack.enter_context(bars.stage("predict", request.limit or len(first)))
        chunk = first
        while chunk:
            for row in ready.rows(chunk, request.neighbours, workers):
                writer.writerow(row)
                done += 1
                if row.get("reason"):
                    failed += 1
                    reasons = [*reasons, f"{row['psmiles'][:60]}: {row['reason']}"][:5]
            stage.advance(len(chunk))
            chunk = list(islice(source, CHUNK))
        if failed == done:
            raise InputError(f"none of {done} polymers can be predicted, the first: {reasons[0]}")
    for reason in reasons:
        print(reason, file=sys.stderr)
    said = f"{done - failed} of {done} polymers predicted: {task.title}, {task.unit}, {ready.saved.coverage:.0%} interval"
    print(f"{said}{f'; {request.out}' if request.out else ''}", file=sys.stderr)


def written(request: Request) -> Iterator[str]:
    """P-SMILES as the user gave them."""
    from data_shards.sources.table import TableSource

    rows: Iterable[str]
    if request.psmiles:
        rows = request.psmiles
    elif request.input == "-":
        rows = (line.strip() for line in sys.stdin if line.strip())
    else:
        assert request.input is not None
        rows = (row.psmiles for row in TableSource(request.input, request.column, request.limit).rows())
    return islice(iter(rows), request.limit)


def _writer(stack: ExitStack, out: Path | None) -> csv.DictWriter[str]:
    """To the file, which gets its name when all is written, or to the screen."""
    file: TextIO = sys.stdout
    if out is not None:
        aside = out.with_name(f".{out.name}.writing")
        out.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("w", encoding="utf-8", newline="")

        def close(kind: type[BaseException] | None, *_: object) -> None:
            file.close()
            aside.unlink() if kind is not None else os.replace(aside, out)

        stack.push(close)
    made = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    made.writeheader()
    return made


__all__ = ["COLUMNS", "Ready", "Request", "predict_stream", "written"]
