"""2-D branch: GINE message passing over the periodic unit graph.

The graph of a repeat unit is closed on itself: the bond to star1 leads to nbr0 of the same unit and the bond to star0 to nbr1, so
every atom sees the chain that it is part of, wherever the chain was cut into units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.batch import ATOM_FEATURES, BOND_FEATURES, Condition


class GraphEncoder(nn.Module):
    """Atom features of every unit graph.

    Source: Hu et al., arXiv 1905.12265 (GINE). Differs: periodic edges, LayerNorm instead of BatchNorm (so no dependence on the batch).
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.atom = nn.ModuleDict({name: nn.Embedding(num, width) for name, num in ATOM_FEATURES.items()})
        self.bond = nn.ModuleList(nn.Embedding(num, width) for num in BOND_FEATURES.values())
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Returns (G, D) per unit-graph atom, stars with the feature of the atom they stand for plus their role, and (B, D) per chain."""
        feature = {name: self.atom[name](condition.atom_feat[:, i]) for i, name in enumerate(ATOM_FEATURES)}
        role = feature.pop("role")  # says where the chain was cut, so it joins after the message passing
        h = torch.stack(list(feature.values())).sum(0)
        is_own = condition.represents == torch.arange(len(condition.represents), device=h.device)
        source, target = condition.represents[condition.bond_index[0]], condition.bond_index[1]
        edge = torch.stack([table(condition.bond_feat[:, i]) for i, table in enumerate(self.bond)]).sum(0)
        kept = is_own[target]
        source, target, edge = source[kept], target[kept], edge[kept]
        for layer in self.layers:
            message = F.gelu(h[source] + edge)
            h = h + layer(h + torch.zeros_like(h).index_add(0, target, message.to(h.dtype)))
        h = self.norm(h)[condition.represents]
        graph = torch.repeat_interleave(torch.arange(condition.num_chains, device=h.device), condition.graph_ptr.diff())
        own = is_own.to(h.dtype)[:, None]
        zeros = h.new_zeros(condition.num_chains, h.shape[1])
        chain = zeros.index_add(0, graph, h * own) / zeros[:, :1].index_add(0, graph, own)
        return h + role, chain
