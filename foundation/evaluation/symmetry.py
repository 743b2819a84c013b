"""Which atoms of a chain may trade places, and the superposition that is best over all such trades.

A chain cannot be told from itself after

    a local exchange   an automorphism of one unit's graph that leaves the atoms beside its junctions in place: ring flips (pendant
                       phenyl, phenylene in the backbone), methyls or fluorines on one atom, oxygens of a carboxylate, nitro or sulfonyl
                       group, equal branches with all they carry. Every unit chooses for itself.
    reversal           where an automorphism of the unit swaps its two ends, caps included

Exchanges that would turn or move a stereocentre are left out. Not covered: automorphisms that mix atoms of several units in another way
(there are none where the units are joined by single bonds in a row, but for reversal), and more than MAX_MAPS automorphisms of a unit.
A polymer whose ends differ by their caps (HO-[CH2CH2O]n-CH3) is not palindromic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.chem.stereo import measure_signs
from data_shards.schema import TopologyKey, UnitTopology
from foundation.evaluation.chains import ChainTables
from foundation.geometry.align import kabsch

MAX_MAPS = 2048
MAX_ROUNDS = 5  # of choosing trades and superposing again
RESONANT = 9  # order of the bonds from an atom to its terminal atoms of one element


@dataclass(frozen=True)
class Exchange:
    """Atoms of a unit that trade places among themselves.

    Attributes:
        slots: (s,) slots that may move.
        images: (P, s) slots whose atoms take their places; row 0 leaves all in place.
    """

    slots: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class UnitSymmetry:
    """Exchanges of a unit that are independent of one another, and (n,) the map that swaps its ends, or None."""

    exchanges: tuple[Exchange, ...]
    reversal: NDArray[np.int64] | None


@lru_cache(maxsize=1024)
def unit_symmetry(key: TopologyKey) -> UnitSymmetry:
    """Symmetries of a repeat unit inside a chain."""
    topology = key.topology
    star0, nbr0, nbr1, star1 = (int(k) for k in topology.key_atoms)
    ends = [[k for k, slot in enumerate((star0, nbr0, nbr1, star1)) if slot == a] for a in range(topology.num_atoms)]
    swapped = [sorted(3 - k for k in roles) for roles in ends]
    local = np.array(list(_maps(topology, ends, ends)), dtype=np.int64)
    kept = np.array([_keeps_stereo(topology, row) for row in local])
    reversal = None
    if topology.cap_hydrogens[0] == topology.cap_hydrogens[1]:
        reversal = next(iter(_maps(topology, ends, swapped)), None)
    return UnitSymmetry(_independent(local[kept]), None if reversal is None else np.array(reversal, dtype=np.int64))


def _maps(topology: UnitTopology, roles: list[list[int]], image_roles: list[list[int]]) -> Iterator[list[int]]:
    """Automorphisms as lists of images, at most MAX_MAPS; the image of an atom has the same role."""
    n = topology.num_atoms
    orders, atoms = _bond_orders(topology)
    near = [np.flatnonzero(row).tolist() for row in orders]
    colour, image_colour = _refined([[(atoms[a], tuple(given[a])) for a in range(n)] for given in (roles, image_roles)], orders, near)
    if sorted(colour) != sorted(image_colour):
        return
    order, parent = [int(topology.key_atoms[0])], {int(topology.key_atoms[0]): -1}
    for atom in order:
        for other in near[atom]:
            if other not in parent:
                parent[other] = atom
                order.append(other)
    found = 0

    def extend(place: int, image: dict[int, int]) -> Iterator[list[int]]:
        nonlocal found
        if place == n:
            found += 1
            yield [image[a] for a in range(n)]
            return
        atom = order[place]
        for other in range(n) if parent[atom] < 0 else near[image[parent[atom]]]:
            fits = colour[atom] == image_colour[other] and other not in image.values()
            if fits and all(orders[atom, a] == orders[other, image[a]] for a in order[:place]):
                yield from extend(place + 1, {**image, atom: other})
                if found >= MAX_MAPS:
                    return

    yield from extend(0, {})


def _bond_orders(topology: UnitTopology) -> tuple[NDArray[np.int64], list[tuple[int, ...]]]:
    """(n, n) bond orders, zero without a bond, and what an atom is by itself. Terminal atoms that share a charge or a double bond by
    resonance are alike."""
    n = topology.num_atoms
    orders = np.zeros((n, n), dtype=np.int64)
    i, j = topology.bonds.T
    orders[i, j] = orders[j, i] = topology.bond_orders
    charges = topology.formal_charges.astype(np.int64).copy()
    stars = topology.key_atoms[[0, 3]]
    terminal = ((orders > 0).sum(1) == 1) & (topology.num_hydrogens == 0) & np.isin(topology.elements, (8, 16))
    terminal[stars] = False
    for centre in range(n):
        around = np.flatnonzero((orders[centre] > 0) & terminal)
        for element in np.unique(topology.elements[around]):
            same = around[topology.elements[around] == element]
            if len(same) > 1:
                orders[centre, same] = orders[same, centre] = RESONANT
                charges[same] = 0
    atoms = np.stack([topology.elements.astype(np.int64), charges, topology.num_hydrogens.astype(np.int64)], axis=1)
    return orders, [tuple(row) for row in atoms.tolist()]


def _refined(starts: list[list[tuple[object, ...]]], orders: NDArray[np.int64], near: list[list[int]]) -> list[list[int]]:
    """Colours of atoms told apart by their surroundings, of several first colourings at once so that they can be compared."""
    colours: list[list[object]] = [list(start) for start in starts]
    count = 0
    while True:
        names = sorted({repr(c) for colouring in colours for c in colouring})
        number = {name: k for k, name in enumerate(names)}
        plain = [[number[repr(c)] for c in colouring] for colouring in colours]
        if len(names) == count:
            return plain
        count = len(names)
        colours = [[(own[a], sorted((int(orders[a, b]), own[b]) for b in near[a])) for a in range(len(own))] for own in plain]


def _keeps_stereo(topology: UnitTopology, image: NDArray[np.int64]) -> bool:
    """No stereocentre moves and the three neighbours that define it are not exchanged oddly."""
    for centre, triple in zip(topology.stereo_centres.tolist(), topology.stereo_neighbours.tolist(), strict=True):
        moved = image[triple].tolist()
        if image[centre] != centre or sorted(moved) != sorted(triple):
            return False
        if np.linalg.det(np.eye(3)[[triple.index(a) for a in moved]]) < 0:
            return False
    return True


def _independent(maps: NDArray[np.int64]) -> tuple[Exchange, ...]:
    """A group of maps (P, n) as exchanges of separate atoms: those that no smaller map is a part of, joined where they overlap."""
    size = maps.shape[1]
    moved = maps != np.arange(size)
    label = np.arange(size)
    for row in np.flatnonzero(moved.any(1)):
        part = (moved & ~moved[row]).sum(1) == 0  # moves nothing but what this one moves
        part &= ((maps == maps[row]) | ~moved).all(1) & moved.any(1) & (moved.sum(1) < moved[row].sum())
        if not part.any():
            joined = np.isin(label, label[moved[row]])
            label[joined] = label[joined].min()
    exchanges = []
    for name in np.unique(label):
        slots = np.flatnonzero(label == name)
        if len(slots) > 1:
            inside = ~(moved & (label != name)).any(1)
            images = np.unique(maps[inside][:, slots], axis=0)
            still = (images == slots).all(1)
            exchanges.append(Exchange(slots, np.concatenate([images[still], images[~still]])))
    return tuple(exchanges)


def chain_starts(tables: ChainTables, x_ang: NDArray[np.floating]) -> list[NDArray[np.int64]]:
    """(H,) atoms in their own places, and read from the other end where the chain is the same from there.

    Args:
        tables: of the chain.
        x_ang: (H, 3) a conformation with the right handedness: reversal must keep the configuration.
    """
    same = np.arange(tables.num_heavy_atoms)
    swap = unit_symmetry(TopologyKey(tables.topology)).reversal
    if swap is None:
        return [same]
    back = same.copy()
    back[tables.slots] = tables.slots[::-1, swap]
    centres, around = tables.topology.stereo_centres, tables.topology.stereo_neighbours
    before, after = (measure_signs(x[tables.slots], centres, around) for x in (x_ang, x_ang[back]))
    return [same, back] if np.array_equal(before, after) else [same]


def symmetric_rmsd_matrix(tables: ChainTables, reference_ang: NDArray[np.floating], generated_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """Kabsch RMSD of every pair, atoms named as suits it best.

    From each direction of the chain: superpose; let every exchange of every unit take the places that lie nearest; superpose again, until
    nothing changes. The deviation falls at every step, so no value exceeds the plain one; a better set of trades may exist where two
    chains differ as a whole.

    Args:
        tables: of the chain.
        reference_ang: (J, H, 3).
        generated_ang: (I, H, 3).

    Returns:
        (J, I) angstrom.

    Source: Besl and McKay, IEEE Trans. PAMI 14 (1992) 239, for alternating between pairing and superposing.
    """
    exchanges = unit_symmetry(TopologyKey(tables.topology)).exchanges
    y = np.asarray(reference_ang, dtype=np.float64)[:, None]
    best = np.full((len(reference_ang), len(generated_ang)), np.inf)
    for start in chain_starts(tables, reference_ang[0]):
        x = np.broadcast_to(np.asarray(generated_ang, dtype=np.float64)[:, start], (len(y), *generated_ang.shape))
        for _ in range(MAX_ROUNDS):
            motion, rmsd = kabsch(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y))
            fell = rmsd.numpy() < best
            best = np.minimum(best, rmsd.numpy())
            if not exchanges or not fell.any():
                break
            x = _traded(tables, exchanges, motion.apply(torch.from_numpy(np.ascontiguousarray(x))).numpy(), y)
    return best


def _traded(
    tables: ChainTables, exchanges: tuple[Exchange, ...], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Superposed chains (J, I, H, 3) with their atoms renamed after the nearest of y (J, 1, H, 3)."""
    out = x.copy()
    for exchange in exchanges:
        places = tables.slots[:, exchange.slots]  # (N, s)
        offered = x[:, :, tables.slots[:, exchange.images]]  # (J, I, N, P, s, 3)
        cost = ((offered - y[:, :, places][:, :, :, None]) ** 2).sum((-2, -1))
        pick = cost.argmin(-1)[..., None, None, None]
        out[:, :, places] = np.take_along_axis(offered, pick, axis=3)[:, :, :, 0]
    return out
