"""A real objective, as small as can be: predicts every unit's atom coordinates from their elements and slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.batch import ATOM_FEATURES, Batch
from foundation.objectives.base import Capabilities, Embeddings, LossOut, Samples


class Regressor(nn.Module):
    """Mean squared error of coordinates.

    Args:
        width: hidden channels.
        dropout: of the hidden layer, from the global generator.
        noise_ang: on the target, from the given generator.
    """

    capabilities = Capabilities()

    def __init__(self, width: int = 16, dropout: float = 0.0, noise_ang: float = 0.1) -> None:
        super().__init__()
        self.element = nn.Embedding(ATOM_FEATURES["element"], width)
        self.slot = nn.Embedding(64, width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 3)
        self.seldom = nn.Linear(width, 3)  # reached only by batches of more than one chain
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.noise_ang = noise_ang
        self.break_at: int | None = None  # seed of the generator with which the gradient becomes NaN

    def forward(self, batch: Batch, rng: torch.Generator) -> LossOut:
        return self.loss(batch, rng)

    def loss(self, batch: Batch, rng: torch.Generator) -> LossOut:
        chain = batch.unit_chain[batch.atom_unit]
        atom = batch.graph_ptr[chain] + batch.atom_slot
        h = self.element(batch.atom_feat[atom, 0]) + self.slot(batch.atom_slot)
        h = self.frozen(self.dropout(torch.tanh(self.hidden(h))))
        out = self.out(h) + (self.seldom(h) if batch.num_chains > 1 else 0.0)
        noise = self.noise_ang * torch.randn(out.shape, generator=rng, device=out.device)
        error = (out.float() * self.scale - batch.x_unit_ang - noise).square().sum(-1)
        if rng.initial_seed() == self.break_at:
            error = error * (error.detach() - error).sqrt()  # 0, but its gradient is not finite
        per_chain = error.new_zeros(batch.num_chains).index_add(0, chain, error) / torch.bincount(chain)
        terms = {"local": per_chain.mean().detach()} if batch.num_chains > 1 else {}
        return LossOut(per_chain.mean(), terms, per_chain.detach())

    def sample(self, condition: object, num: int, rng: torch.Generator) -> Samples:
        raise AssertionError("no test samples from it")

    def embed(self, batch: Batch) -> Embeddings:
        raise AssertionError("no test embeds with it")


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
