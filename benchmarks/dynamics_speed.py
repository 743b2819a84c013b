"""One chain and two engines that move it by velocity Verlet with the same force field, MMFF94s in vacuum without cutoff.

OpenMM computes forces in compiled kernels (CPU platform, one thread). RDKit's own force field gives the gradient of every step to a
loop in Python; numpy does the rest. OpenMM also moves the chain in the theta environment, which RDKit does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_FS = 0.5
TEMPERATURE_KELVIN = 300.0
GAS_CONSTANT_KCAL_MOL_KELVIN = 1.987204e-3
ACCELERATION = 4.184e-4  # kcal/mol/angstrom/dalton in angstrom/fs^2
VARIANT = "MMFF94s"


@dataclass(frozen=True)
class Chain:
    """A chain at rest in its force field."""

    mol: Any  # with hydrogens, no conformer
    setup: Callable[[bool], Any]  # a new OpenMM system; True: in the theta environment
    x_ang: NDArray[np.float64]  # (A, 3)
    masses_da: NDArray[np.float64]  # (A,)

    @property
    def v_ang_fs(self) -> NDArray[np.float64]:
        """(A, 3) velocities of TEMPERATURE_KELVIN, always the same."""
        width = np.sqrt(GAS_CONSTANT_KCAL_MOL_KELVIN * TEMPERATURE_KELVIN * ACCELERATION / self.masses_da)
        return np.random.default_rng(0).standard_normal(self.x_ang.shape) * width[:, None]


def relaxed_chain(psmiles: str, units: int) -> Chain:
    """A grown chain after some steps of minimisation, so that both engines move it without bursting."""
    import openmm
    from rdkit import Chem

    from data_shards.chem.chain import chain_mol
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.grow import grow_chain
    from data_shards.conformers.mmff import chain_terms
    from data_shards.conformers.mmff_system import THETA, VACUUM, build_system
    from data_shards.conformers.statistics import backbone_positions

    unit = build_unit(psmiles)
    grown = grow_chain(unit, units, num_conformations=1)
    mol = chain_mol(unit.topology, units, hydrogens=True)
    masses = np.array([Chem.GetPeriodicTable().GetAtomicWeight(atom.GetAtomicNum()) for atom in mol.GetAtoms()])

    def setup(theta: bool) -> Any:
        terms, places = chain_terms(unit.topology, units, VARIANT), backbone_positions(unit.topology, units)
        return build_system(terms, masses, THETA if theta else VACUUM, positions_bonds=places)

    context = openmm.Context(setup(False), openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(np.concatenate([grown.heavy_ang[0], grown.hydrogen_ang[0]]) / 10)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    x_nm = context.getState(getPositions=True).getPositions(asNumpy=True)._value
    return Chain(mol, setup, 10 * np.asarray(x_nm, dtype=np.float64), masses)


def openmm_steps(chain: Chain, theta: bool = False) -> tuple[Callable[[int], None], float]:
    """A function that does some steps, and the energy at the start in kcal/mol."""
    import openmm

    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(chain.setup(theta), openmm.VerletIntegrator(STEP_FS / 1000), platform, {"Threads": "1"})
    context.setPositions(chain.x_ang / 10)
    context.setVelocities(chain.v_ang_fs * 100)  # nm/ps
    energy_kj_mol = context.getState(getEnergy=True).getPotentialEnergy()._value
    return lambda steps: context.getIntegrator().step(steps), energy_kj_mol / 4.184  # the context must live as long as its integrator


def rdkit_steps(chain: Chain) -> tuple[Callable[[int], None], float]:
    """The same with RDKit's gradient in a Python loop."""
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    mol = Chem.Mol(chain.mol)
    conformer = Chem.Conformer(len(chain.x_ang))
    conformer.SetPositions(chain.x_ang)
    mol.AddConformer(conformer)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=VARIANT)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, nonBondedThresh=1e6)
    field.Initialize()
    x_ang, v_ang_fs = chain.x_ang.copy(), chain.v_ang_fs
    per_force = -ACCELERATION / chain.masses_da[:, None]

    def acceleration() -> NDArray[np.float64]:
        return np.array(field.CalcGrad(x_ang.ravel().tolist())).reshape(-1, 3) * per_force

    a_ang_fs2 = acceleration()

    def run(steps: int) -> None:
        nonlocal a_ang_fs2
        for _ in range(steps):
            v_ang_fs[...] += 0.5 * STEP_FS * a_ang_fs2
            x_ang[...] += STEP_FS * v_ang_fs
            a_ang_fs2 = acceleration()
            v_ang_fs[...] += 0.5 * STEP_FS * a_ang_fs2

    return run, float(field.CalcEnergy())
