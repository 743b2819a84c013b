"""Chains of the grow engine for requests. No torch here: processes that only grow chains start quickly."""

from __future__ import annotations

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.errors import PolymerError
from data_shards.schema import PolymerSample
from foundation.sampling.request import ChainRequest, Refusal


def grow_sample(request: ChainRequest, num: int) -> PolymerSample | Refusal:
    """Conformations of a requested chain by the grow engine, or why there are none."""
    try:
        chain = grow_chain(
            build_unit(request.topology.psmiles),
            request.num_units,
            num_conformations=num,
            tacticity=request.tacticity,
            seed=request.seed,
        )
    except PolymerError as error:
        return Refusal(request.row, request.psmiles, error.reason, error.detail)
    return PolymerSample(
        key=f"{request.row:012d}",
        topology=request.topology,
        num_units=request.num_units,
        tacticity=request.tacticity,
        seed=request.seed,
        engine="grow",
        heavy_ang=chain.heavy_ang,
        hydrogen_ang=chain.hydrogen_ang,
        energies_kcal_mol=None,
    )
