"""Where relative paths lead, and which Python a job runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import paths
from data_shards.errors import InputError

ROOT = Path(__file__).parents[2]
COPY = json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}})


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.HOME_VARIABLE, raising=False)
    monkeypatch.delenv(paths.JOB_CONFIG_VARIABLE, raising=False)


def test_without_a_copy_paths_start_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.resolve("runs/x") == str(tmp_path / "runs/x")
    monkeypatch.setenv(paths.JOB_CONFIG_VARIABLE, json.dumps({"runtime_env": {}}))
    assert paths.resolve("runs/x") == str(tmp_path / "runs/x")


def test_absolute_paths_and_addresses_stay() -> None:
    assert paths.resolve("/data/x") == "/data/x"
    assert paths.resolve("s3://bucket/x") == "s3://bucket/x"


def test_in_a_copy_paths_start_where_the_head_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(paths.JOB_CONFIG_VARIABLE, COPY)
    monkeypatch.setattr(paths, "_head_directory", lambda: tmp_path)
    assert paths.resolve("runs/x") == str(tmp_path / "runs/x")


def test_in_a_copy_without_a_head_the_job_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.JOB_CONFIG_VARIABLE, COPY)
    with pytest.raises(InputError, match="the folder of the head is unknown; pass absolute paths for shards and out, or set POLYMER_HOME"):
        paths.resolve("runs/x")


def test_the_variable_wins_and_must_be_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(paths.JOB_CONFIG_VARIABLE, COPY)
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    assert paths.resolve("x") == str(tmp_path / "x")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(InputError, match="is not a folder on the head node"):
        paths.resolve("x")


def bare_python(cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m cluster.launch --help` by a Python without site-packages."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-S", "-m", "cluster.launch", "--help"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_python_without_packages_hands_over_to_the_one_beside(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = bare_python(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Run a YAML as a job" in done.stdout


def test_a_python_without_packages_alone_says_what_to_do(tmp_path: Path) -> None:
    done = bare_python(tmp_path)
    assert done.returncode == 2
    assert "lacks ray, torch, typer, pydantic; run `make install`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
