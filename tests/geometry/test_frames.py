"""Unit frames and rigid transforms (T6, T7, T12, T14)."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.geometry.frames import gram_schmidt, local_coordinates, unit_frames
from foundation.geometry.rigid import Rigid, cumulative_compose, segmented_scan, start_mask
from foundation.geometry.rotations import random_rotations
from foundation.geometry.vectors import product, rotate

EYE = torch.eye(3)


def triples(count: int, sine: Tensor, rng: torch.Generator) -> Tensor:
    """(count, 3, 3) points a, o, b whose angle has the given sine."""
    a, u = torch.randn(count, 3, generator=rng), torch.randn(count, 3, generator=rng)
    u = u / u.norm(dim=-1, keepdim=True)
    v = torch.linalg.cross(u, torch.randn(count, 3, generator=rng))
    v = v / v.norm(dim=-1, keepdim=True)
    side = torch.where(torch.rand(count, generator=rng) < 0.5, 1.0, -1.0) * (1 - sine**2).sqrt()
    return torch.stack([a, a + 1.4 * u, a + 1.4 * u + 1.5 * (side[:, None] * u + sine[:, None] * v)], 1)


def test_frames_are_rotations_down_to_collinear(rng: torch.Generator, device: str) -> None:
    sine = torch.cat([torch.logspace(-3, 0, 10_000), torch.logspace(-9, -3, 1000), torch.zeros(1000)])
    points = triples(len(sine), sine, rng).to(device)
    frame = gram_schmidt(*points.unbind(1))
    assert (product(frame.rot.transpose(-1, -2), frame.rot) - EYE.to(device)).abs().max() < 1e-6
    assert (torch.linalg.det(frame.rot) - 1).abs().max() < 1e-6
    axis = points[:, 1] - points[:, 0]
    assert (frame.rot[..., 0] - axis / axis.norm(dim=-1, keepdim=True)).abs().max() < 1e-6
    assert torch.equal(frame.trans, points[:, 1])


def test_second_atom_direction_lies_in_the_upper_half_plane(rng: torch.Generator) -> None:
    points = triples(500, torch.full((500,), 0.5), rng)
    frame = gram_schmidt(*points.unbind(1))
    local = frame.inverse().apply(points)
    assert (local[:, 0, 0] < 0).all()
    assert local[:, 0, 1:].abs().max() < 1e-5
    assert (local[:, 2, 1] > 0.5).all()
    assert local[:, 2, 2].abs().max() < 1e-5


def test_degenerate_triples_have_the_documented_frame() -> None:
    o, z = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 2.0]])
    frame = gram_schmidt(-z, o, z)  # e0 = z, so e1 = x, the first of the two most perpendicular axes
    assert torch.equal(frame.rot[0], torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(gram_schmidt(-z, o, o).rot, frame.rot)
    assert torch.equal(gram_schmidt(o, o, o).rot[0], EYE)
    points = torch.stack([-z, o, z]).requires_grad_()
    gram_schmidt(*points.unbind(0)).rot.sum().backward()  # type: ignore[no-untyped-call]
    assert points.grad is not None
    assert points.grad.isfinite().all()


def test_frames_turn_and_move_with_the_molecule(rng: torch.Generator) -> None:
    x = torch.randn(2000, 8, 3, generator=rng)
    a, o, b = x[:, 0], x[:, 3], x[:, 5]
    sine = torch.linalg.cross(o - a, b - o).norm(dim=-1) / ((o - a).norm(dim=-1) * (b - o).norm(dim=-1))
    x = x[sine > 0.2]
    slot = torch.tensor([0, 3, 5]).expand(len(x), 3)
    q, c = random_rotations((len(x),), rng), torch.randn(len(x), 3, generator=rng)
    moved = rotate(q[:, None], x) + c[:, None]
    frame, turned = unit_frames(x, slot), unit_frames(moved, slot)
    assert (turned.rot - product(q, frame.rot)).abs().max() < 1e-5
    assert (turned.trans - (rotate(q, frame.trans) + c)).abs().max() < 1e-5
    assert (local_coordinates(turned, moved) - local_coordinates(frame, x)).abs().max() < 1e-5


def test_packed_and_dense_units_give_the_same_frames(rng: torch.Generator) -> None:
    x = torch.randn(6, 5, 3, generator=rng)
    slot = torch.stack([torch.randperm(5, generator=rng)[:3] for _ in range(6)])
    ptr = torch.arange(0, 31, 5)
    dense, packed = unit_frames(x, slot), unit_frames(x.reshape(-1, 3), slot, ptr)
    absolute = unit_frames(x.reshape(-1, 3), slot + ptr[:-1, None])
    assert torch.equal(dense.rot, packed.rot)
    assert torch.equal(dense.rot, absolute.rot)
    assert torch.equal(dense.trans, packed.trans)


def random_rigid(count: int, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Rigid:
    return Rigid(random_rotations((count,), rng, dtype=dtype), 5 * torch.randn(count, 3, generator=rng, dtype=dtype))


def test_rigid_algebra(rng: torch.Generator) -> None:
    left, right = random_rigid(10, rng), random_rigid(10, rng)
    x = torch.randn(10, 7, 3, generator=rng, dtype=torch.float64)
    assert torch.allclose((left @ right).apply(x), left.apply(right.apply(x)))
    assert torch.allclose(left.apply(x[:, 0]), left.apply(x)[:, 0])
    both = left @ left.inverse()
    assert torch.allclose(both.rot, EYE.double().expand(10, 3, 3))
    assert both.trans.abs().max() < 1e-12
    assert torch.equal(left[3].rot, left.rot[3])
    assert torch.equal(Rigid.identity((2,)).to(torch.float64).apply(x[:2]), x[:2])


def test_scan_equals_a_loop_on_ragged_chains(rng: torch.Generator, device: str) -> None:
    lengths = [1, 2, 3, 1, 8, 100, 1, 400]
    ptr = torch.tensor([0, *lengths]).cumsum(0)
    steps = random_rigid(int(ptr[-1]), rng)
    expected_rot, expected_trans = [], []
    for first, last in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        product_so_far = steps[first : first + 1]
        for u in range(first, last):
            product_so_far = product_so_far if u == first else product_so_far @ steps[u : u + 1]
            expected_rot.append(product_so_far.rot[0])
            expected_trans.append(product_so_far.trans[0])
    moved = Rigid(steps.rot.to(device), steps.trans.to(device))
    scanned = cumulative_compose(moved, ptr.to(device))
    extent = torch.stack(expected_trans).abs().max()
    assert (scanned.rot.cpu() - torch.stack(expected_rot)).abs().max() < 1e-12
    assert (scanned.trans.cpu() - torch.stack(expected_trans)).abs().max() < 1e-12 * extent
    whole = cumulative_compose(moved)
    assert torch.equal(whole.rot[:1], moved.rot[:1])
    assert (whole.rot - scanned.rot).abs().max() > 0.1  # without offsets the chains run on


def test_scan_has_the_gradient_of_the_product(rng: torch.Generator) -> None:
    steps = random_rigid(7, rng)
    starts = start_mask(torch.tensor([0, 3, 4, 7]))
    assert starts.tolist() == [True, False, False, True, True, False, False]

    def scan(rot: Tensor, trans: Tensor) -> tuple[Tensor, Tensor]:
        out = segmented_scan(rot, trans, starts)
        return out.rot, out.trans

    assert torch.autograd.gradcheck(scan, (steps.rot.requires_grad_(), steps.trans.requires_grad_()))
