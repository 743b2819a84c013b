"""Numbers that several experiments need: chains of a model measured, true units joined, spread, intervals of differences."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.schema import PolymerSample
from foundation.batch import Batch, to_dense
from foundation.data.collate import collate, featurise
from foundation.evaluation import metrics
from foundation.evaluation.bootstrap import mean_over_polymers
from foundation.evaluation.measure import Attempts, Measurement, Reference, measure
from foundation.evaluation.protocol import Settings, generated
from foundation.geometry.assembly import assemble_links, chain_coordinates, condition_layout
from foundation.objectives import build_objective
from foundation.objectives.polyconfm.view import UnitView
from foundation.sampling.run import BATCH_ATOMS, stream_of


@dataclass(frozen=True)
class Scored:
    """One polymer: what was made of it and what that measures."""

    attempts: Attempts
    measured: Measurement


def with_fields(model: Any, **fields: Any) -> Any:
    """The same weights with other sampling fields of the configuration, in eval mode on the same device."""
    config = type(model.config).model_validate({**model.config.model_dump(), **fields})
    made = build_objective(config)
    made.load_state_dict(model.state_dict())
    return made.eval().to(next(model.parameters()).device)


def score(
    model: Any, samples: Sequence[PolymerSample], references: Sequence[Reference], num: int, seed: int, device: torch.device
) -> tuple[list[Scored], float]:
    """Conformations of every polymer, measured against its references, and the processor seconds that generating them took."""
    settings = Settings("test", num, None, seed, BATCH_ATOMS[device.type], 0)
    began = time.process_time()
    made = list(generated(model, samples, references, settings, device))
    seconds = time.process_time() - began
    return [Scored(a, measure(r, a)) for r, a in zip(references, made, strict=True)], seconds


def values_of(scored: Sequence[Scored], name: str) -> NDArray[np.float64]:
    """(P,) one metric, NaN where a polymer has none."""
    return np.array([one.measured.values.get(name, np.nan) for one in scored])


def estimate(values: Sequence[float] | NDArray[np.floating], seed: int) -> dict[str, Any]:
    """Mean over polymers with its interval, as json."""
    return asdict(mean_over_polymers(np.asarray(values, dtype=np.float64), seed))


def difference(values: NDArray[np.floating], others: NDArray[np.floating], seed: int) -> dict[str, Any]:
    """Mean over polymers of values - others, paired, with its bootstrap interval; polymers without both are left out."""
    return estimate(np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64), seed)


def holds_zero(change: dict[str, Any]) -> bool:
    """Whether an interval says that nothing changed."""
    return change["value"] is not None and change["low"] <= 0 <= change["high"]


def spread_ang(x_ang: NDArray[np.floating]) -> float:
    """(K, H, 3) conformations -> mean Kabsch RMSD over pairs, angstrom; NaN below two."""
    if len(x_ang) < 2:
        return float("nan")
    return float(metrics.rmsd_matrix(x_ang, x_ang)[np.triu_indices(len(x_ang), 1)].mean())


def entropy_bits(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., M) counts -> (...,) Shannon entropy in bits; NaN where there is no count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = counts / counts.sum(-1, keepdims=True)
        return np.asarray(-np.where(p > 0, p * np.log2(np.where(p > 0, p, 1.0)), 0.0 * p).sum(-1))


def exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Power p of values ~ lengths^p, least squares of logarithms."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def largest_deviation(values: Sequence[float]) -> float:
    """Largest |value / mean - 1|: 0 where all are equal."""
    array = np.asarray(values, dtype=np.float64)
    return float(np.abs(array / array.mean() - 1).max())


def true_units(samples: Sequence[PolymerSample], num: int, device: torch.device) -> Iterator[Batch]:
    """One batch a polymer: num chains that take its stored conformations in turns."""
    for sample in samples:
        yield collate([featurise(sample, k % len(sample.heavy_ang)) for k in range(num)]).to(device)


def shapes_of(batch: Batch) -> torch.Tensor:
    """(U, A, 3) unit shapes of a batch."""
    return to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)


@torch.no_grad()
def join_true_units(model: Any, batch: Batch, *key: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chains whose units have their true shapes; the model draws how they are joined.

    Args:
        model: objective polyconfm in eval mode.
        batch: K chains of one polymer.
        key: of the stream of random numbers.

    Returns:
        (K, H, 3) chains, centred, and their (K, N, n, 3) unit shapes.
    """
    x_unit, known = shapes_of(batch), model.know(batch)
    everything = torch.ones(len(batch.unit_chain), dtype=torch.bool, device=x_unit.device)
    tokens = model.fill_tokens(known, everything, model.encode_units(x_unit, UnitView.of(batch, known.graphs, everything)))
    rng = torch.Generator(x_unit.device).manual_seed(stream_of(*key))
    angles = model.sample_links(batch, known, x_unit, tokens, rng).angles_rad
    return assemble(batch, x_unit, angles), numbers(x_unit, batch.num_chains)


def assemble(batch: Batch, x_unit_ang: torch.Tensor, link_rad: torch.Tensor) -> NDArray[np.float64]:
    """(K, H, 3) chains of one polymer, centred, from unit shapes (U, A, 3) and link dihedrals (U,)."""
    chain = batch.unit_chain
    world, _ = assemble_links(x_unit_ang, batch.key_slot[chain], batch.link_slot[chain], batch.unit_position == 0, link_rad)
    return centred(chain_coordinates(world, condition_layout(batch)), batch.num_chains)


def centred(x_ang: torch.Tensor, num_chains: int) -> NDArray[np.float64]:
    """(K * H, 3) packed chains of equal length -> (K, H, 3), centroid at the origin."""
    chains = x_ang.double().cpu().numpy().reshape(num_chains, -1, 3)
    return np.asarray(chains - chains.mean(axis=1, keepdims=True))


def numbers(x_unit_ang: torch.Tensor, num_chains: int) -> NDArray[np.float64]:
    """(U, A, 3) shapes of chains of equal length -> (K, N, A, 3)."""
    shapes = x_unit_ang.double().cpu().numpy()
    return np.asarray(shapes.reshape(num_chains, -1, *shapes.shape[1:]))
