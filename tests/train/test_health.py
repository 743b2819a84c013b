"""Stops, skips, spikes, hangs and ranks that differ; whatever concerns several ranks runs as several processes."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.console import Resumable
from foundation.config import RunConfig
from foundation.errors import InputError
from foundation.track.tracker import read_metrics
from foundation.train import loop
from foundation.train.engine import Engine, Forward
from foundation.train.health import SpikeRule, StopRequest, check_same_everywhere
from foundation.train.ranks import Ranks, group_timeout
from foundation.train.watchdog import EXIT_HANG, Beat
from tests.train.conftest import Pair, command, losses, small

ENDLESS = ("train.num_steps=5000", "train.checkpoint_every=5000", "train.num_val_batches=0", "train.micro_batches_per_step=2")


# ------------------------------------------------------------------------------------------------------------------ not finite


@pytest.mark.dist
def test_a_loss_that_is_nan_on_one_rank_is_skipped_by_all_at_every_stage(tmp_path: Path) -> None:
    pair = Pair([["-m", "tests.train.health_ranks", "stages", str(tmp_path / "found")]] * 2, tmp_path)
    assert pair.ends() == [0, 0], pair.said()[-6000:]
    found = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2)]
    for stage in "0123":
        for poisoned, whole in (rank[stage] for rank in found):
            first, second, bad, after = poisoned["norms"]
            assert bad is None, stage
            assert poisoned["updates"] == whole["updates"] == 3
            assert [first, second, after] == whole["norms"]
            assert poisoned["sum"] == whole["sum"]
    assert len({norm for norm in found[0]["0"][0]["norms"]}) == 4


# ---------------------------------------------------------------------------------------------------------------------- spikes


def rule(factor: float = 5.0, window: int = 5) -> SpikeRule:
    return SpikeRule(small(f"train.spike_factor={factor}", f"train.spike_window={window}").train, loud=False)


def test_the_spike_limit_is_the_median_plus_so_many_spreads() -> None:
    spikes = rule()
    for loss in (1.0, -2.0, 4.0, 1.5):
        spikes.see(loss, applied=True)
    assert spikes.limit == math.inf, "the window is not full"
    spikes.see(-3.0, applied=True)
    sample = [1.0, -2.0, 4.0, 1.5, -3.0]
    spread = statistics.median(abs(x - 1.0) for x in sample)
    assert spikes.limit == pytest.approx(1.0 + 5.0 * 1.4826 * spread)
    assert not spikes.judge(6, spikes.limit)
    assert spikes.judge(6, spikes.limit + 1e-9)
    assert not spikes.judge(6, math.nan), "not finite: for the other check"


def test_skipped_losses_do_not_move_the_limit_and_a_flat_loss_has_some_room() -> None:
    spikes = rule()
    for _ in range(5):
        spikes.see(2.0, applied=True)
    assert spikes.limit == pytest.approx(2.0 + 5.0 * 1e-3 * 2.0)
    before = spikes.limit
    spikes.see(100.0, applied=False)
    spikes.see(None, applied=False)
    assert spikes.limit == before
    assert not rule(factor=0.0).is_on


SPIKY = ("train.num_steps=9", "train.checkpoint_every=9", "train.num_val_batches=0", "train.spike_factor=5000", "train.spike_window=4")


def test_a_spike_is_left_out_counted_and_judged_alike_after_a_stop(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of steps 6 and 8 are a thousand times as large. Stopped between them and continued: the same to the last bit."""
    forward, step = Engine.forward, Engine.step
    stop = StopRequest()

    def larger(self: Engine, *args: object) -> Forward:
        made = forward(self, *args)  # type: ignore[arg-type]
        factor = 1000.0 if Engine.now in (6, 8) else 1.0  # type: ignore[attr-defined]
        return Forward(made.to_differentiate * factor, made.loss * factor, made.terms)

    def counted(self: Engine, lr: float) -> object:
        stop.asked = Engine.now == 7 and (tmp_path / "cut").exists()  # type: ignore[attr-defined]
        Engine.now += 1  # type: ignore[attr-defined]
        return step(self, lr)

    monkeypatch.setattr(Engine, "forward", larger)
    monkeypatch.setattr(Engine, "step", counted)
    monkeypatch.setattr(Engine, "now", 1, raising=False)
    loop.train(small(*SPIKY), tmp_path / "whole", shards)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["train/grad_norm"] is None] == [6, 8]
    assert rows[-1]["train/skipped_steps"] == 2
    assert min(rows[k]["train/loss"] for k in (5, 7)) > 100 * max(row["train/loss"] for row in rows if row["train/grad_norm"] is not None)
    Engine.now = 1  # type: ignore[attr-defined]
    with pytest.raises(Resumable, match="at step 7 of 9"):
        loop.train(small(*SPIKY), tmp_path / "cut", shards, stop=stop)
    assert Engine.now == 8  # type: ignore[attr-defined]
    loop.train(small(*SPIKY), tmp_path / "cut", shards)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_rule_that_finds_nothing_changes_nothing(shards: str, tmp_path: Path) -> None:
    short = ("train.num_steps=6", "train.num_val_batches=0")
    loop.train(small(*short), tmp_path / "off", shards)
    loop.train(small(*short, "train.spike_factor=1e6", "train.spike_window=3"), tmp_path / "on", shards)
    assert losses(tmp_path / "off") == losses(tmp_path / "on")


