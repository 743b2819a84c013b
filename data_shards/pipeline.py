"""The preprocessing graph, top to bottom: source > standardise > dedupe > conform > quality > split > write.

Ray carries the stages that cost something (standardise; conform with quality). The driver keeps one staged file per finished polymer, so
that a killed build goes on where it stopped, and writes the shards in an order that no completion order can change.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.errors import InputError
from data_shards.manifest import FUNNEL_NAME, MANIFEST_NAME, SPLITS, Funnel, Manifest, ShardEntry, write_atomic
from data_shards.progress import Progress, Silent
from data_shards.recipe import BuildRecipe
from data_shards.sources.table import Row
from data_shards.stages import HARD_LIMIT_FACTOR, Dropped, Finished, Standard, conform, hard_limit, standardise, versions
from data_shards.staging import Staging, check_out, open_staging, remove_old, remove_staging
from data_shards.writer import ShardWriter

ROWS_PER_TASK = 64  # a row takes about a millisecond, too little for a task of its own
CRASH_RETRIES = 1  # a lost node deserves a second try; a polymer that kills its worker twice is dropped
SMALLEST_SPLIT_SET = 10  # from here on val and test are never empty
OBJECT_STORE_BYTES = 256 * 2**20  # results wait there only until the driver has staged them


@dataclass(frozen=True)
class Crash:
    """What a task leaves when its worker process dies under it."""

    detail: str
    seconds: float  # from submission


Unordered = Callable[[Callable[[Any], Any], Sequence[Any], float], Iterator[tuple[int, Any]]]
"""(function, items, limit in seconds) -> (index of the item, result or Crash), in any order."""


@dataclass(frozen=True)
class Plan:
    """What a build will do, before anything costly or written."""

    recipe: BuildRecipe
    source: str
    num_rows: int
    rows_sha256: str
    work: list[Standard]  # unique polymers, by key
    dropped: list[Dropped]


def build(
    recipe: BuildRecipe,
    rows: Sequence[Row],
    out: Path,
    *,
    source: str = "table",
    workers: int | None = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Polymers in, shard folder out. The bytes depend on the recipe and the rows, not on the workers or on interruptions.

    Args:
        recipe: decides every byte.
        rows: polymers as written.
        out: folder of the shards; made here.
        source: name of the source, for the manifest.
        workers: processes; None takes every CPU, 0 works in this process without Ray.
        overwrite: replace another build in `out`.
        progress: where to report.

    Returns:
        The manifest as written.

    Raises:
        InputError: `out` is taken, or no row could be used. Then nothing was written.
    """
    progress = progress or Silent()
    digest = rows_digest(rows)
    committed = check_out(out, recipe, digest, overwrite)
    if committed is not None:
        remove_staging(out)
        return committed
    with crew(workers) as unordered:
        plan = prepare(recipe, rows, source, unordered, progress)
        if not plan.work:
            raise InputError(f"no usable polymer in {len(rows)} rows (first: {plan.dropped[0].psmiles!r}, {plan.dropped[0].detail})")
        with open_staging(out, recipe, digest) as staging:
            dropped = conform_all(plan, staging, unordered, progress)
            return publish(plan, dropped, staging, out, progress)


# source > standardise > dedupe


