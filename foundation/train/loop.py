"""The one training loop. A step in order: read, forward, backward, clip, step, average, validate, log, checkpoint."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from data_shards.console import Resumable
from foundation.config import RunConfig
from foundation.data.loader import StepLoader, noise
from foundation.objectives import build_objective
from foundation.track.console import Console
from foundation.track.tracker import Tracker
from foundation.train import checkpoint
from foundation.train.checkpoint import TrainState
from foundation.train.ema import EMA
from foundation.train.engine import Engine, on_rank_zero, reduce_sum, start_process_group
from foundation.train.health import StopRequest
from foundation.train.optim import learning_rate

VALIDATION_SEED = 0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    samples_seen: int
    train_loss: float
    val_loss: float | None
    checkpoint: Path


def train(config: RunConfig, out: Path, shards: str, *, rank: int = 0, world_size: int = 1, init_from: str | None = None) -> TrainResult:
    """Train from the last committed checkpoint of out, or from the beginning, to config.train.num_steps.

    Every rank calls it with the same arguments but rank. Killed at any moment and called again, it consumes the same samples with the
    same noise and, on CPU with the same number of ranks and threads, gives the same losses to the last bit.

    Args:
        config: whole run.
        out: run folder.
        shards: folder or address of shards.
        rank, world_size: this process; MASTER_ADDR and MASTER_PORT name the group when world_size > 1.
        init_from: run or checkpoint folder whose weights start the run (a second phase).

    Raises:
        InputError: shards missing, checkpoint of another model, sizes that do not divide.
        Resumable: stopped by a signal after a checkpoint.
    """
    settings = config.train
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    loading = {"token_budget": config.data.token_budget, "num_workers": config.data.num_workers, "rank": rank, "world_size": world_size}
    loader = StepLoader(shards, "train", seed=settings.seed, per_step=settings.micro_batches_per_step, **loading)
    device = start_process_group(rank, world_size)
    torch.manual_seed(settings.seed)
    objective = build_objective(config.objective)
    if init_from is not None:
        start_from_weights(objective, init_from)
    engine = Engine(objective, config, device, world_size)
    ema = EMA(engine, settings.ema_decay)

    state = TrainState(0, 0, world_size, settings.zero_stage, loader.shards.fingerprint, config.model_dump(mode="json"))
    found = checkpoint.committed(out)
    if found:
        old = checkpoint.resume(found[-1], config, state.fingerprint, engine, ema, rank=rank, world_size=world_size)
        state = TrainState(old.step, old.samples_seen, world_size, settings.zero_stage, state.fingerprint, state.config)
    on_rank_zero(rank, lambda: describe_run(out, config, shards, state.fingerprint))
    tracker = console = None
    if rank == 0:
        tracker = Tracker(out, first_step=state.step, config=state.config, wandb=config.track.wandb, project=config.track.project)
        console = Console(settings.num_steps, state.step, config.track.log_every)

    validation = list(validation_batches(config, shards, rank, world_size))
    metrics: dict[str, float] = {}
    steps = loader.steps(state.samples_seen)
    saved = found[-1] if found else out
    with StopRequest() as stop:
        for step in range(state.step, settings.num_steps):
            began = time.perf_counter()
            lr = learning_rate(step, settings)
            read = next(steps)
            sums: dict[str, float] = {"loss": 0.0}
            for micro in read.micro_batches:
                loss, terms = engine.accumulate(micro.batch.to(device), noise(micro.noise_seed, device), micro.weight)
                for name, value in {"loss": loss, **terms}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * micro.weight
                engine.after_micro_batch(lr)
            ema.update(step)

            names = sorted(sums)
            totals = reduce_sum([*(sums[n] for n in names), float(stop.asked), float(engine.skipped)], device)
            seconds = time.perf_counter() - began
            metrics = {f"train/{n}": total / settings.micro_batches_per_step for n, total in zip(names, totals[:-2], strict=True)}
            metrics |= {
                "train/lr": lr,
                "train/grad_norm": engine.grad_norm,
                "train/skipped_micro_batches": totals[-1],
                "train/chains_per_sec": read.num_chains / seconds,
                "train/atoms_per_sec": read.num_atoms / seconds,
                "train/padding_efficiency": read.padding_efficiency,
                "train/samples_seen": read.samples_seen,
            }
            done, stopping = step + 1, totals[-2] > 0
            last = done == settings.num_steps
            if validation and (last or done % settings.validate_every == 0):
                metrics |= validate(engine, validation, device)
            if tracker is not None and console is not None:
                tracker.log(done, metrics)
                console.show(done, metrics)
            state = TrainState(done, read.samples_seen, world_size, settings.zero_stage, state.fingerprint, state.config)
            if last or stopping or done % settings.checkpoint_every == 0:
                saved = checkpoint.save(out, state, engine, ema, rank=rank, keep_last=settings.keep_last)
            if stopping and not last:
                break
    steps.close()
    if tracker is not None and console is not None:
        tracker.close()
        console.close()
    if state.step < settings.num_steps:
        raise Resumable(f"at step {state.step} of {settings.num_steps}, {saved} is committed; the same command continues")
    return TrainResult(state.step, state.samples_seen, metrics.get("train/loss", float("nan")), metrics.get("val/loss"), saved)


def start_from_weights(objective: torch.nn.Module, path: str) -> None:
    """Weights of another run (moving average), strictly."""
    folder = checkpoint.find(path)
    checkpoint.verify(folder)
    checkpoint.load_weights(folder, objective, ema=True)


def validation_batches(config: RunConfig, shards: str, rank: int, world_size: int) -> Iterator[tuple]:
    """(batch, noise seed, chains) of this rank: fixed micro-batches, as many on every rank."""
    count = config.train.num_val_batches
    if count == 0:
        return
    per_step = world_size * max(1, count // world_size)
    sizes = {"token_budget": config.data.token_budget, "num_workers": 0, "rank": rank, "world_size": world_size}
    loader = StepLoader(shards, "val", seed=VALIDATION_SEED, per_step=per_step, **sizes)
    available = len(loader.order.plan(0))
    micro = loader.order.plan(0)
    for k in loader.mine:
        if k < available or rank == k % world_size:
            chosen = micro[k % available]
            if k < available or k < world_size:  # every rank has at least one, so that collectives match
                yield loader.load(chosen), chosen.noise_seed, len(chosen.samples)


def validate(engine: Engine, batches: list[tuple], device: torch.device) -> dict[str, float]:
    """Mean over the chains of the fixed validation batches, with fixed noise."""
    sums: dict[str, float] = {"loss": 0.0}
    chains = 0
    for batch, seed, size in batches:
        loss, terms = engine.evaluate(batch.to(device), noise(seed, device))
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
        chains += size
    names = sorted(sums)
    *totals, count = reduce_sum([*(sums[n] for n in names), float(chains)], device)
    return {f"val/{n}": total / count for n, total in zip(names, totals, strict=True)}


def describe_run(out: Path, config: RunConfig, shards: str, fingerprint: str) -> None:
    """config.json and run.json: what ran, on what, with which versions."""
    out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    facts = {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy", "rdkit")},
        "shards": shards,
        "fingerprint": fingerprint,
    }
    for name, data in (("config.json", config.model_dump(mode="json")), ("run.json", facts)):
        (out / f".{name}").write_text(json.dumps(data, indent=1, sort_keys=True))
        (out / f".{name}").replace(out / name)
