"""Fast builder: a chain grows unit by unit from shapes of its repeat unit, joined at link dihedrals, and avoids itself.

A step draws candidate shapes (with the handedness that the tacticity asks for) and candidate dihedrals from their ensembles, lays the
next unit's bond star0-nbr0 onto the last unit's bond nbr1-star1, and keeps one of the candidates without a clash, by the Boltzmann
weight of its contacts (Rosenbluth's step). Units that may be near come from a hash of cells, so a step costs the same however long the
chain is. A dead end takes back 1, 2, 4 ... units. Nothing is relaxed afterwards: bond lengths and angles are those of the shapes, on
both sides of every junction.

Source: Rosenbluth and Rosenbluth, J. Chem. Phys. 23 (1955) 356, for the choice among candidates. Differs: chains are not reweighted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data_shards.chem.chain import pick_configurations
from data_shards.chem.repeat_unit import RepeatUnit
from data_shards.conformers.fragments import FragmentLibrary, fragment_library
from data_shards.conformers.junction import RT_KCAL_MOL
from data_shards.conformers.placement import NUM_NEAR_UNITS, Placement, prepare
from data_shards.conformers.quality import clash_limits_ang
from data_shards.errors import InputError, PolymerError

CANDIDATES = ((12, 1.0), (36, 1.0), (128, 4.0))  # drawn one batch after the other until one fits; how far dihedrals are flattened
MAX_TAKE_BACK_POWER = 7  # dead ends at the same length take back 1, 1, 2, 2, 4 ... 128 units
MAX_DEAD_ENDS_PER_UNIT = 30
MIN_DEAD_ENDS = 150
CLASH_MARGIN_ANG = 0.02  # so that rounding to float32 does not make a clash
SOFT_CONTACT = 1.25  # contacts are felt below this multiple of the clash distance
CONTACT_ENERGY_KCAL_MOL = 90.0  # times the square of the missing share: 3.6 at a clash, as for a rigid syn-pentane pair


@dataclass(frozen=True)
class GrownChain:
    """K conformations of one chain of N units with one configuration."""

    heavy_ang: NDArray[np.float32]  # (K, H, 3)
    hydrogen_ang: NDArray[np.float32]  # (K, number of hydrogens, 3)
    handedness: NDArray[np.int8]  # (N, c)
    info: dict[str, Any]  # force fields, number of shapes, dead ends of each conformation
    energies_kcal_mol: NDArray[np.float64] | None = None  # (K,) of the whole chain; a grown one is not scored


def grow_chain(
    unit: RepeatUnit,
    num_units: int,
    *,
    num_conformations: int,
    tacticity: str = "atactic",
    seed: int = 0,
    library: FragmentLibrary | None = None,
) -> GrownChain:
    """Build conformations of a chain.

    Args:
        unit: repeat unit.
        num_units: N, at least 1.
        num_conformations: K, at least 1; all have the same configuration.
        tacticity: isotactic, syndiotactic or atactic.
        seed: of configuration, shapes and dihedrals; the same seed gives the same bits.
        library: shapes of the unit, built from the seed where None.

    Raises:
        PolymerError: as fragment_library, and no-self-avoiding-chain.
        InputError: a count below 1, or an unknown tacticity.
    """
    for name, value in (("num_units", num_units), ("num_conformations", num_conformations)):
        if value < 1:
            raise InputError(f"{name} {value} must be at least 1; ask for 1 or more")
    signs = pick_configurations(unit.configurations, num_units, tacticity, seed)
    library = fragment_library(unit, seed=seed) if library is None else library
    placement = prepare(unit.topology, library)
    choice = _Choice.of(unit, library, signs)
    heavy, hydrogen, dead_ends = [], [], []
    for k in range(num_conformations):
        chain = _Growth(placement, choice, num_units, np.random.default_rng([seed, k]))
        chain.run(unit.topology.psmiles)
        dead_ends.append(chain.dead_ends)
        x_heavy, x_hydrogen = chain.coordinates()
        heavy.append(x_heavy)
        hydrogen.append(x_hydrogen)
    info = {
        "force_field": library.force_field,
        "junction_force_field": library.junction.force_field,
        "num_shapes": len(library.weights),
        "dead_ends": dead_ends,
    }
    return GrownChain(np.stack(heavy), np.stack(hydrogen), signs, info)


@dataclass(frozen=True)
class _Choice:
    """From which shapes and dihedrals each unit draws."""

    fragments: FragmentLibrary
    signs: NDArray[np.int8]  # (N, c)
    pattern: NDArray[np.int64]  # (N,) row of the tables below
    shapes: list[NDArray[np.int64]]  # of each pattern
    cumulative: list[NDArray[np.float64]]  # weights of these shapes, added up

    @classmethod
    def of(cls, unit: RepeatUnit, library: FragmentLibrary, signs: NDArray[np.int8]) -> _Choice:
        patterns = unit.configurations
        pattern = (signs[:, None] == patterns[None]).all(axis=-1).argmax(axis=1)
        shapes = [np.flatnonzero((library.handedness == row).all(axis=1)) for row in patterns]
        return cls(library, signs, pattern, shapes, [np.cumsum(library.weights[rows]) for rows in shapes])

    def draw(self, index: int, count: int, flatness: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Shapes (count,) of unit ``index`` and dihedrals (count,) of the junction before it."""
        uniform = rng.random((2, count))
        cumulative = self.cumulative[self.pattern[index]]
        place = np.searchsorted(cumulative, uniform[0] * cumulative[-1], side="right").clip(max=len(cumulative) - 1)
        shapes = self.shapes[self.pattern[index]][place]
        junction = self.fragments.junction
        s = int(self.signs[index - 1, junction.left]) if junction.left >= 0 and index else 0
        t = int(self.signs[index, junction.right]) if junction.right >= 0 and index else 0
        return shapes, junction.draw(s, t, uniform[1], flatness) if index else 2 * np.pi * uniform[1]


