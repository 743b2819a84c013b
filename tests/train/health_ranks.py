"""Program of tests/train/test_health.py: what one of several ranks does.

health_ranks stages FILE    two ranks, every ZeRO stage: a loss that is NaN on rank 1 alone, its gradient finite; writes what came of it
health_ranks fail NAME      both ranks raise an error named NAME after a collective
health_ranks pretrain ...   foundation.pretrain with the slow imports done beforehand, so that a short hang_timeout_sec measures training
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch

from data_shards.console import run
from foundation.errors import InputError
from foundation.objectives.base import LossOut
from foundation.train.engine import Engine
from foundation.train.ranks import Ranks
from foundation.train.rng import generator
from tests.polyconfm.chains import batch_of
from tests.train.conftest import small
from tests.train.objective import Regressor


class Poisoned(Regressor):
    """Its loss, not its gradient, is NaN for one seed."""

    def loss(self, batch, rng) -> LossOut:
        made = super().loss(batch, rng)
        if rng.initial_seed() != 13:
            return made
        return LossOut(made.loss + torch.tensor(float("nan")), made.terms, made.loss_per_chain)


def stages(path: Path) -> None:
    rank = int(os.environ["RANK"])
    found = {}
    with Ranks.start(rank, 2) as ranks:
        for stage in range(4):
            curves = []
            for poisoned in (True, False):
                torch.manual_seed(0)
                engine = Engine(Poisoned(), small(f"train.zero_stage={stage}", "train.micro_batches_per_step=2"), ranks)
                norms = []
                for seed in (1, 2, 13, 3) if poisoned else (1, 2, 3):
                    made = engine.forward(batch_of((("*C*", 6),)), generator(seed if rank else seed % 7), 1.0)
                    engine.backward(made.to_differentiate, last=True)
                    norms.append(engine.step(0.01).grad_norm)
                curves.append({"norms": norms, "updates": engine.updates, "sum": sum(float(t.double().sum()) for _, t in engine.weights())})
            found[stage] = curves
    path.with_suffix(f".{rank}").write_text(json.dumps(found))


def fail(error: type[Exception]) -> None:
    """Both ranks fail at once, right after a collective, whose last tensors gloo's threads may still be giving back."""
    atexit.register(print, "the interpreter was taken down")
    with Ranks.start(int(os.environ["RANK"]), 2) as ranks:
        ranks.gather("word")
        raise error("a sentence")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "stages":
        stages(Path(rest[0]))
    elif verb == "fail":
        run(lambda: fail(InputError if rest[0] == "InputError" else ZeroDivisionError))
    else:
        from foundation.pretrain import app
        from foundation.train.engine import _import_deepspeed

        _import_deepspeed(torch.device("cpu"))
        torch.optim.AdamW([torch.zeros(1)])
        sys.argv = ["pretrain", *rest]
        run(app)
