"""Real chains without a model: relaxed unit shapes joined at given link dihedrals."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_shards.conformers.fragments import seed_shapes
from foundation.evaluation.baselines import pick_shapes
from foundation.evaluation.chains import assemble_chains
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
