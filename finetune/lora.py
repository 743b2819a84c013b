"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on a pretrained objective, and the folder that keeps them.

    <adapter>/adapter.json          settings: which layers, rank, scale, and the weights they were trained on
    <adapter>/adapter.safetensors   the two factors of every layer, fp32

peft puts the layers in. Its own files are not read: their configuration names classes to import, their older weights are pickles. Here
nothing is unpickled, nothing is imported by name, and the settings decide no path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_shards.manifest import write_atomic
from foundation.errors import CheckpointError, InputError
from foundation.sampling.provenance import weights_fingerprint
from foundation.train import snapshot

if TYPE_CHECKING:
    from torch import Tensor, nn

SETTINGS, WEIGHTS, NAME = "adapter.json", "adapter.safetensors", "default"


class LoraSettings(BaseModel):
    """Which layers get an adapter, and how large: W x + (alpha / rank) B A x, with B zero at the beginning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1, le=1024, description="columns of A, rows of B")
    alpha: float = Field(16.0, gt=0, le=1e6, description="scale times rank")
    targets: tuple[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)], ...] = Field(
        min_length=1, max_length=100_000, description="full names of linear layers"
    )
    base: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="sha256 of the weights underneath; filled in by attach")


def linear_layers(objective: nn.Module, within: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Full names of the linear layers of an objective, or of those of its parts whose names begin with one of within.

    Raises:
        InputError: there is none.
    """
    from torch import nn

    names = [name for name, module in objective.named_modules() if isinstance(module, nn.Linear)]
    found = tuple(name for name in names if not within or name.startswith(within))
    if not found:
        parts = sorted({name.split(".")[0] for name in names})
        raise InputError(
            f"no linear layer has a name that begins with {' or '.join(within)}; the parts of this model are {', '.join(parts)}"
        )
    return found


def attach(objective: nn.Module, settings: LoraSettings) -> LoraSettings:
    """Put adapters into an objective, in place; only they are left to train.

    Returns:
        The settings with the checksum of the weights underneath.

    Raises:
        InputError: a target is no linear layer of this model.
    """
    missing = sorted(set(settings.targets) - set(linear_layers(objective)))
    if missing:
        raise InputError(f"{missing[0]} is no linear layer of this model; targets must be of finetune.lora.linear_layers")
    base = weights_fingerprint(objective)
    _inject(objective, settings)
    return settings.model_copy(update={"base": base})


def _inject(objective: nn.Module, settings: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    inject_adapter_in_model(wanted, objective, adapter_name=NAME)
    factors = adapter_weights(objective)
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(name in factors)


def merge(objective: nn.Module) -> None:
    """Add every adapter to the weights underneath, in place: W + (alpha / rank) B A. The names are then as before attach."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(objective.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[attr-defined]
            parent, _, own = name.rpartition(".")
            setattr(objective.get_submodule(parent), own, layer.get_base_layer())


def adapter_weights(objective: nn.Module) -> dict[str, Tensor]:
    """The factors by name: A (rank, in) and B (out, rank) of every layer with an adapter."""
    return {name: value for name, value in objective.named_parameters() if f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name}


def save_adapter(folder: Path, objective: nn.Module, settings: LoraSettings) -> None:
    """Write the adapters of an objective; settings are what attach returned."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {name: value.detach().float().cpu().contiguous() for name, value in adapter_weights(objective).items()}
    snapshot.save_tensors(folder / WEIGHTS, factors)
    write_atomic(folder / SETTINGS, (settings.model_dump_json(indent=1) + "\n").encode())


def load_adapter(folder: Path, objective: nn.Module) -> LoraSettings:
    """Attach the adapters of a folder to the pretrained objective that they were trained on.

    Raises:
        CheckpointError: no adapter, a damaged or strange one, or one that was trained on other weights; the objective is then as before.
    """
    settings = read_settings(folder)
    base = weights_fingerprint(objective)
    if settings.base != base:
        raise CheckpointError(
            f"{folder} was trained on other weights (sha256 {settings.base[:12] or 'unknown'}, given {base[:12]}); pass that checkpoint"
        )
    shapes = {name: tuple(value.shape) for name, value in objective.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}
    for target in settings.targets:
        if len(shapes.get(f"{target}.weight", ())) != 2:
            raise CheckpointError(f"{folder / SETTINGS} names {target}, which is no linear layer of this model{snapshot.FIX}")
        rows, columns = shapes[f"{target}.weight"]
        expected |= {f"{target}.lora_A.{NAME}.weight": (settings.rank, columns), f"{target}.lora_B.{NAME}.weight": (rows, settings.rank)}
    factors = snapshot.load_tensors(folder / WEIGHTS)
    found = {name: tuple(value.shape) for name, value in factors.items()}
    if found != expected:
        name = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise CheckpointError(
            f"{folder / WEIGHTS}: {name} has shape {found.get(name, 'absent')}, {SETTINGS} asks for {expected.get(name, 'none')}"
            f"{snapshot.FIX}"
        )
    _inject(objective, settings)
    objective.load_state_dict(factors, strict=False)
    return settings


def read_settings(folder: Path) -> LoraSettings:
    """adapter.json of a folder.

    Raises:
        CheckpointError: missing, damaged, or with values that no adapter has.
    """
    data = snapshot.read_json(folder / SETTINGS)
    try:
        return LoraSettings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(f"{folder / SETTINGS} is no adapter's ({where[:80]}: {first['msg']}){snapshot.FIX}") from None
