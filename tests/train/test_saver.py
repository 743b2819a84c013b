"""Writing checkpoints: beside the training, one at a time, the same bytes; a write that fails or is cut off leaves the one before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from foundation.errors import CheckpointError, ConfigError
from foundation.track.tracker import Tracker, read_metrics
from foundation.train import checkpoint, loop, saver, snapshot
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from foundation.train.snapshot import TrainState, outdated
from tests.train.conftest import SIX, losses, small

TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def half(six_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as it was after its first checkpoint that is kept."""
    return cut(six_steps, tmp_path_factory.mktemp("half") / "run", 4)


def cut(run: Path, out: Path, step: int) -> Path:
    """A copy that knows nothing of what came after a step."""
    shutil.copytree(run, out)
    for folder in checkpoint.committed(out):
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)
    return out


def same_end(run: Path, other: Path) -> bool:
    """Losses of all steps, and the tensors of the last checkpoint, to the last bit."""
    ends = [checkpoint.committed(one)[-1] for one in (run, other)]
    return losses(run) == losses(other) and all((ends[0] / name).read_bytes() == (ends[1] / name).read_bytes() for name in TENSORS)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# beside the training


def test_the_loop_trains_while_a_checkpoint_is_written_and_the_next_one_waits(
    shards: str, six_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, events = tmp_path / "run", []
    commit, collect = saver.commit, saver.collect

    def slow(run: Path, state: TrainState, content: Any) -> Path:
        events.append(f"write {state.step}")
        deadline = time.monotonic() + 120
        while state.step < 6 and len(read_metrics(out / "metrics.jsonl")) <= state.step and time.monotonic() < deadline:
            time.sleep(0.005)
        events.append(f"step {len(read_metrics(out / 'metrics.jsonl'))} is done")
        return commit(run, state, content)

    def noted(*arguments: Any) -> Any:
        events.append("copy")
        return collect(*arguments)

    monkeypatch.setattr(saver, "commit", slow)
    monkeypatch.setattr(saver, "collect", noted)
    train(small(*SIX, "train.checkpoint_every=3"), out, shards)
    assert [event for event in events if event != "copy"] == ["write 3", "step 4 is done", "write 6", "step 6 is done"]
    assert events.index("step 4 is done") < [k for k, event in enumerate(events) if event == "copy"][3], "one copy in memory at a time"
    assert losses(out) == losses(six_steps)


def test_written_beside_or_in_between_the_bytes_are_the_same(shards: str, six_steps: Path, tmp_path: Path) -> None:
    train(small(*SIX, "train.async_checkpoint=false"), tmp_path / "run", shards)
    assert same_end(tmp_path / "run", six_steps)
    for run in (tmp_path / "run", six_steps):
        rows = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in rows if "train/checkpoint_blocked_sec" in row] == [3, 5]
        assert all(row["train/checkpoint_blocked_sec"] > 0 for row in rows if row["step"] in (3, 5))
        assert {row["train/failed_checkpoints"] for row in rows} == {0}


# retention


@pytest.mark.parametrize(
    ("steps", "keep_last", "keep_every", "gone"),
    [
        ([2, 4, 6], 2, 0, [2]),
        ([2, 4, 6], 5, 0, []),
        ([2], 1, 0, []),
        ([], 1, 4, []),
        ([2, 4, 6, 8, 10], 1, 4, [2, 6]),
        ([2, 4, 6, 8, 9], 2, 4, [2, 6]),
    ],
)
def test_what_retention_gives_up(steps: list[int], keep_last: int, keep_every: int, gone: list[int]) -> None:
    assert outdated(steps, keep_last, keep_every) == gone


def test_every_fourth_is_kept_for_ever(shards: str, tmp_path: Path) -> None:
    config = small("train.num_steps=10", "train.checkpoint_every=2", "train.keep_last=1", "train.keep_every=4")
    train(config, tmp_path / "run", shards)
    assert names(tmp_path / "run") == ["latest", "step-00000004", "step-00000008", "step-00000010"]
    with pytest.raises(ConfigError, match=r"keep_every 5 must be a multiple of checkpoint_every 2; set train.keep_every=6"):
        small("train.checkpoint_every=2", "train.keep_every=5")


