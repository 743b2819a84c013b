"""Real chains for the model's tests: grown, decomposed and packed by the same code that training uses."""

from __future__ import annotations

from functools import cache

import torch

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.schema import PolymerSample
from foundation.batch import Batch
from foundation.data.collate import TARGETS, build_batch
from foundation.objectives import build_objective
from foundation.objectives.polyconfm.config import PolyConFMConfig

HEADS = [("torsional", "torsion"), ("torsional", "so3"), ("cartesian", "torsion"), ("cartesian", "so3"), ("ditmc", "torsion")]
CHAINS = (("*CC(*)c1ccccc1", 5), ("*CC(*)(C)C(=O)OC", 4), ("*Oc1ccc(CC(*)=O)cc1", 3), ("*C*", 6), ("*O[Si](*)(C)C", 1))


@cache
def sample(psmiles: str, num_units: int, seed: int = 0) -> PolymerSample:
    """One grown chain."""
    unit = build_unit(psmiles)
    chain = grow_chain(unit, num_units, num_conformations=2, tacticity="atactic", seed=seed)
    return PolymerSample("k", unit.topology, num_units, "atactic", seed, "grow", chain.heavy_ang, chain.hydrogen_ang, None)


@cache
def batch_of(chains: tuple[tuple[str, int], ...] = CHAINS) -> Batch:
    """Packed batch of grown chains, with descriptors and levels of their units."""
    return build_batch([sample(*chain) for chain in chains], [0] * len(chains), [0] * len(chains), targets=tuple(TARGETS))


def model_of(local_head: str, orientation_head: str, **fields: object) -> torch.nn.Module:
    """A tiny model with every zero-initialised layer filled, so that no output is trivially zero."""
    torch.manual_seed(0)
    model = build_objective(PolyConFMConfig(local_head=local_head, orientation_head=orientation_head, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter == 0).all():
                parameter.normal_(std=0.1)
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


__all__ = ["CHAINS", "HEADS", "batch_of", "model_of", "rng", "sample"]
