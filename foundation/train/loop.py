"""The one training loop. A step: read, forward, backward, finite check, clip, step, average, validate, log, checkpoint."""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from data_shards.console import Resumable
from data_shards.manifest import write_atomic
from data_shards.reader import ShardSet, open_shards
from foundation.config import RunConfig
from foundation.data.loader import StepLoader, ValidationBatch, order_of, validation_batches
from foundation.errors import CheckpointError, InputError
from foundation.objectives import build_objective
from foundation.track.console import Console
from foundation.track.tracker import Tracker
from foundation.train import checkpoint
from foundation.train.checkpoint import TrainState
from foundation.train.ema import EMA
from foundation.train.engine import Engine
from foundation.train.health import SkipGuard, StopRequest
from foundation.train.optim import learning_rate
from foundation.train.ranks import Ranks
from foundation.train.rng import generator, reproducible

log = logging.getLogger(__name__)
CONFIG, RUN, LOCK = "config.json", "run.json", "lock"
LOCK_WAIT_SEC = 600.0  # a node that was cut off needs minutes to notice, a file server as long to forget the lock of one that died


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are of the last step made by this call; None where there was none."""

    step: int
    samples_seen: int
    train_loss: float | None
    val_loss: float | None
    checkpoint: Path


def train(
    config: RunConfig, out: Path, shards: str, *, rank: int = 0, world_size: int = 1, init_from: str | Path | None = None
) -> TrainResult:
    """Train from the last committed checkpoint of out, or from the beginning, to config.train.num_steps.

    Every rank calls it with the same arguments but rank. Killed at any moment and called again, it consumes the same samples with the
    same noise and, on CPU with as many ranks and threads, gives the same losses to the last bit. Another number of ranks, or another
    ZeRO stage, goes on with the same samples, the same noise and the same global batch.

    Args:
        config: whole run.
        out: run folder.
        shards: folder or address of shards.
        rank, world_size: this process; MASTER_ADDR and MASTER_PORT name the group when world_size > 1 and there is none yet.
        init_from: run or checkpoint folder whose averaged weights start the run (a second phase); ignored once the run has a checkpoint.

    Raises:
        InputError: shards missing, checkpoint of another model, sizes that do not divide, or too many steps that are not finite.
        Resumable: stopped by a signal after a checkpoint.
    """
    settings = config.train
    opened = open_shards(shards)
    order = order_of(opened, "train", settings.seed, config.data.token_budget)
    loader = StepLoader(
        opened,
        "train",
        order,
        per_step=settings.micro_batches_per_step,
        rank=rank,
        world_size=world_size,
        num_workers=config.data.num_workers,
        cache_mib=config.data.cache_mib,
    )
    check_run_folder(out, config, opened.fingerprint)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    with ExitStack() as held, Ranks.start(rank, world_size) as ranks, reproducible(ranks.device), StopRequest() as stop:
        ranks.on_rank_zero(lambda: held.enter_context(sole_writer(out)))
        engine, ema, state, saved = start_or_resume(config, out, opened, ranks, init_from)
        ranks.on_rank_zero(lambda: describe_run(out, config, opened, world_size))
        tracker = console = None
        if rank == 0:
            run_id = json.loads((out / RUN).read_text(encoding="utf-8"))["run_id"]
            tracker = Tracker(out, first_step=state.step, config=state.config, track=config.track, run_id=run_id)
            console = Console(settings.num_steps, state.step, config.track.log_every)
        validation = fixed_batches(config, opened, ranks)
        guard = SkipGuard(settings.max_consecutive_skips, settings.lr)
        metrics: dict[str, float | None] = {}
        steps = loader.steps(state.samples_seen)
        stopped = False
        while state.step < settings.num_steps and not stopped:
            began = time.perf_counter()
            lr = learning_rate(state.step, settings)
            read = next(steps)
            seen: list[tuple[float, dict[str, Tensor]]] = []
            for micro in read.micro_batches:
                rng = generator(micro.noise_seed, ranks.device)
                made = engine.forward(micro.batch.to(ranks.device), rng, micro.weight)
                engine.backward(made.to_differentiate, last=micro is read.micro_batches[-1])
                seen.append((micro.weight, {"loss": made.loss, **made.terms}))
            stepped = engine.step(lr)  # finite check, clipping and update, the same decision on every rank
            if stepped.applied:
                ema.update(state.step)

            done = state.step + 1
            totals, stops = agree(ranks, seen, stop.asked)
            stopped = any(stops)
            seconds = time.perf_counter() - began
            state = replace(state, step=done, samples_seen=read.samples_seen, updates=state.updates + stepped.applied)
            metrics = {f"train/{name}": total / settings.micro_batches_per_step for name, total in totals.items()}
            metrics |= {
                "train/lr": lr,
                "train/grad_norm": stepped.grad_norm,
                "train/skipped_steps": done - state.updates,
                "train/chains_per_sec": read.num_chains / seconds,
                "train/atoms_per_sec": read.num_atoms / seconds,
                "train/padding_efficiency": read.padding_efficiency,
                "train/samples_seen": read.samples_seen,
            }
            last = done == settings.num_steps
            if validation and (last or done % settings.validate_every == 0):
                metrics |= validate(engine, validation, ranks)
            if tracker is not None and console is not None:
                tracker.log(done, metrics)
                console.show(done, metrics)
            guard.see(done, applied=stepped.applied)
            if last or stopped or done % settings.checkpoint_every == 0:
                saved = checkpoint.save(out, state, engine, ema, keep_last=settings.keep_last)
        steps.close()
        if tracker is not None and console is not None:
            tracker.close()
            console.close()
    if state.step < settings.num_steps:
        raise Resumable(f"at step {state.step} of {settings.num_steps}, {saved} is committed; the same command continues")
    assert saved is not None, "a run of at least one step ends with a checkpoint"
    return TrainResult(state.step, state.samples_seen, metrics.get("train/loss"), metrics.get("val/loss"), saved)


def start_or_resume(
    config: RunConfig, out: Path, shards: ShardSet, ranks: Ranks, init_from: str | Path | None
) -> tuple[Engine, EMA, TrainState, Path | None]:
    """Model, optimiser and average at the last committed checkpoint of out, or at the beginning, with the state and that checkpoint."""
    settings = config.train
    torch.manual_seed(settings.seed)
    objective = build_objective(config.objective)
    found = ranks.gather(checkpoint.committed(out))[0][-1:]  # as rank 0 sees the folder
    state = TrainState(0, 0, 0, shards.fingerprint, config.model_dump(mode="json"), {})
    weights = None
    if found:
        checkpoint.verify(found[0])
        old = checkpoint.read_state(found[0])
        checkpoint.check_compatible(old, config, shards.fingerprint)
        state = replace(state, step=old.step, samples_seen=old.samples_seen, updates=old.updates)
        weights = checkpoint.load_weights(found[0], objective, ema=False)
    elif init_from is not None:
        folder = checkpoint.find(init_from)
        checkpoint.verify(folder)
        checkpoint.load_weights(folder, objective, ema=True)
    engine = Engine(objective, config, ranks)
    ema = EMA(engine, settings.ema_decay)
    if weights is not None:
        checkpoint.restore(found[0], weights, engine, ema)
    written_by = {"world_size": ranks.world_size, "zero_stage": settings.zero_stage, "versions": versions()}
    return engine, ema, replace(state, written_by=written_by), found[0] if found else None


def agree(ranks: Ranks, seen: Sequence[tuple[float, Mapping[str, Tensor]]], stop_asked: bool) -> tuple[dict[str, float], list[bool]]:
    """Weighted sums over micro-batches of all ranks by name, added in the order of the ranks, and which ranks were asked to stop."""
    names = [(weight, name) for weight, values in seen for name in values]
    values = torch.stack([value.double() for _, by_name in seen for value in by_name.values()]).tolist()  # one wait for the device
    mine: dict[str, float] = {}
    for (weight, name), value in zip(names, values, strict=True):
        mine[name] = mine.get(name, 0.0) + weight * value
    everyone = ranks.gather((mine, stop_asked))
    totals: dict[str, float] = {}
    for sums, _ in everyone:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals, [asked for _, asked in everyone]


def fixed_batches(config: RunConfig, shards: ShardSet, ranks: Ranks) -> list[ValidationBatch]:
    """This rank's validation batches; none, with a word about it, where the shards have no validation split."""
    count = config.train.num_val_batches
    if count and not shards.samples("val"):
        log.warning("%s has no validation split; training goes on without val/ metrics", shards.path)
        count = 0
    return validation_batches(shards, token_budget=config.data.token_budget, count=count, rank=ranks.rank, world_size=ranks.world_size)


