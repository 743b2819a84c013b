"""How many polymers of a table lie in each split of a shard set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from data_shards.crew import Crash, crew
from data_shards.errors import PolymerError
from data_shards.manifest import SPLITS
from data_shards.progress import Progress
from data_shards.reader import ShardSet
from data_shards.sources import Source

ROWS_PER_TASK = 64
TIME_LIMIT_SEC = 300.0


@dataclass(frozen=True)
class Leak:
    """Polymers (not strings) of one table, by where they lie."""

    table: str
    rows: int
    useless: int  # rows that are no polymer
    polymers: int
    train: int
    val: int
    test: int
    none: int


def count_leaks(shards: ShardSet, tables: Mapping[str, Source], workers: int | None, progress: Progress) -> list[Leak]:
    """Compare tables with a shard set.

    Args:
        shards: opened.
        tables: name -> table.
        workers: as `crew`.
        progress: where to report.
    """
    split_of = {entry.group: split for split in SPLITS for entry in shards.samples(split)}
    found = []
    with crew(workers) as unordered, progress.stage("compare", len(tables), unit="tables") as bar:
        for name, source in tables.items():
            groups: set[str] = set()
            rows = useless = 0
            for chunk, answer in unordered(groups_of, _chunks(source), TIME_LIMIT_SEC):
                understood = [] if isinstance(answer.value, Crash) else [group for group in answer.value if group]
                rows += len(chunk)
                useless += len(chunk) - len(understood)
                groups.update(understood)
            where = Counter(split_of.get(group, "none") for group in groups)
            found.append(Leak(name, rows, useless, len(groups), where["train"], where["val"], where["test"], where["none"]))
            bar.advance()
    return found


def _chunks(source: Source) -> Iterator[list[str]]:
    rest = (row.psmiles for row in source.rows())
    while chunk := list(islice(rest, ROWS_PER_TASK)):
        yield chunk


def groups_of(psmiles: list[str]) -> list[str]:
    """Group of each P-SMILES, empty where it is no polymer."""
    from data_shards.chem.psmiles import canonicalise

    groups = []
    for text in psmiles:
        try:
            groups.append(canonicalise(text).group)
        except PolymerError:
            groups.append("")
    return groups
