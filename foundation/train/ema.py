"""Moving average of the weights, kept in the same parts as the weights are."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.train.engine import Engine


class EMA:
    """ema <- d ema + (1 - d) weight with d = min(decay, (1 + step) / (10 + step)), fp32."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.parts: dict[str, Tensor] = {name: engine.local(p).detach().float().clone() for name, p in engine.parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number step (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.engine.parameters():
            self.parts[name].lerp_(self.engine.local(parameter).float(), 1 - decay)

    def whole(self) -> dict[str, Tensor]:
        """Full tensors on the CPU; every rank must call it."""
        return {name: self.engine.whole(p, self.parts[name]).cpu().contiguous() for name, p in self.engine.parameters()}

    def load(self, whole: dict[str, Tensor], rank: int) -> None:
        """Inverse of whole()."""
        for name, parameter in self.engine.parameters():
            self.parts[name] = self.engine.part(parameter, whole[name], rank).to(self.engine.device).clone()
