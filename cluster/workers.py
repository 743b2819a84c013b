"""Training processes under Ray Train: start them, start them again when some are lost, say in one sentence how it ended.

One attempt is one TorchTrainer.fit in a Ray actor of its own, which can be killed whatever Ray Train waits for. Between attempts this
file decides, not Ray Train: its elastic policy knows neither which sizes share the micro-batches of a step nor when to stop waiting.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.restarts import Failure, RankFailure, Restarts, cause, sizes
from data_shards.console import Resumable
from data_shards.errors import InputError

if TYPE_CHECKING:
    from cluster.plan import Plan
    from foundation.train.health import StopRequest

log = logging.getLogger(__name__)
WORTH_ANOTHER_TRY = (RuntimeError, OSError, Resumable)  # a lost peer, a device, a disk; everything else fails again in the same way
SCRATCH = ".ray"  # Ray Train wants a folder of its own; it holds nothing that a later run needs
POLL_SEC = 0.5
SMALLER_LIMIT_SEC = 5.0  # for a smaller group, after the largest one has been waited for
START_LIMIT_SEC = 300.0  # from a group's resources to the training loop on every worker
END_LIMIT_SEC = 60.0  # from the first worker's failure to the end of the group


def fit(plan: Plan) -> str:
    """Train on the cluster that Ray is connected to. A lost worker or node starts the group again from the last committed checkpoint.

    Returns:
        Words about restarts for the last line; empty where there were none.

    Raises:
        InputError: what the training loop said about the user's input.
        Resumable: stopped by a signal, failures without progress more often than the plan allows, or no room for the fewest workers.
        SystemExit: a defect of the program, or the same error twice at the same step; exit code 1.
    """
    from foundation.train.health import StopRequest

    restarts = Restarts(plan.max_failures)
    ledger = _on_this_node(Ledger, num_cpus=0).remote()
    with StopRequest() as stop:
        while True:
            size = find_room(plan, stop)
            if stop.asked:
                raise Resumable(f"on request{restarts.words()}; {_where(plan)}")
            if size is None:
                raise Resumable(
                    f"the cluster had no room for {plan.min_workers} x {bundle(plan)} within resources.restart_timeout_sec="
                    f"{plan.restart_timeout_sec:g}{restarts.words()}; {_where(plan)}"
                )
            failures = attempt(plan, size, restarts.total, ledger, stop)
            if failures is None:
                return restarts.words()
            _pass_judgement(plan, ledger, stop, restarts, failures)


def _pass_judgement(plan: Plan, ledger: Any, stop: StopRequest, restarts: Restarts, failures: dict[int, RankFailure]) -> None:
    """Return where another attempt makes sense.

    Raises:
        InputError, Resumable, SystemExit: as fit.
    """
    import ray

    notes: Notes = ray.get(ledger.read.remote())
    if notes.bad_input is not None:
        raise InputError(notes.bad_input)
    if notes.defect is not None:
        raise SystemExit(f"a defect of this program, please report it with the log above: {notes.defect}")
    resumable = [failure.message for failure in failures.values() if failure.error == Resumable.__name__]
    if stop.asked:
        raise Resumable(resumable[0] if resumable else f"on request; {_where(plan)}")
    reason, is_error = cause(failures)
    failure = Failure(_hang(plan, notes) or reason, is_error, last_step(plan), last_checkpoint(plan))
    if restarts.see(failure):
        raise SystemExit(f"the same error twice at step {failure.step + 1}, so it would come again: {failure.reason}; {_where(plan)}")
    if restarts.exhausted:
        raise Resumable(
            f"workers failed {restarts.in_a_row} times without a new checkpoint, resources.max_failures={plan.max_failures} allows"
            f" {plan.max_failures} (last: {failure.reason}); {_where(plan)}"
        )
    log.warning("restart %d (%d of %d without progress): %s", restarts.total, restarts.in_a_row, plan.max_failures, failure.reason)


def last_checkpoint(plan: Plan) -> int:
    """Step of the last committed checkpoint, 0 where there is none."""
    from foundation.train.checkpoint import committed

    found = committed(Path(plan.out))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def last_step(plan: Plan) -> int:
    """Last step in metrics.jsonl."""
    from foundation.track.tracker import read_metrics

    rows = read_metrics(Path(plan.out) / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def _where(plan: Plan) -> str:
    step = last_checkpoint(plan)
    return f"the same command continues from step {step}" if step else "no checkpoint yet; the same command starts from step 0"


def _hang(plan: Plan, notes: Notes) -> str | None:
    """What a watchdog of this attempt said before its process left."""
    new = sorted(_stacks(plan) - notes.old_stacks)
    return Path(new[0][0]).read_text(encoding="utf-8").partition("\n")[0] if new else None


def _stacks(plan: Plan) -> frozenset[tuple[str, int]]:
    """Files of watchdogs, and when each was written."""
    return frozenset((str(path), path.stat().st_mtime_ns) for path in (Path(plan.out) / "stacks").glob("rank-*.txt"))


# ---------------------------------------------------------------------------------------------------------------------------- room


def bundle(plan: Plan) -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})


def find_room(plan: Plan, stop: StopRequest) -> int | None:
    """The largest number of workers that the cluster has room for now, within a bounded time; None where even the fewest do not fit.

    The largest group is waited for, so that a lost node may come back and an autoscaler may add one; then smaller ones are taken.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    for place, size in enumerate(sizes(plan.config.train.micro_batches_per_step, plan.min_workers, plan.num_workers)):
        until = time.monotonic() + (SMALLER_LIMIT_SEC if place else plan.restart_timeout_sec)
        probe = placement_group([bundle(plan)] * size, strategy="PACK")
        try:
            while not stop.asked:
                if probe.wait(POLL_SEC):
                    return size
                if time.monotonic() > until:
                    break
        finally:
            remove_placement_group(probe)
    return None


