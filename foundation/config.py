"""One frozen tree says what a run is. Unknown keys are errors that name the nearest known key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foundation.errors import ConfigError
from foundation.objectives.polyconfm.config import PolyConFMConfig


class DataConfig(BaseModel):
    """How samples become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_budget: int = Field(4096, ge=1, description="atoms of one micro-batch, padding not counted; a longer chain comes alone")
    num_workers: int = Field(1, ge=0, description="threads that read and decode ahead; 0 = in the training thread")


class TrainConfig(BaseModel):
    """The one loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(1000, ge=1, description="optimiser steps")
    seed: int = Field(0, ge=0, description="of weights, data order and noise")
    lr: float = Field(1e-3, gt=0, description="largest learning rate")
    min_lr_fraction: float = Field(0.01, ge=0, le=1, description="learning rate at the end, as a fraction of lr")
    warmup_fraction: float = Field(0.02, ge=0, le=1, description="fraction of the steps in which the learning rate rises")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW")
    weight_decay: float = Field(0.01, ge=0, description="on matrices only")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="moving average of the weights; ramped as (1 + step) / (10 + step)")
    micro_batches_per_step: int = Field(2, ge=1, description="micro-batches of one optimiser step over all ranks; ranks must divide it")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the network; geometry is always fp32")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="committed checkpoints kept")
    validate_every: int = Field(200, ge=1, description="steps between validations")
    num_val_batches: int = Field(8, ge=0, description="micro-batches of one validation; 0 = off")
    num_threads: int = Field(0, ge=0, description="torch threads a rank; 0 leaves the default (OMP_NUM_THREADS)")


class TrackConfig(BaseModel):
    """Where numbers go; metrics.jsonl is always written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wandb: bool = Field(False, description="mirror metrics to W&B; offline unless WANDB_MODE says otherwise")
    project: str = Field("polymer-conformations", description="W&B project")
    log_every: int = Field(10, ge=1, description="steps between console lines where there is no terminal")


class RunConfig(BaseModel):
    """A whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(description="name of the recipe that this configuration started from")
    objective: PolyConFMConfig = Field(description="what is trained")
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="native DeepSpeed keys, merged last")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.train.warmup_fraction * self.train.num_steps > self.train.num_steps:
            raise ValueError("warm-up cannot be longer than the run")
        return self


def parse_config(data: dict[str, Any]) -> RunConfig:
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
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value, e.g. train.num_steps=100")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = key.split(".")
        place = data
        for depth, part in enumerate(parents):
            if not isinstance(place.get(part), dict):
                if parents[0] != "deepspeed" or depth == 0:
                    raise ConfigError(f"unknown key {key!r}; did you mean {_nearest(key, data)}?")
                place[part] = {}
            place = place[part]
        if last not in place and (not parents or parents[0] != "deepspeed"):
            raise ConfigError(f"unknown key {key!r}; did you mean {_nearest(key, data)}?")
        place[last] = value
    return parse_config(data)


def _nearest(key: str, data: dict[str, Any]) -> str:
    known = [k for top, value in data.items() for k in ([f"{top}.{low}" for low in value] if isinstance(value, dict) else [top])]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return repr(close[0]) if close else "one of the keys of config.json"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or see config.json of a run for the known keys"
    given = f" (given {first['input']!r})" if not isinstance(first.get("input"), dict) else ""
    return f"{key or 'configuration'}: {first['msg']}{given}; see python -m foundation.pretrain --help"
