"""Thermal torsions of a molecule: Metropolis sampling of its rotatable bonds from relaxed conformers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.conformers.force_field import ForceField, with_positions

SMALL_MOVE_RAD = float(np.deg2rad(12.0))
JUMPS_RAD = np.deg2rad([120.0, -120.0, 180.0])  # from one rotamer to another
JUMP_SHARE = 0.25
STEPS_PER_SAMPLE = 25
EYE = np.eye(3)
NEAR, WELL = np.array([[1.07, 0.07], [1.12, 0.12]], dtype=np.float32)  # of MMFF94's buffered 14-7
ZERO, MINUS_TWO = np.float32(0.0), np.float32(-2.0)
CROSS = np.cross(np.eye(3)[:, None], np.eye(3)[None]).reshape(3, 9)  # v @ (axis @ CROSS) is axis x v


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


@dataclass(frozen=True)
class _Turning:
    """What changes when one rotor turns: pairs of the atoms that move with those that stay, and the cosines about its bond."""

    b: int
    c: int
    moved: NDArray[np.int64]  # (M,)
    fixed: NDArray[np.int64]  # (S,) without b and c, whose distances to the others stay
    inverse_r_star: NDArray[np.float32]  # (M, S) 1/angstrom
    eps_kcal_mol: NDArray[np.float32]  # (M, S) zero for atoms less than three bonds apart
    place: NDArray[np.int64]  # (M * S,) of every pair (i, j), i < j, as i * atoms + j
    torsions: NDArray[np.int64]  # (T, 4) with b and c in the middle
    half_barriers: NDArray[np.float64]  # (3, T) V1/2, -V2/2, V3/2 of MMFF94

    def pairs(self, moved_ang: NDArray[np.float64], x_ang: NDArray[np.float64]) -> NDArray[np.float32]:
        """(W, M * S) van der Waals energies, kcal/mol, of moved atoms (W, M, 3) with those of states (W, atoms, 3) that stay.

        Single precision, with the axis near the origin: 1e-4 kcal/mol for atoms that do not clash, and half the time.

        Source: Halgren, J. Comput. Chem. 17 (1996) 490, eq. 8 (buffered 14-7).
        """
        origin = x_ang[:, self.c, None]
        moved, fixed = (moved_ang - origin).astype(np.float32), (x_ang[:, self.fixed] - origin).astype(np.float32)
        squared = moved @ np.swapaxes(fixed, 1, 2)
        squared *= MINUS_TWO
        squared += np.einsum("wmd,wmd->wm", moved, moved)[:, :, None]
        squared += np.einsum("wsd,wsd->ws", fixed, fixed)[:, None]
        q = np.sqrt(np.maximum(squared, ZERO, out=squared), out=squared)
        q *= self.inverse_r_star
        near = NEAR[0] / (q + NEAR[1])
        power = q * q
        power *= power * power * q  # seventh
        power += WELL[1]
        well = np.divide(WELL[0], power, out=power)
        well += MINUS_TWO
        square = near * near
        near *= square * square * square
        near *= well
        near *= self.eps_kcal_mol
        return near.reshape(len(near), -1)

    def waves(self, torsions_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """(W,) kcal/mol of dihedrals (W, T) about the bond, without the constant. Source: Halgren 1996, eq. 7."""
        cos = np.cos(torsions_rad)
        v1, v2, v3 = self.half_barriers
        energy: NDArray[np.float64] = (cos * (v1 - 3.0 * v3 + cos * (2.0 * v2 + cos * (4.0 * v3))) - v2).sum(axis=1)
        return energy


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
    count, steps = len(x_ang), num_samples * STEPS_PER_SAMPLE
    rotor = rng.integers(len(turning), size=steps).tolist()  # the same for all walkers, so that they step together
    jumps = rng.random((steps, count)) < JUMP_SHARE
    turns = np.where(jumps, rng.choice(JUMPS_RAD, (steps, count)), rng.normal(0.0, SMALL_MOVE_RAD, (steps, count)))
    tolerated = -temperature_energy_kcal_mol * np.log1p(-rng.random((steps, count)))
    walk = _walk_uff if parameters.properties is None else _walk_mmff
    states, raised = walk(parameters, x_ang, turning, rotor, turns, tolerated)
    return states.reshape(-1, *x_ang.shape[1:]), (energies_kcal_mol[:, None] + raised).ravel()


def _walk_mmff(
    parameters: ForceField,
    x_ang: NDArray[np.float64],
    turning: list[tuple[int, int, NDArray[np.int64]]],
    rotor: list[int],
    turns_rad: NDArray[np.float64],
    tolerated: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All walkers at once: states (R, samples, atoms, 3) and their energies (R, samples) above the start's.

    The energy of every pair of atoms is kept, so that a trial move computes only what it would change.
    """
    parts = _turnings(parameters, turning)
    dihedrals = [_dihedrals_rad(x_ang, part.torsions) for part in parts]
    waves = [part.waves(angles) for part, angles in zip(parts, dihedrals, strict=True)]
    x, raised = x_ang.copy(), np.zeros(len(x_ang))
    pairs = np.zeros((x.shape[1] ** 2, len(x)), dtype=np.float32)  # kcal/mol of pair (i, j) at i * atoms + j, i < j
    for part in parts:
        pairs[part.place] = part.pairs(x[:, part.moved], x).T
    states, energies = [], []
    for step, (k, angles, bound) in enumerate(zip(rotor, turns_rad, tolerated, strict=True)):
        part = parts[k]
        trial, turned = _turn_all(x, part, angles), dihedrals[k] + angles[:, None]
        after, wave = part.pairs(trial, x), part.waves(turned)
        before = pairs.take(part.place, axis=0).sum(axis=0, dtype=np.float64)  # in double, so that what was added is taken away
        change = after.sum(axis=1, dtype=np.float64) - before + wave - waves[k]
        taken = np.flatnonzero(change < bound)
        if len(taken):
            x[taken[:, None], part.moved] = trial[taken]
            dihedrals[k][taken], waves[k][taken] = turned[taken], wave[taken]
            raised[taken] += change[taken]
            pairs[part.place[:, None], taken] = after[taken].T
        if (step + 1) % STEPS_PER_SAMPLE == 0:
            states.append(x.copy())
            energies.append(raised.copy())
    return np.stack(states, axis=1), np.stack(energies, axis=1)


