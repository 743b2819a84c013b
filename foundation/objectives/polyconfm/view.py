"""A set of repeat units as the dense tensors that the local heads work on."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from foundation.batch import Condition, dense_mask, to_dense
from foundation.encoders.unit import BONDED, TWO_BONDS, dense_atoms, pair_classes
from foundation.geometry.assembly import NBR0, NBR1, STAR0, STAR1
from foundation.geometry.frames import gram_schmidt, local_coordinates
from foundation.geometry.vectors import take_slots


@dataclass(frozen=True)
class GraphView:
    """Unit graphs of a condition, dense and once per chain.

    Attributes:
        atoms: (B, A, D) features of the 2-D encoder.
        classes: (B, A, A) pair classes.
        mask: (B, A).
        torsion_slot: (B, T, 4); torsion_moved: (B, T, A); torsion_mask: (B, T), T of the largest unit, at least 1.
    """

    atoms: Tensor
    classes: Tensor
    mask: Tensor
    torsion_slot: Tensor
    torsion_moved: Tensor
    torsion_mask: Tensor

    @staticmethod
    def of(condition: Condition, atom_feature: Tensor) -> GraphView:
        """Dense view of every unit graph; atom_feature (G, D)."""
        num_torsions = max(int(condition.torsion_ptr.diff().max()), 1)
        return GraphView(
            atoms=dense_atoms(condition, atom_feature),
            classes=pair_classes(condition),
            mask=dense_mask(condition.graph_ptr, condition.max_atoms),
            torsion_slot=to_dense(condition.torsion_slot, condition.torsion_ptr, num_torsions),
            torsion_moved=to_dense(condition.torsion_moved, condition.torsion_ptr, num_torsions),
            torsion_mask=dense_mask(condition.torsion_ptr, num_torsions),
        )

    def select(self, chain: Tensor) -> GraphView:
        """Those of some chains."""
        return GraphView(*(getattr(self, field.name)[chain] for field in fields(self)))


@dataclass(frozen=True)
class UnitView:
    """M chosen units: graph of each, configuration, slots.

    Attributes:
        atoms (M, A, D), classes (M, A, A), mask (M, A), torsion_* as GraphView with M rows, handedness (M, A),
        key_slot (M, 4), frame_slot (M, 3).
    """

    atoms: Tensor
    classes: Tensor
    mask: Tensor
    torsion_slot: Tensor
    torsion_moved: Tensor
    torsion_mask: Tensor
    handedness: Tensor
    key_slot: Tensor
    frame_slot: Tensor

    @staticmethod
    def of(condition: Condition, graphs: GraphView, chosen: Tensor) -> UnitView:
        """chosen: (U,) bool."""
        chain = condition.unit_chain[chosen]
        handedness = to_dense(condition.handedness, condition.atom_ptr, condition.max_atoms)[chosen]
        parts = (graphs.atoms, graphs.classes, graphs.mask, graphs.torsion_slot, graphs.torsion_moved, graphs.torsion_mask)
        return UnitView(*(part[chain] for part in parts), handedness, condition.key_slot[chain], condition.frame_slot[chain])

    def reframe(self, x_ang: Tensor) -> Tensor:
        """(M, A, 3) coordinates in any pose -> in the frame of each unit, padding zero."""
        frame = gram_schmidt(*take_slots(x_ang.double(), self.frame_slot).unbind(1))
        return torch.where(self.mask[..., None], local_coordinates(frame, x_ang.double()), 0.0).to(torch.float32)


def bonds_across(condition: Condition, classes: Tensor) -> Tensor:
    """(B, A, A) bonds between atom i of a unit and atom j of the next, over their junction, 7 meaning 7 or more.

    0 where i or j is a star (the other unit has that atom) or padding; classes (B, A, A) as pair_classes.
    """
    slot = torch.arange(condition.max_atoms, device=classes.device)[None]
    key = condition.key_slot
    own = dense_mask(condition.graph_ptr, condition.max_atoms) & (slot != key[:, STAR0, None]) & (slot != key[:, STAR1, None])
    steps = torch.full_like(classes, 3).masked_fill(classes == TWO_BONDS, 2).masked_fill((classes >= 1) & (classes <= BONDED), 1)
    steps.diagonal(dim1=1, dim2=2).zero_()
    row = torch.arange(len(key), device=classes.device)
    return (steps[row, key[:, NBR1]][:, :, None] + 1 + steps[row, key[:, NBR0]][:, None]) * (own[:, :, None] & own[:, None])


def pick_seeds(condition: Condition, chosen: Tensor, rng: torch.Generator) -> Tensor:
    """(M, A, 3) a seed geometry for every chosen unit, drawn among those whose handedness agrees best with the unit's."""
    assert condition.seed_x_unit_ang is not None, "a torsional head needs seed geometries"
    assert condition.seed_mask is not None
    seeds = condition.seed_x_unit_ang
    chain = condition.unit_chain[chosen]
    signs = seed_handedness(condition)  # (B, K, A)
    wanted = to_dense(condition.handedness, condition.atom_ptr, condition.max_atoms)[chosen]
    agree = (signs[chain] * wanted[:, None]).sum(-1)  # (M, K)
    agree = agree.masked_fill(~condition.seed_mask[chain], -1e9)
    best = agree >= agree.max(1, keepdim=True).values - 0.5
    pick = torch.rand(best.shape, generator=rng, device=best.device).masked_fill(~best, -1.0).argmax(1)
    return seeds[chain, pick]


def seed_handedness(condition: Condition) -> Tensor:
    """(B, K, A) sign of the triple product at the stereocentres of every seed geometry, 0 elsewhere."""
    assert condition.seed_x_unit_ang is not None
    seeds = condition.seed_x_unit_ang
    chain = torch.repeat_interleave(torch.arange(condition.num_chains, device=seeds.device), condition.stereo_ptr.diff())
    points = seeds[chain[:, None], :, condition.stereo_slot]  # (C, 4, K, 3)
    arms = points[:, 1:] - points[:, :1]
    volume = (arms[:, 0] * torch.linalg.cross(arms[:, 1], arms[:, 2])).sum(-1)  # (C, K)
    signs = seeds.new_zeros(seeds.shape[:3])
    signs[chain, :, condition.stereo_slot[:, 0]] = volume.sign()
    return signs
