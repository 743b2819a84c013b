"""One frozen tree says what a run is. Unknown keys are errors that name the nearest known key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from foundation.errors import LONGEST, ConfigError, short
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
    "zero_optimization.offload_optimizer.device": "train.offload",
    "zero_optimization.offload_param.device": "train.offload",
}


DEEPEST = 8  # parts of a native key


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Strict):
    """How samples become batches."""

    token_budget: int = Field(4096, ge=1, le=10**9, description="atoms of one micro-batch, padding not counted; a longer chain comes alone")
    num_workers: int = Field(0, ge=0, le=1024, description="processes that read and decode ahead; 0 = in the training process")
    cache_mib: int = Field(512, ge=0, le=10**9, description="decoded samples kept in memory by each reading process, MiB")
    patience_sec: float = Field(300, ge=0, description="how long storage that fails is asked again before the run stops, resumable")
    worker_timeout_sec: float = Field(900, gt=0, description="how long a reading process is awaited before another takes its place")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.worker_timeout_sec <= self.patience_sec:
            raise ValueError(
                f"worker_timeout_sec {self.worker_timeout_sec:g} must be above patience_sec {self.patience_sec:g}, or a process that waits"
                f" for storage is taken for dead; set data.worker_timeout_sec={2 * self.patience_sec + 60:g}"
            )
        return self


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
    activation_checkpointing: bool = Field(
        False, description="compute the inside of layers again in the backward pass instead of keeping it: the same numbers, less memory"
    )
    offload: Literal["none", "optimizer", "optimizer+parameters"] = Field(
        "none", description="what lies in host memory instead of on the device; optimizer needs zero_stage 1 to 3, parameters stage 3"
    )
    memory_check: Literal["auto", "on", "off"] = Field(
        "auto", description="before the first step, try the largest micro-batches of the coming epoch; auto: where there is a GPU"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="committed checkpoints kept")
    keep_every: int = Field(0, ge=0, description="checkpoints at multiples of this many steps are kept for ever; 0 = none")
    async_checkpoint: bool = Field(True, description="write checkpoints beside the training; false = training waits for the disk")
    max_failed_checkpoints: int = Field(2, ge=0, description="checkpoints in a row that may fail to be written; one more ends the run")
    checkpoint_store: str | None = Field(
        None, description="address, such as s3://bucket/run, that every checkpoint is copied to and a run on a new machine goes on from"
    )
    validate_every: int = Field(200, ge=1, description="steps between validations")
    num_val_batches: int = Field(8, ge=0, description="micro-batches of one validation; 0 = off")
    probe_every: int = Field(0, ge=0, description="steps between linear probes of the averaged weights; 0 = off")
    probe_shards: str | None = Field(None, description="shards with conformations of the polymers of probe_tables")
    probe_tables: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = Field(
        (), description="tables of P-SMILES with a property, PATH or PATH:COLUMN each, as a JSON list; or one alone"
    )
    max_consecutive_skips: int = Field(20, ge=0, description="steps in a row that may be skipped: not finite, or a spike")
    spike_factor: float = Field(0.0, ge=0, description="a step is skipped if its loss is so many spreads above the median; 0 = off")
    spike_window: int = Field(100, ge=3, description="applied steps whose losses give that median and spread")
    hang_timeout_sec: float = Field(1800.0, ge=0, description="seconds without progress after which a rank dumps its stacks; 0 = never")
    num_threads: int = Field(0, ge=0, le=1024, description="torch threads of a rank; 0 = as the environment says (OMP_NUM_THREADS)")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must both be in [0, 1); set train.betas=[0.9,0.95]")
        if self.checkpoint_store is not None and "://" not in self.checkpoint_store:
            raise ValueError(f"checkpoint_store {self.checkpoint_store!r} is no address; write s3://bucket/prefix, or file:///folder")
        if self.probe_every and not (self.probe_shards and self.probe_tables):
            raise ValueError(
                f"probe_every {self.probe_every} needs probe_shards and probe_tables; set train.probe_shards=shards/probe and"
                " train.probe_tables=tg.csv, or train.probe_every=0"
            )
        if self.keep_every % self.checkpoint_every:
            near = -(-self.keep_every // self.checkpoint_every) * self.checkpoint_every
            raise ValueError(
                f"keep_every {self.keep_every} must be a multiple of checkpoint_every {self.checkpoint_every}; set train.keep_every={near}"
            )
        lowest = {"none": 0, "optimizer": 1, "optimizer+parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"offload {self.offload} needs zero_stage {lowest} or more, not {self.zero_stage}; set train.zero_stage={lowest}"
            )
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
        raise ValueError(f"name {short(name)} must be one of {', '.join(OBJECTIVES)}")
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
                raise ValueError(f"deepspeed.{group} {short(self.deepspeed[group])} must be a group of keys")
        native = self.deepspeed.get("bf16")
        if self.train.zero_stage == 0 and isinstance(native, dict) and native.get("enabled"):
            raise ValueError("deepspeed.bf16 needs train.zero_stage 1, 2 or 3, which keep fp32 masters; or set train.precision=bf16")
        return self


def without_places(config: RunConfig) -> RunConfig:
    """The configuration without what belongs to the machine or the people that trained: addresses, W&B project, native DeepSpeed keys."""
    places = {name: TrainConfig.model_fields[name].default for name in ("checkpoint_store", "probe_shards", "probe_tables", "probe_every")}
    return config.model_copy(update={"train": config.train.model_copy(update=places), "track": TrackConfig(), "deepspeed": {}})


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
            raise ConfigError(f"override {short(override)} is not of the form key=value, such as train.num_steps=100")
        native = bool(parents) and parents[0] == "deepspeed" and len(parents) < DEEPEST and "__" not in key
        if key not in known and not native:
            raise ConfigError(f"unknown key {short(key)}{_nearest(key[:LONGEST], known)}")
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
    return f"{key} {short(first['input'])} {first['msg'].replace('Input should be', 'must be')}"


def _groups() -> dict[str, type[BaseModel]]:
    return {"data": DataConfig, "train": TrainConfig, "track": TrackConfig}
