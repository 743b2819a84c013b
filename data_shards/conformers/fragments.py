"""Shapes that a repeat unit takes: ETKDGv3 embeddings of the capped unit, relaxed with MMFF94s, then torsions at melt temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from scipy.spatial.distance import pdist, squareform

from data_shards.chem.capped import embed_heavy, positions
from data_shards.chem.repeat_unit import RepeatUnit, build_unit
from data_shards.chem.stereo import measure_signs
from data_shards.conformers.force_field import ForceField, force_field, relax
from data_shards.conformers.junction import RT_KCAL_MOL, JunctionEnsemble, junction_ensemble
from data_shards.conformers.quality import clash_limits_ang, within_bonds
from data_shards.conformers.thermal import rotors, sample_torsions
from data_shards.errors import InputError, PolymerError
from data_shards.schema import UnitTopology, chain_bonds, chain_elements, chain_hydrogens, unit_slots

ENERGY_WINDOW_KCAL_MOL = 8.0  # relaxed conformers above it are dropped; a flexible unit is allowed more
ENERGY_WINDOW_PER_ROTOR_KCAL_MOL = 0.4
MIN_THERMAL, MAX_THERMAL = 3, 24  # states of one walker
LARGE_MODEL_ATOMS = 60  # larger models get fewer embeddings, by the square of their size, to bound the time of one polymer
MIN_EMBEDDINGS = 2
WALKERS = 2  # that start from every relaxed conformer


@dataclass(frozen=True)
class FragmentLibrary:
    """Shapes of a repeat unit in their own frames, with everything that joining them needs."""

    heavy_ang: NDArray[np.float64]  # (F, n, 3)
    hydrogen_ang: NDArray[np.float64]  # (F, h, 3) of the unit's own atoms, in the order of their slots
    head_hydrogen_ang: NDArray[np.float64]  # (F, h0, 3) of star0 as the head cap of a chain
    tail_hydrogen_ang: NDArray[np.float64]  # (F, h1, 3) of star1 as the tail cap
    energies_kcal_mol: NDArray[np.float64]  # (F,) of the capped unit, above the lowest of the same handedness
    weights: NDArray[np.float64]  # (F,) sum to one over the shapes of one handedness
    head_fits: NDArray[np.bool_]  # (F,) True where the hydrogens of the head cap touch nothing of the unit
    tail_fits: NDArray[np.bool_]  # (F,) the same for the tail cap
    handedness: NDArray[np.int8]  # (F, c)
    junction: JunctionEnsemble
    force_field: str  # MMFF94s or UFF


def fragment_library(unit: RepeatUnit, *, num_conformers: int = 12, num_thermal: int | None = None, seed: int = 0) -> FragmentLibrary:
    """Build the shapes of a repeat unit and the ensemble of its link dihedral.

    Where the P-SMILES fixes no handedness, the mirror image of a shape is a shape: half of them are embedded, the others mirrored.
    Every configuration of the unit (RepeatUnit.configurations) gets shapes. Large units get fewer embeddings.

    Args:
        unit: repeat unit.
        num_conformers: conformers wanted, mirror images and the walkers of a walk counted; at least two for every configuration are made.
        num_thermal: states that a Metropolis walk in the torsions keeps of each conformer; these then are the shapes, of equal
            weight. None: more for a unit of more rotatable bonds. 0: the relaxed conformers are the shapes, with Boltzmann weights.
        seed: of embeddings and walks; the same seed gives the same bits.

    Raises:
        PolymerError: no-force-field, no-conformer.
        InputError: num_conformers below 1.
    """
    energies, x_ang, signs, name = _shapes(unit, num_conformers, num_thermal, seed)
    heavy, hydrogen = x_ang[:, unit.capped.slots], x_ang[:, unit.capped.hydrogens]
    head, tail = _cap_hydrogens(unit, heavy)
    whole, head_fits, tail_fits = _untouched(unit.topology, heavy, hydrogen, head, tail)
    energies, weights = _weigh(energies, signs, whole, flat=num_thermal != 0)
    return FragmentLibrary(heavy, hydrogen, head, tail, energies, weights, head_fits, tail_fits, signs, junction_ensemble(unit), name)


def _shapes(
    unit: RepeatUnit, num_conformers: int, num_thermal: int | None, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8], str]:
    """Energies (F,), coordinates (F, atoms of the capped unit, 3), signs (F, c) of the shapes, and the force field's name."""
    if num_conformers < 1:
        raise InputError(f"num_conformers {num_conformers} must be at least 1; ask for 1 shape or more")
    parameters = force_field(unit.capped.mol)
    if parameters is None:
        symbols = ", ".join(sorted({atom.GetSymbol() for atom in unit.mol.GetAtoms()}))
        raise PolymerError(unit.topology.psmiles, "no-force-field", f"neither MMFF94s nor UFF knows all of its atoms ({symbols}); drop it")
    mirrored = not unit.topology.stereo_specified.any()
    turning = rotors(unit.capped.mol)
    if num_thermal is None:
        num_thermal = min(MIN_THERMAL + len(turning), MAX_THERMAL)
    walkers = WALKERS if num_thermal and turning else 1
    x_ang, energies = _conformers(unit, parameters, -(-num_conformers // walkers), len(turning), mirrored, seed)
    if num_thermal and len(x_ang):
        x_ang, energies = np.repeat(x_ang, walkers, axis=0), np.repeat(energies, walkers)
        x_ang, energies = sample_torsions(parameters, x_ang, energies, turning, num_thermal, RT_KCAL_MOL, np.random.default_rng(seed))
    energies, x_ang, signs = _allowed(unit, energies, x_ang, mirrored)
    missing = [pattern for pattern in unit.configurations.tolist() if not (signs == np.array(pattern)).all(axis=1).any()]
    if missing:
        detail = f"no relaxed shape with the handedness {missing[0]} was found; check its rings and stereo marks"
        raise PolymerError(unit.topology.psmiles, "no-conformer", detail)
    return energies, x_ang, signs, parameters.name


def _conformers(
    unit: RepeatUnit, parameters: ForceField, num_conformers: int, num_rotors: int, mirrored: bool, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relaxed conformers (R, atoms, 3) of every configuration, one of each mirror pair where mirror images are free, and energies."""
    targets = unit.configurations[::2] if mirrored and len(unit.configurations) > 1 else unit.configurations
    wanted = -(-num_conformers // 2) if mirrored else num_conformers
    scale = (LARGE_MODEL_ATOMS / unit.capped.mol.GetNumAtoms()) ** 2
    wanted = min(wanted, max(MIN_EMBEDDINGS, round(wanted * scale)))
    each = max(-(-wanted // len(targets)), 2 if len(targets) > 1 else 1)
    window = ENERGY_WINDOW_KCAL_MOL + ENERGY_WINDOW_PER_ROTOR_KCAL_MOL * num_rotors
    kept, kept_energies = [], []
    for k, pattern in enumerate(targets):
        x_ang, energies = relax(parameters, _starts(unit, pattern, each, mirrored, seed + k))
        high = energies > energies.min(initial=np.inf) + window
        x_ang[high], energies[high] = relax(parameters, x_ang[high])  # some need more steps than most
        low = energies <= energies.min(initial=np.inf) + window
        kept.append(x_ang[low])
        kept_energies.append(energies[low])
    return np.concatenate(kept), np.concatenate(kept_energies)


def _starts(unit: RepeatUnit, pattern: NDArray[np.int8], count: int, mirrored: bool, seed: int) -> NDArray[np.float64]:
    """(<= count, atoms, 3) embeddings with one handedness: the unit's reference conformers first, then those of the seed."""
    topology, slots = unit.topology, unit.capped.slots
    found = unit.reference_ang
    signs = measure_signs(found[:, slots], topology.stereo_centres, topology.stereo_neighbours)
    if mirrored and len(pattern):
        flip = (signs == -pattern).all(axis=1)
        found = np.where(flip[:, None, None], found * [1, 1, -1], found)
        signs = np.where(flip[:, None], -signs, signs)
    found = found[(signs == pattern).all(axis=1)][:count]
    if len(found) == count:
        return found
    return np.concatenate([found, embed_heavy(unit.capped.with_signs(pattern), count - len(found), seed + 1)])


def _allowed(
    unit: RepeatUnit, energies: NDArray[np.float64], x_ang: NDArray[np.float64], mirrored: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8]]:
    """Mirror where that is allowed and keep the configurations of the unit: energies (F,), coordinates (F, atoms, 3), signs (F, c)."""
    if mirrored:
        x_ang = np.stack([x_ang, x_ang * [1, 1, -1]], axis=1).reshape(-1, unit.capped.mol.GetNumAtoms(), 3)
        energies = np.repeat(energies, 2)
    signs = measure_signs(x_ang[:, unit.capped.slots], unit.topology.stereo_centres, unit.topology.stereo_neighbours)
    allowed = (signs[:, None] == unit.configurations[None]).all(axis=-1).any(axis=1) & np.isfinite(x_ang).all(axis=(1, 2))
    return energies[allowed], x_ang[allowed], signs[allowed]


def _weigh(
    energies: NDArray[np.float64], signs: NDArray[np.int8], whole: NDArray[np.bool_], flat: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies above the lowest of the same handedness, and weights within it: equal or Boltzmann.

    Shapes that touch themselves get no weight unless all do.
    """
    relative, weights = np.empty_like(energies), np.empty_like(energies)
    for pattern in np.unique(signs, axis=0):
        same = (signs == pattern).all(axis=1)
        relative[same] = energies[same] - energies[same].min()
        weight = np.ones(same.sum()) if flat else np.exp(-relative[same] / RT_KCAL_MOL)
        if whole[same].any():
            weight = np.where(whole[same], weight, 0.0)
        weights[same] = weight / weight.sum()
    return relative, weights


def _untouched(
    topology: UnitTopology,
    heavy_ang: NDArray[np.float64],
    hydrogen_ang: NDArray[np.float64],
    head_ang: NDArray[np.float64],
    tail_ang: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """(F,) each: True where the unit, the hydrogens of its head cap, those of its tail cap touch nothing of a chain of one unit."""
    slots = unit_slots(topology.key_atoms, topology.num_atoms, 1)[0]
    counts = chain_hydrogens(topology, 1)
    owner = np.repeat(np.arange(len(counts)), counts)
    bonds = np.concatenate([chain_bonds(topology, 1)[0], np.stack([owner, len(counts) + np.arange(len(owner))], axis=1)])
    elements = np.concatenate([chain_elements(topology, 1), np.ones(len(owner), dtype=np.uint8)])
    x_ang = np.concatenate([heavy_ang[:, np.argsort(slots)], head_ang, hydrogen_ang, tail_ang], axis=1)
    part = np.zeros(len(elements), dtype=int)  # 0 the unit, 1 hydrogens of the head cap, 2 of the tail cap
    part[len(counts) :] = np.select([owner == 0, owner == len(counts) - 1], [1, 2])
    limits = np.triu(clash_limits_ang(elements, elements), 1)
    limits[within_bonds(bonds, len(elements)).toarray() > 0] = 0.0
    fits = np.ones((3, len(x_ang)), dtype=bool)
    for k, x in enumerate(x_ang):
        i, j = np.nonzero(squareform(pdist(x)) < limits)
        fits[np.maximum(part[i], part[j]), k] = False
    return fits[0], fits[1], fits[2]


def _cap_hydrogens(unit: RepeatUnit, heavy_ang: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ideal positions of the hydrogens on star0 and star1 as chain ends, (F, h0, 3) and (F, h1, 3)."""
    mol = Chem.Mol(unit.mol)
    mol.RemoveAllConformers()
    for shape in heavy_ang:
        conformer = Chem.Conformer(len(shape))
        conformer.SetPositions(np.ascontiguousarray(shape))
        mol.AddConformer(conformer, assignId=True)
    star0, star1 = int(unit.topology.key_atoms[0]), int(unit.topology.key_atoms[3])
    full = Chem.AddHs(mol, addCoords=True, onlyOnAtoms=[star0, star1])
    x_ang = positions(full, [conformer.GetId() for conformer in full.GetConformers()])
    head, tail = (
        [other.GetIdx() for other in full.GetAtomWithIdx(star).GetNeighbors() if other.GetAtomicNum() == 1] for star in (star0, star1)
    )
    return x_ang[:, head], x_ang[:, tail]


def seed_shapes(psmiles: str, num: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """RDKit geometries of a repeat unit, for samplers that take bond lengths, angles and rings as given.

    Args:
        psmiles: any spelling of the polymer.
        num: K, at least 1.
        seed: of embedding and choice.

    Returns:
        (K, n, 3) heavy coordinates, centred, angstrom, and (K, c) handedness. Configurations of the unit take turns. The bonds to the
        stars have one length, the mean, in all shapes, so that any two shapes join exactly.

    Raises:
        PolymerError: as build_unit and fragment_library.
        InputError: num below 1.
    """
    unit = build_unit(psmiles)
    energies, x_ang, signs, _ = _shapes(unit, num, 0, seed)
    order = np.argsort(energies, kind="stable")
    pattern = (signs[order, None] == unit.configurations[None]).all(axis=-1).argmax(axis=1)
    rank = np.array([(pattern[:k] == pattern[k]).sum() for k in range(len(pattern))])  # place among the shapes of its configuration
    chosen = order[np.lexsort((pattern, rank))]
    chosen = np.resize(chosen, num)
    shapes = _one_junction_length(x_ang[chosen][:, unit.capped.slots], unit.topology.key_atoms)
    return (shapes - shapes.mean(axis=1, keepdims=True)).astype(np.float32), signs[chosen]


def _one_junction_length(x_ang: NDArray[np.float64], key_atoms: NDArray[np.int32]) -> NDArray[np.float64]:
    """Stars (of shapes (K, n, 3)) moved along their bonds until both bonds of every shape have the mean length."""
    star0, nbr0, nbr1, star1 = key_atoms.tolist()
    stars, inner = x_ang[:, [star0, star1]], x_ang[:, [nbr0, nbr1]]
    bonds = stars - inner
    lengths = np.linalg.norm(bonds, axis=-1, keepdims=True)
    moved = x_ang.copy()
    moved[:, [star0, star1]] = inner + bonds / lengths * lengths.mean()
    return moved
