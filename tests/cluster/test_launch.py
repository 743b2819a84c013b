"""The command without a cluster: what it refuses, and what a dry run prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120)


def test_a_cluster_that_does_not_answer_is_one_sentence() -> None:
    done = launch("cluster/pretrain.yaml", RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 2
    assert "error: cannot join Ray at RAY_ADDRESS=127.0.0.1:9: no cluster answers there" in done.stderr


def test_a_missing_file_is_one_sentence() -> None:
    done = launch("cluster/nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: cluster/nowhere.yaml cannot be read (No such file or directory); pass a YAML file such as cluster/pretrain.yaml"
    )


def test_a_dry_run_of_a_build_reads_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    done = launch("cluster/preprocess.yaml", f"build.out={out}", "build.limit=5", "build.num_units=4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "5 rows read" in done.stdout
    assert "dry run: nothing was written" in done.stdout
    assert not out.exists()
