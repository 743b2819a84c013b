"""One record of the published PolyConFM data set: keys, shapes and numbers checked, the repeat unit read from its P-SMILES."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.decompose import UNKNOWN
from data_shards.errors import PolymerError
from data_shards.sources.pickled_arrays import Stored
from data_shards.sources.unpickle import unpickle

PSMILES_KEY = "psmi"
MAX_PSMILES_LENGTH = 2000
MAX_NUMBERS = 30_000_000  # of one array of a record


@dataclass(frozen=True)
class Unit:
    """The repeat unit as a record writes it, stars substituted."""

    symbols: tuple[str, ...]  # of the n heavy atoms
    elements: NDArray[np.uint8]  # (n,)
    bonds: NDArray[np.int64]  # (m, 2)
    hydrogens: NDArray[np.int64]  # (n,) inside a chain, UNKNOWN at the stars
    key_atoms: NDArray[np.int32]  # (4,) star0, nbr0, nbr1, star1


@dataclass(frozen=True)
class Record:
    """A record, checked. Coordinates have all n' atoms of a unit, hydrogens included where the record has them."""

    psmiles: str
    unit: Unit
    num_units: int  # N
    heavy: NDArray[np.int64]  # (n,) atoms of the record's unit that are no hydrogens
    hydrogen: NDArray[np.int64]  # (n' - n,)
    local_ang: NDArray[np.float64] | None  # (N, n', 3) each unit in its own frame
    world_ang: NDArray[np.float64] | None  # (N, n', 3) tgt_coordinates
    rigids: NDArray[np.float64] | None  # (N, 7) quaternion w x y z and translation of each unit
    graph_atoms: int  # of whole_pyg, 0 where absent
    embedding_length: int  # of psmi_rep


@lru_cache(maxsize=256)
def written_unit(psmiles: str, key_point_index: tuple[int, ...] | None) -> Unit:
    """The repeat unit of a P-SMILES in the order of the string.

    Args:
        psmiles: as in the record.
        key_point_index: nbr0, star0, nbr1, star1 as in the record; None: nbr0 is the neighbour that comes first in the string.

    Raises:
        PolymerError: as chem.psmiles.parse; bad-record where the indices are other atoms.
    """
    from data_shards.chem.psmiles import parse
    from data_shards.chem.repeat_unit import substitute_stars

    written = parse(psmiles)
    pairs = [(a.GetIdx(), b.GetIdx()) for a in written.GetAtoms() for b in a.GetNeighbors() if a.GetAtomicNum() and not b.GetAtomicNum()]
    if key_point_index is not None:
        nbr0, star0, nbr1, star1 = key_point_index
        if sorted(pairs) != sorted([(nbr0, star0), (nbr1, star1)]):
            raise PolymerError(
                psmiles, "bad-record", f"key_point_index {list(key_point_index)} names other atoms than {pairs}; leave it out"
            )
        pairs = [(nbr0, star0), (nbr1, star1)]
    (nbr0, star0), (nbr1, star1) = pairs
    mol, _ = substitute_stars(written, psmiles)
    hydrogens = np.array([atom.GetTotalNumHs() for atom in written.GetAtoms()], dtype=np.int64)
    hydrogens[[star0, star1]] = UNKNOWN
    return Unit(
        symbols=tuple(atom.GetSymbol() for atom in mol.GetAtoms()),
        elements=np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8),
        bonds=np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()], dtype=np.int64),
        hydrogens=hydrogens,
        key_atoms=np.array([star0, nbr0, nbr1, star1], dtype=np.int32),
    )


def read_psmiles(payload: bytes, column: str = PSMILES_KEY) -> str:
    """The P-SMILES of a record as it is written there.

    Raises:
        PolymerError: as unpickle; no-record, bad-record.
    """
    psmiles = _table(payload).get(column)
    if not isinstance(psmiles, str) or not psmiles:
        raise PolymerError("", "bad-record", f"the record has no text under {column!r}; name the key of the P-SMILES with --column")
    return psmiles


def read_record(payload: bytes, psmiles: str = "") -> Record:
    """Read and check a record.

    Args:
        payload: the pickle.
        psmiles: the polymer, in any spelling; the record's own spelling is the text in it that names this polymer. Where it is empty,
            the text under psmi.

    Raises:
        PolymerError: as unpickle and written_unit; no-record, bad-record, psmiles-mismatch, not-finite.
    """
    written = read_psmiles(payload) if not psmiles else _spelling(_table(payload), psmiles)
    try:
        return _checked(_table(payload), written)
    except PolymerError as error:
        raise PolymerError(written, error.reason, error.detail) from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise PolymerError(written, "bad-record", f"the record has other keys or shapes than documented ({reason}); leave it out") from None


@lru_cache(maxsize=1)
def _table(payload: bytes) -> dict[str, Any]:
    if not payload:
        raise PolymerError("", "no-record", "the file has no record of this number; keys must be 0, 1, 2 ... without a gap")
    table = unpickle(payload)
    if not isinstance(table, dict):
        raise PolymerError("", "bad-record", f"the record is a {type(table).__name__}, not a table; leave it out")
    return table


