"""Precision and memory: bf16, layers computed twice, offload, accumulation and the rehearsal leave the mathematics as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.memory import saved_bytes
from foundation.batch import Batch
from foundation.data.collate import collate, featurise
from foundation.data.order import MicroBatch, Order
from foundation.errors import ConfigError
from foundation.nn.parity import Block
from foundation.objectives import build_objective
from foundation.objectives.base import LossOut
from foundation.train.engine import Engine
from foundation.train.memory import largest_micro_batches, recompute_activations, rehearse
from foundation.train.ranks import Ranks
from foundation.train.rng import generator
from tests.polyconfm.chains import CHAINS, batch_of, model_of, rng, sample
from tests.train.conftest import small
from tests.train.objective import Regressor
from tests.train.test_engine import PAIR, SINGLE, STAGES, config_of, make, weights

HEADS = [("torsional", "torsion"), ("cartesian", "so3")]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return Ranks.start(0, 1)


def gradients(model: torch.nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


# ---------------------------------------------------------------------------------------------------------- layers computed twice


@pytest.mark.parametrize("heads", HEADS)
def test_layers_computed_twice_give_the_same_gradient_to_the_last_bit_from_far_less_memory(heads: tuple[str, str]) -> None:
    batch = batch_of(CHAINS)
    plain, twice = model_of(*heads, width=64), model_of(*heads, width=64)
    assert recompute_activations(twice) == sum(getattr(type(part), "recomputable", False) for part in plain.modules())
    assert sum(isinstance(part, Block) for part in plain.modules()) >= 8
    (much, expected), (little, out) = saved_bytes(plain, batch, rng(3)), saved_bytes(twice, batch, rng(3))
    assert torch.equal(out.loss, expected.loss)
    out.loss.backward()
    expected.loss.backward()
    pairs = list(zip(gradients(twice), gradients(plain), strict=True))
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)
    assert sum(b is not None and bool(b.any()) for _, b in pairs) > 50
    assert little < much / 3, f"{little} bytes of {much}"


@pytest.mark.parametrize("stage", [0, 3])
def test_layers_computed_twice_under_every_zero_stage(stage: int, ranks: Ranks) -> None:
    norms = []
    for twice in (False, True):
        config = small(f"train.zero_stage={stage}", f"train.activation_checkpointing={twice}", "train.micro_batches_per_step=1")
        torch.manual_seed(0)
        engine = Engine(build_objective(config.objective), config, ranks)
        row = []
        for seed in range(2):
            made = engine.forward(batch_of(CHAINS), generator(seed), 1.0)
            engine.backward(made.to_differentiate, last=True)
            row.append((float(made.loss), engine.step(0.01).grad_norm))
        engine.evaluate(batch_of(PAIR), generator(0))
        norms.append(row)
    assert norms[0] == norms[1]


# ------------------------------------------------------------------------------------------------------------------------- offload


@pytest.mark.parametrize(("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "optimizer+parameters")])
@pytest.mark.parametrize("order", [(PAIR, SINGLE), (SINGLE, PAIR), (SINGLE, SINGLE)])
def test_offload_gives_the_same_steps(stage: int, offload: str, order: tuple, ranks: Ranks) -> None:
    """Also where a parameter is reached by the first micro-batch of a step alone, by the last alone, or by none any more."""
    engines = [make(config, ranks)[0] for config in (config_of(0), config_of(stage, f"train.offload={offload}"))]
    for number in range(3):
        norms = []
        for engine in engines:
            for k, chains in enumerate((PAIR, PAIR) if number == 0 else order):
                made = engine.forward(batch_of(chains), generator(2 * number + k), 1.0)
                engine.backward(made.to_differentiate, last=k == 1)
            norms.append(engine.step(0.01).grad_norm)
        assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    plain, moments = weights(engines[0]), dict(engines[0].moments())
    for name, tensor in weights(engines[1]).items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=1e-6)
    for name, tensor in engines[1].moments():
        torch.testing.assert_close(tensor, moments[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "offload", "text"),
    [
        (0, "optimizer", "train: offload optimizer needs zero_stage 1 or more, not 0; set train.zero_stage=1"),
        (2, "optimizer+parameters", "offload optimizer+parameters needs zero_stage 3 or more, not 2; set train.zero_stage=3"),
    ],
)
def test_offload_without_its_stage_is_one_sentence(stage: int, offload: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        small(f"train.zero_stage={stage}", f"train.offload={offload}")
    assert text in str(error.value)


# ------------------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("stage", STAGES)
def test_four_micro_batches_have_the_gradient_of_one_batch(stage: int, ranks: Ranks) -> None:
    pairs = [CHAINS[k : k + 2] for k in (0, 2, 1, 3)]
    whole = collate([featurise(sample(*chain), 0) for pair in pairs for chain in pair])
    found = []
    for batches in ([batch_of(pair) for pair in pairs], [whole]):
        torch.manual_seed(0)
        engine = Engine(Regressor(noise_ang=0.0), config_of(stage, f"train.micro_batches_per_step={len(batches)}"), ranks)
        for batch in batches:
            made = engine.forward(batch, generator(0), 1.0)
            engine.backward(made.to_differentiate, last=batch is batches[-1])
        norm = engine.step(0.01).grad_norm
        found.append((norm, {k: v.clone() for k, v in engine.moments() if k.startswith("exp_avg/")}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=0, atol=1e-6)
    assert any(float(tensor.abs().max()) > 1e-3 for tensor in found[1][1].values())


# ------------------------------------------------------------------------------------------------------------------------- bf16


def test_bf16_follows_the_curve_of_fp32(ranks: Ranks) -> None:
    batch = batch_of((("*CC(*)Cl", 4), ("*O[Si](*)(C)C", 3), ("*C*", 6)))
    curves, first = [], []
    for precision in ("fp32", "bf16"):
        config = small(f"train.precision={precision}", "train.micro_batches_per_step=1", "train.lr=0.003")
        torch.manual_seed(0)
        engine = Engine(build_objective(config.objective), config, ranks)
        losses = []
        for number in range(30):
            made = engine.forward(batch, generator(number % 3), 1.0)
            engine.backward(made.to_differentiate, last=True)
            if number == 0:
                first.append(torch.cat([p.grad.flatten() for p in engine.parameters.values() if p.grad is not None]))
            engine.step(0.003)
            losses.append(float(made.loss))
        curves.append(torch.tensor(losses))
        assert all(tensor.dtype == torch.float32 for _, tensor in engine.weights())
    assert torch.nn.functional.cosine_similarity(*first, dim=0) > 0.99
    assert not torch.equal(*first)
    means = [curve.view(10, 3).mean(1) for curve in curves]
    assert means[0][-1] < 0.8 * means[0][0], "it must have learned"
    torch.testing.assert_close(means[1], means[0], rtol=0.05, atol=0)


def test_geometry_stays_fp32_under_bf16(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates that reach rotations, torsions and distances are never rounded to bf16."""
    from foundation.objectives.polyconfm import local_torsional, orient_torsion

    seen: list[torch.dtype] = []

    def watched(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: torch.Tensor) -> torch.Tensor:
            out = real(*args)
            tensors = [t for t in (*args, *(out if isinstance(out, tuple) else (out,))) if isinstance(t, torch.Tensor)]
            seen.extend(t.dtype for t in tensors if t.is_floating_point())
            return out

        return call

    for module, names in ((local_torsional, ("rotate_torsions", "torsion_angles", "turning_rate")), (orient_torsion, ("assemble_links",))):
        for name in names:
            monkeypatch.setattr(module, name, watched(getattr(module, name)))
    config = small("train.precision=bf16")
    engine = Engine(build_objective(config.objective), config, ranks)
    loss = engine.forward(batch_of(CHAINS), generator(0), 1.0).loss
    assert loss.dtype == torch.float32
    assert len(seen) > 10
    assert set(seen) <= {torch.float32, torch.float64}


