"""A real chain with any end groups -> the repeat units in it, atom by atom in schema order.

The repeat unit is matched where it stands between two bonds: from the bond star0-nbr0 its own atoms are followed to the bond
nbr1-star1, which is the bond that the next unit starts from. Own atoms must have the element, the number of heavy neighbours and, where
they are known, the number of hydrogens that they have inside a long chain. The search goes back only inside rings: every atom and
every bond of a side group must be there, so two groups that both fit in one place are the same group, and a choice made on one side of
a bridge never has to be taken back. Hence a step costs the same however symmetric the side groups are, and a chain costs N steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.capped import MARKED
from data_shards.chem.repeat_unit import RepeatUnit
from data_shards.chem.stereo import measure_signs
from data_shards.chem.topology import ring_bonds
from data_shards.errors import PolymerError
from data_shards.schema import TopologyKey, UnitTopology

MIN_SHARE = 0.5  # of the heavy atoms of a molecule that must be in whole units for it to be a chain of them, unless
MAX_END_GROUP_ATOMS = 6  # no more is left out at either end than a part of a unit and an end group of this size
UNKNOWN = -1  # number of hydrogens that a structure neither has nor implies


@dataclass(frozen=True)
class ChainGraph:
    """Atoms and bonds of one structure as it was found.

    Attributes:
        elements: (A,) atomic numbers; 1 is a hydrogen, 0 an atom that stands for nothing and is not looked at.
        bonds: (b, 2) atoms, each bond once.
        hydrogens: (A,) hydrogens that an atom has or by its bond orders must have, UNKNOWN where neither can be told.
        x_ang: (A, 3) float64 positions.
    """

    elements: NDArray[np.uint8]
    bonds: NDArray[np.int64]
    hydrogens: NDArray[np.int64]
    x_ang: NDArray[np.float64]

    def neighbours(self, *, hydrogen: bool) -> list[list[int]]:
        """Bonded hydrogens, or bonded heavy atoms, of every atom."""
        wanted = self.elements == 1 if hydrogen else self.elements > 1
        found: list[list[int]] = [[] for _ in self.elements]
        for i, j in self.bonds.tolist():
            if wanted[j]:
                found[i].append(j)
            if wanted[i]:
                found[j].append(i)
        return [sorted(row) for row in found]


def find_units(graph: ChainGraph, unit: RepeatUnit, *, endless: bool = False) -> NDArray[np.int64]:
    """The longest run of whole units in a structure.

    A unit is whole when its own atoms and one atom of each neighbour are there; so the last atom at either end of the run, its cap, is
    an atom of the structure too. Among runs that differ by one unit at most, the one that agrees best with the stereo marks of the
    P-SMILES is taken, then, where hydrogens are unknown, the one whose bonds have the most likely lengths. A short run inside a large
    molecule is an accident, not a chain of these units.

    Args:
        graph: the structure, with end groups, other molecules, hydrogens or none.
        unit: canonical repeat unit.
        endless: the structure is a piece of an endless chain; how much of it is left out says nothing.

    Returns:
        (N, n) atom of every (unit, slot).

    Raises:
        PolymerError: psmiles-mismatch where there is no whole unit, or most of the molecule is something else.
    """
    topology = unit.topology
    matcher = _Matcher(graph, topology)
    runs = _runs(matcher)
    if not runs:
        heavy = int((graph.elements > 1).sum())
        detail = f"no whole unit of {topology.psmiles} with an atom on either side of it is among the {heavy} heavy atoms of the structure"
        raise PolymerError(topology.psmiles, "psmiles-mismatch", f"{detail}; check the P-SMILES, bonds and hydrogens of the record")
    longest = max(map(len, runs))
    close = [run for run in runs if len(run) >= max(longest - 1, 1)]
    unsure = bool((graph.hydrogens[close[0]] == UNKNOWN).any())
    chosen: NDArray[np.int64] = min(
        close,
        key=lambda run: (
            wrong_centres(graph.x_ang, run, topology) + wrong_double_bonds(graph.x_ang, run, unit),
            round(_length_error_ang(graph.x_ang, run, unit), 3) if unsure else 0.0,
            -len(run),
            tuple(run[0].tolist()),
        ),
    )
    covered, molecule = len(np.unique(chosen)), matcher.molecule_size(int(chosen[0, 0]))
    ends = 2 * (topology.num_atoms - 2 + MAX_END_GROUP_ATOMS)
    if not endless and covered < min(MIN_SHARE * molecule, molecule - ends):
        detail = f"whole units of {topology.psmiles} are only {covered} of the {molecule} heavy atoms of the molecule"
        raise PolymerError(topology.psmiles, "psmiles-mismatch", f"{detail}; check the P-SMILES")
    return chosen


def wrong_centres(x_ang: NDArray[np.float64], slots: NDArray[np.int64], topology: UnitTopology) -> int:
    """Stereocentres whose handedness is not the one that the P-SMILES fixes."""
    signs = measure_signs(x_ang[slots], topology.stereo_centres, topology.stereo_neighbours)
    return int(((signs != topology.stereo_specified) & (topology.stereo_specified != 0)).sum())


def wrong_double_bonds(x_ang: NDArray[np.float64], slots: NDArray[np.int64], unit: RepeatUnit) -> int:
    """Double bonds that are cis where the P-SMILES says trans, or the other way round."""
    marked = [bond for bond in unit.mol.GetBonds() if bond.GetStereo() in MARKED]
    wrong = 0
    for bond in marked:
        left, right = bond.GetStereoAtoms()
        ends = slots[:, [left, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), right]]
        a, b, c, d = np.moveaxis(x_ang[ends], 1, 0)
        above, below = np.cross(a - b, c - b), np.cross(b - c, d - c)
        trans = bond.GetStereo() in (Chem.BondStereo.STEREOTRANS, Chem.BondStereo.STEREOE)
        wrong += int((((above * below).sum(axis=1) < 0) != trans).sum())
    return wrong


def _length_error_ang(x_ang: NDArray[np.float64], slots: NDArray[np.int64], unit: RepeatUnit) -> float:
    """Mean difference between the bond lengths of a run and those of the unit's reference conformers."""
    ends = unit.reference_ang[:, unit.capped.slots][:, unit.topology.bonds]
    usual = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=-1).mean(axis=0)
    found = x_ang[slots[:, unit.topology.bonds]]
    return float(np.abs(np.linalg.norm(found[:, :, 1] - found[:, :, 0], axis=-1) - usual).mean())


