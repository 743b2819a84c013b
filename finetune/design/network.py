"""What a clean graph is, said of a noisy one: a transformer over atoms whose attention knows the pairs, and pairs that know their atoms.

Pairs also multiply along paths of two, which is what rings are counted by (Maron et al., Provably powerful graph networks, arXiv
1905.11136). Atoms come in the order of a SMILES, and the network is told their places: without them it would have to choose among all
atoms of a class by chance. Conditions enter by adaptive normalisation that begins as the identity (Peebles, Xie, DiT, arXiv 2212.09748);
random walks on the noisy graph tell rings apart (Dwivedi et al., arXiv 2110.07875).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.design.graphs import MAX_ATOMS, NONE, NUM_CLASSES, NUM_KINDS, STAR, Graphs
from finetune.design.process import STEPS
from foundation.nn.embedding import FourierFeatures

WALKS = 8  # steps of random walks


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes.

    Attributes:
        width: of atoms.
        pair_width: of pairs.
        paths: products of pairs with a common atom, by which rings are seen.
        num_layers, num_heads: of the transformer.
        num_properties: numbers that may be asked for.
        reference_width: of the embedding of a reference polymer, 0 where there is none.
    """

    width: int = 128
    pair_width: int = 32
    paths: int = 16
    num_layers: int = 6
    num_heads: int = 8
    num_properties: int = 0
    reference_width: int = 0


@dataclass(frozen=True)
class Asked:
    """Conditions of B graphs; NaN where nothing is asked.

    Attributes:
        properties: (B, P) standardised.
        reference: (B, R) standardised embedding of another polymer.
    """

    properties: Tensor
    reference: Tensor

    def null(self) -> Asked:
        """The same, with nothing asked."""
        return Asked(torch.full_like(self.properties, torch.nan), torch.full_like(self.reference, torch.nan))

    def rows(self, chosen: Tensor) -> Asked:
        """Of some of the graphs."""
        return Asked(self.properties[chosen], self.reference[chosen])


