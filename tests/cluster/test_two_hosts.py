"""Two hosts on one machine: network namespaces with their own addresses, joined by a bridge whose cable to one of them is cut in mid-run.

The hosts share the file system, as the nodes of a cluster share the run folder. Needs root and `ip` (Debian: iproute2); skips elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from foundation.config import apply_overrides
from foundation.recipes import get_recipe
from foundation.track.tracker import read_metrics
from foundation.train import snapshot
from foundation.train.loop import train
from tests.cluster.conftest import ROOT, STOP_LIMIT_SEC, processes_of

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(1800)]

HEAD, WORKER, SWITCH = "head", "worker", "switch"
ADDRESS = {HEAD: "10.213.7.1", WORKER: "10.213.7.2"}
PORT = 6379  # every namespace has all its ports to itself
NUM_STEPS, CHECKPOINT_EVERY, CUT_AT = 60, 5, 12
START_LIMIT_SEC, EVENT_LIMIT_SEC, JOB_LIMIT_SEC = 180, 400, 600
TOLERANCE = 1e-4
SMALL = (
    *("objective.width=32", "objective.unit_layers=1", "objective.trunk_layers=1", "objective.local_layers=1", "data.token_budget=256"),
    *("track.wandb=false", "train.num_threads=1", f"train.num_steps={NUM_STEPS}", f"train.checkpoint_every={CHECKPOINT_EVERY}"),
)
QUICK_TO_NOTICE = {  # Ray's own defaults take a minute to call a node dead, and as long for a node to notice that it is alone
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "4000",
    "RAY_grpc_client_keepalive_timeout_ms": "4000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "12",
    "RAY_worker_niceness": "0",  # 15 by default: next to other tests nothing would move
}


def wait_for(event: Callable[[], bool], what: str, limit_sec: float = EVENT_LIMIT_SEC) -> None:
    """Return when it has happened; fail with its name when it does not."""
    end = time.monotonic() + limit_sec
    while not event():
        assert time.monotonic() < end, f"{what} did not happen within {limit_sec:.0f} s"
        time.sleep(0.1)


def ip(*words: str) -> None:
    """One call of iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Two hosts and a switch."""

    def __init__(self) -> None:
        self.name = {role: f"pf{os.getpid()}-{role}" for role in (HEAD, WORKER, SWITCH)}

    def set_up(self) -> None:
        """Namespaces, a bridge in one of them, one cable from each of the others to it."""
        for namespace in self.name.values():
            ip("netns", "add", namespace)
        switch = ("-n", self.name[SWITCH])
        ip(*switch, "link", "add", "br0", "type", "bridge")
        ip(*switch, "link", "set", "br0", "up")
        for role, address in ADDRESS.items():
            host = ("-n", self.name[role])
            ip("link", "add", "eth0", "netns", self.name[role], "type", "veth", "peer", "name", f"to-{role}", "netns", self.name[SWITCH])
            ip(*switch, "link", "set", f"to-{role}", "master", "br0", "up")
            ip(*host, "addr", "add", f"{address}/24", "dev", "eth0")
            ip(*host, "link", "set", "eth0", "up")
            ip(*host, "link", "set", "lo", "up")

    def cable(self, role: str, state: str) -> None:
        """`down` cuts a host off: its own interface stays up and nobody is told, as when a switch fails."""
        ip("-n", self.name[SWITCH], "link", "set", f"to-{role}", state)

    def inside(self, role: str, *command: str) -> list[str]:
        """A command line that runs on a host."""
        return ["ip", "netns", "exec", self.name[role], *command]

    def tear_down(self) -> None:
        """The cables go with the namespaces."""
        for namespace in self.name.values():
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts that reach each other; gone afterwards, also where setting up failed half-way."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need `ip` (Debian: apt-get install iproute2)")
    made = Network()
    try:
        try:
            made.set_up()
        except OSError as error:
            pytest.skip(f"network namespaces are not permitted here ({error})")
        yield made
    finally:
        made.tear_down()


class Cluster:
    """A Ray node on each host, one CPU each."""

    def __init__(self, network: Network, scratch: Path) -> None:
        self.network, self.scratch = network, scratch
        self.worker: subprocess.Popen[bytes] | None = None
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "POLYMER_HOME", "GLOO_"))}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", **QUICK_TO_NOTICE}

    def start_node(self, role: str) -> subprocess.Popen[bytes]:
        """`ray start` on a host, in the project root."""
        where = ["--head", f"--port={PORT}", f"--temp-dir={self.scratch}", "--include-dashboard=false"]
        if role != HEAD:
            where = [f"--address={ADDRESS[HEAD]}:{PORT}"]
        options = [f"--node-ip-address={ADDRESS[role]}", "--num-cpus=1", f"--object-store-memory={128 * 2**20}", "--disable-usage-stats"]
        return self.run(role, "-m", "ray.scripts.scripts", "start", "--block", *where, *options)

    def run(self, role: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """This Python on a host; what it says goes to one log."""
        with (self.scratch / "log").open("ab") as log:
            command = self.network.inside(role, sys.executable, *arguments)
            return subprocess.Popen(command, cwd=ROOT, env={**self.environment, **environment}, stdout=log, stderr=log)

    def said(self) -> str:
        """Everything that the nodes and the job printed."""
        return (self.scratch / "log").read_text(errors="replace")

    def num_nodes(self) -> int:
        """Nodes that Ray counts as alive."""
        start = "import ray; ray.init(address='auto', logging_level='error', log_to_driver=False)"
        code = f"{start}; print('alive:', sum(n['Alive'] for n in ray.nodes()))"
        command = self.network.inside(HEAD, sys.executable, "-c", code)
        environment = {**self.environment, "RAY_ADDRESS": f"{ADDRESS[HEAD]}:{PORT}"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
        found = re.search(r"alive: (\d+)", done.stdout)  # Ray prints warnings of its own
        return int(found[1]) if found else 0

    def stop(self) -> None:
        """End every process of both nodes."""
        family = processes_of(self.scratch)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(family, timeout=STOP_LIMIT_SEC)
        for survivor in left:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()


@pytest.fixture
def cluster(network: Network) -> Iterator[Cluster]:
    """Two nodes that know each other."""
    scratch = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets, whose paths have a limit
    made = Cluster(network, scratch)
    try:
        made.start_node(HEAD)
        wait_for(lambda: made.num_nodes() == 1, "the head", START_LIMIT_SEC)
        made.worker = made.start_node(WORKER)
        wait_for(lambda: made.num_nodes() == 2, "the second node", START_LIMIT_SEC)
        yield made
    finally:
        made.stop()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight polymers of three units."""
    out = tmp_path_factory.mktemp("shards") / "set"
    options = ["--source", "textbook", "--limit", "8", "--num-units", "3", "--conformers", "1", "--workers", "0", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "data_shards.build", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(out)


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss of every step of the same run on one rank of this machine."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(apply_overrides(get_recipe("polyconfm_tiny"), SMALL), out, shards)
    return curve(out)


def curve(run: Path) -> list[float]:
    """Training losses; every step comes once and in order."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    return [row["train/loss"] for row in rows]


def last_step(run: Path) -> int:
    """Steps done so far."""
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return rows[-1]["step"] if rows else 0


def world_size(folder: Path) -> int:
    """How many ranks wrote a checkpoint."""
    return json.loads((folder / snapshot.STATE).read_text())["written_by"]["world_size"]


@pytest.mark.parametrize("recovery", ["the node comes back", "the others go on"])
def test_a_host_that_is_cut_off(cluster: Cluster, recovery: str, shards: str, undisturbed: list[float], tmp_path: Path) -> None:
    """Two ranks on two hosts over gloo; one host is cut off; the run goes on from its last checkpoint and no step differs."""
    run = tmp_path / "run"
    size = ["resources.num_workers=2", f"resources.restart_timeout_sec={EVENT_LIMIT_SEC}"]  # the whole group is waited for
    if recovery == "the others go on":
        size = ["resources.num_workers=auto", "resources.min_workers=1", "resources.restart_timeout_sec=5"]
    fields = [f"shards={shards}", f"out={run}", "recipe=polyconfm_tiny", *size, *SMALL]
    job = cluster.run(HEAD, "-m", "cluster.launch", "cluster/pretrain.yaml", *fields, RAY_ADDRESS=f"{ADDRESS[HEAD]}:{PORT}")
    wait_for(lambda: last_step(run) >= CUT_AT or job.poll() is not None, f"step {CUT_AT}")
    assert job.poll() is None, cluster.said()
    assert world_size(snapshot.committed(run)[-1]) == 2

    cluster.network.cable(WORKER, "down")
    cut = time.monotonic()
    time.sleep(1.0)  # what was under way
    at_the_cut = last_step(run)
    assert at_the_cut < NUM_STEPS - CHECKPOINT_EVERY, "the run was over before the cut"
    wait_for(lambda: cluster.num_nodes() == 1, "the loss of the node")
    wait_for(lambda: cluster.worker.poll() is not None, "the end of the lonely node")  # it may have held rank 0, and with it the run folder
    if recovery == "the node comes back":
        assert last_step(run) == at_the_cut  # one of two ranks alone does nothing
        cluster.network.cable(WORKER, "up")
        cluster.start_node(WORKER)
    wait_for(lambda: last_step(run) > at_the_cut or job.poll() is not None, "another step")
    print(f"{recovery}: cut after step {at_the_cut}, the next step {time.monotonic() - cut:.0f} s later")
    assert job.wait(timeout=JOB_LIMIT_SEC) == 0, cluster.said()

    assert world_size(snapshot.committed(run)[-1]) == (2 if recovery == "the node comes back" else 1)
    assert max(abs(a - b) for a, b in zip(curve(run), undisturbed, strict=True)) < TOLERANCE
    assert len(set(undisturbed)) > NUM_STEPS // 2
