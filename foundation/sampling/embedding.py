"""Embeddings of polymers: chains of the grow engine, read by the model, averaged over conformations."""

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
from data_shards.schema import PolymerSample
from foundation.batch import Batch
from foundation.data.collate import ChainExample, collate, featurise
from foundation.sampling.growth import grow_sample
from foundation.sampling.request import ChainRequest, Refusal


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


def chain_vectors(model: Any, batch: Batch, device: torch.device) -> NDArray[np.float64]:
    """(B, D) what the model says of each chain of a batch."""
    with torch.no_grad():
        return np.asarray(model.embed(batch.to(device)).chain.double().cpu().numpy())
