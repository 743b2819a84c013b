"""Training processes under Ray Train: start them, let them train, say in one sentence how it ended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.console import Resumable
from data_shards.errors import InputError

if TYPE_CHECKING:
    from cluster.plan import Plan

SCRATCH = ".ray"  # Ray Train wants a folder of its own; it holds nothing that a later run needs


def fit(plan: Plan) -> None:
    """Train on the cluster that Ray is connected to. A lost worker or node starts the group again from the last committed checkpoint.

    Raises:
        InputError: what the training loop said about the user's input.
        Resumable: more workers were lost than the plan allows.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    on_gpu = plan.gpus_per_worker > 0
    verdict = ray.remote(num_cpus=0)(Verdict).remote()
    scratch = Path(plan.out) / SCRATCH
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": plan.config.model_dump(mode="json"),
            "shards": plan.shards,
            "out": plan.out,
            "verdict": verdict,
        },
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
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
    try:
        trainer.fit()
    except WorkerGroupError as error:
        if ray.get(verdict.read.remote()) is None and any(isinstance(e, RayActorError) for e in error.worker_failures.values()):
            raise Resumable(
                f"workers were lost {plan.max_failures + 1} times; the same command continues from the last checkpoint"
            ) from None
        if ray.get(verdict.read.remote()) is None:
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    said = ray.get(verdict.read.remote())
    if said is not None:
        raise InputError(said)


def worker_environment(plan: Plan) -> dict[str, str]:
    """Environment of every worker: threads, accelerator, nothing sent anywhere unless asked."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(plan.cpus_per_worker))),
        "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    }
    if not plan.gpus_per_worker:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


class Verdict:
    """What a worker found wrong with the user's input (a Ray actor). A second try would find the same, so workers ask here first."""

    def __init__(self) -> None:
        self.message: str | None = None

    def write(self, message: str) -> None:
        """Keep the first message."""
        self.message = self.message or message

    def read(self) -> str | None:
        """The message, or None."""
        return self.message


def train_worker(job: dict[str, Any]) -> None:
    """One training process; Ray Train has set up torch.distributed."""
    import ray

    from foundation.config import parse_config
    from foundation.train.loop import train

    verdict = job["verdict"]
    if ray.get(verdict.read.remote()) is not None:
        return
    context = ray.train.get_context()
    try:
        train(
            parse_config(job["config"]),
            Path(job["out"]),
            job["shards"],
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
        )
    except InputError as error:
        ray.get(verdict.write.remote(str(error)))
        raise
