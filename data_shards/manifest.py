"""manifest.json: what a shard folder holds, and the funnel that led there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.errors import ShardError
from data_shards.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"
FUNNEL_NAME = "funnel.csv"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SampleEntry:
    """Where one polymer lies. ``offset`` and ``length`` span all tar members of the sample, headers included."""

    key: str
    psmiles: str  # canonical
    group: str  # names the polymer rather than the string; splits never cut a group
    offset: int
    length: int
    num_units: int
    atoms_per_unit: int  # n, stars included
    num_conformations: int
    shard: str = ""  # file name; not stored, the shard entry has it


@dataclass(frozen=True)
class ShardEntry:
    """One tar file."""

    name: str
    num_samples: int
    bytes: int
    sha256: str
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True)
class Funnel:
    """How many polymers went in, were kept and were dropped, with the reason of each drop."""

    attempted: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole shard folder on one page."""

    recipe_digest: str
    recipe: dict[str, Any]
    input: dict[str, Any]  # source, digest of the rows read, number of rows
    created_by: dict[str, str]  # software versions
    funnel: Funnel
    splits: dict[str, tuple[ShardEntry, ...]]
    schema_version: int = SCHEMA_VERSION

    def shards(self) -> Iterator[tuple[str, ShardEntry]]:
        """(split, shard) in the order train, val, test."""
        for split in SPLITS:
            for shard in self.splits.get(split, ()):
                yield split, shard

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, splits and sha256s: two shard sets with one fingerprint hold the same samples."""
        digest = hashlib.sha256()
        for split, shard in self.shards():
            digest.update(f"{split} {shard.name} {shard.sha256}\n".encode())
        return digest.hexdigest()

    def to_json(self) -> str:
        """Deterministic JSON text."""
        data = asdict(self)
        for shards in data["splits"].values():
            for shard in shards:
                for sample in shard["samples"]:
                    del sample["shard"]
        return json.dumps(data, sort_keys=True, indent=1, allow_nan=False) + "\n"


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """A manifest from its JSON text.

    Args:
        text: content of manifest.json.
        where: address for messages.

    Raises:
        ShardError: not JSON, another schema version, or a field that is missing or of another type.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ShardError(f"{where} is torn or not JSON ({error}); copy it again or rebuild the shards") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{where} has schema version {version}, this program reads {SCHEMA_VERSION}; rebuild the shards with data_shards.build"
        )
    try:
        splits = {split: tuple(_shard_entry(shard) for shard in data["splits"][split]) for split in SPLITS}
        return Manifest(**{**data, "funnel": Funnel(**data["funnel"]), "splits": splits})
    except (KeyError, TypeError) as error:
        raise ShardError(f"{where} lacks a field or has one too many ({error}); rebuild the shards with data_shards.build") from None


def _shard_entry(data: dict[str, Any]) -> ShardEntry:
    samples = tuple(replace(SampleEntry(**sample), shard=data["name"]) for sample in data["samples"])
    return ShardEntry(**{**data, "samples": samples})


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file that either exists whole or not at all.

    Args:
        path: final name; the folder exists.
        data: content.
        durable: flush to the disk before the rename.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)
