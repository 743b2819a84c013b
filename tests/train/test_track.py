"""metrics.jsonl holds each step once; a W&B that cannot begin stops nothing; the console shows plain lines where nobody watches."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import foundation.track.tracker as tracker_module
from foundation.config import TrackConfig
from foundation.track.console import Console
from foundation.track.metrics import METRICS, check_names
from foundation.track.tracker import Tracker, mirror_mode, read_metrics

OFF = TrackConfig(wandb=False)


def test_each_step_stands_once_and_lost_steps_are_dropped(tmp_path: Path) -> None:
    for first, steps in ((0, range(1, 6)), (3, range(4, 8))):
        with Tracker(tmp_path, first_step=first, track=OFF) as tracker:
            for step in steps:
                tracker.log(step, {"train/loss": step + first / 100})
    rows = [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rows == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.03), (5, 5.03), (6, 6.03), (7, 7.03)]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/lo')
    with Tracker(tmp_path, first_step=1, track=OFF) as tracker:
        tracker.log(2, {"train/loss": 0.25})
    assert path.read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.25}\n'


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with Tracker(tmp_path, first_step=0, track=OFF) as tracker:
        tracker.log(1, {"train/loss": float("nan"), "train/grad_norm": None, "train/lr": 0.1})
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


@pytest.mark.parametrize(
    ("track", "environment", "mode"),
    [
        (TrackConfig(), None, "offline"),
        (TrackConfig(mode="online"), None, "online"),
        (TrackConfig(), "online", "online"),
        (TrackConfig(mode="online"), "offline", "offline"),
        (TrackConfig(mode="disabled"), None, None),
        (TrackConfig(), "disabled", None),
        (TrackConfig(wandb=False), "online", None),
        (TrackConfig(mode="online"), "$(reboot)", "offline"),
    ],
)
def test_wandb_is_offline_unless_told_otherwise(track: TrackConfig, environment: str | None, mode: str | None) -> None:
    assert mirror_mode(track, {} if environment is None else {"WANDB_MODE": environment}) == mode


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ({"run_id": "../../x"}, "run_id '../../x' in "),
        ({}, "run_id 'None' in "),
        (["0123abcd"], "holds no JSON object"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_mirror_that_cannot_begin_says_so_once_and_the_file_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run: object, text: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text("{}")
    if run is not None:
        (out / "run.json").write_text(json.dumps(run))
    with Tracker(out, first_step=0, track=TrackConfig()) as tracker:
        tracker.log(1, {"train/loss": 1.0})
    heard = capfd.readouterr().err
    assert heard.startswith("W&B: cannot be used (")
    assert text in heard
    assert heard.endswith("; metrics.jsonl has everything\n")
    assert heard.count("\n") == 1
    assert len(read_metrics(out / "metrics.jsonl")) == 1
    assert {path.name for path in tmp_path.rglob("*")} == {
        "run",
        "config.json",
        "metrics.jsonl",
        *(["run.json"] if run is not None else []),
    }


def test_a_mirror_that_is_stuck_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(out: Path, mode: str, project: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE)

    monkeypatch.setattr(tracker_module, "start_mirror", stuck)
    monkeypatch.setattr(tracker_module, "CLOSE_SEC", 0.2)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with Tracker(tmp_path, first_step=0, track=TrackConfig()) as tracker:
        assert tracker.mirror is not None
    assert tracker.mirror.returncode == -signal.SIGKILL


def test_the_page_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    told = dict(re.findall(r"^\| `((?!eval/)\w+/\w+)` \| (.*) \|$", page, flags=re.MULTILINE))  # eval/ is no metric of a step
    assert told == {name: metric.meaning for name, metric in METRICS.items()}


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
