"""Embeddings of polymers: of chains of the grow engine or of the model itself, averaged over conformations, or of their graphs alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.progress import Progress
from data_shards.schema import PolymerSample, UnitTopology
from foundation.batch import Batch, Condition
from foundation.data.collate import ChainExample, collate, collate_conditions, condition, featurise
from foundation.sampling.growth import grow_sample
from foundation.sampling.request import ChainRequest, Refusal
from foundation.sampling.run import generate_chains

UNITS_WITHOUT_SHAPE = 4  # repeat units of a chain that is embedded from its graph


def embed_polymers(
    model: Any, requests: Sequence[ChainRequest], num: int, batch_atoms: int, device: torch.device, bars: Progress, workers: int = 1
) -> tuple[NDArray[np.float32], list[Refusal]]:
    """Chain embeddings of polymers.

    Args:
        model: objective in eval mode on the device.
        requests: P chains.
        num: conformations grown of each; the embedding is their mean.
        batch_atoms: atoms of all units of a batch.
        device: of the model.
        bars: where progress is shown.
        workers: processes that grow chains.

    Returns:
        (P, D) float32, NaN for a polymer whose chain could not be grown, and the refusals.
    """
    refused: list[Refusal] = []
    sums: dict[int, NDArray[np.float64]] = {}
    with ExitStack() as stack:
        stage = stack.enter_context(bars.stage("embed", len(requests)))
        grow = partial(grow_sample, num=num)
        grown: Iterable[PolymerSample | Refusal] = map(grow, requests)
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            grown = pool.map(grow, requests, chunksize=4)

        def usable() -> Iterator[tuple[int, PolymerSample]]:
            for index, sample in enumerate(grown):
                stage.advance(1)
                if isinstance(sample, Refusal):
                    refused.append(sample)
                else:
                    yield index, sample

        examples = ((index, featurise(sample, k)) for index, sample in usable() for k in range(len(sample.heavy_ang)))
        for owners, batch in packed(examples, batch_atoms):
            for owner, row in zip(owners, chain_vectors(model, batch, device), strict=True):
                sums[owner] = sums.get(owner, 0.0) + row / num
    width = len(next(iter(sums.values()))) if sums else 0
    out = np.full((len(requests), width), np.nan, dtype=np.float32)
    for index, row in sums.items():
        out[index] = row
    return out, refused


def embed_generated(
    model: Any, requests: Sequence[ChainRequest], num: int, seed: int, batch_atoms: int, device: torch.device, bars: Progress
) -> tuple[NDArray[np.float32], list[Refusal]]:
    """Chain embeddings of polymers from conformations that the model generates itself; arguments and result as embed_polymers.

    Args:
        seed: of the conformations.
    """
    reasons: dict[int, str] = {}
    shapes: dict[int, list[NDArray[np.float64]]] = {index: [] for index in range(len(requests))}
    with bars.stage("generate", len(requests)) as stage:
        for made in generate_chains(model, requests, num, seed, batch_atoms, device):
            if made.x_ang is not None:
                shapes[made.request].append(made.x_ang)
            else:
                reasons[made.request] = made.reason or "no conformation was made"
            stage.advance(made.conformation == num - 1)
    examples = ((k, featurise(_generated(requests[k], own), j)) for k, own in shapes.items() for j in range(len(own)))
    sums: dict[int, NDArray[np.float64]] = {}
    for owners, batch in packed(examples, batch_atoms):
        for owner, row in zip(owners, chain_vectors(model, batch, device), strict=True):
            sums[owner] = sums.get(owner, 0.0) + row / len(shapes[owner])
    out = np.full((len(requests), len(next(iter(sums.values()))) if sums else 0), np.nan, dtype=np.float32)
    for index, row in sums.items():
        out[index] = row
    lost = [k for k, own in shapes.items() if not own]
    return out, [Refusal(requests[k].row, requests[k].psmiles, "no-conformation", reasons[k]) for k in lost]


def _generated(request: ChainRequest, x_ang: Sequence[NDArray[np.float64]]) -> PolymerSample:
    heavy = np.stack(x_ang).astype(np.float32)
    own = request.topology, request.num_units, request.tacticity, request.seed
    return PolymerSample(f"{request.row:012d}", *own, "model", heavy, np.zeros((len(heavy), 0, 3), dtype=np.float32), None)


def packed(examples: Iterable[tuple[int, ChainExample]], batch_atoms: int) -> Iterator[tuple[list[int], Batch]]:
    """Chains with the index of their polymer, packed in order up to batch_atoms atoms of all units; a larger chain comes alone."""
    owners: list[int] = []
    chains: list[ChainExample] = []
    filled = 0
    for owner, example in examples:
        atoms = len(example.batch.x_unit_ang)
        if chains and filled + atoms > batch_atoms:
            yield owners, collate(chains)
            owners, chains, filled = [], [], 0
        owners.append(owner)
        chains.append(example)
        filled += atoms
    if chains:
        yield owners, collate(chains)


def graph_condition(topology: UnitTopology) -> Condition:
    """A chain of UNITS_WITHOUT_SHAPE units without coordinates and without handedness.

    Raises:
        InputError: an atom that no token of the sequence stands for.
    """
    return condition(topology, UNITS_WITHOUT_SHAPE, np.zeros((UNITS_WITHOUT_SHAPE, len(topology.stereo_centres)), dtype=np.int8))


def embed_graphs(
    model: Any, topologies: Sequence[UnitTopology], batch_atoms: int, device: torch.device, bars: Progress
) -> NDArray[np.float32]:
    """(P, D) chain embeddings of polymers from their graphs alone, some thousand a minute; no conformation is made.

    Args:
        model: objective in eval mode on the device.
        topologies: repeat units, as data_shards.chem.repeat_unit.unit_graph gives them.
        batch_atoms: atoms of all units of a batch.
        device: of the model.
        bars: where progress is shown.

    Raises:
        InputError: as graph_condition.
    """
    rows: list[NDArray[np.float64]] = []
    order = sorted(range(len(topologies)), key=lambda k: topologies[k].num_atoms)  # sequences of like length, so that little is padding
    with bars.stage("embed", len(order)) as stage:
        for chosen in _cut(order, [UNITS_WITHOUT_SHAPE * topology.num_atoms for topology in topologies], batch_atoms):
            rows += list(chain_vectors(model, collate_conditions([graph_condition(topologies[k]) for k in chosen]), device))
            stage.advance(len(chosen))
    out = np.zeros((len(order), len(rows[0]) if rows else 0), dtype=np.float32)
    out[order] = rows
    return out


def _cut(order: Sequence[int], atoms: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in order, cut into batches of at most so many atoms; a larger polymer comes alone."""
    batch: list[int] = []
    filled = 0
    for k in order:
        if batch and filled + atoms[k] > most:
            yield batch
            batch, filled = [], 0
        batch.append(k)
        filled += atoms[k]
    if batch:
        yield batch


def chain_vectors(model: Any, batch: Condition, device: torch.device) -> NDArray[np.float64]:
    """(B, D) what the model says of each chain of a batch."""
    with torch.no_grad():
        return np.asarray(model.embed(batch.to(device)).chain.double().cpu().numpy())
