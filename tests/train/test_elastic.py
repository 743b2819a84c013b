"""A run goes on after every step, and with other numbers of ranks: the same samples, the same noise, the same curve."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.console import Resumable
from data_shards.reader import open_shards
from foundation.errors import CheckpointError, ConfigError
from foundation.track.tracker import read_metrics
from foundation.train import checkpoint, loop
from foundation.train.health import StopRequest
from foundation.train.loop import train
from foundation.train.snapshot import step_name
from tests.train.conftest import Pair, command, curve, environment, losses, small, torchrun

TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
TOLERANCE = 1e-4
TWENTY = small("train.num_steps=20", "train.checkpoint_every=1", "train.keep_last=20", "train.validate_every=10")
ELASTIC = ("train.num_steps=10", "train.checkpoint_every=2", "train.validate_every=5", "train.micro_batches_per_step=4")


class AskedAlready(StopRequest):
    """A signal that came before the first step: the run makes one step, commits it and stops."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = True


@pytest.fixture(scope="module")
def twenty(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty uninterrupted steps, every checkpoint kept."""
    out = tmp_path_factory.mktemp("twenty") / "run"
    train(TWENTY, out, shards)
    assert len({loss for _, loss, _ in losses(out)}) == 20
    return out


def after(run: Path, step: int, out: Path) -> Path:
    """The run folder as a run that was lost after a step leaves it."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("step-*"))
    shutil.copytree(run / "checkpoints" / step_name(step), out / "checkpoints" / step_name(step))
    return out


def tensors(run: Path, step: int) -> dict[str, bytes]:
    return {name: (run / "checkpoints" / step_name(step) / name).read_bytes() for name in TENSORS}


def test_resumed_after_every_step_of_twenty_the_next_state_is_that_of_the_uninterrupted_run(
    shards: str, twenty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, on one rank: for every k, step k + 1 and its checkpoint from that of step k are the same; so is all that follows."""
    monkeypatch.setattr(loop, "StopRequest", AskedAlready)
    for k in range(1, 20):
        out = after(twenty, k, tmp_path / str(k))
        if k < 19:
            with pytest.raises(Resumable, match=f"at step {k + 1} of 20"):
                train(TWENTY, out, shards)
        else:
            train(TWENTY, out, shards)
        assert losses(out) == losses(twenty)[: k + 1], k
        assert tensors(out, k + 1) == tensors(twenty, k + 1), k
        states = [checkpoint.read_state(run / "checkpoints" / step_name(k + 1)) for run in (out, twenty)]
        assert states[0] == states[1], k


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_resumed_after_every_step_of_twenty_a_run_ends_as_the_uninterrupted_one(shards: str, twenty: Path, tmp_path: Path) -> None:
    for k in range(1, 20):
        out = after(twenty, k, tmp_path / str(k))
        train(TWENTY, out, shards)
        assert losses(out) == losses(twenty), k
        assert tensors(out, 20) == tensors(twenty, 20), k
        shutil.rmtree(out)


def test_sizes_that_cannot_keep_the_global_batch_are_refused_before_anything_is_written(shards: str, tmp_path: Path) -> None:
    sentence = r"3 ranks do not divide train.micro_batches_per_step 4; use one of \[1, 2, 4\] ranks or set .* to a multiple of 3"
    with pytest.raises(ConfigError, match=sentence):
        train(small("train.micro_batches_per_step=4"), tmp_path / "run", shards, rank=0, world_size=3)
    assert not (tmp_path / "run").exists()
    done = subprocess.run(
        [sys.executable, *command(shards, tmp_path / "run", *ELASTIC)],
        env=environment() | {"RANK": "0", "WORLD_SIZE": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "3 ranks do not divide train.micro_batches_per_step 4; use one of [1, 2, 4] ranks" in done.stderr
    assert not (tmp_path / "run").exists()


def piece(shards: str, out: Path, notes: Path, ranks: int, end_at: int, how: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """One part of a run: on so many ranks, from where it was to the step at which it is ended."""
    notes.mkdir(parents=True, exist_ok=True)
    program = ["-m", "tests.train.elastic_ranks", str(notes), str(end_at), how, "--", *command(shards, out, *ELASTIC, *overrides)[2:]]
    launcher = [sys.executable, *(torchrun(ranks) if ranks > 1 else [])]
    return subprocess.run([*launcher, *program], env=environment(), capture_output=True, text=True, check=False, timeout=600)


def consumed(notes: Path) -> dict[int, list[dict]]:
    """samples_seen of every step to its micro-batches in order; a step that was done twice must have read the same both times."""
    steps: dict[int, dict[int, dict]] = {}
    for path in sorted(notes.rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            note = json.loads(line)
            before = steps.setdefault(note["samples_seen"], {}).setdefault(note["place"], note)
            assert before == note
    return {seen: [places[k] for k in sorted(places)] for seen, places in sorted(steps.items())}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1200)
def test_two_one_four_and_two_ranks_in_one_run_folder_keep_the_order_and_the_curve(shards: str, tmp_path: Path) -> None:
    """Real processes over gloo. Stopped by SIGTERM, killed while a checkpoint is written, stopped again; ZeRO stages change on the way."""
    whole, out, notes = tmp_path / "whole", tmp_path / "run", tmp_path / "notes"
    train(small(*ELASTIC), whole, shards)
    parts = (
        (2, 3, "stop", "train.zero_stage=1"),
        (1, 6, "kill"),  # the checkpoint of step 6 is cut off in the middle: goes on after step 4
        (4, 7, "stop", "train.zero_stage=2"),
        (2, 10, ""),
    )
    starts, said = [], []
    for number, (ranks, end_at, how, *overrides) in enumerate(parts):
        done = piece(shards, out, notes / str(number), ranks, end_at, how, *overrides)
        starts.append(next((line.split(", ")[1] for line in done.stdout.splitlines() if " steps on " in line), "?"))
        said.append(done.stderr[-3000:])
        assert (done.returncode == 0) == (how == ""), said
        left = sorted(path.name for path in (out / "checkpoints").iterdir())
        if how == "kill":
            assert ".step-00000006.writing" in left, "killed in the middle of the write"
            assert checkpoint.committed(out)[-1].name == "step-00000004"
        if how == "stop":
            assert checkpoint.committed(out)[-1].name == f"step-{end_at:08d}", left
    assert starts == ["starts at step 0", "goes on after step-00000003", "goes on after step-00000004", "goes on after step-00000007"], said
    assert [step for step, _, _ in losses(out)] == list(range(1, 11))

    steps = consumed(notes)
    rows = [read_metrics(run / "metrics.jsonl") for run in (whole, out)]
    assert [row["train/samples_seen"] for row in rows[1]] == [row["train/samples_seen"] for row in rows[0]] == list(steps)
    plan = plan_of(shards)
    for micro_batches in steps.values():
        assert len(micro_batches) == 4, "the global batch"
        for got in micro_batches:
            assert (got["keys"], tuple(got["conformations"]), got["noise"]) == next(plan)
    assert max(abs(a - b) for a, b in zip(curve(out), curve(whole), strict=True)) < TOLERANCE
    assert rows[1][-1]["val/loss"] == pytest.approx(rows[0][-1]["val/loss"], abs=TOLERANCE)
    assert max(curve(whole)) - min(curve(whole)) > 100 * TOLERANCE, "the curve moves far more than the tolerance"


@pytest.mark.dist
@pytest.mark.timeout(600)
def test_a_disk_that_stays_full_ends_every_rank_in_one_sentence(shards: str, tmp_path: Path) -> None:
    """Only rank 0 writes, and all ranks leave with exit code 2 and the same words, two failures after the last good checkpoint."""
    words = command(shards, tmp_path / "run", *ELASTIC, "train.max_failed_checkpoints=1", "train.async_checkpoint=false")[2:]
    ranks = Pair([["-m", "tests.train.elastic_ranks", str(tmp_path), "4", "full", "--", *words]] * 2, tmp_path)
    assert ranks.ends(timeout_sec=500) == [2, 2], ranks.said()
    sentences = [next(line for line in log.read_text().splitlines() if line.startswith("error: ")) for log in ranks.logs]
    assert sentences[0] == sentences[1]
    assert "2 checkpoints in a row could not be written" in sentences[0]
    assert "No space left on device" in sentences[0]
    assert "step-00000002 stays the newest checkpoint" in sentences[0]
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 7
    checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000002")


def test_a_rank_that_sees_another_folder_than_rank_zero_stops_all(shards: str, twenty: Path, tmp_path: Path) -> None:
    seen = after(twenty, 5, tmp_path / "run")
    found = checkpoint.newest_good(seen, None, lambda state: None)
    assert found is not None
    (found / "ema.safetensors").write_bytes(b"what an NFS client may have in its cache")

    class Second:
        rank, world_size = 1, 2

        def on_rank_zero(self, work: object) -> None:
            """Done by the other one."""

        def gather(self, value: object) -> list[object]:
            return [[found], value] if isinstance(value, list) else [None, value]

    sentence = r"rank 1 cannot use the checkpoint that rank 0 read \(.*ema.safetensors is missing or damaged.*every node must see the same"
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.resume_from(seen, TWENTY, open_shards(shards).fingerprint, Second())  # type: ignore[arg-type]


def plan_of(shards: str) -> Iterator[tuple[list[str], tuple[int, ...], int]]:
    """(keys, conformations, noise seed) of every micro-batch: the order as arithmetic, by the keys of the manifest."""
    from data_shards.mixture import open_mixture
    from foundation.data.loader import order_of

    opened = open_mixture(shards)
    (entries,) = opened.samples("train")
    for micro in order_of(opened, "train", 0, 250).stream():
        yield [entries[i].key for i in micro.samples], micro.conformations, micro.noise_seed


def test_the_notes_would_show_another_order(tmp_path: Path) -> None:
    note = {"samples_seen": 4, "place": 0, "keys": ["a"]}
    (tmp_path / "one.jsonl").write_text(json.dumps(note) + "\n")
    (tmp_path / "two.jsonl").write_text(json.dumps({**note, "keys": ["b"]}) + "\n")
    with pytest.raises(AssertionError):
        consumed(tmp_path)