# --------------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.dist
def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pair = Pair([command(shards, out, *ENDLESS)] * 2, tmp_path)
    pair.wait_for_steps(out, 2)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.ends() == [3, 3], pair.said()[-6000:]
    stopped = len(read_metrics(out / "metrics.jsonl"))
    assert (out / "checkpoints" / f"step-{stopped:08d}" / "COMMITTED").exists()
    assert f"stopped: at step {stopped} of 5000" in pair.said()


def test_a_second_sigint_kills_at_once_and_a_second_sigterm_does_not() -> None:
    program = (
        "import sys, time\nfrom foundation.train.health import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.asked: time.sleep(0.01)\n"
        "    print('asked', flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # a launcher may send it as often as it likes
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()


def test_handlers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


# ----------------------------------------------------------------------------------------------------------------------- hangs

WATCHED = (
    "import sys, time\nfrom pathlib import Path\nfrom foundation.train.watchdog import Watchdog\n"
    "out, rank, ranks, phase, seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]\n"
    "with Watchdog(out, rank, ranks, 2.0) as watch:\n"
    "    while len(list((out / '.beats').glob('*'))) < ranks: watch.beat(7, phase)\n"
    "    until = time.monotonic() + float(seconds)\n"
    "    while time.monotonic() < until: watch.beat(7, phase)\n"
    "    if phase != 'read': time.sleep(100)\n"
)


def watched(out: Path, rank: int, ranks: int, phase: str, seconds: float) -> subprocess.Popen[str]:
    """A rank that comes to a phase of step 8, is well for some seconds once all are there, then hangs, or ends where the phase is read."""
    words = [str(out), str(rank), str(ranks), phase, str(seconds)]
    return subprocess.Popen([sys.executable, "-c", WATCHED, *words], stderr=subprocess.PIPE, text=True)


def test_ranks_that_hang_dump_their_stacks_and_name_the_one_that_is_behind(tmp_path: Path) -> None:
    ranks = [watched(tmp_path, 0, 2, "agree", 0.0), watched(tmp_path, 1, 2, "compute", 0.0)]
    said = [process.communicate(timeout=100)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [EXIT_HANG, EXIT_HANG]
    assert "rank 0 made no progress for 2 s (train.hang_timeout_sec) at step 8 (agree)" in said[0]
    assert f"rank 1 is behind: at step 8 (compute), host {os.uname().nodename}, pid {ranks[1].pid}" in said[0]
    assert "no other rank is behind" in said[1]
    for rank in range(2):
        stacks = (tmp_path / "stacks" / f"rank-{rank}.txt").read_text()
        assert stacks.startswith(f"rank {rank} made no progress")
        assert 'File "<string>", line 9 in <module>' in stacks, "the main thread is among them"


def test_time_in_which_the_process_was_stopped_is_not_its_own_fault(tmp_path: Path) -> None:
    process = watched(tmp_path, 0, 1, "read", 6.0)
    until = time.monotonic() + 60
    while not (tmp_path / ".beats" / "rank-0").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0
    assert not (tmp_path / "stacks").exists()
    assert not (tmp_path / ".beats").exists(), "a clean end leaves nothing"


@pytest.mark.dist
def test_a_rank_that_is_stopped_is_named_by_the_other_one_which_leaves(shards: str, tmp_path: Path) -> None:
    """SIGSTOP: the rank cannot say anything itself."""
    out = tmp_path / "run"
    arguments = [*command(shards, out, *ENDLESS, "train.hang_timeout_sec=8")]
    pair = Pair([["-m", "tests.train.health_ranks", "pretrain", *arguments[2:]]] * 2, tmp_path)
    pair.wait_for_steps(out, 2)
    pair.processes[1].send_signal(signal.SIGSTOP)
    try:
        assert pair.processes[0].wait(timeout=100) == EXIT_HANG
    finally:
        pair.kill()
    assert "hang: rank 0 made no progress for 8 s" in pair.said()
    assert f"rank 1 is silent, its process is stopped or its host is gone: at step {len(read_metrics(out / 'metrics.jsonl'))}"[:-2] in (
        pair.said()
    )
    assert f"pid {pair.processes[1].pid}; stacks in {out / 'stacks' / 'rank-0.txt'}" in pair.said()
    assert "in train" in (out / "stacks" / "rank-0.txt").read_text()


def test_a_torn_beat_is_no_beat() -> None:
    beat = Beat(3, 7, 2, "host", 11)
    assert Beat.parse(beat.line()) == beat
    assert Beat.parse(beat.line()[:-2]) is None
    assert Beat.parse("") is None


def test_collectives_wait_longer_than_the_watchdog() -> None:
    assert group_timeout(1800).total_seconds() == 3600
    assert group_timeout(5).total_seconds() == 600
    assert group_timeout(0).total_seconds() == 86400


# ----------------------------------------------------------------------------------------------------------- ranks that differ


class Others(Ranks):
    """Rank 0 of three whose peers answer what they are told."""

    def gather(self, value):  # type: ignore[no-untyped-def]
        if isinstance(value, str):
            return [value, value, "another"]
        return [value, value, self.words(value)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda facts: facts | {"torch": "1.0"}, "rank 2 has torch '1.0', rank 0 has '2."),
        (lambda facts: facts | {"the shards": "feed"}, "rank 2 has the shards 'feed', rank 0 has 'abc'; give every rank"),
        (lambda facts: facts | {"objective.width": 64}, "rank 2 has objective.width 64, rank 0 has 32"),
        (lambda facts: facts | {"the code of": "x"}, "rank 2 has the code of 'x', rank 0 has"),
        (lambda facts: {k: v for k, v in facts.items() if k != "train.lr"}, "rank 2 has train.lr 'absent', rank 0 has 0.01"),
    ],
)
def test_the_first_difference_is_named(change: Callable[[dict], dict], complaint: str) -> None:
    ranks = Others(0, 3, None, change, False)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        check_same_everywhere(ranks, small(), "abc", loop.versions())
    assert complaint in str(caught.value)


