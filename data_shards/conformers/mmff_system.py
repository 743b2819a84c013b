"""MMFF94 as an OpenMM system, with every interaction of a chain or with those of an unperturbed one.

    vacuum   every non-bonded pair, or those within a cutoff
    theta    all non-bonded terms between near neighbours along the chain; beyond them only the repulsive side of van der Waals, cut at
             its minimum and shifted to zero there; no charges

Near neighbours hang on backbone atoms at most `reach_bonds` bonds apart. Four is the reach of the rotational isomeric state model with
pairwise dependent bonds: the pentane effect, and side groups on the next unit and the one after it in a vinyl chain, feel each other
in full. A melt screens what lies beyond, attraction and charges first of all; of the repulsion enough is left that a chain does not
cross itself. That repulsion swells long chains, which a melt does not: `far_repulsion=False` is the ideal chain.

Source: Flory, Statistical Mechanics of Chain Molecules (1969), chapters 1 and 3; Weeks, Chandler and Andersen, J. Chem. Phys. 54 (1971)
5237, for the split at the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from rdkit import Chem
from scipy.sparse import triu

from data_shards.conformers.mmff import Rows, Terms
from data_shards.conformers.quality import within_bonds
from data_shards.errors import InputError

KINDS = ("bond", "angle", "stretch_bend", "torsion", "out_of_plane", "van_der_waals", "electrostatics")  # position = force group
EXCLUDED_BONDS = 2  # atoms nearer have no non-bonded terms
NEAR_BONDS = (
    10  # near neighbours are no more bonds apart: para carbons of phenyls on neighbouring units; bounds the pairs of long side groups
)

KJ_PER_KCAL = 4.184
STRETCH_KJ_MOL = 143.9325 * KJ_PER_KCAL  # mdyn/angstrom and mdyn angstrom to kJ/mol
COULOMB_KJ_MOL_ANG = 332.0716 * KJ_PER_KCAL
DEGREE = np.pi / 180
SCALE_14 = 0.75
SWITCH_FRACTION = 0.9  # with a cutoff, non-bonded terms are whole up to this fraction of it and fall to zero from there
STRAIGHT = 1.0 - 1e-12  # cosines beyond it count as this: at 180 degrees a bending force has no direction

BOND = f"{STRETCH_KJ_MOL / 2}*kb*d^2*(1-2*d+7/3*d^2); d=10*r-r0"
ANGLE = f"{STRETCH_KJ_MOL / 2 * DEGREE**2}*ka*d^2*(1-0.006981317*d); d=theta*{1 / DEGREE}-theta0"
LINEAR_ANGLE = f"{STRETCH_KJ_MOL}*ka*(1+cos(theta))"
# The next two in Cartesian coordinates: several times as fast as with distance(), angle() and dihedral().
STRETCH_BEND = f"""{STRETCH_KJ_MOL * DEGREE}*(kba_ijk*(10*la-r_ij)+kba_kji*(10*lb-r_kj))*(theta*{1 / DEGREE}-theta0);
    theta=acos(max(-{STRAIGHT},min({STRAIGHT},(ax*bx+ay*by+az*bz)/(la*lb))));
    la=sqrt(ax*ax+ay*ay+az*az); lb=sqrt(bx*bx+by*by+bz*bz);
    ax=x1-x2; ay=y1-y2; az=z1-z2; bx=x3-x2; by=y3-y2; bz=z3-z2"""
OUT_OF_PLANE = f"""{STRETCH_KJ_MOL / 2}*koop*asin((ax*ux+ay*uy+az*uz)/sqrt((ux*ux+uy*uy+uz*uz)*(ax*ax+ay*ay+az*az)))^2;
    ux=by*cz-bz*cy; uy=bz*cx-bx*cz; uz=bx*cy-by*cx;
    ax=x4-x1; ay=y4-y1; az=z4-z1; bx=x2-x1; by=y2-y1; bz=z2-z1; cx=x3-x1; cy=y3-y1; cz=z3-z1"""  # of p1-p4 with the plane p2-p1-p3
BUFFERED_14_7 = "(1.07/(q+0.07))^7*(1.12/(q^7+0.12)-2)"  # in units of epsilon; q = r / R*


@dataclass(frozen=True)
class Environment:
    """What an atom feels of the atoms of its chain that it is not bonded to. As it stands: all of them."""

    electrostatics: bool = True
    cutoff_ang: float | None = None  # at least 6, so that pairs three bonds apart lie inside; None: every pair; without a reach only
    reach_bonds: int | None = None  # along the backbone, to the last near neighbour; None: every pair is near
    far_repulsion: bool = True  # beyond the reach


VACUUM = Environment()
THETA = Environment(reach_bonds=4)


def build_system(
    terms: Terms,
    masses_da: NDArray[np.float64] | None = None,
    environment: Environment = VACUUM,
    *,
    positions_bonds: NDArray[np.int64] | None = None,
) -> openmm.System:
    """System with one force group per kind of term: the position of the kind in KINDS.

    Args:
        terms: of the molecule, A atoms.
        masses_da: (A,); None takes standard atomic weights.
        environment: which non-bonded terms there are.
        positions_bonds: (A,) `statistics.backbone_positions`, for an environment with a reach.

    Returns:
        System in OpenMM's units, not periodic. Several forces may share a group (bent and linear angles, Coulomb and its 1-4 scaling).

    Raises:
        InputError: a reach without positions.
    """
    system = openmm.System()
    for mass in (atomic_masses_da(terms) if masses_da is None else masses_da).tolist():
        system.addParticle(mass)
    coupled = ("kba_ijk", "kba_kji", "r_ij", "r_kj", "theta0")
    turns = ([0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2])  # each bond of a centre against the plane of the other two
    wilson = Rows(np.concatenate([terms.out_of_plane.atoms[:, turn] for turn in turns]), np.tile(terms.out_of_plane.values, (3, 1)))
    if environment.reach_bonds is None:
        non_bonded = _all_pairs(terms, environment)
    elif positions_bonds is None:
        raise InputError("an environment with reach_bonds needs the positions of atoms along a backbone; pass positions_bonds")
    else:
        non_bonded = _near_and_far(terms, environment, environment.reach_bonds, positions_bonds)
    forces = [
        ("bond", _fill(openmm.CustomBondForce(BOND), ("kb", "r0"), terms.bond)),
        ("angle", _fill(openmm.CustomAngleForce(ANGLE), ("ka", "theta0"), terms.angle)),
        ("angle", _fill(openmm.CustomAngleForce(LINEAR_ANGLE), ("ka",), terms.linear_angle)),
        ("stretch_bend", _fill(openmm.CustomCompoundBondForce(3, STRETCH_BEND), coupled, terms.stretch_bend)),
        ("torsion", _torsions(terms.torsion)),
        ("out_of_plane", _fill(openmm.CustomCompoundBondForce(4, OUT_OF_PLANE), ("koop",), wilson)),
        *non_bonded,
    ]
    for kind, force in (entry for entry in forces if entry[1] is not None):  # an expression without terms would still be compiled
        force.setForceGroup(KINDS.index(kind))
        system.addForce(force)
    return system


def atomic_masses_da(terms: Terms) -> NDArray[np.float64]:
    """(A,) standard atomic weights."""
    table = Chem.GetPeriodicTable()
    return np.array([table.GetAtomicWeight(int(number)) for number in terms.atom.values[:, 0]])


def _fill(force: Any, names: tuple[str, ...], rows: Rows) -> Any:
    """Give a custom bond, angle or compound bond force its parameters and its terms; None where there are none."""
    if not len(rows.atoms):
        return None
    what = "Angle" if isinstance(force, openmm.CustomAngleForce) else "Bond"
    for name in names:
        getattr(force, f"addPer{what}Parameter")(name)
    add, compound = getattr(force, f"add{what}"), isinstance(force, openmm.CustomCompoundBondForce)
    for atoms, values in zip(rows.atoms.tolist(), rows.values.tolist()):
        add(*([atoms] if compound else atoms), values)
    return force


def _torsions(rows: Rows) -> openmm.RBTorsionForce:
    """Cosines of multiple angles as powers of cos(phi - pi), with cos 2 phi = 2 c^2 - 1 and cos 3 phi = 4 c^3 - 3 c."""
    v1, v2, v3 = KJ_PER_KCAL * rows.values.T
    powers = np.stack([(v1 + 2 * v2 + v3) / 2, (3 * v3 - v1) / 2, -v2, -2 * v3, 0 * v1, 0 * v1], axis=1)
    force = openmm.RBTorsionForce()
    for atoms, values in zip(rows.atoms.tolist(), powers.tolist()):
        force.addTorsion(*atoms, *values)
    return force


def _all_pairs(terms: Terms, environment: Environment) -> list[tuple[str, Any]]:
    """Van der Waals and Coulomb between all pairs; what the scaling of 1-4 pairs takes off is a force of its own, so that both exclude
    the same pairs."""
    excluded = _pairs_within(terms, EXCLUDED_BONDS).tolist()
    forces = [("van_der_waals", _pairwise(*_van_der_waals(terms, BUFFERED_14_7), excluded, environment.cutoff_ang, switch=True))]
    if environment.electrostatics:
        charge = terms.atom.values[:, 2]
        force = openmm.CustomNonbondedForce(f"{COULOMB_KJ_MOL_ANG}*charge1*charge2/(10*r+0.05)")
        force.addPerParticleParameter("charge")
        less = Rows(terms.pair_14.atoms, (SCALE_14 - 1) * charge[terms.pair_14.atoms].prod(axis=1, keepdims=True))
        forces += [
            ("electrostatics", _pairwise(force, charge[:, None], excluded, environment.cutoff_ang, switch=True)),
            ("electrostatics", _coulomb_pairs(less)),
        ]
    return forces


def _near_and_far(terms: Terms, environment: Environment, reach: int, positions: NDArray[np.int64]) -> list[tuple[str, Any]]:
    """All terms between near neighbours, pair by pair; repulsion between the others."""
    close = _pairs_within(terms, NEAR_BONDS)
    close = close[np.abs(positions[close[:, 0]] - positions[close[:, 1]]) <= reach]
    bonded = _pairs_within(terms, EXCLUDED_BONDS)
    near = close[~np.isin(_code(close, len(positions)), _code(bonded, len(positions)))]
    kind = _vdw_kind(terms)[near]
    values = np.stack([terms.vdw_r_star_ang[kind[:, 0], kind[:, 1]], terms.vdw_eps_kcal_mol[kind[:, 0], kind[:, 1]]], axis=1)
    whole = openmm.CustomBondForce(f"{KJ_PER_KCAL}*eps*{BUFFERED_14_7}; q=10*r/r_star")
    forces = [("van_der_waals", _fill(whole, ("r_star", "eps"), Rows(near, values)))]
    if environment.electrostatics:
        scale = np.where(np.isin(_code(near, len(positions)), _code(terms.pair_14.atoms, len(positions))), SCALE_14, 1.0)
        product = scale * terms.atom.values[near, 2].prod(axis=1)
        charged = product != 0
        forces.append(("electrostatics", _coulomb_pairs(Rows(near[charged], product[charged, None]))))
    if environment.far_repulsion:
        excluded = np.unique(np.concatenate([bonded, near]), axis=0).tolist()
        force, values = _van_der_waals(terms, f"step(1-q)*({BUFFERED_14_7}+1)")
        forces.append(("van_der_waals", _pairwise(force, values, excluded, float(terms.vdw_r_star_ang.max()), switch=False)))
    return forces


def _pairs_within(terms: Terms, reach: int) -> NDArray[np.int64]:
    """(P, 2) atoms 1 to ``reach`` bonds apart, i < j, sorted."""
    matrix = triu(within_bonds(terms.bond.atoms, len(terms.atom.atoms), reach), k=1).tocsr()
    matrix.sort_indices()
    return np.stack(matrix.nonzero(), axis=1).astype(np.int64)


def _code(pairs: NDArray[np.int64], num_atoms: int) -> NDArray[np.int64]:
    return pairs[:, 0] * num_atoms + pairs[:, 1]


def _vdw_kind(terms: Terms) -> NDArray[np.int64]:
    return np.searchsorted(terms.vdw_types, terms.atom.values[:, 1])


def _van_der_waals(terms: Terms, shape: str) -> tuple[openmm.CustomNonbondedForce, NDArray[np.float64]]:
    """Force and values (A, p) of its parameters.

    R* and epsilon are symmetric tables over the types; each is the sum of eigenvalue times the product of two atoms' components, which
    a CPU takes for many pairs at a time, as it does not with a table.
    """
    sums, names, columns = [], [], []
    for name, table in (("r_star", terms.vdw_r_star_ang), ("eps", terms.vdw_eps_kcal_mol)):
        eigenvalues, vectors = np.linalg.eigh(table)
        kept = np.flatnonzero(np.abs(eigenvalues) > 1e-15 * np.abs(eigenvalues).max())
        sums.append(f"{name}=" + "+".join(f"({float(eigenvalues[k])!r})*{name}_{k}_1*{name}_{k}_2" for k in kept))
        names += [f"{name}_{k}_" for k in kept]
        columns.append(vectors[_vdw_kind(terms)][:, kept])
    force = openmm.CustomNonbondedForce(f"{KJ_PER_KCAL}*eps*{shape}; q=10*r/r_star; {'; '.join(sums)}")
    for name in names:
        force.addPerParticleParameter(name)
    return force, np.concatenate(columns, axis=1)


def _coulomb_pairs(rows: Rows) -> openmm.CustomBondForce | None:
    """Coulomb of pairs, each with the product of its charges."""
    return _fill(openmm.CustomBondForce(f"{COULOMB_KJ_MOL_ANG}*product/(10*r+0.05)"), ("product",), rows)


def _pairwise(
    force: openmm.CustomNonbondedForce, values: NDArray[np.float64], excluded: list[list[int]], cutoff_ang: float | None, *, switch: bool
) -> openmm.CustomNonbondedForce:
    """Fill a non-bonded force: values (A, p) of the atoms, pairs without a term, the cutoff."""
    for row in values.tolist():
        force.addParticle(row)
    for i, j in excluded:
        force.addExclusion(i, j)
    force.setNonbondedMethod(openmm.CustomNonbondedForce.NoCutoff)
    if cutoff_ang is not None:
        force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff_ang / 10)
        force.setUseSwitchingFunction(switch)
        force.setSwitchingDistance(SWITCH_FRACTION * cutoff_ang / 10)
    return force


def evaluate(
    terms: Terms,
    x_ang: NDArray[np.float64],
    environment: Environment = VACUUM,
    *,
    positions_bonds: NDArray[np.int64] | None = None,
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Energy and forces of every kind of term, in double precision on OpenMM's Reference platform.

    Args:
        terms: of the molecule.
        x_ang: (A, 3).
        environment: as build_system.
        positions_bonds: as build_system.

    Returns:
        By kind: kcal/mol, and (A, 3) kcal/mol/angstrom.
    """
    system = build_system(terms, environment=environment, positions_bonds=positions_bonds)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.asarray(x_ang) / 10)
    states = [context.getState(getEnergy=True, getForces=True, groups={group}) for group in range(len(KINDS))]
    kcal_mol = unit.kilocalories_per_mole
    energies = [state.getPotentialEnergy().value_in_unit(kcal_mol) for state in states]
    forces = [state.getForces(asNumpy=True).value_in_unit(kcal_mol / unit.angstrom) for state in states]
    return dict(zip(KINDS, energies)), dict(zip(KINDS, forces))