def _spelling(table: dict[str, Any], psmiles: str) -> str:
    """How a record writes a polymer."""
    from data_shards.chem.psmiles import canonicalise

    wanted = canonicalise(psmiles).psmiles
    texts = [table.get(PSMILES_KEY), *table.values()]
    for text in texts:
        if isinstance(text, str) and "*" in text and len(text) <= MAX_PSMILES_LENGTH:
            try:
                if canonicalise(text).psmiles == wanted:
                    return text
            except PolymerError:
                continue
    raise PolymerError(psmiles, "psmiles-mismatch", "no text of the record names this polymer; leave it out")


def _checked(table: dict[str, Any], psmiles: str) -> Record:
    symbols = [str(symbol) for symbol in table["repeat_unit_atom_symbols"]]
    heavy = np.array([k for k, symbol in enumerate(symbols) if symbol != "H"], dtype=np.int64)
    hydrogen = np.setdiff1d(np.arange(len(symbols)), heavy)
    key = table.get("key_point_index")
    if key is not None:
        place = {int(atom): slot for slot, atom in enumerate(heavy)}
        key = tuple(place.get(int(k), -1) for k in _numbers(key, 1))
    unit = written_unit(psmiles, key)
    if tuple(symbols[k] for k in heavy) != unit.symbols:
        found = f"repeat_unit_atom_symbols has {len(heavy)} heavy atoms that are not those of the P-SMILES, {len(unit.symbols)} with stars"
        raise PolymerError(psmiles, "psmiles-mismatch", f"{found}; leave the record out")
    num_units = int(np.asarray(table["repeat_unit_actual_num"]).reshape(()))
    if num_units < 1:
        raise PolymerError(psmiles, "bad-record", f"repeat_unit_actual_num is {num_units}, must be >= 1; leave the record out")
    shape = (num_units, len(symbols), 3)
    local, world, rigids = (table.get(k) for k in ("repeat_unit_atom_coordinates", "tgt_coordinates", "rigids_0"))
    local_ang, world_ang = (None if value is None else _numbers(value, 4 if _depth(value) == 4 else 3) for value in (local, world))
    if local_ang is not None and local_ang.ndim == 4 and world_ang is None:
        detail = f"the record has {len(local_ang)} conformations of its units in their own frames and nothing that joins them"
        raise PolymerError(psmiles, "no-world-coordinates", f"{detail}; only records with tgt_coordinates or rigids_0 are chains")
    for name, array in (("repeat_unit_atom_coordinates", local_ang), ("tgt_coordinates", world_ang)):
        if array is not None and array.shape != shape:
            raise PolymerError(psmiles, "bad-record", f"{name} has shape {array.shape}, must be {shape}; leave the record out")
    frames = None if rigids is None else _numbers(rigids, 2)
    if frames is not None and frames.shape != (num_units, 7):
        raise PolymerError(psmiles, "bad-record", f"rigids_0 has shape {frames.shape}, must be {(num_units, 7)}; leave the record out")
    if not all(np.isfinite(numbers).all() for numbers in (local_ang, world_ang, frames) if numbers is not None):
        raise PolymerError(psmiles, "not-finite", "a coordinate of the record is not a finite number; leave the record out")
    graph, embedding = table.get("whole_pyg"), table.get("psmi_rep")
    nodes = graph.fields().get("x") if isinstance(graph, Stored) else None
    return Record(
        psmiles,
        unit,
        num_units,
        heavy,
        hydrogen,
        local_ang,
        world_ang,
        frames,
        graph_atoms=len(nodes) if isinstance(nodes, np.ndarray | list) else 0,
        embedding_length=len(embedding) if isinstance(embedding, np.ndarray | list | tuple) else 0,
    )


def _depth(value: Any) -> int:
    """Dimensions of an array or of nested lists, at most 5."""
    if isinstance(value, np.ndarray):
        return value.ndim
    depth = 0
    while isinstance(value, list | tuple) and depth < 5:
        depth, value = depth + 1, value[0] if value else 0
        if isinstance(value, np.ndarray):
            return depth + value.ndim
    return depth


def _numbers(value: Any, ndim: int) -> NDArray[np.float64]:
    """An array or nested lists as float64. Lists may hold one another many times: their size is known before it is needed."""
    size, part = 1, value
    for _ in range(ndim):
        if isinstance(part, np.ndarray):
            size *= part.size
            break
        if not isinstance(part, list | tuple):
            raise ValueError(f"{ndim} dimensions of numbers expected")
        size, part = size * len(part), part[0] if part else 0.0
        if size > MAX_NUMBERS:
            raise ValueError(f"more than {MAX_NUMBERS} numbers")
    if size > MAX_NUMBERS or isinstance(part, list | tuple):
        raise ValueError(f"more than {MAX_NUMBERS} numbers or {ndim} dimensions")
    array = np.asarray(value)
    if array.ndim != ndim or array.dtype.kind not in "fiub":
        raise ValueError(f"{array.ndim} dimensions of {array.dtype} where {ndim} of numbers are expected")
    return array.astype(np.float64)
