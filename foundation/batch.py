"""Packed ragged batches of polymer chains. No padding: offsets say where each chain, unit and atom starts.

Shape letters of the whole project
    B  chains of the batch                 U  repeat units of all chains together
    G  atoms of all *unit graphs* together (one unit graph a chain, stars included)
    N  atoms of all units together (every unit repeats its chain's unit graph, stars included)
    A  atoms of the largest unit (dense views only)      E  directed bonds of the unit graphs
    T  torsions of all unit graphs together               C  stereocentres of all unit graphs together
    L  sequence tokens of all chains together             K  seed conformations
    D  width of features    H  attention heads    S  solver steps    P  pairs

A unit u of chain b = unit_chain[u] owns the atoms atom_ptr[u] : atom_ptr[u + 1], in the slot order of the chain's unit graph
graph_ptr[b] : graph_ptr[b + 1]. Slots, and everything named *_slot, count from 0 inside a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

# Columns of Condition.atom_feat and the number of categories of each (ids outside are clipped by foundation/data/collate.py).
ATOM_FEATURES: dict[str, int] = {
    "element": 119,  # atomic number
    "role": 6,  # 0 side chain, 1 backbone (on the shortest path between the stars), 2 star0, 3 star1, 4 nbr0 or nbr1, 5 nbr0 = nbr1
    "degree": 8,  # heavy neighbours inside a long chain
    "hydrogens": 6,
    "charge": 9,  # formal charge + 4
    "aromatic": 2,
    "ring_size": 10,  # 0 none, else smallest ring, 9 = nine or more
}
BOND_FEATURES: dict[str, int] = {
    "order": 5,  # BOND_* code of data_shards.schema
    "ring": 2,
    "junction": 2,  # the bond to a star, i.e. between units
}


@dataclass(frozen=True)
class Condition:
    """What is known of a chain before it has coordinates: graph, length, configuration, sequence."""

    # chains
    chain_ptr: Tensor  # (B + 1,) int64, offsets into units
    graph_ptr: Tensor  # (B + 1,) int64, offsets into unit-graph atoms
    # unit graphs
    atom_feat: Tensor  # (G, len(ATOM_FEATURES)) int64
    represents: Tensor  # (G,) int64, unit-graph atom that each atom is a copy of: star0 -> nbr1, star1 -> nbr0, others themselves
    bond_index: Tensor  # (2, E) int64, unit-graph atoms, both directions
    bond_feat: Tensor  # (E, len(BOND_FEATURES)) int64
    key_slot: Tensor  # (B, 4) int64: star0, nbr0, nbr1, star1
    frame_slot: Tensor  # (B, 3) int64
    link_slot: Tensor  # (B, 2) int64: a beside nbr1, d beside nbr0
    # torsions inside a unit: rotating the atoms torsion_moved about the bond b-c changes the dihedral a-b-c-d
    torsion_ptr: Tensor  # (B + 1,) int64
    torsion_slot: Tensor  # (T, 4) int64
    torsion_moved: Tensor  # (T, A) bool, True where the slot turns (it is on the side of c); columns beyond the unit are False
    # stereocentres
    stereo_ptr: Tensor  # (B + 1,) int64
    stereo_slot: Tensor  # (C, 4) int64: centre and three ordered heavy neighbours
    # sequence
    token_ptr: Tensor  # (B + 1,) int64
    token_id: Tensor  # (L,) int64, foundation.encoders.sequence vocabulary
    # configuration of every unit's atoms: sign of the triple product at a stereocentre, 0 elsewhere
    handedness: Tensor  # (N,) float32 in {-1, 0, +1}
    # geometries without conformation, in the unit frame (torsional head); None where the objective does not need them
    seed_x_unit_ang: Tensor | None  # (B, K, A, 3) float32, padding zero
    seed_mask: Tensor | None  # (B, K) bool

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.chain_ptr.device

    @property
    def num_chains(self) -> int:
        return len(self.chain_ptr) - 1

    @property
    def num_units(self) -> Tensor:
        """(B,) repeat units of each chain."""
        return self.chain_ptr.diff()

    @property
    def unit_chain(self) -> Tensor:
        """(U,) chain of every unit."""
        return torch.repeat_interleave(torch.arange(self.num_chains, device=self.chain_ptr.device), self.num_units)

    @property
    def unit_position(self) -> Tensor:
        """(U,) index of every unit inside its chain, from 0."""
        chain = self.unit_chain
        return torch.arange(len(chain), device=chain.device) - self.chain_ptr[chain]

    @property
    def has_next(self) -> Tensor:
        """(U,) bool, True where a junction to the next unit exists."""
        return self.unit_position < (self.num_units - 1)[self.unit_chain]

    @property
    def unit_before(self) -> Tensor:
        """(U,) index of the unit before; a first unit names itself."""
        return torch.arange(len(self.unit_chain), device=self.chain_ptr.device) - (self.unit_position > 0).long()

    @property
    def unit_after(self) -> Tensor:
        """(U,) index of the unit after; a last unit names itself."""
        return torch.arange(len(self.unit_chain), device=self.chain_ptr.device) + self.has_next.long()

    @property
    def atoms_per_unit(self) -> Tensor:
        """(U,) atoms of every unit, stars included."""
        return self.graph_ptr.diff()[self.unit_chain]

    @property
    def atom_ptr(self) -> Tensor:
        """(U + 1,) offsets of units into the packed atoms."""
        return torch.cat([self.graph_ptr.new_zeros(1), self.atoms_per_unit.cumsum(0)])

    @property
    def atom_unit(self) -> Tensor:
        """(N,) unit of every packed atom."""
        return torch.repeat_interleave(torch.arange(len(self.unit_chain), device=self.chain_ptr.device), self.atoms_per_unit)

    @property
    def atom_slot(self) -> Tensor:
        """(N,) slot of every packed atom inside its unit."""
        unit = self.atom_unit
        return torch.arange(len(unit), device=unit.device) - self.atom_ptr[unit]

    @property
    def max_atoms(self) -> int:
        """A, atoms of the largest unit."""
        return self.torsion_moved.shape[1]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Batch(Condition):
    """Chains with one conformation each, decomposed into unit frames (x_world = R x_unit + t)."""

    x_unit_ang: Tensor  # (N, 3) float32, unit frame
    world_from_unit: Tensor  # (U, 3, 3) float32, rotation of every unit
    origin_world_ang: Tensor  # (U, 3) float64, origin of every unit frame, chain centred
    link_dihedral_rad: Tensor  # (U,) float32 in (-pi, pi], junction u -> u + 1; 0 where there is none
    index: Tensor  # (B,) int64, place of the chain in the epoch's order (for errors and reproducible noise)
    # what is computed from the repeat unit to be learned from it; None where the objective does not need it
    descriptors: Tensor | None = None  # (B, F) float32, data_shards.chem.descriptors, standardised, NaN where there is none
    levels: Tensor | None = None  # (B, L) float32, data_shards.chem.levels, likewise


def to_dense(packed: Tensor, ptr: Tensor, width: int) -> Tensor:
    """Ragged rows as one padded tensor.

    Args:
        packed: (N, ...) values.
        ptr: (R + 1,) int64 offsets of the R rows.
        width: number of columns, at least the longest row.

    Returns:
        (R, width, ...) with zeros (False for bool) in the padding.
    """
    row, column = ragged_coordinates(ptr)
    dense = packed.new_zeros((len(ptr) - 1, width, *packed.shape[1:]))
    dense[row, column] = packed
    return dense


def to_packed(dense: Tensor, ptr: Tensor) -> Tensor:
    """Inverse of to_dense: (R, width, ...) -> (N, ...)."""
    row, column = ragged_coordinates(ptr)
    return dense[row, column]


def ragged_coordinates(ptr: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) row and (N,) column of every packed entry of rows that start at ptr (R + 1,)."""
    row = torch.repeat_interleave(torch.arange(len(ptr) - 1, device=ptr.device), ptr.diff())
    return row, torch.arange(len(row), device=ptr.device) - ptr[row]


