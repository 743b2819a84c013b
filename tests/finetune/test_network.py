"""The neural head: learning, masks, stopping, adapters that leave the trunk alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_shards.chem.repeat_unit import unit_graph
from finetune import lora
from finetune.network import NetworkSettings, batches, fit_network, predict_network, residuals
from finetune.pieces import adapted
from finetune.polymers import Scaler
from finetune.predictor import Encoder, Settings
from foundation.errors import InputError
from foundation.sampling.provenance import weights_fingerprint
from foundation.train.checkpoint import load_model

POLYMERS = ("*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*CCO*", "*CC(*)Cl", "*CC(*)C#N", "*CC(*)(C)C", "*CC(*)O", "*CC(*)F", "*CCS*")
QUICK = NetworkSettings(hidden=32, dropout=0.0, batch=8, epochs=200, patience=200, lr=5e-3)


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    table, others = torch.randn(60, 3, generator=rng), torch.randn(60, 2, generator=rng)
    y = torch.stack([torch.sin(table[:, 0]) + others[:, 1], table[:, 1]], 1)
    return table, others, y


def fitted(y: torch.Tensor, settings: NetworkSettings = QUICK, seed: int = 0):
    table, others, _ = problem()
    rows = np.arange(60)
    made = fit_network(lambda k: table[k], None, others, y, rows, rows[:45], rows[45:], 3, settings, seed)
    return made, predict_network(made.head, lambda k: table[k], others, rows, 8)


def test_it_learns_a_smooth_law() -> None:
    _, _, y = problem()
    made, predicted = fitted(y)
    assert float((predicted - y)[:45, 0].square().mean()) < 0.02
    assert made.valid < 0.6 * float(y[45:, 0].std())
    assert made.valid == pytest.approx(float((predicted - y)[45:, 0].square().mean().sqrt()), rel=1e-4), (
        "the weights kept are the best ones"
    )


def test_a_seed_decides_everything_and_the_global_generator_stays() -> None:
    _, _, y = problem()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    settings = NetworkSettings(hidden=16, epochs=3, batch=8)
    one, other, third = (fitted(y, settings, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(before, torch.get_rng_state())


def test_values_that_are_missing_teach_nothing() -> None:
    _, _, y = problem()
    gone, wild = y.clone(), y.clone()
    gone[::2, 1] = math.nan
    error, known = residuals(torch.zeros_like(y), gone)
    assert not known[::2, 1].any()
    assert not error[::2, 1].any()
    wild[:, 1] = math.nan
    settings = NetworkSettings(hidden=16, epochs=3, batch=8)
    made, predicted = fitted(wild, settings)
    assert torch.isfinite(predicted).all()
    assert made.epoch >= 1


def test_a_loss_that_is_not_finite_is_said() -> None:
    _, _, y = problem()
    y[3, 0] = math.inf
    with pytest.raises(InputError, match="the loss is"):
        fitted(y, NetworkSettings(hidden=16, epochs=3, batch=60))


def test_batches_hold_every_row_once_and_polymers_of_like_size() -> None:
    size = np.random.default_rng(0).integers(1, 100, 500)
    rows = np.arange(3, 480)
    cut = list(batches(rows, size, 16, np.random.default_rng(1)))
    assert sorted(np.concatenate(cut).tolist()) == rows.tolist()
    assert np.mean([np.ptp(size[own]) for own in cut]) < 20


@pytest.fixture(scope="module")
def trained() -> tuple[Encoder, str, dict[str, torch.Tensor]]:
    """`small` with adapters, trained a few steps on ten polymers; the fingerprint and the weights that it had before."""
    model, _ = load_model("small")
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    fingerprint = weights_fingerprint(model)
    encoder = Encoder(adapted(model, Settings(adapter="lora", rank=2)), [unit_graph(p) for p in POLYMERS], torch.device("cpu"))
    rows = np.arange(len(POLYMERS))
    encode = encoder.scaled(Scaler(np.zeros(encode_width(encoder)), np.ones(encode_width(encoder))))
    y = torch.linspace(-1, 1, len(POLYMERS))[:, None]
    settings = NetworkSettings(hidden=16, dropout=0.0, epochs=3, batch=4)
    made = fit_network(encode, model, torch.zeros(len(rows), 1), y, rows, rows, rows, encode_width(encoder), settings, 0)
    assert any(bool(value.any()) for name, value in made.adapted.items() if "lora_B" in name)
    assert made.adapted.keys() == lora.adapter_weights(model).keys()
    return encoder, fingerprint, before


def encode_width(encoder: Encoder) -> int:
    with torch.no_grad():
        return int(encoder.model.embed(encoder.conditions[0]).chain.shape[1])


def test_adapters_leave_every_pretrained_weight_alone(trained: tuple[Encoder, str, dict[str, torch.Tensor]]) -> None:
    encoder, _, before = trained
    now = {name.replace(".base_layer", ""): own for name, own in encoder.model.named_parameters() if ".lora_" not in name}
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(value, now[name]), name


def test_adapters_have_at_most_a_twentieth_of_the_weights() -> None:
    model, _ = load_model("small")
    total = sum(own.numel() for own in model.parameters())
    trunk = sum(
        own.numel()
        for name, own in model.named_parameters()
        if name.startswith(("graph.", "sequence.", "chain_class", "unit_class", "trunk."))
    )
    adapted(model, Settings(adapter="lora"))
    trained = sum(own.numel() for own in model.parameters() if own.requires_grad)
    assert 0 < trained <= 0.05 * trunk <= 0.05 * total


def test_a_merged_model_says_the_same_as_its_adapters(trained: tuple[Encoder, str, dict[str, torch.Tensor]]) -> None:
    encoder, fingerprint, before = trained
    model = encoder.model.eval()
    with torch.no_grad():
        expected = model.embed(encoder.conditions[2]).chain
        lora.merge(model)
        found = model.embed(encoder.conditions[2]).chain
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == before.keys()
    assert weights_fingerprint(model) != fingerprint