def _runs(matcher: _Matcher) -> list[NDArray[np.int64]]:
    """Every maximal run (N, n) of units in which no atom is used twice."""
    units = matcher.units()
    _, _, nbr1, star1 = matcher.key_atoms
    follows = {start: (row[nbr1], row[star1]) for start, row in units.items()}
    led_to = {end for start, end in follows.items() if end in units and end != start}
    runs = []
    for start in [k for k in units if k not in led_to] or sorted(units):  # every unit of a ring is led to
        rows, used, here = [], {start[0]}, start
        while here in units:
            own = matcher.own_atoms(units[here])
            if used.intersection(own):
                break
            rows.append(units[here])
            used.update(own)
            here = follows[here]
        while rows and rows[-1][star1] in used:
            used.difference_update(matcher.own_atoms(rows.pop()))
        if rows:
            runs.append(np.array(rows, dtype=np.int64))
    return runs


@dataclass(frozen=True)
class _Template:
    """The graph of a repeat unit, ready to be followed from its head."""

    ring: tuple[tuple[int, ...], ...]  # neighbours of a slot across bonds in rings
    bridged: tuple[tuple[int, ...], ...]  # neighbours across bridges, side groups before the slot that leads on to star1
    blocks: tuple[tuple[int, ...], ...]  # slots of the ring system of a slot in an order of growing distance, itself first


@lru_cache(maxsize=256)
def _template(key: TopologyKey) -> _Template:
    topology = key.topology
    ring: list[list[int]] = [[] for _ in range(topology.num_atoms)]
    bridged: list[list[int]] = [[] for _ in range(topology.num_atoms)]
    for (i, j), cyclic in zip(topology.bonds.tolist(), ring_bonds(topology), strict=True):
        for a, b in ((i, j), (j, i)):
            (ring if cyclic else bridged)[a].append(b)
    everything = [one + two for one, two in zip(ring, bridged, strict=True)]
    star1 = int(topology.key_atoms[3])
    for slot, others in enumerate(bridged):
        others.sort(key=lambda other: star1 in _reached(everything, other, slot))
    blocks = tuple(tuple(_reached(ring, slot, -1)) for slot in range(topology.num_atoms))
    return _Template(tuple(map(tuple, ring)), tuple(map(tuple, bridged)), blocks)


def _reached(neighbours: list[list[int]], start: int, barred: int) -> list[int]:
    """Slots that can be reached from one without passing another, nearest first."""
    order = [start]
    for slot in order:
        order.extend(other for other in neighbours[slot] if other != barred and other not in order)
    return order


