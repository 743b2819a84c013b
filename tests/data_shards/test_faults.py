"""The fault drill: a worker, a whole node and the driver die in one build, and the shards are those of an undisturbed one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_shards.manifest import MANIFEST_NAME
from data_shards.reader import open_shards

ROOT = Path(__file__).resolve().parents[2]
NUM_POLYMERS = 48
WAIT_LIMIT_SEC = 240
pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(900)]


def words(out: Path, workers: int | None) -> list[str]:
    options = f"--source textbook --limit {NUM_POLYMERS} --num-units 8 --conformers 1 --shard-size 8 --out {out}".split()
    return [sys.executable, "-m", "data_shards.build", *options, *([] if workers is None else ["--workers", str(workers)])]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "build.json"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same build in one process without Ray."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    subprocess.run(words(out, 0), cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without a CPU for tasks, so that every polymer is built on a node that can be lost; two nodes of one CPU."""
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=options["object_store_memory"])
        yield started
    finally:
        started.shutdown()


def until(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait for something to become true while the build goes on."""
    end = time.monotonic() + WAIT_LIMIT_SEC
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def done(out: Path) -> int:
    """Polymers that are staged or lie in a finished shard."""
    return len(list(out.glob(".staging/??/*"))) + 8 * len(list(out.glob("*.tar")))


def workers_at_work(node: Any) -> list[psutil.Process]:
    """Processes of a node that carry a task now."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if "ray::_in_worker" in " ".join(child.cmdline())]


def test_a_worker_a_node_and_the_driver_die_and_nothing_is_lost(undisturbed: Path, cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    first, second = cluster.worker_nodes

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(words(out, None), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    driver = start()
    until(lambda: done(out) >= 6, driver)
    victim = until(lambda: workers_at_work(first), driver)[0]
    victim.kill()

    until(lambda: done(out) >= 14, driver)
    until(lambda: workers_at_work(second), driver)
    cluster.remove_node(second, allow_graceful=False)  # SIGKILL of everything on it
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    until(lambda: done(out) >= 24, driver)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not (out / MANIFEST_NAME).exists()

    driver = start()
    said = driver.communicate(timeout=WAIT_LIMIT_SEC)[1]
    assert driver.returncode == 0, said
    assert "polymers are done already" in said
    assert files(out) == files(undisturbed)

    shards = open_shards(out)
    rows = [shards.read(entry).provenance["row"] for split in shards.manifest.splits for entry in shards.samples(split)]
    with (out / "funnel.csv").open() as file:
        rows += [int(row["row"]) for row in csv.DictReader(file)]
    assert sorted(rows) == list(range(1, NUM_POLYMERS + 1))  # none lost, none twice


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_same_bytes(undisturbed: Path, tmp_path: Path, workers: int) -> None:
    subprocess.run(words(tmp_path / "shards", workers), cwd=ROOT, check=True, capture_output=True, env=os.environ)
    assert files(tmp_path / "shards") == files(undisturbed)
