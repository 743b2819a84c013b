"""Linear probes: how much of a property can be read off the embeddings of polymers by a straight line, trained or at random initialisation.

    tables (P-SMILES, value) --canonical group--> polymers with a value
    shards ------------------same group---------> their conformations --model.embed--> one vector a polymer --ridge.py--> R2

A polymer is a group of canonical P-SMILES: ways of writing it, and its stereoisomers, are one point with the mean of their values, so that
they are never on both sides of a fold and count once in an interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.progress import Progress
from data_shards.reader import ShardSet
from foundation.batch import Batch
from foundation.config import RunConfig
from foundation.data.collate import ChainExample, featurise
from foundation.errors import InputError
from foundation.evaluation import ridge
from foundation.evaluation.property_table import FOLD, PropertyTable, check_table, parse_tables, read_table
from foundation.objectives import build_objective
from foundation.sampling.embedding import chain_vectors, packed

PROTOCOL = {
    "polymer": "canonical P-SMILES without stereo marks; rows that name the same polymer are one point with the mean of their values",
    "embedding": "model.embed(batch).chain, mean over the conformations of all samples of the polymer; all splits of the shards",
    "regression": "ridge on embeddings cut off at 5 standard deviations (as quartiles tell them) and standardised, its strength chosen by"
    " leaving one polymer out inside the training folds; predictions at most a quarter of the training values' range outside it",
    "folds": "column fold of the table where it has one, else drawn by the seed; a polymer is in one fold",
    "random": "the same network before training; scores are means over the seeds",
    "difference": "squared error of the trained network minus that of the random one, polymer by polymer; negative: training helps",
    "interval": "2.5 to 97.5 percentile of 2000 resamples of polymers; the seed of the training and of the folds is not in it",
}


# --------------------------------------------------------------------------------------------------------------------- embeddings


@dataclass(frozen=True)
class ProbeSet:
    """Tables and the conformations of their polymers, packed once.

    Attributes:
        tables: by name of the property.
        groups: (G,) polymers that have conformations.
        batches: packed chains with the index of their polymer.
        lost: group -> why it has no batch although it has a sample.
    """

    tables: dict[str, PropertyTable]
    groups: tuple[str, ...]
    batches: list[tuple[list[int], Batch]]
    lost: dict[str, str]


def open_probes(shards: ShardSet, words: Sequence[str], limit: int | None, batch_atoms: int, bars: Progress) -> ProbeSet:
    """Read tables, and from shards every sample of their polymers.

    Args:
        shards: opened; the splits do not matter here.
        words: tables as `PATH` or `PATH:COLUMN`.
        limit: rows read of each table.
        batch_atoms: atoms of all units of a batch.
        bars: where progress is shown.

    Raises:
        InputError: as read_table, or a table that cannot be probed with what the shards hold.
    """
    tables = {name: read_table(name, path, column, limit, bars) for name, (path, column) in parse_tables(words).items()}
    wanted = dict.fromkeys(group for table in tables.values() for group in table.groups)
    entries = [entry for split in shards.manifest.splits for entry in shards.samples(split) if entry.group in wanted]
    groups = tuple(dict.fromkeys(entry.group for entry in entries))
    for table in tables.values():
        check_table(table, np.isin(table.groups, groups), f"lie in {shards.path}")
    place = {group: index for index, group in enumerate(groups)}
    lost: dict[str, str] = {}

    def chains() -> Iterator[tuple[int, ChainExample]]:
        with bars.stage("read", len(entries)) as stage:
            for entry in entries:
                sample = shards.read(entry)
                stage.advance(1)
                try:
                    yield from [(place[entry.group], featurise(sample, k)) for k in range(len(sample.heavy_ang))]
                except InputError as error:  # such as an atom that no token stands for
                    lost[entry.group] = str(error)

    return ProbeSet(tables, groups, list(packed(chains(), batch_atoms)), lost)


def embed(probes: ProbeSet, model: Any, device: torch.device, bars: Progress, name: str = "embed") -> NDArray[np.float64]:
    """(G, D) mean over the chains of each polymer; NaN where the model gives a number that is not finite, or there is no batch."""
    total: NDArray[np.float64] | None = None
    chains = np.zeros(len(probes.groups))
    with bars.stage(name, len(probes.batches), unit="batches") as stage:
        for owners, batch in probes.batches:
            vectors = chain_vectors(model, batch, device)
            total = np.zeros((len(probes.groups), vectors.shape[1])) if total is None else total
            np.add.at(total, owners, vectors)
            np.add.at(chains, owners, 1.0)
            stage.advance(1)
    if total is None:
        return np.full((len(probes.groups), 1), np.nan)
    with np.errstate(invalid="ignore"):
        mean = np.where(chains[:, None] > 0, total / np.maximum(chains, 1.0)[:, None], np.nan)
    return np.where(np.isfinite(mean).all(1)[:, None], mean, np.nan)


def random_model(config: RunConfig, seed: int) -> torch.nn.Module:
    """The network of a run before training, in eval mode; the global generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_objective(config.objective).eval()


