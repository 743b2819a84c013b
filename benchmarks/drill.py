"""Twenty random faults in one run of 200 steps: does it complete, with every sample once and the loss of the undisturbed run?

    python -m benchmarks.drill --out docs/results          (make drill)

A Ray head and a node with a CPU each train a small model, started in a copy of the project, the way a user starts them. The copy has two
additions, which are the faults that come from inside: at some steps the gradient is NaN, from some steps on the clock has jumped; it also
writes down which samples it reads. The undisturbed run has the same NaN steps. Whatever ends the job, the operator of this drill does
what the last line says (puts the shard back, frees the disk, removes the checkpoint) and gives the same command again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil
import typer

from benchmarks.drill_report import HEADING, Fault, compare, page
from benchmarks.same_curve import kill_all
from benchmarks.setting import replace_section
from data_shards.reader import open_shards
from foundation.track.tracker import read_metrics
from foundation.train.checkpoint import committed
from tests.cluster.conftest import Head, copy_project, started_head
from tests.train.conftest import SMALL, build_shards

STEPS, MICRO_BATCHES, CHECKPOINT_EVERY = 200, 2, 5
PAGE, TITLE = "training-platform.md", "# The training platform, measured"
FAULTS = {  # how many of each
    "SIGKILL of a worker": 5,
    "SIGKILL of the driver": 3,
    "SIGKILL of a raylet": 2,
    "SIGSTOP of a rank": 2,
    "disk full": 2,
    "truncated checkpoint": 2,
    "corrupted shard": 1,
    "NaN gradient": 2,
    "clock jump": 1,
}
INSIDE = ("NaN gradient", "clock jump")  # made by the copy itself
APART = CHECKPOINT_EVERY + 3  # steps between faults, at least: each is dealt with before the next
HANG_SEC, DISK_MIB, PATIENCE_SEC = 45, 400, 600
CHANGED = """

# ------------------------------------------------------------------------------------------------ added by benchmarks/drill.py
_learning_rate, NOW = learning_rate, [0]


def learning_rate(step, settings):
    import time

    NOW[0] = step + 1
    while step + 1 > int(open("{gate}").read() or 0):  # the operator is busy
        time.sleep(0.02)
    for at, seconds in {jumps}:
        if step + 1 == at:
            now = time.time
            time.time = lambda: now() + seconds
    return _learning_rate(step, settings)
"""
POISONED = """

# ------------------------------------------------------------------------------------------------ added by benchmarks/drill.py
_backward = Engine.backward


def _poisoned(self, loss, *, last):
    from foundation.train.optim import NOW

    _backward(self, loss * float("nan") if NOW[0] in {nans} and self.ranks.rank == 0 else loss, last=last)


Engine.backward = _poisoned
"""
RECORDED = """

# ------------------------------------------------------------------------------------------------ added by benchmarks/drill.py
_batch = Reader.batch


def _recorded(self, micro):
    import os

    from foundation.train.optim import NOW

    with open(f"{folder}/{{os.getpid()}}", "a") as file:
        file.write(f"{{NOW[0]}} {{micro.seen}} {{' '.join(map(str, micro.samples))}}\\n")
    return _batch(self, micro)


