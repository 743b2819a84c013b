"""A build while it runs: may it write there, what is finished already, what is cleaned up.

The staging folder holds the plan, one file per finished polymer of an unfinished shard, and shards that wait for the old set to go.
It makes a killed build resumable and goes away when the manifest is written.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_shards.errors import InputError, ShardError
from data_shards.manifest import (
    BUILD_LOG_NAME,
    FUNNEL_NAME,
    FUNNEL_SUMMARIES,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    parse_manifest,
    write_atomic,
)
from data_shards.recipe import BuildRecipe
from data_shards.stages import Dropped, Outcome, from_staged, to_staged, versions
from data_shards.store import Store

PLAN_NAME = "plan.sqlite"
_IDENTITY_NAME = "build.json"
_FIXED = "|".join(re.escape(name) for name in (FUNNEL_NAME, *FUNNEL_SUMMARIES, BUILD_LOG_NAME, MANIFEST_NAME))
OURS = re.compile(rf"(train|val|test)-\d{{6}}\.tar|{_FIXED}|\..*\.\d+\.tmp")


class Staging:
    """Finished polymers of one build, one file each.

    Args:
        path: folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def shards(self) -> Path:
        """Folder of shards that are finished and not yet in their place."""
        return self.path / "shards"

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep an outcome. A file torn by a power cut is noticed by `get`, so no flush is needed."""
        path = self._file(key)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, to_staged(outcome), durable=False)

    def get(self, key: str) -> Outcome | None:
        """An outcome, or None where the polymer is still to be done."""
        path = self._file(key)
        return from_staged(path.read_bytes()) if path.exists() else None

    def remove(self, key: str) -> None:
        """Forget an outcome that has gone into its shard."""
        self._file(key).unlink(missing_ok=True)

    def count(self) -> int:
        """How many outcomes lie here."""
        return sum(1 for _ in self.path.glob("??/*"))

    def _file(self, key: str) -> Path:
        return self.path / key[:2] / key


def identity(recipe: BuildRecipe, rows_digest: str) -> dict[str, object]:
    """What must agree for one build to continue another."""
    return {"recipe_digest": recipe.digest, "rows_sha256": rows_digest, "created_by": versions()}


def check_out(store: Store, recipe: BuildRecipe, rows_digest: str, overwrite: bool) -> Manifest | None:
    """Whether a build may write there. Writes nothing.

    Returns:
        The manifest where exactly this build was committed before: its shards are kept as far as they are whole. Else None.

    Raises:
        InputError: the place is taken and `overwrite` is False.
    """
    mine = identity(recipe, rows_digest)
    if overwrite:
        return None
    text = store.read(MANIFEST_NAME)
    if text is not None:
        try:
            manifest = parse_manifest(text, f"{store.name}/{MANIFEST_NAME}")
        except ShardError as error:
            raise InputError(f"{error}; or pass --overwrite to build all of it again") from None
        theirs = {
            "recipe_digest": manifest.recipe_digest,
            "rows_sha256": manifest.input.get("rows_sha256"),
            "created_by": manifest.created_by,
        }
        if theirs == mine:
            return manifest
        difference = _difference(theirs, mine)
        raise InputError(f"{store.name} already holds shards {difference}; pass --overwrite to replace them, or another --out")
    if store.staging.exists():
        if staged_identity(store) == mine:
            return None
        reason = "of another recipe, table or software version"
        raise InputError(f"{store.name} holds an unfinished build {reason}; pass --overwrite to start afresh, or another --out")
    if store.names():
        raise InputError(f"{store.name} holds other files; pass --overwrite to build there all the same, or another --out")
    return None


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    names = {"recipe_digest": "another recipe", "rows_sha256": "other rows", "created_by": "other software versions"}
    return "of " + " and ".join(words for name, words in names.items() if theirs[name] != mine[name])


@contextmanager
def open_staging(store: Store, recipe: BuildRecipe, rows_digest: str) -> Iterator[Staging]:
    """The staging area of this build, continued where it is there already, removed when the block ends well.

    Raises:
        InputError: another process is building there.
    """
    path = store.staging
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is building {store.name}; wait for it, or pass another --out") from None
        mine = identity(recipe, rows_digest)
        if staged_identity(store) != mine:
            for old in path.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
                elif old.name != "lock":
                    old.unlink()
            write_atomic(path / _IDENTITY_NAME, json.dumps(mine, sort_keys=True, indent=1).encode())
        staging = Staging(path)
        staging.shards.mkdir(exist_ok=True)
        try:
            yield staging
        except NothingUsable:  # nothing came of it and nothing would the next time
            store.clear()
            raise
        store.clear()


class NothingUsable(InputError):
    """A build that would write no sample at all."""


def staged_identity(store: Store) -> object:
    """What the staging area belongs to, None where there is none."""
    try:
        return json.loads((store.staging / _IDENTITY_NAME).read_bytes())
    except (OSError, ValueError):
        return None


def remove_old(store: Store, keep: set[str]) -> None:
    """Remove an older build's files, the manifest first, so that no reader takes half a shard set for a whole one."""
    store.remove(MANIFEST_NAME)
    for name in store.names():
        if OURS.fullmatch(name) and name not in keep:
            store.remove(name)


def whole_shards(store: Store, manifest: Manifest) -> tuple[list[ShardEntry], dict[int, Dropped], list[str]]:
    """What can be kept of a committed build.

    Returns:
        Shards that lie there with the bytes that the manifest names; the drops of funnel.csv, by row, empty where that file is damaged; the
        names of the files that are damaged, missing or not listed.
    """
    entries, damaged = [], []
    for _, shard in manifest.shards():
        whole = store.sha256(shard.name) == shard.sha256
        entries += [shard] if whole else []
        damaged += [] if whole else [shard.name]
    damaged += [name for name, sha256 in manifest.files.items() if store.sha256(name) != sha256]
    listed = {shard.name for _, shard in manifest.shards()}
    damaged += [name for name in store.names() if name.endswith(".tar") and OURS.fullmatch(name) and name not in listed]
    dropped = {}
    if FUNNEL_NAME not in damaged:
        table = csv.DictReader(io.StringIO((store.read(FUNNEL_NAME) or b"").decode()))
        dropped = {int(row["row"]): Dropped(int(row["row"]), row["psmiles"], row["reason"], row["detail"]) for row in table}
    return entries, dropped, damaged
