"""Dihedrals and torsion updates (T17-T20)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms
from torch import Tensor

from foundation.geometry.align import kabsch
from foundation.geometry.torsions import dihedral, rotate_torsions, torsion_angles, wrap_angle

NAMES = ["ester", "nylon6", "methacrylate", "star_inside", "ring_double"]


def torsion_batch(unit: Callable[[str], Any], fixtures: dict[str, str], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Every conformer of several unit graphs in one padded batch: x, slots, moved, mask."""
    members = [(unit(fixtures[name]), shape) for name in NAMES for shape in unit(fixtures[name]).shapes]
    width, most = max(m.num_atoms for m, _ in members), max(len(m.torsions) for m, _ in members)
    x, slot = torch.zeros(len(members), width, 3, dtype=dtype), torch.zeros(len(members), most, 4, dtype=torch.int64)
    moved, mask = torch.zeros(len(members), most, width, dtype=torch.bool), torch.zeros(len(members), most, dtype=torch.bool)
    for row, (member, shape) in enumerate(members):
        num = len(member.torsions)
        x[row, : member.num_atoms] = torch.tensor(shape)
        if num:
            slot[row, :num] = torch.tensor(member.torsions)
            moved[row, :num, : member.num_atoms] = torch.tensor(member.moved)
        mask[row, :num] = True
    assert mask.any()
    assert not mask.all()
    return x, slot, moved, mask


def test_dihedral_has_the_iupac_sign_and_rdkit_values(rng: torch.Generator) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCC(C)C(=O)NCCO"))
    AllChem.EmbedMultipleConfs(mol, 20, randomSeed=3)
    x = torch.tensor(np.stack([c.GetPositions() for c in mol.GetConformers()]))
    paths = mol.GetSubstructMatches(Chem.MolFromSmarts("[!#1]~[!#1]~[!#1]~[!#1]"))
    assert len(paths) > 6
    expected = torch.tensor([[rdMolTransforms.GetDihedralRad(c, *p) for p in paths] for c in mol.GetConformers()])
    ours = dihedral(*(x[:, [p[k] for p in paths]] for k in range(4)))
    assert wrap_angle(ours - expected).abs().max() < 1e-6  # RDKit goes through an arc cosine
    assert (expected.abs() > 0.1).any()
    points = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]])  # looking along +z: clockwise from x to y is a right-handed turn
    assert dihedral(*points).item() == pytest.approx(math.pi / 2)


def test_straight_points_have_dihedral_zero_and_no_nan_gradient() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 1, 0]], requires_grad=True)
    phi = dihedral(*points.unbind(0))
    phi.backward()  # type: ignore[no-untyped-call]
    assert phi.item() == 0
    assert points.grad is not None
    assert points.grad.isfinite().all()
    free = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dihedral(*p.unbind(0)), free)


def test_wrapping() -> None:
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    y = wrap_angle(x)
    assert (y > -math.pi).all()
    assert (y <= math.pi).all()
    assert (torch.exp(1j * x) - torch.exp(1j * y)).abs().max() < 1e-12
    inside = x[(x > -math.pi) & (x <= math.pi)]
    assert torch.equal(wrap_angle(inside), inside)
    assert wrap_angle(torch.tensor([-math.pi, 3 * math.pi], dtype=torch.float64)).tolist() == [math.pi, math.pi]


def test_update_changes_exactly_the_requested_dihedral(
    unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator, device: str
) -> None:
    x, slot, moved, mask = torsion_batch(unit, fixtures)
    before = torsion_angles(x, slot, mask)
    for step in range(slot.shape[1]):
        delta = torch.zeros(mask.shape, dtype=x.dtype)
        delta[:, step] = 2 * math.pi * torch.rand(len(x), generator=rng, dtype=x.dtype) - math.pi
        y = rotate_torsions(*(v.to(device) for v in (x, slot, moved, mask, delta))).cpu()
        change = wrap_angle(torsion_angles(y, slot, mask) - before)
        assert wrap_angle(change - torch.where(mask, delta, 0.0)).abs().max() < 1e-5
        still = ~moved[:, step] | ~mask[:, step, None]
        assert (y[still] - x[still]).abs().max() < 1e-12
    assert (y - x).abs().max() > 0.5 or not mask[:, -1].any()