Reader.batch = _recorded
"""


def main(
    out: Path = typer.Option(Path("runs/drill"), help="Folder for drill.json and the section of training-platform.md."),
    seed: int = typer.Option(0, help="Of the faults and their steps."),
) -> None:
    """Run the drill, print the table, leave with 1 where something was lost."""
    result = drill(seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "drill.json").write_text(json.dumps(result, indent=1) + "\n")
    replace_section(out / PAGE, TITLE, HEADING, page(result))
    typer.echo(page(result))
    raise typer.Exit(0 if result["passed"] else 1)


def plan(seed: int, kinds: dict[str, int]) -> list[Fault]:
    """Faults in the order of their steps, at least APART from each other, the first after the first checkpoint."""
    rng = random.Random(seed)
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    rng.shuffle(names)
    steps = sorted(rng.sample(range(8, STEPS - 4 - (APART - 1) * len(names)), len(names)))
    return [Fault(kind, at + (APART - 1) * k) for k, (kind, at) in enumerate(zip(names, steps, strict=True))]


def drill(seed: int, kinds: dict[str, int] | None = None) -> dict[str, Any]:
    """Undisturbed run, disturbed run, comparison."""
    faults = plan(seed, kinds or FAULTS)
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="drill")))
        shards = build_shards(place)
        inside = {kind: [fault.at for fault in faults if fault.kind == kind] for kind in INSIDE}
        project = changed_project(place, inside)
        disk = held.enter_context(small_disk(place / "disk"))
        head = held.enter_context(started_head(project, num_cpus=1))
        operator = Operator(head, shards, place, held, can_fill=disk is not None)
        quiet = operator.train(place / "whole", [])
        record = place / "record"
        shutil.rmtree(record)
        record.mkdir()
        disturbed = operator.train((disk or place) / "run", faults)
        chains = len(open_shards(shards).samples("train"))
        found = compare(faults, quiet, disturbed, record, chains, STEPS)
        return {"seed": seed, "steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, **found}


def changed_project(place: Path, inside: dict[str, list[int]]) -> Path:
    """The four rooms, with faults inside and a record of what is read."""
    project = copy_project(place / "project")
    (place / "record").mkdir()
    jumps = [(at, seconds) for at, seconds in zip(inside["clock jump"], (-86400.0, 7200.0) * len(inside["clock jump"]), strict=False)]
    for name, text in (
        ("optim.py", CHANGED.format(jumps=jumps, gate=place / "gate")),
        ("engine.py", POISONED.format(nans=inside["NaN gradient"])),
        ("../data/loader.py", RECORDED.format(folder=place / "record")),
    ):
        with (project / "foundation/train" / name).open("a") as file:
            file.write(text)
    return project


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of DISK_MIB that a ballast file can fill; None where this process may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False)
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


class Operator:
    """Gives the command, makes the faults, does what the sentences ask for."""

    def __init__(self, head: Head, shards: str, place: Path, held: ExitStack, *, can_fill: bool) -> None:
        self.head, self.shards, self.place, self.held, self.can_fill = head, shards, place, held, can_fill
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.driver: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] = held.enter_context((place / "drill.log").open("wb"))
        held.callback(self.end)
        self.add_node()

    def end(self) -> None:
        for process in [*self.nodes, *([self.driver] if self.driver else [])]:
            kill_all(process.pid)
            process.wait()

    def add_node(self) -> None:
        node = self.head.add_node(1)
        self.nodes.append(node)

    # --------------------------------------------------------------------------------------------------------------- the run

    def start(self, run: Path) -> None:
        """The command of a user, as a job's driver runs it."""
        words = [f"shards={self.shards}", f"out={run}", "recipe=polyconfm_tiny", "resources.max_workers=2", "resources.max_failures=4"]
        words += [
            *SMALL,
            "train.lr=0.001",
            f"train.num_steps={STEPS}",
            f"train.checkpoint_every={CHECKPOINT_EVERY}",
            "train.num_val_batches=0",
            "data.cache_mib=0",
        ]
        words += [f"train.micro_batches_per_step={MICRO_BATCHES}", f"train.hang_timeout_sec={HANG_SEC}", "resources.restart_timeout_sec=10"]
        command = [sys.executable, "-m", "cluster.launch", "cluster/pretrain.yaml", *words]
        environment = self.head.environment | {"RAY_ADDRESS": f"127.0.0.1:{self.head.port}", "OMP_NUM_THREADS": "1"}
        self.mark = self.log_size()
        self.driver = subprocess.Popen(
            command, cwd=self.head.project, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def let_go(self, step: int) -> None:
        """The run may make steps up to this one; there it waits, so that every fault meets the step that the plan says."""
        aside = self.place / "gate.new"
        aside.write_text(f"{step}")
        os.replace(aside, self.place / "gate")

    def said(self) -> str:
        """What the current driver has printed."""
        return (self.place / "drill.log").read_bytes()[self.mark :].decode(errors="replace")

    def log_size(self) -> int:
        return (self.place / "drill.log").stat().st_size

    def last_line(self) -> str:
        lines = [
            line for line in self.said().splitlines() if line.startswith(("error:", "stopped:", "done:", "the same error", "a defect"))
        ]
        return lines[-1] if lines else ""

    def train(self, run: Path, faults: list[Fault]) -> Path:
        """From the first step to the last, through all faults."""
        self.let_go(faults[0].at if faults else STEPS)
        self.start(run)
        for fault in faults:
            self.let_go(fault.at)
            self.until(run, fault.at)
            began, log_before = time.monotonic(), self.log_size()
            undo = self.strike(fault, run)
            seen_at = fault.at + 2
            if fault.kind == "disk full":  # nobody minds before the next checkpoint
                seen_at += CHECKPOINT_EVERY
            self.let_go(seen_at)
            self.until(run, seen_at, fault, undo, log_before)
            fault.recovery_sec = 0.0 if fault.kind in INSIDE else time.monotonic() - began
            fault.world_size = json.loads((run / "run.json").read_text())["world_size"]
            typer.echo(f"{fault.kind}, step {fault.at}: {fault.seen or 'went on'}, {fault.recovery_sec:.0f} s", err=True)
        self.let_go(STEPS)
        self.until(run, STEPS)
        assert self.driver is not None
        if self.driver.wait(timeout=PATIENCE_SEC) != 0:
            raise RuntimeError(self.said()[-6000:])
        return run

    def until(self, run: Path, step: int, fault: Fault | None = None, undo: Callable[[], None] | None = None, since: int = 0) -> None:
        """Return when a step has been made; meanwhile, give the command again whenever it ends, doing first what it asks for."""
        end = time.monotonic() + PATIENCE_SEC
        assert self.driver is not None
        while last(run) < step:
            if time.monotonic() > end:
                raise RuntimeError(f"no step {step} after {PATIENCE_SEC} s:\n{self.said()[-6000:]}")
            if self.driver.poll() is not None:
                if fault is None or self.driver.returncode == 0:
                    raise RuntimeError(f"the job ended with {self.driver.returncode}:\n{self.said()[-6000:]}")
                fault.seen += f"exit {self.driver.returncode}: {self.last_line()}; " if self.driver.returncode > 0 else "driver gone; "
                if undo is not None and self.driver.returncode > 0:
                    undo()
                    undo = None
                self.start(run)
            time.sleep(0.1)
        if fault is not None:
            new = (self.place / "drill.log").read_bytes()[since:].decode(errors="replace")
            fault.seen += "; ".join(line for line in new.splitlines() if line.startswith("restart "))[:300]
        if undo is not None:
            undo()

    # ------------------------------------------------------------------------------------------------------------- the faults

    def strike(self, fault: Fault, run: Path) -> Callable[[], None] | None:
        """Make a fault; returns what the operator does when the job has ended with a sentence."""
        assert self.driver is not None
        kind = fault.kind
        if kind == "SIGKILL of a worker":
            self.a_rank().kill()
        elif kind == "SIGSTOP of a rank":
            self.a_rank().suspend()
        elif kind == "SIGKILL of the driver":
            self.driver.kill()
        elif kind == "SIGKILL of a raylet":
            kill_all(self.nodes.pop().pid)
            return self.add_node
        elif kind == "disk full":
            return self.fill(fault, run)
        elif kind == "truncated checkpoint":
            return self.truncate(run)
        elif kind == "corrupted shard":
            return self.corrupt()
        return None

    def a_rank(self) -> psutil.Process:
        """The youngest training process; a group that is just starting is waited for."""
        end = time.monotonic() + PATIENCE_SEC
        while not (found := self.head.workers()):
            if time.monotonic() > end:
                raise RuntimeError(f"no training process:\n{self.said()[-6000:]}")
            time.sleep(0.1)
        return found[-1]

    def fill(self, fault: Fault, run: Path) -> Callable[[], None] | None:
        """Not one byte is left on the disk of the run folder."""
        if not self.can_fill:
            fault.seen = "skipped: a small disk cannot be mounted without root"
            return None
        ballast = run.parent / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        return lambda: ballast.unlink(missing_ok=True)

    def truncate(self, run: Path) -> Callable[[], None] | None:
        """The workers are gone, and half of the newest checkpoint's weights with them."""
        for worker in self.head.workers():
            worker.kill()
        newest = committed(run)[-1]
        os.truncate(newest / "model.safetensors", (newest / "model.safetensors").stat().st_size // 2)

        def remove() -> None:
            shutil.rmtree(newest, ignore_errors=True)

        return remove

    def corrupt(self) -> Callable[[], None] | None:
        """The driver is killed, and while nothing runs a byte of a training shard flips."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        shard = max(Path(self.shards).rglob("*.tar"), key=lambda path: path.stat().st_size)
        kept = shard.read_bytes()
        flipped = bytearray(kept)
        flipped[len(kept) // 2] ^= 1
        shard.write_bytes(flipped)
        return lambda: void(shard.write_bytes(kept))


def void(_: object) -> None:
    """Nothing."""


def last(run: Path) -> int:
    """Last step in metrics.jsonl."""
    rows = read_metrics(run / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


if __name__ == "__main__":
    typer.run(main)
