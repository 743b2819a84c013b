"""One small Ray head a session, started the way a user starts it: in the root of a project, from a shell, with `ray start --head`."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.train.conftest import shards as shards

ROOT = Path(__file__).parents[2]
ROOMS = ("data_shards", "foundation", "finetune", "cluster")
START_LIMIT_SEC, JOB_LIMIT_SEC, STOP_LIMIT_SEC = 90, 500, 5


@dataclass(frozen=True)
class Job:
    """How a submitted job ended."""

    exit_code: int  # of `ray job submit`
    log: str


@dataclass(frozen=True)
class Head:
    """A running head and the project that it was started in."""

    project: Path
    scratch: Path  # Ray's folder; every process of this head names it or descends from one that does
    environment: dict[str, str] = field(repr=False)
    port: int  # of the cluster, for nodes that join

    def processes(self) -> list[psutil.Process]:
        """All processes of this head and of its jobs."""
        return processes_of(self.scratch)

    def workers(self) -> list[psutil.Process]:
        """Training processes of all jobs, oldest first."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append((process.create_time(), process))
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def add_node(self, num_cpus: int) -> subprocess.Popen[bytes]:
        """Another node on this machine, joined; it runs until its process group is killed, or the head ends."""
        ray = str(Path(sys.executable).with_name("ray"))
        options = [f"--address=127.0.0.1:{self.port}", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1"]
        options += [f"--object-store-memory={128 * 2**20}", f"--temp-dir={self.scratch}", "--disable-usage-stats", "--block"]
        with (self.scratch / "node.log").open("w") as log:
            node = subprocess.Popen(
                [ray, "start", *options], cwd=self.project, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_LIMIT_SEC
        while "Ray runtime started" not in (self.scratch / "node.log").read_text():
            if node.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the node did not start:\n{(self.scratch / 'node.log').read_text()}")
            time.sleep(0.2)
        return node

    def submit(self, *arguments: str) -> Job:
        """`ray job submit ARGUMENTS` from the project root; waits for the end."""
        ray = str(Path(sys.executable).with_name("ray"))
        done = subprocess.run(
            [ray, "job", "submit", *arguments],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=JOB_LIMIT_SEC,
        )
        return Job(done.returncode, done.stdout)


def processes_of(scratch: Path) -> list[psutil.Process]:
    """Processes that name a folder in their arguments, and everything below them."""
    roots = [p for p in psutil.process_iter(["cmdline"]) if str(scratch) in " ".join(p.info["cmdline"] or [])]
    found = {p.pid: p for p in roots}
    for process in roots:
        try:
            found |= {p.pid: p for p in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the four rooms, so that jobs with relative paths write there and not into the checkout."""
    return copy_project(tmp_path_factory.mktemp("project"))


def copy_project(folder: Path) -> Path:
    """The four rooms in another place."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", folder)
    return folder


@pytest.fixture(scope="session")
def head(project: Path) -> Iterator[Head]:
    """Two CPUs, free ports, a token of its own, nothing in the home folder; gone at the end of the session."""
    with started_head(project, num_cpus=2) as running:
        yield running


@contextmanager
def started_head(project: Path, num_cpus: int) -> Iterator[Head]:
    """A head in the root of a project; everything that it started ends with it."""
    port, dashboard, agent, client = free_ports(4)
    scratch = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets, whose paths have a limit
    token = secrets.token_hex(16)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "RAY_JOB", "POLYMER_HOME"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "node-ip-address": "127.0.0.1",
        "num-cpus": num_cpus,
        "object-store-memory": 128 * 2**20,
        "temp-dir": scratch,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (scratch / "head.log").open("w") as log:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_until_up(address, process, scratch / "head.log")
        yield Head(project, scratch, {**environment, "RAY_ADDRESS": address}, port)
    finally:
        family = processes_of(scratch)
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=STOP_LIMIT_SEC)
        for survivor in left:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the job server answers."""
    end = time.monotonic() + START_LIMIT_SEC
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the head did not start:\n{log.read_text()}")
