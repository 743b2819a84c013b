"""Randomness of training is a function of counters, so there is no stream to save and none to lose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one micro-batch: the same noise on whatever rank and in whatever run it is computed.

    The global generators are set too, for layers such as dropout that know no other.
    """
    torch.manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On CPU only operations whose result does not change from run to run; the settings of before come back at the end.

    CUDA keeps its fast scatter kernels: sums over atoms may differ there in the last bit. Under ZeRO-3 DeepSpeed puts a function of its
    own in the place of torch.nn.functional.linear, for good, and it rounds otherwise; that is taken back too.
    """
    linear = torch.nn.functional.linear
    algorithms, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
