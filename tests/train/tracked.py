"""Program of tests/train/test_mirror.py: a training as its tracker sees it, without the training. Goes on from the last checkpoint."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from foundation.config import TrackConfig
from foundation.track.tracker import Tracker

CHECKPOINT_EVERY = 5
SAMPLE_EVERY = 10


def loss(step: int) -> float:
    """The same in every run, as training is."""
    return 1.0 / (3 * step)


def main(out: Path, num_steps: int, step_sec: float, mode: str) -> None:
    """Log steps up to num_steps; the number of the last one that was "saved" lies in checkpoint.txt."""
    out.mkdir(exist_ok=True)
    if not (out / "run.json").exists():
        (out / "run.json").write_text(json.dumps({"run_id": "0123abcd", "commit": "c0ffee+changes", "fingerprint": "f" * 64}))
    config = {"recipe": "polyconfm_tiny", "objective": {"name": "polyconfm"}, "train": {"num_steps": num_steps}, "track": {"mode": mode}}
    (out / "config.json").write_text(json.dumps(config))
    (out / "samples").mkdir(exist_ok=True)
    saved = out / "checkpoint.txt"
    first = int(saved.read_text()) if saved.exists() else 0
    with Tracker(out, first_step=first, track=TrackConfig(mode=mode)) as tracker:
        for step in range(first + 1, num_steps + 1):
            time.sleep(step_sec)
            if step % SAMPLE_EVERY == 0:
                (out / "samples" / f"step-{step:08d}.sdf").write_text(f"chain of step {step}\n")
            tracker.log(step, {"train/loss": loss(step), "train/grad_norm": None if step == 7 else 1.0})
            if step % CHECKPOINT_EVERY == 0 or step == num_steps:
                aside = saved.with_suffix(".aside")
                aside.write_text(str(step))
                aside.replace(saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
