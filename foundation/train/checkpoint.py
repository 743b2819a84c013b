"""Checkpoints: written aside, read back, committed by rename. Anything without its marker does not exist for a reader.

    <run>/checkpoints/step-00000200/
        COMMITTED               sha256 of every file; written last, before the rename
        state.json              step, samples_seen, shard fingerprint, whole configuration, versions
        model.safetensors       weights, fp32
        ema.safetensors         their moving average
        optimizer.safetensors   AdamW's moments of every parameter
    <run>/checkpoints/latest    name of the newest, for people and scripts

Tensors are whole, whatever the number of ranks and the ZeRO stage that wrote them, so a run may go on with others. Nothing is pickled.
Noise and order are functions of the seed and samples_seen, so there is no generator to save.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.manifest import write_atomic
from foundation.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foundation.config import RunConfig
    from foundation.train.ema import EMA
    from foundation.train.engine import Engine

MARKER, LATEST = "COMMITTED", "latest"
MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
# what may not change between a run and its continuation, because the samples or the noise of a step depend on it
ORDER_KEYS = (("data", "token_budget"), ("train", "seed"), ("train", "micro_batches_per_step"))


@dataclass(frozen=True)
class TrainState:
    """What a run needs besides tensors.

    Attributes:
        step: optimiser steps done, skipped ones included.
        samples_seen: cursor of the data order.
        updates: steps that changed the weights.
        fingerprint: of the shards.
        config: whole RunConfig as plain data.
        written_by: ranks, ZeRO stage, versions.
    """

    step: int
    samples_seen: int
    updates: int
    fingerprint: str
    config: dict[str, Any]
    written_by: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------------- find


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run folder, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if (p / MARKER).is_file())


def find(path: str | Path) -> Path:
    """The newest committed checkpoint of a run folder, or a checkpoint folder itself.

    Raises:
        CheckpointError: nothing committed there.
    """
    folder = Path(path)
    if (folder / MARKER).is_file():
        return folder
    if not folder.exists():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; pass a run folder of foundation.pretrain, such as runs/y")
    found = committed(folder)
    if not found:
        raise CheckpointError(f"{str(path)!r} holds no committed checkpoint; let foundation.pretrain reach one (train.checkpoint_every)")
    return found[-1]


def verify(folder: Path) -> None:
    """Compare every file with the sum in the marker.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    sums = _json(folder / MARKER)
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise CheckpointError(f"{path} is missing or damaged; remove {folder} to fall back to the checkpoint before it")