class _Matcher:
    """Units of one topology in one structure."""

    def __init__(self, graph: ChainGraph, topology: UnitTopology) -> None:
        self.topology, self.x_ang = topology, graph.x_ang
        self.key_atoms: list[int] = topology.key_atoms.tolist()
        self.template = _template(TopologyKey(topology))
        self.around = graph.neighbours(hydrogen=False)
        self.elements, self.hydrogens = graph.elements.tolist(), graph.hydrogens.tolist()
        self.wanted = list(
            zip(
                topology.elements.tolist(),
                [len(a) + len(b) for a, b in zip(self.template.ring, self.template.bridged, strict=True)],
                topology.num_hydrogens.tolist(),
                strict=True,
            )
        )
        self.known: dict[tuple[int, int, int], dict[int, int] | None] = {}
        specified = np.flatnonzero(topology.stereo_specified)
        self.centres = {
            int(topology.stereo_centres[k]): (topology.stereo_neighbours[k].tolist(), int(topology.stereo_specified[k])) for k in specified
        }

    def units(self) -> dict[tuple[int, int], list[int]]:
        """Bond (star0, nbr0) of the structure -> atoms (n,) of the unit that starts there."""
        star0, nbr0, _, star1 = self.key_atoms
        found = {}
        for head, others in enumerate(self.around):
            if self.elements[head] != self.wanted[star0][0]:
                continue
            for atom in others:
                mapping = self._follow(nbr0, atom, star0, head)
                if mapping is not None:
                    whole = mapping | {star0: head}
                    if len(set(whole.values())) == self.topology.num_atoms and star1 in whole:
                        found[head, atom] = [whole[slot] for slot in range(self.topology.num_atoms)]
        return found

    def molecule_size(self, atom: int) -> int:
        """Heavy atoms of the molecule that an atom belongs to."""
        seen, waiting = {atom}, [atom]
        while waiting:
            fresh = set(self.around[waiting.pop()]) - seen
            seen |= fresh
            waiting.extend(fresh)
        return len(seen)

    def own_atoms(self, row: list[int]) -> list[int]:
        """Atoms of a unit without those that belong to its neighbours."""
        star0, _, _, star1 = self.key_atoms
        return [atom for slot, atom in enumerate(row) if slot not in (star0, star1)]

    def _fits(self, slot: int, atom: int) -> bool:
        element, degree, hydrogens = self.wanted[slot]
        there = self.hydrogens[atom]
        return self.elements[atom] == element and len(self.around[atom]) == degree and there in (hydrogens, UNKNOWN)

    def _follow(self, slot: int, atom: int, parent_slot: int, parent_atom: int) -> dict[int, int] | None:
        """Everything behind the bridge parent -> slot laid on everything behind parent_atom -> atom; None where it does not fit."""
        if slot == self.key_atoms[3]:
            return {slot: atom} if self.elements[atom] == self.wanted[slot][0] else None
        key = (slot, atom, parent_atom)
        if key not in self.known:
            self.known[key] = None
            best: tuple[int, dict[int, int]] | None = None
            for block in self._blocks(slot, atom):
                whole = self._side_groups(block, slot, parent_slot, parent_atom)
                if whole is None:
                    continue
                wrong = self._wrong(block, whole | {parent_slot: parent_atom})
                if best is None or wrong < best[0]:
                    best = wrong, whole
                if not wrong:
                    break
            self.known[key] = best[1] if best else None
        return self.known[key]

    def _blocks(self, slot: int, atom: int) -> Iterator[dict[int, int]]:
        """Ways to lay the ring system of a slot on the structure, the slot on the atom."""
        order = self.template.blocks[slot]
        mapping: dict[int, int] = {}

        def place(depth: int) -> Iterator[dict[int, int]]:
            if depth == len(order):
                yield dict(mapping)
                return
            here = order[depth]
            placed = [mapping[other] for other in self.template.ring[here] if other in mapping]
            for candidate in self.around[placed[0]] if placed else [atom]:
                bonded = all(candidate in self.around[other] for other in placed)
                if bonded and candidate not in mapping.values() and self._fits(here, candidate):
                    mapping[here] = candidate
                    yield from place(depth + 1)
                    del mapping[here]

        return place(0)

    def _side_groups(self, block: dict[int, int], entry: int, parent_slot: int, parent_atom: int) -> dict[int, int] | None:
        """A placed ring system together with all that hangs on it."""
        whole = dict(block)
        taken = set(block.values()) | {parent_atom}
        for slot, atom in block.items():
            free = [other for other in self.around[atom] if other not in taken]
            for child in self.template.bridged[slot]:
                if slot == entry and child == parent_slot:
                    continue
                for candidate in free:
                    found = self._follow(child, candidate, slot, atom)
                    if found is not None:
                        free.remove(candidate)
                        whole |= found
                        break
                else:
                    return None
        return whole

    def _wrong(self, block: dict[int, int], whole: dict[int, int]) -> int:
        """Centres of a ring system with another handedness than the P-SMILES fixes."""
        wrong = 0
        for slot in block.keys() & self.centres.keys():
            triple, sign = self.centres[slot]
            arms = self.x_ang[[whole[k] for k in triple]] - self.x_ang[whole[slot]]
            wrong += int(np.sign(np.linalg.det(arms)) != sign)
        return wrong
