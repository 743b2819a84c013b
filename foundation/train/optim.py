"""AdamW with decay on matrices only, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from foundation.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; weight decay on the matrices of linear maps, not on biases, norms, embeddings or tokens."""
    matrices = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine to min_lr_fraction x lr. step counts from 0."""
    warm = max(1, round(config.warmup_fraction * config.num_steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, config.num_steps - warm))
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * share)))
