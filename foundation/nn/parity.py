"""Network blocks whose features are graded by parity: scalars (even) and pseudoscalars (odd).

Unit frames remove rotation and translation. Of the symmetries of space only reflection is left, and in a unit frame it acts by
changing signs (docs/conventions.md): z coordinates, dihedrals and handedness are odd, distances and x, y coordinates are even. Every
feature here is a pair (even, odd); reflecting the input negates the odd half and leaves the even half, exactly, at every layer. So a chain
and its mirror image are equally likely unless an odd condition (handedness) tells them apart, and no mirror augmentation is needed.

Rules: odd linear maps have no bias, gates of odd features are even, products of two odd features are even.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Graded(NamedTuple):
    """Features by parity; leading dimensions agree."""

    even: Tensor  # (..., De)
    odd: Tensor  # (..., Do)

    def __add__(self, other: Graded) -> Graded:  # type: ignore[override]
        return Graded(self.even + other.even, self.odd + other.odd)

    def __getitem__(self, index: object) -> Graded:  # type: ignore[override]
        return Graded(self.even[index], self.odd[index])  # type: ignore[index]

    def detach(self) -> Graded:
        return Graded(self.even.detach(), self.odd.detach())

    def masked(self, mask: Tensor) -> Graded:
        """Zero where mask (...,) is False."""
        return Graded(self.even * mask[..., None], self.odd * mask[..., None])


class Width(NamedTuple):
    """Numbers of even and odd channels."""

    even: int
    odd: int

    @staticmethod
    def of(width: int) -> Width:
        """The split used throughout: a quarter of the channels is odd."""
        return Width(width - width // 4, width // 4)


def cat(*parts: Graded) -> Graded:
    """Concatenate features."""
    return Graded(torch.cat([p.even for p in parts], -1), torch.cat([p.odd for p in parts], -1))


def where(mask: Tensor, yes: Graded, no: Graded) -> Graded:
    """Choose rows by mask (...,)."""
    return Graded(torch.where(mask[..., None], yes.even, no.even), torch.where(mask[..., None], yes.odd, no.odd))


class GradedLinear(nn.Module):
    """Block-diagonal linear map; the odd block has no bias."""

    def __init__(self, source: Width, target: Width, *, zero: bool = False) -> None:
        super().__init__()
        self.even = nn.Linear(source.even, target.even)
        self.odd = nn.Linear(source.odd, target.odd, bias=False)
        if zero:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Graded) -> Graded:
        return Graded(self.even(x.even), self.odd(x.odd))


class GradedNorm(nn.Module):
    """LayerNorm of the even half, RMS norm of the odd half.

    The odd epsilon is large on purpose: where a molecule is its own mirror image the odd half is rounding noise and must stay small.
    """

    def __init__(self, width: Width, *, affine: bool = True) -> None:
        super().__init__()
        self.even = nn.LayerNorm(width.even, elementwise_affine=affine)
        self.odd = nn.RMSNorm(width.odd, eps=1e-2, elementwise_affine=affine)

    def forward(self, x: Graded) -> Graded:
        odd = x.odd if self.odd.weight is None else x.odd.to(self.odd.weight.dtype)  # autocast does this for LayerNorm alone
        return Graded(self.even(x.even), self.odd(odd))


class GradedMLP(nn.Module):
    """Two-layer perceptron that lets the two parities talk: odd x odd -> even, even gates odd."""

    def __init__(self, source: Width, target: Width, *, expand: int = 4, zero: bool = False) -> None:
        super().__init__()
        hidden = Width(expand * target.even, expand * target.odd)
        self.even_in = nn.Linear(source.even, hidden.even)
        self.odd_in = nn.Linear(source.odd, 2 * hidden.odd, bias=False)
        self.gate = nn.Linear(source.even, hidden.odd)
        self.even_out = nn.Linear(hidden.even + hidden.odd, target.even)
        self.odd_out = nn.Linear(hidden.odd, target.odd, bias=False)
        if zero:
            nn.init.zeros_(self.even_out.weight)
            nn.init.zeros_(self.even_out.bias)
            nn.init.zeros_(self.odd_out.weight)

    def forward(self, x: Graded) -> Graded:
        left, right = self.odd_in(x.odd).chunk(2, -1)
        even = torch.cat([F.gelu(self.even_in(x.even)), torch.tanh(left * right)], -1)
        return Graded(self.even_out(even), self.odd_out(left * F.silu(self.gate(x.even))))


class OddReadout(nn.Module):
    """One pseudoscalar from graded features: (...,), zero at the start of training. The odd half of a GradedMLP, all that it needs."""

    recomputable = True

    def __init__(self, source: Width, width: Width) -> None:
        super().__init__()
        hidden = 2 * width.odd
        self.odd_in = nn.Linear(source.odd, hidden, bias=False)
        self.gate = nn.Linear(source.even, hidden)
        self.odd_out = nn.Linear(hidden, width.odd, bias=False)
        self.norm = nn.RMSNorm(width.odd, eps=1e-2)
        self.out = nn.Linear(width.odd, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Graded) -> Tensor:
        odd = self.odd_out(self.odd_in(x.odd) * F.silu(self.gate(x.even)))
        return self.out(self.norm(odd.to(self.norm.weight.dtype)))[..., 0]


def rotary(x: Tensor, position: Tensor) -> Tensor:
    """Rotate channel pairs of queries or keys by angles proportional to the position.

    Args:
        x: (R, H, L, d), d even.
        position: (R, L) float; dot products of rotated q and k depend on positions through their difference alone.

    Source: Su et al., RoFormer, arXiv 2104.09864, eq. 34. Differs: none (a real rotation, so no channel is lost at any position).
    """
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, None, :, None].float() * frequency  # (R, 1, L, d/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class GradedAttention(nn.Module):
    """Multi-head attention. Logits are even: q_even . k_even + q_odd . k_odd + bias."""

    def __init__(self, width: Width, num_heads: int) -> None:
        super().__init__()
        if width.even % (2 * num_heads) or width.odd % (2 * num_heads):
            raise ValueError(f"width {width.even}+{width.odd} must divide into {num_heads} heads of even size")
        self.num_heads = num_heads
        self.even_qkv = nn.Linear(width.even, 3 * width.even)
        self.odd_qkv = nn.Linear(width.odd, 3 * width.odd, bias=False)
        self.out = GradedLinear(width, width)

    def forward(self, x: Graded, bias: Tensor, position: Tensor | None = None) -> Graded:
        """x: (R, L, .); bias: (R, 1 or H, L or 1, L) additive, -inf where a key is absent; position: (R, L) for rotary, or None."""
        rows, length = x.even.shape[:2]
        even = self.even_qkv(x.even).view(rows, length, 3, self.num_heads, -1)
        odd = self.odd_qkv(x.odd).view(rows, length, 3, self.num_heads, -1)
        sizes = [even.shape[-1], odd.shape[-1]]
        query, key, value = torch.cat([even, odd], -1).permute(2, 0, 3, 1, 4)  # (R, H, L, de + do) each, copied once
        if position is not None:
            query, key = (torch.cat([rotary(part, position) for part in both.split(sizes, -1)], -1) for both in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype).expand(-1, -1, length, -1))
        mixed_even, mixed_odd = mixed.split(sizes, -1)
        merge = (rows, length, -1)
        return self.out(Graded(mixed_even.transpose(1, 2).reshape(merge), mixed_odd.transpose(1, 2).reshape(merge)))


class Block(nn.Module):
    """Pre-norm transformer block; with a condition its norms are modulated and its branches gated (adaLN-Zero).

    Source: Peebles and Xie, DiT, arXiv 2212.09748, section 3.2. Differs: graded; odd features are scaled by even ones and
    shifted by odd ones, unless the condition has none (odd width 0).
    """

    recomputable = True  # train.activation_checkpointing

    def __init__(self, width: Width, num_heads: int, condition: Width | None = None) -> None:
        super().__init__()
        self.norm_attention = GradedNorm(width, affine=condition is None)
        self.attention = GradedAttention(width, num_heads)
        self.norm_mlp = GradedNorm(width, affine=condition is None)
        self.mlp = GradedMLP(width, width)
        self.width = width
        if condition is not None:
            self.scale_even = nn.Linear(condition.even, 6 * width.even + 4 * width.odd)
            self.shift_odd = nn.Linear(condition.odd, 2 * width.odd, bias=False) if condition.odd else None
            for parameter in (*self.scale_even.parameters(), *(self.shift_odd.parameters() if self.shift_odd else ())):
                nn.init.zeros_(parameter)
        self.conditioned = condition is not None

    def forward(self, x: Graded, bias: Tensor, position: Tensor | None = None, condition: Graded | None = None) -> Graded:
        """condition: (R, 1 or L, .) features that modulate every token."""
        if not self.conditioned or condition is None:
            x = x + self.attention(self.norm_attention(x), bias, position)
            return x + self.mlp(self.norm_mlp(x))
        even, odd = self.width
        scales = self.scale_even(F.silu(condition.even)).split([even] * 6 + [odd] * 4, -1)
        shift_1, shift_2 = (0.0, 0.0) if self.shift_odd is None else self.shift_odd(condition.odd).chunk(2, -1)
        h = self.norm_attention(x)
        h = Graded(h.even * (1 + scales[0]) + scales[1], h.odd * (1 + scales[6]) + shift_1)
        h = self.attention(h, bias, position)
        x = x + Graded(h.even * scales[2], h.odd * scales[7])
        h = self.norm_mlp(x)
        h = Graded(h.even * (1 + scales[3]) + scales[4], h.odd * (1 + scales[8]) + shift_2)
        h = self.mlp(h)
        return x + Graded(h.even * scales[5], h.odd * scales[9])


class Learned(nn.Module):
    """A learned even vector behind a call, so that sharded engines gather it like any other layer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(*shape))

    def forward(self) -> Tensor:
        return self.weight


def key_bias(mask: Tensor) -> Tensor:
    """(R, L) bool, True = real -> (R, 1, 1, L) additive bias, -inf on padded keys.

    Rows without any key attend to everything, so that no NaN arises; their output is never read.
    """
    safe = mask | ~mask.any(-1, keepdim=True)
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~safe, float("-inf"))[:, None, None]
