"""Shards to an object store: built on this disk, uploaded shard by shard, the manifest last."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec

from data_shards.errors import InputError
from data_shards.manifest import FUNNEL_NAME, MANIFEST_NAME, Manifest, parse_manifest
from data_shards.progress import Progress
from data_shards.recipe import BuildRecipe

SCRATCH = Path("shards") / ".upload"


def is_address(out: str) -> bool:
    """Whether `out` names an object store rather than a folder."""
    return "://" in out


def build_remote(
    url: str,
    recipe: BuildRecipe,
    rows_sha256: str,
    overwrite: bool,
    progress: Progress,
    build_local: Callable[[Path], Manifest],
) -> Manifest:
    """Build in a scratch folder of the working directory, then upload. A killed build or upload continues with the same command.

    Args:
        url: fsspec address of the shard folder.
        recipe: of the build.
        rows_sha256: digest of the rows.
        overwrite: replace shards that lie there.
        progress: where to report.
        build_local: builds into a folder and returns the manifest.

    Raises:
        InputError: the address cannot be used, or holds shards and `overwrite` is False.
    """
    try:
        fs, root = fsspec.core.url_to_fs(url)
        taken = fs.exists(f"{root}/{MANIFEST_NAME}")
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"{url} cannot be used ({error}); change --out") from None
    if taken and not overwrite:
        raise InputError(f"{url} already holds shards; pass --overwrite to replace them, or another --out")
    local = SCRATCH / hashlib.sha256(url.encode()).hexdigest()[:12]
    manifest = _finished(local, recipe, rows_sha256) or build_local(local)
    if taken:
        fs.rm(f"{root}/{MANIFEST_NAME}")
    names = [shard.name for _, shard in manifest.shards()]
    with progress.stage("upload", len(names), unit="shards") as bar:
        for name in names:
            fs.put_file(str(local / name), f"{root}/{name}")
            bar.advance()
    fs.put_file(str(local / FUNNEL_NAME), f"{root}/{FUNNEL_NAME}")
    fs.put_file(str(local / MANIFEST_NAME), f"{root}/{MANIFEST_NAME}")
    shutil.rmtree(local)
    return manifest


def _finished(local: Path, recipe: BuildRecipe, rows_sha256: str) -> Manifest | None:
    path = local / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = parse_manifest(path.read_bytes(), str(path))
    same = manifest.recipe_digest == recipe.digest and manifest.input.get("rows_sha256") == rows_sha256
    return manifest if same else None
