"""Molecular graphs as dense tensors, whatever they came from: chains, pieces of chains, molecules. For objectives that know no units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from data_shards.schema import MoleculeGraph, MoleculeSample
from foundation.batch import ATOM_FEATURES, Batch, Condition, dense_mask, ranges, to_dense
from foundation.geometry.assembly import ChainLayout, chain_coordinates, condition_layout
from foundation.geometry.vectors import rotate

# what an atom is, without where its chain was cut into units
FEATURES: dict[str, int] = {name: number for name, number in ATOM_FEATURES.items() if name != "role"}
BONDS: dict[str, int] = {"order": 5, "ring": 2}
# bonds between two atoms: every number up to 16, then about four to a doubling; each is a sum of two before it
HOPS = (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 512)
FAR = len(HOPS) + 1  # more, or no path at all; 0: the atom itself, or padding
# two neighbours of a stereocentre, the second next after the first where the third neighbour and they turn right-handed; next before it
TURN_AFTER, TURN_BEFORE = FAR + 1, FAR + 2
CIS, TRANS = FAR + 3, FAR + 4  # substituents of a double bond with a known configuration
NUM_CLASSES = FAR + 5
DENSE = 256  # atoms up to which distances come of products of matrices


@dataclass(frozen=True)
class Molecules:
    """B molecules of at most n atoms.

    Attributes:
        atom_feat: (B, n, F) int64, columns of FEATURES.
        mask: (B, n) bool.
        bond_atom: (2, E) int64 places in the flattened (B n) atoms, both directions of every bond.
        bond_feat: (E, len(BONDS)) int64.
        classes: (B, n, n) int64, how far apart two atoms are and how they are turned; see HOPS and below.
        piece: (B n,) int64 from 0, what hangs together by bonds; every padding is a piece of its own.
        x_ang: (B, n, 3) float32, padding zero; None of a graph without coordinates.
        index: (B,) int64, place in the epoch's order, where they are read for training.
    """

    atom_feat: Tensor
    mask: Tensor
    bond_atom: Tensor
    bond_feat: Tensor
    classes: Tensor
    piece: Tensor
    x_ang: Tensor | None = None
    index: Tensor | None = None

    @property
    def num_chains(self) -> int:
        """B."""
        return len(self.mask)

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.mask.device

    @property
    def num_pieces(self) -> int:
        """How many pieces there are, padding included."""
        return int(self.piece.max()) + 1

    @property
    def one_way(self) -> Tensor:
        """(E,) bool, one direction of every bond."""
        return self.bond_atom[0] < self.bond_atom[1]

    @property
    def num_atoms(self) -> Tensor:
        """(B,) atoms of each."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: own.to(device) for name, own in every.items() if isinstance(own, Tensor)}
        return replace(self, **moved)

    def repeated(self, num: int) -> Molecules:
        """Every molecule num times, one after the other."""
        rows, n = self.mask.shape
        each = torch.arange(rows, device=self.mask.device).repeat_interleave(num)
        shift = torch.arange(num, device=self.mask.device)[:, None]
        row = (self.bond_atom // n)[:, None] * num + shift  # (2, num, E)
        atom = (row * n + (self.bond_atom % n)[:, None]).reshape(2, -1)
        piece = (self.piece.view(rows, 1, n) + self.num_pieces * shift).reshape(-1)
        x = None if self.x_ang is None else self.x_ang[each]
        return Molecules(self.atom_feat[each], self.mask[each], atom, self.bond_feat.repeat(num, 1), self.classes[each], piece, x)

    @staticmethod
    def of_chains(condition: Condition) -> tuple[Molecules, ChainLayout]:
        """Whole chains, atoms in the order of data_shards.schema, with the caps that stand for the units beyond."""
        layout, chain = condition_layout(condition), condition.unit_chain
        width = int(layout.heavy_ptr.diff().max())
        columns = [place for place, name in enumerate(ATOM_FEATURES) if name in FEATURES]
        feature = to_dense(condition.atom_feat[:, columns], condition.graph_ptr, condition.max_atoms)[chain]  # (U, A, F)
        packed = chain_coordinates(feature, layout)
        chain_of_atom = torch.repeat_interleave(torch.arange(condition.num_chains, device=packed.device), layout.heavy_ptr.diff())
        place = chain_of_atom * width + torch.arange(len(packed), device=packed.device) - layout.heavy_ptr[chain_of_atom]  # (sum of H,)
        bond_atom, bond_feat = _chain_bonds(condition, layout, place, condition.num_chains * width)
        mask = dense_mask(layout.heavy_ptr, width)
        classes = pair_classes(bond_atom, mask, _turns(condition, layout, place, mask))
        own = torch.arange(mask.numel(), device=mask.device)
        row = own // width
        padding = ~mask.reshape(-1)
        piece = torch.where(padding, condition.num_chains + padding.long().cumsum(0) - 1, row)
        return Molecules(to_dense(packed, layout.heavy_ptr, width), mask, bond_atom, bond_feat, classes, piece), layout

    @staticmethod
    def of_graphs(graphs: Sequence[MoleculeGraph]) -> Molecules:
        """Molecules, atoms in the order of each graph."""
        sizes = torch.tensor([len(own.elements) for own in graphs])
        width, ptr = int(sizes.max()), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        mask = dense_mask(ptr, width)
        columns = {"element": "elements", "degree": "degrees", "hydrogens": "hydrogens", "charge": "charges", "aromatic": "aromatic"}
        columns["ring_size"] = "ring_sizes"
        packed = torch.stack([_joined(graphs, columns[name]) + (4 if name == "charge" else 0) for name in FEATURES], 1)
        start = torch.arange(len(graphs)) * width

        def placed(name: str) -> Tensor:
            counts = torch.tensor([len(getattr(own, name)) for own in graphs])
            return _joined(graphs, name) + torch.repeat_interleave(start, counts)[:, None]

        one_way, bond_feat = placed("bonds").T, torch.stack([_joined(graphs, "bond_orders"), _joined(graphs, "bond_rings")], 1)
        bond_atom = torch.cat([one_way, one_way.flip(0)], 1)
        side = torch.zeros(*mask.shape, width)
        i, j = placed("across").T
        side[i // width, i % width, j % width] = _joined(graphs, "sides").float()
        side = side + side.transpose(1, 2)
        turn = turns(placed("around"), _joined(graphs, "signs").float(), mask)
        classes = pair_classes(bond_atom, mask, turn, side)
        both = torch.cat([bond_feat, bond_feat])
        return Molecules(to_dense(packed, ptr, width), mask, bond_atom, both, classes, connected(bond_atom, mask.numel()))

    @staticmethod
    def of_samples(samples: Sequence[MoleculeSample], conformations: Sequence[int], index: Sequence[int]) -> Molecules:
        """Molecules with one conformation each, centred.

        Args:
            samples: from shards.
            conformations: which of its K conformations each has.
            index: place of each in the epoch's order.
        """
        made = Molecules.of_graphs([sample.graph for sample in samples])
        chosen = [sample.x_ang[k] for sample, k in zip(samples, conformations, strict=True)]
        x = torch.from_numpy(np.concatenate([own - own.mean(0) for own in chosen]).astype(np.float32))
        sizes = made.num_atoms
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return replace(made, x_ang=to_dense(x, ptr, made.mask.shape[1]), index=torch.tensor(list(index)))


def _joined(graphs: Sequence[MoleculeGraph], name: str) -> Tensor:
    return torch.from_numpy(np.concatenate([getattr(own, name) for own in graphs]).astype(np.int64))


def connected(bond_atom: Tensor, number: int) -> Tensor:
    """(number,) piece of every atom by bonds (2, E); on the processor."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = bond_atom.cpu().numpy()
    _, label = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(number, number)), directed=False)
    return torch.from_numpy(label.astype(np.int64)).to(bond_atom.device)


def chain_atoms(batch: Batch) -> Tensor:
    """(U, A, 3) atoms of every unit in the world frame, padding zero."""
    x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms).double()
    x = rotate(batch.world_from_unit.double()[:, None], x_unit) + batch.origin_world_ang.double()[:, None]
    return x * dense_mask(batch.atom_ptr, batch.max_atoms)[..., None]


def _chain_bonds(condition: Condition, layout: ChainLayout, place: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(2, E) and (E, 2): bonds of all units, those between units once, ordered by their atoms; place (sum of H,) of each, below number."""
    owner = torch.searchsorted(condition.graph_ptr, condition.bond_index[0], right=True) - 1
    by_chain = torch.argsort(owner, stable=True)
    count = torch.bincount(owner, minlength=condition.num_chains)
    first = count.cumsum(0) - count
    bond, ptr = ranges(first[condition.unit_chain], count[condition.unit_chain])
    bond = by_chain[bond]
    unit = torch.repeat_interleave(torch.arange(len(ptr) - 1, device=bond.device), ptr.diff())
    slot = condition.bond_index[:, bond] - condition.graph_ptr[owner[bond]]
    i, j = (place[layout.atom[unit, end]] for end in slot)
    key, which = torch.unique(i * number + j, return_inverse=True)
    kept = torch.full_like(key, len(bond)).scatter_reduce(0, which, torch.arange(len(bond), device=bond.device), "amin")
    return torch.stack([key // number, key % number]), condition.bond_feat[bond[kept]][:, : len(BONDS)]


def _turns(condition: Condition, layout: ChainLayout, place: Tensor, mask: Tensor) -> Tensor:
    """(B, n, n) float: 1 where the second atom is next after the first around a stereocentre, -1 next before, 0 elsewhere."""
    chain = condition.unit_chain
    entry, ptr = ranges(condition.stereo_ptr[chain], condition.stereo_ptr.diff()[chain])
    unit = torch.repeat_interleave(torch.arange(len(chain), device=entry.device), ptr.diff())
    slot = condition.stereo_slot[entry]  # (centres of all units, 4)
    sign = condition.handedness[condition.atom_ptr[unit] + slot[:, 0]]
    around = place[layout.atom[unit[:, None], slot[:, 1:]]]  # (centres, 3)
    return turns(around, sign, mask)


def turns(around: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
    """(B, n, n) of stereocentres: around (C, 3) places of three neighbours, sign (C,) of their triple product, 0 where it is not known.

    Exchanging two neighbours changes the sign of the product, so that the result does not depend on how they are named.
    """
    out = torch.zeros(*mask.shape, mask.shape[1], device=mask.device)
    after = around.roll(-1, dims=1)
    row, column = around // mask.shape[1], after % mask.shape[1]
    out.index_put_((row, around % mask.shape[1], column), sign[:, None].expand(-1, 3), accumulate=True)
    return out - out.transpose(1, 2)


def pair_classes(bond_atom: Tensor, mask: Tensor, turn: Tensor | None = None, side: Tensor | None = None) -> Tensor:
    """(B, n, n) int64 classes of pairs of atoms.

    Args:
        bond_atom: (2, E) places in the flattened atoms, both directions.
        mask: (B, n).
        turn: (B, n, n) as of `turns`.
        side: (B, n, n), 1 cis, -1 trans, 0 elsewhere.
    """
    classes = _hop_classes(bond_atom, mask) if mask.shape[1] <= DENSE else _long_hop_classes(bond_atom, mask)
    if turn is not None:
        classes = torch.where(turn > 0, TURN_AFTER, torch.where(turn < 0, TURN_BEFORE, classes))
    if side is not None:
        classes = torch.where(side > 0, CIS, torch.where(side < 0, TRANS, classes))
    return classes * (mask[:, :, None] & mask[:, None])


def possible_classes(num_atoms: int) -> list[int]:
    """Classes that pairs of molecules of at most so many atoms can have: n atoms are at most n - 1 bonds apart."""
    nearest = dict(enumerate((0, *(last + 1 for last in (0, *HOPS[:-1])))))  # bonds that a class begins with
    return [k for k in range(NUM_CLASSES) if nearest.get(k, 0) < max(num_atoms, 1)]


def _hop_classes(bond_atom: Tensor, mask: Tensor) -> Tensor:
    """(B, n, n) without configurations: who reaches whom within HOPS bonds, each a product of two before it."""
    rows, n = mask.shape
    near = torch.eye(n, device=mask.device).expand(rows, n, n).clone()
    near[bond_atom[0] // n, bond_atom[0] % n, bond_atom[1] % n] = 1.0
    within = {1: near}
    classes = torch.where(near > 0, 1, FAR)
    for k, (last, hops) in enumerate(pairwise(HOPS), start=2):
        if last >= n:
            break
        near = ((near @ within[hops - last]) > 0).to(near.dtype)
        within[hops] = near
        classes = torch.where((classes == FAR) & (near > 0), k, classes)
    classes.diagonal(dim1=1, dim2=2).zero_()
    return classes


def _long_hop_classes(bond_atom: Tensor, mask: Tensor) -> Tensor:
    """The same by a search from every atom, which large molecules are cheaper by; on the processor, a molecule at a time."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path

    n = mask.shape[1]
    i, j = bond_atom.cpu().numpy()
    start = np.searchsorted(i[order := np.argsort(i, kind="stable")], np.arange(len(mask) + 1) * n)
    bound = np.array(HOPS)
    out = np.zeros((len(mask), n, n), dtype=np.int64)
    for row in range(len(mask)):
        own = order[start[row] : start[row + 1]]
        graph = coo_array((np.ones(len(own)), (i[own] % n, j[own] % n)), shape=(n, n)).tocsr()
        hops = shortest_path(graph, directed=False, unweighted=True)
        out[row] = np.where(hops == 0, 0, np.searchsorted(bound, hops) + 1)
    return torch.from_numpy(out).to(mask.device)


__all__ = [
    "BONDS", "CIS", "FAR", "FEATURES", "HOPS", "NUM_CLASSES", "TRANS", "TURN_AFTER", "TURN_BEFORE",
    "Molecules", "chain_atoms", "pair_classes", "possible_classes", "turns",
]  # fmt: skip
