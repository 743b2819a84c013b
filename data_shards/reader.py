"""Read shards: the manifest, and one sample by its byte range (local disk or any fsspec address)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec.implementations.local

from data_shards.decoding import decode_any, members_of
from data_shards.errors import InputError, ShardError, StorageError
from data_shards.manifest import MANIFEST_NAME, SPLITS, Manifest, SampleEntry, ShardEntry, parse_manifest
from data_shards.schema import MOLECULE_ENGINES, MoleculeSample, PolymerSample
from data_shards.store import (
    CHECK,
    CHUNK_BYTES,
    StoredFile,
    check_bucket,
    disk_may_recover,
    may_pass,
    open_address,
    shown,
    storage_errors,
    with_patience,
)


@dataclass(frozen=True)
class ShardSet:
    """An opened shard folder.

    Attributes:
        path: address as given.
        manifest: parsed and checked.
    """

    path: str
    manifest: Manifest
    _fs: Any
    _root: str
    _reopened: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)  # process -> its connection
    _opened_by: int = field(default_factory=os.getpid, repr=False, compare=False)

    @property
    def of_molecules(self) -> bool:
        """Samples are molecules, not chains of polymers."""
        return self.manifest.recipe.get("engine") in MOLECULE_ENGINES

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' sha256s; equal fingerprints mean equal samples."""
        return self.manifest.fingerprint

    def samples(self, split: str) -> list[SampleEntry]:
        """Entries of one split in shard order.

        Raises:
            ShardError: no such split.
        """
        if split not in SPLITS:
            raise ShardError(f"split {split!r} must be one of {', '.join(SPLITS)}")
        return [sample for shard in self.manifest.splits[split] for sample in shard.samples]

    def address(self, shard: ShardEntry | str) -> str:
        """Full address of a shard, for fsspec or webdataset."""
        return str(self._fs.unstrip_protocol(self._inside(shard))) if self.is_remote else self._inside(shard)

    @property
    def is_remote(self) -> bool:
        """True unless the shards lie on this machine's disk."""
        return not isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    @property
    def _here(self) -> Any:
        """The file system for this process: the threads and sockets of an object store's do not survive a fork."""
        process = os.getpid()
        if process == self._opened_by or not self.is_remote:
            return self._fs
        if process not in self._reopened:
            self._reopened[process] = open_address(self.path)[0]
        return self._reopened[process]

    def names(self) -> list[str]:
        """Files that lie there, whether the manifest lists them or not."""
        with storage_errors(self.path, CHECK):
            return sorted(_sizes(self._here, self._root))

    def read_file(self, name: str) -> bytes:
        """A file beside the shards."""
        with storage_errors(self.path, CHECK):
            return bytes(self._here.cat_file(self._inside(name)))

    def open_binary(self, shard: ShardEntry | str) -> Any:
        """The shard as an open binary file."""
        where = self._inside(shard)
        with storage_errors(self.path, CHECK):
            return StoredFile(self._here, where, self.path) if self.is_remote else self._fs.open(where, "rb")

    def sha256(self, shard: ShardEntry) -> str:
        """Checksum of what lies there under the shard's name."""
        digest = hashlib.sha256()
        with self.open_binary(shard) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def read(self, entry: SampleEntry, *, patience_sec: float | None = None) -> PolymerSample:
        """One sample by its byte range; the rest of the shard is not touched.

        Args:
            entry: of the manifest.
            patience_sec: how long a store that fails is asked again, with growing pauses; None: as everywhere.

        Raises:
            ShardError: the shard is gone, shorter than the manifest says, or holds something else there.
            StorageError: the store, or the disk, did not answer for so long.
            InputError: the store refuses.
        """
        sample = self.read_any(entry, patience_sec=patience_sec)
        if isinstance(sample, MoleculeSample):
            raise ShardError(f"sample {entry.key} is a molecule, not a chain of a polymer; pass shards of polymers")
        return sample

    def read_any(self, entry: SampleEntry, *, patience_sec: float | None = None) -> PolymerSample | MoleculeSample:
        """A chain or a molecule; see read."""
        where = self._inside(entry.shard)
        members = members_of(self.read_bytes(entry, patience_sec=patience_sec), entry.key, where, entry.offset)
        sample = decode_any({"__key__": entry.key, **members})
        if sample.key != entry.key:
            raise ShardError(f"{where}: sample {entry.key} calls itself {sample.key}; the shard is damaged, rebuild it")
        return sample

    def read_bytes(self, entry: SampleEntry, *, patience_sec: float | None = None) -> bytes:
        """The tar members of one sample as they lie in the shard, for `members_of`.

        Raises:
            ShardError, StorageError, InputError: as `read`.
        """
        where = self._inside(entry.shard)
        with storage_errors(where, CHECK):
            try:
                blob = self._range(where, entry.offset, entry.offset + entry.length, patience_sec)
            except FileNotFoundError:
                raise ShardError(f"{where} is missing; copy it again or rebuild the shards") from None
            except Exception as error:
                if not self._may_pass(error):
                    raise
                why = shown(" ".join(f"{type(error).__name__}: {error}".split()))
                raise StorageError(f"{shown(where)} cannot be used ({why}); {CHECK}") from None
        if len(blob) != entry.length:
            raise ShardError(f"{where} ends before sample {entry.key} ({len(blob)} of {entry.length} bytes); copy it again or rebuild it")
        return blob

    def _range(self, where: str, start: int, end: int, patience_sec: float | None) -> bytes:
        fs = self._here
        return bytes(with_patience(lambda: fs.cat_file(where, start=start, end=end), patience_sec, self._may_pass))

    def _may_pass(self, error: Exception) -> bool:
        return may_pass(error) if self.is_remote else disk_may_recover(error)

    def _inside(self, shard: ShardEntry | str) -> str:
        return f"{self._root}/{shard if isinstance(shard, str) else shard.name}"


