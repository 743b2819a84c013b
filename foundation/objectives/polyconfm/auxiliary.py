"""Auxiliary losses of pretraining: what the trunk should know for property tasks, beside how chains are drawn.

    tokens      1-D   hidden P-SMILES tokens from the others
    agreement   1-D, 2-D, 3-D   which of the micro-batch's polymers another view shows
    statistics  trunk   size and stiffness of the chain, and size of its repeat unit, from its embedding
    descriptors 1-D, 2-D, trunk   RDKit descriptors of the repeat unit from each
    levels      1-D, 2-D, trunk   tight-binding levels of the infinite chain from each

Each is added to the loss with a weight of its own. With weight 0 it is not computed and has no parameter. Nothing here is used by sampling
or by `embed`; the output layers stay in checkpoints, released ones too, so that pretraining can go on from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_shards.chem import descriptors, levels
from foundation.batch import ATOM_FEATURES, Batch, Condition, dense_mask, to_dense
from foundation.encoders.sequence import VOCABULARY, SequenceEncoder
from foundation.geometry.assembly import NBR0, STAR0, STAR1, condition_layout
from foundation.geometry.precision import full_precision
from foundation.geometry.vectors import take_slots, unit_vector
from foundation.molecules import chain_atoms
from foundation.nn.parity import Learned, Width
from foundation.objectives.polyconfm.config import PolyConFMConfig

HIDDEN_PERCENT = 15
TEMPERATURE = 0.1
LARGEST_DEVIATION = 4.0  # targets of odd chains (ends that meet) are cut here, in standard deviations
# mean and standard deviation of chain_statistics, rounded: the first three over 984 grown conformations of 492 polymers, chains of 20 units
# (the 54 of a validation split have (0.07, 2.11, 0.50) and (0.34, 0.57, 0.20)), the last two over the 4,411 polymers of the released model
MEANS = (0.10, 2.12, 0.49, 2.75, 2.05)
DEVIATIONS = (0.32, 0.53, 0.18, 0.39, 0.72)
BACKBONE = (1, 4, 5)  # roles of atoms


class Auxiliary(nn.Module):
    """Layers of the terms whose weight is not 0. Outputs start at zero: equal odds for every token, the mean for every statistic."""

    def __init__(self, config: PolyConFMConfig, width: Width) -> None:
        super().__init__()
        self.config = config
        if config.token_weight:
            self.hidden_token = Learned(width.even)
            self.token_out = _zero(nn.Linear(width.even, len(VOCABULARY)))
        if config.agreement_weight:
            self.views = nn.ModuleList(nn.Linear(width.even, width.even, bias=False) for _ in range(3))
        if config.statistics_weight:
            self.statistics_out = _zero(nn.Linear(width.even, len(MEANS)))
        if config.descriptor_weight:
            self.descriptors_out = nn.ModuleList(_zero(nn.Linear(width.even, len(descriptors.table()[0]))) for _ in range(3))
        if config.level_weight:
            self.levels_out = nn.ModuleList(_zero(nn.Linear(width.even, len(levels.LEVELS))) for _ in range(3))

    def tokens(self, encoder: SequenceEncoder, condition: Condition, rng: torch.Generator) -> Tensor:
        """(B,) nat, cross-entropy of hidden tokens, mean over those of a chain; the encoder runs once more, with them hidden.

        Source: Devlin et al., BERT, arXiv 1810.04805, section 3.1. Differs: every hidden token is replaced by the learned vector, none by
            another token or by itself (the main loss shows the encoder plain strings); at least one a chain; own output layer.
        """
        hidden = draw_hidden(condition, rng)
        states = encoder.norm(encoder.states(condition, hidden, self.hidden_token())[hidden])
        target = to_dense(condition.token_id, condition.token_ptr, hidden.shape[1])[hidden]
        error = F.cross_entropy(self.token_out(states).float(), target, reduction="none")
        chain = hidden.nonzero()[:, 0]
        return error.new_zeros(len(hidden)).index_add(0, chain, error) / hidden.sum(1)

    def agreement(self, sequence: Tensor, graph: Tensor, units: Tensor, polymer: Tensor) -> Tensor:
        """(B,) nat, InfoNCE of the three pairs of views, mean over pairs and directions.

        Args:
            sequence, graph, units: (B, D) of each chain: its strings, its unit graph, the mean of its units' shapes.
            polymer: (B,) equal for chains of one polymer.

        The units' tokens are taken before sequence and graph are added to them, and not the trunk's context, which has seen both: there
        the views would agree by copying.
        """
        first, second, third = (layer(view) for layer, view in zip(self.views, (sequence, graph, units), strict=True))
        pairs = (first, second), (first, third), (second, third)
        return torch.stack([info_nce(left, right, polymer) for left, right in pairs]).mean(0)

    def statistics(self, context: Tensor, batch: Batch) -> Tensor:
        """(B,) squared error of the chain's standardised statistics, read linearly from its embedding; 1 for a predictor of the mean.

        Args:
            context: (U, D) of the trunk with every unit visible, even half.
        """
        predicted = self.statistics_out(chain_mean(context, batch)).float()
        target = standardised(chain_statistics(batch)).float()
        exists = target.isfinite()
        error = torch.where(exists, predicted - target.nan_to_num(), 0.0).square()
        return error.sum(1) / exists.sum(1)

    def descriptors(self, views: Sequence[Tensor], target: Tensor | None) -> Tensor:
        """(B,) Huber loss of standardised descriptors, read linearly from each view; mean over views and over those that exist.

        Args:
            views: three of (B, D), of each chain: its strings, its unit graph, the mean of its units in the trunk.
            target: (B, F) of data_shards.chem.descriptors, NaN where there is none.

        Source: Fabian et al., MolBERT, arXiv 2011.13230, the physico-chemical task. Differs: Huber instead of squared error, three views.
        """
        assert target is not None, "descriptors are learned, but the batch was read without them (Reading.targets)"
        return huber_of_views(self.descriptors_out, views, target)

    def levels(self, views: Sequence[Tensor], target: Tensor | None) -> Tensor:
        """(B,) as descriptors, of standardised levels; target: (B, L) of data_shards.chem.levels, NaN where there is none."""
        assert target is not None, "levels are learned, but the batch was read without them (Reading.targets)"
        return huber_of_views(self.levels_out, views, target)


def huber_of_views(layers: nn.ModuleList, views: Sequence[Tensor], target: Tensor) -> Tensor:
    """(B,) Huber loss of (B, F) targets, each view (B, D) through its own layer; mean over views and over targets that are no NaN."""
    exists, wanted = target.isfinite(), target.nan_to_num()
    errors = [F.smooth_l1_loss(layer(view).float(), wanted, reduction="none") for layer, view in zip(layers, views, strict=True)]
    return (torch.stack(errors).mean(0) * exists).sum(1) / exists.sum(1).clamp(min=1)


def chain_mean(unit: Tensor, batch: Condition) -> Tensor:
    """(U, D) -> (B, D), mean over the units of each chain."""
    return unit.new_zeros(batch.num_chains, unit.shape[-1]).index_add(0, batch.unit_chain, unit) / batch.num_units[:, None]


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def num_hidden(num_tokens: Tensor) -> Tensor:
    """Tokens of strings that are hidden, the start token left out, rounded up: (B,) -> (B,)."""
    return (HIDDEN_PERCENT * (num_tokens - 1) + 99) // 100


def draw_hidden(condition: Condition, rng: torch.Generator) -> Tensor:
    """(B, longest) bool, True where a token is hidden; never the start token."""
    lengths = condition.token_ptr.diff()
    noise = torch.rand(len(lengths), int(lengths.max()), generator=rng, device=rng.device).to(lengths.device)
    place = dense_mask(condition.token_ptr, noise.shape[1])
    place[:, 0] = False
    rank = noise.masked_fill(~place, 2.0).argsort(1).argsort(1)
    return rank < num_hidden(lengths)[:, None]


@full_precision
def info_nce(left: Tensor, right: Tensor, polymer: Tensor) -> Tensor:
    """(B,) -log of the probability of the right polymer, mean of both directions.

    p(polymer of b | left_b) = sum over the chains c of that polymer of exp(s_bc) / sum over all chains c of exp(s_bc), with s the cosine
    over the temperature. 0 where the micro-batch has one polymer.

    Args:
        left, right: (B, D) two views.
        polymer: (B,) equal for chains of one polymer.

    Source: van den Oord et al., arXiv 1807.03748, eq. 4; both directions as Radford et al., CLIP, arXiv 2103.00020, figure 3. Differs:
        chains of one polymer count together as the positive, the temperature is fixed.
    """
    logits = F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T / TEMPERATURE
    other = polymer[:, None] != polymer[None]
    ways = [s.logsumexp(1) - s.masked_fill(other, -math.inf).logsumexp(1) for s in (logits, logits.T)]
    return (ways[0] + ways[1]) / 2


@full_precision
def chain_statistics(batch: Batch) -> Tensor:
    """Size and stiffness of every chain and size of its unit; rotations, translations and reflections do not change them.

    Returns:
        (B, 5) float64: log(radius of gyration / angstrom / sqrt(heavy atoms)), log(distance of the end atoms / angstrom / sqrt(units)),
        mean cosine between the directions nbr0 -> star1 of successive units, NaN for a chain of one unit, log(heavy atoms of a unit),
        log(its backbone atoms). A free chain's size grows with the square root of its length, so the first two depend on length little;
        with the last two they say how large a chain of so many atoms is.
    """
    layout = condition_layout(batch)
    chain = batch.unit_chain
    x = chain_atoms(batch)
    zeros, heavy = x.new_zeros(batch.num_chains, 3), layout.heavy_ptr.diff()
    owned = layout.owned[..., None]
    centre = zeros.index_add(0, chain, (x * owned).sum(1)) / heavy[:, None]
    square = ((x - centre[chain][:, None]).square() * owned).sum((1, 2))
    size = (zeros[:, 0].index_add(0, chain, square) / heavy).sqrt()
    key = take_slots(x, batch.key_slot[chain])  # (U, 4, 3)
    ends = (key[batch.chain_ptr[1:] - 1, STAR1] - key[batch.chain_ptr[:-1], STAR0]).norm(dim=-1)
    direction = unit_vector(key[:, STAR1] - key[:, NBR0])
    cosine = (direction * direction[batch.unit_after]).sum(-1) * batch.has_next
    cosine = zeros[:, 0].index_add(0, chain, cosine) / (batch.num_units - 1)  # 0 / 0 is the NaN
    tiny = torch.finfo(torch.float32).tiny
    of_chain = [(size.clamp(min=tiny) / heavy.sqrt()).log(), (ends.clamp(min=tiny) / batch.num_units.sqrt()).log(), cosine]
    return torch.stack([*of_chain, *unit_sizes(batch).log().unbind(1)], 1)


def unit_sizes(condition: Condition) -> Tensor:
    """(B, 2) float64, heavy atoms of the repeat unit of every chain, and those on a shortest path between its stars; no stars."""
    own = condition.represents == torch.arange(len(condition.represents), device=condition.represents.device)
    role = condition.atom_feat[:, list(ATOM_FEATURES).index("role")]
    counted = torch.stack([own, own & torch.isin(role, role.new_tensor(BACKBONE))], 1).double()
    chain = torch.repeat_interleave(torch.arange(condition.num_chains, device=own.device), condition.graph_ptr.diff())
    return counted.new_zeros(condition.num_chains, 2).index_add(0, chain, counted)


def standardised(statistics: Tensor) -> Tensor:
    """Of MEANS 0 and DEVIATIONS 1, cut at LARGEST_DEVIATION; constants, so that a resumed run and every rank use the same."""
    means, deviations = (torch.tensor(v, dtype=statistics.dtype, device=statistics.device) for v in (MEANS, DEVIATIONS))
    return ((statistics - means) / deviations).clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
