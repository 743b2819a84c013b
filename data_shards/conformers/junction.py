"""How the link dihedral between two units is distributed: a relaxed scan of a small model of the junction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.capped import backbone_of, embed, mark_double_bonds, positions
from data_shards.chem.oligomer import Piece, close_over, cut_out, heavy_chain
from data_shards.chem.repeat_unit import MIN_LINK_SIN, RepeatUnit, axis_sines
from data_shards.chem.stereo import tag_from_sign
from data_shards.conformers.force_field import force_field, relax, scan_dihedral
from data_shards.schema import BOND_SINGLE, UnitTopology, unit_slots

GAS_CONSTANT_KCAL_MOL_K = 1.987204e-3
TEMPERATURE_KELVIN = 400.0  # of the ensembles: a melt of a common polymer
RT_KCAL_MOL = GAS_CONSTANT_KCAL_MOL_K * TEMPERATURE_KELVIN
NUM_SCAN = 24  # 15 degrees apart
NUM_BINS = 360
DOUBLE_BOND_SPREAD_RAD = float(np.deg2rad(6.0))
MAX_RING = 7
MODEL_UNITS, MODEL_SEED = 6, 7
MODEL_STARTS = 6  # embeddings, of which the scan starts from the lowest: a gauche neighbour would tilt the whole profile
HALOGENS = (9, 17, 35, 53)  # cap a cut atom that carries them and no hydrogen


@dataclass(frozen=True)
class JunctionEnsemble:
    """Distribution of the link dihedral for each pair of signs at its two middle atoms.

    Row s + 1, column t + 1 of ``probability`` is for sign s at nbr1 of the first unit and t at nbr0 of the second, 0 where such an
    atom is no stereocentre. Bins start at -pi.
    """

    probability: NDArray[np.float64]  # (3, 3, NUM_BINS), each sums to one, or to zero where the pair does not occur
    force_field: str  # MMFF94s, UFF, or none where the dihedral turns freely
    left: int  # index into the stereocentres of nbr1, -1 where it is none
    right: int  # of nbr0

    def draw(self, s: int, t: int, uniform: NDArray[np.float64], flatness: float = 1.0) -> NDArray[np.float64]:
        """Dihedrals (M,) in radians for signs s, t from numbers (M,) in [0, 1); inside a bin they are uniform.

        ``flatness`` multiplies the temperature of the distribution.
        """
        probability = self.probability[s + 1, t + 1] ** (1.0 / flatness)
        cumulative = np.cumsum(probability)
        level = uniform * cumulative[-1]
        bins = np.searchsorted(cumulative, level, side="right").clip(max=NUM_BINS - 1)
        share = probability[bins]
        inside = (level - (cumulative[bins] - share)) / np.where(share > 0, share, 1.0)
        angles: NDArray[np.float64] = (bins + inside.clip(0, 1)) * (2 * np.pi / NUM_BINS) - np.pi
        return angles


def junction_ensemble(unit: RepeatUnit) -> JunctionEnsemble:
    """Scan the link dihedral of a polymer.

    The model is the bond between two units with the first shells of its two atoms, whole rings where these are in rings. A dihedral
    whose link atoms are not bonded to the junction (units on a line) turns freely.

    Args:
        unit: repeat unit.
    """
    topology = unit.topology
    star0, nbr0, nbr1, star1 = topology.key_atoms.tolist()
    centres = topology.stereo_centres.tolist()
    left, right = (centres.index(k) if k in centres else -1 for k in (nbr1, nbr0))
    probability = np.zeros((3, 3, NUM_BINS))
    a, d = topology.link_atoms.tolist()
    bonds = {tuple(bond) for bond in topology.bonds.tolist()}
    bonded = (min(a, nbr1), max(a, nbr1)) in bonds and (min(d, nbr0), max(d, nbr0)) in bonds
    x_ang = unit.reference_ang[:, unit.capped.slots]
    off_axis = min(axis_sines(x_ang, nbr1, star1)[:, a].min(), axis_sines(x_ang, nbr0, star0)[:, d].min())
    if not bonded or off_axis < MIN_LINK_SIN:
        probability[:] = 1.0 / NUM_BINS
        return JunctionEnsemble(probability, "none", left, right)
    name = "none"
    for s, t in product((1, -1) if left >= 0 else (0,), (1, -1) if right >= 0 else (0,)):
        if probability[1 - s, 1 - t].any() and (s, t) != (0, 0):
            probability[s + 1, t + 1] = probability[1 - s, 1 - t][::-1]  # the mirror image turns the other way
            continue
        profile, name = _profile(unit, s, t)
        probability[s + 1, t + 1] = profile
    return JunctionEnsemble(probability, name, left, right)


def _model(unit: RepeatUnit, s: int, t: int) -> tuple[Chem.Mol, tuple[int, int, int, int]]:
    """Small model of a junction with signs s, t written on it, and the atoms of the link dihedral."""
    topology = unit.topology
    chain = heavy_chain(topology, MODEL_UNITS)  # long enough that no cap is taken for a side group of the junction
    rows = unit_slots(topology.key_atoms, topology.num_atoms, MODEL_UNITS)[MODEL_UNITS // 2 - 1 :][:2]
    _, nbr0, nbr1, _ = topology.key_atoms.tolist()
    a, d = topology.link_atoms.tolist()
    middle = [int(rows[0, nbr1]), int(rows[1, nbr0])]
    piece = _halogen_caps(chain, cut_out(chain, _model_atoms(chain, middle)))
    mark_double_bonds(piece.mol, {}, unit.mol, backbone_of(piece))
    for row, slot, sign in ((rows[0], nbr1, s), (rows[1], nbr0, t)):
        if sign:
            _write_sign(topology, piece, row, slot, sign)
    dihedral = (piece.index[int(rows[0, a])], piece.index[middle[0]], piece.index[middle[1]], piece.index[int(rows[1, d])])
    return piece.mol, dihedral


def _model_atoms(chain: Chem.Mol, middle: list[int]) -> set[int]:
    """First shell of a bond, the single atoms bonded to that shell (halogens, carbonyl oxygens, methyls), rings about the bond."""
    atoms = set(middle)
    for index in middle:
        for other in chain.GetAtomWithIdx(index).GetNeighbors():
            atoms |= {other.GetIdx()} | {k.GetIdx() for k in other.GetNeighbors() if k.GetDegree() == 1}
    rings = [set(ring) for ring in chain.GetRingInfo().AtomRings() if len(ring) <= MAX_RING and set(ring) & set(middle)]
    return close_over(chain, atoms.union(*rings))


def _halogen_caps(chain: Chem.Mol, piece: Piece) -> Piece:
    """An atom that has halogens and no hydrogen is capped with its halogen where it was cut: CHF2 turns otherwise than CF3."""
    mol = Chem.RWMol(piece.mol)
    for atom, place in piece.index.items():
        around = chain.GetAtomWithIdx(atom).GetNeighbors()
        halogens = [neighbour.GetAtomicNum() for neighbour in around if neighbour.GetAtomicNum() in HALOGENS]
        if halogens and not chain.GetAtomWithIdx(atom).GetTotalNumHs():
            for neighbour in mol.GetAtomWithIdx(place).GetNeighbors():
                if neighbour.GetAtomicNum() == 1:
                    neighbour.SetAtomicNum(halogens[0])
    Chem.SanitizeMol(mol)
    return replace(piece, mol=mol.GetMol())


def _write_sign(topology: UnitTopology, piece: Piece, row: NDArray[np.int64], slot: int, sign: int) -> None:
    triple = topology.stereo_neighbours[topology.stereo_centres.tolist().index(slot)]
    atom = piece.mol.GetAtomWithIdx(piece.index[int(row[slot])])
    atom.SetChiralTag(tag_from_sign(atom, [piece.index[int(k)] for k in row[triple]], sign))


def _profile(unit: RepeatUnit, s: int, t: int) -> tuple[NDArray[np.float64], str]:
    """(NUM_BINS,) probability of the link dihedral and the force field used."""
    mol, dihedral = _model(unit, s, t)
    return _model_profile(mol.ToBinary(), dihedral, unit.topology.junction_order == BOND_SINGLE, s == t == 0)


@lru_cache(maxsize=4096)
def _model_profile(model: bytes, dihedral: tuple[int, int, int, int], single: bool, mirrored: bool) -> tuple[NDArray[np.float64], str]:
    """As _profile. Many polymers share a model; its seed is fixed, so that what stands here depends on the model alone.

    Args:
        model: molecule as RDKit writes it.
        dihedral: atoms of the link dihedral.
        single: whether the junction is a single bond.
        mirrored: whether the model is achiral, so that half of the circle is enough.
    """
    mol = Chem.Mol(model)  # type: ignore[call-overload]  # RDKit reads bytes, its stubs say str
    centres_rad = (np.arange(NUM_BINS) + 0.5) * (2 * np.pi / NUM_BINS) - np.pi
    found = embed(mol, MODEL_STARTS, MODEL_SEED)
    parameters = force_field(mol)
    if not found or parameters is None:
        return np.full(NUM_BINS, 1.0 / NUM_BINS), "none"
    relaxed, start_energies = relax(parameters, positions(mol, found))
    start = relaxed[[int(np.argmin(start_energies))]]
    if not single:
        from_centre = np.angle(np.exp(1j * (centres_rad - dihedral_rad(start[0], dihedral))))
        weight = np.exp(-0.5 * (from_centre / DOUBLE_BOND_SPREAD_RAD) ** 2)
        return weight / weight.sum(), parameters.name
    step = 2 * np.pi / NUM_SCAN
    angles = np.array([k * step for k in range(NUM_SCAN // 2 + 1 if mirrored else NUM_SCAN)])
    energies = scan_dihedral(parameters, start[0], dihedral, angles)
    if mirrored:
        energies = np.concatenate([energies, energies[-2:0:-1]])
    around = np.append(np.arange(NUM_SCAN) * step, 2 * np.pi)
    curve = np.interp(centres_rad % (2 * np.pi), around, np.append(energies, energies[0]))
    weight = np.exp(-(curve - curve.min()) / RT_KCAL_MOL)
    return weight / weight.sum(), parameters.name


def dihedral_rad(x_ang: NDArray[np.float64], atoms: tuple[int, int, int, int]) -> float:
    """Dihedral angle of four atoms, IUPAC sign, in radians."""
    p0, p1, p2, p3 = (x_ang[k] for k in atoms)
    axis = (p2 - p1) / np.linalg.norm(p2 - p1)
    v, w = (arm - (arm @ axis) * axis for arm in (p0 - p1, p3 - p2))
    return float(np.arctan2(np.cross(axis, v) @ w, v @ w))
