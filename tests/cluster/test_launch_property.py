"""A property job on a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.dist
@pytest.mark.timeout(240)
def test_a_job_without_a_cluster_starts_a_ray_of_its_own_with_a_token_of_its_own(tmp_path: Path) -> None:
    """As in a user's shell, where nothing of Ray is set: the tests' own environment has a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "cluster.launch", "cluster/finetune_tg.yaml", "property.limit=30", f"property.out={tmp_path / 'tg'}"]
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dry run: nothing was written" in done.stdout
    assert "glass transition temperature, °C: 30 polymers of 30 rows" in done.stdout
    assert not (tmp_path / "tg").exists()