class _Condition(nn.Module):
    """(B, D) of time, size and what is asked."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.width
        self.time, self.size = FourierFeatures(width), FourierFeatures(width)
        self.properties = nn.ModuleList(FourierFeatures(width) for _ in range(config.num_properties))
        self.nothing = nn.Parameter(torch.zeros(config.num_properties, width))
        self.reference = nn.Linear(config.reference_width, width) if config.reference_width else None
        self.no_reference = nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor, size: Tensor, asked: Asked) -> Tensor:
        c = self.time(t / STEPS) + self.size(size / 32)
        for k, embed in enumerate(self.properties):
            value = asked.properties[:, k]
            there = ~value.isnan()
            c = c + torch.where(there[:, None], embed(torch.where(there, value, 0.0)), self.nothing[k])
        if self.reference is not None:
            there = ~asked.reference.isnan().any(1)
            c = c + torch.where(there[:, None], self.reference(torch.where(there[:, None], asked.reference, 0.0)), self.no_reference)
        return c


class _Layer(nn.Module):
    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        d, e = config.width, config.pair_width
        self.num_heads = config.num_heads
        self.modulate = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.bias = nn.Linear(e, config.num_heads, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.ends, self.pair_in = nn.Linear(d, 2 * e), nn.Linear(e, 2 * e)
        self.pair_norm, self.pair_out = nn.LayerNorm(e), nn.Linear(2 * e, e)
        self.path_norm, self.paths, self.path_out = nn.LayerNorm(e), nn.Linear(e, 2 * config.paths), nn.Linear(config.paths, e)

    def forward(self, x: Tensor, pair: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, length, width = x.shape
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulate(c)[:, None].chunk(6, -1)
        query, key, value = (
            self.qkv(self.norm(x) * (1 + scale_1) + shift_1).view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        bias = self.bias(pair).permute(0, 3, 1, 2).masked_fill(~mask[:, None, None], -1e4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + gate_1 * self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        x = x + gate_2 * self.mlp(self.norm(x) * (1 + scale_2) + shift_2)
        ends = self.ends(x)
        hidden = nn.functional.gelu(self.pair_in(self.pair_norm(pair)) + ends[:, :, None] + ends[:, None])
        pair = pair + self.pair_out(hidden)
        return x, pair + self.path_out(self._joined(pair, mask))

    def _joined(self, pair: Tensor, mask: Tensor) -> Tensor:
        """(B, N, N, paths) of every pair what its two sides say over every third atom, symmetric."""
        both = (mask[:, :, None] & mask[:, None])[:, None]
        one, other = (self.paths(self.path_norm(pair)).permute(0, 3, 1, 2) * both).chunk(2, 1)
        found = one @ other / mask.sum(1).sqrt()[:, None, None, None]
        return (found + found.transpose(2, 3)).permute(0, 2, 3, 1)


class Denoiser(nn.Module):
    """Logits of clean atoms (B, N, A) and clean pairs (B, N, N, K), symmetric."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        d, e = config.width, config.pair_width
        self.condition = _Condition(config)
        self.atoms = nn.Embedding(NUM_CLASSES, d)
        self.around = nn.Linear(WALKS + NUM_KINDS, d)
        self.place, self.from_end, self.apart = nn.Embedding(MAX_ATOMS, d), nn.Embedding(MAX_ATOMS, d), nn.Embedding(MAX_ATOMS, e)
        self.pairs = nn.Linear(NUM_KINDS + WALKS, e)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(d)
        self.to_atoms = nn.Linear(d, NUM_CLASSES)
        self.ends, self.product, self.pair_norm = nn.Linear(d, 2 * e), nn.Linear(d, 2 * e), nn.LayerNorm(e)
        self.pair_in, self.to_pairs = nn.Linear(e, 2 * e), nn.Linear(2 * e, NUM_KINDS)

    def forward(self, noisy: Graphs, t: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Chances as logits.

        Args:
            noisy: graphs at times t (B,).
            t: in steps of the process.
            asked: conditions.
        """
        mask, size = noisy.mask, noisy.size
        c = nn.functional.silu(self.condition(t.float(), size.float(), asked))
        kinds = nn.functional.one_hot(noisy.bonds, NUM_KINDS).float()
        walks = random_walks((noisy.bonds != NONE).float())
        counts = kinds[..., NONE + 1 :].sum(2)
        returns = walks.diagonal(dim1=1, dim2=2).transpose(1, 2)
        share = (counts.sum(-1) / size[:, None]).clamp(max=4)[..., None]
        place = torch.arange(mask.shape[1])
        x = self.atoms(noisy.atoms) + self.around(torch.cat([returns, counts, share], -1)) + self.place(place)
        x = x + self.from_end((size[:, None] - 1 - place).clamp(min=0))
        pair = self.pairs(torch.cat([kinds, walks + walks.transpose(1, 2)], -1)) + self.apart((place[:, None] - place).abs())
        for layer in self.layers:
            x, pair = layer(x, pair, c, mask)
        x = self.norm(x)
        atoms = self.to_atoms(x)
        atoms[..., STAR] = -1e4  # the two stars are known
        ends, product = self.ends(x), self.product(x)
        hidden = self.pair_in(self.pair_norm(pair)) + ends[:, :, None] + ends[:, None] + product[:, :, None] * product[:, None]
        logits = self.to_pairs(nn.functional.gelu(hidden))
        return atoms, logits + logits.transpose(1, 2)


def random_walks(adjacency: Tensor) -> Tensor:
    """(B, N, N, WALKS) chances to be at j after 1, 2, ... steps from i."""
    step = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
    found = [step]
    for _ in range(WALKS - 1):
        found.append(found[-1] @ step)
    return torch.stack(found, -1)


__all__ = ["Asked", "Denoiser", "DenoiserConfig", "random_walks"]
