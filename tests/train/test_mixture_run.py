"""Training on two shard sets: interrupted and continued it is one run; another mixture is another run; the command says what it does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foundation.errors import CheckpointError
from foundation.pretrain import app
from foundation.track.tracker import read_metrics
from foundation.train.loop import train
from tests.data.test_mixture import ONE, OTHER, write
from tests.train.conftest import SMALL, losses, small

STEPS = ("train.num_steps=6", "train.checkpoint_every=3", "train.validate_every=3", "data.token_budget=60")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    return write(folder / "one", ONE), write(folder / "other", OTHER, shift=50)


def test_a_mixture_goes_on_as_if_it_had_never_stopped_and_is_not_changed_on_the_way(sets: tuple[str, str], tmp_path: Path) -> None:
    one, other = sets
    weights = {one: 3.0, other: 1.0}
    train(small(*STEPS), tmp_path / "whole", weights)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert len({row["train/loss"] for row in rows}) == 6
    last = rows[-1]
    assert last["val/loss"] == pytest.approx(0.75 * last["val/loss_of_set_1"] + 0.25 * last["val/loss_of_set_2"])
    assert last["val/loss_of_set_1"] != last["val/loss_of_set_2"]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    train(small(*STEPS, "data.num_workers=1", "train.memory_check=on"), tmp_path / "cut", weights)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for changed in ({one: 1.0, other: 1.0}, one):
        with pytest.raises(
            CheckpointError, match=r"or on the same with other weights .*pass another --out \(with --init-from this run for a se"
        ):
            train(small(*STEPS), tmp_path / "cut", changed)
    train(small(*STEPS, "train.num_steps=1"), tmp_path / "second-phase", other, init_from=tmp_path / "whole")


def test_the_command_names_every_set_and_what_is_left_out(sets: tuple[str, str], tmp_path: Path) -> None:
    words = ["--shards", f"{sets[0]}=3", "--shards", f"{sets[1]}=1", "--out", str(tmp_path / "run"), "--dry-run", *SMALL]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "steps on 4 chains (2 for validation)" in done.output
    assert (
        f"  set 1: 75.0% of the samples from 2 chains of {sets[0]}; 2 left out, their polymers are in val or test of another set"
        in done.output
    )
    assert f"  set 2: 25.0% of the samples from 2 chains of {sets[1]}; 1 left out" in done.output


def test_memory_that_does_not_suffice_leaves_nothing_behind(sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from foundation.errors import ConfigError
    from foundation.train.engine import Engine

    real = Engine.forward

    def full(self: Engine, *args: object) -> object:
        torch.empty(2**50, dtype=torch.float64)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "forward", full)
    with pytest.raises(ConfigError, match=r"memory does not suffice for a micro-batch of .* lower data.token_budget=60"):
        train(small(*STEPS, "train.memory_check=on"), tmp_path / "run", sets[0])
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    train(small(*STEPS, "train.memory_check=on", "data.token_budget=40", "train.num_steps=1"), tmp_path / "run", sets[0])
