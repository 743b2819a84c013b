"""Moving average of the weights, kept in the same parts as the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from foundation.train.engine import Engine


class EMA:
    """ema <- d ema + (1 - d) weight in fp32, with d = min(decay, (1 + step) / (10 + step)): early weights are soon forgotten."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.parts = {name: engine.local(p).detach().float().clone() for name, p in engine.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.engine.parameters.items():
            self.parts[name].lerp_(self.engine.local(parameter).float(), 1 - decay)

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) one after the other, buffers as they are; every rank must exhaust it."""
        for name, parameter in self.engine.parameters.items():
            yield name, self.engine.whole(parameter, self.parts[name])
        yield from self.engine.buffers.items()

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Inverse of weights()."""
        self.parts = {name: self.engine.part(p, weights[name]) for name, p in self.engine.parameters.items()}
