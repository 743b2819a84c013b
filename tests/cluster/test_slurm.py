"""slurm.sh with stand-ins for Slurm's programs: `srun` runs here what it was given, `scontrol` takes notes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from foundation.track.tracker import read_metrics
from tests.cluster.conftest import ROOT, processes_of

LIMIT_SEC = 240
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${1#--nodelist=}
    shift
done
echo "srun $node $*" >>"$NOTES"
options=(--object-store-memory=134217728)
[[ " $* " == *" --head "* ]] && options+=(--temp-dir="$SCRATCH") || options+=(--node-ip-address=127.0.0.1)
exec "$@" "${options[@]}"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$NOTES"
if [ "$1 $2" = "show hostnames" ]; then printf 'n1\\nn2\\n'; fi
"""
RAY = "#!/bin/bash\nexec sleep 60\n"  # where a test needs no cluster
PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then echo 2; exit; fi  # a port; nodes alive
echo "job $*" >>"$NOTES"
if [ "$ENDS" = stopped ]; then trap 'exit 3' TERM; while :; do sleep 0.1; done; fi
if [ "$ENDS" = killed ]; then exec sleep 60; fi
exit "$ENDS"
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster of two nodes, both of which are this machine."""

    folder: Path
    scratch: Path

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def notes(self) -> list[str]:
        """What was asked of Slurm."""
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """slurm.sh as Slurm would start it on the first node."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_", "POLYMER_HOME"))}
        mine = {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
            "NOTES": str(self.folder / "notes"),
            "SCRATCH": str(self.scratch),
            "HEAD_IP": "127.0.0.1",
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_SUBMIT_DIR": str(self.folder / "project"),
            "SLURM_CPUS_PER_TASK": "1",
        }
        return subprocess.Popen(
            [ROOT / "cluster/slurm.sh", *arguments],
            env={**kept, **mine, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    scratch = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets, whose paths have a limit
    made = Slurm(tmp_path, scratch)
    (tmp_path / "bin").mkdir()
    made.program("srun", SRUN)
    made.program("scontrol", SCONTROL)
    (tmp_path / "project").mkdir()
    for room in ("data_shards", "foundation", "finetune", "cluster"):
        (tmp_path / "project" / room).symlink_to(ROOT / room)
    yield made
    for process in processes_of(scratch):
        process.kill()
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def quick(slurm: Slurm) -> Slurm:
    """Without a real Ray."""
    slurm.program("ray", RAY)
    slurm.program("python", PYTHON)
    return slurm


@pytest.mark.parametrize(
    ("ends", "restarts", "code", "requeued"),
    [("0", "0", 0, False), ("1", "0", 1, False), ("2", "0", 2, False), ("3", "0", 3, True), ("3", "9", 3, True), ("3", "10", 3, False)],
)
def test_what_becomes_of_an_exit_code(quick: Slurm, ends: str, restarts: str, code: int, requeued: bool) -> None:
    """Done, a defect and bad input end the job; what can continue goes back into the queue, a limited number of times."""
    job = quick.start("cluster/pretrain.yaml", "out=x", ENDS=ends, SLURM_RESTART_COUNT=restarts)
    said, _ = job.communicate(timeout=LIMIT_SEC)
    assert job.returncode == code, said
    assert "job -m cluster.launch cluster/pretrain.yaml out=x" in quick.notes()
    assert ("scontrol requeue 17" in quick.notes()) is requeued


@pytest.mark.parametrize("ends", ["stopped", "killed"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_from_slurm(quick: Slurm, ends: str, number: signal.Signals) -> None:
    """The job is told, and goes back into the queue however often that has happened; nothing is left running."""
    job = quick.start("cluster/pretrain.yaml", ENDS=ends, SLURM_RESTART_COUNT="99")
    end = time.monotonic() + LIMIT_SEC
    while not any(line.startswith("job") for line in quick.notes()):
        assert time.monotonic() < end
        time.sleep(0.05)
    family = psutil.Process(job.pid).children(recursive=True)
    assert len(family) >= 3  # two nodes and the job
    time.sleep(0.2)  # the stand-in sets its trap
    job.send_signal(number)
    said, _ = job.communicate(timeout=LIMIT_SEC)
    assert job.returncode == 3, said
    assert quick.notes()[-1] == "scontrol requeue 17"
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_started_by_hand(quick: Slurm) -> None:
    for arguments, environment in ((("cluster/pretrain.yaml",), {"SLURM_JOB_ID": ""}), ((), {})):
        job = quick.start(*arguments, **environment)
        said, _ = job.communicate(timeout=LIMIT_SEC)
        assert job.returncode == 2
        assert "submit it: sbatch cluster/slurm.sh cluster/pretrain.yaml" in said
    assert quick.notes() == []


@pytest.mark.slow
@pytest.mark.dist
def test_a_head_and_a_worker_come_up(slurm: Slurm) -> None:
    """The real Ray: the job sees the CPUs of both nodes, and everything is gone afterwards."""
    job = slurm.start("cluster/smoke.yaml", "--dry-run")
    said, _ = job.communicate(timeout=LIMIT_SEC)
    assert job.returncode == 0, said
    assert "workers  2 x (1 CPU)" in said
    assert "dry run: nothing was started or written" in said
    started = [line for line in slurm.notes() if line.startswith("srun")]
    assert [line.split()[1] for line in started] == ["n1", "n2"]
    assert ["--head" in line for line in started] == [True, False]
    assert not any(process.is_running() for process in processes_of(slurm.scratch))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
def test_preempted_and_continued(slurm: Slurm) -> None:
    """USR1 in mid-run sends the job back; started again it goes on after the last checkpoint, and every step comes once."""
    run = slurm.folder / "project/runs/smoke/model"
    small = ("build.limit=8", "build.num_units=3", "build.conformers=1", "train.num_steps=60", "train.checkpoint_every=5")
    tiny = ("objective.width=32", "objective.unit_layers=1", "objective.trunk_layers=1", "data.token_budget=256", "track.wandb=false")
    first = slurm.start("cluster/smoke.yaml", *small, *tiny)
    while first.poll() is None and (not (run / "metrics.jsonl").exists() or len(read_metrics(run / "metrics.jsonl")) < 8):
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=LIMIT_SEC)
    assert first.returncode == 3, said
    assert "scontrol requeue 17" in slurm.notes()
    reached = len(read_metrics(run / "metrics.jsonl"))
    assert 8 <= reached < 60
    second = slurm.start("cluster/smoke.yaml", *small, *tiny, SLURM_RESTART_COUNT="1")
    said, _ = second.communicate(timeout=LIMIT_SEC)
    assert second.returncode == 0, said
    assert "start: continues after step-" in said
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, 61))
