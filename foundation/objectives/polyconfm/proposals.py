"""Angles to try at a junction whose two units clash: those that the head drew at other junctions of the same kind.

A further joint draw of all angles costs as much as the first, while few junctions need one. What such a draw would put at a junction
follows the law of angles at that kind of junction, and so do the angles that the head has just drawn elsewhere, for nothing. Two junctions
are of one kind where their chains have the same P-SMILES and their two units the same configuration, or the mirrored one with the opposite
angle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.batch import Condition, ragged_coordinates

FEWEST = 8  # angles of a kind, itself included; below, the head has to be asked again
NUM_EXCHANGED = 24  # alternatives of a junction: they cost nothing
_BASE = 1_000_003  # of the hashes, which are sums modulo 2^64


def polymer_hash(condition: Condition) -> Tensor:
    """(B,) int64, equal for chains of the same P-SMILES."""
    chain, place = ragged_coordinates(condition.token_ptr)
    return torch.zeros_like(condition.num_units).index_add(0, chain, (condition.token_id + 1) * _powers(place))


def junction_kinds(condition: Condition) -> tuple[Tensor, Tensor]:
    """(U,) number of the kind of the junction u -> u + 1, and (U,) -1 where it is the mirror image of its kind, else 1."""
    chain, polymer = condition.unit_chain, polymer_hash(condition)
    signs = torch.zeros_like(chain).index_add(0, condition.atom_unit, condition.handedness.long() * _powers(condition.atom_slot))
    here, there = signs, signs[condition.unit_after]
    mirrored = (here < 0) | ((here == 0) & (there < 0))
    sign = torch.where(mirrored, -1, 1)
    key = polymer[chain] * _BASE + sign * here
    key = key * _BASE + sign * there
    return torch.unique(key, return_inverse=True)[1], sign


def _powers(exponent: Tensor) -> Tensor:
    """_BASE ** exponent modulo 2^64, as torch multiplies int64."""
    most = int(exponent.max()) + 1 if len(exponent) else 1
    steps = torch.full((most,), _BASE, dtype=torch.int64, device=exponent.device)
    steps[0] = 1
    return steps.cumprod(0)[exponent]


def exchanged(angles_rad: Tensor, condition: Condition, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Angles of other junctions of the same kind.

    Args:
        angles_rad: (U,) one joint draw.
        num: alternatives of every junction.
        rng: of the choice.

    Returns:
        (num, U) alternatives, and (U,) bool, True where fewer than FEWEST junctions are of a kind.
    """
    joined = condition.has_next
    kind, sign = junction_kinds(condition)
    count = torch.bincount(kind[joined], minlength=len(kind))
    start = count.cumsum(0) - count
    members = joined.nonzero()[:, 0]
    members = members[torch.argsort(kind[members], stable=True)]
    lots = torch.rand(num, len(kind), generator=rng, device=rng.device).to(angles_rad.device)
    chosen = members[(start[kind] + (lots * count[kind]).long()).clamp(max=len(members) - 1)] if len(members) else kind.expand(num, -1)
    return angles_rad[chosen] * sign[chosen] * sign, joined & (count[kind] < FEWEST)
