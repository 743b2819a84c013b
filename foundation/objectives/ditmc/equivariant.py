"""The equivariant position scheme, pe3: tokens of degree 0 and 1 of both parities, attention over relative positions.

Tokens are four tensors: scalars, pseudoscalars, vectors and pseudovectors. Up to the readout everything turns and reflects with the
molecule; there vectors and pseudovectors are added, so that the network turns with the molecule but may tell it from its mirror image.

Products of degrees up to 1 are written out: dot, cross, scaling. Tests hold them against e3nn.

Source: DiTMC, arXiv 2506.15378, section 3.4 and appendix; Unke, Maennel, e3x, arXiv 2401.07595 (basis, parities). Differs: tokens are
divided by the root mean square of vector lengths, not by the deviation of lengths, which has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foundation.geometry.vectors import safe_norm
from foundation.molecules import NUM_CLASSES
from foundation.nn.embedding import LARGEST_EXPONENT
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.network import Known, Time, perceptron, weights, zero

NUM_RADIAL = 64
EPS = 1e-6
VECTOR, PSEUDOVECTOR = 2, 5  # first components of these kinds among the eight
NEAREST_ANG = 1e-3  # below this a displacement has no direction


class Tokens(NamedTuple):
    """Features of atoms by how they turn and reflect; vectors carry x, y, z before the channels. None: there are none of this kind yet."""

    scalar: Tensor  # (B, n, D)
    pseudoscalar: Tensor | None = None  # (B, n, D)
    vector: Tensor | None = None  # (B, n, 3, D)
    pseudovector: Tensor | None = None  # (B, n, 3, D)

    def plus(self, gate: Tensor, other: Tokens) -> Tokens:
        """self + gate * other, gates (B, n, 4 D) one for each kind; what other has nothing of stays."""
        gates = gate.chunk(4, -1)
        out = []
        for kind, (own, new) in enumerate(zip(self, other, strict=True)):
            step = None if new is None else new * (gates[kind] if kind < 2 else gates[kind][:, :, None])
            out.append(step if own is None else own if step is None else own + step)
        return Tokens(*out)  # type: ignore[arg-type]


class KindLinear(nn.Module):
    """A linear map of each kind by itself, a bias on scalars alone.

    Args:
        width_in, width: channels.
        kinds: places in Tokens that there are.
    """

    def __init__(self, width_in: int, width: int, kinds: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.kinds = kinds
        self.maps = nn.ModuleList(nn.Linear(width_in, width, bias=kind == 0) for kind in kinds)

    def forward(self, x: Tokens) -> Tokens:
        out: list[Tensor | None] = [None] * 4
        for kind, layer in zip(self.kinds, self.maps, strict=True):
            out[kind] = layer(x[kind])
        return Tokens(*out)  # type: ignore[arg-type]


class KindNorm(nn.Module):
    """Scalars to mean 0 and deviation 1 over channels; every other kind to root mean square 1 of its lengths. No affine."""

    def forward(self, x: Tokens) -> Tokens:
        scalar = F.layer_norm(x.scalar, x.scalar.shape[-1:], eps=EPS)
        pseudoscalar = None if x.pseudoscalar is None else x.pseudoscalar * (x.pseudoscalar.square().mean(-1, keepdim=True) + EPS).rsqrt()
        return Tokens(scalar, pseudoscalar, *(None if own is None else normed(own) for own in x[2:]))


def normed(vectors: Tensor) -> Tensor:
    """(B, n, 3, D) over the root mean square of their lengths."""
    return vectors * (vectors.square().sum(2).mean(-1) + EPS).rsqrt()[..., None, None]


def modulated(x: Tokens, scale: list[Tensor], shift: Tensor) -> Tokens:
    """Scaled kind by kind (those that are there), scalars shifted too."""
    scalar = x.scalar * (1 + scale[0]) + shift
    if x.pseudoscalar is None:
        return Tokens(scalar)
    assert x.vector is not None
    assert x.pseudovector is not None
    return Tokens(
        scalar, x.pseudoscalar * (1 + scale[1]), x.vector * (1 + scale[2][:, :, None]), x.pseudovector * (1 + scale[3][:, :, None])
    )


class Basis(NamedTuple):
    """Of pairs, channels first: radial functions of degree 0 and 1, the second over the distance, so that it multiplies displacements."""

    radial_0: Tensor  # (B, NUM_RADIAL, I, n)
    radial_1: Tensor  # (B, NUM_RADIAL, I, n), 1 / angstrom
    here: Tensor  # (B, I, 3) angstrom
    there: Tensor  # (B, n, 3) angstrom


def bernstein(distance_ang: Tensor, number: int = NUM_RADIAL) -> Tensor:
    """(B, I, n) -> (B, number, I, n) Bernstein polynomials of r / (1 + r), which add up to one."""
    k = torch.arange(number, device=distance_ang.device, dtype=distance_ang.dtype)[:, None, None]
    top, distance_ang = number - 1, distance_ang.clamp(min=EPS)[:, None]
    binomial = math.lgamma(number) - torch.lgamma(k + 1) - torch.lgamma(number - k)
    log_in, log_out = -torch.log1p(1 / distance_ang), -torch.log1p(distance_ang)  # of u and of 1 - u
    return (binomial + k * log_in + (top - k) * log_out).clamp(min=-LARGEST_EXPONENT).exp()


class PairBasis(nn.Module):
    """Basis of pairs, scaled by what the graph says of them."""

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        self.by_class = config.condition == "all_pair"
        if self.by_class:
            self.classes = nn.Embedding(NUM_CLASSES + 1, 2 * NUM_RADIAL)
            self.scale = perceptron(2 * NUM_RADIAL, 2 * NUM_RADIAL, bias=False)
            for parameter in self.scale[-1].parameters():
                nn.init.zeros_(parameter)
        else:
            self.bonds = nn.Linear(config.width, 2 * NUM_RADIAL, bias=False)
            nn.init.zeros_(self.bonds.weight)

    def forward(self, x: Tensor, known: Known, rows: slice) -> Basis:
        distance = safe_norm(x[:, None] - x[:, rows, None])
        radial = bernstein(distance)
        if self.by_class:
            scale = self.scale(self.classes.weight)[known.classes[:, rows]]
        else:
            batch, n = known.mask.shape
            flat = radial.new_zeros(batch * n * n, 2 * NUM_RADIAL)
            scale = flat.index_put((known.bond_place,), self.bonds(known.bonds).to(flat.dtype)).view(batch, n, n, -1)[:, rows]
        scale_0, scale_1 = scale.permute(0, 3, 1, 2).chunk(2, 1)
        return Basis(radial * (1 + scale_0), radial * (1 + scale_1) / distance.clamp(min=NEAREST_ANG)[:, None], x[:, rows], x)


class KindAttention(nn.Module):
    """Attention with invariant weights and messages that are products of pairs and tokens, all paths to degree 1 or less.

    logit_ij = sum over kinds, x y z and channels of q k r_ij; o_i = sum_j alpha_ij (f_ij x v_j).
    """

    PATHS = 10
    FIRST_PATHS = 2

    def __init__(self, config: DiTMCConfig, *, first: bool, last: bool) -> None:
        super().__init__()
        width = config.width
        self.heads, self.first = config.num_heads, first
        kinds = (0,) if first else (0, 1, 2, 3)
        self.query, self.key, self.value = (KindLinear(width, width, kinds) for _ in range(3))
        self.gates = nn.Linear(NUM_RADIAL, len(kinds) * width, bias=False)
        self.filter_0, self.filter_1 = (nn.Linear(NUM_RADIAL, width, bias=False) for _ in range(2))
        self.paths = nn.Parameter(torch.ones(self.FIRST_PATHS if first else self.PATHS, width))
        self.out = KindLinear(width, width, (0, 2) if first else (0, 2, 3) if last else (0, 1, 2, 3))

    def forward(self, y: Tokens, basis: Callable[[slice], Basis], mask: Tensor, block: int) -> Tokens:
        """y: modulated tokens; basis of `block` atoms at a time; mask (B, n)."""
        query, key, value = self.query(y), self.key(y), self.value(y)
        n = mask.shape[1]

        def part(start: int) -> Tokens:
            rows = slice(start, start + block)
            return self._mixed(Tokens(*(None if own is None else own[:, rows] for own in query)), key, value, basis(rows), mask, start)  # type: ignore[arg-type]

        starts = range(0, n, block)
        saving = torch.is_grad_enabled() and len(starts) > 1
        parts = [checkpoint(part, start, use_reentrant=False) if saving else part(start) for start in starts]
        whole = Tokens(*(None if own[0] is None else torch.cat(own, 1) for own in zip(*parts, strict=True)))  # type: ignore[arg-type]
        mixed = self.out(whole)
        if not self.first:
            return mixed
        assert mixed.vector is not None
        return mixed._replace(pseudoscalar=torch.zeros_like(mixed.scalar), pseudovector=torch.zeros_like(mixed.vector))

    def _mixed(self, query: Tokens, key: Tokens, value: Tokens, basis: Basis, mask: Tensor, start: int) -> Tokens:
        """Sums over j of products with x_j - x_i are taken apart into those with x_j and x_i: a few matrix products a channel."""
        rows, _, some, n = basis.radial_0.shape
        width, heads = query.scalar.shape[-1], self.heads
        gates = _filtered(self.gates, basis.radial_0).chunk(1 if self.first else 4, 1)
        both = [
            _channels_first(q) @ _channels_first(k).transpose(2, 3) * r for q, k, r in zip(_there(query), _there(key), gates, strict=True)
        ]
        kinds = 1 if self.first else 8  # of the tokens: two parities, (L + 1)^2 components each
        logits = torch.stack(both).sum(0).view(rows, heads, width // heads, some, n).sum(2)
        share = weights(logits, mask, start, kinds * width // heads).repeat_interleave(width // heads, 1)  # (B, D, I, n)
        near = _filtered(self.filter_0, basis.radial_0) * share
        along = _filtered(self.filter_1, basis.radial_1) * share
        feature = torch.cat([_channels_first(own) for own in _there(value)], -1)  # (B, D, n, C), C = 1 or 8 components
        carried = (basis.there[:, None, :, :, None] * feature[:, :, :, None]).flatten(3)  # (B, D, n, 3 C)
        plain = (near @ feature).permute(3, 0, 2, 1)  # (C, B, I, D)
        pulled = along @ torch.cat([feature, carried], -1)
        count = feature.shape[-1]
        still, turned = pulled[..., :count], pulled[..., count:].unflatten(-1, (3, count))
        turned = (turned - basis.here[:, None, :, :, None] * still[..., None, :]).permute(3, 4, 0, 2, 1)  # (3, C, B, I, D)
        path = self.paths
        if self.first:
            return Tokens(plain[0] * path[0], None, turned[:, 0].movedim(0, 2) * path[1])
        dots = [sum(turned[m, first + m] for m in range(3)) for first in (VECTOR, PSEUDOVECTOR)]
        crosses = [
            torch.stack([turned[i, first + j] - turned[j, first + i] for i, j in ((1, 2), (2, 0), (0, 1))], 2)
            for first in (VECTOR, PSEUDOVECTOR)
        ]
        return Tokens(
            plain[0] * path[0] + dots[0] * path[1],
            plain[1] * path[2] + dots[1] * path[3],
            plain[VECTOR:PSEUDOVECTOR].movedim(0, 2) * path[4] + turned[:, 0].movedim(0, 2) * path[5] + crosses[1] * path[6],
            plain[PSEUDOVECTOR:].movedim(0, 2) * path[7] + turned[:, 1].movedim(0, 2) * path[8] + crosses[0] * path[9],
        )


def _filtered(layer: nn.Linear, radial: Tensor) -> Tensor:
    """(B, NUM_RADIAL, I, n) -> (B, D, I, n)."""
    return torch.bmm(layer.weight.expand(len(radial), -1, -1), radial.flatten(2)).unflatten(2, radial.shape[2:])


def _there(x: Tokens) -> list[Tensor]:
    """The kinds that there are."""
    return [own for own in x if own is not None]


def _channels_first(x: Tensor) -> Tensor:
    """(B, n, D) or (B, n, 3, D) -> (B, D, n, 1 or 3)."""
    return x.transpose(1, 2)[..., None] if x.dim() == 3 else x.permute(0, 3, 1, 2)


class KindMLP(nn.Module):
    """Linear, all channels gated by the scalar ones, linear; of the last block only vectors and pseudovectors are read."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        kinds = (2, 3) if last else (0, 1, 2, 3)
        self.up, self.down = KindLinear(width, 4 * width, (0, *kinds) if last else kinds), KindLinear(4 * width, width, kinds)

    def forward(self, x: Tokens) -> Tokens:
        up = self.up(x)
        gate = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up.scalar + 0.044715 * up.scalar**3)))
        rest = [own if own is None else own * (gate if own.dim() == 3 else gate[:, :, None]) for own in up]
        return self.down(Tokens(*rest))  # type: ignore[arg-type]


