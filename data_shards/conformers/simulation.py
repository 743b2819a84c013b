"""One chain as an OpenMM context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from data_shards.conformers.mmff import chain_terms
from data_shards.conformers.mmff_system import KJ_PER_KCAL, Environment, atomic_masses_da, build_system
from data_shards.conformers.statistics import backbone_positions
from data_shards.errors import InputError
from data_shards.schema import UnitTopology

FORCE_KCAL_MOL_ANG = 0.1  # a chain is relaxed where the root mean square of force components is below


class Simulation:
    """A chain as an OpenMM context: positions in angstrom, all heavy atoms and then all hydrogens."""

    def __init__(
        self,
        topology: UnitTopology,
        num_units: int,
        environment: Environment,
        platform: str = "CPU",
        integrator: Callable[[], Any] = lambda: openmm.VerletIntegrator(0.001),
        hydrogen_mass_da: float | None = None,
        hold_heavy: bool = False,
    ) -> None:
        """
        Args:
            topology: the repeat unit.
            num_units: N.
            environment: which non-bonded terms there are.
            platform: of OpenMM, or auto.
            integrator: makes one.
            hydrogen_mass_da: None: as in nature.
            hold_heavy: minimisation moves the hydrogens only.

        Raises:
            PolymerError: no-force-field.
            InputError: num_units below 1, or OpenMM has no such platform here.
        """
        terms = chain_terms(topology, num_units)
        self.masses_da = atomic_masses_da(terms)
        if hydrogen_mass_da is not None:
            self.masses_da[terms.atom.values[:, 0] == 1] = hydrogen_mass_da
        if hold_heavy:
            self.masses_da[terms.atom.values[:, 0] != 1] = 0.0  # OpenMM leaves atoms without a mass where they are
        where = backbone_positions(topology, num_units)
        system = build_system(terms, self.masses_da, environment, positions_bonds=where)
        self.context = _context(system, integrator, platform)

    @property
    def integrator(self) -> Any:
        """Of the context."""
        return self.context.getIntegrator()

    def place(self, x_ang: NDArray[np.floating]) -> None:
        """Set positions (A, 3)."""
        self.context.setPositions(np.asarray(x_ang, dtype=np.float64) / 10)

    def positions_ang(self) -> NDArray[np.float64]:
        """(A, 3)."""
        positions: NDArray[np.float64] = self.context.getState(getPositions=True).getPositions(asNumpy=True)._value * 10.0
        return positions

    def energy_kcal_mol(self) -> float:
        """Potential energy."""
        return float(self.context.getState(getEnergy=True).getPotentialEnergy()._value / KJ_PER_KCAL)

    def minimise(self, max_iterations: int) -> bool:
        """Go to the next minimum; True where it was reached."""
        tolerance = FORCE_KCAL_MOL_ANG * KJ_PER_KCAL * 10  # kJ/mol/nm
        openmm.LocalEnergyMinimizer.minimize(self.context, 0.5 * tolerance, max_iterations)
        forces = self.context.getState(getForces=True).getForces(asNumpy=True)._value
        return bool(np.sqrt(np.mean(forces**2)) <= tolerance)


def _context(system: openmm.System, integrator: Callable[[], Any], platform: str) -> openmm.Context:
    here = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    names = [name for name in ("CUDA", "OpenCL", "CPU", "Reference") if name in here] if platform == "auto" else [platform]
    if names[0] not in here:
        raise InputError(f"platform {platform!r} is not one of those that OpenMM has here: {', '.join(here)}; choose one of them or auto")
    options = {"CPU": {"Threads": "1"}, "CUDA": {"Precision": "mixed"}, "OpenCL": {"Precision": "mixed"}}
    for name in names:
        try:
            return openmm.Context(system, integrator(), openmm.Platform.getPlatformByName(name), options.get(name, {}))
        except openmm.OpenMMException as error:  # a platform without its device
            failed = InputError(f"platform {name!r} does not start ({error}); choose CPU")
    raise failed
