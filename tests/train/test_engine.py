"""The engine at every ZeRO stage: agrees with plain torch, skips what is not finite, keeps what is frozen, saves and restores whole."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.batch import Batch
from foundation.config import RunConfig
from foundation.errors import InputError
from foundation.train.ema import EMA
from foundation.train.engine import Engine, deepspeed_config
from foundation.train.health import SkipGuard
from foundation.train.optim import build_optimizer
from foundation.train.ranks import Ranks
from foundation.train.rng import generator, reproducible
from tests.polyconfm.chains import batch_of
from tests.train.conftest import small
from tests.train.objective import Regressor, parameters_of

STAGES = [0, 1, 2, 3]
PAIR, SINGLE = (("*C*", 6), ("*O[Si](*)(C)C", 1)), (("*C*", 6),)


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return Ranks.start(0, 1)


def make(config: RunConfig, ranks: Ranks, seed: int = 0) -> tuple[Engine, Regressor]:
    torch.manual_seed(seed)
    objective = Regressor()
    return Engine(objective, config, ranks), objective


def config_of(stage: int, *overrides: str) -> RunConfig:
    return small(f"train.zero_stage={stage}", "train.micro_batches_per_step=2", "train.grad_clip=0.5", *overrides)


def step(engine: Engine, seeds: tuple[int, int], lr: float = 0.01) -> float | None:
    """One step of two micro-batches; returns the gradient's norm."""
    for seed, chains in zip(seeds, (PAIR, SINGLE), strict=True):
        made = engine.forward(batch_of(chains), generator(seed), 1.0)
        engine.backward(made.to_differentiate, last=chains is SINGLE)
    return engine.step(lr).grad_norm


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.weights()}


@pytest.mark.parametrize("stage", STAGES)
def test_steps_agree_with_plain_torch(stage: int, ranks: Ranks) -> None:
    config = config_of(stage)
    engine, _ = make(config, ranks)
    torch.manual_seed(0)
    plain = Regressor()
    before = parameters_of(plain)
    optimizer = build_optimizer(plain, config.train)
    norms = []
    for seed in range(0, 8, 2):
        optimizer.zero_grad()
        for k, chains in enumerate((PAIR, SINGLE)):
            (plain(batch_of(chains), generator(seed + k)).loss / 2).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        assert step(engine, (seed, seed + 1)) == pytest.approx(norms[-1], rel=1e-5)
    assert max(norms) > 0.5, "clipping must have acted"
    assert engine.updates == 4
    for name, tensor in weights(engine).items():
        torch.testing.assert_close(tensor, parameters_of(plain)[name], rtol=0, atol=1e-6)
        assert torch.equal(tensor, before[name]) == (name in ("frozen.weight", "frozen.bias", "scale")), name


def test_parameters_that_a_step_does_not_reach_are_treated_alike_at_every_stage(ranks: Ranks) -> None:
    after = []
    for stage in STAGES:
        engine, _ = make(config_of(stage, "train.micro_batches_per_step=1"), ranks)
        for chains in (PAIR, SINGLE):  # `seldom` has momentum from the first step and no gradient in the second
            made = engine.forward(batch_of(chains), generator(0), 1.0)
            engine.backward(made.to_differentiate, last=True)
            before = weights(engine)
            assert engine.step(0.01).applied
        after.append(weights(engine))
        assert not torch.equal(before["seldom.weight"], after[-1]["seldom.weight"])
    for other in after[1:]:
        for name, tensor in after[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_changes_nothing_and_the_next_step_goes_on(stage: int, ranks: Ranks) -> None:
    engine, objective = make(config_of(stage), ranks)
    undisturbed, _ = make(config_of(stage), ranks)
    objective.break_at = 7
    for seeds in ((0, 1), (2, 3)):
        assert step(engine, seeds) == step(undisturbed, seeds)
    before, moments = weights(engine), {k: v.clone() for k, v in engine.moments()}
    assert step(engine, (6, 7)) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.weights())
    assert all(torch.equal(moments[name], tensor) for name, tensor in engine.moments())
    assert engine.updates == 2
    assert step(engine, (4, 5)) == step(undisturbed, (4, 5))
    assert all(torch.equal(a, b) for a, b in zip(weights(engine).values(), weights(undisturbed).values(), strict=True))


def test_a_loss_that_is_not_finite_is_skipped_too(ranks: Ranks) -> None:
    engine, objective = make(config_of(1, "train.micro_batches_per_step=1"), ranks)
    with torch.no_grad():
        objective.out.bias.fill_(float("inf"))
    made = engine.forward(batch_of(SINGLE), generator(0), 1.0)
    assert not math.isfinite(float(made.loss))
    engine.backward(made.to_differentiate, last=True)
    assert not engine.step(0.1).applied


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    guard = SkipGuard(2, 0.5)
    for number, applied in enumerate((False, False, True, False, False), start=1):
        guard.see(number, applied=applied)
    with pytest.raises(InputError, match=r"not finite, .* in 3 steps in a row up to step 6, at most .*_skips=2 .*; lower"):
        guard.see(6, applied=False)


