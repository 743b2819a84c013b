"""One small set of real shards, the training command as a user calls it, and the same training inside this process."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from foundation.config import RunConfig, apply_overrides
from foundation.recipes import get_recipe
from foundation.track.tracker import read_metrics
from foundation.train.loop import train

TRAIN = ("*CC(*)C", "*CCO*", "*CC(*)Cl", "*O[Si](*)(C)C", "*CC(*)C#N", "*C=CCC*", "*CC(*)O", "*OC(C)C(*)=O", "*CC(*)F", "*CC(*)OC")
SMALL = (
    "data.token_budget=250",
    "objective.width=32",
    "objective.trunk_layers=1",
    "objective.unit_layers=1",
    "objective.graph_layers=1",
    "objective.local_layers=1",
    "objective.orientation_layers=1",
    "train.num_threads=1",
    "train.num_val_batches=2",
    "train.lr=0.01",
    "track.wandb=false",
)
STEPS = ("train.num_steps=12", "train.checkpoint_every=3", "train.validate_every=4")


FOUR = ("train.num_steps=4", "train.checkpoint_every=2", "train.validate_every=4", "train.micro_batches_per_step=4", "train.grad_clip=0.3")
SIX = ("train.num_steps=6", "train.checkpoint_every=2", "train.keep_last=2")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten polymers, 6 units, 2 conformations, built by the real pipeline."""
    return build_shards(tmp_path_factory.mktemp("shards"))


def build_shards(folder: Path) -> str:
    """Ten polymers, 6 units, 2 conformations, built by the real pipeline."""
    table = folder / "polymers.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["psmiles"], *([p] for p in TRAIN)])
    out = folder / "set"
    command = [sys.executable, "-m", "data_shards.build", "--input", str(table), "--out", str(out), "--num-units", "6"]
    done = subprocess.run([*command, "--conformers", "2", "--workers", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(out)


@pytest.fixture(scope="session")
def four_steps(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank without ZeRO, accumulating what two ranks share; to be read and copied only."""
    return trained(shards, tmp_path_factory, FOUR)


@pytest.fixture(scope="session")
def six_steps(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps, its checkpoints written beside it; to be read and copied only."""
    return trained(shards, tmp_path_factory, SIX)


def trained(shards: str, folders: pytest.TempPathFactory, overrides: tuple[str, ...]) -> Path:
    """Folder of a run."""
    out = folders.mktemp("trained") / "run"
    train(small(*overrides), out, shards)
    return out


def small(*overrides: str) -> RunConfig:
    """A model small enough for tests, with the recipe's structure."""
    return apply_overrides(get_recipe("polyconfm_tiny"), [*SMALL, *overrides])


def command(shards: str, out: Path, *overrides: str) -> list[str]:
    """Arguments of ``python`` for the training command."""
    return ["-m", "foundation.pretrain", "--recipe", "polyconfm_tiny", "--shards", shards, "--out", str(out), *SMALL, *overrides]


def torchrun(ranks: int) -> list[str]:
    """Arguments of ``python`` that start what follows on several ranks."""
    return ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pretrain(shards: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the training command to its end on one or more ranks."""

    def call(out: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, *(torchrun(ranks) if ranks > 1 else [])]
        return subprocess.run(
            [*launcher, *command(shards, out, *overrides)], capture_output=True, text=True, check=False, env=environment(), timeout=280
        )

    return call


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    """(step, training loss, validation loss) of every line of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["train/loss"], row.get("val/loss")) for row in rows]


def curve(run: Path) -> list[float]:
    """Training loss of every step."""
    return [loss for _, loss, _ in losses(run)]


class Pair:
    """Two ranks of one training, each a process of its own, as any launcher starts them."""

    def __init__(self, arguments: list[list[str]], folder: Path) -> None:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        self.logs = [folder / f"rank{rank}.log" for rank in range(2)]
        self.processes = []
        for rank in range(2):
            with self.logs[rank].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *arguments[rank]],
                        env=environment() | meeting | {"RANK": str(rank), "LOCAL_RANK": "0"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def ends(self, timeout_sec: float = 120) -> list[int]:
        """Exit codes; nothing is left behind."""
        try:
            return [process.wait(timeout=timeout_sec) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def wait_for_steps(self, out: Path, count: int) -> None:
        until = time.monotonic() + 120
        while len(read_metrics(out / "metrics.jsonl")) < count:
            if time.monotonic() > until or any(process.poll() is not None for process in self.processes):
                self.kill()
                raise AssertionError(self.said()[-6000:])
            time.sleep(0.02)
