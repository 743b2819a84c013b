"""Long chains are sampled window by window, so that time and memory of a unit do not depend on how long the chain is.

A window holds the last settled units as context and new ones behind them. The model treats it as a chain: it draws the new units given the
context, then the link dihedrals, which may not clash with what was placed before. The last new units see nothing behind them and are
drawn again in the next window. Where a clash stays, the window ends before it and the next one tries again. Chains that fit into one
window are sampled at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_shards.conformers.quality import vdw_radii_ang
from foundation.batch import Condition, cut_chains, first_units
from foundation.geometry.assembly import STAR0, assemble_links, condition_layout
from foundation.geometry.rigid import Rigid
from foundation.objectives.polyconfm.clashes import Placed, Surroundings, Untangled
from foundation.objectives.polyconfm.config import WINDOW

if TYPE_CHECKING:
    from foundation.objectives.polyconfm.model import PolyConFM

CONTEXT = 12  # settled units at the front of a window
LOOKAHEAD = 4  # units at its back that are drawn again
NEAREST = 3  # units between what is drawn and what was placed before the window, at least: atoms of the two are not bonded
MAX_TRIES = 4  # windows in a row that may end before a clash
FIRST_STEP_BACK = 4  # units before the clash; doubled with every try


@dataclass
class _Progress:
    """How far each of B chains is, in units of the chain.

    Attributes:
        begin: (B,) first unit of the next window; done: (B,) first unit that is not settled; tries: (B,) windows with a clash in a row.
        pose: (B,) world from the window that begins there.
    """

    begin: Tensor
    done: Tensor
    tries: Tensor
    pose: Rigid


def sample_in_windows(model: PolyConFM, condition: Condition, rng: torch.Generator) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Unit shapes and link dihedrals of whole chains.

    Args:
        model: with link dihedrals to draw, or rotations projected onto them.
        condition: B chains of any lengths.
        rng: of all draws.

    Returns:
        (U, A, 3) shapes, (U,) angles, and the clashes that were drawn and that are left.
    """
    device, num_units = condition.chain_ptr.device, condition.num_units
    x_unit = torch.zeros(len(condition.unit_chain), condition.max_atoms, 3, device=device)
    angles = torch.zeros(len(x_unit), device=device)
    info = {"clashes_drawn": 0.0, "clashes_left": 0.0, "windows": 0.0}
    zeros = torch.zeros_like(num_units)
    at = _Progress(zeros, zeros.clone(), zeros.clone(), Rigid.identity((len(zeros),), torch.float64, device))
    placed, one_unit = Placed(), first_units(condition)
    atom_start = condition.atom_ptr
    while bool((at.done < num_units).any()):
        chosen = (at.done < num_units).nonzero()[:, 0]
        stop = torch.minimum(at.begin + WINDOW, num_units)[chosen]
        part, unit = cut_chains(condition, one_unit, atom_start, chosen, at.begin[chosen], stop)
        settled = part.unit_position < (at.done - at.begin)[chosen][part.unit_chain]
        around = Surroundings(settled, at.pose[chosen], placed, chosen)
        known = model.know(part)
        x_part, tokens = model.sample_units(part, known, rng, x_unit[unit, : part.max_atoms], settled)
        given = settled & settled[part.unit_after]
        made = model.sample_links(part, known, x_part, tokens, rng, angles[unit].masked_fill(~given, torch.nan), around)
        info["clashes_drawn"] += made.num_before
        x_part, made = model.redraw_clashing(part, x_part, made, rng, around)
        x_unit[unit, : part.max_atoms], angles[unit] = x_part, made.angles_rad.to(angles.dtype)
        info["clashes_left"] += _settle(at, part, made, chosen, stop, num_units, retries=model.config.clash_rounds > 0)
        info["windows"] += len(chosen)
        _place(at, placed, part, x_part, made, chosen, num_units)
    return x_unit, angles, info


def _settle(at: _Progress, part: Condition, made: Untangled, chosen: Tensor, stop: Tensor, num_units: Tensor, *, retries: bool) -> int:
    """Move `done` of the chosen chains: to the end of the window but for its last units, or before the first clash. Clashes accepted."""
    end = torch.where(stop == num_units[chosen], stop, stop - LOOKAHEAD)
    owner = part.unit_chain[made.units[1]]
    first = torch.full_like(end, WINDOW).scatter_reduce(0, owner, part.unit_position[made.units[1]], "amin")
    clashing = first < WINDOW
    again = clashing & (at.tries[chosen] < MAX_TRIES) & (num_units[chosen] > WINDOW) & retries
    begin = at.begin[chosen]
    lowest = torch.where(begin > 0, begin + NEAREST, 0)
    back = torch.maximum(begin + first - FIRST_STEP_BACK * 2 ** at.tries[chosen], lowest)
    at.done[chosen] = torch.where(again, torch.minimum(back, end), end)
    at.tries[chosen] = torch.where(again, at.tries[chosen] + 1, 0)
    return int((~again)[owner].sum())


def _place(at: _Progress, placed: Placed, part: Condition, x_part: Tensor, made: Untangled, chosen: Tensor, num_units: Tensor) -> None:
    """Units that no later window will hold become obstacles; `begin` and the pose move on."""
    begin = at.begin[chosen]
    after = torch.maximum(begin, at.done[chosen] - CONTEXT)
    after = torch.where(at.done[chosen] < num_units[chosen], after, begin)  # a finished chain needs no obstacles
    if not bool((after > begin).any()):
        return
    chain = part.unit_chain
    key, link, start = part.key_slot[chain], part.link_slot[chain], part.unit_position == 0
    x_window, window_from_unit = assemble_links(x_part, key, link, start, made.angles_rad)
    layout = condition_layout(part)
    is_star0 = torch.arange(part.max_atoms, device=key.device)[None] == key[:, STAR0, None]
    real = layout.owned & ~(is_star0 & (start & (begin[chain] > 0))[:, None])  # a cut chain has no cap in front
    real &= (part.unit_position < (after - begin)[chain])[:, None]
    unit, slot = real.nonzero().T
    x_ang = at.pose[chosen[chain[unit]]].apply(x_window[unit, slot])
    element = part.atom_feat[part.graph_ptr[chain[unit]] + slot, 0]
    placed.add(x_ang.cpu().numpy(), chosen[chain[unit]].cpu().numpy(), vdw_radii_ang(element.cpu().numpy()))
    moved = at.pose[chosen] @ window_from_unit[part.chain_ptr[:-1] + after - begin]
    at.pose = Rigid(at.pose.rot.index_copy(0, chosen, moved.rot), at.pose.trans.index_copy(0, chosen, moved.trans))
    at.begin[chosen] = after
