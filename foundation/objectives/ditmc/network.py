"""What the network of DiTMC is made of: a graph conditioner, tokens of pairs, and transformer blocks whose attention multiplies by them.

Two position schemes live here. `ape`: coordinates join the tokens of atoms once, and pairs speak of the graph alone, so that their gates
take one value for each class of pairs. `rpe`: displacements join the tokens of pairs. The equivariant one is in equivariant.py.

Source: Frank et al., Sampling 3D molecular conformers with diffusion transformers (DiTMC), arXiv 2506.15378, sections 3.2 to 3.4; blocks:
Peebles, Xie, DiT, arXiv 2212.09748; conditioner: Pfaff et al., MeshGraphNets, arXiv 2010.03409. Differs: docs/objectives/ditmc.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foundation.molecules import BONDS, FEATURES, NUM_CLASSES, Molecules, possible_classes
from foundation.objectives.ditmc.config import DiTMCConfig

NUM_ELEMENTS = 119
NOWHERE = -1e9  # logit of a pair that is not there


def perceptron(width_in: int, width: int, *, bias: bool = True) -> nn.Sequential:
    """Two layers with a SiLU between."""
    return nn.Sequential(nn.Linear(width_in, width, bias=bias), nn.SiLU(), nn.Linear(width, width, bias=bias))


class Time(nn.Module):
    """(B,) -> (B, D): sines and cosines of learned frequencies, then a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(width // 4))
        self.mlp = perceptron(width // 2, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t.float()[:, None] * self.frequency
        return torch.as_tensor(self.mlp(torch.cat([angle.cos(), angle.sin()], -1)))


@dataclass(frozen=True)
class Known:
    """What the graph says, once for all times.

    Attributes:
        element: (B, n, D) tokens that atoms begin with.
        atoms: (B, n, D) of the conditioner, zero where nothing is told.
        bonds: (E, D) of the conditioner.
        classes: (B, n, n) of pairs; NUM_CLASSES where nothing is told.
        bond_place: (E,) places of bonds in the flattened (B n n) pairs, (0,) where nothing is told.
        mask: (B, n).
    """

    element: Tensor
    atoms: Tensor
    bonds: Tensor
    classes: Tensor
    bond_place: Tensor
    mask: Tensor


class Conditioner(nn.Module):
    """Message passing over bonds, and the seeds of atoms. A molecule of which nothing is told has neither elements nor bonds nor classes.

    Source: MeshGraphNets as DiTMC has it: no residuals, sums of messages. Differs: one-hot FEATURES, of which none depends on how atoms are
    numbered; configuration comes by the classes of pairs.
    """

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        width = config.width
        self.element = nn.Embedding(NUM_ELEMENTS + 1, width)  # the last row: nothing is told
        self.node, self.node_norm = perceptron(sum(FEATURES.values()), width), nn.LayerNorm(width)
        self.edge, self.edge_norm = perceptron(sum(BONDS.values()), width), nn.LayerNorm(width)
        self.messages = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(3 * width), *perceptron(3 * width, width)) for _ in range(config.graph_layers)
        )
        self.updates = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2 * width), *perceptron(2 * width, width)) for _ in range(config.graph_layers)
        )

    def forward(self, molecules: Molecules, told: Tensor | None = None) -> Known:
        """told: (B,) bool, False where nothing but the number of atoms may be known; None: all are told."""
        rows, n = molecules.mask.shape
        h = self.node_norm(self.node(_one_hot(molecules.atom_feat, FEATURES).reshape(rows * n, -1)))
        e = self.edge_norm(self.edge(_one_hot(molecules.bond_feat, BONDS)))
        source, target = molecules.bond_atom
        for message, update in zip(self.messages, self.updates, strict=True):
            e = message(torch.cat([h[source], h[target], e], -1))
            h = update(torch.cat([h, torch.zeros_like(h).index_add(0, target, e.to(h.dtype))], -1))
        h = h.view(rows, n, -1) * molecules.mask[..., None]
        element, classes = molecules.atom_feat[..., 0].clamp(max=NUM_ELEMENTS - 1), molecules.classes
        place = source * n + target % n
        if told is not None:
            h = h * told[:, None, None]
            element = torch.where(told[:, None], element, NUM_ELEMENTS)
            classes = torch.where(told[:, None, None], classes, NUM_CLASSES)
            kept = told[source // n]
            e, place = e[kept], place[kept]
        return Known(self.element(element), h, e, classes, place, molecules.mask)


def _one_hot(values: Tensor, sizes: dict[str, int]) -> Tensor:
    """(..., F) -> (..., sum of sizes)."""
    return torch.cat([F.one_hot(values[..., k].clamp(0, size - 1), size) for k, size in enumerate(sizes.values())], -1).float()


class Pairs(nn.Module):
    """Tokens of pairs, which all blocks share."""

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        width = config.width
        self.by_class = config.condition == "all_pair"
        self.relative = config.scheme == "rpe"
        self.classes = nn.Embedding(NUM_CLASSES + 1, width) if self.by_class else None  # the last row: nothing is told
        self.graph = perceptron(width, width) if self.by_class else None
        self.apart = None if self.by_class else nn.Parameter(torch.ones(width))  # of pairs that are not bonded
        self.displacement = perceptron(3, width, bias=False) if self.relative else None

    def table(self) -> Tensor:
        """(NUM_CLASSES + 1, D) of each class."""
        assert self.classes is not None
        assert self.graph is not None
        return torch.as_tensor(self.graph(self.classes.weight))

    def forward(self, x: Tensor, known: Known, rows: slice) -> Tensor:
        """(B, I, n, D) tokens of the atoms `rows` with all others; x (B, n, 3)."""
        if self.by_class:
            u = self.table()[known.classes[:, rows]]
        else:
            assert self.apart is not None
            batch, n = known.mask.shape
            flat = self.apart.expand(batch * n * n, -1).index_put((known.bond_place,), known.bonds.to(self.apart.dtype))
            u = flat.view(batch, n, n, -1)[:, rows]
        if self.displacement is not None:
            u = u + self.displacement(x[:, None] - x[:, rows, None])
        return u


class Attention(nn.Module):
    """Attention to all other atoms, whose products and values are multiplied by tokens of pairs.

    logit_ij = sum_c q_ic k_jc r_ijc / sqrt(d), o_i = sum_j alpha_ij f_ij v_j, with r and f linear in u_ij; an atom does not see itself.
    """

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 2 * width, bias=False)
        self.scale = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, width)

    def forward(self, y: Tensor, u: Callable[[slice], Tensor], mask: Tensor, block: int) -> Tensor:
        """(B, n, D), with the tokens of pairs made `block` atoms at a time. y (B, n, D); mask (B, n)."""
        n = y.shape[1]
        query, key, value = self.qkv(y).chunk(3, -1)

        def part(start: int) -> Tensor:
            rows = slice(start, start + block)
            return self._mixed(query[:, rows], key, value, u(rows), mask, start)

        starts = range(0, n, block)
        saving = torch.is_grad_enabled() and len(starts) > 1
        mixed = torch.cat([checkpoint(part, start, use_reentrant=False) if saving else part(start) for start in starts], 1)
        return torch.as_tensor(self.out(mixed * self.scale))

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor, u: Tensor, mask: Tensor, start: int) -> Tensor:
        rows, some, n, width = u.shape
        split = (self.heads, width // self.heads)
        r, f = self.gates(u).chunk(2, -1)
        keyed = (r * key[:, None]).view(rows, some, n, *split)
        logits = torch.einsum("bihd,bijhd->bhij", query.view(rows, some, *split), keyed)
        alpha = weights(logits, mask, start, split[1])
        filtered = (f * value[:, None]).view(rows, some, n, *split)
        return torch.einsum("bhij,bijhd->bihd", alpha, filtered).reshape(rows, some, width)

    def by_class(self, y: Tensor, table: Tensor, classes: Tensor, mask: Tensor) -> Tensor:
        """The same where tokens of pairs are rows of a table (C, D): one product for each class instead of a vector for each pair.

        Exact; memory follows pairs x heads instead of pairs x width.
        """
        rows, n, width = y.shape
        split = (self.heads, width // self.heads)
        query, key, value = (own.view(rows, n, *split).transpose(1, 2) for own in self.qkv(y).chunk(3, -1))  # (B, H, n, d)
        r, f = (own.view(-1, self.heads, 1, split[1]) for own in self.gates(table).chunk(2, -1))  # (C, H, 1, d)
        logits, present = y.new_zeros(rows, self.heads, n, n), [*possible_classes(n), NUM_CLASSES]
        for k in present:
            logits = torch.where((classes == k)[:, None], (query * r[k]) @ key.transpose(2, 3), logits)
        alpha = weights(logits, mask, 0, split[1])
        mixed = torch.zeros_like(value)
        for k in present:
            mixed = mixed + (alpha * (classes == k)[:, None]) @ (value * f[k])
        return torch.as_tensor(self.out(mixed.transpose(1, 2).reshape(rows, n, width) * self.scale))


def weights(logits: Tensor, mask: Tensor, start: int, size: float) -> Tensor:
    """(B, H, I, n) shares of attention in float32, none to the atom itself or to padding, and none at all where there is no other atom."""
    n = logits.shape[-1]
    itself = torch.arange(start, start + logits.shape[2], device=mask.device)[:, None] == torch.arange(n, device=mask.device)
    there = (mask[:, None] & ~itself)[:, None]
    alpha = (logits.float() / math.sqrt(size)).masked_fill(~there, NOWHERE).softmax(-1)
    return (alpha * there).to(logits.dtype)


class Block(nn.Module):
    """adaLN-Zero: attention, then a perceptron, both shifted, scaled and gated by time and graph of each atom."""

    recomputable = True

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        width = config.width
        self.condition_norm = nn.LayerNorm(width)
        self.modulate = zero(nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, c: Tensor, mixed: Callable[[Attention, Tensor], Tensor]) -> Tensor:
        """h, c: (B, n, D) tokens and conditions; mixed: attention of these tokens over the pairs of the molecule."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulate(F.silu(self.condition_norm(c))).chunk(6, -1)
        h = h + gate_1 * mixed(self.attention, self.norm(h) * (1 + scale_1) + shift_1)
        return h + gate_2 * self.mlp(self.norm(h) * (1 + scale_2) + shift_2)


def zero(layer: nn.Linear) -> nn.Linear:
    """A layer that says nothing yet."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Transformer(nn.Module):
    """ape and rpe: (B, n, 3) of noisy atoms at times (B,) -> (B, n, 6), clean atoms (or velocities) and noise."""

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time = Time(width)
        self.position = perceptron(3, width, bias=False) if config.scheme == "ape" else None
        # ape that hears of bonds alone has pairs without tokens of classes; rpe has always displacements
        self.pairs = Pairs(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero(nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 6, bias=False)  # what is said is centred

    def forward(self, x: Tensor, t: Tensor, known: Known) -> Tensor:
        h = known.element
        if self.position is not None:
            h = h + self.position(x)
        c = known.atoms + self.time(t)[:, None]
        mixed = self._mixing(x, known)
        for block in self.blocks:
            h = block(h, c, mixed)
        shift, scale = self.modulate(F.silu(c)).chunk(2, -1)
        return torch.as_tensor(self.out(self.norm(h) * (1 + scale) + shift))

    def _mixing(self, x: Tensor, known: Known) -> Callable[[Attention, Tensor], Tensor]:
        if self.config.scheme == "ape" and self.pairs.by_class:
            table = self.pairs.table()
            return lambda attention, y: attention.by_class(y, table, known.classes, known.mask)
        rows, n = known.mask.shape
        block = max(1, self.config.pairs_at_once // (rows * n * self.config.width))
        whole = self.pairs(x, known, slice(0, n)) if block >= n else None

        def u(rows: slice) -> Tensor:
            return self.pairs(x, known, rows) if whole is None else whole[:, rows]

        return lambda attention, y: attention(y, u, known.mask, min(block, n))


__all__ = ["Attention", "Block", "Conditioner", "Known", "Pairs", "Time", "Transformer", "perceptron", "weights", "zero"]
