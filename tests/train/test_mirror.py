"""What W&B has of a run equals metrics.jsonl, each step once, whenever the run was killed; what W&B does never stops a run.

`wandb` itself runs, offline and against a server of this machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.same_curve import kill_all
from foundation.track.mirror import HEADER, last_step, log_records, pieces, records
from foundation.track.tracker import FINISH_SEC, read_metrics
from tests.train import tracked
from tests.train.wandb_server import API_KEY, Server, serving

RUN_ID = "0123abcd"
PROGRAM = Path(tracked.__file__)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def environment(url: str | None) -> dict[str, str]:
    """Nothing of the user's own W&B; a server on this machine or none at all."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    nowhere = {"HOME": "/nonexistent", "NETRC": "/nonexistent/netrc"}
    online = {} if url is None else {"WANDB_BASE_URL": url, "WANDB_API_KEY": API_KEY}
    return kept | nowhere | online | {"PYTHONPATH": str(PROGRAM.parents[2]), "WANDB_ERROR_REPORTING": "false"}


def start(out: Path, *, steps: int = 30, step_sec: float = 0.0, mode: str = "offline", url: str | None = None) -> subprocess.Popen[str]:
    words = [sys.executable, str(PROGRAM), str(out), str(steps), str(step_sec), mode]
    return subprocess.Popen(words, env=environment(url), stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that ends well; what it said."""
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def held(out: Path) -> list[tuple[int, dict[str, object]]]:
    """(step, values) of every history record of all pieces, in order."""
    found = []
    for path in pieces(out, RUN_ID):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                values = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
                found.append((record.history.step.num, values))
    return found


def kinds(path: Path) -> Counter[str]:
    return Counter(record.WhichOneof("record_type") for record in records(path))


def in_file(out: Path) -> list[tuple[int, dict[str, object]]]:
    """The same of metrics.jsonl; W&B has no null."""
    rows = read_metrics(out / "metrics.jsonl")
    return [(row["step"], {name: value for name, value in row.items() if value is not None and name != "step"}) for row in rows]


def same(found: list[tuple[int, dict[str, object]]], out: Path) -> None:
    """Each step once, in order, with the values of metrics.jsonl."""
    expected = in_file(out)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [{k: v for k, v in values.items() if "/" in k} for _, values in found] == [values for _, values in expected]


def kill_once(out: Path, beyond: int, **settings: str | None) -> None:
    """Start a slow run, and kill it and all that it started once W&B's file holds a step beyond some."""
    process = start(out, steps=1000, step_sec=0.05, **settings)  # type: ignore[arg-type]
    wait_for(lambda: max([0, *(last_step(path) for path in pieces(out, RUN_ID))]) > beyond or process.poll() is not None, "no step")
    assert process.poll() is None
    kill_all(process.pid)
    process.communicate(timeout=60)


def test_a_run_killed_twice_is_one_run_offline_and_after_its_upload(tmp_path: Path, server: Server) -> None:
    out = tmp_path / "run"
    kill_once(out, beyond=0)
    kill_once(out, beyond=last_step(pieces(out, RUN_ID)[0]) + 10)
    empty = out / "wandb" / f"offline-run-20000101_000000-{RUN_ID}" / f"run-{RUN_ID}.wandb"
    empty.parent.mkdir()
    empty.write_bytes(HEADER)  # of a start that was killed at once
    with pieces(out, RUN_ID)[-1].open("ab") as file:
        file.write(b"torn")
    last = len(read_metrics(out / "metrics.jsonl")) + 20
    assert finish(start(out, steps=last)) == ""
    assert len(pieces(out, RUN_ID)) == 3
    assert in_file(out)[-1] == (last, {"train/loss": tracked.loss(last), "train/grad_norm": 1.0})
    same(held(out), out)

    sync = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(path.parent) for path in pieces(out, RUN_ID))]
    for _ in range(2):  # the second time there is nothing to do
        done = subprocess.run(sync, env=environment(server.url), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert list(server.runs) == [RUN_ID]
        same([(row["_step"], row) for row in server.runs[RUN_ID].history], out)
    config = {key: entry["value"] for key, entry in json.loads(server.runs[RUN_ID].facts["config"]).items() if key != "_wandb"}
    assert config["train"] == {"num_steps": last}
    assert config["run"] == {"run_id": RUN_ID, "commit": "c0ffee+changes", "fingerprint": "f" * 64}
    assert server.runs[RUN_ID].facts["jobType"] == "pretrain"
    assert server.runs[RUN_ID].facts["tags"] == ["polyconfm_tiny", "polyconfm"]
    files = server.runs[RUN_ID].files
    assert {"config.json", "run.json", "requirements.txt"} <= set(files)
    molecules = Counter(content for name, content in files.items() if name.startswith("media/molecule/"))
    assert molecules == {f"chain of step {step}\n".encode(): 1 for step in range(tracked.SAMPLE_EVERY, last + 1, tracked.SAMPLE_EVERY)}
    shown = {row["_step"]: row["sample"]["path"] for row in server.runs[RUN_ID].history if "sample" in row}
    assert {step: files[path] for step, path in shown.items()} == {
        step: (out / "samples" / f"step-{step:08d}.sdf").read_bytes()
        for step in range(tracked.SAMPLE_EVERY, last + 1, tracked.SAMPLE_EVERY)
    }
    assert kinds(pieces(out, RUN_ID)[-1])["stats"] >= 1  # W&B's own measurements of the machine, offline too


def test_online_a_run_killed_and_started_again_is_one_run(tmp_path: Path, server: Server) -> None:
    out = tmp_path / "run"
    finish(start(out, steps=4))  # offline at first: the server gets these steps too
    process = start(out, steps=1000, step_sec=0.05, mode="online", url=server.url)
    wait_for(lambda: RUN_ID in server.runs and len(server.runs[RUN_ID].history) > 8, "nothing arrived")
    kill_all(process.pid)
    process.communicate(timeout=60)
    assert finish(start(out, steps=len(read_metrics(out / "metrics.jsonl")) + 10, mode="online", url=server.url)) == ""
    assert list(server.runs) == [RUN_ID]
    same([(row["_step"], row) for row in server.runs[RUN_ID].history], out)
    offline = [path for path in pieces(out, RUN_ID) if path.parent.name.startswith("offline-")]
    assert [path.with_name(path.name + ".synced").exists() for path in offline] == [True]


def test_a_mirror_outlives_a_killed_training_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, steps=1000, step_sec=0.01)
    wait_for(lambda: bool(pieces(out, RUN_ID)) and last_step(pieces(out, RUN_ID)[0]) > 0, "no step")
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 2  # the mirror, and W&B's own service
    process.send_signal(signal.SIGKILL)
    last = len(read_metrics(out / "metrics.jsonl")) + 5
    finish(start(out, steps=last))
    same(held(out), out)
    assert kinds(pieces(out, RUN_ID)[0])["exit"] == 1  # it noticed, and ended its piece in order
    process.communicate(timeout=60)
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_a_server_that_refuses_or_never_answers_neither_stops_nor_slows_a_run(tmp_path: Path) -> None:
    """A port where nobody listens, and one that takes connections and stays silent."""
    with socket.socket() as refusing, socket.socket() as silent:
        for server in (refusing, silent):
            server.bind(("127.0.0.1", 0))
        silent.listen(64)
        runs = {}
        for name, server in (("refusing", refusing), ("silent", silent)):
            runs[name] = start(tmp_path / name, steps=40, mode="online", url=f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in runs:
            wait_for(lambda out=tmp_path / name: len(read_metrics(out / "metrics.jsonl")) == 40, "training waits")  # type: ignore[misc]
            assert pieces(tmp_path / name, RUN_ID) == []  # all steps are done before W&B has begun
        said = {name: finish(process) for name, process in runs.items()}
    for name, text in said.items():
        assert text.startswith("W&B: offline for now: CommError: ")
        assert text.count("\n") == 1
        offline = [path for path in pieces(tmp_path / name, RUN_ID) if path.parent.name.startswith("offline-")]
        assert len(offline) == 1
        same(held(tmp_path / name), tmp_path / name)


@pytest.mark.slow
def test_a_run_ends_though_the_server_stopped_answering(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving() as server:
        process = start(out, steps=60, step_sec=0.1, mode="online", url=server.url)
        wait_for(lambda: RUN_ID in server.runs, "the run did not begin")
        server.silence()
        said = finish(process)
        assert f"W&B: not everything was taken within {FINISH_SEC:g} s" in said
    assert len(read_metrics(out / "metrics.jsonl")) == 60
    same(held(out), out)  # `wandb sync` has all it needs


def test_without_a_key_nothing_is_asked_and_the_run_is_offline(tmp_path: Path) -> None:
    said = finish(start(tmp_path / "run", steps=3, mode="online"))
    assert said.startswith("W&B: offline for now: UsageError: No API key configured.")
    assert said.count("\n") == 1
    same(held(tmp_path / "run"), tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------------ W&B's files


def test_a_torn_file_is_read_up_to_where_it_is_torn(tmp_path: Path) -> None:
    finish(start(tmp_path / "run", steps=700))
    data = pieces(tmp_path / "run", RUN_ID)[0].read_bytes()
    whole = list(log_records(data))
    assert len(data) > 2 * 32_768  # records that go over the end of a block are among them
    assert len(whole) > 700
    lengths = []
    for cut in range(0, len(data), 997):
        found = list(log_records(data[:cut]))
        assert found == whole[: len(found)]
        assert all(place <= cut for place, _ in found)
        lengths.append(len(found))
    assert lengths == sorted(lengths)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    assert 0 < len(list(log_records(bytes(flipped)))) < len(whole)
    assert list(log_records(b"")) == list(log_records(HEADER)) == list(log_records(b"\0" * 100)) == []