def rows_digest(rows: Sequence[Row]) -> str:
    """sha256 of what was read, whatever file format it came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.number, row.psmiles, row.labels], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def prepare(recipe: BuildRecipe, rows: Sequence[Row], source: str, unordered: Unordered, progress: Progress) -> Plan:
    """Understand every row and keep the first of each chain; writes nothing."""
    with progress.stage("standardise", len(rows), unit="rows") as bar:
        understood = _standardise_all(recipe, rows, ROWS_PER_TASK, unordered, bar.advance)
    first: dict[str, Standard] = {}
    dropped = []
    for row in rows:
        item = understood[row.number]
        if isinstance(item, Dropped):
            dropped.append(item)
        elif item.key in first:
            dropped.append(Dropped(row.number, row.psmiles, "duplicate", f"the same chain as row {first[item.key].row.number}"))
        else:
            first[item.key] = item
    return Plan(recipe, source, len(rows), rows_digest(rows), [first[key] for key in sorted(first)], dropped)


def _standardise_all(
    recipe: BuildRecipe, rows: Sequence[Row], per_task: int, unordered: Unordered, advance: Callable[[int], None]
) -> dict[int, Standard | Dropped]:
    chunks = [rows[start : start + per_task] for start in range(0, len(rows), per_task)]
    understood: dict[int, Standard | Dropped] = {}
    for index, answer in unordered(partial(_standardise_chunk, recipe), chunks, recipe.time_limit_sec * per_task):
        chunk = chunks[index]
        if not isinstance(answer, Crash):
            understood.update(zip((row.number for row in chunk), answer, strict=True))
            advance(len(chunk))
        elif per_task > 1:  # find the row that kills workers
            understood.update(_standardise_all(recipe, chunk, 1, unordered, advance))
        else:
            understood[chunk[0].number] = _crashed(recipe, chunk[0], answer)
            advance(1)
    return understood


def _standardise_chunk(recipe: BuildRecipe, rows: Sequence[Row]) -> list[Standard | Dropped]:
    return [standardise(recipe, row) for row in rows]


def _crashed(recipe: BuildRecipe, row: Row, crash: Crash) -> Dropped:
    overdue = crash.seconds > recipe.time_limit_sec * HARD_LIMIT_FACTOR
    return Dropped(row.number, row.psmiles, "timeout" if overdue else "error:WorkerCrashed", crash.detail)


# conform > quality


def conform_all(plan: Plan, staging: Staging, unordered: Unordered, progress: Progress) -> dict[str, Dropped]:
    """Bring every polymer's outcome into the staging area.

    Returns:
        key -> why, of those that did not become a sample.
    """
    dropped: dict[str, Dropped] = {}
    waiting = []
    for work in plan.work:
        found = staging.get(work.key)
        if found is None:
            waiting.append(work)
        elif isinstance(found, Dropped):
            dropped[work.key] = found
    done = len(plan.work) - len(waiting)
    if done:
        progress.say(f"continuing: {done} of {len(plan.work)} polymers are done already")
    with progress.stage("conform", len(plan.work), done) as bar:
        for index, answer in unordered(partial(conform, plan.recipe), waiting, plan.recipe.time_limit_sec):
            work = waiting[index]
            outcome = _crashed(plan.recipe, work.row, answer) if isinstance(answer, Crash) else answer
            staging.put(work.key, outcome)
            if isinstance(outcome, Dropped):
                dropped[work.key] = outcome
            bar.advance(1, note=f"dropped {len(dropped)}")
    return dropped


# split


def split_groups(recipe: BuildRecipe, groups: Sequence[str]) -> dict[str, str]:
    """Split of every polymer group, by the rank of its hash.

    A rank rather than a threshold, so that small sets are filled too: from `SMALLEST_SPLIT_SET` polymers on, val and test hold at least
    one group each wherever their fraction is above zero and there are groups enough.

    Args:
        recipe: fractions, seed, held-out groups.
        groups: group of every kept polymer, with repeats.

    Returns:
        group -> train | val | test.
    """
    names = sorted(set(groups), key=lambda group: hashlib.sha1(f"{recipe.split_seed}:{group}".encode()).hexdigest())
    held = [name for name in names if name in recipe.holdout]
    free = [name for name in names if name not in recipe.holdout]
    at_least = 1 if len(groups) >= SMALLEST_SPLIT_SET else 0

    def wanted(fraction: float) -> int:
        return max(round(fraction * len(names)), at_least) if fraction > 0 else 0

    num_test = min(max(wanted(recipe.test_fraction) - len(held), 0), max(len(free) - 1, 0))
    num_val = min(wanted(recipe.val_fraction), max(len(free) - num_test - 1, 0))
    split = dict.fromkeys(held + free[:num_test], "test")
    split.update(dict.fromkeys(free[num_test : num_test + num_val], "val"))
    split.update(dict.fromkeys(free[num_test + num_val :], "train"))
    return split


# write


def publish(plan: Plan, failed: dict[str, Dropped], staging: Staging, out: Path, progress: Progress) -> Manifest:
    """Shards, funnel.csv and, last, the manifest that makes them a shard set."""
    kept = [work for work in plan.work if work.key not in failed]  # by key: shuffled, and the same in whatever order they finished
    dropped = sorted([*plan.dropped, *failed.values()], key=lambda drop: drop.number)
    if not kept:
        raise InputError(f"none of {plan.num_rows} rows became a chain (first: {dropped[0].psmiles!r}, {dropped[0].detail})")
    split_of = split_groups(plan.recipe, [work.group for work in kept])
    if "train" not in split_of.values():
        raise InputError(f"all {len(kept)} polymers are held out; leave some for training in --holdout")
    remove_old(out)
    splits: dict[str, tuple[ShardEntry, ...]] = {}
    size = plan.recipe.samples_per_shard
    with progress.stage("write", len(kept), unit="samples") as bar:
        for split in SPLITS:
            mine = [work.key for work in kept if split_of[work.group] == split]
            parts = [mine[start : start + size] for start in range(0, len(mine), size)]
            splits[split] = tuple(
                _write_shard(out / f"{split}-{index:06d}.tar", part, staging, bar.advance) for index, part in enumerate(parts)
            )
    manifest = Manifest(
        recipe_digest=plan.recipe.digest,
        recipe=plan.recipe.model_dump(mode="json"),
        input={"source": plan.source, "num_rows": plan.num_rows, "rows_sha256": plan.rows_sha256},
        created_by=versions(),
        funnel=Funnel(plan.num_rows, len(kept), dict(sorted(Counter(drop.reason for drop in dropped).items()))),
        splits=splits,
    )
    write_atomic(out / FUNNEL_NAME, _funnel_csv(dropped))
    write_atomic(out / MANIFEST_NAME, manifest.to_json().encode())
    return manifest


def _write_shard(path: Path, keys: Sequence[str], staging: Staging, advance: Callable[[int], None]) -> ShardEntry:
    with ShardWriter(path) as writer:
        for key in keys:
            found = staging.get(key)
            assert isinstance(found, Finished), key
            writer.write(found.members, found.entry)
            advance(1)
        return writer.commit()


def _funnel_csv(dropped: Sequence[Dropped]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "psmiles", "reason", "detail"])
    table.writerows([drop.number, drop.psmiles, drop.reason, drop.detail] for drop in dropped)
    return text.getvalue().encode()


# who does the work


def crew(workers: int | None) -> AbstractContextManager[Unordered]:
    """Something that maps a function over items: this process (0 workers) or Ray tasks."""
    return _alone() if workers == 0 else _ray_crew(workers)


@contextmanager
def _alone() -> Iterator[Unordered]:
    def unordered(function: Callable[[Any], Any], items: Sequence[Any], limit_sec: float) -> Iterator[tuple[int, Any]]:
        yield from ((index, function(item)) for index, item in enumerate(items))

    yield unordered


@contextmanager
def start_ray(workers: int | None) -> Iterator[None]:
    """Ray: the one already connected, else the cluster in RAY_ADDRESS, else one on this machine, stopped afterwards.

    Raises:
        InputError: the cluster in RAY_ADDRESS cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice about GPUs that no task here asks for
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": "error", "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ray.exceptions.AuthenticationError):
            why = "no cluster answers there, or it asks for an access token that this process does not have"
            raise InputError(f"cannot join Ray at RAY_ADDRESS={address}: {why}; mend or unset RAY_ADDRESS, or pass --workers 0") from None
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_crew(workers: int | None) -> Iterator[Unordered]:
    with start_ray(workers):
        import ray

        in_flight = (workers or int(ray.cluster_resources().get("CPU", 1))) + 2  # two wait, so that no worker does
        task = ray.remote(_in_worker).options(num_cpus=1, max_retries=0)

        def unordered(function: Callable[[Any], Any], items: Sequence[Any], limit_sec: float) -> Iterator[tuple[int, Any]]:
            shared = ray.put(function)
            waiting = deque((index, 0) for index in range(len(items)))
            running: dict[Any, tuple[int, int, float]] = {}
            while waiting or running:
                while waiting and len(running) < in_flight:
                    index, tries = waiting.popleft()
                    running[task.remote(shared, items[index], limit_sec * HARD_LIMIT_FACTOR)] = (index, tries, time.monotonic())
                (done,), _ = ray.wait(list(running), num_returns=1)
                index, tries, start = running.pop(done)
                try:
                    yield index, ray.get(done)
                except ray.exceptions.RayTaskError:
                    raise  # our own code failed outside the guard: a defect, not a polymer
                except ray.exceptions.RayError as error:
                    seconds = time.monotonic() - start
                    if tries < CRASH_RETRIES and seconds < limit_sec * HARD_LIMIT_FACTOR:
                        waiting.append((index, tries + 1))
                    else:
                        yield index, Crash(f"the worker process died ({type(error).__name__})", seconds)

        yield unordered


def _in_worker(function: Callable[[Any], Any], item: Any, limit_sec: float) -> Any:
    with hard_limit(limit_sec):
        return function(item)