class KindBlock(nn.Module):
    """adaLN-Zero on tokens of four kinds; the first block is given scalars alone."""

    recomputable = True

    def __init__(self, config: DiTMCConfig, *, first: bool, last: bool) -> None:
        super().__init__()
        width = config.width
        self.condition_norm = nn.LayerNorm(width)
        self.counts = [1 if first else 4, 1, 4, 4, 1, 4]  # scales, shift and gates of either half
        self.modulate = zero(nn.Linear(width, sum(self.counts) * width))
        self.width = width
        self.norm = KindNorm()
        self.attention = KindAttention(config, first=first, last=last)
        self.mlp = KindMLP(width, last=last)

    def forward(self, h: Tokens, c: Tensor, basis: Callable[[slice], Basis], mask: Tensor, block: int) -> Tokens:
        parts = self.modulate(F.silu(self.condition_norm(c))).split([count * self.width for count in self.counts], -1)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = parts
        y = modulated(self.norm(h), list(scale_1.split(self.width, -1)), shift_1)
        h = h.plus(gate_1, self.attention(y, basis, mask, block))
        return h.plus(gate_2, self.mlp(modulated(self.norm(h), list(scale_2.split(self.width, -1)), shift_2)))


class EquivariantTransformer(nn.Module):
    """pe3: (B, n, 3) of noisy atoms at times (B,) -> (B, n, 6), clean atoms (or velocities) and noise.

    What is said turns with the molecule and does not know where it is: clean atoms are displacements from the centre.
    """

    def __init__(self, config: DiTMCConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time = Time(width)
        self.basis = PairBasis(config)
        self.blocks = nn.ModuleList(KindBlock(config, first=k == 0, last=k == config.num_layers - 1) for k in range(config.num_layers))
        self.modulate = zero(nn.Linear(width, width))
        self.out = nn.Linear(width, 2, bias=False)

    def forward(self, x: Tensor, t: Tensor, known: Known) -> Tensor:
        c = known.atoms + self.time(t)[:, None]
        rows, n = known.mask.shape
        block = max(1, min(n, self.config.pairs_at_once // (4 * rows * n * self.config.width)))
        whole = self.basis(x, known, slice(0, n)) if block >= n else None

        def basis(rows: slice) -> Basis:
            return self.basis(x, known, rows) if whole is None else whole

        h = Tokens(known.element)
        for layer in self.blocks:
            h = layer(h, c, basis, known.mask, block)
        assert h.vector is not None
        assert h.pseudovector is not None
        vector = normed(h.vector + h.pseudovector)
        scale = 1 + self.modulate(F.silu(c))[:, :, None]
        made = self.out(vector * scale)  # (B, n, 3, 2)
        return made.transpose(2, 3).reshape(rows, n, 6)


__all__ = [
    "NUM_RADIAL",
    "EquivariantTransformer",
    "KindAttention",
    "KindLinear",
    "KindNorm",
    "PairBasis",
    "Tokens",
    "bernstein",
    "perceptron",
]