def _walk_uff(
    parameters: ForceField,
    x_ang: NDArray[np.float64],
    turning: list[tuple[int, int, NDArray[np.int64]]],
    rotor: list[int],
    turns_rad: NDArray[np.float64],
    tolerated: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As _walk_mmff, with the energies of RDKit's UFF."""
    states, energies = [], []
    for walker, start in enumerate(x_ang):
        mol = with_positions(parameters.mol, start)
        field = parameters.field(mol)
        x, lowest = start, field.CalcEnergy()
        energy = lowest
        for step, k in enumerate(rotor):
            trial = turn(x, *turning[k], float(turns_rad[step, walker]))
            raised = field.CalcEnergy(trial.ravel().tolist())  # without the list RDKit would use distances of the start
            if raised - energy < tolerated[step, walker]:
                x, energy = trial, raised
            if (step + 1) % STEPS_PER_SAMPLE == 0:
                states.append(x)
                energies.append(energy - lowest)
    shape = len(x_ang), -1
    return np.array(states).reshape(*shape, *x_ang.shape[1:]), np.array(energies).reshape(shape)


def _turnings(parameters: ForceField, turning: list[tuple[int, int, NDArray[np.int64]]]) -> list[_Turning]:
    """Read the terms that each rotor changes from RDKit's MMFF94s."""
    mol, properties = parameters.mol, parameters.properties
    types = np.array([properties.GetMMFFAtomType(k) for k in range(mol.GetNumAtoms())])
    _, first, kind = np.unique(types, return_index=True, return_inverse=True)
    table = np.array([[properties.GetMMFFVdWParams(i, j)[2:] for j in first.tolist()] for i in first.tolist()])
    far = Chem.GetDistanceMatrix(mol) > 2.5
    near = [[other.GetIdx() for other in atom.GetNeighbors()] for atom in mol.GetAtoms()]
    parts = []
    for b, c, moved in turning:
        fixed = np.setdiff1d(np.arange(len(types)), [b, c, *moved.tolist()])
        values = table[kind[moved][:, None], kind[fixed][None]]
        paths = [(i, b, c, m) for i in near[b] if i != c for m in near[c] if m != b]
        found = [(path, properties.GetMMFFTorsionParams(mol, *path)) for path in paths]
        kept = [(path, entry[1:]) for path, entry in found if entry is not None]
        torsions = np.array([path for path, _ in kept], dtype=np.int64).reshape(-1, 4)
        barriers = np.array([entry for _, entry in kept]).reshape(-1, 3).T * [[0.5], [-0.5], [0.5]]
        eps = np.where(far[moved][:, fixed], values[..., 1], 0.0)
        low, high = np.minimum(moved[:, None], fixed), np.maximum(moved[:, None], fixed)
        place = (low * len(types) + high).ravel()
        inverse_r_star = (1.0 / values[..., 0]).astype(np.float32)
        parts.append(_Turning(b, c, moved, fixed, inverse_r_star, eps.astype(np.float32), place, torsions, barriers))
    return parts


def _dihedrals_rad(x_ang: NDArray[np.float64], torsions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(W, T) dihedral angles of torsions (T, 4) in states (W, atoms, 3), IUPAC sign."""
    p0, p1, p2, p3 = (x_ang[:, torsions[:, k]] for k in range(4))
    axis = p2 - p1
    first, second = np.cross(p0 - p1, axis), np.cross(p3 - p2, axis)
    sine = (np.cross(first, second) * axis).sum(axis=2) / np.linalg.norm(axis, axis=2)
    angles: NDArray[np.float64] = np.arctan2(sine, (first * second).sum(axis=2))
    return angles


def _turn_all(x_ang: NDArray[np.float64], part: _Turning, angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """The moved atoms (W, M, 3) of a rotor in states (W, atoms, 3), turned by (W,) angles about its bond."""
    axis = x_ang[:, part.c] - x_ang[:, part.b]
    axis /= np.sqrt(np.einsum("wd,wd->w", axis, axis))[:, None]
    cos, sin = np.cos(angles_rad)[:, None, None], np.sin(angles_rad)[:, None, None]
    transposed = cos * EYE + sin * (axis @ CROSS).reshape(-1, 3, 3) + (1.0 - cos) * axis[:, :, None] * axis[:, None]
    pivot = x_ang[:, part.c, None]
    turned: NDArray[np.float64] = (x_ang[:, part.moved] - pivot) @ transposed + pivot
    return turned


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
