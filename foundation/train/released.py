"""A released checkpoint: averaged weights in bf16 with their configuration, small enough for the repository. `small` names the bundled one.

    foundation/weights/small/
        model.safetensors   averaged weights, bf16; what is not trained keeps its type
        config.json         sha256 of the weights, configuration, step, fingerprint of the shards, versions; no path, no address
        polymers.json       canonical names of the polymers that it was trained and validated on, for leak checks; not always there
    card.md, curve.png, results.json    for people

Nothing is unpickled, and nothing that a file says decides which other file is read. Weights are used in fp32, like those of a run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.config import RunConfig, parse_config, without_places
from foundation.errors import CheckpointError, InputError, short
from foundation.train import snapshot
from foundation.train.snapshot import FIX, MARKER, SHA256, TrainState
from foundation.train.store import is_address

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALL = "small"
WEIGHTS = Path(__file__).parents[1] / "weights"
MODEL, CONFIG, POLYMERS = "model.safetensors", "config.json", "polymers.json"
FORMAT = 1
FIELDS = frozenset({"format", "sha256", "config", "step", "samples_seen", "fingerprint", "versions"})
LARGEST_BYTES = 25_000_000


def folder_of(path: str | Path) -> Path | None:
    """The folder of a released checkpoint: `small`, or a folder that is one; None for anything else.

    Raises:
        CheckpointError: small is asked for and not there.
    """
    if str(path) == SMALL:
        if not (WEIGHTS / SMALL / CONFIG).is_file():
            raise CheckpointError(
                f"checkpoint 'small' is not in this installation ({WEIGHTS / SMALL} holds no {CONFIG}); pass a run folder of"
                " foundation.pretrain, such as runs/y, or a folder made by foundation.release"
            )
        return WEIGHTS / SMALL
    folder = Path(path)
    is_one = not is_address(path) and all((folder / name).is_file() for name in (MODEL, CONFIG)) and not (folder / MARKER).exists()
    return folder if is_one else None


def rounded(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Parameters in bf16, to the nearest; buffers as they are: a table of frequencies must not be rounded."""
    import torch

    parameters = {name for name, _ in module.named_parameters()}
    return {name: (t.to(torch.bfloat16) if name in parameters and t.is_floating_point() else t).contiguous() for name, t in weights.items()}


def num_bytes(weights: Mapping[str, Tensor]) -> int:
    """Of all tensors."""
    return sum(t.numel() * t.element_size() for t in weights.values())


def check_size(weights: Mapping[str, Tensor]) -> None:
    """Whether weights may be released.

    Raises:
        InputError: they are too large for a repository.
    """
    if num_bytes(weights) > LARGEST_BYTES:
        raise InputError(
            f"the weights take {num_bytes(weights) / 1e6:.1f} MB in bf16, at most {LARGEST_BYTES / 1e6:g} MB are released; release a"
            " smaller model, such as one of the recipe polyconfm_small"
        )


def write(folder: Path, weights: Mapping[str, Tensor], state: TrainState, beside: Callable[[str, int], Mapping[str, bytes]]) -> str:
    """A released checkpoint, whole or not at all; an older one of that name is replaced.

    Args:
        folder: its final name.
        weights: as `rounded` returns them.
        state: of the checkpoint that they come from.
        beside: further files by name, made of sha256 and bytes of the file of weights.

    Returns:
        sha256 of the weights.

    Raises:
        CheckpointError: the disk refuses.
    """
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        snapshot.save_tensors(aside / MODEL, weights)
        sha256 = snapshot.sha256(aside / MODEL)
        facts = {
            "format": FORMAT,
            "sha256": sha256,
            "config": without_places(parse_config(state.config)).model_dump(mode="json"),
            "step": state.step,
            "samples_seen": state.samples_seen,
            "fingerprint": state.fingerprint,
            "versions": state.written_by.get("versions", {}),
        }
        for name, content in beside(sha256, (aside / MODEL).stat().st_size).items():
            (aside / name).write_bytes(content)
        snapshot.write_text(aside / CONFIG, json.dumps(facts, indent=1, sort_keys=True) + "\n")
        shutil.copymode(aside / CONFIG, aside / MODEL)  # safetensors writes for the owner alone
        if folder.exists():
            snapshot.remove(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sha256


def read(folder: Path) -> tuple[dict[str, Tensor], RunConfig]:
    """Weights in fp32 and configuration of a released checkpoint, verified.

    Raises:
        CheckpointError: damaged, changed since it was released, or of another version of this program.
        ConfigError: a configuration that this program does not know.
    """
    path = folder / CONFIG
    facts = snapshot.read_json(path)
    if facts.get("format") == FORMAT and "config" not in facts:
        raise CheckpointError(
            f"{folder} holds no pretrained model, its {CONFIG} has no 'config'; pass {SMALL} or a folder of foundation.release"
        )
    if facts.keys() != FIELDS or facts["format"] != FORMAT or not isinstance(facts["config"], dict):
        given = short(facts.get("format"))
        raise CheckpointError(
            f"{path} is of another version of this program (format {given}, this one reads {FORMAT}); release it again, or use that version"
        )
    expected = facts["sha256"]
    if not isinstance(expected, str) or not SHA256.fullmatch(expected):
        raise CheckpointError(f"{path} names no sha256 of the weights{FIX}")
    try:
        found = snapshot.sha256(folder / MODEL)
    except OSError as error:
        raise CheckpointError(f"{folder / MODEL} cannot be read ({error.strerror or error}){FIX}") from None
    if found != expected:
        raise CheckpointError(f"{folder / MODEL} is not as it was released (sha256 {found[:12]}, {CONFIG} names {expected[:12]}){FIX}")
    weights = {name: t.float() if t.is_floating_point() else t for name, t in snapshot.load_tensors(folder / MODEL).items()}
    return weights, parse_config(facts["config"])