# ------------------------------------------------------------------------------------------------------------------------ results


def regress(table: PropertyTable, probes: ProbeSet, x: Sequence[NDArray[np.float64]], seed: int) -> tuple[NDArray[np.int64], list[Any]]:
    """Cross-validated predictions of a property from several embeddings, on the polymers that all of them have.

    Args:
        table: of the property.
        probes: it came with.
        x: (G, D) each, as embed gives them.
        seed: of folds that the table does not give.

    Returns:
        (M,) indices of the polymers in the table, and for each embedding (M,) predictions.

    Raises:
        InputError: too few are left.
    """
    place = {group: index for index, group in enumerate(probes.groups)}
    there = np.array([place.get(group, -1) for group in table.groups])
    fine = np.logical_and.reduce([np.isfinite(own).all(1) for own in x])
    usable = (there >= 0) & fine[there]
    check_table(table, usable, "have a finite embedding")
    chosen = np.flatnonzero(usable)
    fold = table.fold[chosen] if table.fold is not None else ridge.make_folds(np.array(table.groups)[chosen], ridge.FOLDS, seed)
    return chosen, [ridge.cross_validate(own[there[chosen]], table.values[chosen], fold) for own in x]


def compare(probes: ProbeSet, trained: NDArray[np.float64], random: Mapping[int, NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """Every property of a probe set, from trained and from random embeddings; what probes.json holds under `properties`.

    Args:
        probes: tables and polymers.
        trained: (G, D).
        random: seed of the initialisation -> (G, D).
        seed: of folds and resamples.
    """
    return {name: compare_one(table, probes, trained, random, seed) for name, table in probes.tables.items()}


def compare_one(
    table: PropertyTable, probes: ProbeSet, trained: NDArray[np.float64], random: Mapping[int, NDArray[np.float64]], seed: int
) -> dict[str, Any]:
    """One property; Raises InputError as regress."""
    chosen, (own, *others) = regress(table, probes, [trained, *random.values()], seed)
    y, there = table.values[chosen], set(probes.groups)
    failed = {"trained": trained, **{f"random {k}": x for k, x in random.items()}}
    difference = ridge.paired_difference(y, own, np.stack(others), seed)
    return {
        "path": table.path,
        "column": table.column,
        "rows": table.rows,
        "polymers": {
            "with a value": len(table.groups),
            "not in the shards": sum(group not in there for group in table.groups),
            "without an embedding": {name: _missing(table, probes, x) for name, x in failed.items()},
            "compared": len(chosen),
        },
        "folds": f"column {FOLD}" if table.fold is not None else f"{ridge.FOLDS}, drawn",
        "trained": ridge.scores(y, own, seed),
        "random": {
            **ridge.scores(y, np.stack(others), seed),
            "r2_of_seed": {str(k): ridge.r2(y, p) for k, p in zip(random, others, strict=True)},
        },
        "difference": difference,
        "difference_of_variance": {k: v if k == "num_polymers" else v / float(y.var()) for k, v in difference.items()},
        "verdict": verdict(difference),
        "psmiles": [table.psmiles[k] for k in chosen],
        "values": y.tolist(),
        "predictions": {"trained": own.tolist(), "random": {str(k): p.tolist() for k, p in zip(random, others, strict=True)}},
    }


def _missing(table: PropertyTable, probes: ProbeSet, x: NDArray[np.float64]) -> int:
    """Polymers of a table that have a sample but no finite embedding."""
    without = {group for group, row in zip(probes.groups, x, strict=True) if not np.isfinite(row).all()}
    return sum(group in without for group in table.groups)


def verdict(difference: Mapping[str, Any]) -> str:
    """What the interval of a paired difference says of training."""
    return "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else "no difference"


def r2_by_property(probes: ProbeSet, x: NDArray[np.float64], seed: int) -> dict[str, float]:
    """R2 of each property from one embedding (G, D)."""
    found = {}
    for name, table in probes.tables.items():
        chosen, (predicted,) = regress(table, probes, [x], seed)
        found[name] = ridge.r2(table.values[chosen], predicted)
    return found
