"""Memory: layers that are computed twice instead of kept, and a rehearsal of the largest micro-batches before the first step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundation.errors import ConfigError

if TYPE_CHECKING:
    from foundation.batch import Batch
    from foundation.config import RunConfig
    from foundation.data.blend import Blend
    from foundation.data.order import MicroBatch, Order
    from foundation.molecules import Molecules
    from foundation.train.engine import Engine

log = logging.getLogger(__name__)
GIB = 2**30


def recompute_activations(module: nn.Module) -> int:
    """Let every layer whose class says ``recomputable = True`` keep its inputs alone and compute its inside again in the backward pass.

    Such a layer draws no noise but dropout's and calls its parts as modules, so that ZeRO-3 gathers their weights again. The numbers are
    the same to the last bit. Returns how many layers there are.
    """
    layers = [part for part in module.modules() if getattr(type(part), "recomputable", False)]
    for layer in layers:
        # ZeRO-3 takes the weights away after a layer, so that their shape is another when torch compares the second pass with the first
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, determinism_check="none")
    return len(layers)


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found.

    Attributes:
        largest: micro-batch of the most atoms, padding included.
        peak_bytes: of the device's memory; 0 where torch does not count it.
        seconds: how long it took.
    """

    largest: MicroBatch
    peak_bytes: int
    seconds: float


def largest_micro_batches(order: Order | Blend, samples_seen: int) -> list[MicroBatch]:
    """Those of the coming epochs with the most atoms, the most pairs of atoms inside units, and the most pairs of units inside chains.

    Which of them needs the most memory depends on the model; padding is counted.
    """
    coming = order.coming(samples_seen)
    found: list[MicroBatch] = []
    for power_atoms, power_units in ((1, 1), (2, 1), (1, 2)):

        def size(micro: MicroBatch, a: int = power_atoms, u: int = power_units) -> int:
            chains, units, atoms = order.shape(micro)
            return int(chains * units**u * atoms**a)

        largest = max(coming, key=size)
        if largest not in found:
            found.append(largest)
    return found


def rehearse(
    engine: Engine, config: RunConfig, order: Order | Blend, samples_seen: int, read: Callable[[MicroBatch], Batch | Molecules]
) -> Rehearsed | None:
    """Steps with the largest micro-batches, whose gradient is made NaN so that they change nothing; every rank must call it.

    All ranks take the same micro-batches, so memory runs out on all of them or on none, up to what else lives on their devices.

    Args:
        read: makes the batch of a micro-batch.

    Returns:
        None where train.memory_check is off (auto: where there is no GPU).

    Raises:
        ConfigError: memory ran out; says what to lower.
    """
    device = engine.ranks.device
    if config.train.memory_check == "off" or (config.train.memory_check == "auto" and device.type != "cuda"):
        return None
    began, random = time.perf_counter(), torch.get_rng_state()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    micro_batches = largest_micro_batches(order, samples_seen)
    per_step = config.train.micro_batches_per_step // engine.ranks.world_size
    rows = [micro_batches[k % len(micro_batches)] for k in range(per_step * math.ceil(len(micro_batches) / per_step))]
    for k, micro in enumerate(rows):
        last = k % per_step == per_step - 1
        try:
            made = engine.forward(read(micro).to(device), torch.Generator(device).manual_seed(micro.noise_seed), math.nan)
            engine.backward(made.to_differentiate, last=last)
            if last:
                stepped = engine.step(0.0)
                assert not stepped.applied, "a rehearsal changes nothing"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(_sentence(config, order, micro, error, device)) from None
    torch.set_rng_state(random)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Rehearsed(micro_batches[0], peak, time.perf_counter() - began)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the host (torch says that in a RuntimeError)."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


def _sentence(config: RunConfig, order: Order | Blend, micro: MicroBatch, error: BaseException, device: torch.device) -> str:
    chains, units, atoms = order.shape(micro)
    real = order.num_atoms(micro)
    what = f"a micro-batch of {chains} chain{'s' if chains > 1 else ''} (up to {units} units of {atoms} atoms, {real} atoms in all)"
    used = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = f"; {(total - free) / GIB:.1f} of {total / GIB:.1f} GiB were in use"
    fixes = list(_fixes(config, alone=chains == 1 and real > config.data.token_budget))
    why = " ".join(str(error).split()).split(". ")[0][:160]
    return f"memory does not suffice for {what}{used} ({type(error).__name__}: {why}); {', or '.join(fixes)}"


def _fixes(config: RunConfig, *, alone: bool) -> Sequence[str]:
    """What the configuration leaves to try, the cheapest first."""
    train = config.train
    fixes = []
    if not train.activation_checkpointing:
        fixes.append("set train.activation_checkpointing=true")
    if alone:
        fixes.append("build the shards with fewer --num-units, since a chain longer than data.token_budget comes whole")
    else:
        fixes.append(f"lower data.token_budget={config.data.token_budget} (and raise train.micro_batches_per_step as much)")
    if train.zero_stage < 3:
        fixes.append(f"set train.zero_stage={max(2, train.zero_stage + 1)} on several GPUs")
    if train.offload == "none":
        fixes.append("set train.offload=optimizer")
    return fixes
