"""The contract between an objective and the rest of the platform. Nothing here knows polyconfm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from foundation.batch import Batch, Condition


@dataclass(frozen=True)
class LossOut:
    """Result of one forward pass.

    Attributes:
        loss: () differentiable scalar, mean over chains.
        terms: detached () scalars by name, logged as ``train/<name>``; a term that does not apply to this batch is absent.
        loss_per_chain: (B,) detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    loss_per_chain: Tensor


@dataclass(frozen=True)
class Failure:
    """One conformation that could not be made; it stays in the denominator of every metric."""

    chain: int  # index into the B x num chains of Samples
    reason: str


@dataclass(frozen=True)
class Samples:
    """Generated heavy-atom chains, order of atoms as in data_shards.schema.

    Attributes:
        x_ang: (sum of H, 3) float64, world frame, every chain centred; NaN for a failed chain.
        chain_ptr: (B * num + 1,) int64 offsets; chain b, conformation k is row b * num + k.
        failures: one entry for each chain that failed.
        x_unit_ang, link_dihedral_rad: the unit shapes (N, 3) and junction angles (U,) that the chains were assembled from, in the
            packed layout of the condition repeated num times chain by chain; None where the objective has no units.
        info: numbers worth recording (clashes resolved, ...).
    """

    x_ang: Tensor
    chain_ptr: Tensor
    failures: list[Failure]
    x_unit_ang: Tensor | None = None
    link_dihedral_rad: Tensor | None = None
    info: dict[str, float] | None = None


@dataclass(frozen=True)
class Embeddings:
    """What finetune/ reads: (U, D) per unit and (B, C) per chain."""

    unit: Tensor
    chain: Tensor


@dataclass(frozen=True)
class Capabilities:
    """What an objective can do, so that commands can refuse in one sentence instead of failing inside."""

    likelihood: bool = False
    needs_bonds: bool = True
    unit_level: bool = True
    needs_seed_conformers: bool = False
    molecules: bool = False  # draws molecules that are no polymers: sample_molecules
    units_at_once: int | None = None  # of a chain, the most that sampling holds at a time; None: all


@runtime_checkable
class Objective(Protocol):
    """An nn.Module with these methods. ``forward`` is ``loss`` so that distributed engines can wrap the module.

    ``embed`` reads the shapes of a Batch; of a Condition without coordinates it says what graph, sequence and length tell.
    An objective may also have ``score_networks``, the modules whose forward passes are counted as network calls, and, with
    ``capabilities.likelihood``, ``log_prob(batch)``: (B,) log density in nat of the batch's heavy-atom coordinates.
    """

    capabilities: Capabilities

    def loss(self, batch: Batch, rng: torch.Generator) -> LossOut: ...

    def sample(self, condition: Condition, num: int, rng: torch.Generator) -> Samples: ...

    def embed(self, given: Condition) -> Embeddings: ...
