"""Linear probes: how much of a property can be read off the embeddings of polymers by a straight line, trained or at random initialisation.

    tables (P-SMILES, value) --canonical group--> polymers with a value
    shards ------------------same group---------> their conformations --model.embed--> one vector a polymer --ridge.py--> R2

A polymer is a group of canonical P-SMILES: ways of writing it, and its stereoisomers, are one point with the mean of their values, so that
they are never on both sides of a fold and count once in an interval.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.chem.psmiles import canonicalise
from data_shards.progress import Progress
from data_shards.reader import ShardSet
from data_shards.sources.table import TableSource
from foundation.batch import Batch
from foundation.config import RunConfig
from foundation.data.collate import ChainExample, featurise
from foundation.errors import InputError, PolymerError
from foundation.evaluation import ridge
from foundation.objectives import build_objective
from foundation.sampling.embedding import chain_vectors, packed

if TYPE_CHECKING:
    import pandas as pd

FOLD, USUAL = "fold", "value"  # columns with a meaning of their own
FEWEST = 10  # polymers that a regression is worth anything on
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


@dataclass(frozen=True)
class PropertyTable:
    """Polymers with a property.

    Attributes:
        name: of the property, letters, digits and underscores.
        path, column: where it stands.
        psmiles: (P,) as written in the first row of each polymer.
        groups: (P,) canonical names.
        values: (P,) mean of the rows of each polymer.
        fold: (P,) of its first row with a value, or None where the table has no column of folds.
        rows: how many rows there are, and what became of them.
    """

    name: str
    path: str
    column: str
    psmiles: tuple[str, ...]
    groups: tuple[str, ...]
    values: NDArray[np.float64]
    fold: NDArray[np.int64] | None
    rows: dict[str, int]


# ------------------------------------------------------------------------------------------------------------------------- tables


def parse_tables(words: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Name -> path and column of `PATH` or `PATH:COLUMN`. The name is that of the file, with the column where a file is given twice.

    Raises:
        InputError: none, or one twice.
    """
    places = []
    for word in words:
        path, _, column = word.rpartition(":")
        places.append((path, column) if path and column and not set(column) & set("/\\") else (word, None))
    stems = Counter(_word(PurePosixPath(path).name.partition(".")[0]) for path, _ in places)
    found: dict[str, tuple[str, str | None]] = {}
    for path, column in places:
        stem = _word(PurePosixPath(path).name.partition(".")[0])
        name = stem if stems[stem] == 1 or column is None else f"{stem}_{_word(column)}"
        if name in found:
            raise InputError(
                f"tables {found[name][0]} and {path} both give the property {name}; name their columns (PATH:COLUMN), or rename one"
            )
        found[name] = path, column
    if not found:
        raise InputError("no table was given; pass one with --table tg.csv or --table tg.csv:COLUMN")
    return found


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "property"


def read_column(path: str, column: str | None, limit: int | None = None) -> tuple[pd.DataFrame, str, str]:
    """Rows of a table as text, the name of their P-SMILES column and that of the property.

    Args:
        path: CSV, TSV or Parquet.
        column: of the property; None: `value`, else the only one with numbers beside the folds.
        limit: read at most this many rows.

    Raises:
        InputError: the table cannot be read, has no such column, or has several columns with numbers.
    """
    import pandas as pd

    source = TableSource(path, limit=limit)
    rows = pd.concat(list(source.frames()), ignore_index=True)
    names = [str(name) for name in rows.columns if name != source.column]
    if column is None:
        numeric = [name for name in names if name != FOLD and numbers(rows, name).notna().any()]
        numeric = [USUAL] if USUAL in numeric else numeric
        if len(numeric) != 1:
            found = f"numbers in {', '.join(numeric)}" if numeric else "numbers in none"
            raise InputError(f"{path} has {found} of its columns, so the property must be named; pass {path}:COLUMN")
        column = numeric[0]
    if column not in names:
        raise InputError(f"{path} has no column {column!r}; the columns are {', '.join(names)}; change the column")
    return rows, source.column, column


def numbers(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column as float64, NaN where there is no finite number."""
    import pandas as pd

    return pd.to_numeric(rows[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def read_table(name: str, path: str, column: str | None, limit: int | None, bars: Progress) -> PropertyTable:
    """A table as polymers.

    Raises:
        InputError: as read_column, or a row with a value has a fold that is no whole number.
    """
    rows, psmiles_column, column = read_column(path, column, limit)
    values = numbers(rows, column).to_numpy()
    fold = numbers(rows, FOLD).to_numpy() if FOLD in rows.columns else None
    count = Counter({"rows": len(rows), "without a number": int(np.isnan(values).sum())})
    found: dict[str, list[int]] = {}
    with bars.stage(name[:12], len(rows), unit="rows") as stage:
        for row, psmiles in enumerate(rows[psmiles_column]):
            stage.advance(1)
            if np.isnan(values[row]):
                continue
            try:
                group = canonicalise(str(psmiles).strip()).group
            except PolymerError as error:
                count[error.reason] += 1
                continue
            if fold is not None and not float(fold[row]).is_integer():
                raise InputError(f"{path} has no whole number in column {FOLD} of row {row + 1}; mend it or remove the column")
            found.setdefault(group, []).append(row)
    count["of a polymer that came before"] = sum(len(own) - 1 for own in found.values())
    if fold is not None:
        count["in another fold than the first row of their polymer"] = sum(int((fold[own] != fold[own[0]]).sum()) for own in found.values())
    firsts = [own[0] for own in found.values()]
    return PropertyTable(
        name,
        path,
        column,
        tuple(str(rows[psmiles_column][row]).strip() for row in firsts),
        tuple(found),
        np.array([values[own].mean() for own in found.values()]),
        None if fold is None else fold[firsts].astype(np.int64),
        dict(count),
    )


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


def check_table(table: PropertyTable, usable: NDArray[np.bool_], why: str) -> None:
    """Refuse a table that no regression can be judged on.

    Args:
        table: its polymers.
        usable: (P,) those that are left.
        why: what the others lack.

    Raises:
        InputError: too few polymers, one value alone, or one fold alone.
    """
    where = f"{table.path}, column {table.column}:"
    if usable.sum() < FEWEST:
        raise InputError(
            f"{where} {int(usable.sum())} of {len(usable)} polymers with a value {why}, at least {FEWEST} are needed; build shards from"
            f" this table (python -m data_shards.build --input {table.path})"
        )
    if len(np.unique(table.values[usable])) < 2:
        raise InputError(f"{where} every polymer has the value {table.values[usable][0]:g}; name another column")
    if table.fold is not None and len(np.unique(table.fold[usable])) < 2:
        raise InputError(f"{where} every polymer is in fold {table.fold[usable][0]}, at least 2 folds are needed; mend the column {FOLD}")


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
