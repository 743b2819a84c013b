"""MMFF94s with UFF as its stand-in: relaxing conformers and scanning a dihedral. One thread, fixed iteration limits, no randomness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers, rdMolTransforms

MAX_RELAX_ITERATIONS = 120
MAX_SCAN_ITERATIONS = 40
NON_BONDED_CUTOFF_ANG = 9.0
TORSION_FORCE_KCAL_MOL_DEG2 = 0.1  # holds a scanned dihedral within about a degree


@dataclass(frozen=True)
class ForceField:
    """Parameters of one molecule.

    Electrostatics of an isolated fragment in vacuum would fold polar units onto themselves, which a melt does not do: they are left out.
    """

    name: str  # MMFF94s or UFF
    mol: Chem.Mol
    properties: Any  # RDKit MMFF properties, None for UFF

    def field(self, mol: Chem.Mol) -> Any:
        """RDKit force field at the molecule's only conformer; it points into ``mol``, which must outlive it."""
        if self.properties is None:
            field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, vdwThresh=NON_BONDED_CUTOFF_ANG)
        else:
            field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, self.properties, nonBondedThresh=NON_BONDED_CUTOFF_ANG)
        field.Initialize()
        return field


def force_field(mol: Chem.Mol) -> ForceField | None:
    """MMFF94s where it types every atom, else UFF, else None."""
    with rdBase.BlockLogs():  # UFF names every atom that it does not know; the caller says what that means
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
        if properties is not None:
            properties.SetMMFFEleTerm(False)
            return ForceField("MMFF94s", mol, properties)
        return ForceField("UFF", mol, None) if rdForceFieldHelpers.UFFHasAllMoleculeParams(mol) else None


def with_positions(mol: Chem.Mol, x_ang: NDArray[np.float64]) -> Chem.Mol:
    """Copy of a molecule with one conformer."""
    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.ascontiguousarray(x_ang, dtype=np.float64))
    copy.AddConformer(conformer, assignId=True)
    return copy


def relax(parameters: ForceField, x_ang: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise conformers.

    Args:
        parameters: of the molecule.
        x_ang: (R, atoms, 3).

    Returns:
        Relaxed (R, atoms, 3) and energies (R,) in kcal/mol.
    """
    relaxed, energies = np.empty_like(x_ang), np.empty(len(x_ang))
    for k, start in enumerate(x_ang):
        mol = with_positions(parameters.mol, start)
        field = parameters.field(mol)
        field.Minimize(maxIts=MAX_RELAX_ITERATIONS, forceTol=1e-3, energyTol=1e-4)
        relaxed[k], energies[k] = mol.GetConformer().GetPositions(), field.CalcEnergy()
    return relaxed, energies


def scan_dihedral(
    parameters: ForceField, x_ang: NDArray[np.float64], atoms: tuple[int, int, int, int], angles_rad: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Energy of a molecule with one dihedral held at each of some angles and everything else relaxed.

    Args:
        parameters: of the molecule.
        x_ang: (atoms, 3) start.
        atoms: four bonded atoms; the bond of the middle two is in no ring.
        angles_rad: (G,) angles.

    Returns:
        (G,) kcal/mol, the holding term not counted.
    """
    whole = with_positions(parameters.mol, x_ang)
    free = parameters.field(whole)
    energies = np.empty(len(angles_rad))
    for k, angle in enumerate(angles_rad.tolist()):
        mol = with_positions(parameters.mol, x_ang)
        rdMolTransforms.SetDihedralRad(mol.GetConformer(), *atoms, angle)
        held = parameters.field(mol)
        limits = (False, float(np.rad2deg(angle)) - 0.5, float(np.rad2deg(angle)) + 0.5, TORSION_FORCE_KCAL_MOL_DEG2)
        (held.UFFAddTorsionConstraint if parameters.properties is None else held.MMFFAddTorsionConstraint)(*atoms, *limits)
        held.Minimize(maxIts=MAX_SCAN_ITERATIONS)
        energies[k] = free.CalcEnergy(mol.GetConformer().GetPositions().ravel().tolist())
    return energies
