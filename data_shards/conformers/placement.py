"""What one step of chain growth needs, prepared once for a polymer: shapes in the frame of their first bond, pairs that may touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.conformers.fragments import FragmentLibrary
from data_shards.conformers.quality import within_bonds
from data_shards.schema import UnitTopology, chain_bonds, chain_hydrogens, unit_slots

NUM_NEAR_UNITS = 4  # how many units back an atom can be within three bonds of a new unit's


@dataclass(frozen=True)
class Placement:
    """Shapes ready to be joined. Atoms of a placed unit: own heavy, own hydrogens, then what only a last unit keeps (star1, its hydrogens).

    The head frame of a shape has its origin at nbr0, its first axis towards star0 and its second towards the link atom d; the tail
    frame its origin at star1, first axis towards nbr1, second towards the link atom a. Growing turns the head frame of the next unit
    about the common first axis.
    """

    x_head_ang: NDArray[np.float64]  # (F, A + 1 + h1, 3) in the head frame
    cap_head_ang: NDArray[np.float64]  # (F, 1 + h0, 3) star0 and its hydrogens, head frame
    head_from_tail: NDArray[np.float64]  # (F, 3, 3) rotation
    tail_origin_ang: NDArray[np.float64]  # (F, 3) star1 in the head frame
    elements: NDArray[np.int64]  # (A + 1 + h1,)
    cap_elements: NDArray[np.int64]  # (1 + h0,)
    num_own: int  # A
    own_slots: NDArray[np.int64]  # (n - 2,) slots of the own heavy atoms
    excluded: NDArray[np.bool_]  # (NUM_NEAR_UNITS + 1, A + 1 + h1, A + 1 + h0), see bonded_pairs


def bond_frame(origin: NDArray[np.float64], along: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed frames (F, 3, 3), axes as columns: first towards ``along``, second towards ``towards`` as far as it is off the first.

    Where the three points lie on a line the second axis is the coordinate axis farthest from the first.
    """
    first = along - origin
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    arm = towards - origin
    second = arm - (arm * first).sum(-1, keepdims=True) * first
    on_line = np.linalg.norm(second, axis=-1) < 1e-3 * np.linalg.norm(arm, axis=-1)
    spare = np.eye(3)[np.abs(first).argmin(axis=-1)]
    spare = spare - (spare * first).sum(-1, keepdims=True) * first
    second = np.where(on_line[..., None], spare, second)
    second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def prepare(topology: UnitTopology, library: FragmentLibrary) -> Placement:
    """Put the shapes of a library into their head frames and find the pairs of atoms that bonds hold together."""
    star0, nbr0, nbr1, star1 = topology.key_atoms.tolist()
    a, d = topology.link_atoms.tolist()
    own = np.setdiff1d(np.arange(topology.num_atoms), [star0, star1])
    heavy = library.heavy_ang
    origin = heavy[:, nbr0]
    head = bond_frame(origin, heavy[:, star0], heavy[:, d])  # world_from_head of the shape's own coordinates
    tail = bond_frame(heavy[:, star1], heavy[:, nbr1], heavy[:, a] - heavy[:, nbr1] + heavy[:, star1])
    unit = np.concatenate([heavy[:, own], library.hydrogen_ang, heavy[:, [star1]], library.tail_hydrogen_ang], axis=1)
    cap = np.concatenate([heavy[:, [star0]], library.head_hydrogen_ang], axis=1)
    hydrogens = [np.ones(x.shape[1], dtype=np.int64) for x in (library.hydrogen_ang, library.tail_hydrogen_ang, library.head_hydrogen_ang)]
    elements = topology.elements.astype(np.int64)
    return Placement(
        x_head_ang=(unit - origin[:, None]) @ head,
        cap_head_ang=(cap - origin[:, None]) @ head,
        head_from_tail=np.swapaxes(head, 1, 2) @ tail,
        tail_origin_ang=((heavy[:, star1] - origin)[:, None] @ head)[:, 0],
        elements=np.concatenate([elements[own], hydrogens[0], elements[[star1]], hydrogens[1]]),
        cap_elements=np.concatenate([elements[[star0]], hydrogens[2]]),
        num_own=len(own) + library.hydrogen_ang.shape[1],
        own_slots=own,
        excluded=bonded_pairs(topology),
    )


def bonded_pairs(topology: UnitTopology) -> NDArray[np.bool_]:
    """Pairs of atoms at most three bonds apart.

    Returns:
        (NUM_NEAR_UNITS + 1, A + 1 + h1, A + 1 + h0). Entry k - 1 is for atoms of a unit (rows: its own, star1, hydrogens of star1)
        against those of the unit k before (columns: its own) and against the head cap (last columns) where that stands k before, as
        unit -1. The last entry, for everything farther, is False.
    """
    pairs = []
    for num_units in range(1, NUM_NEAR_UNITS + 2):
        heavy, counts = chain_bonds(topology, num_units)[0], chain_hydrogens(topology, num_units)
        owner = np.repeat(np.arange(len(counts)), counts)
        bonds = np.concatenate([heavy, np.stack([owner, len(counts) + np.arange(len(owner))], axis=1)])
        near = within_bonds(bonds, len(counts) + len(owner))
        groups = [_atoms_of(topology, num_units, k, owner, len(counts)) for k in range(num_units)]
        tail = np.concatenate([[len(counts) - 1], len(counts) + np.flatnonzero(owner == len(counts) - 1)])
        cap = np.concatenate([[0], len(counts) + np.flatnonzero(owner == 0)])
        rows = near[np.concatenate([groups[-1], tail])].toarray().astype(bool)
        pairs.append((rows, cap, groups))
    longest, _, groups = pairs[-1]
    own = np.stack([longest[:, groups[-1 - k]] for k in range(1, NUM_NEAR_UNITS + 1)])
    caps = np.stack([rows[:, cap] for rows, cap, _ in pairs[:NUM_NEAR_UNITS]])
    excluded = np.concatenate([own, caps], axis=2)
    return np.concatenate([excluded, np.zeros_like(excluded[:1])])


def _atoms_of(topology: UnitTopology, num_units: int, unit: int, owner: NDArray[np.int64], num_heavy: int) -> NDArray[np.int64]:
    """Chain atoms of one unit: own heavy atoms, then their hydrogens."""
    own = np.setdiff1d(np.arange(topology.num_atoms), topology.key_atoms[[0, 3]])
    heavy = unit_slots(topology.key_atoms, topology.num_atoms, num_units)[unit, own]
    return np.concatenate([heavy, num_heavy + np.flatnonzero(np.isin(owner, heavy))])
