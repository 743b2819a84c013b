"""Read shards: the manifest, one sample by its byte range (local disk or any fsspec address), the bytes back into a sample."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec.implementations.local
import numpy as np
from numpy.typing import NDArray

from data_shards.errors import InputError, ShardError, StorageError
from data_shards.manifest import MANIFEST_NAME, SPLITS, Manifest, SampleEntry, ShardEntry, parse_manifest
from data_shards.schema import SCHEMA_VERSION, PolymerSample, UnitTopology, chain_hydrogens
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
from data_shards.writer import TOPOLOGY_ARRAYS

DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OSError, RecursionError, zipfile.BadZipFile)
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
        arrays = _arrays(members["topology.npz"])
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
            heavy_ang=_coordinates(members["heavy.npy"]),
            hydrogen_ang=_coordinates(members["hydrogen.npy"]),
            energies_kcal_mol=None if energies is None else np.array(energies, dtype=np.float64),
            provenance=facts["provenance"],
        )
        _check_shapes(sample)
    except DAMAGE as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"sample {name} is torn ({type(error).__name__}: {error}); copy the shard again or rebuild it") from None
    return sample


def members_of(blob: bytes, key: str, where: str, offset: int = 0) -> dict[str, bytes]:
    """Members of one sample (extension -> bytes, for `decode`).

    Args:
        blob: its tar members, as `ShardSet.read_bytes` returns them.
        key: of the sample that it should be.
        where, offset: for messages.

    Raises:
        ShardError: no tar members, or of something else.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            parts = {info.name: tar.extractfile(info) for info in tar.getmembers() if info.isfile() and not info.issparse()}
            members = {name: file.read() for name, file in parts.items() if file is not None}
    except (tarfile.TarError, ValueError, OverflowError) as error:  # what a header says need not be a number
        raise ShardError(f"{where}: no tar member at byte {offset} where sample {key} should be ({error}); rebuild it") from None
    prefix = key + "."
    strangers = [name for name in members if not name.startswith(prefix)]
    if strangers:
        raise ShardError(f"{where}: {strangers[0]} lies where sample {key} should be; the manifest is of another build")
    return {name.removeprefix(prefix): data for name, data in members.items()}


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an npz as our writer writes it: not compressed, so that no archive can be larger than it looks."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ValueError(f"{info.filename} is compressed or larger than its archive")
        return {info.filename.removesuffix(".npy"): _array(archive.read(info)) for info in archive.infolist()}


def _array(data: bytes) -> NDArray[Any]:
    """An array whose header promises what there is; nothing is unpickled."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another npy version than 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size != len(data) - file.tell():
        raise ValueError(f"an array of {dtype} with shape {shape} in {len(data) - file.tell()} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _coordinates(data: bytes) -> NDArray[np.float32]:
    array = _array(data)
    if array.dtype != np.float32:
        raise ShardError(f"coordinates of type {array.dtype} must be float32; rebuild the shards")
    return array


def _check_topology(topology: UnitTopology) -> None:
    """Do the arrays of a topology fit together, and do their indices stay inside the unit?"""
    size, centres = topology.num_atoms, len(topology.stereo_centres)
    shapes = {
        **dict.fromkeys(("elements", "formal_charges", "num_hydrogens", "aromatic"), (size,)),
        "bonds": (len(topology.bonds), 2),
        "bond_orders": (len(topology.bonds),),
        "key_atoms": (4,),
        "frame_atoms": (3,),
        "link_atoms": (2,),
        "stereo_centres": (centres,),
        "stereo_neighbours": (centres, 3),
        "stereo_specified": (centres,),
        "cap_hydrogens": (2,),
    }
    for name, shape in shapes.items():
        found = getattr(topology, name)
        if found.shape != shape or found.dtype.kind not in "iub":
            raise ValueError(f"{name} of type {found.dtype} with shape {found.shape}, the unit needs integers of shape {shape}")
    for name in ("bonds", "key_atoms", "frame_atoms", "link_atoms", "stereo_centres", "stereo_neighbours"):
        found = getattr(topology, name)
        if found.size and not 0 <= found.min() <= found.max() < size:
            raise ValueError(f"{name} names an atom beyond the {size} of the unit")


def _check_shapes(sample: PolymerSample) -> None:
    topology, num_units = sample.topology, sample.num_units
    _check_topology(topology)
    num_heavy = num_units * (topology.num_atoms - 2) + 2
    heavy = sample.heavy_ang  # compared before anything is made as large as a number in the file says
    if num_units < 1 or heavy.ndim != 3 or heavy.shape[1:] != (num_heavy, 3):
        shapes = f"heavy coordinates have shape {heavy.shape}, the chain needs (K, {num_heavy}, 3)"
        raise ShardError(f"sample {sample.key}: {shapes}; rebuild the shard")
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
    _reopened: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)  # process -> its connection
    _opened_by: int = field(default_factory=os.getpid, repr=False, compare=False)

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
        where = self._inside(entry.shard)
        members = members_of(self.read_bytes(entry, patience_sec=patience_sec), entry.key, where, entry.offset)
        sample = decode({"__key__": entry.key, **members})
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
