"""What W&B is told beside the steps: what every metric is, the evaluation of a run, the dashboard.

`wandb` itself runs, offline and against a server of this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards.console import Resumable
from foundation.errors import InputError
from foundation.evaluation.metrics import METRICS as EVALUATION_METRICS
from foundation.track import attach, dashboard
from foundation.track.metrics import METRICS, STEP, Metric, Totals, defined_name
from foundation.track.mirror import evaluation_in, pieces, records
from foundation.track.tracker import read_metrics
from tests.train.test_mirror import RUN_ID, environment, finish, held, same, start
from tests.train.wandb_server import API_KEY, serving

ROOT = Path(__file__).parents[2]
METHODS = ("model", "grow engine")


def estimate(value: float | None) -> dict[str, Any]:
    return {
        "value": value,
        "low": None if value is None else value - 0.5,
        "high": None if value is None else value + 0.25,
        "num_polymers": 3,
    }


def part(values: dict[str, dict[str, float | None]], methods: tuple[str, ...]) -> dict[str, Any]:
    """Attempts and metrics of one part as results.json has them."""
    metrics = {
        name: {"unit": "bit", "protocol": "made up", "better": "low", "methods": {m: estimate(v) for m, v in row.items()}}
        for name, row in values.items()
    }
    attempts = {m: {"attempted": 12, "failed": 1, "reasons": {"clash": 1}} for m in methods}
    return {"protocol": {"num_polymers": 3}, "attempts": attempts, "metrics": metrics, "polymers": []}


def evaluated(folder: Path, divergence: float = 1.5) -> Path:
    """A folder as foundation.evaluate leaves it, with two figures of unequal size."""
    folder.mkdir()
    chains = {"link_dihedral_jsd_bits": {"model": divergence, "grow engine": 0.125}, "chirality_kept_fraction": {"model": None}}
    maps = {"model": np.ones((36, 36)).tolist(), "grow engine": np.eye(36).tolist(), "extended": np.zeros((36, 36)).tolist()}
    results = {
        "checkpoint": "x",
        "weights_sha256": "a" * 64,
        "commit": "c0ffee",
        "shards": {"path": "shards/x", "fingerprint": "f" * 64},
        "settings": {"split": "test"},
        **part(chains, METHODS),
        "parts": {"unit": part({"cov_r_fraction": {"model": 0.75, "ETKDG": 0.5}}, ("model", "ETKDG"))},
        "distributions": {"torsion_maps": {"bins": 36, "maps": maps}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (30, 20), "red").save(folder / "link_dihedrals.png")
    Image.new("RGB", (20, 40), "blue").save(folder / "chain_size.png")
    return folder


def attached(out: Path, evaluation: Path, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; the mode is that of the run."""
    words = [sys.executable, "-m", "foundation.track.attach", "--run", str(out), "--evaluation", str(evaluation)]
    return subprocess.run(words, env=environment(url), capture_output=True, text=True, check=False, timeout=200)


def exit_codes(out: Path) -> list[int]:
    """How each piece says that it ended."""
    found = [record for path in pieces(out, RUN_ID) for record in records(path) if record.WhichOneof("record_type") == "exit"]
    return [record.exit.exit_code for record in found]


def said_to_be_at_its_end_at(out: Path, num_steps: int) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "train": {"num_steps": num_steps}}))


# ---------------------------------------------------------------------------------------------------------------- definitions


