"""Decomposition and assembly on chains grown by the platform itself, with the topologies that shards hold (T8-T10, T14, T16)."""

from __future__ import annotations

from functools import cache

import networkx
import numpy as np
import pytest
import torch
from rdkit import Chem, RDLogger
from torch import Tensor

from data_shards.chem.repeat_unit import RepeatUnit, build_unit
from data_shards.chem.topology import rotatable_bonds
from data_shards.conformers.grow import grow_chain
from foundation.geometry.align import kabsch_rmsd_packed
from foundation.geometry.assembly import (
    ChainLayout,
    assemble_links,
    assemble_overlap,
    chain_coordinates,
    chain_layout,
    decompose,
    project_rotations,
)
from foundation.geometry.torsions import rotate_torsions, torsion_angles, wrap_angle

POLYMERS = ["*CC(*)c1ccccc1", "*C*", "*O[Si](*)(C)C", "*c1ccc(*)cc1", "*NC(=O)CCCCC(*)=O"]
SPECIAL = ["*C=C*", "*C#C*", "*CC(*)(C)C(=O)OC", "*Oc1ccc(CC(*)=O)cc1", "*CC(*)C#N", "*C#CC(*)=C"]


@cache
def grown(psmiles: str, num_units: int) -> tuple[RepeatUnit, Tensor]:
    unit = build_unit(psmiles)
    return unit, torch.tensor(grow_chain(unit, num_units, num_conformations=1, seed=4).heavy_ang[0])


def packed(members: list[tuple[str, int]]) -> tuple[Tensor, ChainLayout, Tensor, Tensor, Tensor]:
    """Chains of several lengths in one batch: float32 coordinates, layout, key, frame and link slots."""
    made = [(*grown(psmiles, num), num) for psmiles, num in members]
    num = torch.tensor([n for *_, n in made])
    rows = [
        torch.tensor(np.array([getattr(u.topology, name) for u, *_ in made])).long() for name in ("key_atoms", "frame_atoms", "link_atoms")
    ]
    key, frame, link = (r.repeat_interleave(num, 0) for r in rows)
    atoms = torch.tensor([u.topology.num_atoms for u, *_ in made]).repeat_interleave(num)
    start = torch.cat([torch.arange(n) == 0 for n in num.tolist()])
    layout = chain_layout(key, atoms, start, int(atoms.max()))
    return torch.cat([x for _, x, _ in made]), layout, key, frame, link


def assert_round_trip(members: list[tuple[str, int]]) -> None:
    x, layout, key, frame, link = packed(members)
    parts = decompose(x, layout, key, frame, link)
    origin = layout.heavy_ptr[:-1].repeat_interleave(layout.heavy_ptr.diff())
    rot = parts.world_from_unit.rot
    projected = project_rotations(rot, parts.x_unit_ang, key, layout.start_mask)
    # projection reads the rotations as hinges, so float32 shapes bend a chain as float32 dihedrals do (T10)
    for turned, limit in ((rot, 1e-4), (projected, 5e-3)):
        built = chain_coordinates(assemble_overlap(turned, parts.x_unit_ang, key, layout.start_mask), layout)
        assert ((built - built[origin]) - (x - x[origin])).abs().max() < limit
    world, _ = assemble_links(parts.x_unit_ang, key, link, layout.start_mask, parts.link_dihedral_rad)
    built = chain_coordinates(world, layout)
    for b, (_, num) in enumerate(members):
        one = slice(int(layout.heavy_ptr[b]), int(layout.heavy_ptr[b + 1]))
        rmsd = kabsch_rmsd_packed(built[one], x[one].double(), torch.tensor([0, one.stop - one.start]))
        assert rmsd < (5e-4 if num <= 100 else 5e-3)


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_grown_chains_of_every_length_round_trip(psmiles: str) -> None:
    assert_round_trip([(psmiles, n) for n in (1, 2, 3, 8, 100)])


@pytest.mark.slow
@pytest.mark.parametrize("psmiles", POLYMERS)
def test_long_grown_chains_round_trip(psmiles: str) -> None:
    assert_round_trip([(psmiles, 400)])


def test_units_with_linear_parts_and_double_bonds_round_trip() -> None:
    assert_round_trip([(psmiles, n) for psmiles in SPECIAL for n in (1, 2, 7)])


def test_torsions_of_the_schema_turn_what_they_name(rng: torch.Generator) -> None:
    """The platform's rotatable bonds against a graph library, and one update of all of them."""
    RDLogger.DisableLog("rdApp.*")
    for psmiles in [*POLYMERS, *SPECIAL]:
        unit, _ = grown(psmiles, 1 if psmiles in POLYMERS else 2)
        topology = unit.topology
        slots, moved = rotatable_bonds(topology)
        graph = networkx.Graph(topology.bonds.tolist())
        for (a, b, c, d), side in zip(slots.tolist(), moved, strict=True):
            cut = graph.copy()
            cut.remove_edge(b, c)
            assert not networkx.has_path(cut, b, c)
            assert set(np.flatnonzero(side).tolist()) | {c} == set(networkx.node_connected_component(cut, c))
            assert a in graph[b]
            assert d in graph[c]
        if not len(slots):
            continue
        assert isinstance(unit.mol, Chem.Mol)
        x, layout, *_ = packed([(psmiles, 2 if psmiles in SPECIAL else 1)])
        x_unit = x[layout.atom].double()
        slot, move = torch.tensor(slots).long().expand(len(x_unit), -1, -1), torch.tensor(moved).expand(len(x_unit), -1, -1)
        mask = torch.ones(slot.shape[:2], dtype=torch.bool)
        delta = 6 * torch.rand(mask.shape, generator=rng, dtype=torch.float64) - 3
        change = torsion_angles(rotate_torsions(x_unit, slot, move, mask, delta), slot, mask) - torsion_angles(x_unit, slot, mask)
        assert wrap_angle(change - delta).abs().max() < 1e-5
