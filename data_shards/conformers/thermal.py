"""Thermal torsions of a molecule: Metropolis sampling of its rotatable bonds from relaxed conformers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.conformers.force_field import ForceField, with_positions

SMALL_MOVE_RAD = float(np.deg2rad(12.0))
JUMPS_RAD = np.deg2rad([120.0, -120.0, 180.0])  # from one rotamer to another
JUMP_SHARE = 0.25
STEPS_PER_SAMPLE = 25


def rotors(mol: Chem.Mol) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Acyclic single bonds b-c that turn something, with the atoms that turn: the smaller side, without the axis.

    Bonds at linear atoms are left out.
    """
    found = []
    for bond in mol.GetBonds():
        if bond.GetBondType() != Chem.BondType.SINGLE or bond.IsInRing():
            continue
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        if any(atom.GetDegree() < 2 or atom.GetHybridization() == Chem.HybridizationType.SP for atom in ends):
            continue
        b, c = (atom.GetIdx() for atom in ends)
        side = _side(mol, c, b)
        if 2 * len(side) > mol.GetNumAtoms():
            b, c = c, b
            side = _side(mol, c, b)
        found.append((b, c, np.array(sorted(side - {c}), dtype=np.int64)))
    return found


def _side(mol: Chem.Mol, start: int, blocked: int) -> set[int]:
    seen, front = {start}, [start]
    while front:
        front = list({k.GetIdx() for j in front for k in mol.GetAtomWithIdx(j).GetNeighbors()} - seen - {blocked})
        seen.update(front)
    return seen


def sample_torsions(
    parameters: ForceField,
    x_ang: NDArray[np.float64],
    turning: list[tuple[int, int, NDArray[np.int64]]],
    num_samples: int,
    temperature_energy_kcal_mol: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metropolis walk in the torsions, one walker from every conformer.

    Bond lengths and angles of a walker, and so its handedness, stay those of its conformer.

    Args:
        parameters: force field of the molecule.
        x_ang: (R, atoms, 3) relaxed conformers.
        turning: rotors of the molecule.
        num_samples: states kept of each walker, STEPS_PER_SAMPLE trial moves apart.
        temperature_energy_kcal_mol: RT.
        rng: of moves and acceptance.

    Returns:
        (R * num_samples, atoms, 3) states, walker by walker, and their energies.
    """
    if not turning:
        whole = with_positions(parameters.mol, x_ang[0])
        field = parameters.field(whole)
        energies = np.array([field.CalcEnergy(x.ravel().tolist()) for x in x_ang])
        return np.repeat(x_ang, num_samples, axis=0), np.repeat(energies, num_samples)
    states, energies_kept = [], []
    for start in x_ang:
        mol = with_positions(parameters.mol, start)
        field = parameters.field(mol)
        x, energy = start, field.CalcEnergy()
        steps = num_samples * STEPS_PER_SAMPLE
        bonds = rng.integers(len(turning), size=steps)
        turns = np.where(rng.random(steps) < JUMP_SHARE, rng.choice(JUMPS_RAD, steps), rng.normal(0.0, SMALL_MOVE_RAD, steps))
        tolerated = -temperature_energy_kcal_mol * np.log1p(-rng.random(steps))
        for step in range(steps):
            b, c, moved = turning[bonds[step]]
            trial = turn(x, b, c, moved, float(turns[step]))
            raised = field.CalcEnergy(trial.ravel().tolist())
            if raised - energy < tolerated[step]:
                x, energy = trial, raised
            if (step + 1) % STEPS_PER_SAMPLE == 0:
                states.append(x)
                energies_kept.append(energy)
    return np.array(states), np.array(energies_kept)


def turn(x_ang: NDArray[np.float64], b: int, c: int, moved: NDArray[np.int64], angle_rad: float) -> NDArray[np.float64]:
    """Coordinates (atoms, 3) with the moved atoms turned about the axis b -> c."""
    axis = x_ang[c] - x_ang[b]
    axis = axis / np.sqrt(axis @ axis)
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    rotation = np.eye(3) + np.sin(angle_rad) * cross + (1.0 - np.cos(angle_rad)) * (cross @ cross)
    turned = x_ang.copy()
    turned[moved] = (x_ang[moved] - x_ang[c]) @ rotation.T + x_ang[c]
    return turned
