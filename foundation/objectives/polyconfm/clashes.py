"""Remove clashes from sampled chains by redrawing link dihedrals between the clashing units.

Every junction has a few alternatives to the angle that was drawn for it (foundation/objectives/polyconfm/proposals.py). First it takes
the first of them at which its two units do not touch each other, all junctions at once: rejection sampling. What is left are units
further apart along the chain, to which the draw is blind. In every round each chain tries several changes, each at one junction between
two clashing units, which takes its angle from an alternative (a pivot move). The change that leaves the fewest clashes stays, unless all
make it worse. Where clashes persist, every second change is shaken by some ten degrees; where they persist still, the chain is left as it
is. All chains are treated together; the law of the angles is kept up to the selection. Units whose clash no angle removed are named in the
result: their shapes have to be drawn again.

Source: Madras and Sokal, The pivot algorithm, J. Stat. Phys. 50 (1988) 109. Differs: moves are aimed at clashes and only ever downhill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from data_shards.conformers.quality import HEAVY_CLASH_FACTOR, MAX_EXCLUDED_BONDS, vdw_radii_ang, within_bonds
from foundation.batch import Condition, to_dense
from foundation.encoders.unit import BONDED
from foundation.geometry.assembly import ChainLayout, assemble_links, condition_layout, junction_transform
from foundation.geometry.rigid import Rigid
from foundation.geometry.vectors import rotate
from foundation.objectives.polyconfm.view import bonds_across

MARGIN_ANG = 0.01  # beyond the distance at which two atoms clash, so that rounding to float32 does not make a clash
NUM_TRIALS = 8  # changes that a chain tries in one round
PATIENCE = 24  # rounds without fewer clashes after which a chain is left as it is
SHAKE_FROM, SHAKE_RAD = 8, 0.2  # from so many rounds without fewer clashes on, every second change is also shaken by so much
FAR_ANG = 1e6  # chains are set apart by this much so that one tree serves them all


@dataclass(frozen=True)
class Untangled:
    """What came of untangling.

    Attributes:
        angles_rad: (U,).
        units: (2, P) units first <= second of the clashing atom pairs that are left; equal where a unit clashes with itself.
        num_before: clashing atom pairs of two units in the first sample, all chains together.
        alternatives_rad: (P, U) what there was to choose from beside the first sample.
    """

    angles_rad: Tensor
    units: Tensor
    num_before: int
    alternatives_rad: Tensor


class Placed:
    """Atoms that stay where they are, in k-d trees of doubling sizes so that adding some costs little however many there are."""

    def __init__(self) -> None:
        self._trees: list[tuple[cKDTree, NDArray[np.float64]]] = []

    def add(self, x_ang: NDArray[np.float64], lane: NDArray[np.int64], radius_ang: NDArray[np.float64]) -> None:
        """More atoms: (M, 3) positions, (M,) lane of each, which meets no other lane, and (M,) radii."""
        points = _in_lanes(x_ang, lane)
        while self._trees and len(self._trees[-1][1]) <= 2 * len(points):
            tree, radii = self._trees.pop()
            points, radius_ang = np.concatenate([tree.data, points]), np.concatenate([radii, radius_ang])
        self._trees.append((cKDTree(points), radius_ang))

    def touched(self, x_ang: NDArray[np.float64], lane: NDArray[np.int64], radius_ang: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rows of (M, 3) atoms that clash with a placed one, as often as they do."""
        if not self._trees or not len(x_ang):
            return np.zeros(0, dtype=np.int64)
        here, found = cKDTree(_in_lanes(x_ang, lane)), [np.zeros(0, dtype=np.int64)]
        for tree, radii in self._trees:
            reach = HEAVY_CLASH_FACTOR * float(radii.max() + radius_ang.max()) + MARGIN_ANG
            near = here.sparse_distance_matrix(tree, reach, output_type="ndarray")
            close = near["v"] < HEAVY_CLASH_FACTOR * (radius_ang[near["i"]] + radii[near["j"]]) + MARGIN_ANG
            found.append(near["i"][close].astype(np.int64))
        return np.concatenate(found)


