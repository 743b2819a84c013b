"""Decomposition and the three assemblies (T8-T15, T32, T34)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.schema import unit_slots
from foundation.geometry.align import kabsch_rmsd_packed
from foundation.geometry.assembly import (
    Decomposition,
    assemble_links,
    assemble_overlap,
    chain_coordinates,
    decompose,
    junction_transform,
    link_dihedrals,
    overlap_translations,
    project_rotations,
    unit_coordinates,
)
from foundation.geometry.rotations import axis_rotation, exp_so3, geodesic_angle, log_so3, random_rotations
from foundation.geometry.torsions import dihedral, wrap_angle
from foundation.geometry.vectors import product, rotate, take_slots

LENGTHS = [1, 2, 3, 8, 100, 400]
MIXED = [("styrene", 3), ("methylene", 2), ("nylon6", 8), ("siloxane", 1), ("phenylene", 5), ("ester", 20), ("methylene", 9)]
Builder = Callable[..., Any]


def mixed(chains: Builder, fixtures: dict[str, str]) -> Any:
    return chains([(fixtures[name], num) for name, num in MIXED])


def take_apart(made: Any, dtype: torch.dtype = torch.float64) -> Decomposition:
    return decompose(made.x_chain.to(dtype), made.layout, made.key_slot, made.frame_slot, made.link_slot)


def centred(x: Tensor, ptr: Tensor) -> Tensor:
    """Every chain moved so that its first atom is at the origin."""
    return x - x[torch.repeat_interleave(ptr[:-1], ptr.diff())]


def superposed(x: Tensor, y: Tensor, ptr: Tensor) -> float:
    return kabsch_rmsd_packed(x.double(), y.double(), ptr).max().item()


def overlap_errors(x_world: Tensor, key_slot: Tensor, start_mask: Tensor) -> tuple[float, float]:
    """Largest violation of star1(i) = nbr0(i+1) and of nbr1(i) = star0(i+1)."""
    key = take_slots(x_world, key_slot)
    inner = ~start_mask[1:]
    return ((key[:-1, 3] - key[1:, 1]).norm(dim=-1)[inner].max().item(), (key[:-1, 2] - key[1:, 0]).norm(dim=-1)[inner].max().item())


@pytest.mark.parametrize("extended", [False, True], ids=["coil", "extended"])
@pytest.mark.parametrize("length", LENGTHS)
def test_decompose_then_assemble_is_the_identity(length: int, extended: bool, chains: Builder, fixtures: dict[str, str]) -> None:
    """T8 and T10: all fixtures of one length in one batch."""
    made = chains([(psmiles, length) for psmiles in fixtures.values()], extended=extended, seed=length)
    ptr = made.layout.heavy_ptr
    exact, single = take_apart(made), take_apart(made, torch.float32)
    truth, rounded = made.x_chain, made.x_chain.float()
    for parts, target, overlap_limit, link_limit in ((exact, truth, 1e-10, 1e-9), (single, rounded.double(), 1e-4, 5e-4)):
        world = assemble_overlap(parts.world_from_unit.rot, parts.x_unit_ang, made.key_slot, made.start_mask)
        built = chain_coordinates(world, made.layout)
        assert (centred(built, ptr) - centred(target, ptr)).abs().max() < overlap_limit
        world, _ = assemble_links(parts.x_unit_ang, made.key_slot, made.link_slot, made.start_mask, parts.link_dihedral_rad)
        limit = link_limit * (10 if length > 100 and link_limit > 1e-6 else 1)  # float32 dihedrals: 5e-3 at N = 400
        assert superposed(chain_coordinates(world, made.layout), target, ptr) < limit
    assert single.x_unit_ang.dtype == torch.float32
    assert single.world_from_unit.trans.dtype == torch.float64


def test_identity_is_exact_where_the_frames_place_the_units(chains: Builder, fixtures: dict[str, str]) -> None:
    made = mixed(chains, fixtures)
    parts = take_apart(made, torch.float32)
    world = parts.world_from_unit.to(torch.float64).apply(parts.x_unit_ang.double())
    assert (chain_coordinates(world, made.layout) - made.x_chain.float().double()).abs().max() < 3e-6
    assert parts.x_unit_ang.abs()[~made.layout.exists].max() == 0


def test_index_map_is_the_one_of_the_schema(chains: Builder, fixtures: dict[str, str], unit: Callable[[str], Any]) -> None:
    made = mixed(chains, fixtures)
    layout, row = made.layout, 0
    for b, (name, num) in enumerate(MIXED):
        member = unit(fixtures[name])
        expected = unit_slots(np.array(member.key, dtype=np.int32), member.num_atoms, num) + layout.heavy_ptr[b].item()
        assert torch.equal(layout.atom[row : row + num, : member.num_atoms], torch.tensor(expected))
        assert layout.exists[row : row + num].sum() == num * member.num_atoms
        row += num
    assert layout.heavy_ptr[-1] == len(made.x_chain)
    assert torch.equal(chain_coordinates(unit_coordinates(made.x_chain, layout), layout), made.x_chain)
    assert (~layout.exists).any()


def test_overlap_identities_before_and_after_perturbing_and_projecting(
    chains: Builder, fixtures: dict[str, str], rng: torch.Generator, device: str
) -> None:
    made = mixed(chains, fixtures)
    key, start = made.key_slot, made.start_mask
    assert overlap_errors(unit_coordinates(made.x_chain, made.layout), key, start) == (0, 0)
    parts = take_apart(made)
    noise = exp_so3(0.2 * torch.randn(len(start), 3, generator=rng, dtype=torch.float64))
    noisy = product(parts.world_from_unit.rot, noise)
    first, second = overlap_errors(assemble_overlap(noisy, parts.x_unit_ang, key, start), key, start)
    assert first < 1e-5
    assert second > 0.1
    moved = [v.to(device) for v in (noisy, parts.x_unit_ang, key, start)]
    projected = project_rotations(*moved)
    assert max(overlap_errors(assemble_overlap(projected, *moved[1:]), *moved[2:])) < 1e-5
    assert (project_rotations(projected, *moved[1:]) - projected).abs().max() < 1e-10
    exact = project_rotations(parts.world_from_unit.rot, parts.x_unit_ang, key, start)
    assert (exact - parts.world_from_unit.rot).abs().max() < 1e-10
    assert geodesic_angle(projected.cpu(), noisy)[start].max() < 1e-6  # the first unit of a chain keeps its rotation


def test_projection_is_the_nearest_admissible_relative_rotation(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    """No other twist about the shared bond is nearer to the predicted relative rotation."""
    made = mixed(chains, fixtures)
    parts = take_apart(made)
    inner = ~made.start_mask[1:]
    noisy = product(parts.world_from_unit.rot, exp_so3(0.5 * torch.randn(len(made.start_mask), 3, generator=rng, dtype=torch.float64)))
    fixed = project_rotations(noisy, parts.x_unit_ang, made.key_slot, made.start_mask)
    predicted, chosen = (product(r[:-1].transpose(-1, -2), r[1:])[inner] for r in (noisy, fixed))
    key = take_slots(parts.x_unit_ang, made.key_slot)
    bond = (key[:-1, 3] - key[:-1, 2])[inner]
    bond = bond / bond.norm(dim=-1, keepdim=True)
    best = (predicted * chosen).sum((-2, -1))
    for angle in torch.linspace(-3.1, 3.1, 32, dtype=torch.float64):
        other = product(axis_rotation(bond, angle.expand(len(bond))), chosen)
        assert ((predicted * other).sum((-2, -1)) <= best + 1e-9).all()
    assert (best < 2.99).any()


def test_assembly_ignores_where_a_unit_lies_in_its_frame(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    made = mixed(chains, fixtures)
    parts = take_apart(made)
    moved = parts.x_unit_ang + 3 * torch.randn(len(made.start_mask), 1, 3, generator=rng, dtype=torch.float64)
    for build in (
        lambda x: assemble_overlap(parts.world_from_unit.rot, x, made.key_slot, made.start_mask),
        lambda x: assemble_links(x, made.key_slot, made.link_slot, made.start_mask, parts.link_dihedral_rad)[0],
    ):
        old, new = (centred(chain_coordinates(build(x), made.layout), made.layout.heavy_ptr) for x in (parts.x_unit_ang, moved))
        assert (old - new).abs().max() < 1e-5


def test_link_assembly_equals_a_unit_by_unit_loop(chains: Builder, fixtures: dict[str, str], rng: torch.Generator, device: str) -> None:
    made = mixed(chains, fixtures)
    parts = take_apart(made)
    phi = 2 * math.pi * torch.rand(len(made.start_mask), generator=rng, dtype=torch.float64) - math.pi
    args = (parts.x_unit_ang, made.key_slot, made.link_slot, made.start_mask, phi)
    scanned, frames = assemble_links(*(v.to(device) for v in args))
    assert (geodesic_angle(frames.rot[made.start_mask.to(device)], torch.eye(3, dtype=torch.float64, device=device)) == 0).all()
    looped: list[Tensor] = []
    for u, x in enumerate(parts.x_unit_ang):
        if made.start_mask[u]:
            looped.append(x)
            continue
        star0, nbr0, nbr1, star1 = made.key_slot[u].tolist()
        a, d = made.link_slot[u].tolist()
        before = looped[-1]
        bond = (before[star1] - before[nbr1]) / (before[star1] - before[nbr1]).norm()
        turn = torch.as_tensor(_turn_onto((x[nbr0] - x[star0]).numpy(), bond.numpy()))
        placed = (x - x[nbr0]) @ turn.T + before[star1]
        now = dihedral(before[a], before[nbr1], placed[nbr0], placed[d])
        placed = rotate(axis_rotation(bond, phi[u - 1] - now), placed - before[star1]) + before[star1]
        looped.append(placed)
    extent = torch.stack(looped).abs().max()
    exists = made.layout.exists
    assert (scanned.cpu() - torch.stack(looped))[exists].abs().max() < 1e-5 * extent
    again = link_dihedrals(scanned.cpu(), made.key_slot, made.link_slot, made.start_mask)
    has_next = ~torch.cat([made.start_mask[1:], torch.ones(1, dtype=torch.bool)])
    assert wrap_angle(again - phi)[has_next].abs().max() < 1e-9
    assert (again[~has_next] == 0).all()


def _turn_onto(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Any rotation that carries one direction onto another, by scipy."""
    from scipy.spatial.transform import Rotation

    rotation, _ = Rotation.align_vectors(target[None], (source / np.linalg.norm(source))[None])
    return np.asarray(rotation.as_matrix())


