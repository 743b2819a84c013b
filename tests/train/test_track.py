"""metrics.jsonl holds each step once; W&B is a mirror that never stops a run; the console shows plain lines where nobody watches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundation.config import TrackConfig
from foundation.track.console import Console
from foundation.track.metrics import check_names
from foundation.track.tracker import Tracker, read_metrics

OFF = TrackConfig(wandb=False)


def test_each_step_stands_once_and_lost_steps_are_dropped(tmp_path: Path) -> None:
    for first, steps in ((0, range(1, 6)), (3, range(4, 8))):
        tracker = Tracker(tmp_path, first_step=first, config={}, track=OFF, run_id="r")
        for step in steps:
            tracker.log(step, {"train/loss": step + first / 100})
        tracker.close()
    rows = [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rows == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.03), (5, 5.03), (6, 6.03), (7, 7.03)]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/lo')
    tracker = Tracker(tmp_path, first_step=1, config={}, track=OFF, run_id="r")
    tracker.log(2, {"train/loss": 0.25})
    tracker.close()
    assert path.read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.25}\n'


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, first_step=0, config={}, track=OFF, run_id="r")
    tracker.log(1, {"train/loss": float("nan"), "train/grad_norm": None, "train/lr": 0.1})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "train/loss": None,
        "train/grad_norm": None,
        "train/lr": 0.1,
    }


def test_an_unlisted_metric_is_refused() -> None:
    check_names({"train/loss": 1.0, "val/loss": 1.0})
    with pytest.raises(AssertionError, match=r"\['train/los'\] are not listed"):
        check_names({"train/los": 1.0})


class FakeClient(SimpleNamespace):
    """Records what a W&B client is asked."""

    def __init__(self, key: str | None = None, error: Exception | None = None) -> None:
        super().__init__(api=SimpleNamespace(api_key=key), asked=[], logged=[], error=error)

    def init(self, **arguments: Any) -> FakeClient:
        if self.error:
            raise self.error
        self.asked.append(arguments)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.logged.append("finished")


@pytest.mark.parametrize(
    ("track", "environment", "key", "mode"),
    [
        (TrackConfig(), None, None, "offline"),
        (TrackConfig(mode="online"), None, "k", "online"),
        (TrackConfig(mode="online"), None, None, "offline"),
        (TrackConfig(), "online", "k", "online"),
        (TrackConfig(mode="online"), "offline", "k", "offline"),
        (TrackConfig(), "disabled", "k", None),
        (TrackConfig(wandb=False), "online", "k", None),
    ],
)
def test_wandb_is_offline_unless_told_otherwise_and_never_asks_for_a_login(
    track: TrackConfig, environment: str | None, key: str | None, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient(key)
    monkeypatch.setitem(sys.modules, "wandb", client)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    tracker = Tracker(tmp_path, first_step=0, config={"a": 1}, track=track, run_id="abc")
    tracker.log(1, {"train/loss": 1.0, "train/grad_norm": None})
    tracker.close()
    assert [asked["mode"] for asked in client.asked] == ([mode] if mode else [])
    if mode:
        assert (client.asked[0]["dir"], client.asked[0]["id"], client.asked[0]["config"]) == (str(tmp_path), "abc", {"a": 1})
        assert client.logged == [(1, {"train/loss": 1.0}), "finished"]


def test_a_broken_mirror_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeClient(error=OSError("no service")))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker(tmp_path, first_step=0, config={}, track=TrackConfig(), run_id="r")
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert "W&B cannot be used (OSError: no service); metrics.jsonl has everything" in caplog.text
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_the_real_wandb_writes_an_offline_run_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (0, 1):
        tracker = Tracker(tmp_path, first_step=first, config={"a": 1}, track=TrackConfig(), run_id="abcdefgh")
        assert tracker.mirror is not None
        tracker.log(first + 1, {"train/loss": 1.0})
        tracker.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*-abcdefgh"))) >= 1


def test_plain_lines_show_loss_speed_padding_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 2.0, 4.0, 6.0, 8.0])
    console = Console(100, 10, log_every=2, clock=lambda: next(times))
    metrics: dict[str, float | None] = {
        "train/loss": 0.5,
        "train/grad_norm": 1.0,
        "train/chains_per_sec": 12.34,
        "train/atoms_per_sec": 5678.9,
        "train/padding_efficiency": 0.876,
    }
    for step in (11, 12):
        console.show(step, metrics)
    console.show(13, metrics | {"val/loss": 0.25})
    console.show(15, metrics | {"train/grad_norm": None, "train/loss": None})
    console.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 12/100  loss 0.5000  12.3 chains/s  5679 atoms/s  padding 88%  2:56 left"
    assert lines[1].startswith("step 13/100  loss 0.5000  val 0.2500  ")
    assert lines[2].startswith("step 15/100  not finite, skipped  ")
    assert len(lines) == 3


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console(10, 0, log_every=1)
    assert console.bar is not None
    names = ("loss", "grad_norm", "chains_per_sec", "atoms_per_sec", "padding_efficiency")
    console.show(1, {f"train/{name}": 1.0 for name in names})
    console.close()
    shown = console.bar.tasks[0]
    assert shown.completed == 1
    assert "loss 1.0000" in shown.description
    assert "left" in shown.description
