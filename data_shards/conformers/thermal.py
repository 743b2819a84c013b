"""Thermal torsions of a molecule: Metropolis sampling of its rotatable bonds from relaxed conformers."""

from __future__ import annotations

import math

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
    energies_kcal_mol: NDArray[np.float64],
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
        energies_kcal_mol: (R,) of them, as relax gives them.
        turning: rotors of the molecule.
        num_samples: states kept of each walker, STEPS_PER_SAMPLE trial moves apart.
        temperature_energy_kcal_mol: RT.
        rng: of moves and acceptance.

    Returns:
        (R * num_samples, atoms, 3) states, walker by walker, and their energies.
    """
    if not turning:
        return np.repeat(x_ang, num_samples, axis=0), np.repeat(energies_kcal_mol, num_samples)
    states, energies_kept = [], []
    for start, relaxed in zip(x_ang, energies_kcal_mol.tolist(), strict=True):
        mol = with_positions(parameters.mol, start)
        field = parameters.torsional_field(mol)
        x, energy = start, field.CalcEnergy()
        constant = relaxed - energy
        steps = num_samples * STEPS_PER_SAMPLE
        bonds = rng.integers(len(turning), size=steps).tolist()
        turns = np.where(rng.random(steps) < JUMP_SHARE, rng.choice(JUMPS_RAD, steps), rng.normal(0.0, SMALL_MOVE_RAD, steps)).tolist()
        tolerated = (-temperature_energy_kcal_mol * np.log1p(-rng.random(steps))).tolist()
        for step in range(steps):
            b, c, moved = turning[bonds[step]]
            trial = turn(x, b, c, moved, turns[step])
            raised = field.CalcEnergy(trial.ravel().tolist())  # without the list RDKit would use distances of the start
            if raised - energy < tolerated[step]:
                x, energy = trial, raised
            if (step + 1) % STEPS_PER_SAMPLE == 0:
                states.append(x)
                energies_kept.append(energy + constant)
    return np.array(states), np.array(energies_kept)


def turn(x_ang: NDArray[np.float64], b: int, c: int, moved: NDArray[np.int64], angle_rad: float) -> NDArray[np.float64]:
    """Coordinates (atoms, 3) with the moved atoms turned about the axis b -> c."""
    i, j, k = (x_ang[c] - x_ang[b]).tolist()
    length = math.sqrt(i * i + j * j + k * k)
    i, j, k = i / length, j / length, k / length
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    rest = 1.0 - cos
    transposed = np.array(
        [
            [cos + i * i * rest, i * j * rest + k * sin, i * k * rest - j * sin],
            [i * j * rest - k * sin, cos + j * j * rest, j * k * rest + i * sin],
            [i * k * rest + j * sin, j * k * rest - i * sin, cos + k * k * rest],
        ]
    )
    turned = x_ang.copy()
    turned[moved] = (x_ang[moved] - x_ang[c]) @ transposed + x_ang[c]
    return turned
