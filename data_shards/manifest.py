"""manifest.json: what a shard folder holds, and the funnel that led there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_shards.errors import ShardError
from data_shards.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"
FUNNEL_NAME = "funnel.csv"  # every dropped row; FUNNEL_SUMMARIES tell how many for which reason
FUNNEL_SUMMARIES = ("funnel.json", "funnel.md")
BUILD_LOG_NAME = "build.json"  # seconds and memory: the one file that differs from run to run
SPLITS = ("train", "val", "test")
CHECKSUM = "manifest_sha256"


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
    files: dict[str, str] = field(default_factory=dict)  # sha256 of the funnel's files
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
        """The text of manifest.json."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "splits"}
        head["funnel"] = asdict(self.funnel)
        return b"".join(manifest_lines(head, self.splits)).decode()


def manifest_lines(head: Mapping[str, Any], splits: Mapping[str, Iterable[ShardEntry]]) -> Iterator[bytes]:
    """manifest.json line by line, so that a set of any size is written from constant memory. The last line is a checksum of all before it.

    Args:
        head: every field but the splits.
        splits: shards of each split, each taken once, in order.
    """
    digest = hashlib.sha256()

    def line(text: str) -> bytes:
        data = text.encode() + b"\n"
        digest.update(data)
        return data

    def dumps(value: object) -> str:
        return json.dumps(value, sort_keys=True, allow_nan=False)

    yield line("{")
    for name in sorted(head):
        yield line(f'"{name}": {dumps(head[name])},')
    yield line('"splits": {')
    for split in SPLITS:
        yield line(f'"{split}": [')
        comma = ""
        for shard in splits.get(split, ()):
            facts = {f.name: getattr(shard, f.name) for f in fields(shard) if f.name != "samples"}
            yield line(f'{comma}{dumps(facts)[:-1]}, "samples": [')
            last = len(shard.samples) - 1
            for index, sample in enumerate(shard.samples):
                values = {f.name: getattr(sample, f.name) for f in fields(sample) if f.name != "shard"}
                yield line(dumps(values) + ("," if index < last else ""))
            yield line("]}")
            comma = ","
        yield line("]" if split == SPLITS[-1] else "],")
    yield line("},")
    yield f'"{CHECKSUM}": "{digest.hexdigest()}"\n}}\n'.encode()


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """A manifest from its JSON text.

    Args:
        text: content of manifest.json.
        where: address for messages.

    Raises:
        ShardError: not JSON, changed since it was written, of another schema version, or a field that is missing or of another type.
    """
    text = text.encode() if isinstance(text, str) else text
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} is torn or not JSON ({error}); copy it again or rebuild the shards") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{where} has schema version {version}, this program reads {SCHEMA_VERSION}; rebuild the shards with data_shards.build"
        )
    body, found, _ = text.rpartition(f'"{CHECKSUM}": '.encode())
    checksum = data.pop(CHECKSUM, None)
    if found and hashlib.sha256(body).hexdigest() != checksum:
        raise ShardError(f"{where} is not as it was written (its checksum differs); copy it again or rebuild the shards")
    try:
        splits = {split: tuple(shard_entry(shard) for shard in data["splits"][split]) for split in SPLITS}
        return Manifest(**{**data, "funnel": Funnel(**data["funnel"]), "splits": splits})
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{where} lacks a field or has one too many ({error}); rebuild the shards with data_shards.build") from None


def shard_entry(data: dict[str, Any]) -> ShardEntry:
    """A shard's entry from its JSON.

    Raises:
        TypeError: a field of another type, or a sample that reaches beyond the shard.
    """
    samples = tuple(SampleEntry(**{**sample, "shard": data["name"]}) for sample in data["samples"])
    entry = ShardEntry(**{**data, "samples": samples})
    if not (type(entry.name) is type(entry.sha256) is str and type(entry.bytes) is type(entry.num_samples) is int):
        raise TypeError(f"shard {entry.name!r:.60} with fields of another type")
    for s in samples:
        numbers = (s.offset, s.length, s.num_units, s.atoms_per_unit, s.num_conformations)
        if (
            not all(type(number) is int and number >= 0 for number in numbers)
            or s.offset + s.length > entry.bytes
            or type(s.key) is not str
        ):
            raise TypeError(f"sample {s.key!r:.60} with a field of another type, or beyond the end of {entry.name}")
    return entry


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, durable: bool = True) -> str:
    """Write a file that either exists whole or not at all.

    Args:
        path: final name; the folder exists.
        data: content, whole or in parts.
        durable: flush to the disk before the rename.

    Returns:
        sha256 of the content.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    with aside.open("wb") as file:
        for part in [data] if isinstance(data, bytes) else data:
            digest.update(part)
            file.write(part)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)
    return digest.hexdigest()