def test_junctions_are_exact_for_units_that_never_met(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    """Shared bonds of different length: nbr0 is exactly on star1, directions agree, the earlier unit wins."""
    made = chains([(fixtures["ester"], 40), (fixtures["methylene"], 12)])
    parts = take_apart(made)
    x = parts.x_unit_ang * (1 + 0.02 * torch.randn(52, 1, 1, generator=rng, dtype=torch.float64))
    world, _ = assemble_links(x, made.key_slot, made.link_slot, made.start_mask, parts.link_dihedral_rad)
    key, inner = take_slots(world, made.key_slot), ~made.start_mask[1:]
    assert (key[:-1, 3] - key[1:, 1])[inner].abs().max() < 1e-9
    ahead, behind = (key[:-1, 3] - key[:-1, 2])[inner], (key[1:, 1] - key[1:, 0])[inner]
    sine = torch.linalg.cross(ahead, behind).norm(dim=-1) / (ahead.norm(dim=-1) * behind.norm(dim=-1))
    assert sine.max() < 1e-9
    assert ((ahead * behind).sum(-1) > 0).all()
    assert (ahead.norm(dim=-1) - behind.norm(dim=-1)).abs().max() > 1e-3


def test_junction_transform_places_a_pair(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    made = chains([(fixtures["nylon6"], 2), (fixtures["methylene"], 2)])
    x = take_apart(made).x_unit_ang
    key, link = made.key_slot[[0, 2]], made.link_slot[[0, 2]]
    assert link[1, 0] == key[1, 0]  # in *C* the link dihedral runs through the stars
    phi = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    rigid = junction_transform(x[[0, 2]], x[[1, 3]], key, link, phi)
    i, j = x[[0, 2]], rigid.apply(x[[1, 3]])
    at = torch.arange(2)
    assert (j[at, key[:, 1]] - i[at, key[:, 3]]).abs().max() < 1e-10
    assert (dihedral(i[at, link[:, 0]], i[at, key[:, 2]], j[at, key[:, 1]], j[at, link[:, 1]]) - phi).abs().max() < 1e-10


def test_gradients_of_all_three_assemblies(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    made = chains([(fixtures["siloxane"], 3), (fixtures["methylene"], 1), (fixtures["vinylene"], 2)])
    parts = take_apart(made)
    x, key, link, start = parts.x_unit_ang, made.key_slot, made.link_slot, made.start_mask
    phi = (0.3 + parts.link_dihedral_rad).requires_grad_()
    tangent = (0.1 * torch.randn(len(start), 3, generator=rng, dtype=torch.float64)).requires_grad_()
    shape = x.clone().requires_grad_()

    def turned(v: Tensor) -> Tensor:
        return product(parts.world_from_unit.rot, exp_so3(v))

    assert torch.autograd.gradcheck(lambda p, s: assemble_links(s, key, link, start, p)[0], (phi, shape))
    assert torch.autograd.gradcheck(lambda v, s: assemble_overlap(turned(v), s, key, start), (tangent, shape))
    assert torch.autograd.gradcheck(lambda v: project_rotations(turned(v), x, key, start), tangent)
    (grad,) = torch.autograd.grad(assemble_links(x, key, link, start, phi)[0].square().sum(), phi)
    last = torch.cat([start[1:], torch.ones(1, dtype=torch.bool)])
    assert (grad[last] == 0).all()
    assert (grad[~last] != 0).all()


def test_stored_frame_triples_are_not_collinear(fixtures: dict[str, str], chains: Builder) -> None:
    made = chains([(psmiles, 4) for psmiles in fixtures.values()])
    a, o, b = take_slots(unit_coordinates(made.x_chain, made.layout), made.frame_slot).unbind(1)
    sine = torch.linalg.cross(o - a, b - o).norm(dim=-1) / ((o - a).norm(dim=-1) * (b - o).norm(dim=-1))
    assert sine.min() > 0.15  # 0.2 on the conformers; a junction bond copied from the next unit moves it a little


def test_turning_the_target_changes_nothing_internal(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    """T15: unit shapes, link dihedrals and relative rotations are invariant; frames turn along."""
    made = mixed(chains, fixtures)
    q = random_rotations((1,), rng, dtype=torch.float64)
    turned = type(made)(rotate(q, made.x_chain) + 7.0, made.layout, made.key_slot, made.frame_slot, made.link_slot)
    old, new = take_apart(made), take_apart(turned)
    assert (old.x_unit_ang - new.x_unit_ang).abs().max() < 1e-5
    assert wrap_angle(old.link_dihedral_rad - new.link_dihedral_rad).abs().max() < 1e-5
    assert (product(q, old.world_from_unit.rot) - new.world_from_unit.rot).abs().max() < 1e-5


def test_perfect_rotations_have_zero_distance_error(chains: Builder, fixtures: dict[str, str]) -> None:
    """T32: plugging the true rotations in leaves no distance loss and no rotation left to make."""
    made = chains([(fixtures["styrene"], 30)])
    parts = take_apart(made)
    world = assemble_overlap(parts.world_from_unit.rot, parts.x_unit_ang, made.key_slot, made.start_mask)
    built = chain_coordinates(world, made.layout)
    assert (torch.cdist(built, built) - torch.cdist(made.x_chain, made.x_chain)).abs().max() < 1e-6
    own = product(parts.world_from_unit.rot.transpose(-1, -2), parts.world_from_unit.rot)
    assert log_so3(own).abs().max() < 1e-6


def test_translations_follow_the_rotations_at_every_step(chains: Builder, fixtures: dict[str, str], rng: torch.Generator) -> None:
    """T34: whatever the rotations become, the overlap keeps star1(i) on nbr0(i+1) and the first unit at T = 0."""
    made = mixed(chains, fixtures)
    x = take_apart(made, torch.float32).x_unit_ang
    rot = random_rotations((len(made.start_mask),), rng)
    for _ in range(5):
        rot = product(rot, exp_so3(0.3 * torch.randn(len(rot), 3, generator=rng)))
        trans = overlap_translations(rot, x, made.key_slot, made.start_mask)
        world = assemble_overlap(rot, x, made.key_slot, made.start_mask)
        assert (world - (rotate(rot.double()[:, None], x.double()) + trans[:, None])).abs().max() < 1e-6
        assert overlap_errors(world, made.key_slot, made.start_mask)[0] < 1e-6
        assert (trans[made.start_mask] == 0).all()
