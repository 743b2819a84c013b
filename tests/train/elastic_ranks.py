"""Program of tests/train/test_elastic.py: the training command, which notes what every step really consumes and ends when it is told to.

    python -m tests.train.elastic_ranks NOTES END_AT HOW -- (arguments of foundation.pretrain)

HOW: "" never, "stop" = SIGTERM of rank 0 in that step, "kill" = SIGKILL of rank 0 in the middle of writing the checkpoint of that step,
"full" = the disk is full from that step on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from data_shards.console import run
from foundation import pretrain
from foundation.batch import Batch
from foundation.data.order import MicroBatch
from foundation.train import loop, snapshot

NOTES, END_AT, HOW = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
RANK = int(os.environ.get("RANK", 0))


class Noted(loop.StepLoader):
    """Notes every micro-batch that the loop takes: the keys of the samples as they were decoded, their conformations and the noise."""

    def steps(self, samples_seen: int = 0) -> Any:
        packed: list[dict[str, Any]] = []
        pack = self.reader.batch

        def noted(micro: MicroBatch) -> Batch:
            keys = [self.reader._sample(micro.source, i).key for i in micro.samples]
            packed.append({"keys": keys, "conformations": micro.conformations, "noise": micro.noise_seed, "seen": micro.seen})
            return pack(micro)

        self.reader.batch = noted  # type: ignore[method-assign]
        with (NOTES / f"{RANK}-{os.getpid()}.jsonl").open("a") as file:
            for read in super().steps(samples_seen):
                for place, loaded in zip(self.mine, read.micro_batches, strict=True):
                    note = packed.pop(0)
                    assert loaded.noise_seed == note["noise"]
                    assert loaded.batch.num_chains == len(note["keys"])
                    file.write(json.dumps({"samples_seen": read.samples_seen, "place": place, **note}) + "\n")
                file.flush()
                yield read


class Ending(loop.Tracker):
    """Asks rank 0 to stop once a step is logged."""

    def log(self, step: int, metrics: Any) -> None:
        super().log(step, metrics)
        if HOW == "stop" and step == END_AT - 1:
            os.kill(os.getpid(), signal.SIGTERM)  # seen in the step after, which then is the last one


def disturbed(path: Path, content: Any) -> None:
    if HOW == "full" and path.parent.name >= f".step-{END_AT:08d}.writing":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    save(path, content)
    if HOW == "kill" and path.name == snapshot.AVERAGE and path.parent.name == f".step-{END_AT:08d}.writing":
        os.kill(os.getpid(), signal.SIGKILL)


save, snapshot.save_tensors = snapshot.save_tensors, disturbed
loop.StepLoader, loop.Tracker = Noted, Ending  # type: ignore[misc]
if __name__ == "__main__":
    arguments = sys.argv[sys.argv.index("--") + 1 :]
    run(lambda: pretrain.app(arguments, standalone_mode=False))
