"""Which atoms of a chain may trade places, and the superposition that is best over all such trades.

A chain cannot be told from itself after

    a local exchange   an automorphism of one unit's graph that leaves the atoms beside its junctions in place: ring flips (pendant
                       phenyl, phenylene in the backbone), methyls or fluorines on one atom, oxygens of a carboxylate, nitro or sulfonyl
                       group, equal branches with all they carry. Every unit chooses for itself.
    reversal           where an automorphism of the unit swaps its two ends, caps included

Not covered: exchanges that would turn or move a stereocentre, those between a cap and a branch beside it (the methyl that ends
poly(isobutylene) and its neighbours), and what lies beyond MAX_MAPS automorphisms of a unit. A polymer whose ends differ by their caps
(HO-[CH2CH2O]n-CH3) is not palindromic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from data_shards.chem.stereo import measure_signs
from data_shards.schema import TopologyKey, UnitTopology
from foundation.evaluation.chains import ChainTables
from foundation.evaluation.metrics import rmsd_matrix

MAX_MAPS = 2048
MAX_ROUNDS = 20  # of choosing trades and superposing again
GRID_SIZE = 1000  # a rotation within about 25 degrees of any other
MAX_PRODUCTS = 4_000_000  # choices times rotations that are held at once
NUM_STARTS = 16  # best ones of the grid that are followed to their maxima
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


def symmetric_rmsd_matrix(
    tables: ChainTables, reference_ang: NDArray[np.floating], generated_ang: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Kabsch RMSD of every pair, atoms named as suits it best; never above the plain one.

    Given a rotation, every exchange of every unit is chosen on its own; so what is left is a function of the rotation alone. It is read
    on a grid of rotations, and the best of them are taken to their maxima by superposing and choosing in turn.

    Args:
        tables: of the chain.
        reference_ang: (J, H, 3).
        generated_ang: (I, H, 3).

    Returns:
        (J, I) angstrom.

    Source: Besl and McKay, IEEE Trans. PAMI 14 (1992) 239, for superposing and choosing in turn.
    """
    exchanges = unit_symmetry(TopologyKey(tables.topology)).exchanges
    found = rmsd_matrix(reference_ang, generated_ang)
    y, x = (np.asarray(part, dtype=np.float64) for part in (reference_ang, generated_ang))
    y, x = y - y.mean(1, keepdims=True), x - x.mean(1, keepdims=True)
    for start in chain_starts(tables, y[0]):
        read = x[:, start]
        for row, other in enumerate(y):
            named = np.stack([_best_names(tables, exchanges, one, other) for one in read]) if exchanges else read
            found[row] = np.minimum(found[row], rmsd_matrix(other[None], named)[0])
    return found


def _best_names(
    tables: ChainTables, exchanges: tuple[Exchange, ...], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A centred chain (H, 3) with its atoms renamed so that it superposes best on y (H, 3).

    Every choice adds a 3 x 3 matrix sum x y^T to a total; the rotation gains its trace with the total.
    """
    places = [tables.slots[:, e.slots] for e in exchanges]  # (N, s)
    offered = [x[tables.slots[:, e.images]] for e in exchanges]  # (N, P, s, 3)
    gains = [np.einsum("npsa,nsb->npba", there, y[here]).reshape(*there.shape[:2], 9) for there, here in zip(offered, places, strict=True)]
    still = np.ones(len(x), dtype=bool)
    still[np.concatenate([here.ravel() for here in places])] = False
    fixed = y[still].T @ x[still]
    plain = y.T @ x
    grid = _grid()
    rows = grid.reshape(-1, 9)
    score = rows @ fixed.ravel()
    for gain in gains:
        step = max(1, MAX_PRODUCTS // (gain.shape[0] * gain.shape[1]))
        for first in range(0, GRID_SIZE, step):
            score[first : first + step] += (gain @ rows[first : first + step].T).max(1).sum(0)
    turn = np.concatenate([grid[np.argsort(-score)[:NUM_STARTS]], _rotations(np.stack([plain, fixed]))])
    for _ in range(MAX_ROUNDS):
        picks = [(gain @ turn.reshape(-1, 9).T).argmax(1) for gain in gains]  # (N, starts)
        taken = [np.take_along_axis(gain, pick[..., None], 1).sum(0) for gain, pick in zip(gains, picks, strict=True)]
        total = fixed + np.sum(taken, axis=0).reshape(-1, 3, 3)
        again = _rotations(total)
        if np.allclose(again, turn, rtol=0, atol=1e-9):
            break
        turn = again
    best = int((total * again).sum((1, 2)).argmax())
    out = x.copy()
    for here, there, pick in zip(places, offered, picks, strict=True):
        out[here] = np.take_along_axis(there, pick[:, best, None, None, None], 1)[:, 0]
    return out


@lru_cache(maxsize=1)
def _grid() -> NDArray[np.float64]:
    """(GRID_SIZE, 3, 3) the same rotations in every run."""
    return np.asarray(Rotation.from_quat(np.random.default_rng(0).normal(size=(GRID_SIZE, 4))).as_matrix())


def _rotations(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S, 3, 3) sums y x^T -> the proper rotations of x with the largest trace."""
    u, _, vt = np.linalg.svd(total)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return np.asarray(u @ vt)