def _on_this_node(what: Any, **options: Any) -> Any:
    """A Ray task or actor next to the driver, which must not be lost with some other node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(scheduling_strategy=here, **options)(what)


# ------------------------------------------------------------------------------------------------------------------------- attempt


def attempt(plan: Plan, size: int, number: int, ledger: Any, stop: StopRequest) -> dict[int, RankFailure] | None:
    """Train once with so many workers. Returns None when done, else what happened by rank (-1: to the group as a whole).

    Bounded: a group that does not start, does not end after a failure, or whose workers do not answer is cancelled; workers that hang
    while training leave by themselves (train.hang_timeout_sec).
    """
    import ray

    ray.get(ledger.open.remote(_stacks(plan)))
    scratch = Path(plan.out) / SCRATCH
    group = _on_this_node(Group, num_cpus=0, runtime_env={"env_vars": _group_environment(plan)}).remote()
    ended = group.fit.remote(plan, size, f"{ray.get_runtime_context().get_job_id()}-{number}", ledger)
    began, failed_at, told = time.monotonic(), None, False
    try:
        while not ray.wait([ended], timeout=POLL_SEC)[0]:
            notes: Notes = ray.get(ledger.read.remote())
            if stop.asked and not told:
                told = True
                ledger.stop.remote()
            now = time.monotonic()
            failed_at = failed_at or (now if notes.failures else None)
            if len(notes.begun) < size and now - began > START_LIMIT_SEC + plan.restart_timeout_sec:
                missing = sorted(set(range(size)) - notes.begun)
                return {-1: RankFailure(None, f"ranks {missing} of {size} did not start within {now - began:.0f} s")}
            if failed_at and now - failed_at > END_LIMIT_SEC:
                return {-1: RankFailure(None, f"the group did not end within {END_LIMIT_SEC:g} s"), **notes.failures}
        lost: dict[int, RankFailure] | None = ray.get(ended)
        return lost and {**lost, **ray.get(ledger.read.remote()).failures}
    except ray.exceptions.RayError as error:
        return {-1: RankFailure(None, f"{type(error).__name__}: {_first_line(error)}")}
    finally:
        ray.kill(group)  # and all that it started ends with it
        shutil.rmtree(scratch, ignore_errors=True)


class Group:
    """One TorchTrainer.fit, in a Ray actor: the controller and the workers that it starts end with it. (Cancelling a Ray task that has just
    ended can crash the driver; killing an actor cannot.)"""

    def fit(self, plan: Plan, size: int, name: str, ledger: Any) -> dict[int, RankFailure] | None:
        """Returns as attempt."""
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

        from cluster.network import MeetOnNodeAddress
        from foundation.train.ranks import group_timeout

        on_gpu = plan.gpus_per_worker > 0
        timeout_sec = int(group_timeout(plan.config.train.hang_timeout_sec).total_seconds())
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": plan.config.model_dump(mode="json"), "shards": plan.shards, "out": plan.out, "ledger": ledger},
            torch_config=MeetOnNodeAddress(backend="nccl" if on_gpu else "gloo", timeout_s=timeout_sec),
            scaling_config=ScalingConfig(num_workers=size, use_gpu=on_gpu, resources_per_worker=bundle(plan)),
            run_config=RunConfig(
                name=name,
                storage_path=str(Path(plan.out) / SCRATCH),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": worker_environment(plan)},
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            failures = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in error.worker_failures.items()}
            return {rank: RankFailure(None, f"lost ({_first_line(failure)})") for rank, failure in failures.items()}
        except ControllerError as error:
            return {-1: RankFailure(None, f"the group did not start ({_first_line(error.controller_failure)})")}
        return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _group_environment(plan: Plan) -> dict[str, str]:
    """Limits of Ray Train itself; they only matter where nobody else notices."""
    hang = plan.config.train.hang_timeout_sec
    return {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(max(30.0, plan.restart_timeout_sec)),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would wait for the end of a node that is drained; a lost node is lost
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(max(60.0, 2 * hang) if hang else 86400.0),
    }


def worker_environment(plan: Plan) -> dict[str, str]:
    """Environment of every worker: threads, accelerator, nothing sent anywhere unless asked."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(plan.cpus_per_worker))),
        "WANDB_MODE": os.environ.get("WANDB_MODE", plan.config.track.mode),
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every line of progress twice
    }
    if not plan.gpus_per_worker:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


