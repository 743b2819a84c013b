"""Samples to packed batches. Frames, torsions, rings and handedness are derived here; shards hold only facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.chem.descriptors import standardised_descriptors
from data_shards.chem.levels import standardised_levels
from data_shards.chem.topology import adjacency, backbone, ring_bonds, rotatable_bonds, smallest_ring_size
from data_shards.schema import PolymerSample, TopologyKey, UnitTopology
from foundation.batch import ATOM_FEATURES, BOND_FEATURES, Batch, Condition, ragged_coordinates, to_packed
from foundation.encoders.sequence import tokenise
from foundation.geometry.assembly import condition_layout, decompose
from foundation.geometry.frames import gram_schmidt, local_coordinates


@dataclass(frozen=True)
class ChainExample:
    """One chain with one conformation: a Batch of one chain."""

    batch: Batch


TARGETS = {"descriptors": standardised_descriptors, "levels": standardised_levels}  # fields of Batch that follow from the repeat unit
_TARGETS: dict[tuple[str, str], NDArray[np.float32]] = {}  # by name and canonical P-SMILES
_TARGETS_SIZE = 131_072  # 40 MB


def graph_tensors(topology: UnitTopology) -> dict[str, Tensor]:
    """Fields of Condition that follow from the unit graph alone, for one chain; cached by content."""
    return _graph_tensors(TopologyKey(topology))


@lru_cache(maxsize=4096)
def _graph_tensors(key: TopologyKey) -> dict[str, Tensor]:
    topology = key.topology
    star0, nbr0, nbr1, star1 = (int(k) for k in topology.key_atoms)
    stands_for = np.arange(topology.num_atoms)
    stands_for[[star0, star1]] = nbr1, nbr0
    role = backbone(topology).astype(np.int64)
    role[[star0, star1]] = 2, 3
    role[[nbr0, nbr1]] = 4 if nbr0 != nbr1 else 5
    columns = {
        "element": topology.elements,
        "role": role,
        "degree": adjacency(topology).sum(1)[stands_for],
        "hydrogens": topology.num_hydrogens,
        "charge": topology.formal_charges.astype(np.int64) + 4,
        "aromatic": topology.aromatic,
        "ring_size": np.minimum(smallest_ring_size(topology), 9)[stands_for],
    }
    atom_feat = np.stack([np.clip(columns[name].astype(np.int64), 0, num - 1) for name, num in ATOM_FEATURES.items()], 1)
    junction = np.isin(topology.bonds, [star0, star1]).any(1)
    bond_columns = {"order": topology.bond_orders, "ring": ring_bonds(topology), "junction": junction}
    bond_feat = np.stack([bond_columns[name].astype(np.int64) for name in BOND_FEATURES], 1)
    torsion_slot, torsion_moved = rotatable_bonds(topology)
    stereo = np.concatenate([topology.stereo_centres[:, None], topology.stereo_neighbours], 1)
    return {
        "atom_feat": torch.from_numpy(atom_feat),
        "represents": torch.from_numpy(stands_for),
        "bond_index": torch.from_numpy(np.concatenate([topology.bonds, topology.bonds[:, ::-1]]).T.astype(np.int64).copy()),
        "bond_feat": torch.from_numpy(np.concatenate([bond_feat, bond_feat])),
        "key_slot": torch.from_numpy(topology.key_atoms.astype(np.int64))[None],
        "frame_slot": torch.from_numpy(topology.frame_atoms.astype(np.int64))[None],
        "link_slot": torch.from_numpy(topology.link_atoms.astype(np.int64))[None],
        "torsion_slot": torch.from_numpy(torsion_slot.astype(np.int64)),
        "torsion_moved": torch.from_numpy(torsion_moved),
        "stereo_slot": torch.from_numpy(stereo.astype(np.int64)).reshape(-1, 4),
        "token_id": torch.tensor(tokenise(topology.psmiles)),
    }


def target_of(name: str, topology: UnitTopology) -> NDArray[np.float32]:
    """What TARGETS says of a repeat unit; kept, as they are slow: computing one takes as long as reading ten chains."""
    key = name, topology.psmiles
    if key not in _TARGETS:
        if len(_TARGETS) >= _TARGETS_SIZE:
            _TARGETS.clear()
        _TARGETS[key] = TARGETS[name](topology)
    return _TARGETS[key]


def condition(
    topology: UnitTopology, num_units: int, handedness: NDArray[np.int8], seeds_ang: NDArray[np.float32] | None = None
) -> Condition:
    """A chain without coordinates, as a Condition of one chain.

    Args:
        topology: of the repeat unit.
        num_units: N.
        handedness: (N, c) signs of data_shards.chem.chain.tacticity_signs.
        seeds_ang: (K, n, 3) geometries of the unit in any pose, for objectives that start from them.
    """
    graph = graph_tensors(topology)
    sizes = {"graph_ptr": topology.num_atoms, "chain_ptr": num_units}
    lengths = {"torsion_ptr": graph["torsion_slot"], "stereo_ptr": graph["stereo_slot"], "token_ptr": graph["token_id"]}
    offsets = {name: torch.tensor([0, size]) for name, size in (sizes | {k: len(v) for k, v in lengths.items()}).items()}
    signs = torch.zeros(num_units, topology.num_atoms)
    signs[:, torch.from_numpy(topology.stereo_centres.astype(np.int64))] = torch.from_numpy(np.asarray(handedness, dtype=np.float32))
    seeds = mask = None
    if seeds_ang is not None:
        x = torch.from_numpy(np.asarray(seeds_ang, dtype=np.float32))
        frame = gram_schmidt(*x.double()[:, graph["frame_slot"][0]].unbind(1))
        seeds = local_coordinates(frame, x.double()).float()[None]
        mask = torch.ones(1, len(x), dtype=torch.bool)
    return Condition(**offsets, **graph, handedness=signs.reshape(-1), seed_x_unit_ang=seeds, seed_mask=mask)


def build_batch(samples: Sequence[PolymerSample], conformations: Sequence[int], index: Sequence[int], targets: Sequence[str] = ()) -> Batch:
    """Chains with one conformation each, decomposed into unit frames and packed in the order given.

    Args:
        samples: from shards.
        conformations: which of its K conformations each chain has.
        index: place of each chain in the epoch's order.
        targets: names of TARGETS that the batch has too.
    """
    given = collate_conditions(
        [condition(s.topology, s.num_units, np.zeros((s.num_units, len(s.topology.stereo_centres)), dtype=np.int8)) for s in samples]
    )
    chains = [np.asarray(s.heavy_ang[k], dtype=np.float64) for s, k in zip(samples, conformations, strict=True)]
    x_ang = torch.from_numpy(np.concatenate([x - x.mean(0) for x in chains]).astype(np.float32))
    layout, chain = condition_layout(given), given.unit_chain
    parts = decompose(x_ang, layout, given.key_slot[chain], given.frame_slot[chain], given.link_slot[chain])
    known = {f.name: getattr(given, f.name) for f in fields(Condition)}
    return Batch(
        **known | {"handedness": handedness(given, parts.x_unit_ang)},
        x_unit_ang=to_packed(parts.x_unit_ang, given.atom_ptr),
        world_from_unit=parts.world_from_unit.rot,
        origin_world_ang=parts.world_from_unit.trans,
        link_dihedral_rad=parts.link_dihedral_rad,
        index=torch.tensor(list(index)),
        **{name: torch.from_numpy(np.stack([target_of(name, s.topology) for s in samples])) for name in targets},
    )


def handedness(given: Condition, x_unit_ang: Tensor) -> Tensor:
    """(N,) sign of the triple product of the three named neighbours at every stereocentre of every unit, 0 elsewhere.

    Args:
        given: the chains.
        x_unit_ang: (U, A, 3).
    """
    unit, place = ragged_coordinates(torch.cat([given.stereo_ptr.new_zeros(1), given.stereo_ptr.diff()[given.unit_chain].cumsum(0)]))
    slot = given.stereo_slot[given.stereo_ptr[given.unit_chain[unit]] + place]  # (centres of all units, 4)
    points = x_unit_ang[unit[:, None], slot].double()
    arms = points[:, 1:] - points[:, :1]
    signs = x_unit_ang.new_zeros(len(given.handedness))
    signs[given.atom_ptr[unit] + slot[:, 0]] = torch.linalg.det(arms).sign().to(signs.dtype)
    return signs


def featurise(sample: PolymerSample, conformation: int, index: int = 0) -> ChainExample:
    """One conformation of one sample, decomposed into unit frames."""
    return ChainExample(build_batch([sample], [conformation], [index]))


def collate_conditions(items: Sequence[Condition]) -> Condition:
    """Conditions of one or more chains each, packed into one."""
    return Condition(**_pack(items, Condition))


def collate(examples: Sequence[ChainExample]) -> Batch:
    """Chains packed into a batch, in the order given."""
    return Batch(**_pack([example.batch for example in examples], Batch))


def _pack(items: Sequence[Condition], kind: type[Condition]) -> dict[str, Any]:
    width = max(item.max_atoms for item in items)
    shift = np.cumsum([0, *(len(item.atom_feat) for item in items[:-1])])
    out: dict[str, Any] = {}
    for name in (f.name for f in fields(kind)):
        values = [getattr(item, name) for item in items]
        if any(value is None for value in values):
            out[name] = None
        elif name.endswith("_ptr"):
            out[name] = torch.cat([values[0].new_zeros(1), torch.cat([v.diff() for v in values]).cumsum(0)])
        elif name in ("represents", "bond_index"):
            out[name] = torch.cat([v + int(s) for v, s in zip(values, shift, strict=True)], -1)
        elif name == "torsion_moved":
            out[name] = torch.cat([_widen(v, 1, width) for v in values])
        elif name in ("seed_x_unit_ang", "seed_mask"):
            seeds = max(v.shape[1] for v in values)
            widened = [_widen(v, 1, seeds) for v in values]
            out[name] = torch.cat([_widen(v, 2, width) if v.ndim == 4 else v for v in widened])
        else:
            out[name] = torch.cat(values)
    return out


def _widen(value: Tensor, axis: int, size: int) -> Tensor:
    shape = list(value.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([value, value.new_zeros(shape)], axis)


def mirror(batch: Batch) -> Batch:
    """The mirror image of every chain (docs/conventions.md): z, dihedrals and handedness change sign."""
    flip = torch.tensor([1.0, 1.0, -1.0])
    seeds = batch.seed_x_unit_ang
    return replace(
        batch,
        x_unit_ang=batch.x_unit_ang * flip,
        world_from_unit=flip[:, None] * batch.world_from_unit * flip,
        origin_world_ang=batch.origin_world_ang * flip.double(),
        link_dihedral_rad=-batch.link_dihedral_rad,
        handedness=-batch.handedness,
        seed_x_unit_ang=None if seeds is None else seeds * flip,
    )
