"""Checkpoints: nothing uncommitted is read, nothing damaged is used, nothing else is overwritten, and a second phase starts from them."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
import torch

from data_shards.reader import open_shards
from foundation.errors import CheckpointError, InputError
from foundation.objectives import build_objective
from foundation.train import checkpoint, loop
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from tests.train.conftest import losses, small

STEPS = ("train.num_steps=4", "train.checkpoint_every=1", "train.keep_last=2")


@pytest.fixture(scope="module")
def run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    result = train(small(*STEPS), out, shards)
    assert (result.step, result.checkpoint.name) == (4, "step-00000004")
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def newest(run: Path) -> Path:
    return checkpoint.committed(run)[-1]


def test_the_last_two_are_kept_and_the_newest_is_named(run: Path) -> None:
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["latest", "step-00000003", "step-00000004"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000004\n"
    assert checkpoint.find(run) == checkpoint.find(newest(run)) == newest(run)


def test_a_checkpoint_says_everything_and_holds_no_pickle(run: Path, shards: str) -> None:
    state = checkpoint.read_state(newest(run))
    assert (state.step, state.updates, state.fingerprint) == (4, 4, open_shards(shards).fingerprint)
    assert state.samples_seen == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train/samples_seen"]
    assert state.config == json.loads((run / "config.json").read_text())
    assert state.written_by["versions"]["torch"] == torch.__version__
    names = {"COMMITTED", "state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert {p.name for p in newest(run).iterdir()} == names
    facts = json.loads((run / "run.json").read_text())
    assert {"commit", "versions", "fingerprint", "shards", "world_size", "threads", "run_id"} <= facts.keys()


def test_a_model_is_loaded_whole_averaged_or_not(run: Path) -> None:
    averaged, config = load_model(run)
    last, _ = load_model(newest(run), ema=False)
    assert not averaged.training
    assert config == small(*STEPS)
    pairs = list(zip(averaged.parameters(), last.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    torch.manual_seed(0)
    fresh = build_objective(config.objective)
    assert any(not torch.equal(a, b) for a, b in zip(last.parameters(), fresh.parameters(), strict=True))


def test_a_finished_run_is_left_as_it_is(copy: Path, shards: str) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "run.json"}
    result = train(small(*STEPS), copy, shards)
    assert (result.step, result.train_loss) == (4, None)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "run.json"} == before


def test_a_checkpoint_without_its_marker_does_not_exist(copy: Path, run: Path, shards: str) -> None:
    (newest(copy) / "COMMITTED").unlink()
    left = copy / "checkpoints" / ".step-00000009.writing"
    left.mkdir()
    assert newest(copy).name == "step-00000003"
    train(small(*STEPS), copy, shards)
    assert losses(copy) == losses(run)
    assert newest(copy).name == "step-00000004"
    assert not left.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "COMMITTED", "missing"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_goes_on(
    copy: Path, run: Path, shards: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "missing":
        name = "ema.safetensors"
        (newest(copy) / name).unlink()
    else:
        path = newest(copy) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content if name != "optimizer.safetensors" else content[:-9])  # a flipped bit, or truncated
    before = {path.name: path.read_bytes() for path in newest(copy).iterdir()}
    assert load_model(copy)[1] == small(*STEPS)
    assert [record.message for record in caplog.records if name in record.message and "step-00000003 is used instead" in record.message]
    caplog.clear()
    train(small(*STEPS), copy, shards)
    said = [record.message for record in caplog.records if "the run goes on from step-00000003" in record.message]
    assert len(said) == 1
    assert name in said[0]
    assert "the damaged checkpoint is now step-00000004.damaged" in said[0]
    assert losses(copy) == losses(run)
    assert {path.name: path.read_bytes() for path in (copy / "checkpoints" / "step-00000004.damaged").iterdir()} == before
    assert checkpoint.committed(copy) == [copy / "checkpoints" / name for name in ("step-00000003", "step-00000004")]
    assert (newest(copy) / "model.safetensors").read_bytes() == (newest(run) / "model.safetensors").read_bytes()


def test_where_none_verifies_nothing_is_changed(copy: Path, shards: str) -> None:
    for folder in checkpoint.committed(copy):
        (folder / "model.safetensors").write_bytes(b"")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    sentence = r"no checkpoint of .* verifies and nothing was changed; the newest: .*step-00000004/model.safetensors is missing or damaged"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=sentence):
            train(small(*STEPS), copy, shards)
    with pytest.raises(CheckpointError, match=r"step-00000004/model.safetensors is missing or damaged; copy it again, or use another"):
        load_model(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_that_was_asked_for_by_name_is_refused(copy: Path) -> None:
    (newest(copy) / "ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ema.safetensors is missing or damaged"):
        load_model(newest(copy))


def test_nothing_committed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere' does not exist; pass a run folder of foundation.pretrain"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("objective.num_registers=4", r"the run folder holds another model \(objective.num_registers differs\); pass another --out"),
        ("train.seed=7", "train.seed is 7 but the run folder was made with 0, which fixes the order of samples; set train.seed=0"),
        ("data.token_budget=300", "data.token_budget is 300 but the run folder was made with 250"),
        ("train.micro_batches_per_step=4", "train.micro_batches_per_step is 4 but the run folder was made with 2"),
    ],
)
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_another_run_is_refused(copy: Path, shards: str, override: str, text: str, has_checkpoint: bool) -> None:
    if not has_checkpoint:
        shutil.rmtree(copy / "checkpoints")
    before = sorted(copy.rglob("*"))
    with pytest.raises(CheckpointError, match=text):
        train(small(*STEPS, override), copy, shards)
    assert sorted(copy.rglob("*")) == before


def test_how_samples_are_drawn_may_change_when_a_run_goes_on(copy: Path, shards: str) -> None:
    config = small(*STEPS, "objective.ar_steps=3", "objective.guidance=1.5")
    assert type(config.objective).model_fields.keys() >= config.objective.SAMPLING_FIELDS
    assert train(config, copy, shards).step == config.train.num_steps


def test_a_folder_that_another_process_writes_is_refused_and_freed_by_its_end(
    copy: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOCK_WAIT_SEC", 0.3)
    before = (copy / "metrics.jsonl").read_bytes()
    with (copy / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another process is training into .*; stop it or wait for it, or pass another --out"):
            train(small(*STEPS), copy, shards)
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert train(small(*STEPS), copy, shards).step == small(*STEPS).train.num_steps


def test_what_a_run_that_was_killed_while_it_started_left_is_no_obstacle(tmp_path: Path) -> None:
    from foundation.pretrain import check_out

    for name in ("lock", "config.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    check_out(tmp_path, overwrite=False)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds files but no run.json, so it is no run folder to write into; pass another --out"):
        check_out(tmp_path, overwrite=False)


def test_other_shards_and_a_damaged_run_folder_are_refused(copy: Path, shards: str, tmp_path: Path) -> None:
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"trained on other shards, .* \(fingerprint 000000000000, given "):
        train(small(*STEPS), copy, shards)
    (copy / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json is damaged"):
        train(small(*STEPS), copy, shards)


def test_longer_training_at_another_rate_may_go_on(copy: Path, shards: str, run: Path) -> None:
    result = train(small(*STEPS, "train.num_steps=6", "train.lr=0.002"), copy, shards)
    assert result.step == 6
    assert losses(copy)[:4] == losses(run)
    assert len(losses(copy)) == 6


def test_a_second_phase_starts_from_averaged_weights(run: Path, shards: str, tmp_path: Path) -> None:
    train(small("train.num_steps=1", "objective.phase=orientation"), tmp_path / "second", shards, init_from=run)
    first, second = load_model(run)[0].state_dict(), load_model(tmp_path / "second", ema=False)[0].state_dict()
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved
    assert all(name.startswith("orientation_head.") for name in moved), "the trunk is frozen in the second phase"


def test_weights_of_another_model_are_refused(run: Path, shards: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a checkpoint of another model: .* has shape .* there and .* here; use the recipe"):
        train(small("train.num_steps=1", "objective.width=64"), tmp_path / "second", shards, init_from=run)
    assert not (tmp_path / "second").exists()