def dense_mask(ptr: Tensor, width: int) -> Tensor:
    """(R, width) bool, True where row r has a column."""
    return torch.arange(width, device=ptr.device)[None] < ptr.diff()[:, None]


def select_chains(condition: Condition, chain: Tensor) -> Condition:
    """Chains chosen by index, repeats allowed: (R,) int64 -> a Condition of R chains."""
    graph, graph_ptr = _ragged_take(condition.graph_ptr, chain)
    torsion, torsion_ptr = _ragged_take(condition.torsion_ptr, chain)
    stereo, stereo_ptr = _ragged_take(condition.stereo_ptr, chain)
    token, token_ptr = _ragged_take(condition.token_ptr, chain)
    unit, chain_ptr = _ragged_take(condition.chain_ptr, chain)
    atom, _ = _ragged_take(condition.atom_ptr, unit)
    # bonds have no offsets of their own: they lie in the unit graph of their first atom, in order
    owner = torch.searchsorted(condition.graph_ptr, condition.bond_index[0], right=True) - 1
    by_chain = torch.argsort(owner, stable=True)
    counts = torch.bincount(owner, minlength=condition.num_chains)
    bond, bond_ptr = _ragged_take(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), chain)
    bond = by_chain[bond]
    shift = graph_ptr[:-1] - condition.graph_ptr[chain]  # how far the atoms of each chosen chain moved
    bond_shift = torch.repeat_interleave(shift, bond_ptr.diff())
    graph_shift = torch.repeat_interleave(shift, graph_ptr.diff())
    seeds = condition.seed_x_unit_ang, condition.seed_mask
    return Condition(
        chain_ptr=chain_ptr,
        graph_ptr=graph_ptr,
        atom_feat=condition.atom_feat[graph],
        represents=condition.represents[graph] + graph_shift,
        bond_index=condition.bond_index[:, bond] + bond_shift,
        bond_feat=condition.bond_feat[bond],
        key_slot=condition.key_slot[chain],
        frame_slot=condition.frame_slot[chain],
        link_slot=condition.link_slot[chain],
        torsion_ptr=torsion_ptr,
        torsion_slot=condition.torsion_slot[torsion],
        torsion_moved=condition.torsion_moved[torsion],
        stereo_ptr=stereo_ptr,
        stereo_slot=condition.stereo_slot[stereo],
        token_ptr=token_ptr,
        token_id=condition.token_id[token],
        handedness=condition.handedness[atom],
        seed_x_unit_ang=None if seeds[0] is None else seeds[0][chain],
        seed_mask=None if seeds[1] is None else seeds[1][chain],
    )


