"""Remove clashes from sampled chains by redrawing link dihedrals between the clashing units.

A joint sample of N - 1 angles is right locally and blind to units far apart along the chain. The head is asked for a few alternative
samples at once; where two units clash, a junction between them takes the angle of an alternative sample, and the change stays if the chain
has fewer clashes. All chains are treated together; the law of the angles is kept up to the selection.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from foundation.batch import Condition
from foundation.geometry.assembly import ChainLayout, assemble_links, chain_coordinates, condition_layout

# Bondi radii, angstrom, of the elements that polymers hold; others 2.0.
VDW_RADIUS_ANG = {
    1: 1.20,
    5: 1.92,
    6: 1.70,
    7: 1.55,
    8: 1.52,
    9: 1.47,
    14: 2.10,
    15: 1.80,
    16: 1.80,
    17: 1.75,
    34: 1.90,
    35: 1.85,
    53: 1.98,
}
CLASH_FACTOR = 0.8  # of the sum of radii, stricter than the 0.75 that evaluation counts
FAR_ANG = 1e4  # chains are set apart by this much so that one tree serves them all


def untangle(
    angles_rad: Tensor, x_unit_ang: Tensor, condition: Condition, num_rounds: int, rng: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Choose among sampled angles so that heavy atoms of units that are not neighbours keep apart.

    Args:
        angles_rad: (1 + P, U) a sample and P alternatives.
        x_unit_ang: (U, A, 3).
        num_rounds: at most this many assemblies.

    Returns:
        (U,) angles, and {"clashes_before", "clashes_after"} counts of clashing unit pairs.
    """
    layout = condition_layout(condition)
    chain = condition.unit_chain
    key, link, start = condition.key_slot[chain], condition.link_slot[chain], condition.unit_position == 0
    owner, radius = _heavy_atoms(condition, layout)

    def clashes(phi: Tensor) -> tuple[Tensor, Tensor]:
        world, _ = assemble_links(x_unit_ang, key, link, start, phi)
        return _clashing_units(chain_coordinates(world, layout), owner, radius, chain)

    best = angles_rad[0].clone()
    first, second = clashes(best)
    count = torch.bincount(chain[first], minlength=condition.num_chains)
    before = int(count.sum())
    for _ in range(num_rounds):
        if len(first) == 0:
            break
        # one random junction inside every clashing pair first < second: its index lies in [first, second - 1]
        span = (second - first).double()
        at = first + (torch.rand(len(first), generator=rng, device=rng.device).to(span) * span).long().clamp(max=int(span.max()) - 1)
        lot = torch.rand(condition.num_chains, generator=rng, device=rng.device).to(span.device)
        chosen = torch.rand(len(at), generator=rng, device=rng.device).to(span.device)
        # a chain changes one junction a round: that of its clash with the largest lot
        top = torch.full((condition.num_chains,), -1.0, device=span.device).scatter_reduce(0, chain[at], chosen.float(), "amax")
        at = at[chosen >= top[chain[at]]]
        alternative = 1 + (lot[chain[at]] * (len(angles_rad) - 1)).long()
        trial = best.clone()
        trial[at] = angles_rad[alternative, at]
        new_first, new_second = clashes(trial)
        new_count = torch.bincount(chain[new_first], minlength=condition.num_chains)
        accepted = new_count <= count
        best = torch.where(accepted[chain], trial, best)
        keep_new, keep_old = accepted[chain[new_first]], ~accepted[chain[first]]
        first, second = torch.cat([new_first[keep_new], first[keep_old]]), torch.cat([new_second[keep_new], second[keep_old]])
        count = torch.where(accepted, new_count, count)
    return best, {"clashes_before": float(before), "clashes_after": float(count.sum())}


def _heavy_atoms(condition: Condition, layout: ChainLayout) -> tuple[Tensor, Tensor]:
    """(sum of H,) unit that owns each heavy atom, and its radius."""
    chain = condition.unit_chain
    atom = layout.atom[layout.owned]
    unit = torch.arange(len(chain), device=chain.device)[:, None].expand_as(layout.atom)[layout.owned]
    slot = torch.arange(layout.atom.shape[1], device=chain.device)[None].expand_as(layout.atom)[layout.owned]
    element = condition.atom_feat[condition.graph_ptr[chain[unit]] + slot, 0]
    table = torch.full((119,), 2.0, dtype=torch.float64, device=chain.device)
    table[torch.tensor(list(VDW_RADIUS_ANG))] = torch.tensor(list(VDW_RADIUS_ANG.values()), dtype=torch.float64, device=chain.device)
    owner, radius = torch.empty_like(atom), torch.empty(len(atom), dtype=torch.float64, device=chain.device)
    owner[atom], radius[atom] = unit, table[element]
    return owner, radius


def _clashing_units(x_ang: Tensor, owner: Tensor, radius: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
    """Unit pairs (first < second, not joined to each other by a bond) with atoms closer than CLASH_FACTOR x the sum of radii."""
    place = x_ang.detach().cpu().double().numpy() + np.array([FAR_ANG, 0.0, 0.0]) * chain[owner].cpu().numpy()[:, None]
    place = np.nan_to_num(place, nan=0.0, posinf=0.0, neginf=0.0)
    radii, units = radius.cpu().numpy(), owner.cpu().numpy()
    pairs = cKDTree(place).query_pairs(2 * CLASH_FACTOR * float(radii.max()), output_type="ndarray")
    i, j = pairs[:, 0], pairs[:, 1]
    apart = np.abs(units[i] - units[j]) > 1
    i, j = i[apart], j[apart]
    close = np.linalg.norm(place[i] - place[j], axis=1) < CLASH_FACTOR * (radii[i] + radii[j])
    found = np.unique(np.sort(np.stack([units[i[close]], units[j[close]]], 1), axis=1), axis=0)
    both = torch.from_numpy(found).to(owner.device).reshape(-1, 2)
    return both[:, 0], both[:, 1]