def _in_lanes(x_ang: NDArray[np.float64], lane: NDArray[np.int64]) -> NDArray[np.float64]:
    """(M, 3) finite positions, those of each lane far from all others."""
    points = np.nan_to_num(x_ang, nan=0.0, posinf=0.0, neginf=0.0)
    points[:, 0] += FAR_ANG * lane
    return points


@dataclass(frozen=True)
class Surroundings:
    """What is settled when B chains are windows of longer ones.

    Attributes:
        settled: (U,) bool, the first units of each window, whose shapes and places stay.
        pose: (B,) world from the first unit of each window.
        placed: atoms in front of the windows, in the world; at least three units lie between them and what is not settled.
        lane: (B,) of each window there.
    """

    settled: Tensor
    pose: Rigid
    placed: Placed
    lane: Tensor

    def of(self, chosen: Tensor, unit: Tensor) -> Surroundings:
        """Those of some windows, with the indices of their units."""
        return Surroundings(self.settled[unit], self.pose[chosen], self.placed, self.lane[chosen])


def untangle(
    angles_rad: Tensor,
    x_unit_ang: Tensor,
    condition: Condition,
    classes: Tensor,
    num_rounds: int,
    rng: torch.Generator,
    around: Surroundings | None = None,
) -> Untangled:
    """Choose among sampled angles so that heavy atoms more than three bonds apart do not clash (data_shards.conformers.quality).

    Args:
        angles_rad: (1 + P, U) a sample and P >= 1 alternatives.
        x_unit_ang: (U, A, 3).
        classes: (B, A, A) pair classes of the unit graphs.
        num_rounds: at most this many rounds of trials.
        around: where the chains are windows; angles between settled units are the same in all draws.
    """
    chains = _Chains.of(condition, x_unit_ang, classes, around)
    chain = condition.unit_chain
    open_from = condition.chain_ptr[:-1]  # first junction that may turn
    if around is not None:
        num_settled = torch.zeros_like(open_from).index_add(0, chain, around.settled.long())
        open_from = open_from + (num_settled - 1).clamp(min=0)
    everyone = torch.ones(condition.num_chains, dtype=torch.bool, device=chain.device)
    before = len(chains.clashes(angles_rad[:1], everyone)[0])
    best = _choose_at_junctions(angles_rad, x_unit_ang, condition, classes) if before and num_rounds else angles_rad[0].clone()
    pairs = torch.stack(chains.clashes(best[None], everyone)[1:])  # (2, P) units first < second
    count = torch.bincount(chain[pairs[0]], minlength=condition.num_chains)
    stuck = torch.zeros_like(count)  # rounds without fewer clashes
    for _ in range(num_rounds):
        active = (count > 0) & (stuck < PATIENCE)
        if not bool(active.any()):
            break
        lots = torch.rand(3, NUM_TRIALS, condition.num_chains, generator=rng, device=rng.device).to(best.device)[:, :, active]
        order = torch.argsort(chain[pairs[0]], stable=True)
        start = (count.cumsum(0) - count)[active]
        first, second = pairs[:, order[start + (lots[0] * count[active]).long()]]  # (trials, active chains)
        low = torch.maximum(first, open_from[chain[second]])
        junction = low + (lots[1] * (second - low)).long().clamp(max=second - low - 1)
        alternative = 1 + (lots[2] * (len(angles_rad) - 1)).long()
        trial = best.expand(NUM_TRIALS, -1).clone()
        angle = angles_rad[alternative, junction]
        shake = torch.randn(NUM_TRIALS, condition.num_chains, generator=rng, device=rng.device).to(angle)[:, active]
        angle[1::2] += SHAKE_RAD * shake[1::2] * (stuck[active] >= SHAKE_FROM)
        trial[torch.arange(NUM_TRIALS, device=best.device)[:, None], junction] = angle

        copy, *found = chains.clashes(trial, active)
        owner = chain[found[0]]
        counts = torch.bincount(copy * condition.num_chains + owner, minlength=NUM_TRIALS * condition.num_chains)
        fewest, chosen = counts.view(NUM_TRIALS, -1).min(0)
        accepted = active & (fewest <= count)
        stuck = torch.where(active, torch.where(fewest < count, 0, stuck + 1), stuck)
        best = torch.where(accepted[chain], trial[chosen[chain], torch.arange(len(chain), device=chain.device)], best)
        count = torch.where(accepted, fewest, count)
        fresh = accepted[owner] & (copy == chosen[owner])
        pairs = torch.cat([pairs[:, ~accepted[chain[pairs[0]]]], torch.stack(found)[:, fresh]], 1)
    return Untangled(best, torch.stack(chains.clashes(best[None], everyone, inner=True)[1:]), before, angles_rad[1:])


