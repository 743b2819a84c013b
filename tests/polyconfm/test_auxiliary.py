"""Auxiliary terms: values against brute force in float64, invariances, that each learns, and that the main losses do not notice them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_shards.schema import unit_slots
from foundation.batch import Batch, select_chains
from foundation.data.collate import collate, featurise, mirror
from foundation.encoders.sequence import VOCABULARY
from foundation.errors import CheckpointError
from foundation.geometry.rotations import random_rotations
from foundation.objectives import build_objective
from foundation.objectives.polyconfm.auxiliary import (
    DEVIATIONS,
    LARGEST_DEVIATION,
    MEANS,
    TEMPERATURE,
    chain_statistics,
    draw_hidden,
    info_nce,
    standardised,
)
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.proposals import polymer_hash
from foundation.recipes import get_recipe
from foundation.train.checkpoint import check_same_run
from tests.polyconfm.chains import CHAINS, batch_of, model_of, rng, sample
from tests.polyconfm.test_learning import fit, untrained

WEIGHTS = {"token_weight": 0.1, "agreement_weight": 0.2, "statistics_weight": 0.3, "descriptor_weight": 0.4, "level_weight": 0.5}
TERMS = dict(zip(("tokens", "agreement", "statistics", "descriptors", "levels"), WEIGHTS.values(), strict=True))


def fresh(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_objective(PolyConFMConfig(**fields))


@torch.no_grad()
def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Numbers in place of the zeros that layers start with, the same whatever other layers there are."""
    for parameter in model.parameters():
        if (parameter == 0).all():
            parameter.copy_(torch.randn(parameter.shape, generator=rng(1)) * 0.1)
    return model


# ------------------------------------------------------------------------------------------------------------------------ agreement