def test_all_torsions_at_once_keep_bonds_and_angles(unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator) -> None:
    x, slot, moved, mask = torsion_batch(unit, fixtures)
    delta = 2 * math.pi * torch.rand(mask.shape, generator=rng, dtype=x.dtype) - math.pi
    y = rotate_torsions(x, slot, moved, mask, delta)
    assert wrap_angle(torsion_angles(y, slot, mask) - torsion_angles(x, slot, mask) - torch.where(mask, delta, 0.0)).abs().max() < 1e-9
    row = 0
    for name in NAMES:
        member = unit(fixtures[name])
        for _ in member.shapes:
            neighbours = {i: [j for b in member.bonds.tolist() if i in b for j in b if j != i] for i in range(member.num_atoms)}
            pairs = torch.tensor([*member.bonds.tolist(), *((i, k) for v in neighbours.values() for i in v for k in v if i < k)])
            old, new = ((p[row][pairs[:, 0]] - p[row][pairs[:, 1]]).norm(dim=-1) for p in (x, y))
            assert (old - new).abs().max() < 1e-9  # 1-2 and 1-3 distances: bond lengths and angles
            row += 1
    assert (y - x).abs().max() > 1


def test_turning_there_and_back_restores(unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator) -> None:
    x, slot, moved, mask = torsion_batch(unit, fixtures, torch.float32)
    delta = 2 * math.pi * torch.rand(mask.shape, generator=rng) - math.pi
    flipped = [v.flip(1) for v in (slot, moved, mask)]
    y = rotate_torsions(rotate_torsions(x, slot, moved, mask, delta), *flipped, -delta.flip(1))
    assert (y - x).abs().max() < 1e-5


def test_order_does_not_matter_after_superposition(unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator) -> None:
    x, slot, moved, mask = torsion_batch(unit, fixtures)
    delta = 2 * math.pi * torch.rand(mask.shape, generator=rng, dtype=x.dtype) - math.pi
    order = torch.randperm(slot.shape[1], generator=rng)
    y = rotate_torsions(x, slot, moved, mask, delta)
    z = rotate_torsions(x, slot[:, order], moved[:, order], mask[:, order], delta[:, order])
    assert kabsch(y, z, (x != 0).any(-1))[1].max() < 1e-5


def test_batched_update_equals_one_unit_at_a_time(unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator) -> None:
    """Against a sequential numpy reference that turns one torsion of one unit about its axis (T20)."""
    x, slot, moved, mask = torsion_batch(unit, fixtures)
    delta = 2 * math.pi * torch.rand(mask.shape, generator=rng, dtype=x.dtype) - math.pi
    y = rotate_torsions(x, slot, moved, mask, delta)
    single = rotate_torsions(x.float(), slot, moved, mask, delta.float())
    for row in range(len(x)):
        p = x[row].numpy().copy()
        for step in torch.nonzero(mask[row])[:, 0].tolist():
            _, b, c, _ = slot[row, step].tolist()
            axis = (p[c] - p[b]) / np.linalg.norm(p[c] - p[b])
            k = np.cross(np.eye(3), axis)
            angle = delta[row, step].item()
            turn = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
            side = moved[row, step].numpy()
            p[side] = (p[side] - p[c]) @ turn.T + p[c]
        assert np.abs(y[row].numpy() - p).max() < 1e-10
        assert np.abs(single[row].numpy() - p).max() < 1e-4


def test_update_has_the_right_gradient(unit: Callable[[str], Any], fixtures: dict[str, str], rng: torch.Generator) -> None:
    x, slot, moved, mask = (v[[0, -1]] for v in torsion_batch(unit, fixtures))
    delta = torch.randn(mask.shape, generator=rng, dtype=x.dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: rotate_torsions(x, slot, moved, mask, d), delta)
    (grad,) = torch.autograd.grad(rotate_torsions(x, slot, moved, mask, delta).square().sum(), delta)
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))
