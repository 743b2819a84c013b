"""Metropolis moves of the torsions of a chain, between stretches of dynamics: they cross barriers that a short run does not.

A move turns everything on one side of a rotatable bond as a rigid body. Bonds, angles and handedness stay, the volume element of the atoms'
coordinates is kept, and a turn is as likely as its reverse, so the Metropolis rule leaves the Boltzmann distribution of the positions as it
is. Velocities are independent of positions there and stay.

Source: Metropolis et al., J. Chem. Phys. 21 (1953) 1087; Lal, Mol. Phys. 17 (1969) 57 (pivots); Duane et al., Phys. Lett. B 195 (1987) 216
(why dynamics and moves may alternate).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_tree, depth_first_order, dijkstra

from data_shards.chem.topology import rotatable_bonds
from data_shards.conformers.junction import GAS_CONSTANT_KCAL_MOL_K
from data_shards.conformers.simulation import Simulation
from data_shards.conformers.thermal import turn
from data_shards.schema import BOND_SINGLE, UnitTopology, chain_bonds, chain_hydrogens, unit_slots

SMALL_MOVE_RAD = float(np.deg2rad(20.0))
JUMPS_RAD = np.deg2rad([120.0, -120.0, 180.0])
JUMP_SHARE = 0.5


@dataclass(frozen=True)
class TorsionMoves:
    """The bonds of a chain that turn, and what turns with them.

    Attributes:
        bonds: (B, 2) atoms b, c; the side of c turns about b -> c.
        order: (A,) all atoms, so that the side of c is a stretch of it.
        stretch: (B, 2) first and one past the last place of that stretch.
        inside: (B,) True where the stretch turns, False where the atoms outside of it do: the smaller part does.
    """

    bonds: NDArray[np.int64]
    order: NDArray[np.int64]
    stretch: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @classmethod
    def of_chain(cls, topology: UnitTopology, num_units: int) -> TorsionMoves:
        """Acyclic single bonds with two or more heavy atoms on either side, those between units included; not beside a triple bond."""
        slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
        _, nbr0, nbr1, _ = topology.key_atoms.tolist()
        bonds = slots[:, rotatable_bonds(topology)[0][:, 1:3]].reshape(-1, 2)
        if topology.junction_order == BOND_SINGLE:
            bonds = np.concatenate([bonds, np.stack([slots[:-1, nbr1], slots[1:, nbr0]], axis=1)])
        heavy = int(slots.max()) + 1
        owner = np.repeat(np.arange(heavy), chain_hydrogens(topology, num_units))
        edges = np.concatenate([chain_bonds(topology, num_units)[0], np.stack([owner, heavy + np.arange(len(owner))], axis=1)])
        size = heavy + len(owner)
        tree = breadth_first_tree(coo_array((np.ones(len(edges)), tuple(edges.T)), shape=(size, size)).tocsr(), 0, directed=False)
        order = depth_first_order(tree, 0, directed=False, return_predecessors=False).astype(np.int64)
        depth = dijkstra(tree, directed=False, indices=0, unweighted=True)
        bonds = np.where((depth[bonds[:, 0]] < depth[bonds[:, 1]])[:, None], bonds, bonds[:, ::-1])  # b is nearer to the root
        place = np.empty(size, dtype=np.int64)
        place[order] = np.arange(size)
        first = place[bonds[:, 1]]
        stretch = np.stack([first, _ends(depth[order], first)], axis=1)
        return cls(bonds, order, stretch, 2 * (stretch[:, 1] - stretch[:, 0]) <= size)

    def turned_by(self, index: int) -> NDArray[np.int64]:
        """Atoms that turn with a bond, those on its axis not counted."""
        first, past = self.stretch[index]
        if self.inside[index]:
            return self.order[first + 1 : past]
        outside = np.concatenate([self.order[:first], self.order[past:]])
        return outside[outside != self.bonds[index, 0]]

    def run(self, simulation: Simulation, trials: int, kelvin: float, rng: np.random.Generator) -> int:
        """Try moves of random bonds one after the other; returns how many were taken. Velocities stay."""
        if not len(self.bonds) or not trials:
            return 0
        x_ang, energy, taken = simulation.positions_ang(), simulation.energy_kcal_mol(), 0
        picks = rng.integers(len(self.bonds), size=trials).tolist()
        jumps = rng.random(trials) < JUMP_SHARE
        angles = np.where(jumps, rng.choice(JUMPS_RAD, trials), rng.normal(0.0, SMALL_MOVE_RAD, trials)).tolist()
        tolerated = (-GAS_CONSTANT_KCAL_MOL_K * kelvin * np.log1p(-rng.random(trials))).tolist()
        for pick, angle, bound in zip(picks, angles, tolerated, strict=True):
            b, c = self.bonds[pick].tolist()
            trial = turn(x_ang, b, c, self.turned_by(pick), angle)
            simulation.place(trial)
            raised = simulation.energy_kcal_mol()
            if raised - energy < bound:
                x_ang, energy, taken = trial, raised, taken + 1
        simulation.place(x_ang)
        return taken


def _ends(depth: NDArray[np.float64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """One past the last place of the subtrees that begin at some places of a depth-first order: the next place that is no deeper."""
    ends = np.full(len(first), len(depth), dtype=np.int64)
    for k, place in enumerate(first.tolist()):
        shallow = np.flatnonzero(depth[place + 1 :] <= depth[place])
        if len(shallow):
            ends[k] = place + 1 + shallow[0]
    return ends
