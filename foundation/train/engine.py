"""The DeepSpeed engine: ZeRO 0-3 on CPU (gloo) and CUDA (nccl), behind the few calls that the loop needs.

What DeepSpeed does that one would not expect is in docs/decisions/0002-deepspeed-on-cpu.md.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundation.batch import Batch
from foundation.config import RunConfig
from foundation.molecules import Molecules
from foundation.objectives.base import LossOut
from foundation.train.memory import recompute_activations
from foundation.train.optim import build_optimizer
from foundation.train.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of every parameter
LARGEST_BUCKET = 200_000_000  # elements that travel together


@dataclass(frozen=True)
class Forward:
    """One micro-batch.

    Attributes:
        to_differentiate: () what backward starts from.
        loss: () detached.
        terms: detached () by name.
    """

    to_differentiate: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Stepped:
    """One optimiser step: norm of the gradient before clipping, None where it was not finite and nothing was changed."""

    grad_norm: float | None

    @property
    def applied(self) -> bool:
        return self.grad_norm is not None


class _Weighted(nn.Module):
    """What DeepSpeed wraps. Its outputs are tensors in a tuple and a dict: ZeRO-3 hangs its hooks on those."""

    def __init__(self, objective: nn.Module, autocast: bool, reach_all: bool) -> None:
        super().__init__()
        self.objective = objective
        self.autocast = autocast
        self.reach_all = reach_all

    def forward(self, batch: Batch | Molecules, rng: torch.Generator, weight: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.autocast):
            out: LossOut = self.objective(batch, rng)
        loss = out.loss.float()
        # a loss that is not finite makes the whole gradient NaN, so that the one check of the gradient's norm sees it on every rank
        guard = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
        if self.reach_all:  # docs/decisions/0002-deepspeed-on-cpu.md: what a micro-batch does not reach keeps an old gradient
            loss = loss + 0.0 * torch.stack([p.view(-1)[0].float() for p in self.parameters() if p.requires_grad]).sum()
        return loss * guard * weight, out.loss.detach(), {name: value.detach() for name, value in out.terms.items()}


def deepspeed_config(config: RunConfig, world_size: int, num_trained: int) -> dict[str, Any]:
    """The DeepSpeed dictionary of a run; the user's native keys win."""
    train = config.train
    bucket = max(1, min(num_trained, LARGEST_BUCKET))
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.micro_batches_per_step // world_size,
        "gradient_clipping": train.grad_clip if train.zero_stage else 0.0,  # stage 0 is clipped in Engine.step, after the finite check
        "zero_optimization": {"stage": train.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if train.offload != "none":
        derived["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if train.offload == "optimizer+parameters":
        derived["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return _merge(derived, config.deepspeed)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _merge(base[k], v) for k, v in extra.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | extra | nested


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed without its noise, its compiler and its shared memory."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")  # deepspeed calls what torch renames
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # its all-reduce through shared memory is compiled at run time (minutes, or no compiler at all) and leaves segments after a SIGKILL
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


class Engine:
    """An objective, its optimiser and its gradient, however they are spread over ranks."""

    def __init__(self, objective: nn.Module, config: RunConfig, ranks: Ranks) -> None:
        deepspeed = _import_deepspeed(ranks.device)
        self._access = deepspeed.utils
        self.ranks, self.zero_stage, self.grad_clip = ranks, config.train.zero_stage, config.train.grad_clip
        native_bf16 = bool(config.deepspeed.get("bf16", {}).get("enabled"))
        self.offloaded = config.train.offload != "none"
        autocast = config.train.precision == "bf16" or native_bf16
        wrapped = _Weighted(objective, autocast, reach_all=self.offloaded and self.zero_stage < 3).to(ranks.device)
        if config.train.activation_checkpointing:
            recompute_activations(wrapped)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        numbers = sum(p.numel() for p in trained)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=wrapped,
            optimizer=build_optimizer(wrapped, config.train),
            config=deepspeed_config(config, ranks.world_size, numbers),
            dist_init_required=False,
        )
        self.is_plain = isinstance(self.optimizer, torch.optim.Optimizer)  # no ZeRO and no low-precision wrapper around AdamW
        self.parameters: dict[str, nn.Parameter] = {n.removeprefix("objective."): p for n, p in self.engine.module.named_parameters()}
        kept = {n.removeprefix("objective."): b for n, b in self.engine.module.state_dict().items()}
        self.buffers: dict[str, Tensor] = {n: b for n, b in kept.items() if n not in self.parameters}
        self._start_moments()

    # ------------------------------------------------------------------------------------------------------------- one step

    def forward(self, batch: Batch | Molecules, rng: torch.Generator, weight: float) -> Forward:
        """Loss of a micro-batch; weight is its share of the step."""
        return Forward(*self.engine(batch, rng, weight))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch; with the last one of the step the ranks' gradients are averaged."""
        self.engine.backward(loss)
        if not last:
            self.engine.step()  # counts the micro-batch, changes nothing

    def step(self, lr: float) -> Stepped:
        """Clip and update, unless the gradient is not finite; every rank sees the same norm and decides the same."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = self._clip_plain() if self.is_plain else None
        if self.zero_stage == 3 and self.offloaded:
            self.optimizer._finalize_offload_gradient_accumulation()  # else what the last micro-batch does not reach is lost
        self.engine.step()
        if self.zero_stage == 3:
            self.optimizer.grad_partitions_flat_buffer.zero_()  # else a parameter that the next step does not reach keeps this gradient
            for flat in self.optimizer.fp32_partitioned_groups_flat if self.offloaded else ():
                if flat.grad is not None:
                    flat.grad.zero_()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else float("nan")
        return Stepped(norm if torch.tensor(norm).isfinite() else None)

    def _clip_plain(self) -> float:
        """What ZeRO does inside its step: the finite check and the clipping. Without gradients AdamW changes nothing."""
        trained = [p for p in self.parameters.values() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # not reached by this step's losses; ZeRO counts that as zero
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(trained, self.grad_clip, norm)
        else:
            for parameter in trained:
                parameter.grad = None
        return float(norm)

    @torch.no_grad()
    def evaluate(self, batch: Batch | Molecules, rng: torch.Generator) -> Forward:
        """Loss of a micro-batch in evaluation mode, without a gradient."""
        self.engine.eval()
        out = self.forward(batch, rng, 1.0)
        self.engine.train()
        return out

    # ------------------------------------------------------------------------------------------------ weights, whole or in parts

    def local(self, parameter: nn.Parameter) -> Tensor:
        """The part of a parameter that this rank holds: a flat shard under ZeRO-3, else all of it."""
        return parameter.ds_tensor if self.zero_stage == 3 else parameter.data  # type: ignore[attr-defined, no-any-return]

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """The whole tensor from the parts of all ranks; every rank must call it."""
        if self.zero_stage < 3:
            return part
        parts = [torch.empty_like(part) for _ in range(self.ranks.world_size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """Inverse of whole(): what this rank holds of it, on its device."""
        whole = whole.to(self.ranks.device)
        if self.zero_stage < 3:
            return whole.clone()
        size = self.local(parameter).numel()
        padded = whole.new_zeros(size * self.ranks.world_size)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.ranks.rank * size : (self.ranks.rank + 1) * size].clone()

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 tensor) one after the other, buffers too; every rank must exhaust it. Names as in the bare objective."""
        for name, parameter in self.parameters.items():
            master = None if self.is_plain or not parameter.requires_grad else self._access.safe_get_full_fp32_param(parameter)
            yield name, (self.whole(parameter, self.local(parameter)).float() if master is None else master).detach()
        yield from self.buffers.items()

    # ---------------------------------------------------------------------------------------------------------- optimiser state

    def _start_moments(self) -> None:
        """AdamW's state from the start, so that a checkpoint can be written to it before the first step."""
        flat = self._flat_groups() if not self.is_plain else [p for p in self.parameters.values() if p.requires_grad]
        base = self.optimizer if self.is_plain else self.optimizer.optimizer
        for tensor in flat:
            base.state[tensor] = {"step": torch.zeros((), device=tensor.device), **{key: torch.zeros_like(tensor) for key in MOMENTS}}
        if hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_groups(self) -> list[Tensor]:
        """This rank's flat fp32 partitions, which are what the inner AdamW sees under ZeRO."""
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if hasattr(self.optimizer, name):
                return list(getattr(self.optimizer, name))
        raise AssertionError(f"{type(self.optimizer).__name__} has no flat partitions")

    @torch.no_grad()
    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """("exp_avg/<parameter>", whole tensor) and the like; every rank must exhaust it."""
        for name, parameter in self.parameters.items():
            for key in MOMENTS if parameter.requires_grad else ():
                whole = (
                    self.optimizer.state[parameter][key] if self.is_plain else self._access.safe_get_full_optimizer_state(parameter, key)
                )
                yield f"{key}/{name}", whole

    @property
    def updates(self) -> int:
        """Steps that AdamW has taken; skipped ones do not count."""
        base = self.optimizer if self.is_plain else self.optimizer.optimizer
        return int(next(iter(base.state.values()))["step"])

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], updates: int) -> None:
        """Fill masters and optimiser state; the parameters themselves hold the weights already (they were loaded before sharding)."""
        base = self.optimizer if self.is_plain else self.optimizer.optimizer
        for state in base.state.values():
            state["step"].fill_(float(updates))
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                continue
            if not self.is_plain:
                self._access.safe_set_full_fp32_param(parameter, weights[name].to(self.ranks.device))
            for key in MOMENTS:
                whole = moments[f"{key}/{name}"].to(self.ranks.device)
                if self.is_plain:
                    self.optimizer.state[parameter][key].copy_(whole)
                else:
                    self._access.safe_set_full_optimizer_state(parameter, whole, key)