def test_agreement_of_two_views_is_that_of_a_loop_in_float64() -> None:
    left, right = torch.randn(2, 7, 5, generator=rng())
    polymer = torch.tensor([4, -9, 4, 0, 0, 0, 7])
    expected = []
    for b in range(7):
        ways = []
        for here, there in ((left, right), (right, left)):
            odds = {}
            for c in range(7):
                cosine = float(here[b].double() @ there[c].double() / (here[b].double().norm() * there[c].double().norm()))
                odds[c] = math.exp(cosine / TEMPERATURE)
            ways.append(-math.log(sum(o for c, o in odds.items() if polymer[c] == polymer[b]) / sum(odds.values())))
        expected.append(sum(ways) / 2)
    assert max(expected) > 1
    torch.testing.assert_close(info_nce(left, right, polymer).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(info_nce(left, left, torch.arange(7)), torch.zeros(7), rtol=0, atol=0.5)  # a view agrees with itself


def test_agreement_of_one_polymer_is_zero_and_so_is_its_gradient() -> None:
    left, right = torch.randn(2, 4, 5, generator=rng()).requires_grad_()
    value = info_nce(left, right, torch.full((4,), 3))
    assert (value == 0).all()
    value.sum().backward()
    model = model_of("torsional", "torsion", agreement_weight=1.0)
    out = model.loss(batch_of((("*C*", 6),)), rng())
    assert out.terms["agreement"] == 0
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_chains_of_one_polymer_have_the_same_number_and_others_do_not() -> None:
    batch = batch_of(CHAINS)
    twice = select_chains(batch, torch.tensor([0, 1, 2, 3, 4, 2, 0]))
    number = polymer_hash(twice)
    same = number[:, None] == number[None]
    kinds = torch.tensor([0, 1, 2, 3, 4, 2, 0])
    assert torch.equal(same, kinds[:, None] == kinds[None])


# --------------------------------------------------------------------------------------------------------------------------- tokens


def test_hidden_tokens_are_fifteen_in_a_hundred_never_the_start_and_never_padding(batch: Batch) -> None:
    lengths = batch.token_ptr.diff()
    seen = torch.zeros(batch.num_chains, int(lengths.max()))
    for seed in range(300):
        hidden = draw_hidden(batch, rng(seed))
        assert torch.equal(hidden.sum(1), torch.tensor([math.ceil(0.15 * (n - 1) - 1e-9) for n in lengths.tolist()]))
        seen += hidden
    assert (seen[:, 0] == 0).all()
    for row, length in zip(seen, lengths.tolist(), strict=True):
        assert (row[1:length] > 0).all()
        assert (row[length:] == 0).all()


def test_loss_of_hidden_tokens_is_that_of_each_string_alone(batch: Batch) -> None:
    model = model_of("torsional", "torsion", sequence_layers=2, **WEIGHTS)
    found = model.auxiliary.tokens(model.sequence, batch, rng(3)).detach()
    hidden = draw_hidden(batch, rng(3))
    model = model.double()
    for b in range(batch.num_chains):
        ids = batch.token_id[batch.token_ptr[b] : batch.token_ptr[b + 1]]
        places = hidden[b].nonzero()[:, 0].tolist()
        x = model.sequence.embed(ids).clone()
        for place in places:
            x[place] = model.auxiliary.hidden_token.weight
        x = x[None]
        for layer in model.sequence.layers:
            x = layer(x, torch.ones(1, len(ids), dtype=torch.bool), torch.arange(len(ids))[None])
        logits = model.auxiliary.token_out(model.sequence.norm(x))[0].detach()
        odds = [float(logits[p].logsumexp(0) - logits[p, ids[p]]) for p in places]
        assert float(found[b]) == pytest.approx(sum(odds) / len(odds), rel=1e-4)


def test_an_untrained_model_finds_all_tokens_equally_likely_and_has_the_mean_as_its_guess(batch: Batch) -> None:
    terms = fresh(**WEIGHTS).loss(batch, rng()).terms
    assert float(terms["tokens"]) == pytest.approx(math.log(len(VOCABULARY)), rel=1e-5)
    target = standardised(chain_statistics(batch))
    assert float(terms["statistics"]) == pytest.approx(float(target.square().nanmean(1).mean()), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------- statistics


def expected_statistics(x: NDArray[np.float64], slots: NDArray[np.int64], key: NDArray[np.int32]) -> list[float]:
    """From the heavy atoms of one chain, as they lie in a shard."""
    units = len(slots)
    size = math.sqrt(((x[:, None] - x[None]) ** 2).sum() / 2 / len(x) ** 2)  # pairs, not the centroid
    ends = float(np.linalg.norm(x[-1] - x[0]))
    steps = x[slots[:, key[3]]] - x[slots[:, key[1]]]
    cosines = [steps[i] @ steps[i + 1] / np.linalg.norm(steps[i]) / np.linalg.norm(steps[i + 1]) for i in range(units - 1)]
    cosine = float(np.mean(cosines)) if cosines else math.nan
    return [math.log(size / math.sqrt(len(x))), math.log(ends / math.sqrt(units)), cosine]


HEAVY_AND_BACKBONE = dict(zip(CHAINS, [(8, 2), (7, 2), (10, 9), (1, 1), (4, 2)], strict=True))  # by hand; para rings whole


@pytest.mark.parametrize("chain", CHAINS)
def test_statistics_of_grown_chains_are_those_of_their_heavy_atoms(chain: tuple[str, int]) -> None:
    one = sample(*chain)
    x = one.heavy_ang[0].astype(np.float64)
    slots = unit_slots(one.topology.key_atoms, one.topology.num_atoms, one.num_units)
    counted = [math.log(number) for number in HEAVY_AND_BACKBONE[chain]]
    expected = torch.tensor([expected_statistics(x, slots, one.topology.key_atoms) + counted], dtype=torch.float64)
    together = chain_statistics(batch_of(CHAINS))[CHAINS.index(chain)][None]
    for found in (chain_statistics(collate([featurise(one, 0)])), together):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_a_straight_rod_and_a_helix() -> None:
    one = sample("*C*", 12)
    count = len(one.heavy_ang[0])
    rod = np.arange(count)[:, None] * np.array([[0.9, -1.2, 0.0]])  # steps of 1.5 angstrom
    found = chain_statistics(collate([featurise(replace(one, heavy_ang=rod[None].astype(np.float32)), 0)]))[0]
    size = 1.5 * math.sqrt((count**2 - 1) / 12)
    expected = [math.log(size / math.sqrt(count)), math.log(1.5 * (count - 1) / math.sqrt(12)), 1.0, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    # a helix of one atom a unit: successive unit directions turn by a fixed angle about the axis
    turn, rise, radius = 0.6, 1.1, 1.4
    phase = np.arange(count) * turn
    helix = np.stack([radius * np.cos(phase), radius * np.sin(phase), rise * np.arange(count)], 1)
    found = chain_statistics(collate([featurise(replace(one, heavy_ang=helix[None].astype(np.float32)), 0)]))[0]
    across = 2 * radius * math.sin(turn / 2)
    cosine = (across**2 * math.cos(turn) + rise**2) / (across**2 + rise**2)
    assert float(found[2]) == pytest.approx(cosine, abs=1e-5)


def test_statistics_do_not_change_when_a_chain_is_turned_moved_or_reflected(batch: Batch) -> None:
    plain = chain_statistics(batch)
    assert not plain.isnan()[:-1].any()
    assert plain.isnan()[-1].tolist() == [False, False, True, False, False]  # one unit has no successor
    torch.testing.assert_close(chain_statistics(mirror(batch)), plain, rtol=0, atol=1e-9, equal_nan=True)
    rot = random_rotations((1,), rng())[0].double().numpy()
    moved = [replace(sample(*c), heavy_ang=(sample(*c).heavy_ang @ rot.T + np.array([3.0, -8.0, 20.0])).astype(np.float32)) for c in CHAINS]
    turned = chain_statistics(collate([featurise(s, 0) for s in moved]))
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-4, equal_nan=True)
    assert (plain[0] - plain[1])[:4].abs().min() > 1e-2


def test_targets_are_standardised_and_cut() -> None:
    means, deviations = torch.tensor([MEANS, DEVIATIONS], dtype=torch.float64)
    torch.testing.assert_close(standardised((means + 2 * deviations)[None]), torch.full((1, 5), 2.0, dtype=torch.float64))
    assert standardised(torch.tensor([[-1e9, 1e9, math.nan, 0.0, 0.0]]))[0, :2].tolist() == [-LARGEST_DEVIATION, LARGEST_DEVIATION]


def test_constants_are_those_of_grown_chains() -> None:
    """Twelve polymers of another list than the corpus that the constants come from: near 0 and 1, as means of few are."""
    strings = ["*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*CC(*)Cl", "*OCC*", "*CC(*)(C)C(=O)OC", "*O[Si](*)(C)C", "*NCCCCCC(*)=O"]
    strings += ["*Oc1ccc(CC(*)=O)cc1", "*c1ccc(*)cc1", "*CC(*)OC(C)=O", "*CC=CC*"]
    target = standardised(chain_statistics(collate([featurise(sample(s, 20), 0) for s in strings])))[:, :3]  # these units are small
    assert (target.mean(0).abs() < 1.0).all()
    assert ((target.std(0) > 0.4) & (target.std(0) < 2.5)).all()


# ------------------------------------------------------------------------------------------------------------ descriptors and levels


@pytest.mark.parametrize("name", ["descriptors", "levels"])
def test_loss_of_a_target_is_that_of_a_loop_in_float64_and_leaves_out_what_is_missing(batch: Batch, name: str) -> None:
    model = model_of("torsional", "torsion", **WEIGHTS)
    width = model.width.even
    views = torch.randn(3, batch.num_chains, width, generator=rng())
    target = getattr(batch, name).clone()
    assert target.isfinite().any(1).all()
    target[1, 3:] = torch.nan
    target[4] = torch.nan
    found = getattr(model.auxiliary, name)(views, target).detach()
    layers = [(layer.weight.detach().double(), layer.bias.detach().double()) for layer in getattr(model.auxiliary, f"{name}_out")]
    for b in range(batch.num_chains):
        values = []
        for (weight, bias), view in zip(layers, views.double(), strict=True):
            for f in range(target.shape[1]):
                miss = abs(float(weight[f] @ view[b] + bias[f] - target[b, f]))
                values += [] if math.isnan(miss) else [miss - 0.5 if miss > 1 else miss**2 / 2]
        assert float(found[b]) == pytest.approx(sum(values) / len(values) if values else 0.0, rel=1e-5)
    assert float(found[4]) == 0.0


@pytest.mark.parametrize(("name", "weight"), [("descriptors", "descriptor_weight"), ("levels", "level_weight")])
def test_a_batch_that_was_read_without_targets_is_no_silent_success(batch: Batch, name: str, weight: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} are learned, but the batch was read without them"):
        fresh(**{weight: 0.1}).loss(replace(batch, **{name: None}), rng())


def test_an_objective_says_what_is_to_be_read_for_it() -> None:
    assert PolyConFMConfig().targets == ()
    assert PolyConFMConfig(level_weight=0.1).targets == ("levels",)
    assert PolyConFMConfig(**WEIGHTS).targets == ("descriptors", "levels")
    assert PolyConFMConfig(**WEIGHTS, phase="orientation").targets == ()


# ------------------------------------------------------------------------------------------------------------------ in the objective


@pytest.mark.parametrize("term", TERMS)
def test_each_term_learns_one_batch(term: str) -> None:
    fields = {weight: float(name == term) for weight, name in zip(WEIGHTS, TERMS, strict=True)}
    model = fresh(width=64, num_heads=2, local_layers=1, orientation_layers=1, **fields)
    terms = fit(model, batch_of(), 60, 6e-3)
    first, last = (np.mean([t[term] for t in part]) for part in (terms[:5], terms[-5:]))
    assert last < first / 2


def test_defaults_have_no_parameter_and_no_term(batch: Batch) -> None:
    model = fresh()
    assert [name for name in model.state_dict() if "auxiliary" in name] == []
    assert set(model.loss(batch, rng()).terms) == {"local", "orientation"}


def test_main_losses_do_not_notice_the_auxiliary_terms(batch: Batch) -> None:
    plain, extended = fresh(), fresh(**WEIGHTS)
    assert all(torch.equal(extended.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    plain, extended = filled(plain), filled(extended)
    streams = rng(5), rng(5)
    before, after = plain.loss(batch, streams[0]), extended.loss(batch, streams[1])
    assert torch.equal(streams[0].get_state(), streams[1].get_state())
    for name in ("local", "orientation"):
        assert torch.equal(before.terms[name], after.terms[name])
    assert set(after.terms) == {"local", "orientation", *TERMS}
    more = sum(weight * after.terms[name] for name, weight in TERMS.items())
    torch.testing.assert_close(after.loss, before.loss + more)
    torch.testing.assert_close(after.loss_per_chain.mean(), after.loss.detach())
    before.loss.backward()
    after.loss.backward()
    reached = []
    for name, parameter in plain.named_parameters():
        other = extended.get_parameter(name).grad
        assert parameter.grad is not None
        if name.startswith(("local_head.", "orientation_head.", "trunk.decoder")):  # which no auxiliary term reads
            assert torch.equal(parameter.grad, other), name
        reached.append(not torch.equal(parameter.grad, other))
    assert any(reached)


def test_terms_of_mirror_images_are_equal(batch: Batch) -> None:
    model = model_of("torsional", "torsion", **WEIGHTS)
    plain, mirrored = (model.loss(b, rng()).terms for b in (batch, mirror(batch)))
    for name in TERMS:
        torch.testing.assert_close(mirrored[name], plain[name], rtol=1e-4, atol=1e-5)


def test_every_weight_is_trained() -> None:
    model = model_of("torsional", "torsion", label_dropout=0.5, **WEIGHTS)
    assert untrained(model, batch_of()) == []


def test_the_local_phase_trains_all_terms_and_the_orientation_phase_none(batch: Batch) -> None:
    plain, local = filled(fresh(phase="local")), filled(fresh(phase="local", **WEIGHTS))
    before, after = (model.loss(batch, rng(2)) for model in (plain, local))
    assert set(after.terms) == {"local", *TERMS}
    torch.testing.assert_close(after.terms["local"], before.terms["local"], rtol=1e-4, atol=1e-5)
    after.loss.backward()
    idle = {name.split(".")[0] for name, p in local.named_parameters() if p.grad is None}
    assert idle == {"orientation_head"}
    late = fresh(phase="orientation", **WEIGHTS)
    assert not any(p.requires_grad for p in late.auxiliary.parameters())
    assert set(late.loss(batch, rng()).terms) == {"orientation"}
    late.load_state_dict(fresh(phase="local", **WEIGHTS).state_dict())


def test_a_run_of_before_these_terms_goes_on_without_them_and_not_with_them() -> None:
    config = get_recipe("polyconfm_tiny")
    old = config.model_dump(mode="json")
    old["objective"] = {k: v for k, v in old["objective"].items() if k not in WEIGHTS}
    check_same_run(old, "f", config, "f")
    with pytest.raises(CheckpointError, match=r"objective\.token_weight differs"):
        check_same_run(old, "f", config.model_copy(update={"objective": config.objective.model_copy(update={"token_weight": 0.1})}), "f")


def test_terms_in_bf16_are_near_those_in_fp32(batch: Batch) -> None:
    model = model_of("torsional", "torsion", **WEIGHTS)
    plain = model.loss(batch, rng()).terms
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(batch, rng()).terms
    for name in TERMS:
        torch.testing.assert_close(half[name], plain[name], rtol=0.1, atol=0.02)
