"""The table of docs/conventions.md: what a reflection does to frames, local coordinates, dihedrals and rotation vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foundation.geometry import igso3
from foundation.geometry.assembly import decompose
from foundation.geometry.rotations import log_so3, random_rotations
from foundation.geometry.torsions import torsion_angles, wrap_angle
from foundation.geometry.vectors import product, rotate

M = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
Built = tuple[Any, Any, Any]


@pytest.fixture
def both(chains: Callable[..., Any], fixtures: dict[str, str], rng: torch.Generator) -> Built:
    """A chain, and its image under a reflection in a plane off the axes."""
    made = chains([(fixtures["methacrylate"], 12), (fixtures["nylon6"], 6), (fixtures["methylene"], 5)])
    q = random_rotations((), rng, dtype=torch.float64)
    plane = q @ M @ q.T
    assert torch.linalg.det(plane).item() == pytest.approx(-1)
    parts = [decompose(x, made.layout, made.key_slot, made.frame_slot, made.link_slot) for x in (made.x_chain, rotate(plane, made.x_chain))]
    return made, (parts[0], parts[1]), plane


def odd(new: Tensor, old: Tensor) -> bool:
    assert old.abs().max() > 0.1  # not vacuous
    return bool((new + old).abs().max() < 1e-9)


def even(new: Tensor, old: Tensor) -> bool:
    assert old.abs().max() > 0.1
    return bool((new - old).abs().max() < 1e-9)


def test_unit_frame_coordinates(both: Built) -> None:
    _, (plain, mirror), plane = both
    assert even(mirror.x_unit_ang[..., :2], plain.x_unit_ang[..., :2])
    assert odd(mirror.x_unit_ang[..., 2], plain.x_unit_ang[..., 2])
    assert (mirror.world_from_unit.rot - plane @ plain.world_from_unit.rot @ M).abs().max() < 1e-9
    assert (torch.linalg.det(mirror.world_from_unit.rot) - 1).abs().max() < 1e-9


def test_dihedrals(both: Built, unit: Callable[[str], Any], fixtures: dict[str, str]) -> None:
    _, (plain, mirror), _ = both
    assert wrap_angle(mirror.link_dihedral_rad + plain.link_dihedral_rad).abs().max() < 1e-9
    assert plain.link_dihedral_rad.abs().max() > 0.1
    slots = torch.tensor(unit(fixtures["methacrylate"]).torsions).expand(12, -1, -1)
    old, new = (torsion_angles(p.x_unit_ang[:12], slots, torch.ones(slots.shape[:2], dtype=torch.bool)) for p in (plain, mirror))
    assert wrap_angle(new + old).abs().max() < 1e-9
    assert (old.abs() > 0.1).any()


def test_rotation_vectors_and_scores(both: Built) -> None:
    made, (plain, mirror), _ = both
    inner = ~made.start_mask[1:]
    relative = [product(p.world_from_unit.rot[:-1].transpose(-1, -2), p.world_from_unit.rot[1:])[inner] for p in (plain, mirror)]
    assert (relative[1] - M @ relative[0] @ M).abs().max() < 1e-9
    old, new = (log_so3(r) for r in relative)
    sigma = torch.full((len(old),), 0.9, dtype=torch.float64)
    for before, after in ((old, new), (igso3.score(old, sigma), igso3.score(new, sigma))):
        assert odd(after[:, :2], before[:, :2])
        assert even(after[:, 2], before[:, 2])


def test_handedness(both: Built) -> None:
    """Triple product of the three neighbours of the quaternary carbon of a methacrylate unit."""
    made, (plain, mirror), _ = both
    # three heavy neighbours: the methylene carbon, the next unit's atom and the methyl carbon
    centre = int(made.key_slot[0, 2])
    ends = [int(made.key_slot[0, 1]), int(made.key_slot[0, 3]), 4]

    def triple(x: Tensor) -> Tensor:
        a, b, c = (x[:12, k] - x[:12, centre] for k in ends)
        return (a * torch.linalg.cross(b, c)).sum(-1)

    assert odd(triple(mirror.x_unit_ang), triple(plain.x_unit_ang))
    assert triple(plain.x_unit_ang).abs().min() > 0.5


def test_igso3_density_is_blind_to_reflection(both: Built) -> None:
    _, (plain, mirror), _ = both
    angles = [log_so3(p.world_from_unit.rot[:-1].mT @ p.world_from_unit.rot[1:]).norm(dim=-1) for p in (plain, mirror)]
    sigma = torch.tensor(1.2, dtype=torch.float64)
    assert torch.allclose(igso3.log_density(angles[0], sigma), igso3.log_density(angles[1], sigma))
