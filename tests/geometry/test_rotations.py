"""Rotations against scipy and against their own definitions (T27, T35)."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.geometry.precision import full_precision
from foundation.geometry.rotations import (
    align_vectors,
    axis_rotation,
    exp_so3,
    geodesic_angle,
    log_so3,
    matrix_to_quat,
    nearest_rotation,
    quat_to_matrix,
    random_rotations,
)
from foundation.geometry.vectors import product, rotate

EYE = torch.eye(3)


def axes(count: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    v = torch.randn(count, 3, generator=rng, dtype=dtype)
    return v / v.norm(dim=-1, keepdim=True)


def test_exponential_and_logarithm_invert_each_other(rng: torch.Generator, device: str) -> None:
    angles = torch.cat([torch.zeros(1), torch.logspace(-7, 0, 40), torch.linspace(1, math.pi - 1e-3, 60)])
    v = (angles[:, None, None] * axes(50, rng)).reshape(-1, 3).to(device)
    rot = exp_so3(v)
    assert (product(rot, rot.transpose(-1, -2)) - EYE.to(device)).abs().max() < 1e-6
    assert (log_so3(rot) - v).abs().max() < 1e-5
    assert (exp_so3(log_so3(rot)) - rot).abs().max() < 1e-5


def test_exponential_agrees_with_scipy(rng: torch.Generator) -> None:
    v = torch.randn(200, 3, generator=rng, dtype=torch.float64) * 2
    expected = Rotation.from_rotvec(v.numpy())
    assert np.abs(exp_so3(v).numpy() - expected.as_matrix()).max() < 1e-14
    assert np.abs(log_so3(torch.tensor(expected.as_matrix())).numpy() - expected.as_rotvec()).max() < 1e-10
    quat = matrix_to_quat(exp_so3(v))
    assert np.abs(quat.numpy() - expected.as_quat(canonical=True, scalar_first=True)).max() < 1e-13


def test_half_turns_keep_their_axis(rng: torch.Generator) -> None:
    axis = torch.cat([axes(100, rng, torch.float64), torch.eye(3, dtype=torch.float64)])
    v = log_so3(axis_rotation(axis, torch.full((103,), math.pi, dtype=torch.float64)))
    assert (v.norm(dim=-1) - math.pi).abs().max() < 1e-9
    assert (rotate(exp_so3(v), axis) - axis).abs().max() < 1e-9


def test_quaternions_round_trip(rng: torch.Generator) -> None:
    rot = random_rotations((4, 500), rng)
    quat = matrix_to_quat(rot)
    assert (quat[..., 0] >= 0).all()
    assert (quat_to_matrix(quat) - rot).abs().max() < 1e-6
    assert (quat_to_matrix(-3 * quat) - rot).abs().max() < 1e-6


def test_gradients_are_finite_and_right_at_zero_and_far_out(rng: torch.Generator) -> None:
    v = torch.cat([torch.randn(4, 3, generator=rng, dtype=torch.float64), torch.full((1, 3), 1e-6, dtype=torch.float64)])
    v.requires_grad_()
    assert torch.autograd.gradcheck(exp_so3, v)
    assert torch.autograd.gradcheck(lambda u: log_so3(exp_so3(u)), v)
    zero = torch.zeros(1, 3, requires_grad=True)
    (jacobian,) = torch.autograd.functional.jacobian(lambda u: log_so3(exp_so3(u)), (zero,))
    assert torch.allclose(jacobian[0, :, 0], EYE)
    same = random_rotations((1,), rng).requires_grad_()
    geodesic_angle(same, same.detach()).sum().backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_geodesic_angle_measures_the_relative_turn(rng: torch.Generator) -> None:
    rot, angle = random_rotations((100,), rng), torch.linspace(0, math.pi, 100)
    assert (geodesic_angle(rot, product(rot, axis_rotation(axes(100, rng), angle))) - angle).abs().max() < 2e-6


def test_uniform_rotations_follow_haar(rng: torch.Generator) -> None:
    rot = random_rotations((100_000,), rng)
    angle = geodesic_angle(rot, EYE).double().sort().values
    empirical = torch.arange(1, len(angle) + 1, dtype=torch.float64) / len(angle)
    assert ((angle - angle.sin()) / math.pi - empirical).abs().max() < 0.01
    assert abs(angle.mean().item() - 2.2074) < 0.01  # pi / 2 + 2 / pi
    assert rot.mean(0).abs().max() < 0.01
    assert torch.equal(random_rotations((3,), torch.Generator().manual_seed(4)), random_rotations((3,), torch.Generator().manual_seed(4)))


def test_nearest_rotation_is_proper_and_nearest(rng: torch.Generator) -> None:
    m = torch.randn(300, 3, 3, generator=rng, dtype=torch.float64)
    assert (torch.linalg.det(m) < 0).any()
    rot = nearest_rotation(m)
    assert (product(rot, rot.transpose(-1, -2)) - EYE).abs().max() < 1e-12
    assert (torch.linalg.det(rot) - 1).abs().max() < 1e-12
    best = (rot * m).sum((-2, -1))
    for scale in (1e-3, 0.1, 1.0):
        other = product(rot, exp_so3(scale * torch.randn(300, 3, generator=rng, dtype=torch.float64)))
        assert ((other * m).sum((-2, -1)) <= best + 1e-12).all()


def test_nearest_rotation_has_a_gradient_on_rotations_and_off_them(rng: torch.Generator) -> None:
    m = torch.randn(5, 3, 3, generator=rng, dtype=torch.float64)
    rot = random_rotations((5,), rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(nearest_rotation, m.requires_grad_())
    assert torch.autograd.gradcheck(nearest_rotation, rot.requires_grad_())


def test_smallest_aligning_rotation(rng: torch.Generator) -> None:
    source, target = axes(200, rng, torch.float64), axes(200, rng, torch.float64)
    source[:3], target[:3] = torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)
    target[3] = source[3]
    rot = align_vectors(source, target)
    assert (rotate(rot, source) - target).abs().max() < 1e-12
    angle = torch.atan2(torch.linalg.cross(source, target).norm(dim=-1), (source * target).sum(-1))
    assert (geodesic_angle(rot, EYE.double()) - angle).abs().max() < 1e-7
    single = align_vectors(source[:3].float(), target[:3].float())
    assert (rotate(single, source[:3].float()) - target[:3].float()).abs().max() < 1e-6


def test_geometry_ignores_autocast_and_widens_half_precision(rng: torch.Generator) -> None:
    v = torch.randn(20, 3, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exp_so3(v), exp_so3(v.clone()))
        assert exp_so3(v.bfloat16()).dtype == torch.float32
        plain = full_precision(torch.matmul)(v, EYE)
        assert (v @ EYE).dtype == torch.bfloat16
    assert plain.dtype == torch.float32
    assert torch.equal(plain, v)
