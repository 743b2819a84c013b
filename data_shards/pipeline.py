"""The preprocessing graph, top to bottom: source > standardise > plan > conform > quality > shards > manifest.

Ray carries the stages that cost something (standardise; conform with quality). The driver keeps the plan and one staged file per finished
polymer of an unfinished shard, so that a killed build goes on where it stopped, and writes each shard when its last polymer is done.
"""

from __future__ import annotations

import csv
import io
import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from data_shards.crew import HARD_LIMIT_FACTOR, Crash, Unordered, crew
from data_shards.errors import InputError
from data_shards.funnel import funnel_json, funnel_table
from data_shards.manifest import (
    BUILD_LOG_NAME,
    FUNNEL_NAME,
    FUNNEL_SUMMARIES,
    MANIFEST_NAME,
    SPLITS,
    Funnel,
    Manifest,
    ShardEntry,
    manifest_lines,
    write_atomic,
)
from data_shards.plan import Plan, Seconds
from data_shards.progress import Progress, Silent
from data_shards.recipe import BuildRecipe
from data_shards.schema import SCHEMA_VERSION
from data_shards.sources import Source
from data_shards.sources.table import Row
from data_shards.stages import Dropped, Finished, Outcome, Standard, conform, standardise, versions
from data_shards.staging import PLAN_NAME, NothingUsable, Staging, check_out, open_staging, remove_old, whole_shards
from data_shards.store import Store, open_store
from data_shards.writer import ShardWriter

ROWS_PER_TASK = 64  # a row takes about a millisecond, too little for a task of its own


@dataclass(frozen=True)
class Summary:
    """What a build left."""

    funnel: Funnel
    splits: dict[str, tuple[int, int, int]]  # shards, samples, bytes
    rebuilt: tuple[str, ...] = ()  # files of a committed build that were damaged and made again
    seconds: Seconds | None = None


