"""One checkpoint on disk: a folder of whole tensors that is complete and verified, or does not exist for a reader.

    <run>/checkpoints/step-00000200/
        COMMITTED               sha256 of every file; written last
        state.json              step, samples_seen, shard fingerprint, whole configuration, versions
        model.safetensors       weights, fp32
        ema.safetensors         their moving average
        optimizer.safetensors   AdamW's moments of every parameter
    <run>/checkpoints/latest    name of the newest, for people and scripts

Tensors are whole, whatever the number of ranks and the ZeRO stage that wrote them, so a run may go on with others. Nothing is pickled,
and nothing that a file says decides which other file is read. Noise and order are functions of the seed and samples_seen, so there is no
generator to save.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import CheckpointError, short

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, MARKER, LATEST, DAMAGED = "checkpoints", "COMMITTED", "latest", ".damaged"
MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
FILES = frozenset({MODEL, AVERAGE, OPTIMIZER, STATE})
STEP_NAME = re.compile(r"step-(\d{8,15})")
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_JSON_BYTES = 16 * 2**20
LARGEST_COUNT = 2**53
FIX = "; copy it again, or use another checkpoint"


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


# --------------------------------------------------------------------------------------------------------------------------- names


def step_name(step: int) -> str:
    """Folder name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Inverse of step_name; None for the name of anything else."""
    found = STEP_NAME.fullmatch(name)
    return int(found[1]) if found else None


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run folder, oldest first."""
    found = {step_of(path.name): path for path in (run / FOLDER).glob("step-*") if (path / MARKER).is_file()}
    return [found[step] for step in sorted(step for step in found if step is not None)]


def outdated(steps: list[int], keep_last: int, keep_every: int) -> list[int]:
    """Which checkpoints retention gives up: all but the last keep_last and, where keep_every > 0, the multiples of it.

    Args:
        steps: of the checkpoints there are, oldest first.
    """
    return [step for step in steps[:-keep_last] if not keep_every or step % keep_every]


# --------------------------------------------------------------------------------------------------------------------------- write


def write(folder: Path, state: TrainState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill a folder that does not exist yet; what is on the disk is read back and compared before the marker is written.

    Args:
        folder: aside of its final name, which it gets by a rename.
        tensors: content of each safetensors file, on the CPU.

    Raises:
        OSError, CheckpointError: the disk is full, refuses, or gives back something else.
    """
    folder.mkdir(parents=True)
    sums = {}
    for name, content in tensors.items():
        save_tensors(folder / name, content)
        _check_same(folder / name, content)
        sums[name] = sha256(folder / name)
    text = json.dumps(asdict(state), indent=1, sort_keys=True)
    sums[STATE] = write_text(folder / STATE, text)
    write_text(folder / MARKER, json.dumps(sums, indent=1, sort_keys=True))
    for name in tensors:
        shutil.copymode(folder / MARKER, folder / name)  # safetensors writes for the owner alone; others may want to read
    flush(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint: at once for a reader, then for good."""
    aside = folder.with_name(f".{folder.name}.deleting")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside)


def write_text(path: Path, text: str) -> str:
    """A small file, flushed to the disk and read back. Returns its sha256."""
    path.write_text(text, encoding="utf-8")
    flush(path)
    if path.read_text(encoding="utf-8") != text:
        raise CheckpointError(f"{path} reads back otherwise than written; check the disk")
    return sha256(path)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk; what is read from it afterwards comes from there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if path.is_file() and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, content: Mapping[str, Tensor]) -> None:
    """A safetensors file, flushed to the disk.

    Raises:
        CheckpointError: the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(content), path)
    except SafetensorError as error:  # its word for what the disk refuses
        raise CheckpointError(f"{path} cannot be written ({error})") from None
    flush(path)


def _check_same(path: Path, content: Mapping[str, Tensor]) -> None:
    """What was written is what a reader finds, bit for bit; one tensor is in memory at a time."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            same = set(file.keys()) == content.keys() and all(_same_bits(file.get_tensor(name), content[name]) for name in content)
    except SafetensorError:
        same = False
    if not same:
        raise CheckpointError(f"{path} reads back otherwise than written; check the disk")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    import torch

    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


# ---------------------------------------------------------------------------------------------------------------------------- read


def verify(folder: Path) -> None:
    """Compare every file with the sum in the marker.

    Raises:
        CheckpointError: a file is missing or differs, or the marker is none.
    """
    for name, expected in read_sums(folder).items():
        path = folder / name
        try:
            same = path.is_file() and sha256(path) == expected
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error}){FIX}") from None
        if not same:
            raise CheckpointError(f"{path} is missing or damaged{FIX}")


def read_sums(folder: Path) -> dict[str, str]:
    """sha256 of every file of a committed checkpoint, as the marker has them.

    Raises:
        CheckpointError: unreadable, or it names other files than a checkpoint has.
    """
    sums = read_json(folder / MARKER)
    if sums.keys() != FILES or not all(isinstance(value, str) and SHA256.fullmatch(value) for value in sums.values()):
        strange = sorted(sums.keys() ^ FILES) or "sums that are no sha256"
        raise CheckpointError(f"{folder / MARKER} is not the marker of a checkpoint (found or missing: {strange}){FIX}")
    return sums


def read_state(folder: Path) -> TrainState:
    """state.json of a committed checkpoint.

    Raises:
        CheckpointError: unreadable, written by a version with other fields, or values that no run has.
    """
    path = folder / STATE
    data = read_json(path)
    known = {field.name for field in fields(TrainState)}
    if data.keys() != known:
        differs = ", ".join(sorted(data.keys() ^ known))
        raise CheckpointError(f"{path} is of another version of this program (fields {differs}); train again or use that version")
    state = TrainState(**data)
    for name in ("step", "samples_seen", "updates"):
        value = data[name]
        if type(value) is not int or not 0 <= value < LARGEST_COUNT:
            raise CheckpointError(f"{path} is damaged ({name} {short(value)} must be an integer from 0 to {LARGEST_COUNT - 1}){FIX}")
    for name, kind in (("fingerprint", str), ("config", dict), ("written_by", dict)):
        if not isinstance(data[name], kind):
            raise CheckpointError(f"{path} is damaged ({name} {short(data[name])} must be a {kind.__name__}){FIX}")
    if state.updates > state.step:
        raise CheckpointError(f"{path} is damaged (updates {state.updates} must be at most step {state.step}){FIX}")
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        CheckpointError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}){FIX}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        CheckpointError: it is none.
    """
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, at most {LARGEST_JSON_BYTES} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"a {type(data).__name__} where an object should be")
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read ({why}){FIX}") from None
    return data
