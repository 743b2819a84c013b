"""Training processes under Ray Train: start them, let them train, say in one sentence how it ended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.console import Resumable
from data_shards.errors import InputError

if TYPE_CHECKING:
    from ray.train.v2.api.exceptions import WorkerGroupError

    from cluster.plan import Plan

WORTH_ANOTHER_TRY = (RuntimeError, OSError, Resumable)  # a lost peer, a device, a disk; everything else fails again in the same way
SCRATCH = ".ray"  # Ray Train wants a folder of its own; it holds nothing that a later run needs


def fit(plan: Plan) -> None:
    """Train on the cluster that Ray is connected to. A lost worker or node starts the group again from the last committed checkpoint.

    Raises:
        InputError: what the training loop said about the user's input.
        Resumable: workers failed more often than the plan allows.
        SystemExit: a defect of the program; exit code 1.
    """
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.network import MeetOnNodeAddress

    on_gpu = plan.gpus_per_worker > 0
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # where nothing is lost but with the job
    verdict = ray.remote(num_cpus=0)(Verdict).options(scheduling_strategy=here).remote()
    scratch = Path(plan.out) / SCRATCH
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": plan.config.model_dump(mode="json"),
            "shards": plan.shards,
            "out": plan.out,
            "verdict": verdict,
        },
        torch_config=MeetOnNodeAddress(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if on_gpu else {}),
        ),
        run_config=RunConfig(
            name=ray.get_runtime_context().get_job_id(),
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=plan.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": worker_environment(plan)},
        ),
    )
    lost = None
    try:
        trainer.fit()
    except WorkerGroupError as error:
        lost = error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    bad_input, defect = ray.get(verdict.read.remote())
    if bad_input is not None:
        raise InputError(bad_input)
    if defect is not None:
        raise SystemExit(f"a defect of this program, please report it with the log above: {defect}")
    if lost is not None:
        raise Resumable(
            f"workers failed {plan.max_failures + 1} times ({_first_line(lost)}); the same command continues from the last checkpoint"
        )


def _first_line(error: WorkerGroupError) -> str:
    rank, failure = min(error.worker_failures.items())
    return f"rank {rank}: {type(failure).__name__} {next(iter(str(failure).strip().splitlines()), '')}"


def worker_environment(plan: Plan) -> dict[str, str]:
    """Environment of every worker: threads, accelerator, nothing sent anywhere unless asked."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(plan.cpus_per_worker))),
        "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every line of progress twice
    }
    if not plan.gpus_per_worker:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


class Verdict:
    """What makes another try useless: bad input or a defect (a Ray actor). Workers ask here before they start again."""

    def __init__(self) -> None:
        self.bad_input: str | None = None
        self.defect: str | None = None

    def blame_input(self, message: str) -> None:
        """Keep the first message."""
        self.bad_input = self.bad_input or message

    def blame_program(self, message: str) -> None:
        """Keep the first message."""
        self.defect = self.defect or message

    def read(self) -> tuple[str | None, str | None]:
        """(bad input, defect), None where there is none."""
        return self.bad_input, self.defect


def train_worker(job: dict[str, Any]) -> None:
    """One training process; Ray Train has set up torch.distributed."""
    import ray

    verdict = job["verdict"]
    if any(ray.get(verdict.read.remote())):
        return
    try:
        from foundation.config import parse_config
        from foundation.train.loop import train

        context = ray.train.get_context()
        config = parse_config(job["config"])
        train(config, Path(job["out"]), job["shards"], rank=context.get_world_rank(), world_size=context.get_world_size())
    except InputError as error:
        ray.get(verdict.blame_input.remote(" ".join(str(error).split())))
        raise
    except WORTH_ANOTHER_TRY:
        raise
    except Exception as error:
        ray.get(verdict.blame_program.remote(f"{type(error).__name__}: {error}"))
        raise