def first_units(condition: Condition) -> Condition:
    """The first unit of every chain: all that graphs and sequences say, without the length."""
    count = torch.arange(condition.num_chains + 1, device=condition.chain_ptr.device)
    atoms, _ = ranges(condition.atom_ptr[condition.chain_ptr[:-1]], condition.graph_ptr.diff())
    return replace(condition, chain_ptr=count, handedness=condition.handedness[atoms])


def cut_chains(
    condition: Condition, one_unit: Condition, atom_start: Tensor, chosen: Tensor, begin: Tensor, stop: Tensor
) -> tuple[Condition, Tensor]:
    """Units begin <= i < stop of the chosen chains as chains of their own, and their units' indices in the condition.

    Args:
        condition: whole chains; one_unit: their first units; atom_start: their atom_ptr. Nothing here costs more for a longer chain.
        chosen: (C,); begin, stop: (C,).
    """
    unit, chain_ptr = ranges(condition.chain_ptr[chosen] + begin, stop - begin)
    part = replace(select_chains(one_unit, chosen), chain_ptr=chain_ptr)
    atom, _ = ranges(atom_start[unit], part.atoms_per_unit)
    return replace(part, handedness=condition.handedness[atom]), unit


def ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) first numbers and lengths of ranges -> all numbers one after the other, and offsets (R + 1,)."""
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    row, column = ragged_coordinates(ptr)
    return first[row] + column, ptr


def _ragged_take(ptr: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of the chosen rows of a ragged array, and the offsets of the result."""
    return ranges(ptr[row], ptr.diff()[row])
