"""What a generator learns from: polymers of tables with values, others with values that property models predict, and their like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.repeat_unit import unit_graph
from data_shards.crew import Crash, crew
from data_shards.progress import Progress
from finetune.design.graphs import Graph, read_graphs
from finetune.design.saved import Known, Projection
from finetune.design.train import Material
from finetune.polymers import Polymers

if TYPE_CHECKING:
    from finetune.stream import Ready

LIKE = 8  # polymers that may stand as a reference of each
WIDTH = 64  # principal components of an embedding
MOST_OFTEN = 10.0  # times in a pass that a labelled polymer is read
USUAL = 28  # atoms of a graph beyond which a polymer without a label is read less often
CHUNK = 64
TIME_LIMIT_SEC = 300.0
BLOCK = 1_024  # rows compared at a time


@dataclass(frozen=True)
class Read:
    """Graphs of a list of P-SMILES.

    Attributes:
        graphs: of those that have one.
        turned: the same, read from the other star.
        kept: (K,) their places in the list.
        refused: places and reasons of the others.
    """

    graphs: list[Graph]
    turned: list[Graph]
    kept: NDArray[np.int64]
    refused: list[tuple[int, str]]


def read_all(psmiles: Sequence[str], workers: int | None, bars: Progress) -> Read:
    """Graphs of polymers, by several processes where that pays."""
    graphs: dict[int, tuple[Graph, Graph]] = {}
    refused = []
    chunks = [(start, list(psmiles[start : start + CHUNK])) for start in range(0, len(psmiles), CHUNK)]
    with crew(workers) as unordered, bars.stage("graphs", len(psmiles)) as stage:
        for (start, texts), answer in unordered(_read, chunks, TIME_LIMIT_SEC):
            if isinstance(answer.value, Crash):
                refused += [(start + k, answer.value.detail) for k in range(len(texts))]
            else:
                found, turned, kept, lost = answer.value
                graphs |= {start + k: both for k, both in zip(kept, zip(found, turned, strict=True), strict=True)}
                refused += [(start + k, reason) for k, reason in lost]
            stage.advance(len(texts))
    places = sorted(graphs)
    one, other = ([graphs[k][way] for k in places] for way in (0, 1))
    return Read(one, other, np.array(places, dtype=np.int64), sorted(refused))


def _read(chunk: tuple[int, list[str]]) -> tuple[list[Graph], list[Graph], list[int], list[tuple[int, str]]]:
    graphs, kept, refused = read_graphs(chunk[1])
    turned, _, _ = read_graphs((chunk[1][k] for k in kept), backwards=True)
    return graphs, turned, kept, refused


def predicted_values(
    models: Sequence[Ready], polymers: Polymers, psmiles: Sequence[str], labels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(K, P) learned values: those of the tables where there are any, else what property models say.

    Args:
        models: of each property.
        polymers: K of them.
        psmiles: of each, which adapted encoders read.
        labels: (K, P) learned values of tables, NaN where there are none.
    """
    out = labels.copy()
    for column, model in enumerate(models):
        rows = np.flatnonzero(np.isnan(out[:, column]))
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            encoder = model.encoder([unit_graph(psmiles[k]) for k in part])
            out[part, column] = model.saved.predictor.predict(polymers, part, encoder).value
    return out


def project(embedding: NDArray[np.float32], checkpoint: str, weights: str) -> Projection:
    """Principal components of embeddings, each of deviation 1."""
    mean = embedding.mean(axis=0)
    _, scale, directions = np.linalg.svd((embedding - mean).astype(np.float64), full_matrices=False)
    kept = min(WIDTH, int((scale > 1e-6 * scale[0]).sum()))
    deviation = scale[:kept] / np.sqrt(max(len(embedding) - 1, 1))
    return Projection(checkpoint, weights, mean, (directions[:kept] / deviation[:, None]).T.astype(np.float32))


def likes(references: NDArray[np.float32]) -> NDArray[np.int64]:
    """(K, LIKE) the nearest other polymers of each, by the cosine of their projected embeddings."""
    unit = references / np.maximum(np.linalg.norm(references, axis=1, keepdims=True), 1e-9)
    number = min(LIKE, len(unit) - 1)
    out = np.empty((len(unit), number), dtype=np.int64)
    for start in range(0, len(unit), BLOCK):
        near = unit[start : start + BLOCK] @ unit.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf  # never the polymer itself
        out[start : start + BLOCK] = np.argpartition(-near, number - 1, axis=1)[:, :number] if number else 0
    return out


def material_of(
    known: Known, ways: Sequence[Sequence[Graph]], mean: NDArray[Any], deviation: NDArray[Any], references: NDArray[Any]
) -> Material:
    """What training reads: every polymer from both of its stars, large ones less often than small ones, as they take longer.

    Args:
        known: K polymers with values.
        ways: (2, K) graphs of them, read from either star.
        mean, deviation: (P,) that values are standardised by.
        references: (K, R) projected embeddings; R = 0 where there are none.
    """
    values = ((known.values - mean) / deviation).astype(np.float32)
    near = references[likes(references)] if references.shape[1] else np.zeros((len(values), 0, 0))
    labelled = int(known.labelled.sum())
    share = np.clip(0.5 * (len(values) - labelled) / max(labelled, 1), 1.0, MOST_OFTEN)
    weight = np.where(known.labelled, share, np.minimum(1.0, USUAL / known.size)) / len(ways)
    graphs = [own for way in ways for own in way]
    times = (len(ways), *[1] * (near.ndim - 1))
    return Material(graphs, np.tile(values, (len(ways), 1)), np.tile(near.astype(np.float32), times), np.tile(weight, len(ways)))


def list_of(path: Path | str, limit: int | None) -> list[str]:
    """P-SMILES of a table without values."""
    from data_shards.sources.table import TableSource

    return [row.psmiles for row in TableSource(str(path), None, limit).rows()]


__all__ = ["Read", "likes", "list_of", "material_of", "predicted_values", "project", "read_all"]
