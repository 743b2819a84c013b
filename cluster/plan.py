"""From what a YAML asks and what the cluster has to what will run: pure arithmetic, nothing is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.paths import resolve
from cluster.restarts import sizes
from cluster.spec import PretrainSpec
from data_shards.errors import InputError

if TYPE_CHECKING:
    from foundation.config import RunConfig

CPU_RECIPE, GPU_RECIPE = "polyconfm_tiny", "polyconfm_small"


@dataclass(frozen=True)
class Plan:
    """One training job, every choice made."""

    config: RunConfig
    shards: str | dict[str, float]  # absolute path or fsspec address, or several with their weights
    out: str  # absolute path
    num_workers: int  # at the start, and the most after a restart
    min_workers: int  # fewest after a restart
    gpus_per_worker: float
    cpus_per_worker: float
    max_failures: int
    restart_timeout_sec: float
    verify: str  # checksums | sizes
    notes: tuple[str, ...]  # what the user may want to know about the choices

    def lines(self) -> list[str]:
        """The plan for people."""
        device = f"{self.gpus_per_worker:g} GPU + " if self.gpus_per_worker else ""
        train = self.config.train
        fewest = f", at least {self.min_workers} after a loss" if self.min_workers < self.num_workers else ""
        tries = f"at most {self.max_failures} restarts without progress"
        return [
            f"recipe   {self.config.recipe}, {train.num_steps} steps, {train.micro_batches_per_step} micro-batches a step",
            f"shards   {shown(self.shards)}",
            f"out      {self.out}",
            f"workers  {self.num_workers} x ({device}{self.cpus_per_worker:g} CPU){fewest}, {tries}",
            *(f"note     {note}" for note in self.notes),
        ]


def shown(shards: str | Mapping[str, float]) -> str:
    """Shards as one would type them."""
    return shards if isinstance(shards, str) else " ".join(f"{path}={weight:g}" for path, weight in shards.items())


def make_plan(spec: PretrainSpec, available: Mapping[str, float]) -> Plan:
    """Choose recipe, workers and paths.

    Args:
        spec: as read from the YAML.
        available: resources of the whole cluster, such as {"CPU": 16, "GPU": 2}.

    Raises:
        InputError: the recipe or one of its keys is unknown, the cluster is too small, or the workers do not divide the micro-batches.
    """
    from foundation.config import apply_overrides
    from foundation.recipes import get_recipe

    asked = spec.resources
    gpus, cpus = available.get("GPU", 0.0), available.get("CPU", 0.0)
    gpus_per_worker = (1.0 if gpus >= 1 else 0.0) if asked.gpus_per_worker == "auto" else float(asked.gpus_per_worker)
    recipe = spec.recipe if spec.recipe != "auto" else (GPU_RECIPE if gpus_per_worker else CPU_RECIPE)
    config = apply_overrides(get_recipe(recipe), [_as_override(key, value) for key, value in spec.overrides.items()])
    most = int(min(cpus // asked.cpus_per_worker, gpus // gpus_per_worker if gpus_per_worker else cpus))
    micro_batches = config.train.micro_batches_per_step
    notes = []
    if asked.num_workers == "auto":
        fewest = asked.min_workers or 1
        if asked.max_workers is not None:
            most = asked.max_workers  # the autoscaler may have to add nodes
        if most < fewest:
            raise InputError(_too_small(fewest, asked.cpus_per_worker, gpus_per_worker, available))
        fitting = sizes(micro_batches, fewest, most)
        if not fitting:
            raise InputError(
                f"no number of workers from {fewest} to {most} divides train.micro_batches_per_step {micro_batches}; "
                f"set train.micro_batches_per_step={most} or lower resources.min_workers"
            )
        num_workers = fitting[0]
        min_workers = fitting[-1]
        if num_workers < most:
            notes.append(
                f"the cluster has room for {most} workers; train.micro_batches_per_step={micro_batches} lets {num_workers} work, "
                f"train.micro_batches_per_step={most} would use all"
            )
    else:
        num_workers = asked.num_workers
        min_workers = min(asked.min_workers or num_workers, num_workers)
        if min_workers > most:
            raise InputError(_too_small(min_workers, asked.cpus_per_worker, gpus_per_worker, available))
    if micro_batches % num_workers:
        raise InputError(
            f"train.micro_batches_per_step {micro_batches} must be a multiple of resources.num_workers {num_workers}; "
            f"set train.micro_batches_per_step={num_workers * max(1, round(micro_batches / num_workers))} or resources.num_workers=auto"
        )
    if "://" in spec.out:
        raise InputError(f"out {spec.out!r} must be a folder that every node sees, such as one on NFS; checkpoints are committed by rename")
    probe_shards = config.train.probe_shards and resolve(config.train.probe_shards)
    probed = {"probe_shards": probe_shards, "probe_tables": tuple(map(resolve, config.train.probe_tables))}
    return Plan(
        config=config.model_copy(update={"train": config.train.model_copy(update=probed)}),
        shards=resolve(spec.shards) if isinstance(spec.shards, str) else {resolve(path): weight for path, weight in spec.shards.items()},
        out=resolve(spec.out),
        num_workers=num_workers,
        min_workers=min_workers,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=asked.cpus_per_worker,
        max_failures=asked.max_failures,
        restart_timeout_sec=asked.restart_timeout_sec,
        verify=spec.verify,
        notes=tuple(notes),
    )


def _as_override(key: str, value: object) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _too_small(num_workers: int, cpus: float, gpus: float, available: Mapping[str, float]) -> str:
    needs = f"{num_workers} x {cpus:g} CPU" + (f" and {num_workers} x {gpus:g} GPU" if gpus else "")
    has = f"{available.get('CPU', 0):g} CPU and {available.get('GPU', 0):g} GPU"
    return f"the job needs {needs}, the cluster has {has}; lower resources.num_workers or add nodes"
