"""The bytes of a sample back into a sample; nothing is unpickled, and what is torn is named."""

from __future__ import annotations

import io
import json
import math
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import ShardError
from data_shards.schema import SCHEMA_VERSION, MoleculeGraph, MoleculeSample, PolymerSample, UnitTopology, chain_hydrogens
from data_shards.writer import MOLECULE_ARRAYS, TOPOLOGY_ARRAYS

DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OSError, RecursionError, zipfile.BadZipFile)
MOLECULE = "molecule.npz"
MOLECULE_MEMBERS = ("json", MOLECULE, "x.npy")
MEMBERS = ("json", "topology.npz", "heavy.npy", "hydrogen.npy")


def decode(members: Mapping[str, Any]) -> PolymerSample:
    """A sample from its tar members. Nothing is unpickled.

    Args:
        members: extension -> bytes, as `encode` returns them or as stock webdataset yields them (``__key__`` and the like are ignored).

    Raises:
        ShardError: a member is missing or torn, of another schema version, or the arrays' shapes disagree.
    """
    name = str(members.get("__key__", "sample"))
    if MOLECULE in members:
        raise ShardError(f"sample {name} is a molecule, not a chain of a polymer; pass shards of polymers")
    with _named(name, members, MEMBERS):
        facts = _facts(name, members)
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
    return sample


def decode_any(members: Mapping[str, Any]) -> PolymerSample | MoleculeSample:
    """A chain or a molecule, whatever it is; see decode."""
    return decode_molecule(members) if MOLECULE in members else decode(members)


def decode_molecule(members: Mapping[str, Any]) -> MoleculeSample:
    """A molecule from its tar members; see decode."""
    name = str(members.get("__key__", "sample"))
    with _named(name, members, MOLECULE_MEMBERS):
        facts = _facts(name, members)
        arrays = _arrays(members[MOLECULE])
        graph = MoleculeGraph(smiles=str(facts["smiles"]), **{field: arrays[field] for field in MOLECULE_ARRAYS})
        sample = MoleculeSample(facts["key"], graph, _coordinates(members["x.npy"]), facts["engine"], facts["provenance"])
        _check_molecule(sample)
    return sample


@contextmanager
def _named(name: str, members: Mapping[str, Any], needed: tuple[str, ...]) -> Iterator[None]:
    """Whatever is wrong with the members of a sample is said with its name."""
    missing = [member for member in needed if member not in members]
    if missing:
        raise ShardError(f"sample {name} lacks {', '.join(missing)}; the shard is torn, copy it again or rebuild it")
    try:
        yield
    except ShardError:
        raise
    except DAMAGE as error:
        raise ShardError(f"sample {name} is torn ({type(error).__name__}: {error}); copy the shard again or rebuild it") from None


def _facts(name: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample says of itself, of this schema version."""
    facts: dict[str, Any] = json.loads(members["json"])
    version = facts.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ShardError(f"sample {name} has schema version {version}, this program reads {SCHEMA_VERSION}; rebuild the shards")
    return facts


def _check_molecule(sample: MoleculeSample) -> None:
    """Do the arrays of a molecule fit together, and do their indices stay inside it?"""
    graph, size, number = sample.graph, sample.graph.num_atoms, len(sample.graph.bonds)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("elements", "degrees", "hydrogens", "charges", "aromatic", "ring_sizes"), (size,))
    shapes |= {"bonds": (number, 2), "bond_orders": (number,), "bond_rings": (number,), "around": (len(graph.signs), 3)}
    shapes |= {"signs": (len(graph.signs),), "across": (len(graph.sides), 2), "sides": (len(graph.sides),)}
    for name, shape in shapes.items():
        found = getattr(graph, name)
        if found.shape != shape or found.dtype.kind not in "iub":
            raise ValueError(f"{name} of type {found.dtype} with shape {found.shape}, the molecule needs integers of shape {shape}")
    for name in ("bonds", "around", "across"):
        found = getattr(graph, name)
        if found.size and not 0 <= found.min() <= found.max() < size:
            raise ValueError(f"{name} names an atom beyond the {size} of the molecule")
    if sample.x_ang.ndim != 3 or sample.x_ang.shape[1:] != (size, 3) or len(sample.x_ang) < 1:
        raise ValueError(f"coordinates have shape {sample.x_ang.shape}, the molecule needs (K, {size}, 3)")


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


__all__ = ["decode", "decode_any", "decode_molecule", "members_of"]