def test_every_metric_is_defined_once_with_its_axis_and_summary(tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(start(out, steps=12))
    (path,) = pieces(out, RUN_ID)
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "metric":
            name = record.metric.name or record.metric.glob_name
            assert name not in found
            found[name] = record.metric
    assert set(found) == {STEP, *map(defined_name, METRICS)}
    assert len(found) == 1 + len(METRICS)
    assert found[STEP].options.hidden
    for name, metric in METRICS.items():
        told = found[defined_name(name)]
        assert told.step_metric == STEP
        assert told.options.hidden == metric.hidden
        kinds = {kind for kind in ("min", "max", "mean", "last") if getattr(told.summary, kind)}
        assert kinds == set((metric.summary or "").split(",")) - {""}

    # W&B's own summary of a run of one piece is an oracle of ours, which is of all pieces
    totals = Totals()
    for row in read_metrics(out / "metrics.jsonl"):
        totals.add(row)
    own = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            own |= {item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update if len(item.nested_key) == 1}
    assert set(own) >= {"train/loss", "train/grad_norm", STEP}
    for name in ("train/loss", "train/grad_norm", STEP):
        assert totals.summary()[name] == pytest.approx(own[name])
    assert [values[STEP] for _, values in held(out)] == list(range(1, 13))


def test_totals_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    losses, rates = rng.normal(size=50), rng.normal(size=50)
    totals = Totals()
    for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        row = {"step": step, "train/loss": None if step == 9 else float(loss), "train/lr": float(rate), "note/x": 1.0}
        totals.add(row | ({"val/loss_of_set_2": float(rate)} if step % 7 == 0 else {}) | {"train/grad_norm": float(rate)})
    kept = np.delete(losses, 8)
    assert totals.summary() == {
        "step": 50,
        "train/loss": {"min": kept.min(), "last": losses[-1]},
        "train/lr": rates[-1],
        "train/grad_norm": {"max": rates.max(), "mean": pytest.approx(rates.mean()), "last": rates[-1]},
        "val/loss_of_set_2": {"min": rates[6::7].min(), "last": rates[6::7][-1]},
    }


def test_summaries_are_kinds_that_wandb_knows() -> None:
    assert {kind for metric in METRICS.values() for kind in (metric.summary or "last").split(",")} <= {"min", "max", "mean", "last"}
    assert Metric("x").summary is None


# ----------------------------------------------------------------------------------------------------------------- evaluation


def test_an_evaluation_joins_its_run_and_changes_neither_history_nor_state(tmp_path: Path) -> None:
    """A run that stopped early is evaluated, goes on to its end, is evaluated again, and is uploaded at last."""
    out = tmp_path / "run"
    finish(start(out, steps=12))
    said_to_be_at_its_end_at(out, 20)
    first, second = evaluated(tmp_path / "first"), evaluated(tmp_path / "second", divergence=0.5)
    done = attached(out, first)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(pieces(out, RUN_ID)) == 2
    assert exit_codes(out) == [0, 1]  # it has not done its 20 steps, and nobody shall believe that it has
    finish(start(out, steps=20))
    before = evaluation_in(pieces(out, RUN_ID)[-1:])
    assert before["eval/link_dihedral_jsd_bits"] == 1.5  # the piece that took the place of the evaluation's has its numbers
    assert attached(out, second).returncode == 0
    assert exit_codes(out) == [0, 1, 0, 0]
    same(held(out), out)

    with serving() as server:
        sync = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(path.parent) for path in pieces(out, RUN_ID))]
        synced = subprocess.run(sync, env=environment(server.url), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        assert synced.returncode == 0, synced.stderr
        run = server.runs[RUN_ID]
    assert list(server.runs) == [RUN_ID]
    same([(row["_step"], row) for row in run.history], out)
    assert run.exit_codes == [0, 1, 0, 0]
    check_summary(run.summary, 0.5)
    assert run.summary["train/loss"] == {"min": pytest.approx(1 / 60), "last": pytest.approx(1 / 60)}
    check_media(run.summary, run.files, second)
    assert len({artifact["digest"] for artifact in run.artifacts}) == len(run.artifacts) == 2  # a table of each evaluation


def check_summary(summary: dict[str, Any], divergence: float) -> None:
    numbers = {name: value for name, value in summary.items() if name.startswith("eval/") and not isinstance(value, dict)}
    assert numbers == {
        "eval/split": "test",
        "eval/weights_sha256": "a" * 64,
        "eval/commit": "c0ffee",
        "eval/shards_fingerprint": "f" * 64,
        "eval/num_polymers": 3,
        "eval/conformations_attempted": 12,
        "eval/conformations_failed": 1,
        "eval/link_dihedral_jsd_bits": divergence,
        "eval/unit/num_polymers": 3,
        "eval/unit/conformations_attempted": 12,
        "eval/unit/conformations_failed": 1,
        "eval/unit/cov_r_fraction": 0.75,
    }


def check_media(summary: dict[str, Any], files: dict[str, bytes], evaluation: Path) -> None:
    table = json.loads(files[summary["eval/metrics"]["path"]])
    methods = [text for method in (*METHODS, "ETKDG") for text in (method, f"{method}, interval")]
    assert table["columns"] == ["part", "metric", "unit", "better", *methods]
    value = summary["eval/link_dihedral_jsd_bits"]
    chain = ["chain", "link_dihedral_jsd_bits", "bit", "low", value, f"[{value - 0.5:.4g}, {value + 0.25:.4g}]"]
    assert table["data"] == [
        [*chain, 0.125, "[-0.375, 0.375]", None, None],
        ["chain", "chirality_kept_fraction", "bit", "low", *[None] * 6],
        ["unit", "cov_r_fraction", "bit", "low", 0.75, "[0.25, 1]", None, None, 0.5, "[0, 0.75]"],
    ]
    shown = {key: summary[f"eval/{key}"] for key in ("figures", "torsion_maps")}
    assert shown["figures"]["captions"] == ["chain_size", "link_dihedrals"]
    assert shown["torsion_maps"]["captions"] == list(METHODS)  # an empty map is left out
    for content in shown.values():
        assert len(set(content["filenames"])) == content["count"] == 2
        assert set(content["filenames"]) <= set(files)
    images = [name for name in files if name.startswith("media/images/")]
    assert len({hashlib.sha256(files[name]).digest() for name in images}) == len(images)  # each once, though two evaluations share them
    size, figures = (shown["figures"]["width"], shown["figures"]["height"]), shown["figures"]["filenames"]
    assert size == (30, 40)  # W&B shows all images of a panel in one size
    for name, path in zip(figures, sorted(evaluation.glob("*.png")), strict=True):
        (evaluation.parent / "seen.png").write_bytes(files[name])
        with Image.open(evaluation.parent / "seen.png") as image, Image.open(path) as original:
            assert image.size == size
            assert image.convert("RGB").crop((0, 0, *original.size)).tobytes() == original.convert("RGB").tobytes()


@pytest.mark.slow
def test_online_the_server_has_the_evaluation_and_the_next_step_comes_after_the_last(tmp_path: Path) -> None:
    out = tmp_path / "run"
    evaluation = evaluated(tmp_path / "eval")
    with serving() as server:
        finish(start(out, steps=6, mode="online", url=server.url))
        done = attached(out, evaluation, server.url)
        assert (done.returncode, done.stderr) == (0, "")
        run = server.runs[RUN_ID]
        check_summary(run.summary, 1.5)
        check_media(run.summary, run.files, evaluation)
        assert run.summary["train/loss"] == {"min": pytest.approx(1 / 18), "last": pytest.approx(1 / 18)}
        finish(start(out, steps=9, mode="online", url=server.url))
        same([(row["_step"], row) for row in run.history], out)
        check_summary(run.summary, 1.5)
        assert run.exit_codes == [0, 0, 0]


def test_what_a_kill_kept_from_wandb_goes_before_the_evaluation_and_no_server_is_no_hindrance(tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(start(out, steps=6))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/loss": 0.5}\n')  # the mirror died before it
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "track": {"mode": "online"}}))
        done = attached(out, evaluated(tmp_path / "eval"), f"http://127.0.0.1:{refusing.getsockname()[1]}")
    assert done.returncode == 0
    assert done.stderr.startswith("W&B: offline for now: CommError: ")
    assert done.stderr.count("\n") == 1
    same(held(out), out)
    check_summary({name: value for name, value in evaluation_in(pieces(out, RUN_ID)).items()}, 1.5)


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as training leaves it, without what W&B keeps."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out = tmp_path / "run"
    (out / "wandb").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"run_id": RUN_ID}))
    (out / "config.json").write_text(json.dumps({"train": {"num_steps": 2}, "track": {"project": "rubber"}}))
    (out / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    return out


def test_while_training_goes_on_the_evaluation_waits_for_another_time(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_SILENT", "WANDB_X_DISABLE_STATS", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setattr(attach, "PATIENCE_SEC", 0.2)
    with (tracked / "wandb" / ".mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Resumable, match=r"training of .* goes on"):
            attach.main(run_folder=tracked, evaluation=evaluated(tmp_path / "eval"), dry_run=False)
    assert pieces(tracked, RUN_ID) == []
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()]


def test_a_sender_that_is_stuck_is_left_behind(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import foundation.track.mirror as mirror_module
    import foundation.track.tracker as tracker_module

    begun: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def stuck(words: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        begun.append(original([sys.executable, "-c", "import time; time.sleep(600)"], **settings))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", stuck)
    for module, name in ((attach, "PATIENCE_SEC"), (mirror_module, "INIT_SEC"), (tracker_module, "CLOSE_SEC")):
        monkeypatch.setattr(module, name, 0.1)
    assert not attach.attach(str(tracked), tmp_path)
    assert begun[0].returncode is not None
    assert capfd.readouterr().err == "W&B: the evaluation was not taken in time; results.json has it\n"


def test_only_a_tracked_run_is_added_to(tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tracked / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    assert attach.folder_of(str(tracked)) == tracked
    assert attach.folder_of(str(step)) == tracked
    assert attach.folder_of(str(tmp_path)) is None
    assert attach.folder_of("s3://bucket/run") is None
    assert attach.tracking_of(tracked) == ("offline", "rubber")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert attach.tracking_of(tracked) == ("online", "rubber")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert attach.tracking_of(tracked) is None
    monkeypatch.delenv("WANDB_MODE")
    (tracked / "config.json").write_text(json.dumps({"track": {"wandb": False}}))
    assert attach.tracking_of(tracked) is None
    assert not attach.attach(str(tracked), tmp_path)
    with pytest.raises(InputError, match="is not tracked by W&B"):
        attach.main(run_folder=tracked, evaluation=evaluated(tmp_path / "eval"), dry_run=False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "holds no results.json that can be read"),
        ("[1]", "holds no JSON object"),
        ("{}", "is no result of foundation.evaluate"),
        ('{"metrics": 3}', "is no result of foundation.evaluate"),
        (("metrics", {"../x": {"methods": {}}}), "is no result of foundation.evaluate"),
        (("distributions", {"torsion_maps": {"maps": {"model": [[1, 2]]}}}), "shape"),
        (("distributions", {"torsion_maps": {"maps": {"model": [[float("nan")]]}}}), "torsion map of 'model'"),
    ],
)
def test_results_that_are_none_are_one_sentence(tracked: Path, tmp_path: Path, text: Any, complaint: str) -> None:
    folder = evaluated(tmp_path / "eval")
    if text is None:
        (folder / "results.json").unlink()
    elif isinstance(text, str):
        (folder / "results.json").write_text(text)
    else:
        key, value = text
        (folder / "results.json").write_text(json.dumps({**json.loads((folder / "results.json").read_text()), key: value}))
    with pytest.raises(InputError, match=re.escape(complaint)):
        attach.main(run_folder=tracked, evaluation=folder, dry_run=True)


def test_dry_run_says_what_would_be_added(tracked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attach.main(run_folder=tracked, evaluation=evaluated(tmp_path / "eval"), dry_run=True)
    said = capsys.readouterr().out
    assert said == "12 numbers, a table of 3 metrics, 2 figures, 2 torsion maps: offline\ndry run: nothing was sent\n"
    assert list((tracked / "wandb").iterdir()) == []


def test_the_first_dihedral_lies_along_x(tmp_path: Path) -> None:
    """A map with one full bin, the first angle near -180 and the second near 180 degrees: the light square is at the top left."""
    counts = np.zeros((4, 4))
    counts[0, 3] = 5
    attach.draw_map(counts.tolist(), "model", 1.0, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    yellow = (abs(pixels - [253, 231, 37]).sum(-1) < 12) & (np.arange(pixels.shape[1]) < 0.75 * pixels.shape[1])  # not the colour bar
    purple = abs(pixels - [68, 1, 84]).sum(-1) < 12
    assert yellow.any()
    assert np.argwhere(yellow).mean(0)[0] < np.argwhere(purple).mean(0)[0]
    assert np.argwhere(yellow).mean(0)[1] < np.argwhere(purple).mean(0)[1]


# ------------------------------------------------------------------------------------------------------------------ dashboard


def panels() -> list[dashboard.Panel]:
    return [panel for section in dashboard.LAYOUT.values() for panel in section]


def test_the_dashboard_shows_every_metric_once_and_nothing_else() -> None:
    numbers = Counter(key for panel in panels() for key in panel.keys if panel.kind == "lines")
    sets = [f"val/loss_of_set_{k}" for k in (2, 3, 4)]
    assert numbers == Counter([*METRICS, *sets])
    others = {panel.keys for panel in panels() if panel.kind in ("media", "object")}
    assert others == {("sample",), ("eval/metrics",), ("eval/torsion_maps",), ("eval/figures",)}
    bars = {key.removeprefix("eval/") for panel in panels() if panel.kind == "bars" for key in panel.keys}
    assert bars <= set(EVALUATION_METRICS)
    assert len({panel.title for panel in panels()}) == len(panels())


def test_the_page_says_of_every_panel_what_it_shows() -> None:
    page = (ROOT / "docs" / "tracking.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, flags=re.MULTILINE)
    told = {title: shows for title, shows, wrong in rows if len(wrong) > 20}
    for panel in panels():
        assert told.get(panel.title) == panel.shows, panel.title


def test_the_layout_is_shown_without_network_or_key() -> None:
    words = [sys.executable, "-m", "foundation.track.dashboard", "--project", "rubber", "--dry-run"]
    done = subprocess.run(words, env=environment(None), capture_output=True, text=True, check=True, timeout=100)
    shown = json.loads(done.stdout)
    assert shown["project"] == "rubber"
    assert {section: [panel["title"] for panel in row] for section, row in shown["sections"].items()} == {
        section: [panel.title for panel in row] for section, row in dashboard.LAYOUT.items()
    }


def test_the_dashboard_reaches_the_server() -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra [dashboard] is not installed")
    with serving() as server:
        words = [sys.executable, "-m", "foundation.track.dashboard", "--project", "rubber"]
        done = subprocess.run(words, env=environment(server.url), capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        (view,) = server.views
    assert done.stdout.startswith(f"dashboard: {server.url}/tester/rubber?nw=")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("tester", "rubber", dashboard.NAME)
    spec = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in spec] == list(dashboard.LAYOUT)
    for section, row in zip(spec, dashboard.LAYOUT.values(), strict=True):
        assert len(section["panels"]) == len(row)
        for drawn, panel in zip(section["panels"], row, strict=True):
            text = json.dumps(drawn)
            assert all(f'"{key}"' in text for key in panel.keys)
            if panel.kind == "lines":
                assert drawn["config"]["xAxis"] == STEP
                assert drawn["config"].get("yLogScale", False) == panel.log_y


@pytest.mark.parametrize(
    ("variables", "complaint", "code"),
    [
        ({}, "error: there is no key for W&B", 2),
        ({"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": "wandb.example"}, "is no address", 2),
        ({"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": "http://127.0.0.1:1"}, "stopped: http://127.0.0.1:1 cannot be reached within", 3),
    ],
)
def test_no_key_and_no_network_are_one_sentence(variables: dict[str, str], complaint: str, code: int) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra [dashboard] is not installed")
    words = [sys.executable, "-m", "foundation.track.dashboard", "--project", "rubber"]
    done = subprocess.run(words, env=environment(None) | variables, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .*\[dashboard\]"):
        dashboard.save("rubber", None, "x")