def _choose_at_junctions(angles_rad: Tensor, x_unit_ang: Tensor, condition: Condition, classes: Tensor) -> Tensor:
    """(U,) of the draws (R, U) at every junction: the first with the fewest clashes between its two units."""
    chain = condition.unit_chain
    apart = bonds_across(condition, classes)
    element = to_dense(condition.atom_feat[:, 0], condition.graph_ptr, condition.max_atoms)
    radius = torch.from_numpy(vdw_radii_ang(element.cpu().numpy())).to(x_unit_ang.device, torch.float64)
    limit = HEAVY_CLASH_FACTOR * (radius[:, :, None] + radius[:, None]) + MARGIN_ANG
    limit = torch.where(apart > MAX_EXCLUDED_BONDS, limit, 0.0)  # (B, A, A)

    def touching(angles: Tensor, unit: Tensor) -> Tensor:
        """(R, M) clashes between the units (M,) and those behind them; the last of a chain meets itself, to no effect."""
        draws, behind = len(angles), condition.unit_after[unit]
        key, link = condition.key_slot[chain[unit]], condition.link_slot[chain[unit]]
        front, back = x_unit_ang[unit].repeat(draws, 1, 1), x_unit_ang[behind].repeat(draws, 1, 1)
        moved = junction_transform(front, back, key.repeat(draws, 1), link.repeat(draws, 1), angles.reshape(-1)).apply(back.double())
        distance = torch.cdist(front.double(), moved).unflatten(0, (draws, len(unit)))  # (R, M, A, A)
        return (distance < limit[chain[unit]]).sum((2, 3))

    best = angles_rad[0].clone()
    clashing = touching(best[None], torch.arange(len(chain), device=chain.device))[0].nonzero()[:, 0]
    counts = touching(angles_rad[:, clashing], clashing)  # argmin of a tie is the first
    best[clashing] = angles_rad[:, clashing].gather(0, counts.argmin(0)[None])[0]
    return best


