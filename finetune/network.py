"""A neural head on the pretrained model, with the model frozen, adapted by LoRA, or trained whole; several properties together.

    polymer --pretrained encoders and trunk (+ adapters)--> embedding --\\
            --------------------------- descriptors, sizes, environments --> perceptron --> one value a property

Training stops where the error of the validation part is smallest. The loss of a property that a polymer has no value of is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.errors import InputError

Encode = Callable[[NDArray[np.int64]], Tensor]  # rows of polymers -> (R, D) embedding

PATHS = ("graph.", "sequence.", "chain_class", "unit_class", "trunk.")  # parts of an objective that read a polymer without its shape


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is trained.

    Attributes:
        hidden: width of the two hidden layers.
        dropout: in the perceptron.
        lr, adapter_lr: of the perceptron, and of adapters or of the whole model.
        weight_decay: of both.
        batch: polymers a step.
        epochs, patience: passes over the training part at most, and without a smaller validation error.
        steps: at most, of all epochs.
        teachers: weight of properties other than the first in the loss.
    """

    hidden: int = 256
    dropout: float = 0.15
    lr: float = 1e-3
    adapter_lr: float = 1e-3
    weight_decay: float = 1e-2
    batch: int = 64
    epochs: int = 100
    patience: int = 15
    steps: int = 2_000
    teachers: float = 0.3


class Perceptron(nn.Module):
    """(R, D) embedding and (R, F) other inputs, both standardised -> (R, T)."""

    def __init__(self, embedding: int, others: int, num_tasks: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding + others, settings.hidden),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.hidden),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, num_tasks),
        )

    def forward(self, embedding: Tensor, others: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(torch.cat([embedding, others], -1)))


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
        head: in eval mode.
        adapted: weights of the pretrained model that were trained, by name; empty where it was frozen.
        epoch: whose weights these are.
        valid: error of the validation part there.
    """

    head: Perceptron
    adapted: dict[str, Tensor]
    epoch: int
    valid: float


def fit_network(
    encode: Encode,
    model: nn.Module | None,
    others: Tensor,
    y: Tensor,
    size: NDArray[np.integer],
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    width: int,
    settings: NetworkSettings,
    seed: int,
) -> Fitted:
    """Train a perceptron, and with it what of the model is left to train.

    Args:
        encode: standardised embedding of rows.
        model: the pretrained objective behind encode, whose parameters with a gradient are trained; None: encode is a table.
        others: (P, F) other inputs.
        y: (P, T) standardised values, NaN where there is none; column 0 is the property that is judged.
        size: (P,) atoms of each polymer: a batch holds polymers of like size.
        train, valid: rows.
        width: columns of the embedding.
        settings: how.
        seed: of weights, order and dropout; the global generators stay as they are.

    Raises:
        InputError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Perceptron(width, others.shape[1], y.shape[1], settings)
        rng = np.random.default_rng(seed)
        trained = [] if model is None else [(name, own) for name, own in model.named_parameters() if own.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": settings.lr}]
        if trained:
            groups.append({"params": [own for _, own in trained], "lr": settings.adapter_lr})
        optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        start = [group["lr"] for group in groups]
        a_pass = math.ceil(len(train) / settings.batch)
        total = min(settings.steps, a_pass * settings.epochs)
        weight = torch.full((y.shape[1],), settings.teachers)
        weight[0] = 1.0
        best = (math.inf, 0, copy.deepcopy(head.state_dict()), {name: own.detach().clone() for name, own in trained})
        step = 0
        for epoch in range(1, math.ceil(total / a_pass) + 1):
            head.train()
            for rows in batches(train, size, settings.batch, rng):
                for group, rate in zip(optimiser.param_groups, start, strict=True):
                    group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))
                error, known = residuals(head(encode(rows), others[rows]), y[rows])
                loss = (weight * nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")).sum() / known.sum().clamp(
                    min=1
                )
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([own for group in groups for own in group["params"]], 1.0)
                optimiser.step()
                step += 1
            if not math.isfinite(loss.item()):
                raise InputError(
                    f"the loss is {loss.item()} in epoch {epoch}; lower the learning rate or look for values far from all others"
                )
            error, _ = residuals(predict_network(head, encode, others, valid, settings.batch), y[valid])
            now = float(error[:, 0].square().mean().sqrt())
            if now < best[0]:
                best = (now, epoch, copy.deepcopy(head.state_dict()), {name: own.detach().clone() for name, own in trained})
            elif epoch - best[1] >= settings.patience:
                break
        head.load_state_dict(best[2])
        with torch.no_grad():
            for name, own in trained:
                own.copy_(best[3][name])
    return Fitted(head.eval(), best[3], best[1], best[0])


def residuals(predicted: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(R, T) predicted - y, 0 where y is NaN, and (R, T) bool where it is not."""
    known = ~y.isnan()
    return torch.where(known, predicted - torch.where(known, y, torch.zeros_like(y)), torch.zeros_like(predicted)), known


@torch.no_grad()
def predict_network(head: Perceptron, encode: Encode, others: Tensor, rows: NDArray[np.int64], batch: int) -> Tensor:
    """(R, T) of rows, in their order; the head is left in eval mode."""
    head.eval()
    parts = [
        head(encode(rows[start : start + 4 * batch]), others[rows[start : start + 4 * batch]]) for start in range(0, len(rows), 4 * batch)
    ]
    return torch.cat(parts)


def batches(rows: NDArray[np.int64], size: NDArray[np.integer], batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """All rows in a random order, in batches of polymers of like size: sorted inside pools of 16 batches, which come shuffled."""
    order = rng.permutation(rows)
    cut = []
    for start in range(0, len(order), 16 * batch):
        pool = order[start : start + 16 * batch]
        pool = pool[np.argsort(size[pool], kind="stable")]
        cut += [pool[k : k + batch] for k in range(0, len(pool), batch)]
    for k in rng.permutation(len(cut)):
        yield cut[k]


__all__ = ["PATHS", "Fitted", "NetworkSettings", "Perceptron", "batches", "fit_network", "predict_network", "residuals"]
