"""What a cluster YAML may say: strict, with one sentence for every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.errors import InputError


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(Strict):
    """What a training job asks of the cluster."""

    num_workers: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="training processes; auto takes what the cluster has"
    )
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="auto: 1 where the cluster has GPUs, else 0"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores that Ray sets aside per worker; whole cores become its threads")
    min_workers: int | None = Field(
        None, ge=1, description="fewest workers to go on with after a loss; default: num_workers where it is a number, else 1"
    )
    max_workers: int | None = Field(
        None, ge=1, description="most workers where num_workers is auto, also where an autoscaler must add nodes; default: what is there"
    )
    max_failures: int = Field(3, ge=0, description="failures without a new checkpoint after which training starts again from the last one")
    restart_timeout_sec: float = Field(60, ge=0, description="seconds to wait for room for all workers before going on with fewer")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.num_workers != "auto" and self.max_workers is not None:
            raise ValueError(f"max_workers {self.max_workers} needs num_workers=auto; give num_workers={self.max_workers} alone")
        most = self.max_workers if self.num_workers == "auto" else self.num_workers
        if self.min_workers is not None and most is not None and self.min_workers > most:
            raise ValueError(f"min_workers {self.min_workers} must be at most {most}; lower it")
        return self


class PreprocessSpec(Strict):
    """Polymers to shards, as a job."""

    kind: Literal["preprocess"]
    build: dict[str, Any] = Field(description="options of `python -m data_shards.build`, with underscores")


class FinetuneSpec(Strict):
    """A property head on a pretrained model, cross-validated, as a job."""

    kind: Literal["finetune"]
    property: dict[str, Any] = Field(description="options of `python -m finetune.property`, with underscores")


class DesignSpec(Strict):
    """A generator of polymers for target properties, as a job."""

    kind: Literal["design"]
    design: dict[str, Any] = Field(description="options of `python -m finetune.design`, with underscores")


class PretrainSpec(Strict):
    """Shards to a pretrained model, as a job."""

    kind: Literal["pretrain"]
    recipe: str = Field("auto", description="recipe of foundation.pretrain; auto: polyconfm_small on GPUs, polyconfm_tiny on CPUs")
    shards: str | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="shard folder or fsspec address, or several with the share of each (path: weight); relative to where the head started"
    )
    out: str = Field(description="run folder; must be seen by every node")
    overrides: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the recipe, such as train.num_steps")
    verify: Literal["checksums", "sizes"] = Field("checksums", description="how closely shards are checked before workers start")
    resources: Resources = Field(default_factory=Resources)


class SmokeSpec(PretrainSpec):
    """The whole way in miniature: build shards where there are none, then a few steps of training."""

    kind: Literal["smoke"]  # type: ignore[assignment]
    shards: str = Field(description="folder that the shards are built into")
    build: dict[str, Any] = Field(description="options of `python -m data_shards.build`, with underscores; its out is `shards`")


Spec = PreprocessSpec | FinetuneSpec | DesignSpec | PretrainSpec | SmokeSpec
KINDS: dict[str, type[PreprocessSpec] | type[FinetuneSpec] | type[DesignSpec] | type[PretrainSpec]] = {
    "preprocess": PreprocessSpec,
    "finetune": FinetuneSpec,
    "design": DesignSpec,
    "pretrain": PretrainSpec,
    "smoke": SmokeSpec,
}


GROUPS = {
    "build": "limit=8",
    "property": "task=tg",
    "design": "task=tg",
    "overrides": "train.num_steps=100",
}  # whose keys are not checked by a model; one each


class PlainLoader(yaml.SafeLoader):
    """Numbers, words, lists and mappings. No alias: a few lines of them stand for gigabytes. A date is a word."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias such as *name is not allowed, write its value")
        return super().compose_node(parent, index)


TAG = "tag:yaml.org,2002:"
NOT_PLAIN = {TAG + name for name in ("binary", "set", "omap", "pairs")}
PlainLoader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag not in NOT_PLAIN} | {
    TAG + "timestamp": yaml.SafeLoader.construct_yaml_str
}


def parse_yaml(text: str) -> Any:
    """Plain data; nothing in the text can name code.

    Raises:
        YAMLError: not YAML, or something that is not plain.
    """
    try:
        return yaml.load(text, Loader=PlainLoader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def load_spec(path: Path, assignments: Sequence[str]) -> Spec:
    """Read a YAML file and lay the assignments of the command line over it.

    Args:
        path: YAML file.
        assignments: `key=value`. A key whose first part is a field of the spec (`out`, `resources.num_workers`, `build.limit`) changes
            that field; every other dotted key (`train.num_steps`, `deepspeed.*`) changes the recipe.

    Raises:
        InputError: the file cannot be read or is not a mapping; a key is unknown; a value is out of bounds.
    """
    try:
        content = parse_yaml(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass a YAML file such as cluster/pretrain.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values, found {type(content).__name__}; see cluster/pretrain.yaml")
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: kind {kind!r} must be one of {', '.join(KINDS)}{_nearest(str(kind), KINDS)}")
    model = KINDS[kind]
    for assignment in assignments:
        _assign(content, assignment, model)
    try:
        spec = model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error, model)}") from None
    _check_options(path, spec)
    return spec


