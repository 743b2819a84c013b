"""The one training loop. A step: read, forward, backward, finite check, clip, step, average, validate, log, checkpoint."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from data_shards.console import Resumable
from data_shards.manifest import write_atomic
from data_shards.mixture import Mixture, Sources, open_mixture
from foundation.config import RunConfig
from foundation.data.loader import Reading, StepLoader, ValidationBatch, order_of, validation_batches
from foundation.errors import CheckpointError, InputError
from foundation.objectives import build_objective
from foundation.sampling.provenance import commit, hardware
from foundation.track.console import Console
from foundation.track.metrics import memory_peaks
from foundation.track.tracker import RUN_ID, Tracker, read_metrics
from foundation.train import checkpoint
from foundation.train.ema import EMA
from foundation.train.engine import Engine
from foundation.train.health import SkipGuard, SpikeRule, StopRequest, check_same_everywhere
from foundation.train.memory import rehearse
from foundation.train.optim import learning_rate
from foundation.train.probes import Prober
from foundation.train.ranks import Ranks
from foundation.train.rng import generator, reproducible
from foundation.train.samples import Sampler
from foundation.train.saver import Saver
from foundation.train.snapshot import TrainState
from foundation.train.watchdog import Watchdog

log = logging.getLogger(__name__)
CONFIG, RUN, LOCK = "config.json", "run.json", "lock"
LOCK_WAIT_SEC = 600.0  # a node that was cut off needs minutes to notice, a file server as long to forget the lock of one that died
T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are of the last step made by this call; None where there was none."""

    step: int
    samples_seen: int
    train_loss: float | None
    val_loss: float | None
    checkpoint: Path