@pytest.mark.parametrize(("writer", "reader"), [(0, 3), (3, 1), (2, 0), (1, 2)])
def test_weights_moments_and_average_move_between_stages(writer: int, reader: int, ranks: Ranks) -> None:
    engine, _ = make(config_of(writer), ranks)
    ema = EMA(engine, 0.9)
    for seed in range(0, 6, 2):
        step(engine, (seed, seed + 1))
        ema.update(seed)
    saved, moments, average = weights(engine), {k: v.clone() for k, v in engine.moments()}, dict(ema.weights())
    assert any(not torch.equal(saved[name], average[name]) for name in saved)
    torch.manual_seed(1)
    objective = Regressor()
    objective.load_state_dict(saved)
    other = Engine(objective, config_of(reader), ranks)
    other.restore(saved, moments, engine.updates)
    ema_other = EMA(other, 0.9)
    ema_other.restore(average)
    assert step(other, (10, 11)) == pytest.approx(step(engine, (10, 11)), rel=1e-6)
    assert other.updates == engine.updates == 4
    for name, tensor in weights(engine).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, average[name]) for name, tensor in ema_other.weights())


def test_average_forgets_early_weights_and_follows_the_formula(ranks: Ranks) -> None:
    engine, _ = make(config_of(0), ranks)
    ema = EMA(engine, 0.4)
    expected = weights(engine)
    for number in range(6):
        step(engine, (2 * number, 2 * number + 1))
        ema.update(number)
        decay = min(0.4, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in weights(engine).items()}
    for name, tensor in ema.weights():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("stage", "overrides"), [(0, ["train.precision=bf16"]), (2, ["deepspeed.bf16.enabled=true"])])
def test_bf16_is_near_fp32_and_weights_stay_whole(stage: int, overrides: list[str], ranks: Ranks) -> None:
    exact, _ = make(config_of(stage), ranks)
    engine, _ = make(config_of(stage, *overrides), ranks)
    batch = batch_of(PAIR)
    loss, expected = (float(e.forward(batch, generator(0), 1.0).loss) for e in (engine, exact))
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected
    fresh, _ = make(config_of(stage, *overrides), ranks)
    step(fresh, (0, 1), lr=1e-4)  # smaller than what bf16 could add to a weight near 1
    torch.manual_seed(0)
    start = parameters_of(Regressor())
    moved = [(tensor - start[name]).abs().max() for name, tensor in fresh.weights() if name == "hidden.weight"]
    assert all(tensor.dtype == torch.float32 for name, tensor in fresh.weights() if name != "scale")
    assert 0 < moved[0] < 0.01


def test_evaluation_is_without_dropout_and_leaves_training_mode(ranks: Ranks) -> None:
    torch.manual_seed(0)
    engine = Engine(Regressor(dropout=0.5), config_of(0), ranks)
    batch: Batch = batch_of(PAIR)
    losses = [float(engine.evaluate(batch, generator(seed)).loss) for seed in (3, 3)]
    assert losses[0] == losses[1]
    assert float(engine.forward(batch, generator(3), 1.0).loss) != losses[0]
    assert float(engine.forward(batch, generator(3), 1.0).loss) == float(engine.forward(batch, generator(3), 1.0).loss)


def test_native_keys_are_merged_last() -> None:
    config = config_of(2, "deepspeed.zero_optimization.overlap_comm=true", "deepspeed.wall_clock_breakdown=true")
    merged = deepspeed_config(config, world_size=2, num_trained=100)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 100, "allgather_bucket_size": 100, "overlap_comm": True}
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_accumulation_steps"] == 1


def test_training_on_cpu_uses_reproducible_algorithms_and_gives_them_back(ranks: Ranks) -> None:
    before, linear = torch.are_deterministic_algorithms_enabled(), torch.nn.functional.linear
    with reproducible(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        make(config_of(3), ranks)
        assert torch.nn.functional.linear is not linear, "DeepSpeed's own, which would stay"
    assert torch.are_deterministic_algorithms_enabled() == before
    assert torch.nn.functional.linear is linear


def test_ranks_without_a_meeting_place_and_of_another_size_are_refused(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="world_size 2 is not the size of the running process group, 1"):
        Ranks.start(0, 2)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"2 ranks do not know where to meet \(MASTER_ADDR is not set\); start them with torchrun"):
        Ranks.start(0, 2)


def test_what_fails_on_rank_zero_is_one_sentence(ranks: Ranks) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "runs/y/model.safetensors")

    with pytest.raises(InputError, match=r"runs/y/model\.safetensors cannot be written \(No space left"):
        ranks.on_rank_zero(full)
