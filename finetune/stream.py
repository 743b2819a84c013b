"""Predictions of any number of polymers: rows in, rows out, in the same order. Each process loads the model once and reads chunks."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from data_shards.crew import Crash, Unordered, crew
from data_shards.progress import Silent, progress
from finetune.pieces import MODEL, OURS, adapted
from finetune.polymers import How, read_polymers
from finetune.saved import CONFIG, Saved, load_predictor
from foundation.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from data_shards.schema import UnitTopology
    from finetune.fingerprints import Neighbours
    from finetune.predictor import Encoder

CHUNK = 256  # polymers that a process predicts at a time
FEW = 512  # polymers below which starting Ray costs more than it saves
TIME_LIMIT_SEC = 1_800.0  # of a chunk
SHOWN = 5  # reasons named on the screen
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

    def encoder(self, units: Sequence[UnitTopology]) -> Encoder | None:
        """The pretrained model with the trained adapters, reading these polymers; None where it was not adapted."""
        if self.saved.predictor.settings.adapter == "none":
            return None
        import torch

        from finetune.predictor import Encoder

        return Encoder(self.tuned, units, torch.device("cpu"))

    def rows(self, written: list[str], neighbours: int = 1) -> list[dict[str, Any]]:
        """A row of COLUMNS for each P-SMILES."""
        import torch

        from foundation.sampling.run import BATCH_ATOMS

        saved, device = self.saved, torch.device("cpu")
        how = How(device, BATCH_ATOMS["cpu"], 0, Silent(), saved.predictor.settings.conformations)
        polymers = read_polymers(written, {OURS: self.base}, how)[OURS]
        made: list[dict[str, Any]] = [{"psmiles": psmiles} for psmiles in written]
        for refused in polymers.features.refused:
            made[refused.index]["reason"] = refused.reason
        if not len(polymers):
            return made
        found = saved.predictor.predict(polymers, np.arange(len(polymers)), self.encoder(polymers.features.units))
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
    folder = request.model.resolve()
    ready = _loaded(folder, request.checkpoint, _stamp(folder))
    task = ready.saved.task
    source = written(request)
    first = list(islice(source, FEW))
    if not first:
        raise InputError(f"--input {request.input} holds no polymer; give one row at least")
    if request.dry_run:
        print(f"{task.title}, {task.unit}: would be predicted by {request.model}; nothing was written")
        return
    workers = request.workers if request.workers is not None else 0 if len(first) < FEW else os.cpu_count() or 1
    bars, done, failed = progress(), 0, 0
    reasons: list[str] = []
    with ExitStack() as stack:
        unordered = stack.enter_context(crew(workers))
        writer = _writer(stack, request.out)
        stage = stack.enter_context(bars.stage("predict", len(first) if len(first) < FEW else request.limit))
        for rows in _in_order(unordered, _chunks(request, chain(first, source))):
            for row in rows:
                writer.writerow(row)
                failed += bool(row.get("reason"))
                if row.get("reason") and len(reasons) < SHOWN:
                    reasons.append(f"{row['psmiles'][:60]}: {row['reason']}")
            done += len(rows)
            stage.advance(len(rows))
        if failed == done:
            raise InputError(f"none of {done} polymers can be predicted, the first: {reasons[0]}")
    for reason in reasons:
        print(reason, file=sys.stderr)
    said = f"{done - failed} of {done} polymers predicted: {task.title}, {task.unit}, {ready.saved.coverage:.0%} interval"
    print(f"{said}{f'; {request.out}' if request.out else ''}", file=sys.stderr)


@dataclass(frozen=True)
class Chunk:
    """Some polymers, for any process.

    Attributes:
        place: of the chunk in the stream.
        written: P-SMILES.
        model, checkpoint, neighbours: as Request.
    """

    place: int
    written: tuple[str, ...]
    model: Path
    checkpoint: str | None
    neighbours: int


def _chunks(request: Request, source: Iterator[str]) -> Iterator[Chunk]:
    for place in count():
        own = tuple(islice(source, CHUNK))
        if not own:
            return
        yield Chunk(place, own, request.model.resolve(), request.checkpoint, request.neighbours)


def _in_order(unordered: Unordered, chunks: Iterator[Chunk]) -> Iterator[list[dict[str, Any]]]:
    """Rows of chunks in the order of the stream; what came too early waits."""
    early: dict[int, list[dict[str, Any]]] = {}
    place = 0
    for chunk, answer in unordered(predict_here, chunks, TIME_LIMIT_SEC):
        early[chunk.place] = _alone(unordered, chunk, answer.value) if isinstance(answer.value, Crash) else answer.value
        while place in early:
            yield early.pop(place)
            place += 1


def _alone(unordered: Unordered, chunk: Chunk, crash: Crash) -> list[dict[str, Any]]:
    """Rows of a chunk under which a process died: its polymers one by one, so that only the one that kills is lost."""
    if len(chunk.written) == 1:
        return [{"psmiles": chunk.written[0], "reason": crash.detail}]
    single = (replace(chunk, place=k, written=(psmiles,)) for k, psmiles in enumerate(chunk.written))
    return [row for rows in _in_order(unordered, single) for row in rows]


def predict_here(chunk: Chunk) -> list[dict[str, Any]]:
    """Rows of a chunk, by a model that this process has loaded once."""
    import torch

    torch.set_num_threads(1)
    rows = _loaded(chunk.model, chunk.checkpoint, _stamp(chunk.model)).rows(list(chunk.written), chunk.neighbours)
    _give_back()
    return rows


def _give_back() -> None:
    """What was freed goes back to the system. Without it chunks of all sizes leave holes: a process grew by 11 kB a polymer."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _loaded(model: Path, checkpoint: str | None, stamp: int) -> Ready:
    return Ready(model, checkpoint)


def _stamp(model: Path) -> int:
    """When the model was written, so that one trained anew in the same place is read anew."""
    try:
        return (model / MODEL / CONFIG).stat().st_mtime_ns
    except OSError:
        return 0


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
