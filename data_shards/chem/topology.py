"""What follows from the graph of a repeat unit alone: rings, distances, backbone, rotatable bonds. numpy only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_shards.schema import BOND_SINGLE, BOND_TRIPLE, UnitTopology


def adjacency(topology: UnitTopology) -> NDArray[np.bool_]:
    """(n, n) True between bonded slots."""
    return _bonded(topology.num_atoms, topology.bonds.astype(np.int64).tobytes())


def _bonded(num_atoms: int, bonds: bytes) -> NDArray[np.bool_]:
    """adjacency, of what can be the key of a cache."""
    first, last = np.frombuffer(bonds, dtype=np.int64).reshape(-1, 2).T
    matrix = np.zeros((num_atoms, num_atoms), dtype=bool)
    matrix[first, last] = matrix[last, first] = True
    return matrix


def graph_distances(topology: UnitTopology) -> NDArray[np.uint8]:
    """(n, n) number of bonds between slots, 255 where there is no path."""
    return _distances(adjacency(topology))


def _distances(bonded: NDArray[np.bool_]) -> NDArray[np.uint8]:
    size = len(bonded)
    out = np.full((size, size), 255, dtype=np.uint8)
    np.fill_diagonal(out, 0)
    reached = np.eye(size, dtype=bool)
    front = reached
    for step in range(1, size):
        front = ((front.astype(np.float32) @ bonded.astype(np.float32)) > 0) & ~reached
        if not front.any():
            break
        out[front] = step
        reached = reached | front
    return out


def _without(bonded: NDArray[np.bool_], i: int, j: int) -> NDArray[np.bool_]:
    cut = bonded.copy()
    cut[i, j] = cut[j, i] = False
    return cut


def ring_sizes_of_bonds(topology: UnitTopology) -> NDArray[np.int64]:
    """(m,) size of the smallest ring that each bond lies in, 0 for acyclic bonds; not to be changed by who reads it."""
    return _ring_sizes(topology.num_atoms, topology.bonds.astype(np.int64).tobytes())


@lru_cache(maxsize=8)
def _ring_sizes(num_atoms: int, bonds: bytes) -> NDArray[np.int64]:
    """From one end of each bond to the other by other bonds, all bonds at once: only the first step could take the bond itself."""
    bonded = _bonded(num_atoms, bonds)
    first, last = np.frombuffer(bonds, dtype=np.int64).reshape(-1, 2).T
    place = np.arange(len(first))
    sizes = np.zeros(len(first), dtype=np.int64)
    front = bonded[first]
    front[place, last] = False
    reached = front.copy()
    reached[place, first] = True
    weights = bonded.astype(np.float32)
    size = 2
    while len(place):
        front = ((front.astype(np.float32) @ weights) > 0) & ~reached
        size += 1
        there = front[np.arange(len(place)), last[place]]
        sizes[place[there]] = size
        going = ~there & front.any(axis=1)
        place, front, reached = place[going], front[going], (reached | front)[going]
    sizes.flags.writeable = False
    return sizes


def _distances_from(bonded: NDArray[np.bool_], source: int) -> NDArray[np.uint8]:
    out = np.full(len(bonded), 255, dtype=np.uint8)
    front = np.zeros(len(bonded), dtype=bool)
    front[source] = True
    step = 0
    while front.any():
        out[front] = step
        front = bonded[front].any(axis=0) & (out == 255)
        step += 1
    return out


def rings(topology: UnitTopology, max_size: int) -> list[NDArray[np.int64]]:
    """The smallest ring through each ring bond, each ring once: slots in order around it. Rings above ``max_size`` atoms are left out."""
    bonded = adjacency(topology)
    found: dict[frozenset[int], NDArray[np.int64]] = {}
    for i, j in topology.bonds.tolist():
        cut = _without(bonded, i, j)
        hops = _distances_from(cut, i)
        if not 1 < hops[j] < min(max_size, 255):
            continue
        path = [j]
        while path[-1] != i:
            path.append(int(np.flatnonzero(cut[path[-1]] & (hops == hops[path[-1]] - 1))[0]))
        found.setdefault(frozenset(path), np.array(path))
    return list(found.values())


def ring_bonds(topology: UnitTopology) -> NDArray[np.bool_]:
    """(m,) True for bonds in a ring."""
    return ring_sizes_of_bonds(topology) > 0


def smallest_ring_size(topology: UnitTopology) -> NDArray[np.int64]:
    """(n,) size of the smallest ring of each slot, 0 outside rings."""
    sizes = ring_sizes_of_bonds(topology)
    out = np.full(topology.num_atoms, 10**6, dtype=np.int64)
    for end in (0, 1):
        np.minimum.at(out, topology.bonds[:, end], np.where(sizes > 0, sizes, 10**6))
    return np.where(out < 10**6, out, 0)


def backbone(topology: UnitTopology) -> NDArray[np.bool_]:
    """(n,) True for slots on a shortest path between the stars."""
    one, other = _from_stars(topology)
    return np.asarray(one + other == one[topology.key_atoms[3]])


def bonds_through(topology: UnitTopology) -> int:
    """Bonds of the shortest path between the stars."""
    return int(_from_stars(topology)[0, topology.key_atoms[3]])


def _from_stars(topology: UnitTopology) -> NDArray[np.int64]:
    """(2, n) bonds from star0 and from star1."""
    bonds, stars = topology.bonds.astype(np.int64).tobytes(), (int(topology.key_atoms[0]), int(topology.key_atoms[3]))
    return _distances_kept(topology.num_atoms, bonds, stars)


@lru_cache(maxsize=8)
def _distances_kept(num_atoms: int, bonds: bytes, sources: tuple[int, ...]) -> NDArray[np.int64]:
    bonded = _bonded(num_atoms, bonds)
    found = np.stack([_distances_from(bonded, source) for source in sources]).astype(np.int64)
    found.flags.writeable = False
    return found


def rotatable_bonds(topology: UnitTopology) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Torsions of the unit: acyclic single bonds with at least two heavy atoms on either side.

    Bonds beside a triple bond or a cumulated atom are left out: their dihedral has no meaning.

    Returns:
        (T, 4) slots a, b, c, d and (T, n) bool, the slots that turn when the dihedral a-b-c-d changes. The smaller side turns; it is the
        side of c, and c itself, on the axis, is not counted. Sorted by the distance of the bond from star0.

    Source: Jing et al., Torsional diffusion, arXiv 2206.01729, section 3.1. Differs: linear bonds are left out.
    """
    bonded = adjacency(topology)
    hops = graph_distances(topology)
    in_ring = ring_bonds(topology)
    triple = np.zeros(topology.num_atoms, dtype=bool)
    triple[topology.bonds[topology.bond_orders == BOND_TRIPLE].ravel()] = True
    doubles = np.bincount(topology.bonds[topology.bond_orders == 2].ravel(), minlength=topology.num_atoms)
    linear = (triple | (doubles >= 2)) & (bonded.sum(axis=1) == 2)  # a sulfone has two double bonds and is not linear
    found: list[tuple[int, int, NDArray[np.int32], NDArray[np.bool_]]] = []
    ends = topology.bonds
    sides = hops[ends[:, 1]] < hops[ends[:, 0]]  # (m, n) slots beyond a bond that is in no ring
    sizes = sides.sum(axis=1)
    turns = ~in_ring & (topology.bond_orders == BOND_SINGLE) & ~linear[ends].any(axis=1) & (np.minimum(sizes, len(bonded) - sizes) >= 2)
    for k in np.flatnonzero(turns).tolist():
        (i, j), side_j = ends[k], sides[k]
        turns_j = sizes[k] <= len(bonded) - sizes[k]
        b, c = (i, j) if turns_j else (j, i)
        moved = side_j.copy() if turns_j else ~side_j
        moved[c] = False
        a = min(x for x in np.flatnonzero(bonded[b]) if x != c)
        d = min(x for x in np.flatnonzero(bonded[c]) if x != b)
        depth = int(min(hops[topology.key_atoms[0], i], hops[topology.key_atoms[0], j]))
        found.append((depth, k, np.array([a, b, c, d], dtype=np.int32), moved))
    found.sort(key=lambda entry: entry[:2])
    if not found:
        return np.zeros((0, 4), dtype=np.int32), np.zeros((0, topology.num_atoms), dtype=bool)
    return np.stack([f[2] for f in found]), np.stack([f[3] for f in found])
