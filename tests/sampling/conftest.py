"""Real chains without a model: relaxed unit shapes joined at given link dihedrals."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_shards.conformers.fragments import seed_shapes
from data_shards.console import run
from foundation.batch import Batch, Condition, select_chains, to_packed
from foundation.evaluation.baselines import pick_shapes
from foundation.evaluation.chains import assemble_chains
from foundation.geometry.assembly import assemble_links, chain_coordinates, condition_layout
from foundation.objectives.base import Capabilities, Embeddings, Failure, LossOut, Samples
from foundation.objectives.polyconfm.view import pick_seeds
from foundation.sampling.request import ChainRequest, read_request

FIXTURES = (
    "*CC(*)c1ccccc1",
    "*Oc1ccc(CC(*)=O)cc1",
    "*CC(*)(C)C(=O)OC",
    "*NC(=O)CCCCC(*)=O",
    "*C*",
    "*c1ccc(*)cc1",
    "*O[Si](*)(C)C",
    "*C=C*",
    "*CC(*)C[N+](C)(C)C",
    "*CC(*)C(=O)[O-]",
)


@cache
def library(psmiles: str) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """(F, n, 3) relaxed shapes of a unit and their handedness (F, c)."""
    return seed_shapes(psmiles, 4, 7)


def chain_of(request: ChainRequest, seed: int = 0, spread_rad: float = 0.3) -> NDArray[np.float64]:
    """(H, 3) a chain near the extended one, with the handedness of the request."""
    rng = np.random.default_rng(seed)
    shapes = pick_shapes(*library(request.topology.psmiles), request.handedness, 1, rng)
    links = np.pi + rng.normal(0.0, spread_rad, request.num_units - 1)
    return assemble_chains(request.topology, shapes, links[None])[0]


def request_of(psmiles: str, num_units: int, tacticity: str = "atactic", seed: int = 0) -> ChainRequest:
    return read_request(psmiles, num_units, tacticity, seed)


class LibraryObjective(torch.nn.Module):
    """A model without weights worth training: library shapes of the right handedness at link dihedrals drawn from the given stream."""

    def __init__(self, spread_rad: float = 0.3, fail: tuple[int, ...] = (), nan: tuple[int, ...] = (), needs_seeds: bool = True) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(spread_rad, dtype=torch.float64), requires_grad=False)
        self.fail, self.nan, self.calls = fail, nan, 0
        self.capabilities = Capabilities(needs_seed_conformers=needs_seeds)

    def loss(self, batch: Batch, rng: torch.Generator) -> LossOut:
        raise AssertionError("not asked for here")

    def embed(self, batch: Batch) -> Embeddings:
        """Mean distance of the atoms of a unit from the origin of its frame, and its inverse."""
        unit = torch.zeros(len(batch.unit_chain)).index_add(0, batch.atom_unit, batch.x_unit_ang.norm(dim=-1)) / batch.atoms_per_unit
        unit = torch.stack([unit, 1 / unit], 1)
        chain = torch.zeros(batch.num_chains, 2).index_add(0, batch.unit_chain, unit) / batch.num_units[:, None]
        return Embeddings(unit, chain)

    def sample(self, condition: Condition, num: int, rng: torch.Generator) -> Samples:
        self.calls += 1
        condition = select_chains(condition, torch.arange(condition.num_chains).repeat_interleave(num))
        everything = torch.ones(len(condition.unit_chain), dtype=torch.bool)
        x_unit = pick_seeds(condition, everything, rng).double()
        phi = math.pi + self.scale * torch.randn(len(x_unit), generator=rng, dtype=torch.float64)
        chain = condition.unit_chain
        start = condition.unit_position == 0
        x_world, _ = assemble_links(x_unit, condition.key_slot[chain], condition.link_slot[chain], start, phi)
        layout = condition_layout(condition)
        x_ang = chain_coordinates(x_world, layout)
        for row in self.nan:
            x_ang[layout.heavy_ptr[row]] = torch.nan
        failures = [Failure(row, "gave up") for row in self.fail if row < condition.num_chains]
        return Samples(x_ang, layout.heavy_ptr, failures, to_packed(x_unit, condition.atom_ptr), phi)


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What commands load as a checkpoint: a LibraryObjective, or a test module's own OBJECTIVE."""
    made = getattr(request.module, "OBJECTIVE", LibraryObjective)()
    monkeypatch.setattr("foundation.train.checkpoint.load_model", lambda path: (made, None))
    return made


def run_command(app: Callable[[], None], *argv: str) -> int:
    """Exit code of a command line."""
    old, sys.argv = sys.argv, ["command", *argv]
    try:
        run(app)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0
