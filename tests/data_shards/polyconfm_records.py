"""Records as the published PolyConFM data set has them, made from chains of our own builder, in every convention that its papers allow.

Written from the description of keys and shapes, not with the code that is tested: frames and quaternions come from scipy, pickles from the
standard library, tensors from torch. Graph objects are pickled under the names of PyTorch Geometric's classes, which is not installed.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from data_shards.chem.repeat_unit import RepeatUnit, _build
from data_shards.conformers.grow import grow_chain
from data_shards.schema import atom_owners, chain_elements, chain_hydrogens, unit_slots

Frame = tuple[int, int, int]  # key atoms a, o, b in the paper's numbers; the first axis goes from a to o, the origin is o


@dataclass(frozen=True)
class Grown:
    """A chain of a unit as written, canonical or not."""

    unit: RepeatUnit
    num_units: int
    heavy_ang: NDArray[np.float32]  # (H, 3) in the world frame, far from the origin
    hydrogen_ang: NDArray[np.float32]

    @property
    def hydrogen_owner(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.heavy_ang)), chain_hydrogens(self.unit.topology, self.num_units))

    @property
    def elements(self) -> NDArray[np.uint8]:
        return chain_elements(self.unit.topology, self.num_units)


@lru_cache(maxsize=64)
def grown(psmiles: str, num_units: int, tacticity: str = "atactic") -> Grown:
    """A chain of exactly this unit: the string is not replaced by its canonical form."""
    unit = _build(psmiles)
    chain = grow_chain(unit, num_units, num_conformations=1, tacticity=tacticity, seed=7)
    turn, shift = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix().T, np.array([12.0, -31.0, 7.5])
    x_heavy, x_hydrogen = ((x[0] @ turn + shift).astype(np.float32) for x in (chain.heavy_ang, chain.hydrogen_ang))
    return Grown(unit, num_units, x_heavy, x_hydrogen)


@dataclass(frozen=True)
class Style:
    """One way to write a record."""

    hydrogens: bool = False
    frames: tuple[Frame, Frame, Frame] = ((1, 2, 4), (1, 2, 4), (1, 2, 4))  # of the first, an inner and the last unit
    reversed_axis: bool = False  # the first axis goes from o to a
    translation: str = "removed"  # or kept, or centred
    world: bool = True  # tgt_coordinates are there
    rigids: str = "full"  # or rotations, or none
    noise_ang: float = 0.0  # of the copies star0
    graph: str = "unit"  # or chain
    old_graphs: bool = False  # as PyTorch Geometric wrote them before version 2
    key_points: bool = True
    protocol: int = pickle.HIGHEST_PROTOCOL


PAPER = Style(frames=((1, 3, 4),) * 3, reversed_axis=True)
REFERENCE = Style()
END_SPECIAL = Style(frames=((2, 3, 4), (1, 2, 4), (1, 2, 3)))


def key_points(unit: RepeatUnit) -> list[int]:
    """nbr0, star0, nbr1, star1: the neighbour that comes first in the string is nbr0."""
    star0, nbr0, nbr1, star1 = unit.topology.key_atoms.tolist()
    return [nbr0, star0, nbr1, star1] if nbr0 <= nbr1 else [nbr1, star1, nbr0, star0]


def record_table(chain: Grown, style: Style) -> dict[str, Any]:
    """The table that a record holds."""
    topology, num_units = chain.unit.topology, chain.num_units
    key = key_points(chain.unit)
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    turned = key[1] != int(topology.key_atoms[0])
    slots = slots[::-1] if turned else slots  # units follow one another over star1
    world = chain.heavy_ang[slots].astype(np.float64)
    symbols = [chain.unit.mol.GetAtomWithIdx(k).GetSymbol() for k in range(topology.num_atoms)]
    if style.hydrogens:
        per_slot = [int(k) for k in topology.num_hydrogens]  # the stars' too: copies of the neighbours' hydrogens
        symbols += ["H"] * sum(per_slot)
        rows = [_hydrogens_of(chain, row, per_slot) for row in slots.tolist()]
        world = np.concatenate([world, np.array(rows).reshape(num_units, -1, 3)], axis=1)
    if style.noise_ang:
        world[1:, key[1]] += style.noise_ang * np.random.default_rng(0).uniform(-0.5, 0.5, (num_units - 1, 3))
    world = world.astype(np.float32).astype(np.float64)
    places = np.array([0] + [1] * (num_units - 2) + [2] * (num_units > 1))
    paper = [key[1], key[0], key[2], key[3]]  # atoms 1, 2, 3, 4
    a, o, b = (np.array([paper[style.frames[k][axis] - 1] for k in places]) for axis in range(3))
    units = np.arange(num_units)
    rotation = _frames(world[units, a], world[units, o], world[units, b], style.reversed_axis)
    origin = {"removed": world[units, o], "kept": np.zeros((num_units, 3)), "centred": world[:, : topology.num_atoms].mean(axis=1)}
    local = (world - origin[style.translation][:, None]) @ rotation
    quaternion = Rotation.from_matrix(rotation).as_quat()[:, [3, 0, 1, 2]]
    shift = origin[style.translation] * (style.rigids == "full")
    edges = np.concatenate([topology.bonds, topology.bonds[:, ::-1]]).T.astype(np.int64)
    num_nodes = topology.num_atoms if style.graph == "unit" else len(chain.heavy_ang)
    table: dict[str, Any] = {
        "psmi": topology.psmiles.replace("*", "[*]"),
        "psmi_rep": np.zeros(768, dtype=np.float32),
        "whole_pyg": graph_object(style.old_graphs, x=torch.ones(num_nodes, 2, dtype=torch.long), edge_index=torch.tensor(edges)),
        "key_point_index": key,
        "repeat_unit_smi": "not read",
        "repeat_unit_actual_num": num_units,
        "repeat_unit_atom_symbols": symbols,
        "repeat_unit_atom_coordinates": local.astype(np.float32),
        "tgt_coordinates": world.astype(np.float32),
        "rigids_0": torch.tensor(np.concatenate([quaternion, shift], axis=1), dtype=torch.float32),
        "repeat_unit_torsion_pyg": graph_object(
            style.old_graphs, x=torch.zeros(topology.num_atoms, 45), edge_mask=torch.zeros(edges.shape[1], dtype=torch.bool)
        ),
    }
    left_out = {"tgt_coordinates": not style.world, "rigids_0": style.rigids == "none", "key_point_index": not style.key_points}
    return {name: value for name, value in table.items() if not left_out.get(name, False)}


def _hydrogens_of(chain: Grown, row: list[int], per_slot: list[int]) -> list[NDArray[np.float32]]:
    """Hydrogens on the atoms of a unit, as many on each slot as inside a chain."""
    found = []
    for atom, count in zip(row, per_slot, strict=True):
        there = np.flatnonzero(chain.hydrogen_owner == atom)[:count]
        found += [chain.hydrogen_ang[k] for k in there]
    return found


def _frames(a: NDArray[np.float64], o: NDArray[np.float64], b: NDArray[np.float64], backward: bool) -> NDArray[np.float64]:
    """(N, 3, 3) world_from_unit by Gram-Schmidt, axes as columns."""
    first = (a - o) if backward else (o - a)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = (b - o) - ((b - o) * first).sum(axis=1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=2)


class _Object:
    """Stands for a class of a library that is not installed; renamed below."""


@contextmanager
def graph_library() -> Iterator[dict[str, type]]:
    """Classes under the names of PyTorch Geometric, importable for as long as something is pickled."""
    names = {
        "torch_geometric": [],
        "torch_geometric.data": [],
        "torch_geometric.data.data": ["Data", "DataTensorAttr", "DataEdgeAttr"],
        "torch_geometric.data.storage": ["GlobalStorage"],
    }
    made: dict[str, type] = {}
    before = {name: sys.modules.get(name) for name in names}
    for module_name, classes in names.items():
        module = ModuleType(module_name)
        for name in classes:
            made[name] = _CLASSES.setdefault(name, type(name, (_Object,), {"__module__": module_name, "__qualname__": name}))
            setattr(module, name, made[name])
        sys.modules[module_name] = module
    try:
        yield made
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


_CLASSES: dict[str, type] = {}


def graph_object(old: bool, **fields: Any) -> Any:
    """A graph with these fields, laid out as PyTorch Geometric 1 or 2 does."""
    with graph_library() as classes:
        graph = classes["Data"]()
        if old:
            graph.__dict__.update(fields)
            return graph
        store = classes["GlobalStorage"]()
        store.__dict__.update(_mapping=fields, _parent=graph)
        graph.__dict__.update(_edge_attr_cls=classes["DataEdgeAttr"], _tensor_attr_cls=classes["DataTensorAttr"], _store=store)
        return graph


def pickled(table: dict[str, Any], protocol: int = pickle.HIGHEST_PROTOCOL) -> bytes:
    """A record's bytes."""
    with graph_library():
        return pickle.dumps(table, protocol=protocol)


def record_bytes(chain: Grown, style: Style) -> bytes:
    """A record's bytes in a style."""
    return pickled(record_table(chain, style), style.protocol)


def write_lmdb(path: Path, records: list[bytes], *, keys: list[str] | None = None, subdir: bool = False) -> Path:
    """An LMDB file, or a folder of one, with these records."""
    keys = [str(k) for k in range(len(records))] if keys is None else keys
    size = 2**20 + 4 * sum(map(len, records))
    with lmdb.open(str(path), subdir=subdir, map_size=size, lock=False) as environment, environment.begin(write=True) as transaction:
        for key, record in zip(keys, records, strict=True):
            transaction.put(key.encode(), record)
    return path


def atoms_of_units(chain: Grown) -> NDArray[np.int64]:
    """(H,) unit that each heavy atom belongs to."""
    topology = chain.unit.topology
    return atom_owners(topology.key_atoms, topology.num_atoms, chain.num_units)[0]
