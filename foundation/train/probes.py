"""Linear probes of the averaged weights while training goes on: `probe/NAME_r2` of every property of train.probe_tables."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from data_shards.progress import Silent, progress
from data_shards.reader import open_shards
from foundation.config import RunConfig
from foundation.sampling.run import BATCH_ATOMS
from foundation.train.ema import EMA
from foundation.train.ranks import Ranks
from foundation.train.samples import beside
from foundation.train.saver import collect

if TYPE_CHECKING:
    from foundation.evaluation.probes import ProbeSet

log = logging.getLogger(__name__)


class Prober:
    """Measures every train.probe_every steps and after the last; draws no number, and training does not see that it was there.

    Args:
        config: of the whole run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.probes: ProbeSet | None = None

    def open(self, device: torch.device) -> None:
        """Read tables and shards once, on rank 0; nothing where probes are off.

        Raises:
            InputError: they cannot be read, or do not belong together.
        """
        settings = self.config.train
        if not settings.probe_every:
            return
        from foundation.evaluation.probes import open_probes

        assert settings.probe_shards is not None, "the configuration holds the two together"
        self.probes = open_probes(open_shards(settings.probe_shards), settings.probe_tables, None, BATCH_ATOMS[device.type], progress())

    def due(self, step: int) -> bool:
        """Whether the weights are probed after this step, counted from 1."""
        settings = self.config.train
        return settings.probe_every > 0 and (step % settings.probe_every == 0 or step == settings.num_steps)

    def probe(self, step: int, ema: EMA, ranks: Ranks) -> dict[str, float | None]:
        """Every rank must call it, rank 0 works while the others wait for it in the next step.

        What goes wrong is a warning and ``probe/failed``.
        """
        began = time.perf_counter()
        weights = collect(ema.weights(), ranks.rank)
        if ranks.rank:
            return {}
        found: dict[str, float | None] = {"probe/failed": 1.0}
        try:
            from foundation.evaluation.probes import embed, r2_by_property

            assert self.probes is not None, "open() comes first"
            with beside(self.config, weights, ranks.device) as model:
                vectors = embed(self.probes, model, ranks.device, Silent())
            scores = r2_by_property(self.probes, vectors, self.config.train.seed)
            found = {"probe/failed": 0.0, **{f"probe/{name}_r2": value for name, value in scores.items()}}
        except Exception as error:
            log.warning("the weights were not probed at step %d (%s: %s)", step, type(error).__name__, error)
        return found | {"probe/seconds": time.perf_counter() - began}