def open_shards(path: str | Path) -> ShardSet:
    """Open a shard folder and check that its manifest and files belong together (names and sizes; contents: `data_shards.verify`).

    Args:
        path: folder, local or any fsspec address (``s3://bucket/shards``).

    Raises:
        ShardError: no folder, no manifest, another schema, a shard that is missing or of another size, or a store that cannot be reached.
    """
    address = str(path)
    try:
        with storage_errors(address, CHECK):
            fs, root = open_address(address)
            manifest = _read_manifest(fs, root, address)
            sizes = _sizes(fs, root)
    except InputError as error:
        raise error if isinstance(error, ShardError) else ShardError(str(error)) from None
    for _, shard in manifest.shards():
        if shard.name not in sizes:
            raise ShardError(f"{root}/{shard.name} is missing though the manifest lists it; copy it again or rebuild the shards")
        if sizes[shard.name] != shard.bytes:
            raise ShardError(
                f"{root}/{shard.name} has {sizes[shard.name]} bytes, the manifest says {shard.bytes}; copy it again or rebuild it"
            )
    return ShardSet(address, manifest, fs, root)


def _read_manifest(fs: Any, root: str, address: str) -> Manifest:
    fs.invalidate_cache()
    try:
        text = fs.cat_file(f"{root}/{MANIFEST_NAME}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        check_bucket(fs, root, address)
        hint = "the build did not finish, run the same command again" if fs.exists(root) else "build it with python -m data_shards.build"
        raise ShardError(f"{address} holds no {MANIFEST_NAME}; {hint}") from None
    return parse_manifest(text, f"{root}/{MANIFEST_NAME}")


def _sizes(fs: Any, root: str) -> dict[str, int]:
    """Bytes of each file that lies there, by name, as it is now."""
    fs.invalidate_cache()
    return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in fs.ls(root, detail=True) if info["type"] == "file"}
