"""Program of tests/train/test_ranks.py: several trainings one after the other on the same ranks, so that they start once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from foundation.config import parse_config
from foundation.train.loop import train


def main(jobs: list[dict]) -> None:
    """Train every job: {"config", "shards", "out"}."""
    dist.init_process_group("gloo")
    for job in jobs:
        train(parse_config(job["config"]), Path(job["out"]), job["shards"], rank=dist.get_rank(), world_size=dist.get_world_size())
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