@pytest.fixture(scope="module")
def other_shards(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same polymers with other seeds."""
    folder = tmp_path_factory.mktemp("other")
    table = Path(shards).parent / "polymers.csv"
    options = ["--num-units", "6", "--conformers", "2", "--workers", "0", "--seed", "1"]
    words = [sys.executable, "-m", "data_shards.build", "--input", str(table), "--out", str(folder / "set"), *options]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    return str(folder / "set")


@pytest.mark.dist
@pytest.mark.parametrize("what", ["lr", "shards"])
def test_a_rank_that_differs_stops_everyone_before_the_first_step(shards: str, other_shards: str, tmp_path: Path, what: str) -> None:
    out = tmp_path / "run"
    other = command(shards, out, *ENDLESS, "train.lr=0.5") if what == "lr" else command(other_shards, out, *ENDLESS)
    pair = Pair([command(shards, out, *ENDLESS), other], tmp_path)
    assert pair.ends() == [2, 2], pair.said()[-6000:]
    sentence = "error: rank 1 has train.lr 0.5, rank 0 has 0.01; give every rank" if what == "lr" else "error: rank 1 has the shards '"
    assert pair.said().count(sentence) == 2
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.dist
@pytest.mark.parametrize(("error", "code", "said"), [("InputError", 2, "error: a sentence"), ("ZeroDivisionError", 1, "Traceback")])
def test_ranks_that_fail_leave_before_python_ends_beneath_gloo(tmp_path: Path, error: str, code: int, said: str) -> None:
    pair = Pair([["-m", "tests.train.health_ranks", "fail", error]] * 2, tmp_path)
    assert pair.ends() == [code, code], pair.said()
    assert pair.said().count(said) == 2
    assert "the interpreter was taken down" not in pair.said()


def test_the_defaults_of_the_rules(shards: str) -> None:
    """Off by default: a rule that skips steps is chosen, not met."""
    config: RunConfig = small()
    assert config.train.spike_factor == 0
    assert config.train.hang_timeout_sec > 0


def test_training_never_reads_the_wall_clock() -> None:
    """Clocks jump; whatever waits or measures uses time.monotonic or time.perf_counter."""
    root = Path(loop.__file__).parents[2]
    files = [path for room in ("foundation/train", "foundation/data", "cluster") for path in (root / room).rglob("*.py")]
    read = {
        f"{p.name}: {word}"
        for p in files
        for word in ("time.time(", "time.time_ns(", ".now(", "utcnow", "from time import")
        if word in p.read_text()
    }
    assert len(files) > 15
    assert any("time.monotonic()" in path.read_text() for path in files)
    assert read == set()
