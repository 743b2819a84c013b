"""A sample as bytes, and the tar file that samples lie in. The same samples give the same bytes.

Members of one sample, in tar order: ``{key}.heavy.npy``, ``{key}.hydrogen.npy``, ``{key}.json``, for a relaxed chain
``{key}.raw.heavy.npy`` and ``{key}.raw.hydrogen.npy``, ``{key}.topology.npz``. Of a molecule: ``{key}.json``, ``{key}.molecule.npz``,
``{key}.x.npy``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.manifest import SampleEntry, ShardEntry
from data_shards.schema import SCHEMA_VERSION, MoleculeGraph, MoleculeSample, PolymerSample, UnitTopology

TOPOLOGY_ARRAYS = tuple(f.name for f in fields(UnitTopology) if f.name not in ("psmiles", "junction_order"))
MOLECULE_ARRAYS = tuple(f.name for f in fields(MoleculeGraph) if f.name != "smiles")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold
_OWNER = "data_shards"


def sample_key(psmiles: str, num_units: int, seed: int) -> str:
    """Name of a sample: hash of canonical P-SMILES, number of canonical units and seed."""
    return hashlib.sha256(f"{psmiles}\n{num_units}\n{seed}".encode()).hexdigest()[:24]


def encode(sample: PolymerSample, *, raw: PolymerSample | None = None) -> dict[str, bytes]:
    """A sample as tar members, named as webdataset names them (extension only).

    Args:
        sample: what to store.
        raw: the same conformations before they were relaxed.

    Returns:
        ``json``, ``topology.npz``, ``heavy.npy`` and ``hydrogen.npy``, and ``raw.heavy.npy`` and ``raw.hydrogen.npy`` where there is a raw
        sample; the bytes depend on the samples alone.
    """
    energies = sample.energies_kcal_mol
    facts = {
        "schema_version": SCHEMA_VERSION,
        "key": sample.key,
        "psmiles": sample.topology.psmiles,
        "num_units": sample.num_units,
        "tacticity": sample.tacticity,
        "seed": sample.seed,
        "engine": sample.engine,
        "energies_kcal_mol": None if energies is None else [float(e) for e in energies],
        "provenance": sample.provenance,
    }
    arrays = {name: getattr(sample.topology, name) for name in TOPOLOGY_ARRAYS}
    arrays["junction_order"] = np.array(sample.topology.junction_order, dtype=np.uint8)
    members = {
        "json": json.dumps(facts, sort_keys=True, allow_nan=False).encode(),
        "topology.npz": _npz(arrays),
        "heavy.npy": _npy(sample.heavy_ang.astype(np.float32, copy=False)),
        "hydrogen.npy": _npy(sample.hydrogen_ang.astype(np.float32, copy=False)),
    }
    if raw is not None:
        members["raw.heavy.npy"] = _npy(raw.heavy_ang.astype(np.float32, copy=False))
        members["raw.hydrogen.npy"] = _npy(raw.hydrogen_ang.astype(np.float32, copy=False))
    return members


def encode_molecule(sample: MoleculeSample) -> dict[str, bytes]:
    """A molecule as tar members: ``json``, ``molecule.npz`` and ``x.npy``."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "key": sample.key,
        "smiles": sample.graph.smiles,
        "engine": sample.engine,
        "provenance": sample.provenance,
    }
    return {
        "json": json.dumps(facts, sort_keys=True, allow_nan=False).encode(),
        "molecule.npz": _npz({name: getattr(sample.graph, name) for name in MOLECULE_ARRAYS}),
        "x.npy": _npy(sample.x_ang.astype(np.float32, copy=False)),
    }


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """What np.savez writes, with every field that could vary between machines fixed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, _npy(arrays[name]))
    return buffer.getvalue()


class ShardWriter:
    """Writes one shard: aside first, then renamed by `commit`. Without `commit` nothing remains.

    Args:
        path: final file name; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        from webdataset import TarWriter  # heavy: pulls torch

        self.path = path
        self._aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._aside.open("wb")
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user=_OWNER, group=_OWNER, mode=0o644)
        self._samples: list[SampleEntry] = []

    def write(self, members: dict[str, bytes], entry: SampleEntry) -> None:
        """Append one sample.

        Args:
            members: what `encode` returned.
            entry: the sample's facts; offset and length are filled in here.
        """
        offset = self._tar.tarstream.offset
        self._tar.write({"__key__": entry.key, **members})
        length = self._tar.tarstream.offset - offset
        facts = {f.name: getattr(entry, f.name) for f in fields(entry)}
        self._samples.append(SampleEntry(**{**facts, "offset": offset, "length": length, "shard": self.path.name}))

    def commit(self) -> ShardEntry:
        """Finish the file, flush it to the disk and give it its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._aside.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._aside.stat().st_size
        os.replace(self._aside, self.path)
        return ShardEntry(self.path.name, len(self._samples), size, sha256, tuple(self._samples))

    def abandon(self) -> None:
        """Remove what was written."""
        self._tar.close()  # its stream would complain about the closed file later
        self._file.close()
        self._aside.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if not self._file.closed:
            self.abandon()