# --------------------------------------------------------------------------------------------------------------------- rehearsal

ORDER = Order((10, 10, 10, 40, 3, 3), (2, 2, 2, 3, 60, 5), (1,) * 6, seed=0, token_budget=130)


def test_the_largest_are_those_of_most_atoms_largest_units_and_longest_chains() -> None:
    assert {micro.samples for micro in largest_micro_batches(ORDER, 0)} == {(4,), (3,)}
    shapes = [ORDER.shape(micro) for micro in largest_micro_batches(ORDER, 6)]
    assert (1, 60, 3) in shapes
    assert (1, 3, 40) in shapes
    assert ORDER.padded_atoms(largest_micro_batches(ORDER, 0)[0]) == 180


def reading(micro: MicroBatch) -> Batch:
    return batch_of(PAIR if len(micro.samples) > 1 else SINGLE)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_rehearsal_changes_nothing(stage: int, accumulated: int, ranks: Ranks) -> None:
    options = (f"train.micro_batches_per_step={accumulated}", "train.memory_check=on")
    rehearsed, straight = (make(config_of(stage, *options), ranks)[0] for _ in range(2))
    random = torch.get_rng_state()
    found = rehearse(rehearsed, config_of(stage, *options), ORDER, 0, reading)
    assert found is not None
    assert found.largest.samples == (4,)
    assert torch.equal(random, torch.get_rng_state())
    assert rehearsed.updates == 0
    for seed in range(3):
        norms = []
        for engine in (rehearsed, straight):
            for k in range(accumulated):
                made = engine.forward(batch_of(PAIR if k == 0 else SINGLE), generator(seed + 10 * k), 1.0)
                engine.backward(made.to_differentiate, last=k == accumulated - 1)
            norms.append(engine.step(0.01).grad_norm)
        assert norms[0] == norms[1]
        assert norms[0] is not None
    assert all(torch.equal(a, b) for a, b in zip(weights(rehearsed).values(), weights(straight).values(), strict=True))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(rehearsed.moments(), straight.moments(), strict=True))


