"""Masked autoregression: masks, schedule, information flow, visible-only encoding (spec T38-T43)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foundation.batch import Batch, Condition, to_dense
from foundation.nn.parity import Graded, rotary
from foundation.objectives.polyconfm.trunk import draw_mask, unit_steps
from foundation.objectives.polyconfm.view import UnitView
from tests.polyconfm.chains import CHAINS, batch_of, model_of, rng


def lengths(condition: Condition, num_units: list[int]) -> Condition:
    """A stand-in that has only chain lengths, for functions that read nothing else."""
    return replace(condition, chain_ptr=torch.tensor([0, *num_units]).cumsum(0))


def test_mask_ratios_follow_the_truncated_normal(batch: Batch) -> None:
    chains = lengths(batch, [1000] * 20_000)
    mask = draw_mask(chains, 0.0, 0.0, rng())
    ratio = mask.view(20_000, 1000).float().mean(1)
    golden = torch.tensor([0.7234, 0.7995, 0.8743, 0.9391, 0.9879])  # appendix A of the specification
    torch.testing.assert_close(ratio.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])), golden, atol=0.004, rtol=0)
    assert abs(float(ratio.mean()) - 0.867) < 0.003
    assert ratio.min() >= 0.7
    assert ratio.max() <= 1.0
    assert mask.any()
    assert not mask.all()


def test_some_chains_are_masked_whole_and_some_lightly(batch: Batch) -> None:
    ratio = draw_mask(lengths(batch, [100] * 20_000), 0.1, 0.2, rng()).view(20_000, 100).float().mean(1)
    assert abs(float((ratio < 0.55).float().mean()) - 0.2) < 0.01
    assert float((ratio == 1).float().mean()) > 0.1
    assert draw_mask(lengths(batch, [1] * 50), 0.0, 1.0, rng()).all()


def test_a_fixed_ratio_takes_the_place_of_the_mixture(batch: Batch) -> None:
    chains = lengths(batch, [20] * 50)
    for ratio, count in ((0.3, 6), (0.95, 19), (1.0, 20), (0.01, 1)):
        assert (draw_mask(chains, 0.5, 0.5, rng(), ratio).view(50, 20).sum(1) == count).all()


@pytest.mark.parametrize(("num_units", "num_steps"), [(10, 10), (100, 64), (3, 8), (1, 8), (20, 8)])
def test_every_unit_is_generated_once_in_steps_of_the_cosine_schedule(batch: Batch, num_units: int, num_steps: int) -> None:
    alone = unit_steps(lengths(batch, [num_units]), num_steps, rng())
    counts = torch.bincount(alone)
    assert counts.sum() == num_units
    assert len(counts) == min(num_units, num_steps)
    assert counts.min() >= 1
    if (num_units, num_steps) == (10, 10):
        assert (counts == 1).all()
    if (num_units, num_steps) == (100, 64):
        assert counts.max() == 3
        assert int((counts != 1).nonzero()[0]) == 35
    after_a_short_chain = unit_steps(lengths(batch, [2, num_units]), num_steps, rng())[2:]
    assert torch.equal(torch.bincount(after_a_short_chain), counts)


def test_rotary_logits_depend_on_the_difference_of_positions_alone() -> None:
    query, key = torch.randn(2, 1, 2, 1, 16, generator=rng())
    logits = [(rotary(query, torch.tensor([[p]])) * rotary(key, torch.tensor([[p + 3]]))).sum().item() for p in (0, 5, 100)]
    assert max(logits) - min(logits) < 1e-4
    other = (rotary(query, torch.tensor([[0]])) * rotary(key, torch.tensor([[9]]))).sum().item()
    assert abs(other - logits[0]) > 1e-3
    assert torch.allclose(rotary(query, torch.tensor([[0]])), query)  # no channel is lost at position 0


def _tokens(model: torch.nn.Module, batch: Batch, x: torch.Tensor) -> tuple:
    known = model.know(batch)
    everything = torch.ones(len(batch.unit_chain), dtype=torch.bool)
    return known, model.fill_tokens(known, everything, model.encode_units(x, UnitView.of(batch, known.graphs, everything)))


def test_leaving_masked_units_out_equals_masking_them_as_keys(batch: Batch) -> None:
    model = model_of("torsional", "torsion")
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    known, tokens = _tokens(model, batch, x)
    visible = ~draw_mask(batch, 0.0, 0.6, rng(4))
    assert visible.any()
    assert not visible.all()
    sparse, dense = (model.trunk.encode(tokens, known.klass, batch, visible, dense=flag) for flag in (False, True))
    for a, b in zip((*sparse[0], *sparse[1]), (*dense[0], *dense[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_information_flows_from_both_sides_and_never_from_masked_units() -> None:
    batch = batch_of((CHAINS[0],))
    model = model_of("torsional", "torsion")
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms).requires_grad_()
    known, tokens = _tokens(model, batch, x)
    visible = torch.tensor([True, False, False, True, False])
    context, memory = model.trunk.encode(tokens, known.klass, batch, visible)
    z = model.trunk.decode(context, memory, known.query, batch, visible)
    (gradient,) = torch.autograd.grad(z.even[2].sum() + z.odd[2].sum(), x)
    size = gradient.abs().amax((1, 2))
    assert size[0] > 1e-6
    assert size[3] > 1e-6
    assert (size[~visible] == 0).all()


def test_the_null_class_is_reached_and_hides_the_class(batch: Batch) -> None:
    model = model_of("torsional", "torsion")
    dropped = torch.tensor([True, False, True, False, True])
    known, plain = model.know(batch, dropped), model.know(batch)
    assert torch.equal(known.klass.even[0], known.klass.even[2])
    assert not torch.allclose(plain.klass.even[0], plain.klass.even[2])
    assert torch.equal(known.klass.even[1], plain.klass.even[1])
    model.loss(batch, rng(1)).loss.backward()
    rates = torch.rand(20_000, generator=rng()) < model.config.label_dropout
    assert abs(float(rates.float().mean()) - 0.1) < 0.01
    losses = torch.stack([model_of("torsional", "torsion", label_dropout=p).loss(batch, rng(1)).loss for p in (0.0, 1.0)])
    assert (losses[0] - losses[1]).abs() > 1e-6


def test_graded_rows_behave_as_one(batch: Batch) -> None:
    row = Graded(torch.ones(3, 2), torch.ones(3, 1))
    assert (row + row)[1].even.tolist() == [2.0, 2.0]
    assert row.masked(torch.tensor([True, False, True])).odd.sum() == 2


@pytest.mark.parametrize("phase", ["joint", "local"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_every_parameter_has_a_gradient_even_where_no_unit_is_visible(phase: str, ratio: float, batch: Batch) -> None:
    """Ranks whose micro-batches differ in that must still reduce the same tensors."""
    model = model_of("torsional", "torsion", phase=phase, full_mask_fraction=float(ratio == 1.0), low_mask_fraction=0.0)
    model.loss(batch, rng()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
