"""The output folder while a build runs: who may write there, what is finished already, what is cleaned up.

``out/.staging`` holds one file per finished polymer. It makes a killed build resumable and goes away when the manifest is written.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import InputError
from data_shards.manifest import FUNNEL_NAME, MANIFEST_NAME, Manifest, parse_manifest, write_atomic
from data_shards.recipe import BuildRecipe
from data_shards.stages import Dropped, Finished, from_staged, to_staged, versions

STAGING_NAME = ".staging"
_IDENTITY_NAME = "build.json"
_OURS = re.compile(rf"(train|val|test)-\d{{6}}\.tar|{re.escape(FUNNEL_NAME)}|{re.escape(MANIFEST_NAME)}|\..*\.\d+\.tmp")


class Staging:
    """Finished polymers of one build, one file each.

    Args:
        path: folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, key: str, outcome: Finished | Dropped) -> None:
        """Keep an outcome. A file torn by a power cut is noticed by `get`, so no flush is needed."""
        path = self._file(key)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, to_staged(outcome), durable=False)

    def get(self, key: str) -> Finished | Dropped | None:
        """An outcome, or None where the polymer is still to be done."""
        path = self._file(key)
        return from_staged(path.read_bytes()) if path.exists() else None

    def _file(self, key: str) -> Path:
        return self.path / key[:2] / key


def identity(recipe: BuildRecipe, rows_digest: str) -> dict[str, object]:
    """What must agree for one build to continue another."""
    return {"recipe_digest": recipe.digest, "rows_sha256": rows_digest, "created_by": versions()}


def check_out(out: Path, recipe: BuildRecipe, rows_digest: str, overwrite: bool) -> Manifest | None:
    """Whether a build may write to `out`. Writes nothing.

    Returns:
        The manifest where exactly this build was committed and only its clean-up was interrupted, else None.

    Raises:
        InputError: the folder is taken and `overwrite` is False.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; pass a folder with --out")
    if not out.exists() or overwrite:
        return None
    same = _staged_identity(out) == identity(recipe, rows_digest)
    if (out / MANIFEST_NAME).exists():
        if same:
            return parse_manifest((out / MANIFEST_NAME).read_bytes(), str(out / MANIFEST_NAME))
        raise InputError(f"{out} already holds shards; pass --overwrite to replace them, or another --out")
    if (out / STAGING_NAME).exists():
        if same:
            return None
        reason = "of another recipe, table or software version"
        raise InputError(f"{out} holds an unfinished build {reason}; pass --overwrite to start afresh, or another --out")
    if any(out.iterdir()):
        raise InputError(f"{out} holds other files; pass --overwrite to build there all the same, or another --out")
    return None


@contextmanager
def open_staging(out: Path, recipe: BuildRecipe, rows_digest: str) -> Iterator[Staging]:
    """The staging area of this build, continued where it is there already, removed when the block ends well.

    Raises:
        InputError: another process is building there.
    """
    path = out / STAGING_NAME
    new = not out.exists()
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is building {out}; wait for it, or pass another --out") from None
        mine = identity(recipe, rows_digest)
        if _staged_identity(out) != mine:
            for old in path.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            write_atomic(path / _IDENTITY_NAME, json.dumps(mine, sort_keys=True, indent=1).encode())
        try:
            yield Staging(path)
        except InputError:  # nothing came of it and nothing would the next time
            shutil.rmtree(path)
            if new:
                out.rmdir()
            raise
        shutil.rmtree(path)


def remove_staging(out: Path) -> None:
    """Finish the clean-up of a committed build."""
    shutil.rmtree(out / STAGING_NAME, ignore_errors=True)


def remove_old(out: Path) -> None:
    """Remove an older build's files, the manifest first, so that no reader takes half a shard set for a whole one."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for path in out.iterdir():
        if path.is_file() and _OURS.fullmatch(path.name):
            path.unlink()


def _staged_identity(out: Path) -> object:
    try:
        return json.loads((out / STAGING_NAME / _IDENTITY_NAME).read_bytes())
    except (OSError, ValueError):
        return None
