"""Read shards: the manifest, one sample by its byte range (local disk or any fsspec address), the bytes back into a sample."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.local
import numpy as np
from numpy.typing import NDArray

from data_shards.errors import ShardError
from data_shards.manifest import MANIFEST_NAME, SPLITS, Manifest, SampleEntry, ShardEntry, parse_manifest
from data_shards.schema import SCHEMA_VERSION, PolymerSample, UnitTopology, chain_hydrogens
from data_shards.writer import TOPOLOGY_ARRAYS

MEMBERS = ("json", "topology.npz", "heavy.npy", "hydrogen.npy")


def decode(members: Mapping[str, Any]) -> PolymerSample:
    """A sample from its tar members. Nothing is unpickled.

    Args:
        members: extension -> bytes, as `encode` returns them or as stock webdataset yields them (``__key__`` and the like are ignored).

    Raises:
        ShardError: a member is missing or torn, of another schema version, or the arrays' shapes disagree.
    """
    name = str(members.get("__key__", "sample"))
    missing = [member for member in MEMBERS if member not in members]
    if missing:
        raise ShardError(f"sample {name} lacks {', '.join(missing)}; the shard is torn, copy it again or rebuild it")
    try:
        facts = json.loads(members["json"])
        version = facts.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ShardError(f"sample {name} has schema version {version}, this program reads {SCHEMA_VERSION}; rebuild the shards")
        with np.load(io.BytesIO(members["topology.npz"]), allow_pickle=False) as arrays:
            topology = UnitTopology(
                psmiles=facts["psmiles"],
                junction_order=int(arrays["junction_order"]),
                **{field: arrays[field] for field in TOPOLOGY_ARRAYS},
            )
        energies = facts["energies_kcal_mol"]
        sample = PolymerSample(
            key=facts["key"],
            topology=topology,
            num_units=facts["num_units"],
            tacticity=facts["tacticity"],
            seed=facts["seed"],
            engine=facts["engine"],
            heavy_ang=_array(members["heavy.npy"]),
            hydrogen_ang=_array(members["hydrogen.npy"]),
            energies_kcal_mol=None if energies is None else np.array(energies, dtype=np.float64),
            provenance=facts["provenance"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"sample {name} is torn ({type(error).__name__}: {error}); copy the shard again or rebuild it") from None
    _check_shapes(sample)
    return sample


def _array(data: bytes) -> NDArray[np.float32]:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype != np.float32:
        raise ShardError(f"coordinates of type {array.dtype} must be float32; rebuild the shards")
    return array


def _check_shapes(sample: PolymerSample) -> None:
    topology, num_units = sample.topology, sample.num_units
    num_heavy = num_units * (topology.num_atoms - 2) + 2
    num_hydrogens = int(chain_hydrogens(topology, num_units).sum())
    for name, array, atoms in (("heavy", sample.heavy_ang, num_heavy), ("hydrogen", sample.hydrogen_ang, num_hydrogens)):
        if array.ndim != 3 or array.shape[1:] != (atoms, 3) or len(array) != len(sample.heavy_ang) or len(array) < 1:
            raise ShardError(
                f"sample {sample.key}: {name} coordinates have shape {array.shape}, the chain needs (K, {atoms}, 3); rebuild the shard"
            )
    if sample.energies_kcal_mol is not None and sample.energies_kcal_mol.shape != (len(sample.heavy_ang),):
        raise ShardError(
            f"sample {sample.key}: {sample.energies_kcal_mol.size} energies for {len(sample.heavy_ang)} conformations; rebuild the shard"
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

    def names(self) -> list[str]:
        """Files that lie there, whether the manifest lists them or not."""
        return sorted(info["name"].rsplit("/", 1)[-1] for info in self._fs.ls(self._root, detail=True) if info["type"] == "file")

    def read_file(self, name: str) -> bytes:
        """A file beside the shards."""
        return bytes(self._fs.cat_file(self._inside(name)))

    def open_binary(self, shard: ShardEntry | str) -> Any:
        """The shard as an open binary file."""
        return self._fs.open(self._inside(shard), "rb")

    def read(self, entry: SampleEntry) -> PolymerSample:
        """One sample by its byte range; the rest of the shard is not touched.

        Raises:
            ShardError: the shard is gone, shorter than the manifest says, or holds something else there.
        """
        where = self._inside(entry.shard)
        try:
            blob = self._fs.cat_file(where, start=entry.offset, end=entry.offset + entry.length)
        except FileNotFoundError:
            raise ShardError(f"{where} is missing; copy it again or rebuild the shards") from None
        if len(blob) != entry.length:
            raise ShardError(f"{where} ends before sample {entry.key} ({len(blob)} of {entry.length} bytes); copy it again or rebuild it")
        try:
            with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
                parts = {info.name: tar.extractfile(info) for info in tar.getmembers() if info.isfile()}
                members = {name: file.read() for name, file in parts.items() if file is not None}
        except tarfile.TarError as error:
            raise ShardError(
                f"{where}: no tar member at byte {entry.offset} where sample {entry.key} should be ({error}); rebuild it"
            ) from None
        prefix = entry.key + "."
        strangers = [name for name in members if not name.startswith(prefix)]
        if strangers:
            raise ShardError(f"{where}: {strangers[0]} lies where sample {entry.key} should be; the manifest is of another build")
        sample = decode({"__key__": entry.key, **{name.removeprefix(prefix): data for name, data in members.items()}})
        if sample.key != entry.key:
            raise ShardError(f"{where}: sample {entry.key} calls itself {sample.key}; the shard is damaged, rebuild it")
        return sample

    def _inside(self, shard: ShardEntry | str) -> str:
        return f"{self._root}/{shard if isinstance(shard, str) else shard.name}"


def open_shards(path: str | Path) -> ShardSet:
    """Open a shard folder and check that its manifest and files belong together (names and sizes; contents: `data_shards.verify`).

    Args:
        path: folder, local or any fsspec address (``s3://bucket/shards``).

    Raises:
        ShardError: no folder, no manifest, another schema, or a shard that is missing or of another size.
    """
    try:
        fs, root = fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise ShardError(f"{path} cannot be opened ({error})") from None
    root = root.rstrip("/")
    try:
        text = fs.cat_file(f"{root}/{MANIFEST_NAME}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        hint = "the build did not finish, run the same command again" if fs.exists(root) else "build it with python -m data_shards.build"
        raise ShardError(f"{path} holds no {MANIFEST_NAME}; {hint}") from None
    manifest = parse_manifest(text, f"{root}/{MANIFEST_NAME}")
    sizes = {info["name"].rsplit("/", 1)[-1]: info["size"] for info in fs.ls(root, detail=True) if info["type"] == "file"}
    for _, shard in manifest.shards():
        if shard.name not in sizes:
            raise ShardError(f"{root}/{shard.name} is missing though the manifest lists it; copy it again or rebuild the shards")
        if sizes[shard.name] != shard.bytes:
            raise ShardError(
                f"{root}/{shard.name} has {sizes[shard.name]} bytes, the manifest says {shard.bytes}; copy it again or rebuild it"
            )
    return ShardSet(str(path), manifest, fs, root)
