"""Chains from units and back: index maps, decomposition, three ways of assembly.

Adjacent units share one whole bond: star1 of unit i is nbr0 of unit i + 1, and star0 of unit i + 1 is nbr1 of unit i. Given the units'
shapes, one angle per junction, the link dihedral, is all that is left to choose. The three ways:

    overlap     any rotations; translations follow from star1(i) = nbr0(i + 1). The second identity holds only if the rotations allow it.
    projected   rotations are first moved to the nearest ones that satisfy both identities.
    links       rotations follow from the link dihedrals; both identities hold by construction.

Units of all chains are packed (U, ...); start_mask is True at the first unit of every chain. Nothing here loops over units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.batch import Condition, to_dense, to_packed
from foundation.geometry.frames import gram_schmidt, local_coordinates, unit_frames
from foundation.geometry.precision import full_precision
from foundation.geometry.rigid import Rigid, segmented_scan
from foundation.geometry.rotations import align_vectors, axis_rotation
from foundation.geometry.torsions import dihedral
from foundation.geometry.vectors import product, rotate, take_slots, unit_vector

STAR0, NBR0, NBR1, STAR1 = range(4)  # columns of key_slot


@dataclass(frozen=True)
class ChainLayout:
    """Where every slot of every unit lies among the packed heavy atoms of the chains (order of data_shards.schema).

    Attributes:
        atom: (U, A) int64 rows of the packed heavy atoms; stars point at the atoms they are copies of; 0 in the padding.
        exists: (U, A) bool, True where the unit has the slot.
        owned: (U, A) bool, True where the slot brings its own atom (own atoms, head cap of the first, tail cap of the last unit).
        start_mask: (U,) bool.
        heavy_ptr: (B + 1,) int64 offsets of the chains into the packed heavy atoms.
    """

    atom: Tensor
    exists: Tensor
    owned: Tensor
    start_mask: Tensor
    heavy_ptr: Tensor


def chain_layout(key_slot: Tensor, atoms_per_unit: Tensor, start_mask: Tensor, max_atoms: int) -> ChainLayout:
    """Index map of a packed batch of chains.

    Args:
        key_slot: (U, 4) slots of star0, nbr0, nbr1, star1.
        atoms_per_unit: (U,) int64, stars included.
        start_mask: (U,) bool.
        max_atoms: A.
    """
    end_mask = _end_mask(start_mask)
    slot = torch.arange(max_atoms, device=key_slot.device)[None]  # (1, A)
    exists = slot < atoms_per_unit[:, None]
    is_star0, is_star1 = slot == key_slot[:, STAR0, None], slot == key_slot[:, STAR1, None]
    own = exists & ~is_star0 & ~is_star1
    rows = atoms_per_unit - 2 + start_mask.long() + end_mask.long()  # heavy atoms that each unit brings
    total = rows.cumsum(0)
    base = total - rows + start_mask.long()  # row of the first own atom
    atom = base[:, None] + own.long().cumsum(1) - 1  # (U, A), right for own slots
    before, after = _previous(start_mask), _next(end_mask)
    nbr0 = atom.gather(1, key_slot[:, NBR0, None])[:, 0]
    nbr1 = atom.gather(1, key_slot[:, NBR1, None])[:, 0]
    head = torch.where(start_mask, base - 1, nbr1[before])
    tail = torch.where(end_mask, total - 1, nbr0[after])
    atom = torch.where(is_star0, head[:, None], torch.where(is_star1, tail[:, None], atom))
    owned = own | (is_star0 & start_mask[:, None]) | (is_star1 & end_mask[:, None])
    heavy_ptr = torch.cat([total.new_zeros(1), total[end_mask]])
    return ChainLayout(torch.where(exists, atom, 0), exists, owned, start_mask, heavy_ptr)


def condition_layout(condition: Condition) -> ChainLayout:
    """Index map of the chains of a batch or condition."""
    chain = condition.unit_chain
    return chain_layout(condition.key_slot[chain], condition.atoms_per_unit, condition.unit_position == 0, condition.max_atoms)


def unit_coordinates(x_chain_ang: Tensor, layout: ChainLayout) -> Tensor:
    """Packed heavy atoms (sum of H, 3) -> (U, A, 3), stars copied from the neighbour units, padding zero."""
    return torch.where(layout.exists[..., None], x_chain_ang[layout.atom], 0.0)


def chain_coordinates(x_world_ang: Tensor, layout: ChainLayout) -> Tensor:
    """(U, A, 3) units in place -> (sum of H, 3) packed heavy atoms; stars of inner units are dropped."""
    order = torch.argsort(layout.atom[layout.owned])
    return x_world_ang[layout.owned][order]


@dataclass(frozen=True)
class Decomposition:
    """A chain as unit shapes, placements and link dihedrals.

    Attributes:
        x_unit_ang: (U, A, 3) unit frame, padding zero, dtype of the input.
        world_from_unit: (U,) rot in the dtype of the input, trans float64.
        link_dihedral_rad: (U,) junction u -> u + 1, 0 at the last unit of a chain.
    """

    x_unit_ang: Tensor
    world_from_unit: Rigid
    link_dihedral_rad: Tensor


@full_precision
def decompose(x_chain_ang: Tensor, layout: ChainLayout, key_slot: Tensor, frame_slot: Tensor, link_slot: Tensor) -> Decomposition:
    """Chains into units.

    Args:
        x_chain_ang: (sum of H, 3) packed heavy atoms, world frame.
        layout: of the same chains.
        key_slot: (U, 4).
        frame_slot: (U, 3).
        link_slot: (U, 2).
    """
    x_world = unit_coordinates(x_chain_ang, layout)
    frames = unit_frames(x_world.double(), frame_slot)
    world_from_unit = Rigid(frames.rot.to(x_chain_ang.dtype), frames.trans)
    x_unit = local_coordinates(world_from_unit, x_world.double()).to(x_chain_ang.dtype)  # by the rounded rotation: it is the one kept
    x_unit = torch.where(layout.exists[..., None], x_unit, 0.0)
    links = link_dihedrals(x_world, key_slot, link_slot, layout.start_mask)
    return Decomposition(x_unit, world_from_unit, links)


@full_precision
def overlap_translations(world_from_unit: Tensor, x_unit_ang: Tensor, key_slot: Tensor, start_mask: Tensor) -> Tensor:
    """Translations that put nbr0 of every unit on star1 of the one before.

    T = 0 at the first unit of a chain, T_i = T_{i-1} + Y_{i-1}[star1] - Y_i[nbr0] with Y = R x: a cumulative sum in float64,
    chain by chain, so that a coordinate that is not finite stays in its chain.

    Args:
        world_from_unit: (U, 3, 3) rotations.
        x_unit_ang: (U, A, 3).
        key_slot: (U, 4).
        start_mask: (U,) bool.

    Returns:
        (U, 3) float64 angstrom.

    Source: Wang et al., PolyConf, arXiv 2504.08859, assembly of repeating units. Differs: float64 accumulator, packed ragged chains.
    """
    turned = rotate(world_from_unit.double()[:, None], take_slots(x_unit_ang, key_slot[:, [STAR1, NBR0]]).double())  # (U, 2, 3)
    step = turned[_previous(start_mask), 0] - turned[:, 1]
    step = torch.where(start_mask[:, None], 0.0, step)
    ptr = torch.cat([start_mask.nonzero()[:, 0], start_mask.new_full((1,), len(start_mask), dtype=torch.int64)])
    return to_packed(to_dense(step, ptr, int(ptr.diff().max())).cumsum(1), ptr)


@full_precision
def assemble_overlap(world_from_unit: Tensor, x_unit_ang: Tensor, key_slot: Tensor, start_mask: Tensor) -> Tensor:
    """Units in place from their rotations alone: arguments of overlap_translations -> (U, A, 3) float64 world coordinates."""
    trans = overlap_translations(world_from_unit, x_unit_ang, key_slot, start_mask)
    return Rigid(world_from_unit.double(), trans).apply(x_unit_ang.double())


@full_precision
def project_rotations(rot: Tensor, x_unit_ang: Tensor, key_slot: Tensor, start_mask: Tensor) -> Tensor:
    """Rotations that satisfy both overlap identities, near the given ones.

    The rotation S from unit u + 1 to unit u must carry the direction star0 -> nbr0 of unit u + 1 onto nbr1 -> star1 of unit u: one
    angle is free. Of these the S nearest to the given relative rotation P = R_u^T R_{u+1} (largest trace of P^T S) is the smallest
    rotation that aligns the two directions, applied after P. Products of the S along the chain, log-depth, then give the rotations;
    the first unit keeps its own.

    Differs from going along the chain unit by unit, where each R_{u+1} is compared with its own prediction after its predecessor
    was projected: here every *relative* rotation is nearest to the predicted relative rotation, and a correction turns all that
    follows, as a hinge does. Both leave rotations that satisfy the identities unchanged (idempotent).

    Args:
        rot: (U, 3, 3) world_from_unit.
        x_unit_ang: (U, A, 3).
        key_slot: (U, 4).
        start_mask: (U,) bool.

    Returns:
        (U, 3, 3) float64.
    """
    key = take_slots(x_unit_ang, key_slot).double()  # (U, 4, 3)
    before = _previous(start_mask)
    arriving = unit_vector(key[:, STAR1] - key[:, NBR1])[before]  # in the frame of the unit before
    leaving = unit_vector(key[:, NBR0] - key[:, STAR0])
    wide = rot.double()
    predicted = product(wide[before].transpose(-1, -2), wide)
    relative = product(align_vectors(rotate(predicted, leaving), arriving), predicted)
    relative = torch.where(start_mask[:, None, None], wide, relative)
    return segmented_scan(relative, torch.zeros_like(leaving), start_mask).rot


@full_precision
def junction_transform(x_unit_i: Tensor, x_unit_j: Tensor, key_slot: Tensor, link_slot: Tensor, phi_rad: Tensor) -> Rigid:
    """Place unit j behind unit i.

    nbr0 of j falls on star1 of i, the direction star0 -> nbr0 of j on nbr1 -> star1 of i, and the dihedral
    link_a(i) - nbr1(i) - nbr0(j) - link_d(j) is phi. Where the two copies of the shared bond differ in length, unit i wins.

    Args:
        x_unit_i, x_unit_j: (P, A, 3).
        key_slot: (P, 4).
        link_slot: (P, 2) slots a, d.
        phi_rad: (P,).

    Returns:
        (P,) unit_i_from_unit_j, float64.
    """
    i = take_slots(x_unit_i, torch.cat([key_slot[:, [NBR1, STAR1]], link_slot[:, :1]], 1)).double()
    j = take_slots(x_unit_j, torch.cat([key_slot[:, [STAR0, NBR0]], link_slot[:, 1:]], 1)).double()
    frame_i, frame_j = gram_schmidt(*i.unbind(1)), gram_schmidt(*j.unbind(1))  # first axes: the shared bond, second: towards a and d
    axis = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=phi_rad.device).expand(len(phi_rad), 3)
    twist = Rigid(axis_rotation(axis, phi_rad.double()), torch.zeros_like(axis))
    return frame_i @ twist @ frame_j.inverse()


@full_precision
def assemble_links(
    x_unit_ang: Tensor, key_slot: Tensor, link_slot: Tensor, start_mask: Tensor, link_dihedral_rad: Tensor
) -> tuple[Tensor, Rigid]:
    """Units in place from their shapes and link dihedrals.

    Args:
        x_unit_ang: (U, A, 3).
        key_slot: (U, 4).
        link_slot: (U, 2).
        start_mask: (U,) bool.
        link_dihedral_rad: (U,) junction u -> u + 1; the value at the last unit of a chain is not read.

    Returns:
        (U, A, 3) float64 world coordinates and (U,) float64 world_from_unit; the world frame of a chain is that of its first unit.
    """
    before = _previous(start_mask)
    junction = junction_transform(x_unit_ang[before], x_unit_ang, key_slot, link_slot, link_dihedral_rad[before])
    first = start_mask[:, None]
    eye = torch.eye(3, dtype=torch.float64, device=x_unit_ang.device)
    rot = torch.where(first[..., None], eye, junction.rot)
    world_from_unit = segmented_scan(rot, torch.where(first, 0.0, junction.trans), start_mask)
    return world_from_unit.apply(x_unit_ang.double()), world_from_unit


@full_precision
def link_dihedrals(x_world_ang: Tensor, key_slot: Tensor, link_slot: Tensor, start_mask: Tensor) -> Tensor:
    """Link dihedral of every junction.

    Args:
        x_world_ang: (U, A, 3) world frame.
        key_slot: (U, 4).
        link_slot: (U, 2).
        start_mask: (U,) bool.

    Returns:
        (U,) rad in (-pi, pi], 0 at the last unit of a chain, in the dtype of x_world_ang.
    """
    end_mask = _end_mask(start_mask)
    after = _next(end_mask)
    slots = torch.stack([link_slot[:, 0], key_slot[:, NBR1], key_slot[:, NBR0], link_slot[:, 1]], 1)
    points = take_slots(x_world_ang, slots).double()
    phi = dihedral(points[:, 0], points[:, 1], points[after, 2], points[after, 3])
    return torch.where(end_mask, 0.0, phi).to(x_world_ang.dtype)


def _end_mask(start_mask: Tensor) -> Tensor:
    return torch.cat([start_mask[1:], start_mask.new_ones(1)])


def _previous(start_mask: Tensor) -> Tensor:
    """(U,) index of the unit before; a first unit names itself."""
    position = torch.arange(len(start_mask), device=start_mask.device)
    return torch.where(start_mask, position, position - 1)


def _next(end_mask: Tensor) -> Tensor:
    """(U,) index of the unit after; a last unit names itself."""
    position = torch.arange(len(end_mask), device=end_mask.device)
    return torch.where(end_mask, position, position + 1)
