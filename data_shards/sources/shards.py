"""Chains that lie in shards already: divided again, without those that are held out, and otherwise as they are.

Nothing is grown or relaxed again: coordinates, energies, topology, seed and key stay, to the last bit. A sample's provenance gains
`origin`, the fingerprint of the set that it was taken from; the manifest says what that set was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.decoding import decode, members_of
from data_shards.errors import InputError, PolymerError, ShardError
from data_shards.manifest import Manifest, SampleEntry, ShardEntry
from data_shards.reader import ShardSet, open_shards
from data_shards.schema import PolymerSample
from data_shards.sources.table import Row
from data_shards.store import CHECK, open_address, shown, storage_errors


@dataclass
class ShardsSource:
    """Samples of a shard set as rows, in the order of its manifest.

    Args:
        path: folder or address of the set.
        column: must be None; samples have their polymer's name.
        limit: read at most this many samples.

    Raises:
        ShardError: no shard set, or one whose files do not fit its manifest.
        InputError: a column was named, or the limit is no number of samples.
    """

    path: str
    column: str | None = None
    limit: int | None = None
    _set: ShardSet = field(init=False, repr=False)
    _listed: list[tuple[ShardEntry, SampleEntry]] = field(init=False, repr=False)
    _whole: set[str] = field(default_factory=set, init=False, repr=False)  # shards whose checksum was right

    def __post_init__(self) -> None:
        if self.column is not None:
            raise InputError(f"samples of shards name their polymer themselves, not in {self.column!r}; drop --column")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit} must be >= 1; change --limit")
        self._set = open_shards(self.path)
        self._listed = [(shard, entry) for _, shard in self._set.manifest.shards() for entry in shard.samples][: self.limit]
        if not self._listed:
            raise InputError(f"{self.path} has no sample; pass a set that holds some with --input")

    def settings(self) -> dict[str, Any]:
        """The chains come along as they are, checked by the limits of the build that made them."""
        return {"engine": "import", "relax": False, "quality": self._set.manifest.recipe.get("quality") or {}}

    def notes(self) -> list[str]:
        """Which set it is."""
        return [f"{shown(self.path)}: {len(self._listed)} samples, fingerprint {self._set.fingerprint[:16]}; their chains stay as they are"]

    def facts(self) -> dict[str, Any]:
        """What the set was made of."""
        return {"origin": {"fingerprint": self._set.fingerprint, **_origin(self._set.manifest)}}

    def rows(self) -> Iterator[Row]:
        """Every sample. The checksum of a shard is compared before the first of its rows.

        Raises:
            ShardError: a shard is not as it was written. A set that lacks some of its samples without a word is what nobody asked for.
        """
        for number, (shard, entry) in enumerate(self._listed, start=1):
            self._check(shard)
            record = hashlib.sha256(f"{shard.sha256}\n{entry.key}".encode()).hexdigest()
            yield Row(number, entry.psmiles, {"origin": self._set.fingerprint}, record)

    def payload(self, number: int) -> bytes:
        """Key of a sample in a line of its own, then its tar members.

        Raises:
            ShardError: the shard has been changed or removed since.
        """
        _, entry = self._listed[number - 1]
        return entry.key.encode() + b"\n" + self._set.read_bytes(entry)

    def _check(self, shard: ShardEntry) -> None:
        if shard.name in self._whole:
            return
        if self._set.sha256(shard) != shard.sha256:
            raise ShardError(
                f"{self._set.address(shard)} is not as it was written (its checksum differs from the manifest's); copy it again, or repeat"
                " the command that built it: only what is damaged is made again"
            )
        self._whole.add(shard.name)


def _origin(manifest: Manifest) -> dict[str, Any]:
    """Of a set that was itself divided again, `input` holds the origin before."""
    return {name: getattr(manifest, name) for name in ("recipe_digest", "recipe", "input", "created_by")}


def check_apart(path: str, out: str) -> None:
    """The new set must not be written over the one it is made of.

    Raises:
        InputError: both are one place.
    """
    if _place(path) == _place(out):
        raise InputError(f"--out {out} is the set that --input reads; pass another --out")


def _place(address: str) -> tuple[str, str]:
    with storage_errors(address, CHECK):
        fs, root = open_address(address)
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    return type(fs).__name__, str(Path(root).resolve()) if local else root


def read_sample(payload: bytes, psmiles: str, provenance: dict[str, Any]) -> tuple[PolymerSample, dict[str, bytes]]:
    """A sample and its tar members, its provenance completed and nothing else changed.

    Args:
        payload: as ShardsSource.payload gives it.
        psmiles: as the manifest names it.
        provenance: to be added.

    Raises:
        PolymerError: torn-sample where the members are no sample of this polymer.
    """
    key, _, blob = payload.partition(b"\n")
    try:
        members = members_of(blob, key.decode(), "the set")
        sample = decode({"__key__": key.decode(), **members})
    except ShardError as error:
        raise PolymerError(psmiles, "torn-sample", str(error)) from None
    if (sample.key, sample.topology.psmiles) != (key.decode(), psmiles):
        found = f"sample {key.decode()} calls itself {sample.key} of {sample.topology.psmiles}"
        raise PolymerError(psmiles, "torn-sample", f"{found}, the manifest names {psmiles}; rebuild the shards")
    sample = replace(sample, provenance=sample.provenance | provenance)
    facts = json.loads(members["json"]) | {"provenance": sample.provenance}
    return sample, {**members, "json": json.dumps(facts, sort_keys=True, allow_nan=False).encode()}
