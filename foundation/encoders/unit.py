"""3-D branch: a pair-bias transformer over the atoms of each repeat unit in its own frame.

In the frame of the unit coordinates are invariant to rotation and translation, and signed: z and handedness are odd features, so mirror
images give different tokens, while x, y and distances are even.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.batch import Condition, to_dense
from foundation.nn.embedding import RadialBasis
from foundation.nn.parity import Block, Graded, GradedLinear, GradedNorm, Width, cat, key_bias

NUM_PAIR_CLASSES = 8  # 0 far, 1-4 bond orders, 5 two bonds apart, 6 three bonds apart, 7 the atom itself
FAR, BONDED, TWO_BONDS, THREE_BONDS, ITSELF = 0, 4, 5, 6, 7
COORDINATE_SCALE_ANG = 3.0


def pair_classes(condition: Condition) -> Tensor:
    """(B, A, A) int64 class of every atom pair of every unit graph, 0 in the padding."""
    size = condition.max_atoms
    graph = torch.repeat_interleave(torch.arange(condition.num_chains, device=condition.graph_ptr.device), condition.graph_ptr.diff())
    slot = torch.arange(len(graph), device=graph.device) - condition.graph_ptr[graph]
    source, target = condition.bond_index
    classes = torch.zeros(condition.num_chains, size, size, dtype=torch.int64, device=graph.device)
    bonded = torch.zeros_like(classes, dtype=torch.float32)
    bonded[graph[source], slot[source], slot[target]] = 1.0
    two = bonded @ bonded
    classes[two @ bonded > 0] = THREE_BONDS
    classes[two > 0] = TWO_BONDS
    classes[graph[source], slot[source], slot[target]] = condition.bond_feat[:, 0].clamp(1, BONDED)
    classes[graph, slot, slot] = ITSELF
    return classes


class UnitGeometry(nn.Module):
    """Atom tokens and pair bias of a set of units: what the 3-D encoder and the local heads start from."""

    recomputable = True

    def __init__(self, width: Width, graph_width: int, num_heads: int) -> None:
        super().__init__()
        self.graph = nn.Linear(graph_width, width.even)
        self.coordinates = GradedLinear(Width(2, 2), width)
        self.radial = RadialBasis()
        self.distance = nn.Sequential(nn.Linear(self.radial.num, 32), nn.GELU(), nn.Linear(32, num_heads))
        self.pair = nn.Embedding(NUM_PAIR_CLASSES, num_heads)

    def forward(self, x_ang: Tensor, handedness: Tensor, atoms: Tensor, classes: Tensor, mask: Tensor) -> tuple[Graded, Tensor]:
        """x_ang (U, A, 3) unit frame; handedness (U, A); atoms (U, A, Dg) graph features; classes (U, A, A); mask (U, A).

        Returns tokens (U, A, .) and bias (U, H, A, A) with -inf on padded keys.
        """
        scaled = x_ang / COORDINATE_SCALE_ANG
        place = self.coordinates(Graded(scaled[..., :2], torch.stack([scaled[..., 2], handedness], -1)))
        tokens = Graded(self.graph(atoms) + place.even, place.odd)
        distance = torch.cdist(x_ang, x_ang, compute_mode="donot_use_mm_for_euclid_dist")
        bias = self.distance(self.radial(distance)) + self.pair(classes)  # (U, A, A, H)
        return tokens.masked(mask), bias.permute(0, 3, 1, 2) + key_bias(mask)


class UnitEncoder(nn.Module):
    """One token a unit: the mean of its atoms and the two atoms at its junctions."""

    def __init__(self, width: Width, graph_width: int, num_layers: int, num_heads: int, target: Width) -> None:
        super().__init__()
        self.geometry = UnitGeometry(width, graph_width, num_heads)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = GradedNorm(width)
        self.out = GradedLinear(Width(3 * width.even, 3 * width.odd), target)

    def forward(self, x_ang: Tensor, handedness: Tensor, atoms: Tensor, classes: Tensor, mask: Tensor, key_slot: Tensor) -> Graded:
        """Arguments as UnitGeometry, key_slot (U, 4). Returns (U, .) tokens of width target."""
        h, bias = self.geometry(x_ang, handedness, atoms, classes, mask)
        for block in self.blocks:
            h = block(h, bias)
        h = self.norm(h)
        row = torch.arange(len(key_slot), device=key_slot.device)
        count = mask.sum(1, keepdim=True)
        mean = Graded((h.even * mask[..., None]).sum(1) / count, (h.odd * mask[..., None]).sum(1) / count)
        return self.out(cat(mean, h[row, key_slot[:, 1]], h[row, key_slot[:, 2]]))


def dense_atoms(condition: Condition, atom_feature: Tensor) -> Tensor:
    """(G, D) features of unit-graph atoms as (B, A, D), padding zero."""
    return to_dense(atom_feature, condition.graph_ptr, condition.max_atoms)
