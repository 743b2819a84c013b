"""The plan of a build: which row becomes which sample of which shard, decided before the first chain is built.

    rows > standardised > first of each chain > split by polymer > sorted by key, cut into shards

The plan is arithmetic of the rows and the recipe, so any worker, any order and any interruption lead to the same shards. It lies in a
SQLite file beside the staged polymers: the driver's memory does not grow with the number of rows, and a killed build continues.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from data_shards.manifest import SPLITS, Funnel, ShardEntry, shard_entry
from data_shards.recipe import BuildRecipe
from data_shards.sources.table import Row
from data_shards.stages import Dropped, Standard

SMALLEST_SPLIT_SET = 10  # from here on val and test are never planned empty
ROWS_PER_INSERT = 1000

FIRST = "SELECT min(number) FROM rows AS f WHERE f.key = rows.key"
TABLES = """
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY, psmiles TEXT, labels TEXT, record TEXT,
    key TEXT, canonical TEXT, polymer TEXT, num_units INTEGER, seed INTEGER,
    reason TEXT, detail TEXT, shard TEXT, core_sec REAL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, split TEXT, entry TEXT);
CREATE TABLE IF NOT EXISTS done (stage TEXT PRIMARY KEY);
CREATE INDEX IF NOT EXISTS by_key ON rows (key, number);
CREATE INDEX IF NOT EXISTS by_shard ON rows (shard, key);
CREATE INDEX IF NOT EXISTS by_reason ON rows (reason, number);
"""


@dataclass(frozen=True)
class Seconds:
    """Processor seconds of the polymers that were built."""

    count: int
    total: float
    median: float
    p95: float
    highest: float


class Plan:
    """The plan in its file. One process at a time writes it.

    Args:
        path: SQLite file, made where absent; ":memory:" for a dry run.
        recipe: of the build.
    """

    def __init__(self, path: Path | str, recipe: BuildRecipe) -> None:
        self.recipe = recipe
        self._db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL", "temp_store=FILE"):
            self._db.execute(f"PRAGMA {pragma}")  # exclusive: the log then needs no shared memory, which network disks lack
        self._db.create_function("rank_of", 1, self._rank, deterministic=True)
        self._db.executescript(TABLES)

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _rank(self, polymer: str) -> str:
        return hashlib.sha1(f"{self.recipe.split_seed}:{polymer}".encode()).hexdigest()

    def _one(self, query: str, *values: object) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _text(self, query: str, *values: object) -> str:
        return str(self._db.execute(query, values).fetchone()[0])

    def _stage_done(self, stage: str) -> bool:
        return self._one("SELECT count(*) FROM done WHERE stage = ?", stage) > 0

    # rows

    def load(self, rows: Iterable[Row]) -> None:
        """Take over the rows as written; once."""
        if self._stage_done("load"):
            return
        self._db.execute("DELETE FROM rows")
        rest = iter(rows)
        while chunk := list(islice(rest, ROWS_PER_INSERT)):
            values = [(row.number, row.psmiles, json.dumps(row.labels, sort_keys=True), row.record) for row in chunk]
            with self._db:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT INTO rows (number, psmiles, labels, record) VALUES (?, ?, ?, ?)", values)
        self._db.execute("INSERT INTO done VALUES ('load')")

    @property
    def num_rows(self) -> int:
        """Rows taken over."""
        return self._one("SELECT count(*) FROM rows")

    @property
    def num_understood(self) -> int:
        """Rows that `record` has seen."""
        return self.num_rows - self._one("SELECT count(*) FROM rows WHERE key IS NULL AND reason IS NULL")

    def waiting(self, count: int) -> Iterator[list[Row]]:
        """Rows that `record` has not seen yet, ``count`` at a time."""
        last = 0
        while True:
            query = (
                "SELECT number, psmiles, labels, record FROM rows"
                " WHERE key IS NULL AND reason IS NULL AND number > ? ORDER BY number LIMIT ?"
            )
            rows = [Row(n, p, json.loads(labels), record) for n, p, labels, record in self._db.execute(query, (last, count))]
            if not rows:
                return
            last = rows[-1].number
            yield rows

    def record(self, answers: Sequence[Standard | Dropped]) -> None:
        """Keep what standardising made of some rows."""
        with self._db:
            self._db.execute("BEGIN")
            for item in answers:
                if isinstance(item, Dropped):
                    self._drop(item)
                else:
                    values = (item.key, item.psmiles, item.group, item.num_units, item.seed, item.row.number)
                    self._db.execute("UPDATE rows SET key=?, canonical=?, polymer=?, num_units=?, seed=? WHERE number=?", values)

    def _drop(self, item: Dropped) -> None:
        self._db.execute("UPDATE rows SET reason=?, detail=? WHERE number=?", (item.reason, item.detail, item.number))

    # dedupe > split > shards

    def arrange(self) -> None:
        """Keep the first row of each chain, split by polymer, cut into shards; once."""
        if self._stage_done("arrange"):
            return
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute(
                f"UPDATE rows SET reason='duplicate', detail='the same chain as row ' || ({FIRST})"
                f" WHERE reason IS NULL AND number > ({FIRST})"
            )
            self._db.execute("CREATE TEMP TABLE held (polymer TEXT PRIMARY KEY)")
            self._db.executemany("INSERT INTO held VALUES (?)", [(polymer,) for polymer in self.recipe.to_test])
            self._db.execute(
                "CREATE TEMP TABLE polymers AS SELECT polymer, polymer IN held AS is_held,"
                " row_number() OVER (PARTITION BY polymer IN held ORDER BY rank_of(polymer)) - 1 AS place"
                " FROM (SELECT DISTINCT polymer FROM rows WHERE reason IS NULL)"
            )
            self._db.execute("CREATE INDEX temp.by_polymer ON polymers (polymer)")
            chains = self._one("SELECT count(*) FROM rows WHERE reason IS NULL")
            held = self._one("SELECT count(*) FROM polymers WHERE is_held")
            free = self._one("SELECT count(*) FROM polymers WHERE NOT is_held")
            num_val, num_test = split_sizes(self.recipe, chains, held, free)
            self._db.execute(
                "UPDATE rows SET shard = (SELECT CASE WHEN is_held OR place < ?1 THEN 'test'"
                " WHEN place < ?1 + ?2 THEN 'val' ELSE 'train' END"
                " FROM polymers WHERE polymers.polymer = rows.polymer) WHERE reason IS NULL",
                (num_test, num_val),
            )
            size = self.recipe.samples_per_shard
            self._db.execute(
                "UPDATE rows SET shard = placed.name FROM (SELECT number, printf('%s-%06d.tar', shard,"
                f" (row_number() OVER (PARTITION BY shard ORDER BY key) - 1) / {size}) AS name"
                " FROM rows WHERE reason IS NULL) AS placed WHERE placed.number = rows.number"
            )
            names = "SELECT DISTINCT shard, substr(shard, 1, instr(shard, '-') - 1), NULL FROM rows WHERE reason IS NULL"
            self._db.execute(f"INSERT INTO shards {names}")
            self._db.execute("INSERT INTO done VALUES ('arrange')")
            self._db.execute("DROP TABLE held")
            self._db.execute("DROP TABLE polymers")

    @property
    def num_chains(self) -> int:
        """Chains that belong into shards, built or to be built."""
        return self._one("SELECT count(*) FROM rows WHERE shard IS NOT NULL")

    @property
    def num_finished(self) -> int:
        """Chains in finished shards, dropped ones included."""
        return self._one("SELECT count(*) FROM rows JOIN shards ON shard = name WHERE entry IS NOT NULL")

    def shards(self, *, finished: bool) -> list[str]:
        """Names of the shards that are (not) finished, train first."""
        query = f"SELECT name, split FROM shards WHERE entry IS {'NOT' if finished else ''} NULL ORDER BY name"
        return [name for name, _ in sorted(self._db.execute(query), key=lambda found: SPLITS.index(found[1]))]

    def chains(self, shard: str) -> Iterator[Standard]:
        """Chains of a shard in its order, those included that were dropped later."""
        query = "SELECT number, psmiles, labels, record, canonical, polymer, num_units, key, seed FROM rows WHERE shard = ? ORDER BY key"
        for number, psmiles, labels, record, canonical, polymer, units, key, seed in self._db.execute(query, (shard,)).fetchall():
            yield Standard(Row(number, psmiles, json.loads(labels), record), canonical, polymer, units, key, seed)

    # outcomes

    def finish(self, name: str, entry: ShardEntry, dropped: Sequence[Dropped], core_sec: dict[int, float]) -> None:
        """Note that a shard has its final bytes.

        Args:
            name: of the shard.
            entry: as written; without samples where none of its chains could be built, and then it is no file.
            dropped: its chains that did not become samples.
            core_sec: row number -> processor seconds.
        """
        with self._db:
            self._db.execute("BEGIN")
            for item in dropped:
                self._drop(item)
            self._db.executemany("UPDATE rows SET core_sec=? WHERE number=?", [(s, n) for n, s in core_sec.items()])
            self._db.execute("UPDATE shards SET entry=? WHERE name=?", (json.dumps(asdict(entry)), name))

    def reopen(self, names: Iterable[str]) -> None:
        """Forget that some shards are finished: their files are gone."""
        self._db.executemany("UPDATE shards SET entry=NULL WHERE name=?", [(name,) for name in names])

    def has_samples(self, name: str) -> bool:
        """Whether a finished shard is a file."""
        return bool(shard_entry(json.loads(self._text("SELECT entry FROM shards WHERE name=?", name))).num_samples)

    def adopt(self, entries: Iterable[ShardEntry], drops: Mapping[int, Dropped]) -> None:
        """Take over shards of an earlier, committed run of this build, those whose every chain is a sample or has its reason.

        Args:
            entries: shards that are whole.
            drops: by row number.
        """
        for entry in entries:
            chains = [work.row.number for work in self.chains(entry.name)]
            lost = [drops[number] for number in chains if number in drops]
            if len(entry.samples) + len(lost) == len(chains):
                self.finish(entry.name, entry, lost, {})
        for name in self.shards(finished=False):  # none of their chains could be built: no file, and that is right
            chains = [work.row.number for work in self.chains(name)]
            if all(number in drops for number in chains):
                self.finish(name, ShardEntry(name, 0, 0, "", ()), [drops[number] for number in chains], {})

    def entries(self, split: str) -> Iterator[ShardEntry]:
        """Finished shards of a split with at least one sample, in order, one at a time."""
        query = "SELECT entry FROM shards WHERE split=? AND entry IS NOT NULL ORDER BY name"
        with closing(self._db.cursor()) as cursor:
            for (text,) in cursor.execute(query, (split,)):
                entry = shard_entry(json.loads(text))
                if entry.num_samples:
                    yield entry

    def funnel(self) -> Funnel:
        """How many rows were kept and why the others were not."""
        reasons = self._db.execute("SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason")
        dropped = {str(reason): int(count) for reason, count in reasons}
        total = self.num_rows
        return Funnel(total, total - sum(dropped.values()), dropped)

    def stages(self) -> list[tuple[str, dict[str, int]]]:
        """(stage, reason -> rows it dropped), in the order of the pipeline."""
        query = "SELECT shard NOT NULL, reason, count(*) FROM rows WHERE reason NOT NULL GROUP BY 1, 2 ORDER BY 2"
        found = self._db.execute(query).fetchall()
        before, late = ({str(reason): int(count) for is_late, reason, count in found if is_late == side} for side in (0, 1))
        named = {"hold out": "held-out", "one of each chain": "duplicate"}
        apart = {stage: {reason: before.pop(reason)} if reason in before else {} for stage, reason in named.items()}
        return [("standardise", before), *apart.items(), ("conform", late)]

    def polymers(self) -> tuple[int, int]:
        """Polymers (not strings or stereo forms) that were to be built, and those with at least one sample."""
        wanted = "SELECT count(DISTINCT polymer) FROM rows WHERE shard NOT NULL"
        return self._one(wanted), self._one(f"{wanted} AND reason IS NULL")

    def example(self, reason: str) -> Dropped:
        """The first row with a reason."""
        query = "SELECT number, psmiles, reason, detail FROM rows WHERE reason=? ORDER BY number LIMIT 1"
        return Dropped(*self._db.execute(query, (reason,)).fetchone())

    def dropped(self) -> Iterator[Dropped]:
        """Every row that did not become a sample, in the order of the rows."""
        query = "SELECT number, psmiles, reason, detail FROM rows WHERE reason IS NOT NULL ORDER BY number"
        with closing(self._db.cursor()) as cursor:
            for found in cursor.execute(query):
                yield Dropped(*found)

    def first_dropped(self) -> Dropped | None:
        """The first of them."""
        return next(self.dropped(), None)

    def seconds(self) -> Seconds:
        """What the polymers cost that this build (all its runs together) built."""
        count = self._one("SELECT count(core_sec) FROM rows")
        total = float(self._db.execute("SELECT coalesce(sum(core_sec), 0) FROM rows").fetchone()[0])

        def quantile(share: float) -> float:
            query = "SELECT core_sec FROM rows WHERE core_sec IS NOT NULL ORDER BY core_sec LIMIT 1 OFFSET ?"
            found = self._db.execute(query, (min(int(share * count), count - 1),)).fetchone() if count else (0.0,)
            return round(float(found[0]), 4)

        return Seconds(count, round(total, 2), quantile(0.5), quantile(0.95), quantile(1.0))


def split_sizes(recipe: BuildRecipe, num_chains: int, num_held: int, num_free: int) -> tuple[int, int]:
    """How many free polymers go to val and to test.

    A count rather than a threshold on the hash, so that small sets are filled too: from `SMALLEST_SPLIT_SET` chains on, val and test are
    planned with at least one polymer each wherever their fraction is above zero and there are polymers enough.

    Args:
        recipe: fractions.
        num_chains: chains to build.
        num_held: polymers that must go to test; they count towards its share.
        num_free: other polymers; at least one of them is left for training.
    """
    at_least = 1 if num_chains >= SMALLEST_SPLIT_SET else 0

    def wanted(fraction: float) -> int:
        return max(round(fraction * (num_held + num_free)), at_least) if fraction > 0 else 0

    num_test = min(max(wanted(recipe.test_fraction) - num_held, 0), max(num_free - 1, 0))
    return min(wanted(recipe.val_fraction), max(num_free - num_test - 1, 0)), num_test