def build(
    recipe: BuildRecipe,
    source: Source,
    out: str | Path,
    *,
    source_name: str = "table",
    workers: int | None = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Polymers in, shard set out. The bytes depend on the recipe and the rows, not on the workers or on interruptions.

    Where this very build lies in ``out`` already, only what is damaged there is made again.

    Args:
        recipe: decides every byte.
        source: polymers as written.
        out: folder or fsspec address of the shards; made here.
        source_name: for the manifest, and for the reader of structures.
        workers: processes; None takes every CPU, 0 works in this process without Ray.
        overwrite: replace another build in ``out``.
        progress: where to report.

    Raises:
        InputError: ``out`` is taken or cannot be reached, or no row could be used. Then nothing was written.
    """
    progress = progress or Silent()
    start = time.monotonic()
    store = open_store(out)
    digest = rows_digest(source.rows())
    committed = check_out(store, recipe, digest, overwrite)
    entries, drops, damaged = ([], {}, []) if committed is None else whole_shards(store, committed)
    if committed is not None and not damaged:
        store.clear()
        progress.say(f"{store.name} holds this build already, and every checksum is right")
        return summary_of(committed)
    with (
        open_staging(store, recipe, digest) as staging,
        crew(workers) as unordered,
        closing(Plan(staging.path / PLAN_NAME, recipe)) as plan,
    ):
        standardise_all(plan, source, unordered, progress)
        plan.arrange()
        check_plan(plan)
        if committed is not None:
            progress.say(f"making again: {', '.join(damaged)}")
            plan.adopt(entries, drops)
        target = Target(store, staging, direct=committed is None and store.read(MANIFEST_NAME) is None)
        conform_all(plan, source, source_name, target, unordered, progress)
        head = {
            "schema_version": SCHEMA_VERSION,
            "recipe_digest": recipe.digest,
            "recipe": recipe.model_dump(mode="json"),
            "input": {"source": source_name, "num_rows": plan.num_rows, "rows_sha256": digest, **source.facts()},
            "created_by": versions(),
        }
        if committed is not None:
            check_rebuilt(plan, committed)
        summary = publish(plan, head, target, tuple(damaged))
        log = {"seconds": round(time.monotonic() - start, 1), "workers": workers, "core_sec": asdict(plan.seconds()), **peak_memory()}
        target.write(BUILD_LOG_NAME, [json.dumps(log, indent=1, sort_keys=True).encode() + b"\n"])
        return summary


def dry_run(recipe: BuildRecipe, source: Source, progress: Progress) -> Plan:
    """The plan alone, in memory."""
    plan = Plan(":memory:", recipe)
    with crew(0) as unordered:
        standardise_all(plan, source, unordered, progress)
    plan.arrange()
    return plan


def summary_of(manifest: Manifest) -> Summary:
    """The summary of a committed build."""
    splits = {name: (len(found), sum(s.num_samples for s in found), sum(s.bytes for s in found)) for name, found in manifest.splits.items()}
    return Summary(manifest.funnel, splits)


def peak_memory() -> dict[str, float]:
    """Peak resident memory of this process."""
    return {"driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


# source > standardise > plan


def rows_digest(rows: Iterable[Row]) -> str:
    """sha256 of what was read, whatever file format it came from.

    Raises:
        InputError: there is no row.
    """
    digest, empty = sha256(), True
    for row in rows:
        empty = False
        digest.update(json.dumps([row.number, row.psmiles, row.labels, row.record], sort_keys=True).encode() + b"\n")
    if empty:
        raise InputError("the source has no row; give at least one polymer")
    return digest.hexdigest()


def standardise_all(plan: Plan, source: Source, unordered: Unordered, progress: Progress) -> None:
    """Understand every row."""
    plan.load(source.rows())
    with progress.stage("standardise", plan.num_rows, plan.num_understood, unit="rows") as bar:
        _standardise(plan, plan.waiting(ROWS_PER_TASK), unordered, bar.advance)


def _standardise(plan: Plan, chunks: Iterable[list[Row]], unordered: Unordered, advance: Callable[[int], None]) -> None:
    recipe = plan.recipe
    for chunk, answer in unordered(partial(_standardise_chunk, recipe), chunks, recipe.time_limit_sec * ROWS_PER_TASK):
        if not isinstance(answer.value, Crash):
            plan.record(answer.value)
            advance(len(chunk))
        elif len(chunk) > 1:  # find the row that kills workers
            _standardise(plan, ([row] for row in chunk), unordered, advance)
        else:
            plan.record([_crashed(recipe, chunk[0], answer.value)])
            advance(1)


def _standardise_chunk(recipe: BuildRecipe, rows: Sequence[Row]) -> list[Standard | Dropped]:
    return [standardise(recipe, row) for row in rows]


def _crashed(recipe: BuildRecipe, row: Row, crash: Crash) -> Dropped:
    overdue = crash.seconds > recipe.time_limit_sec * HARD_LIMIT_FACTOR
    return Dropped(row.number, row.psmiles, "timeout" if overdue else "error:WorkerCrashed", crash.detail)


def check_plan(plan: Plan) -> None:
    """Is there anything to build and to train on?

    Raises:
        NothingUsable: no.
    """
    if plan.num_chains == 0:
        first = plan.first_dropped()
        assert first is not None
        raise NothingUsable(f"no usable polymer in {plan.num_rows} rows (first: {first.psmiles!r}, {first.detail})")
    names = [*plan.shards(finished=False), *plan.shards(finished=True)]
    if not any(name.startswith("train") for name in names):
        raise NothingUsable(f"all {plan.num_chains} polymers are to go to test; leave some for training in --to-test")


# conform > quality > shards


@dataclass(frozen=True)
class Target:
    """Where files of the set go: straight to their place, or first aside where an older set must stay whole until the new one is."""

    store: Store
    staging: Staging
    direct: bool

    def write(self, name: str, parts: Iterable[bytes]) -> str:
        """A file in its place; its sha256."""
        digest = write_atomic(self.staging.path / name, parts)
        self.store.place(self.staging.path / name, name)
        return digest

    def add_shard(self, name: str) -> None:
        """A shard that was written into the staging area."""
        if self.direct:
            self.store.place(self.staging.shards / name, name)

    def release(self, keep: set[str]) -> None:
        """Put what waits aside into its place and remove what is left of an older set."""
        remove_old(self.store, keep)
        for path in sorted(self.staging.shards.glob("*.tar")):
            self.store.place(path, path.name)


def conform_all(plan: Plan, source: Source, source_name: str, target: Target, unordered: Unordered, progress: Progress) -> None:
    """Bring every shard to its final bytes."""
    staging = target.staging
    left: dict[str, int] = {}  # shard -> polymers still out
    shard_of: dict[str, str] = {}
    lying = {*target.store.names(), *(path.name for path in staging.shards.iterdir())}
    plan.reopen(name for name in plan.shards(finished=True) if name not in lying and plan.has_samples(name))
    finished = plan.num_finished
    done = finished + staging.count()
    if done:
        progress.say(f"continuing: {done} of {plan.num_chains} polymers are done already")
    with progress.stage("conform", plan.num_chains, finished) as bar:

        def todo() -> Iterator[tuple[Standard, bytes]]:
            for shard in plan.shards(finished=False):
                waiting = [work for work in plan.chains(shard) if staging.get(work.key) is None]
                bar.advance(sum(1 for _ in plan.chains(shard)) - len(waiting))
                if not waiting:
                    finish_shard(plan, target, shard)
                    continue
                left[shard] = len(waiting)
                for work in waiting:
                    shard_of[work.key] = shard
                    yield work, source.payload(work.row.number) if work.row.record else b""

        function = partial(conform, plan.recipe, source_name)
        for (work, _), answer in unordered(function, todo(), plan.recipe.time_limit_sec):
            result = _crashed(plan.recipe, work.row, answer.value) if isinstance(answer.value, Crash) else answer.value
            staging.put(work.key, Outcome(result, answer.core_sec))
            shard = shard_of.pop(work.key)
            left[shard] -= 1
            bar.advance(1)
            if left[shard] == 0:
                del left[shard]
                finish_shard(plan, target, shard)


def finish_shard(plan: Plan, target: Target, name: str) -> None:
    """Write a shard whose polymers are all staged, note it in the plan, and let the staged polymers go."""
    dropped: list[Dropped] = []
    core_sec: dict[int, float] = {}
    works = list(plan.chains(name))
    with ShardWriter(target.staging.shards / name) as writer:
        for work in works:
            outcome = target.staging.get(work.key)
            assert outcome is not None, work.key
            core_sec[work.row.number] = outcome.core_sec
            if isinstance(outcome.result, Finished):
                writer.write(outcome.result.members, outcome.result.entry)
            else:
                dropped.append(outcome.result)
        entry = writer.commit() if len(dropped) < len(works) else ShardEntry(name, 0, 0, "", ())
    if entry.num_samples:
        target.add_shard(name)
    plan.finish(name, entry, dropped, core_sec)
    for work in works:
        target.staging.remove(work.key)


def check_rebuilt(plan: Plan, committed: Manifest) -> None:
    """Are the shards that were made again those of the manifest?

    Raises:
        InputError: no: this machine computes other bits.
    """
    wanted = {shard.name: shard.sha256 for _, shard in committed.shards()}
    for split in SPLITS:
        for shard in plan.entries(split):
            if wanted.get(shard.name) != shard.sha256:
                why = "another kind of processor, or a polymer met its time limit"
                raise InputError(
                    f"{shard.name} made again differs from the manifest ({why}); pass --overwrite to build the whole set again"
                )


# manifest


def publish(plan: Plan, head: dict[str, Any], target: Target, rebuilt: tuple[str, ...]) -> Summary:
    """Funnel and, last, the manifest that makes the shards a set."""
    funnel = plan.funnel()
    if funnel.kept == 0:
        first = plan.first_dropped()
        assert first is not None
        raise NothingUsable(f"none of {funnel.attempted} rows became a chain (first: {first.psmiles!r}, {first.detail})")
    kept = {shard.name for split in SPLITS for shard in plan.entries(split)}
    target.release(kept)
    texts = {
        FUNNEL_NAME: _funnel_csv(plan.dropped()),
        FUNNEL_SUMMARIES[0]: [funnel_json(plan)],
        FUNNEL_SUMMARIES[1]: [funnel_table(plan).encode()],
    }
    head["files"] = {name: target.write(name, parts) for name, parts in texts.items()}
    head["funnel"] = asdict(funnel)
    target.write(MANIFEST_NAME, manifest_lines(head, {split: plan.entries(split) for split in SPLITS}))
    splits = {}
    for split in SPLITS:
        sizes = [(shard.num_samples, shard.bytes) for shard in plan.entries(split)]
        splits[split] = (len(sizes), sum(count for count, _ in sizes), sum(size for _, size in sizes))
    return Summary(funnel, splits, rebuilt, plan.seconds())


def _funnel_csv(dropped: Iterable[Dropped]) -> Iterator[bytes]:
    """funnel.csv, a line at a time."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "psmiles", "reason", "detail"])
    for drop in dropped:
        table.writerow([drop.number, drop.psmiles, drop.reason, drop.detail])
        yield text.getvalue().encode("utf-8", "backslashreplace")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()