def validate(engine: Engine, batches: Sequence[ValidationBatch], ranks: Ranks) -> dict[str, float]:
    """Mean over the chains of the fixed validation batches, with fixed noise."""
    seen = []
    for fixed in batches:
        made = engine.evaluate(fixed.batch.to(ranks.device), generator(fixed.noise_seed, ranks.device))
        seen.append((fixed.weight, {"loss": made.loss, **made.terms}))
    totals, _ = agree(ranks, seen, False)
    chains = sum(ranks.gather(sum(fixed.weight for fixed in batches)))
    return {f"val/{name}": total / chains for name, total in totals.items()}


# -------------------------------------------------------------------------------------------------------------------- run folder


def check_run_folder(out: Path, config: RunConfig, fingerprint: str) -> None:
    """A run folder that exists must be of this run, also before its first checkpoint.

    Raises:
        CheckpointError: of another model, other shards or another order of samples.
    """
    if not (out / CONFIG).exists() or not (out / RUN).exists():
        return
    try:
        old, facts = (json.loads((out / name).read_text(encoding="utf-8")) for name in (CONFIG, RUN))
    except ValueError as error:
        raise CheckpointError(f"{out / CONFIG} or {out / RUN} is damaged ({error}); pass another --out, or --overwrite") from None
    checkpoint.check_same_run(old, facts["fingerprint"], config, fingerprint)


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Two runs must not write one folder: workers that outlive their launcher would mix their steps with those of its successor.

    Raises:
        InputError: another process still writes there after LOCK_WAIT_SEC.
    """
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_WAIT_SEC
    told = False
    with (out / LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(f"another process is training into {out}; stop it or wait for it, or pass another --out") from None
                if not told:
                    log.warning("another process is training into %s; waiting %.0f s for its end", out, LOCK_WAIT_SEC)
                    told = True
                time.sleep(0.2)
        try:
            yield
        except InputError:  # nothing came of it
            if [path.name for path in out.iterdir()] == [LOCK]:
                shutil.rmtree(out)
            raise


def describe_run(out: Path, config: RunConfig, shards: ShardSet, world_size: int) -> None:
    """config.json and run.json: what ran, on what, with which versions."""
    out.mkdir(parents=True, exist_ok=True)
    before = json.loads((out / RUN).read_text(encoding="utf-8")) if (out / RUN).exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    facts = {
        "run_id": before.get("run_id") or secrets.token_hex(4),
        "commit": commit or "unknown",
        "versions": versions(),
        "machine": platform.machine(),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "shards": shards.path,
        "fingerprint": shards.fingerprint,
    }
    for name, data in ((CONFIG, config.model_dump(mode="json")), (RUN, facts)):
        write_atomic(out / name, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def versions() -> dict[str, str]:
    """Software that numbers depend on."""
    packages = ("torch", "deepspeed", "numpy", "polymer-foundation")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