@dataclass(frozen=True)
class _Near:
    """Atoms around the end of a chain."""

    tree: cKDTree  # (P,) positions about the end
    column: NDArray[np.int64]  # (P,) column of Placement.excluded and of the contact limits
    before: NDArray[np.int64]  # (P,) how many units earlier in the chain, the head cap counting as a unit


class _Growth:
    """One chain while it grows. Unit i stands in row i of the arrays; rows beyond ``length`` are free."""

    def __init__(self, placement: Placement, choice: _Choice, num_units: int, rng: np.random.Generator) -> None:
        self.placement, self.choice, self.num_units, self.rng = placement, choice, num_units, rng
        kept = placement.x_head_ang.shape[1]
        self.x_ang = np.empty((num_units, kept, 3))
        self.cap_ang = np.zeros(placement.cap_head_ang.shape[1:])
        self.rotation = np.empty((num_units, 3, 3))  # world_from_tail
        self.origin_ang = np.empty((num_units, 3))  # star1
        self.cells: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self.keys: list[tuple[int, ...]] = []
        self.length, self.dead_ends = 0, 0
        columns = np.concatenate([placement.elements[: placement.num_own], placement.cap_elements])
        self.limits = clash_limits_ang(placement.elements, columns) + CLASH_MARGIN_ANG
        self.contact_ang = SOFT_CONTACT * float(self.limits.max())
        spread = placement.x_head_ang - placement.x_head_ang.mean(axis=1, keepdims=True)
        self.reach_ang = float(np.linalg.norm(placement.x_head_ang, axis=-1).max()) + self.contact_ang
        self.cell_ang = self.reach_ang + float(np.linalg.norm(spread, axis=-1).max())

    def run(self, psmiles: str) -> None:
        """Grow to the full length.

        Raises:
            PolymerError: no-self-avoiding-chain.
        """
        allowed = max(MIN_DEAD_ENDS, MAX_DEAD_ENDS_PER_UNIT * self.num_units)
        farthest = 0
        stuck = np.zeros(self.num_units, dtype=np.int64)  # dead ends met at each length
        while self.length < self.num_units:
            if self._extend():
                farthest = max(farthest, self.length)
                continue
            self.dead_ends += 1
            stuck[self.length] += 1
            stuck[self.length + 1 :] = 0  # what was learnt about longer chains belongs to units that go now
            if self.dead_ends > allowed:
                raise PolymerError(
                    psmiles,
                    "no-self-avoiding-chain",
                    f"stopped at unit {farthest} of {self.num_units} after {allowed} dead ends; ask for a shorter chain",
                )
            self._take_back(min(self.length, 2 ** min(int(stuck[self.length] - 1) // 2, MAX_TAKE_BACK_POWER)))

    def _extend(self) -> bool:
        """Add one unit; False where no candidate fits."""
        index, shapes_of = self.length, self.placement
        last = index == self.num_units - 1
        atoms = shapes_of.x_head_ang.shape[1] if last else shapes_of.num_own + 1
        start = self.origin_ang[index - 1] if index else np.zeros(3)
        near = self._surroundings(index, start)
        fragments = self.choice.fragments
        for count, flatness in CANDIDATES:
            shapes, dihedrals = self.choice.draw(index, count, flatness, self.rng)
            turned = (self.rotation[index - 1] if index else np.eye(3)) @ _twist(dihedrals)  # (M, 3, 3) world_from_head
            x_ang = shapes_of.x_head_ang[shapes] @ np.swapaxes(turned, 1, 2)  # (M, A + ..., 3) about start
            weights = self._contact_weights(x_ang[:, :atoms], near)
            if index == 0:
                weights = weights * fragments.head_fits[shapes]
            if last:
                weights = weights * fragments.tail_fits[shapes]
            total = np.cumsum(weights)
            if total[-1] > 0:
                chosen = int(np.searchsorted(total, self.rng.random() * total[-1], side="right").clip(max=count - 1))
                self._place(index, int(shapes[chosen]), turned[chosen], x_ang[chosen], start)
                return True
        return False

    def _surroundings(self, index: int, start: NDArray[np.float64]) -> _Near:
        """Atoms of the chain that unit ``index`` could touch."""
        own, cap = self.placement.num_own, len(self.placement.cap_elements)
        units = self._near_units(start)
        x_ang = np.concatenate([self.x_ang[units, :own].reshape(-1, 3), self.cap_ang]) - start
        column = np.concatenate([np.tile(np.arange(own), len(units)), own + np.arange(cap)])
        before = np.concatenate([np.repeat(index - units, own), np.full(cap, index + 1)]).clip(max=NUM_NEAR_UNITS + 1)
        inside = (x_ang * x_ang).sum(axis=1) < (self.reach_ang**2 if index else 0.0)
        return _Near(cKDTree(x_ang[inside]), column[inside], before[inside])

    def _contact_weights(self, x_ang: NDArray[np.float64], near: _Near) -> NDArray[np.float64]:
        """Boltzmann weights (M,) of the contacts of candidates (M, a, 3) with the atoms around them; zero where two atoms clash."""
        count, atoms = x_ang.shape[:2]
        if near.tree.n == 0:
            return np.ones(count)
        pairs = cKDTree(x_ang.reshape(-1, 3)).sparse_distance_matrix(near.tree, self.contact_ang, output_type="ndarray")
        candidate, atom = np.divmod(pairs["i"], atoms)
        column = near.column[pairs["j"]]
        share = pairs["v"] / (SOFT_CONTACT * self.limits[atom, column])
        felt = (share < 1.0) & ~self.placement.excluded[near.before[pairs["j"]] - 1, atom, column]
        energy = CONTACT_ENERGY_KCAL_MOL * (1.0 - share[felt]) ** 2
        energy[share[felt] * SOFT_CONTACT < 1.0] = np.inf
        return np.exp(-np.bincount(candidate[felt], weights=energy, minlength=count) / RT_KCAL_MOL)

    def _near_units(self, start: NDArray[np.float64]) -> NDArray[np.int64]:
        """Units in the 27 cells about a point."""
        i, j, k = (int(c) for c in np.floor(start / self.cell_ang))
        found: list[int] = []
        for key in ((i + a, j + b, k + c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)):
            if key in self.cells:
                found.extend(self.cells[key])
        return np.array(sorted(found), dtype=np.int64)

    def _place(self, index: int, shape: int, turned: NDArray[np.float64], x_ang: NDArray[np.float64], start: NDArray[np.float64]) -> None:
        self.x_ang[index] = x_ang + start
        self.rotation[index] = turned @ self.placement.head_from_tail[shape]
        self.origin_ang[index] = turned @ self.placement.tail_origin_ang[shape] + start
        if index == 0:
            self.cap_ang = self.placement.cap_head_ang[shape] @ turned.T + start
        key = tuple(int(c) for c in np.floor(self.x_ang[index, : self.placement.num_own].mean(axis=0) / self.cell_ang))
        self.cells[key].append(index)
        self.keys.append(key)
        self.length = index + 1

    def _take_back(self, count: int) -> None:
        for _ in range(count):
            self.cells[self.keys.pop()].pop()  # units leave in the opposite order of their coming
            self.length -= 1

    def coordinates(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Heavy atoms (H, 3) and hydrogens in schema order, centred on the heavy atoms' mean."""
        heavy, own = len(self.placement.own_slots), self.placement.num_own
        x_heavy = np.concatenate([self.cap_ang[:1], self.x_ang[:, :heavy].reshape(-1, 3), self.x_ang[-1, [own]]])
        x_hydrogen = np.concatenate([self.cap_ang[1:], self.x_ang[:, heavy:own].reshape(-1, 3), self.x_ang[-1, own + 1 :]])
        centre = x_heavy.mean(axis=0)
        return (x_heavy - centre).astype(np.float32), (x_hydrogen - centre).astype(np.float32)


def _twist(dihedrals_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, 3, 3) tail_from_head: the head frame's second axis stands at the link dihedral from the tail frame's, seen from nbr1."""
    cos, sin = np.cos(dihedrals_rad), np.sin(dihedrals_rad)
    turn = np.zeros((len(dihedrals_rad), 3, 3))
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1], turn[:, 2, 1] = cos, -sin
    turn[:, 1, 2], turn[:, 2, 2] = sin, cos
    return turn
