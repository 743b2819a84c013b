"""Superposition (T59)."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.geometry.align import kabsch, kabsch_packed, kabsch_rmsd_packed
from foundation.geometry.rigid import Rigid
from foundation.geometry.rotations import random_rotations
from foundation.geometry.vectors import rotate


def moved(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Rigid]:
    rigid = Rigid(random_rotations(x.shape[:-2], rng, x.device), torch.randn(*x.shape[:-2], 3, generator=rng).to(x.device) * 10)
    return rigid.apply(x), rigid


def test_recovers_a_rigid_motion(rng: torch.Generator, device: str) -> None:
    x = torch.randn(64, 30, 3, generator=rng).to(device) * 5
    y, truth = moved(x, rng)
    fit, rmsd = kabsch(x, y)
    assert (fit.rot - truth.rot).abs().max() < 1e-5
    assert (fit.apply(x) - y).abs().max() < 1e-5 * 20
    assert rmsd.max() < 1e-5


def test_mirror_images_do_not_superpose(rng: torch.Generator) -> None:
    x = torch.randn(16, 10, 3, generator=rng)
    fit, rmsd = kabsch(x, x * torch.tensor([1.0, 1.0, -1.0]))
    assert (torch.linalg.det(fit.rot) - 1).abs().max() < 1e-5
    assert rmsd.min() > 0.1


def test_batched_packed_masked_and_looped_agree(rng: torch.Generator) -> None:
    sizes = [1, 2, 3, 17, 40]
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    x, y = torch.randn(63, 3, generator=rng), torch.randn(63, 3, generator=rng)
    looped = torch.stack([kabsch(x[a:b], y[a:b])[1] for a, b in zip(ptr[:-1], ptr[1:], strict=True)])
    assert torch.allclose(kabsch_rmsd_packed(x, y, ptr), looped, atol=1e-5)
    dense = torch.full((2, 5, 40, 3), 99.0)
    mask = torch.arange(40) < torch.tensor(sizes)[:, None]
    dense[0, mask], dense[1, mask] = x, y
    assert torch.allclose(kabsch(dense[0], dense[1], mask)[1], looped, atol=1e-5)
    rigid, _ = kabsch_packed(x, y, ptr)
    owner = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    residual = (rotate(rigid.rot[owner], x) + rigid.trans[owner] - y).square().sum(-1)
    by_hand = torch.stack([part.mean().sqrt() for part in residual.split(sizes)])
    assert torch.allclose(by_hand, looped, atol=1e-5)


def test_weights_count_as_repetitions(rng: torch.Generator) -> None:
    x, y = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    times = torch.tensor([1, 3, 2, 1, 4])
    weighted = kabsch(x, y, times)[1]
    repeated = kabsch(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))[1]
    assert torch.allclose(weighted, repeated)
    assert not torch.allclose(weighted, kabsch(x, y)[1])


def test_no_other_rotation_is_better(rng: torch.Generator) -> None:
    x, y = torch.randn(20, 12, 3, generator=rng), torch.randn(20, 12, 3, generator=rng)
    _, rmsd = kabsch(x, y)
    flat_x, flat_y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    for _ in range(200):
        other = rotate(random_rotations((20, 1), rng), flat_x)
        assert ((other - flat_y).square().sum(-1).mean(-1).sqrt() >= rmsd - 1e-6).all()


def test_gradient_is_right_and_finite_at_zero(rng: torch.Generator) -> None:
    x = torch.randn(3, 6, 3, generator=rng, dtype=torch.float64).requires_grad_()
    y = torch.randn(3, 6, 3, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: kabsch(p, y)[1], x)
    assert torch.autograd.gradcheck(lambda p: kabsch(p, y)[0].rot, x)
    same = y.clone().requires_grad_()
    kabsch(same, y)[1].sum().backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert same.grad.isfinite().all()
