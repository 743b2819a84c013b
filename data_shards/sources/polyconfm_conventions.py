"""What the numbers of a PolyConFM record mean, found by measuring, and the chain put together accordingly.

The program that made the published records was not released, so each record has to say by itself whether hydrogens are in it, which atoms
span the frames of its units, where their origin is, and which of its coordinates are in one frame for the whole chain.

Key atoms of a unit, in the paper's numbers: 1 = star0, 2 = nbr0, 3 = nbr1, 4 = star1.

Source: Wang et al., PolyConFM, arXiv 2510.16023, Fig. 1b (units, frames, overlap). Differs: nothing is assumed that can be measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.decompose import UNKNOWN, ChainGraph
from data_shards.errors import PolymerError
from data_shards.schema import unit_slots
from data_shards.sources.polyconfm_record import Record

MAX_OVERLAP_ERROR_ANG = 0.01  # between the two copies of an atom that neighbouring units share
SAME_ANG = 1e-3
FRAME_TOLERANCE_ANG = 2e-3
MIN_OFF_AXIS_ANG = 0.05  # a third atom nearer to the axis than this does not show the frame
MAX_HYDROGEN_BOND_ANG = 1.8
STAR0, NBR0, NBR1, STAR1 = range(4)

Frame = tuple[int, int, int]  # key atoms: first axis from one to the next, second axis towards the third
_FRAMES: tuple[Frame, ...] = ((1, 3, 4), (1, 2, 4), *(f for f in permutations((1, 2, 3, 4), 3) if f not in ((1, 3, 4), (1, 2, 4))))
_END_SPECIAL: tuple[Frame, Frame, Frame] = ((2, 3, 4), (1, 2, 4), (1, 2, 3))


@dataclass(frozen=True)
class Convention:
    """What a record means."""

    hydrogens: str  # in the coordinates: yes | no
    coordinates: str  # tgt_coordinates | rigids_0 | rigids_0, rotations only | repeat_unit_atom_coordinates
    frame: str  # key atoms that span the frames of the units
    translation: str  # removed, origin at atom k | removed, centred | kept
    star1_on_next_nbr0: str  # bit-exact | within x angstrom
    star0_on_previous_nbr1: str
    rigids: str  # absent | carry units onto tgt_coordinates | rotations only | differ
    graph: str  # whole_pyg: absent | unit | unit without stars | chain | chain without caps | N atoms
    embedding: str  # psmi_rep


def world_coordinates(record: Record) -> tuple[NDArray[np.float64], str]:
    """Coordinates (N, n', 3) of all units in one frame, and which of the record's arrays they come from.

    Raises:
        PolymerError: no-world-coordinates; broken-overlap where units do not meet in the atoms that they share.
    """
    local, rigids = record.local_ang, record.rigids
    if record.world_ang is not None:
        x_ang, name = record.world_ang, "tgt_coordinates"
    elif local is not None and rigids is not None:
        turned = local @ np.swapaxes(_rotations(rigids, record.psmiles), 1, 2)
        x_ang, name = turned + rigids[:, None, 4:], "rigids_0"
        if _overlap_errors_ang(record, x_ang)[0] > MAX_OVERLAP_ERROR_ANG:
            x_ang, name = turned + _overlap_translations(record, turned)[:, None], "rigids_0, rotations only"
    elif local is not None:
        x_ang, name = local, "repeat_unit_atom_coordinates"
        if max(_overlap_errors_ang(record, local)) > MAX_OVERLAP_ERROR_ANG:
            detail = "the units are in their own frames, and there are neither tgt_coordinates nor rigids_0 to join them"
            raise PolymerError(record.psmiles, "no-world-coordinates", f"{detail}; leave the record out")
    else:
        raise PolymerError(record.psmiles, "no-world-coordinates", "the record has no coordinates of its units; leave it out")
    worst = max(_overlap_errors_ang(record, x_ang))
    if worst > MAX_OVERLAP_ERROR_ANG:
        detail = f"atoms that neighbouring units share are {worst:.3f} angstrom apart, must be <= {MAX_OVERLAP_ERROR_ANG}"
        raise PolymerError(record.psmiles, "broken-overlap", f"{detail}; leave the record out")
    return x_ang, name


def chain_graph(record: Record, x_ang: NDArray[np.float64]) -> ChainGraph:
    """The whole chain of a record, caps and hydrogens included.

    Args:
        record: the record.
        x_ang: (N, n', 3) world coordinates.
    """
    unit, num_units = record.unit, record.num_units
    slots = unit_slots(unit.key_atoms, len(unit.elements), num_units)
    num_heavy = int(slots.max()) + 1
    own = np.setdiff1d(np.arange(len(unit.elements)), unit.key_atoms[[STAR0, STAR1]])
    owned = np.zeros(slots.shape, dtype=bool)  # where a unit brings an atom of its own
    owned[:, own] = True
    owned[0, unit.key_atoms[STAR0]] = owned[-1, unit.key_atoms[STAR1]] = True
    elements = np.empty(num_heavy, dtype=np.uint8)
    elements[slots] = unit.elements
    hydrogens = np.full(num_heavy, UNKNOWN, dtype=np.int64)
    hydrogens[slots[:, own]] = unit.hydrogens[own]
    x_heavy = np.empty((num_heavy, 3))
    x_heavy[slots[owned]] = x_ang[:, record.heavy][owned]
    bonds = np.unique(np.sort(slots[:, unit.bonds].reshape(-1, 2), axis=1), axis=0)
    if not len(record.hydrogen):
        return ChainGraph(elements, bonds, hydrogens, x_heavy)
    away = np.linalg.norm(x_ang[:, record.hydrogen, None] - x_ang[:, None, record.heavy], axis=-1)  # (N, hydrogens, n)
    nearest = away.argmin(axis=2)
    bonded = np.take_along_axis(owned, nearest, axis=1) & (away.min(axis=2) <= MAX_HYDROGEN_BOND_ANG)
    owner = np.take_along_axis(slots, nearest, axis=1)[bonded]
    found = np.bincount(owner, minlength=num_heavy)
    return ChainGraph(
        elements=np.concatenate([elements, np.ones(len(owner), dtype=np.uint8)]),
        bonds=np.concatenate([bonds, np.stack([owner, num_heavy + np.arange(len(owner))], axis=1)]),
        hydrogens=np.concatenate([found, np.zeros(len(owner), dtype=np.int64)]),
        x_ang=np.concatenate([x_heavy, x_ang[:, record.hydrogen][bonded]]),
    )


def convention_of(record: Record) -> Convention:
    """Measure the conventions of a record.

    Raises:
        PolymerError: as world_coordinates.
    """
    x_ang, name = world_coordinates(record)
    heads, tails = _overlap_errors_ang(record, x_ang)
    frame, origin = _frame_name(record), _origin_name(record)
    return Convention(
        hydrogens="yes" if len(record.hydrogen) else "no",
        coordinates=name,
        frame=frame,
        translation=origin,
        star1_on_next_nbr0=_closeness(heads) if record.num_units > 1 else "one unit",
        star0_on_previous_nbr1=_closeness(tails) if record.num_units > 1 else "one unit",
        rigids=_rigids_name(record, x_ang),
        graph=_graph_name(record),
        embedding=f"{record.embedding_length} numbers" if record.embedding_length else "absent",
    )


@dataclass(frozen=True)
class ConventionSummary:
    """How many records of a file follow which conventions.

    Attributes:
        records: looked at.
        counts: field of Convention -> what was found -> number of records.
        refused: reason -> number of records whose conventions could not be found.
    """

    records: int
    counts: dict[str, dict[str, int]]
    refused: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: one line per question, the most frequent answer first."""
        shown = [f"conventions of {self.records} records"]
        for name, found in self.counts.items():
            shown.append(f"  {name}: " + "; ".join(f"{answer} ({count})" for answer, count in found.items()))
        if self.refused:
            shown.append("  not read: " + "; ".join(f"{reason} ({count})" for reason, count in self.refused.items()))
        return shown


def summarise(conventions: list[Convention], refused: Counter[str]) -> ConventionSummary:
    """Count the conventions of several records."""
    counts = {
        name: dict(Counter(str(getattr(convention, name)) for convention in conventions).most_common())
        for name in Convention.__dataclass_fields__
        if conventions
    }
    return ConventionSummary(len(conventions) + refused.total(), counts, dict(refused.most_common()))


def _rotations(rigids: NDArray[np.float64], psmiles: str) -> NDArray[np.float64]:
    """(N, 3, 3) world_from_unit of quaternions w x y z."""
    norm = np.linalg.norm(rigids[:, :4], axis=1, keepdims=True)
    if not (np.abs(norm - 1) < 0.01).all():
        raise PolymerError(psmiles, "bad-record", "a quaternion of rigids_0 does not have length 1; leave the record out")
    w, x, y, z = (rigids[:, :4] / norm).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _key_positions(record: Record, x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4, 3) star0, nbr0, nbr1, star1."""
    return x_ang[:, record.heavy[record.unit.key_atoms]]


def _overlap_errors_ang(record: Record, x_ang: NDArray[np.float64]) -> tuple[float, float]:
    """Largest distance of star1 from nbr0 of the next unit, and of star0 from nbr1 of the one before."""
    key = _key_positions(record, x_ang)
    ahead, behind = key[:-1, STAR1] - key[1:, NBR0], key[1:, STAR0] - key[:-1, NBR1]
    return tuple(float(np.linalg.norm(gap, axis=1).max(initial=0.0)) for gap in (ahead, behind))  # type: ignore[return-value]


def _overlap_translations(record: Record, turned: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) translations that put nbr0 of every unit on star1 of the one before."""
    key = _key_positions(record, turned)
    return np.concatenate([np.zeros((1, 3)), np.cumsum(key[:-1, STAR1] - key[1:, NBR0], axis=0)])


def _closeness(error_ang: float) -> str:
    if error_ang == 0:
        return "bit-exact"
    return f"within {SAME_ANG:g} angstrom" if error_ang <= SAME_ANG else f"within {MAX_OVERLAP_ERROR_ANG:g} angstrom"


def _frames_shown(key_ang: NDArray[np.float64]) -> set[Frame] | None:
    """Frames in which all of these units (P, 4, 3) stand; None where none of them can tell, their key atoms lying on a line."""
    fitting, told = set(), False
    for frame in _FRAMES:
        start, end, side = (k - 1 for k in frame)
        along, towards = key_ang[:, end] - key_ang[:, start], key_ang[:, side] - key_ang[:, end]
        bent = np.abs(np.linalg.norm(np.cross(along, towards), axis=1)) > MIN_OFF_AXIS_ANG * np.linalg.norm(along, axis=1).clip(min=1e-9)
        if not bent.any():
            continue
        told = True
        on_axis = (along[bent, 0] > 0) & (np.abs(along[bent, 1:]) <= FRAME_TOLERANCE_ANG).all(axis=1)
        in_plane = (towards[bent, 1] > 0) & (np.abs(towards[bent, 2]) <= FRAME_TOLERANCE_ANG)
        if (on_axis & in_plane).all():
            fitting.add(frame)
    return fitting if told else None


def _frame_name(record: Record) -> str:
    """Key atoms of the frames that the units of a record stand in."""
    if record.local_ang is None:
        return "absent"
    key = _key_positions(record, record.local_ang)
    everywhere = _frames_shown(key)
    if everywhere is None:
        return "not to be told, key atoms lie on a line"
    if everywhere:
        return " or ".join(_shown(frame) for frame in _FRAMES if frame in everywhere)
    parts = (key[:1], key[1:-1], key[-1:])
    special = all(found is None or frame in found for frame, found in zip(_END_SPECIAL, map(_frames_shown, parts), strict=True))
    if special and record.num_units > 1:
        return "end-special: (2,3,4) first, (1,2,4) inner, (1,2,3) last"
    return "unknown"


def _shown(frame: Frame) -> str:
    start, end, side = frame
    return f"({start},{end},{side})" if start < end else f"({end},{start},{side}), first axis from {start} to {end}"


def _origin_name(record: Record) -> str:
    """Where the origin of the units' own frames is."""
    if record.local_ang is None:
        return "absent"
    key = _key_positions(record, record.local_ang)
    at = [k + 1 for k in range(4) if (np.abs(key[:, k]) <= SAME_ANG).all()]
    if at:
        return "removed, origin at atom " + " or ".join(map(str, at))
    if (np.abs(record.local_ang[:, record.heavy].mean(axis=1)) <= SAME_ANG).all():
        return "removed, centred"
    inner = [k + 1 for k in range(4) if record.num_units > 2 and (np.abs(key[1:-1, k]) <= SAME_ANG).all()]
    return "removed, origin at atom " + " or ".join(map(str, inner)) + " of inner units" if inner else "kept"


def _rigids_name(record: Record, x_ang: NDArray[np.float64]) -> str:
    if record.rigids is None:
        return "absent"
    if record.local_ang is None or record.world_ang is None:
        return "present"
    turned = record.local_ang @ np.swapaxes(_rotations(record.rigids, record.psmiles), 1, 2)
    if np.abs(turned + record.rigids[:, None, 4:] - x_ang).max() <= MAX_OVERLAP_ERROR_ANG:
        return "carry units onto tgt_coordinates"
    shift = x_ang - turned
    return "rotations only" if np.abs(shift - shift[:, :1]).max() <= MAX_OVERLAP_ERROR_ANG else "differ from tgt_coordinates"


def _graph_name(record: Record) -> str:
    """Which atoms whole_pyg has, by their number."""
    n, num_units = len(record.unit.elements), record.num_units
    sizes = {"unit": n, "unit without stars": n - 2, "chain": num_units * (n - 2) + 2, "chain without caps": num_units * (n - 2)}
    names = [name for name, size in sizes.items() if size == record.graph_atoms]
    return " or ".join(names) if names else f"{record.graph_atoms} atoms" if record.graph_atoms else "absent"