# --------------------------------------------------------------------------------------------------------------------------- workers


@dataclass(frozen=True)
class Notes:
    """What workers told the driver, and the driver them. Bad input and defects stay; the rest is of one attempt."""

    bad_input: str | None = None
    defect: str | None = None
    stop: bool = False
    begun: frozenset[int] = frozenset()
    failures: dict[int, RankFailure] = field(default_factory=dict)
    old_stacks: frozenset[tuple[str, int]] = frozenset()  # stacks of hangs before this attempt


class Ledger:
    """The notes, in a Ray actor."""

    def __init__(self) -> None:
        self.notes = Notes()

    def open(self, old_stacks: frozenset[tuple[str, int]]) -> None:
        """Begin an attempt."""
        self.notes = Notes(self.notes.bad_input, self.notes.defect, self.notes.stop, old_stacks=old_stacks)

    def begin(self, rank: int) -> Notes:
        """A rank is about to train, unless the notes say otherwise."""
        self.notes = replace(self.notes, begun=self.notes.begun | {rank})
        return self.notes

    def fail(self, rank: int, failure: RankFailure) -> None:
        """Training has raised something on a rank that deserves another try."""
        self.notes = replace(self.notes, failures=self.notes.failures | {rank: failure})

    def blame_input(self, message: str) -> None:
        """Keep the first message."""
        self.notes = replace(self.notes, bad_input=self.notes.bad_input or message)

    def blame_program(self, message: str) -> None:
        """Keep the first message."""
        self.notes = replace(self.notes, defect=self.notes.defect or message)

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and leave."""
        self.notes = replace(self.notes, stop=True)

    def read(self) -> Notes:
        """All of it."""
        return self.notes


def train_worker(job: dict[str, Any]) -> None:
    """One training process; Ray Train has set up torch.distributed."""
    import ray

    ledger, context = job["ledger"], ray.train.get_context()
    rank = context.get_world_rank()
    notes: Notes = ray.get(ledger.begin.remote(rank))
    if notes.bad_input or notes.defect:
        return
    ended = threading.Event()
    try:
        from foundation.config import parse_config
        from foundation.report.page import leave_report
        from foundation.train.health import StopRequest
        from foundation.train.loop import train

        stop = StopRequest()
        if rank == 0:  # the loop tells the others
            threading.Thread(target=_listen, args=(ledger, stop, ended), daemon=True).start()
        config = parse_config(job["config"])
        train(config, Path(job["out"]), job["shards"], rank=rank, world_size=context.get_world_size(), stop=stop)
        if rank == 0:
            leave_report(Path(job["out"]))
    except InputError as error:
        ray.get(ledger.blame_input.remote(" ".join(str(error).split())))
        raise
    except WORTH_ANOTHER_TRY as error:
        ray.get(ledger.fail.remote(rank, RankFailure(type(error).__name__, _first_line(error))))
        raise
    except Exception as error:
        ray.get(ledger.blame_program.remote(f"{type(error).__name__}: {error}"))
        raise
    finally:
        ended.set()


def _listen(ledger: Any, stop: StopRequest, ended: threading.Event) -> None:
    """Pass the driver's request to stop on to the loop."""
    import ray

    while not ended.wait(POLL_SEC):
        try:
            stop.asked = stop.asked or ray.get(ledger.read.remote()).stop
        except ray.exceptions.RayError:
            return  # the driver is gone, and this process will follow it