class Hungry(Regressor):
    """Asks the real allocator for more than any machine has."""

    def loss(self, batch: Batch, rng: torch.Generator) -> LossOut:
        torch.empty(2**50, dtype=torch.float64)
        return super().loss(batch, rng)


def test_memory_that_does_not_suffice_is_one_sentence_with_what_to_lower(ranks: Ranks) -> None:
    config = config_of(1, "train.memory_check=on", "data.token_budget=4000")
    with pytest.raises(ConfigError) as error:
        rehearse(Engine(Hungry(), config, ranks), config, ORDER, 0, reading)
    assert "\n" not in str(error.value)
    for text in (
        "memory does not suffice for a micro-batch of 1 chain (up to 60 units of 3 atoms, 180 atoms in all)",
        "set train.activation_checkpointing=true, or lower data.token_budget=4000 (and raise train.micro_batches_per_step as much),",
        "or set train.zero_stage=2 on several GPUs, or set train.offload=optimizer",
    ):
        assert text in str(error.value)
    config = config_of(
        3, "train.memory_check=on", "train.activation_checkpointing=true", "train.offload=optimizer", "data.token_budget=100"
    )
    with pytest.raises(
        ConfigError, match=r"\); build the shards with fewer --num-units, since a chain longer than data.token_budget comes wh"
    ):
        rehearse(Engine(Hungry(), config, ranks), config, ORDER, 0, reading)


def test_another_error_of_a_rehearsal_keeps_its_type(ranks: Ranks) -> None:
    class Wrong(Regressor):
        def loss(self, batch: Batch, rng: torch.Generator) -> LossOut:
            raise RuntimeError("shapes disagree")

    config = config_of(0, "train.memory_check=on")
    with pytest.raises(RuntimeError, match=r"^shapes disagree$"):
        rehearse(Engine(Wrong(), config, ranks), config, ORDER, 0, reading)


@pytest.mark.parametrize(("setting", "ran"), [("off", False), ("auto", torch.cuda.is_available()), ("on", True)])
def test_a_rehearsal_runs_where_it_is_asked_for(setting: str, ran: bool, ranks: Ranks) -> None:
    config = config_of(0, f"train.memory_check={setting}")
    assert (rehearse(make(config, ranks)[0], config, ORDER, 0, reading) is not None) == ran