def _assign(content: dict[str, Any], assignment: str, model: type[BaseModel]) -> None:
    """Put one `key=value` where it belongs."""
    key, equals, text = assignment.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"{assignment!r} must be key=value, such as train.num_steps=100")
    if key == "kind":
        raise InputError(f"{assignment!r}: the kind of a job cannot be changed here; submit another file")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        value = text
    annotation = model.model_fields[key].annotation if key in model.model_fields else None
    if annotation is str or (key == "shards" and not isinstance(value, dict)):
        value = text
    if parts[0] not in model.model_fields:
        if "overrides" not in model.model_fields or len(parts) == 1:
            raise InputError(f"unknown key {key!r}{_nearest(key, model.model_fields)}")
        parts = ["overrides", key]
    elif parts[0] in GROUPS:
        parts = [parts[0], ".".join(parts[1:])]
    target: Any = content
    for depth, part in enumerate(parts[:-1]):
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise InputError(f"{assignment!r}: {'.'.join(parts[: depth + 1])} is not a group of keys")
    if not parts[-1]:
        raise InputError(f"{assignment!r} replaces the whole group {parts[0]}; name one key, such as {parts[0]}.{_example(parts[0])}")
    target[parts[-1]] = value


def _example(group: str) -> str:
    return GROUPS[group]


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake that pydantic found, in words."""
    first = error.errors()[0]
    kinds = ("literal[", "int", "float", "constrained", "dict[")  # pydantic names the member of a union too
    path = [str(part) for part in first["loc"] if not str(part).startswith(kinds) and part != "str"]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        fields = Resources.model_fields if path[:1] == ["resources"] else model.model_fields
        return f"unknown key {name!r}{_nearest(path[-1], fields)}"
    if first["type"] == "missing":
        return f"{name} is missing; {model.model_fields[path[0]].description}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{name} {first['input']!r} must be a group of keys"
    if first["type"] == "value_error":
        return f"{name}: {first['msg'].removeprefix('Value error, ')}"
    bounds = [e["msg"].removeprefix("Input should be ") for e in error.errors() if [str(p) for p in e["loc"]][: len(path)] == path]
    return f"{name} {first['input']!r} must be {' or '.join(dict.fromkeys(bounds))}"


def _nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' where something is close, else the list."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def build_options() -> Mapping[str, Any]:
    """Options of `python -m data_shards.build`, by name."""
    import inspect

    from data_shards.build import main

    return inspect.signature(main).parameters


def property_options() -> Mapping[str, Any]:
    """Options of `python -m finetune.property`, by name."""
    import inspect

    from finetune.property import main

    return inspect.signature(main).parameters


def design_options() -> Mapping[str, Any]:
    """Options of `python -m finetune.design`, by name."""
    import inspect

    from finetune.design.__main__ import main

    return inspect.signature(main).parameters


def _check_options(path: Path, spec: Spec) -> None:
    """Every key of `build`, `property` or `design` must be an option of the command."""
    if isinstance(spec, FinetuneSpec):
        group, given, known = "property", spec.property, list(property_options())
    elif isinstance(spec, DesignSpec):
        group, given, known = "design", spec.design, list(design_options())
    elif isinstance(spec, PreprocessSpec | SmokeSpec):
        group, given = "build", spec.build
        known = [name for name in build_options() if not (isinstance(spec, SmokeSpec) and name == "out")]
    else:
        return
    for key in given:
        if key not in known:
            raise InputError(f"{path}: unknown key '{group}.{key}'{_nearest(key, known)}")
    if isinstance(spec, PreprocessSpec) and not spec.build.get("out"):
        raise InputError(f"{path}: build.out is missing; name the folder that the shards go to")


def command_arguments(options: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Options of a YAML as a command line.

    Args:
        options: as written.
        known: of the command, by name, as build_options gives them: what is on by default is turned off by --no-NAME.
    """
    arguments = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            off = [f"--no-{flag[2:]}"] if known[key].default is True else []
            arguments += [flag] if value else off
        elif isinstance(value, Mapping):  # quality: {heavy_clash: 0.7}
            arguments += [word for name, setting in value.items() for word in (flag, f"{name}={setting}")]
        elif isinstance(value, list):
            arguments += [word for setting in value for word in (flag, str(setting))]
        elif value is not None:
            arguments += [flag, str(value)]
    return arguments