def train(
    config: RunConfig,
    out: Path,
    shards: str | Sources,
    *,
    rank: int = 0,
    world_size: int = 1,
    init_from: str | Path | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train from the last committed checkpoint of out, or from the beginning, to config.train.num_steps.

    Every rank calls it with the same arguments but rank. Killed at any moment and called again, it consumes the same samples with the
    same noise and, on CPU with as many ranks and threads, gives the same losses to the last bit. Another number of ranks, or another
    ZeRO stage, goes on with the same samples, the same noise and the same global batch.

    Args:
        config: whole run.
        out: run folder.
        shards: folder or address of shards, or several with their weights.
        rank, world_size: this process; MASTER_ADDR and MASTER_PORT name the group when world_size > 1 and there is none yet.
        init_from: run or checkpoint folder whose averaged weights start the run (a second phase); ignored once the run has a checkpoint.
        stop: who asks to stop; None = signals to this process.

    Raises:
        InputError: shards missing, checkpoint of another model, sizes that do not divide, ranks that differ, or too many steps skipped.
        Resumable: stopped on request after a checkpoint.
    """
    settings, per_step = config.train, config.train.micro_batches_per_step
    opened = open_mixture(shards)
    check_kind(opened, config)
    order = order_of(opened, "train", settings.seed, config.data.token_budget)
    reading = Reading(**config.data.model_dump(exclude={"token_budget"}), targets=getattr(config.objective, "targets", ()))
    loader = StepLoader(opened, "train", order, reading, per_step=per_step, rank=rank, world_size=world_size)
    sampler, prober = Sampler(out, config), Prober(config)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    start = Ranks.start(rank, world_size, settings.hang_timeout_sec)
    with ExitStack() as held, start as ranks, reproducible(ranks.device), stop or StopRequest() as stop:
        check_same_everywhere(ranks, config, opened.fingerprint, versions())
        ranks.on_rank_zero(lambda: prober.open(ranks.device))  # before anything is written
        ranks.on_rank_zero(lambda: check_run_folder(out, config, opened.fingerprint))
        ranks.on_rank_zero(lambda: held.enter_context(sole_writer(out)))
        watch = held.enter_context(Watchdog(out, rank, world_size, settings.hang_timeout_sec))
        engine, ema, state, saved = start_or_resume(config, out, opened, ranks, init_from)
        rehearsed = rehearse(engine, config, order, state.samples_seen, loader.reader.batch)  # before anything is written
        if rehearsed is not None and rank == 0:
            peak = f" at most {rehearsed.peak_bytes / 2**30:.2f} GiB in use" if rehearsed.peak_bytes else ""
            log.info("memory check: the largest micro-batches fit,%s %.1f s", peak, rehearsed.seconds)
        saver = held.enter_context(Saver(out, settings, engine, ema, saved))
        ranks.on_rank_zero(lambda: describe_run(out, config, opened, world_size, ranks.device, init_from))
        tracker = console = None
        if rank == 0:
            tracker = held.enter_context(Tracker(out, first_step=state.step, track=config.track))
            console = Console(settings.num_steps, state.step, config.track.log_every)
        validation = fixed_batches(config, opened, reading, ranks)
        guard, spikes = SkipGuard(settings.max_consecutive_skips, settings.lr), SpikeRule(settings, loud=rank == 0)
        if spikes.is_on:
            ranks.on_rank_zero(lambda: spikes.recall(read_metrics(out / "metrics.jsonl")))
            spikes.recent = ranks.gather(spikes.recent)[0]
        metrics: dict[str, float | None] = {}
        steps = loader.steps(state.samples_seen)
        stopped = False
        while state.step < settings.num_steps and not stopped:
            began = time.perf_counter()
            lr = learning_rate(state.step, settings)
            watch.beat(state.step, "read")
            read = next(steps)
            waited = time.perf_counter() - began
            seen: list[tuple[float, dict[str, Tensor]]] = []
            for micro in read.micro_batches:
                watch.beat(state.step, "compute")
                rng = generator(micro.noise_seed, ranks.device)
                made = engine.forward(micro.batch.to(ranks.device), rng, micro.weight)
                seen.append((micro.weight, {"loss": made.loss, **made.terms}))
                last = micro is read.micro_batches[-1]
                if last and spikes.is_on and spikes.judge(state.step + 1, agree(ranks, seen, False)[0]["loss"] / per_step):
                    made = replace(made, to_differentiate=made.to_differentiate * math.nan)  # the finite check leaves the step out
                engine.backward(made.to_differentiate, last=last)
            watch.beat(state.step, "update")
            stepped = engine.step(lr)  # finite check, clipping and update, the same decision on every rank
            if stepped.applied:
                ema.update(state.step)

            done = state.step + 1
            watch.beat(state.step, "agree")
            totals, said = agree(ranks, seen, (stop.asked, saver.trouble))
            stopped = any(asked for asked, _ in said)
            seconds = time.perf_counter() - began
            state = replace(state, step=done, samples_seen=read.samples_seen, updates=state.updates + stepped.applied)
            metrics = {f"train/{name}": total / per_step for name, total in totals.items()}
            spikes.see(metrics["train/loss"], applied=stepped.applied)
            metrics |= {
                "train/lr": lr,
                "train/grad_norm": stepped.grad_norm,
                "train/skipped_steps": done - state.updates,
                "train/chains_per_sec": read.num_chains / seconds,
                "train/atoms_per_sec": read.num_atoms / seconds,
                "train/padding_efficiency": read.padding_efficiency,
                "train/samples_seen": read.samples_seen,
                "train/step_sec": seconds,
                "train/loader_wait_sec": waited,
                **memory_peaks(ranks.device),
                **saver.metrics(),
            }
            finished = done == settings.num_steps
            watch.beat(state.step, "validate")
            if validation and (finished or done % settings.validate_every == 0):
                metrics |= validate(engine, validation, ranks, opened.weights)
            if sampler.due(done):
                watch.beat(state.step, "sample")
                metrics |= sampler.sample(done, ema, ranks)
            if prober.due(done):
                watch.beat(state.step, "probe")
                metrics |= prober.probe(done, ema, ranks)
            if tracker is not None and console is not None:
                tracker.log(done, metrics)
                console.show(done, metrics)
            guard.see(done, applied=stepped.applied)
            saver.heed(said[0][1])
            watch.beat(state.step, "checkpoint")
            if finished or stopped or done % settings.checkpoint_every == 0:
                saver.save(state)  # a copy in memory; the rest beside the next steps
        steps.close()
        saved = saver.finish()
        if tracker is not None and console is not None:
            console.close()
    if state.step < settings.num_steps:
        raise Resumable(f"at step {state.step} of {settings.num_steps}, {saved} is committed; the same command continues")
    assert saved is not None, "a run of at least one step ends with a checkpoint"
    return TrainResult(state.step, state.samples_seen, metrics.get("train/loss"), metrics.get("val/loss"), saved)


def start_or_resume(
    config: RunConfig, out: Path, shards: Mixture, ranks: Ranks, init_from: str | Path | None
) -> tuple[Engine, EMA, TrainState, Path | None]:
    """Model, optimiser and average at the last committed checkpoint of out, or at the beginning, with the state and that checkpoint."""
    settings = config.train
    torch.manual_seed(settings.seed)
    objective = build_objective(config.objective)
    found = checkpoint.resume_from(out, config, shards.fingerprint, ranks)
    state = TrainState(0, 0, 0, shards.fingerprint, config.model_dump(mode="json"), {})
    weights = None
    if found is not None:
        folder, old = found
        state = replace(state, step=old.step, samples_seen=old.samples_seen, updates=old.updates)
        weights = checkpoint.load_weights(folder, objective, ema=False)
    elif init_from is not None:
        checkpoint.load_average(init_from, objective)
    engine = Engine(objective, config, ranks)
    ema = EMA(engine, settings.ema_decay)
    if weights is not None:
        checkpoint.restore(folder, weights, engine, ema)
    written_by = {"world_size": ranks.world_size, "zero_stage": settings.zero_stage, "versions": versions()}
    return engine, ema, replace(state, written_by=written_by), found[0] if found is not None else None


def agree(ranks: Ranks, seen: Sequence[tuple[float, Mapping[str, Tensor]]], word: T) -> tuple[dict[str, float], list[T]]:
    """Weighted sums over micro-batches of all ranks by name, added in the order of the ranks, and every rank's word."""
    names = [(weight, name) for weight, values in seen for name in values]
    values = torch.stack([value.double() for _, by_name in seen for value in by_name.values()]).tolist()  # one wait for the device
    mine: dict[str, float] = {}
    for (weight, name), value in zip(names, values, strict=True):
        mine[name] = mine.get(name, 0.0) + weight * value
    everyone = ranks.gather((mine, word))
    totals: dict[str, float] = {}
    for sums, _ in everyone:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals, [said for _, said in everyone]


def check_kind(shards: Mixture, config: RunConfig) -> None:
    """Molecules are for objectives that know no repeat units.

    Raises:
        InputError: for another one.
    """
    found = next((own for own in shards.sets if own.of_molecules), None)
    if found is not None and not getattr(config.objective, "reads_molecules", False):
        name = getattr(config.objective, "name", "")
        raise InputError(f"{found.path} holds molecules, and objective {name} reads chains of polymers; use a ditmc recipe")


def fixed_batches(config: RunConfig, shards: Mixture, reading: Reading, ranks: Ranks) -> list[ValidationBatch]:
    """This rank's validation batches; none, with a word about it, where the shards have no validation split."""
    count, budget = config.train.num_val_batches, config.data.token_budget
    if count and not shards.count("val"):
        log.warning("%s has no validation split; training goes on without val/ metrics", shards.path)
    return validation_batches(shards, reading, token_budget=budget, count=count, rank=ranks.rank, world_size=ranks.world_size)


def validate(engine: Engine, batches: Sequence[ValidationBatch], ranks: Ranks, weights: Sequence[Fraction]) -> dict[str, float]:
    """Means over the chains of the fixed validation batches of each shard set, with fixed noise, and their mean by the sets' weights."""
    seen = []
    for fixed in batches:
        made = engine.evaluate(fixed.batch.to(ranks.device), generator(fixed.noise_seed, ranks.device))
        values = {"loss": made.loss, **made.terms, "chains": torch.ones_like(made.loss)}
        seen.append((fixed.weight, {f"{fixed.source}/{name}": value for name, value in values.items()}))
    totals, _ = agree(ranks, seen, None)
    there = [place for place in range(len(weights)) if f"{place}/chains" in totals]  # sets with a validation split
    metrics: dict[str, float] = {}
    for place in there:
        share, chains = float(weights[place] / sum(weights[k] for k in there)), totals[f"{place}/chains"]
        for name in (key.partition("/")[2] for key in totals if key.startswith(f"{place}/") and key != f"{place}/chains"):
            metrics[f"val/{name}"] = metrics.get(f"val/{name}", 0.0) + share * (totals[f"{place}/{name}"] / chains)
        if len(weights) > 1:
            metrics[f"val/loss_of_set_{place + 1}"] = totals[f"{place}/loss"] / chains
    return metrics


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
        checkpoint.check_same_run(old, facts["fingerprint"], config, fingerprint)
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{out / CONFIG} or {out / RUN} is damaged ({type(error).__name__}: {error}); pass another --out, or --overwrite"
        ) from None


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


def describe_run(
    out: Path, config: RunConfig, shards: Mixture, world_size: int, device: torch.device, init_from: str | Path | None
) -> None:
    """config.json and run.json: what ran, on what, with which versions."""
    out.mkdir(parents=True, exist_ok=True)
    before = json.loads((out / RUN).read_text(encoding="utf-8")) if (out / RUN).exists() else {}
    facts = {
        "run_id": run_id if RUN_ID.fullmatch(run_id := str(before.get("run_id"))) else secrets.token_hex(4),
        "commit": commit() or "unknown",
        "versions": versions(),
        "machine": platform.machine(),
        "hardware": hardware(device),
        "init_from": before.get("init_from", None if init_from is None else str(init_from)),
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
