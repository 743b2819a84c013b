"""The DeepSpeed engine: ZeRO 0-3 on CPU (gloo) and CUDA (nccl), behind the few calls that the loop needs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundation.batch import Batch
from foundation.config import RunConfig
from foundation.objectives.base import LossOut
from foundation.train.optim import build_optimizer

TAG = "state"  # DeepSpeed's folder inside a checkpoint of ours


def start_process_group(rank: int, world_size: int) -> torch.device:
    """Join the process group named by the environment, or make one of this process alone; returns the device of this rank."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world_size)
    return device


class _Weighted(nn.Module):
    """What DeepSpeed wraps: the weighted loss as its first output, in the precision of the run."""

    def __init__(self, objective: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.objective = objective
        self.bf16 = bf16

    def forward(self, batch: Batch, rng: torch.Generator, weight: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.autocast(batch.chain_ptr.device.type, torch.bfloat16, enabled=self.bf16):
            out: LossOut = self.objective(batch, rng)
        return out.loss * weight, out.loss.detach(), out.terms


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dictionary of a run; the user's native keys win."""
    train = config.train
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.micro_batches_per_step // world_size,
        "gradient_clipping": train.grad_clip,
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
    }
    return _merge(derived, config.deepspeed)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _merge(base[k], v) for k, v in extra.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | extra | nested


class Engine:
    """An objective, its optimiser and its gradient, however they are spread over ranks."""

    def __init__(self, objective: nn.Module, config: RunConfig, device: torch.device, world_size: int) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        self.zero_stage, self.device, self.world_size = config.train.zero_stage, device, world_size
        self.skipped = 0
        self.current_is_finite = True
        wrapped = _Weighted(objective, config.train.precision == "bf16").to(device)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._finite_gradient)
        optimizer = build_optimizer(wrapped, config.train)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=wrapped, optimizer=optimizer, config=deepspeed_config(config, world_size), dist_init_required=False
        )

    def _finite_gradient(self, gradient: Tensor) -> Tensor:
        """Leave a micro-batch with a loss that is not finite out of the step, and single infinite entries in any case."""
        if not self.current_is_finite:
            return torch.zeros_like(gradient)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def accumulate(self, batch: Batch, rng: torch.Generator, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of one micro-batch; returns its loss and terms, detached."""
        weighted, loss, terms = self.engine(batch, rng, weight)
        self.current_is_finite = bool(loss.isfinite())
        self.skipped += not self.current_is_finite
        self.engine.backward(weighted)
        return loss, terms

    def after_micro_batch(self, lr: float) -> None:
        """Advance the accumulation; at its end clip, step and clear."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    @torch.no_grad()
    def evaluate(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a micro-batch without a gradient."""
        self.engine.eval()
        _, loss, terms = self.engine(batch, rng, 1.0)
        self.engine.train()
        return loss, terms

    # ------------------------------------------------------------------------------------------------ weights, whole or in parts

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names as in the bare objective."""
        return [(name.removeprefix("objective."), p) for name, p in self.engine.module.named_parameters()]

    def local(self, parameter: nn.Parameter) -> Tensor:
        """The part of a parameter that this rank holds: a flat shard under ZeRO 3, else all of it."""
        return parameter.ds_tensor if self.zero_stage == 3 else parameter.data  # type: ignore[attr-defined, no-any-return]

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """The whole tensor from the parts of all ranks; every rank must call it."""
        if self.zero_stage < 3:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world_size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]

    def part(self, parameter: nn.Parameter, whole: Tensor, rank: int) -> Tensor:
        """Inverse of whole()."""
        if self.zero_stage < 3:
            return whole
        size = self.local(parameter).numel()
        padded = torch.zeros(size * self.world_size, dtype=whole.dtype)
        padded[: whole.numel()] = whole.flatten()
        return padded[rank * size : (rank + 1) * size]

    def save(self, folder: Path) -> None:
        """Optimiser, weights and counters of all ranks, as DeepSpeed writes them."""
        self.engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path) -> None:
        """Inverse of save() at the same world size and ZeRO stage."""
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        assert path is not None, f"DeepSpeed found nothing in {folder}"


def reduce_sum(values: list[float], device: torch.device) -> list[float]:
    """Sum over ranks of a few numbers, in one call."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(v) for v in total]


def on_rank_zero(rank: int, work: Callable[[], None]) -> None:
    """Do something once while the other ranks wait."""
    if rank == 0:
        work()
    dist.barrier()
