"""A chain sampled from the averaged weights while training goes on, for people to look at: <run>/samples/step-00000200.sdf."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from data_shards.progress import Silent
from foundation.config import RunConfig
from foundation.objectives import build_objective
from foundation.sampling.request import read_request
from foundation.train.ema import EMA
from foundation.train.ranks import Ranks
from foundation.train.saver import collect

log = logging.getLogger(__name__)
FOLDER = "samples"


@contextmanager
def beside(config: RunConfig, weights: Mapping[str, torch.Tensor], device: torch.device) -> Iterator[torch.nn.Module]:
    """A model with these weights, in eval mode; the global generators are afterwards where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # building a model draws its first weights
        model = build_objective(config.objective)
        model.load_state_dict(weights)
        yield model.to(device).eval()


class Sampler:
    """Samples one short chain every track.samples_every steps with noise of its own; training does not see that it was there.

    Args:
        out: run folder.
        config: of the whole run.

    Raises:
        PolymerError: track.sample_psmiles cannot be used.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        self.out, self.config = out, config
        track = config.track
        self.request = read_request(track.sample_psmiles, track.sample_units, "atactic", config.train.seed) if track.samples_every else None

    def due(self, step: int) -> bool:
        """Whether a chain is sampled after this step, counted from 1."""
        return self.request is not None and step % self.config.track.samples_every == 0

    def sample(self, step: int, ema: EMA, ranks: Ranks) -> dict[str, float | None]:
        """Sample and write; every rank must call it, rank 0 works while the others wait for it in the next step.

        What goes wrong is a warning and ``sample/failed``: a picture is not worth a run.
        """
        began = time.perf_counter()
        weights = collect(ema.weights(), ranks.rank)
        if ranks.rank:
            return {}
        found: dict[str, float | None] = {"sample/failed": 1.0}
        try:
            with beside(self.config, weights, ranks.device) as model:
                found = self._write(model, step, ranks.device)
        except Exception as error:
            log.warning("no chain was sampled at step %d (%s: %s)", step, type(error).__name__, error)
        return found | {"sample/seconds": time.perf_counter() - began}

    def _write(self, model: torch.nn.Module, step: int, device: torch.device) -> dict[str, float | None]:
        from foundation.sampling.job import Job, write_chains
        from foundation.sampling.run import BATCH_ATOMS

        assert self.request is not None
        checkpoint = f"{self.out}, averaged weights after step {step}"
        job = Job(
            [self.request],
            [],
            num=1,
            seed=self.config.train.seed,
            batch_atoms=BATCH_ATOMS[device.type],
            hydrogens=True,
            strict=False,
            relax=False,
            device=device,
            checkpoint=checkpoint,
        )
        report = write_chains(model, job, self.out / FOLDER / f"step-{step:08d}.sdf", Silent())
        _, _, bond_error_ang, num_clashes, size_ang, _ = report.checks[0]
        return {
            "sample/failed": 0.0,
            "sample/worst_bond_error_ang": bond_error_ang,
            "sample/num_clashes": float(num_clashes),
            "sample/radius_of_gyration_ang": size_ang,
        }
