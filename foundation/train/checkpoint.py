"""Checkpoints: written aside, summed, committed by rename. Anything without its marker does not exist for a reader.

<run>/checkpoints/step-00000200/
    COMMITTED           json: sha256 of every file; written last, before the rename
    state.json          step, samples_seen, world size, ZeRO stage, shard fingerprint, full configuration
    model.safetensors   weights        ema.safetensors   their moving average
    state/              DeepSpeed's optimiser state, one file a rank; read back only to resume, after its sums are checked
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foundation.config import RunConfig
    from foundation.train.ema import EMA
    from foundation.train.engine import Engine

MARKER = "COMMITTED"


@dataclass(frozen=True)
class TrainState:
    """What a run needs besides tensors. All noise is a function of samples_seen and the seed, so there is no generator to save."""

    step: int
    samples_seen: int
    world_size: int
    zero_stage: int
    fingerprint: str
    config: dict[str, Any]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)


def save(run: Path, state: TrainState, engine: Engine, ema: EMA, *, rank: int, keep_last: int) -> Path:
    """Commit a checkpoint; every rank must call it. Returns its folder."""
    from safetensors.torch import save_file

    from foundation.train.engine import on_rank_zero

    final = run / "checkpoints" / f"step-{state.step:08d}"
    aside = run / "checkpoints" / f".writing-step-{state.step:08d}"

    def clear() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def commit() -> None:
        (aside / "state.json").write_text(json.dumps(asdict(state), indent=1, sort_keys=True))
        sums = {str(path.relative_to(aside)): _sha256(path) for path in _files(aside)}
        with (aside / MARKER).open("w") as file:
            json.dump(sums, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in committed(run)[:-keep_last]:
            shutil.rmtree(old)

    on_rank_zero(rank, clear)
    engine.save(aside)
    weights = {name: engine.whole(p, engine.local(p)).detach().cpu().float().contiguous() for name, p in engine.parameters()}
    averaged = ema.whole()
    if rank == 0:
        save_file(weights, aside / "model.safetensors")
        save_file(averaged, aside / "ema.safetensors")
    on_rank_zero(rank, commit)
    return final


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run folder, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if (p / MARKER).exists())


def find(path: str | Path) -> Path:
    """The newest committed checkpoint of a run folder, or a checkpoint folder itself.

    Raises:
        CheckpointError: nothing committed there.
    """
    folder = Path(path)
    if (folder / MARKER).exists():
        return folder
    if not folder.exists():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; pass a run folder of foundation.pretrain, e.g. runs/y")
    found = committed(folder)
    if not found:
        raise CheckpointError(
            f"{str(path)!r} holds no committed checkpoint; let foundation.pretrain reach train.checkpoint_every steps first"
        )
    return found[-1]


def verify(folder: Path) -> None:
    """Compare every file with the sum in the marker.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    sums = json.loads((folder / MARKER).read_text())
    for name, expected in sums.items():
        path = folder / name
        if not path.exists() or _sha256(path) != expected:
            raise CheckpointError(f"{path} is missing or damaged; remove {folder} to fall back to the checkpoint before it")


def read_state(folder: Path) -> TrainState:
    """state.json of a committed checkpoint."""
    return TrainState(**json.loads((folder / "state.json").read_text()))


def resume(folder: Path, config: RunConfig, fingerprint: str, engine: Engine, ema: EMA, *, rank: int, world_size: int) -> TrainState:
    """Load a checkpoint into engine and average; every rank must call it.

    Raises:
        CheckpointError: of another model, other shards, another world size or ZeRO stage, or damaged.
    """
    from safetensors.torch import load_file

    state = read_state(folder)
    check_compatible(state, config, fingerprint, world_size)
    verify(folder)
    engine.load(folder)
    ema.load(load_file(folder / "ema.safetensors"), rank)
    return state


def check_compatible(state: TrainState, config: RunConfig, fingerprint: str, world_size: int) -> None:
    """Raise CheckpointError unless a run with this configuration may continue from the state."""
    mine = config.model_dump(mode="json")
    if state.config["objective"] != mine["objective"]:
        differs = sorted(k for k in mine["objective"] if mine["objective"][k] != state.config["objective"].get(k))
        raise CheckpointError(
            f"the run folder holds a checkpoint of another model (objective.{', objective.'.join(differs)} differ); pass another --out"
        )
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"the run folder was trained on other shards (fingerprint {state.fingerprint[:12]}, given {fingerprint[:12]}); pass another --out"
        )
    for section, key in (("data", "token_budget"), ("train", "seed"), ("train", "micro_batches_per_step")):
        if state.config[section][key] != mine[section][key]:
            raise CheckpointError(
                f"{section}.{key} is {mine[section][key]} but the run folder was made with {state.config[section][key]}; pass another --out"
            )
    if (state.world_size, state.zero_stage) != (world_size, config.train.zero_stage):
        raise CheckpointError(
            f"the checkpoint was written by {state.world_size} ranks at ZeRO {state.zero_stage}, this run has {world_size} at ZeRO"
            f" {config.train.zero_stage}; use the same numbers"
        )


def load_weights(folder: Path, module: nn.Module, *, ema: bool) -> None:
    """Weights of a committed checkpoint into a bare objective, strictly.

    Raises:
        CheckpointError: names or shapes differ: the checkpoint is of another model.
    """
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = load_file(folder / ("ema.safetensors" if ema else "model.safetensors"))
    expected = {name: tuple(p.shape) for name, p in module.named_parameters()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != given:
        odd = sorted(set(expected.items()) ^ set(given.items()))[0][0]
        raise CheckpointError(
            f"{folder} is a checkpoint of another model ({odd!r} does not fit); use the recipe and objective it was made with"
        )
    module.load_state_dict(weights)


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
