"""One frozen tree says what a run is. Unknown keys are errors that name the nearest known key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from foundation.errors import ConfigError
from foundation.objectives import OBJECTIVES

# DeepSpeed keys that follow from ours: setting them natively would contradict what the loop believes
DERIVED_KEYS = {
    "train_batch_size": "train.micro_batches_per_step",
    "train_micro_batch_size_per_gpu": "data.token_budget",
    "gradient_accumulation_steps": "train.micro_batches_per_step",
    "gradient_clipping": "train.grad_clip",
    "optimizer": "train.lr, train.betas and train.weight_decay",
    "scheduler": "train.lr, train.warmup_fraction and train.min_lr_fraction",
    "fp16": "train.precision=bf16",
    "zero_optimization.stage": "train.zero_stage",
}


DEEPEST, LONGEST = 8, 120  # parts of a native key; characters of a value in a message


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Strict):
    """How samples become batches."""

    token_budget: int = Field(4096, ge=1, le=10**9, description="atoms of one micro-batch, padding not counted; a longer chain comes alone")
    num_workers: int = Field(0, ge=0, le=1024, description="processes that read and decode ahead; 0 = in the training process")
    cache_mib: int = Field(512, ge=0, le=10**9, description="decoded samples kept in memory by each reading process, MiB")


class TrainConfig(Strict):
    """The one loop."""

    num_steps: int = Field(1000, ge=1, le=10**12, description="optimiser steps")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order and noise")
    lr: float = Field(1e-3, gt=0, description="largest learning rate")
    min_lr_fraction: float = Field(0.01, ge=0, le=1, description="learning rate at the end, as a fraction of lr")
    warmup_fraction: float = Field(0.02, ge=0, le=1, description="fraction of the steps in which the learning rate rises")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW: decay of the two moments, each in [0, 1)")
    weight_decay: float = Field(0.01, ge=0, description="AdamW, on matrices only")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="moving average of the weights; ramped as (1 + step) / (10 + step)")
    micro_batches_per_step: int = Field(2, ge=1, le=10**6, description="micro-batches of one step over all ranks; ranks must divide it")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the network's arithmetic; weights and geometry are always fp32")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="committed checkpoints kept")
    validate_every: int = Field(200, ge=1, description="steps between validations")
    num_val_batches: int = Field(8, ge=0, description="micro-batches of one validation; 0 = off")
    max_consecutive_skips: int = Field(20, ge=0, description="steps in a row that may be skipped because loss or gradient is not finite")
    num_threads: int = Field(0, ge=0, le=1024, description="torch threads of a rank; 0 = as the environment says (OMP_NUM_THREADS)")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must both be in [0, 1); set train.betas=[0.9,0.95]")
        return self


class TrackConfig(Strict):
    """Where numbers go; metrics.jsonl is always written."""

    wandb: bool = Field(True, description="mirror metrics to W&B")
    mode: Literal["offline", "online", "disabled"] = Field("offline", description="of W&B; the environment variable WANDB_MODE wins")
    project: str = Field("polymer-foundation", description="W&B project")
    log_every: int = Field(10, ge=1, description="steps between console lines where there is no terminal")
    samples_every: int = Field(0, ge=0, description="steps between chains sampled to look at, a few seconds each; 0 = off")
    sample_psmiles: str = Field("*CC(*)c1ccccc1", description="polymer of these chains")
    sample_units: int = Field(10, ge=2, le=100, description="repeat units of these chains")


def _objective(value: Any) -> Any:
    """Plain data to the configuration class of the objective that it names."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ValueError(f"name {_short(name)} must be one of {', '.join(OBJECTIVES)}")
    module, config_class, _ = OBJECTIVES[name]
    return getattr(import_module(f"{module}.config"), config_class).model_validate(dict(value))


class RunConfig(Strict):
    """A whole run."""

    recipe: str = Field(pattern=r"^[\w.-]{1,64}$", description="name of the recipe that this configuration started from")
    objective: Annotated[SerializeAsAny[BaseModel], BeforeValidator(_objective)] = Field(description="what is trained; `name` chooses it")
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="native DeepSpeed keys, merged last")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        for key, ours in DERIVED_KEYS.items():
            place: Any = self.deepspeed
            for part in key.split("."):
                place = place.get(part) if isinstance(place, dict) else None
            if place is not None:
                raise ValueError(f"deepspeed.{key} follows from {ours}; set that instead")
        for group in ("bf16", "zero_optimization"):
            if not isinstance(self.deepspeed.get(group, {}), dict):
                raise ValueError(f"deepspeed.{group} {_short(self.deepspeed[group])} must be a group of keys")
        native = self.deepspeed.get("bf16")
        if self.train.zero_stage == 0 and isinstance(native, dict) and native.get("enabled"):
            raise ValueError("deepspeed.bf16 needs train.zero_stage 1, 2 or 3, which keep fp32 masters; or set train.precision=bf16")
        return self


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """A run configuration from plain data (config.json).

    Raises:
        ConfigError: one sentence for the first thing that is wrong.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Change fields by ``dotted.key=value``; values are JSON or plain words.

    Raises:
        ConfigError: not of the form key=value, an unknown key (the nearest is named), or a value out of bounds.
    """
    data = config.model_dump(mode="json")
    known = [*data, *(f"{top}.{low}" for top, value in data.items() if isinstance(value, dict) for low in value)]
    for override in overrides:
        key, sign, text = override.partition("=")
        *parents, last = key.split(".")
        if not sign or not last or not all(parents):
            raise ConfigError(f"override {_short(override)} is not of the form key=value, such as train.num_steps=100")
        native = bool(parents) and parents[0] == "deepspeed" and len(parents) < DEEPEST and "__" not in key
        if key not in known and not native:
            raise ConfigError(f"unknown key {_short(key)}{_nearest(key[:LONGEST], known)}")
        if not parents and isinstance(data[last], dict):
            raise ConfigError(
                f"override {override!r} replaces the whole group {key}; name one key, such as {key}.{next(iter(data[key]), 'x')}"
            )
        place = data
        for part in parents:
            below = place.setdefault(part, {})
            if not isinstance(below, dict):
                raise ConfigError(f"override {override!r}: {part} holds the value {below!r} and no keys; remove one of the two")
            place = below
        place[last] = _value(text)
    return parse_config(data)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, an integer of thousands of digits, thousands of brackets
        return {"True": True, "False": False}.get(text, text)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?" if close else ""


def _sentence(error: ValidationError) -> str:
    """The first mistake that pydantic found, in words."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [*RunConfig.model_fields, *(f"{t}.{k}" for t, c in _groups().items() for k in c.model_fields)]
        return f"unknown key {key!r}{_nearest(key, known)}"
    if first["type"] == "missing":
        return f"{key} is missing; see config.json of any run"
    if first["type"] == "value_error":
        return f"{key or 'configuration'}: {first['msg'].removeprefix('Value error, ')}"
    return f"{key} {_short(first['input'])} {first['msg'].replace('Input should be', 'must be')}"


def _groups() -> dict[str, type[BaseModel]]:
    return {"data": DataConfig, "train": TrainConfig, "track": TrackConfig}
