"""Hydrogens relaxed about heavy atoms that stay: what a force field says of a conformation whose hydrogens nobody generated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_shards.conformers.mmff_system import THETA, VACUUM
from data_shards.conformers.simulation import Simulation
from data_shards.schema import UnitTopology


class HydrogenRelaxation:
    """One chain in MMFF94s: hydrogens move in the theta environment, whose cost is linear in the chain; the energy is that in vacuum.

    Args:
        topology: the repeat unit.
        num_units: N.
        max_iterations: of a conformation.

    Raises:
        PolymerError: no-force-field.
    """

    def __init__(self, topology: UnitTopology, num_units: int, max_iterations: int) -> None:
        self.max_iterations = max_iterations
        self.near = Simulation(topology, num_units, THETA, hold_heavy=True)
        self.whole = Simulation(topology, num_units, VACUUM)

    def relax(self, x_ang: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Relax conformations.

        Args:
            x_ang: (K, A, 3) heavy atoms, then hydrogens.

        Returns:
            Positions (K, A, 3) and energies (K,) in kcal/mol; NaN where a position is not finite.
        """
        relaxed, energies = np.array(x_ang, dtype=np.float64), np.full(len(x_ang), np.nan)
        for k in np.flatnonzero(np.isfinite(relaxed).all(axis=(1, 2))):
            self.near.place(relaxed[k])
            self.near.minimise(self.max_iterations)
            relaxed[k] = self.near.positions_ang()
            self.whole.place(relaxed[k])
            energies[k] = self.whole.energy_kcal_mol()
        return relaxed, energies