def test_older_checkpoints_go_only_after_the_new_one_is_whole(
    shards: str, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one kept: whenever something is removed, a newer one verifies."""
    out, remove, seen = Path(shutil.copytree(half, tmp_path / "run")), snapshot.remove, []

    def checked(folder: Path) -> None:
        newest = checkpoint.committed(out)[-1]
        checkpoint.verify(newest)
        seen.append((folder.name, newest.name))
        remove(folder)

    monkeypatch.setattr(snapshot, "remove", checked)
    train(small(*SIX, "train.keep_last=1"), out, shards)
    assert ("step-00000004", "step-00000006") in seen
    assert all(gone < newest for gone, newest in seen)


# a write that fails


def refuse(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The disk is full when these checkpoints are written; half a file is left."""
    write = snapshot.write

    def full(folder: Path, state: TrainState, tensors: Any) -> None:
        if state.step not in steps:
            return write(folder, state, tensors)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model.safetensors"))

    monkeypatch.setattr(snapshot, "write", full)


def test_one_write_that_fails_is_said_and_counted_and_training_goes_on(
    shards: str, six_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, 4)
    train(small(*SIX, "train.max_failed_checkpoints=1"), tmp_path / "run", shards)
    assert same_end(tmp_path / "run", six_steps)
    said = [record.message for record in caplog.records if "was not written" in record.message]
    assert len(said) == 1
    assert "the checkpoint of step 4 was not written: " in said[0]
    assert "step-00000004.writing/model.safetensors cannot be written (No space left on device)" in said[0]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["train/failed_checkpoints"] == 1
    assert names(tmp_path / "run") == ["latest", "step-00000002", "step-00000006"], "nothing of the half is left, the one before is kept"


def test_too_many_in_a_row_stop_the_run_and_it_goes_on_from_the_last_good_one(
    shards: str, six_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, 3, 4)
    config = small(*SIX, "train.checkpoint_every=1", "train.max_failed_checkpoints=1", "train.async_checkpoint=false")
    sentence = (
        r"2 checkpoints in a row could not be written, at most train.max_failed_checkpoints=1 are allowed: .*model.safetensors cannot be"
        r" written \(No space left on device\); .*step-00000002 stays the newest checkpoint, free or mend the disk, then the same command"
    )
    with pytest.raises(CheckpointError, match=sentence):
        train(config, tmp_path / "run", shards)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 5, "agreed upon at the step after"
    checkpoint.verify(checkpoint.find(tmp_path / "run"))  # type: ignore[arg-type]
    monkeypatch.undo()
    train(config, tmp_path / "run", shards)
    assert losses(tmp_path / "run") == losses(six_steps)


def test_the_last_checkpoint_must_be_written(shards: str, six_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, 6)
    with pytest.raises(CheckpointError, match=r"No space left on device.*step-00000004 stays the newest checkpoint, free or mend the disk"):
        train(small(*SIX), tmp_path / "run", shards)
    monkeypatch.undo()
    train(small(*SIX), tmp_path / "run", shards)
    assert same_end(tmp_path / "run", six_steps)


@pytest.mark.parametrize("kind", ["tensors", "text"])
def test_a_disk_that_gives_back_something_else_is_noticed(
    shards: str, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from safetensors.torch import save_file

    out = Path(shutil.copytree(half, tmp_path / "run"))
    if kind == "tensors":
        flip = {"safetensors.torch.save_file": lambda content, path: save_file({n: t + 1 for n, t in content.items()}, path)}
    else:
        flip = {"pathlib.Path.write_text": lambda path, text, **_: path.write_bytes(text.replace("1", "2").encode())}
    for name, wrong in flip.items():
        monkeypatch.setattr(name, wrong)
    with pytest.raises(CheckpointError, match="reads back otherwise than written; check the disk"):
        saver.commit(out, *of_checkpoint(half))
    monkeypatch.undo()
    assert checkpoint.committed(out)[-1].name == "step-00000004"


def test_a_defect_of_the_writing_thread_ends_the_run_as_itself(
    shards: str, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(snapshot, "write", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        train(small(*SIX), Path(shutil.copytree(half, tmp_path / "run")), shards)


# real disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, in memory; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root and the right to do so")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Until not one page is left."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_lines_of_metrics_wait_in_memory_while_the_disk_is_full(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tracker(disk, first_step=0, track=small().track) as tracker:
        for step in range(1, 101):
            if step == 2:
                fill(disk / "ballast")
            if step == 100:
                assert 0 < len(read_metrics(disk / "metrics.jsonl")) < 90
                (disk / "ballast").unlink()
            tracker.log(step, {"train/loss": 0.123456789, "train/lr": None})
    assert [row["step"] for row in read_metrics(disk / "metrics.jsonl")] == list(range(1, 101))
    assert caplog.text.count("metrics.jsonl cannot be written (No space left on device); its lines wait in memory") == 1


def test_a_disk_that_is_full_and_one_that_is_read_only(
    disk: Path, shards: str, half: Path, six_steps: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ballast = Path(shutil.copytree(half, disk / "run")), disk / "ballast"
    config = small(*SIX, "train.checkpoint_every=5")

    class Filling(loop.Tracker):
        def log(self, step: int, metrics: Any) -> None:
            fill(ballast) if step == 5 else None
            super().log(step, metrics)

    monkeypatch.setattr(loop, "Tracker", Filling)
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*No space left on device.*step-00000004 stays the newest"):
        train(config, out, shards)
    assert "the checkpoint of step 5 was not written" in caplog.text
    monkeypatch.undo()
    assert names(out) == ["latest", "step-00000004"]
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(CheckpointError, match=r"cannot be written \(Read-only file system\)"):
        train(small(*SIX), out, shards)
    load_model(out)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    train(small(*SIX), out, shards)
    assert same_end(out, six_steps)


# cut off at every point

WRITES = {"mkdir", "open", "write", "serialize_file", "fsync", "chmod", "replace", "rename", "unlink", "rmdir"}


def of_checkpoint(run: Path) -> tuple[TrainState, dict[str, dict[str, torch.Tensor]]]:
    """What the next checkpoint of a run would hold."""
    newest = checkpoint.committed(run)[-1]
    state = checkpoint.read_state(newest)
    return TrainState(**{**vars(state), "step": 6}), {name: snapshot.load_tensors(newest / name) for name in TENSORS}


def commit_until(run: Path, work: Callable[[], None], last: int) -> int | None:
    """Do the work in a forked process that ends without a word before file system call number `last`; None where it came to its end."""
    child = os.fork()
    if child == 0:
        code, count = 1, 0

        def stop(frame: FrameType, event: str, called: Any) -> None:
            nonlocal count
            if event == "c_call" and called.__name__ in WRITES:
                if count == last:
                    os._exit(77)
                count += 1

        try:
            sys.setprofile(stop)
            work()
            sys.setprofile(None)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 77), "the work itself failed"
    return None if code == 0 else last


def test_cut_off_at_every_point_of_a_write_the_run_goes_on_bit_for_bit(shards: str, half: Path, six_steps: Path, tmp_path: Path) -> None:
    end = of_checkpoint(six_steps)[1]
    state = checkpoint.read_state(checkpoint.committed(six_steps)[-1])

    def work(run: Path) -> None:
        saver.commit(run, state, end)
        saver.tidy(run, keep_last=1, keep_every=0)

    outcomes: dict[tuple[str, ...], Path] = {}
    points = 0
    while True:
        run = Path(shutil.copytree(half, tmp_path / f"cut{points}"))
        (run / "checkpoints" / "step-00000006").mkdir()  # remains of one that was never committed
        cut_off = commit_until(run, lambda run=run: work(run), points)  # type: ignore[misc]
        newest = checkpoint.newest_good(run, None, lambda state: None)
        assert newest is not None
        reference = (half if newest.name == "step-00000004" else six_steps) / "checkpoints" / newest.name
        assert {path.name: path.read_bytes() for path in newest.iterdir()} == {p.name: p.read_bytes() for p in reference.iterdir()}
        files = sorted(str(path.relative_to(run / "checkpoints")) for path in (run / "checkpoints").rglob("*") if path.is_file())
        if outcomes.setdefault((newest.name, *files), run) is not run:
            shutil.rmtree(run)
        if cut_off is None:
            break
        points += 1
    assert points > 30, "every call on the file system is a point"
    assert {outcome[0] for outcome in outcomes} == {"step-00000004", "step-00000006"}
    for left in [*list(outcomes.values())[::16], run]:  # all hold one of two checkpoints, bit for bit; what else lies there differs
        train(small(*SIX), left, shards)
        assert same_end(left, six_steps), names(left)


def test_the_newest_is_named_for_people(six_steps: Path) -> None:
    assert (six_steps / "checkpoints" / "latest").read_text() == "step-00000006\n"
    assert json.loads((six_steps / "checkpoints" / "step-00000006" / "COMMITTED").read_text()).keys() == {*TENSORS, "state.json"}