def read_state(folder: Path) -> TrainState:
    """state.json of a committed checkpoint.

    Raises:
        CheckpointError: unreadable, or written by a version with other fields.
    """
    try:
        return TrainState(**_json(folder / STATE))
    except TypeError as error:
        raise CheckpointError(
            f"{folder / STATE} is of another version of this program ({error}); train again or use that version"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove {path.parent} to fall back to the checkpoint before it") from None
    return data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------------- write


def save(run: Path, state: TrainState, engine: Engine, ema: EMA, *, keep_last: int) -> Path:
    """Commit a checkpoint; every rank must call it. Returns its folder.

    Raises:
        CheckpointError: the disk is full or refuses.
    """
    final = run / "checkpoints" / f"step-{state.step:08d}"
    aside = run / "checkpoints" / f".step-{state.step:08d}.writing"
    tensors = {  # rank 0 collects them on the CPU; the others take part in the gathering and keep nothing
        MODEL: _collect(engine.weights(), engine.ranks.rank),
        AVERAGE: _collect(ema.weights(), engine.ranks.rank),
        OPTIMIZER: _collect(engine.moments(), engine.ranks.rank),
    }

    def commit() -> None:
        from safetensors.torch import save_file

        for left in (run / "checkpoints").glob(".step-*.writing"):
            shutil.rmtree(left)
        aside.mkdir(parents=True)
        for name, content in tensors.items():
            save_file(content, aside / name)
            _check_readable(aside / name, content)
        (aside / STATE).write_text(json.dumps(asdict(state), indent=1, sort_keys=True), encoding="utf-8")
        sums = {name: _sha256(aside / name) for name in (*tensors, STATE)}
        (aside / MARKER).write_text(json.dumps(sums, indent=1, sort_keys=True), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _flush(path)
        for name in tensors:
            shutil.copymode(aside / MARKER, aside / name)  # safetensors writes for the owner alone; others may want to read
        shutil.rmtree(final, ignore_errors=True)  # of a run that was killed before it could log this step
        os.replace(aside, final)
        _flush(final.parent)
        write_atomic(final.parent / LATEST, f"{final.name}\n".encode())
        for old in committed(run)[:-keep_last]:
            shutil.rmtree(old)

    engine.ranks.on_rank_zero(commit)
    return final


def _collect(tensors: Iterable[tuple[str, Tensor]], rank: int) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in tensors:
        if rank == 0:
            kept[name] = tensor.detach().cpu().clone().contiguous()
    return kept


def _check_readable(path: Path, content: Mapping[str, Tensor]) -> None:
    """What was written is what a reader finds."""
    from safetensors.torch import load_file

    found = load_file(path)
    if found.keys() != content.keys() or any(not _same_bits(found[name], tensor) for name, tensor in content.items()):
        raise CheckpointError(f"{path} reads back otherwise than written; check the disk")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    import torch

    return one.shape == other.shape and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --------------------------------------------------------------------------------------------------------------------------- resume


def check_compatible(state: TrainState, config: RunConfig, fingerprint: str) -> None:
    """Whether a run with this configuration may continue from the state. Ranks, ZeRO stage, lengths and rates may differ.

    Raises:
        CheckpointError: of another model, other shards, or another order of samples; names what differs.
    """
    check_same_run(state.config, state.fingerprint, config, fingerprint)


def check_same_run(old: Mapping[str, Any], old_fingerprint: str, config: RunConfig, fingerprint: str) -> None:
    """check_compatible for plain data, such as the config.json of a run folder that holds no checkpoint yet."""
    new = config.model_dump(mode="json")
    names = {*old["objective"], *new["objective"]} - getattr(config.objective, "SAMPLING_FIELDS", frozenset())
    differs = [f"objective.{k}" for k in sorted(names) if old["objective"].get(k) != new["objective"].get(k)]
    if differs:
        raise CheckpointError(
            f"the run folder holds another model ({', '.join(differs)} differ{'s' if len(differs) == 1 else ''});"
            " pass another --out, or --overwrite to start again"
        )
    if old_fingerprint != fingerprint:
        raise CheckpointError(
            f"the run folder was trained on other shards, or on the same with other weights (fingerprint {old_fingerprint[:12]}, given"
            f" {fingerprint[:12]}); pass another --out (with --init-from this run for a second phase), or --overwrite to start again"
        )
    for section, key in ORDER_KEYS:
        if old[section][key] != new[section][key]:
            raise CheckpointError(
                f"{section}.{key} is {new[section][key]} but the run folder was made with {old[section][key]}, which fixes the order of"
                f" samples; set {section}.{key}={old[section][key]}, pass another --out, or --overwrite to start again"
            )


def load_weights(folder: Path, module: nn.Module, *, ema: bool) -> dict[str, Tensor]:
    """Weights of a committed checkpoint into a bare objective, strictly. Returns them.

    Raises:
        CheckpointError: names or shapes differ: the checkpoint is of another model.
    """
    from safetensors.torch import load_file

    weights = load_file(folder / (AVERAGE if ema else MODEL))
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != given:
        name = min(set(expected.items()) ^ set(given.items()))[0]
        raise CheckpointError(
            f"{folder} is a checkpoint of another model: {name} has shape {given.get(name, 'absent')} there and"
            f" {expected.get(name, 'absent')} here; use the recipe and objective it was made with"
        )
    module.load_state_dict(weights)
    return weights


def restore(folder: Path, weights: Mapping[str, Tensor], engine: Engine, ema: EMA) -> None:
    """Optimiser state and average of a checkpoint whose weights the objective holds already; every rank must call it."""
    from safetensors.torch import load_file

    engine.restore(dict(weights), load_file(folder / OPTIMIZER), read_state(folder).updates)
    ema.restore(load_file(folder / AVERAGE))


# ----------------------------------------------------------------------------------------------------------------------------- use


def load_model(path: str | Path, *, ema: bool = True) -> tuple[nn.Module, RunConfig]:
    """A trained objective in evaluation mode, with its configuration.

    Args:
        path: run folder or checkpoint folder.
        ema: the moving average instead of the last weights.

    Raises:
        CheckpointError: nothing committed there, damaged, or of another model.
    """
    from foundation.config import parse_config
    from foundation.objectives import build_objective

    folder = find(path)
    verify(folder)
    config = parse_config(read_state(folder).config)
    module = build_objective(config.objective)
    load_weights(folder, module, ema=ema)
    return module.eval(), config