@dataclass(frozen=True)
class _Chains:
    """Chains whose link dihedrals are open: shapes on the device of the model, contacts on the CPU.

    Attributes:
        around: what is settled, where the chains are windows.
        unit: (H,) unit of every heavy atom; slot: (H,) its place in the unit.
        radius_ang: (H,) van der Waals radii.
        bonded: sorted i * H + j of atom pairs i < j at most three bonds apart.
    """

    condition: Condition
    x_unit_ang: Tensor
    around: Surroundings | None
    unit: Tensor
    slot: Tensor
    radius_ang: NDArray[np.float64]
    bonded: NDArray[np.int64]

    @classmethod
    def of(cls, condition: Condition, x_unit_ang: Tensor, classes: Tensor, around: Surroundings | None) -> _Chains:
        layout = condition_layout(condition)
        chain = condition.unit_chain
        order = torch.argsort(layout.atom[layout.owned])
        unit, slot = (index[order] for index in layout.owned.nonzero().T)
        element = condition.atom_feat[condition.graph_ptr[chain[unit]] + slot, 0]
        return cls(condition, x_unit_ang, around, unit, slot, vdw_radii_ang(element.cpu().numpy()), _bonded(layout, classes[chain]))

    def clashes(self, angles_rad: Tensor, active: Tensor, inner: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Clashing atom pairs of the active chains for several choices of angles.

        Args:
            angles_rad: (R, U).
            active: (B,) bool; other chains are left out.
            inner: count contacts inside one unit too, which do not depend on the angles.

        Returns:
            copy (P,) below R, and (P,) units first <= second.
        """
        condition, copies = self.condition, len(angles_rad)
        chain = condition.unit_chain
        units = active[chain]
        of_chain, device = chain[units], chain.device
        shapes, start = self.x_unit_ang[units], condition.unit_position[units] == 0
        key, link = condition.key_slot[of_chain], condition.link_slot[of_chain]
        parts = (shapes.repeat(copies, 1, 1), key.repeat(copies, 1), link.repeat(copies, 1), start.repeat(copies))
        world, _ = assemble_links(*parts, angles_rad[:, units].reshape(-1))
        row = units.cumsum(0) - 1
        atom = units[self.unit].nonzero()[:, 0]  # (h,) atoms of active chains
        x_ang = world.view(copies, len(of_chain), -1, 3)[:, row[self.unit[atom]], self.slot[atom]].cpu().numpy()
        lane = chain[self.unit[atom]].cpu().numpy() + condition.num_chains * np.arange(copies)[:, None]
        which, radius = atom.cpu().numpy(), self.radius_ang[atom.cpu().numpy()]
        outer = self._with_surroundings(x_ang, atom, radius)
        x_ang = _in_lanes(x_ang.reshape(-1, 3), lane.ravel()).reshape(x_ang.shape)
        reach = 2 * HEAVY_CLASH_FACTOR * float(radius.max()) + MARGIN_ANG
        i, j = cKDTree(x_ang.reshape(-1, 3)).query_pairs(reach, output_type="ndarray").T  # i < j
        copy, i, j = i // len(which), i % len(which), j % len(which)
        distance = np.linalg.norm(x_ang[copy, i] - x_ang[copy, j], axis=1)
        close = distance < HEAVY_CLASH_FACTOR * (radius[i] + radius[j]) + MARGIN_ANG
        copy, i, j = copy[close], which[i[close]], which[j[close]]
        keys = i * len(self.unit) + j
        place = np.searchsorted(self.bonded, keys).clip(max=len(self.bonded) - 1)
        units_of = self.unit.cpu().numpy()
        free = (self.bonded[place] != keys) & (inner | (units_of[i] != units_of[j]))
        if self.around is not None:
            settled = self.around.settled.cpu().numpy()
            free &= ~(settled[units_of[i]] & settled[units_of[j]])
        first, second = np.minimum(units_of[i], units_of[j])[free], np.maximum(units_of[i], units_of[j])[free]
        parts = (np.concatenate(both) for both in zip((copy[free], first, second), outer, strict=True))
        copy_all, first_all, second_all = (torch.from_numpy(part).to(device) for part in parts)
        return copy_all, first_all, second_all

    def _with_surroundings(
        self, x_ang: NDArray[np.float64], atom: Tensor, radius: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Copy, first unit of the window and clashing unit, for every clash of (R, h, 3) atoms with what was placed before the windows."""
        if self.around is None:
            return tuple(np.zeros(0, dtype=np.int64) for _ in range(3))  # type: ignore[return-value]
        chain, unit = self.condition.unit_chain, self.unit[atom]
        loose = ~self.around.settled[unit]
        place = self.around.pose[chain[unit[loose]]]
        world = rotate(place.rot, torch.from_numpy(x_ang).to(place.rot)[:, loose]) + place.trans
        lane = self.around.lane[chain[unit[loose]]].cpu().numpy()
        num = int(loose.sum())
        rows = self.around.placed.touched(
            world.reshape(-1, 3).cpu().numpy(), np.tile(lane, len(x_ang)), np.tile(radius[loose.cpu().numpy()], len(x_ang))
        )
        second = unit[loose].cpu().numpy()[rows % num] if num else rows
        first = self.condition.chain_ptr[chain].cpu().numpy()[second]
        return rows // max(num, 1), first, second


def _bonded(layout: ChainLayout, classes: Tensor) -> NDArray[np.int64]:
    """Sorted keys i * H + j, i < j, of heavy atoms at most three bonds apart; classes (U, A, A)."""
    num_atoms = int(layout.heavy_ptr[-1])
    unit, a, b = ((classes >= 1) & (classes <= BONDED)).nonzero().T
    bonds = torch.stack([layout.atom[unit, a], layout.atom[unit, b]], 1).cpu().numpy()
    near = within_bonds(bonds, num_atoms).tocoo()
    keys = near.row.astype(np.int64) * num_atoms + near.col
    return np.sort(keys[near.row <= near.col])
