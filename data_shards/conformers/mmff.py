"""MMFF94 and MMFF94s as an OpenMM system. RDKit assigns atom types, charges and parameters; every term is handed over as published.

    bond, angle, stretch-bend   quartic, cubic, bilinear; an angle at an atom of linear geometry is ka (1 + cos theta)
    torsion                     three cosines; none about a bond of such an atom
    out of plane                Wilson angles at atoms with three neighbours, all three of each
    van der Waals               buffered 14-7 between atoms three bonds apart or more
    electrostatics              buffered Coulomb, dielectric constant 1, scaled by 0.75 between atoms three bonds apart

A chain is a head, many copies of one unit and a tail: its terms are read from an oligomer and copied.

Source: Halgren, J. Comput. Chem. 17 (1996) 490 (functional forms), 520, 553, 587, 616; 20 (1999) 720 (MMFF94s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from data_shards.chem.chain import chain_mol
from data_shards.chem.topology import graph_distances
from data_shards.errors import PolymerError
from data_shards.schema import TopologyKey, UnitTopology, atom_owners, chain_hydrogens

Variant = Literal["MMFF94", "MMFF94s"]
KINDS = ("bond", "angle", "stretch_bend", "torsion", "out_of_plane", "van_der_waals", "electrostatics")  # position = force group

LINEAR_TYPES = (4, 53, 61)  # centres of linear angles: sp carbon, the middle N of an azide, N of an isonitrile or diazonium
MOST_NEIGHBOURS = {"H": 1, "C": 4, "N": 4, "O": 3, "F": 1, "Si": 4, "P": 4, "S": 4, "Cl": 4, "Br": 1, "I": 1}  # in a molecule
REACH_BONDS = 8  # nothing further away changes type, charge or parameters of an atom
WIDEST_TERM_BONDS = 3

KJ_PER_KCAL = 4.184
STRETCH_KJ_MOL = 143.9325 * KJ_PER_KCAL  # mdyn/angstrom and mdyn angstrom to kJ/mol
DEGREE = np.pi / 180
SCALE_14 = 0.75
SWITCH_FRACTION = 0.9  # with a cutoff, non-bonded terms are whole up to this fraction of it and fall to zero from there

BOND = f"{STRETCH_KJ_MOL / 2}*kb*d^2*(1-2*d+7/3*d^2); d=10*r-r0"
ANGLE = f"{STRETCH_KJ_MOL / 2 * DEGREE**2}*ka*d^2*(1-0.006981317*d); d=theta*{1 / DEGREE}-theta0"
LINEAR_ANGLE = f"{STRETCH_KJ_MOL}*ka*(1+cos(theta))"
STRETCH_BEND = (
    f"{STRETCH_KJ_MOL * DEGREE}*(kba_ijk*(10*distance(p1,p2)-r_ij)+kba_kji*(10*distance(p3,p2)-r_kj))*(angle(p1,p2,p3)*{1 / DEGREE}-theta0)"
)
OUT_OF_PLANE = f"{STRETCH_KJ_MOL / 2}*koop*asin(sin(angle(p3,p1,p4))*sin(dihedral(p2,p1,p3,p4)))^2"  # of p1-p4 with the plane p2-p1-p3
VAN_DER_WAALS = f"{KJ_PER_KCAL}*eps(kind1,kind2)*(1.07/(q+0.07))^7*(1.12/(q^7+0.12)-2); q=10*r/r_star(kind1,kind2)"
COULOMB_KJ_MOL_ANG = 332.0716 * KJ_PER_KCAL


class Rows(NamedTuple):
    """Terms of one kind, sorted by atoms."""

    atoms: NDArray[np.int64]  # (T, k)
    values: NDArray[np.float64]  # (T, p) parameters


@dataclass(frozen=True)
class Terms:
    """The terms of a molecule of A atoms in the units of the MMFF papers, each once, smaller end atom first, none that is always zero."""

    atom: Rows  # (A, 1); atomic number, numeric MMFF type, charge in e
    bond: Rows  # (B, 2); kb mdyn/angstrom, r0 angstrom; atoms one or two bonds apart have no non-bonded terms
    angle: Rows  # (T, 3) centre second; ka mdyn angstrom/rad^2, theta0 degree
    linear_angle: Rows  # (T, 3) centre second; ka mdyn angstrom/rad^2
    stretch_bend: Rows  # (T, 3) atoms i j k; kba_ijk and kba_kji mdyn/rad, r0_ij and r0_kj angstrom, theta0 degree
    torsion: Rows  # (T, 4); V1, V2, V3 kcal/mol
    out_of_plane: Rows  # (T, 4) centre first; koop mdyn angstrom/rad^2, for all three Wilson angles
    pair_14: Rows  # (T, 2); atoms exactly three bonds apart, no parameters
    vdw_types: NDArray[np.int64]  # (V,) MMFF types of the molecule, ascending; they index the two tables
    vdw_r_star_ang: NDArray[np.float64]  # (V, V) R*_ij
    vdw_eps_kcal_mol: NDArray[np.float64]  # (V, V) epsilon_ij; both depend on the pair (donor, acceptor), not on a product of atom values


@dataclass(frozen=True)
class Environment:
    """What an atom feels of the atoms of its chain that it is not bonded to. In vacuum: all of them."""

    electrostatics: bool = True
    cutoff_ang: float | None = None  # at least 6, so that pairs three bonds apart lie inside; None: every pair


VACUUM = Environment()


def read_terms(mol: Chem.Mol, variant: Variant = "MMFF94s") -> Terms:
    """Terms of a molecule, typed by RDKit.

    Args:
        mol: one molecule, A atoms, hydrogens as atoms.
        variant: MMFF94, or MMFF94s with planar delocalised nitrogen.

    Raises:
        PolymerError: reason no-force-field, where MMFF94 has no type for an atom, no parameters for a bond or an angle, or RDKit takes a
            neutral atom for an ion, as it does in phosphazenes.

    Source: Tosco, Stiefl, Landrum, J. Cheminform. 6 (2014) 37: RDKit's parameters, typing and choice of torsions.
    """
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=variant)
    if properties is None:
        raise _no_force_field(mol, f"MMFF94 has no atom type for {_strangest_atom(mol)}")
    types = np.array([properties.GetMMFFAtomType(k) for k in range(mol.GetNumAtoms())])
    charges = [properties.GetMMFFPartialCharge(k) for k in range(mol.GetNumAtoms())]
    charge, formal = sum(charges), Chem.GetFormalCharge(mol)
    if abs(charge - formal) > 1e-3:
        ion = int(np.argmax([abs(properties.GetMMFFFormalCharge(k) - atom.GetFormalCharge()) for k, atom in enumerate(mol.GetAtoms())]))
        typed = f"as type {types[ion]} the molecule has charge {charge:+.0f} instead of {formal:+d}"
        raise _no_force_field(mol, f"MMFF94 has no atom type for this {mol.GetAtomWithIdx(ion).GetSymbol()}: {typed}")
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    turning = [_turns(atom) for atom in mol.GetAtoms()]
    near = [sorted(other.GetIdx() for other in atom.GetNeighbors()) for atom in mol.GetAtoms()]
    bonds = [(i, j) for i, around in enumerate(near) for j in around if i < j]
    angles = [(i, j, k) for j, around in enumerate(near) for i in around for k in around if i < k]
    paths = [(i, j, k, m) for j, k in bonds for i in near[j] for m in near[k] if i != k and m != j and i != m]
    torsions = [path if path[0] < path[3] else path[::-1] for path in paths if turning[path[1]] and turning[path[2]]]
    centres = [(j, *around) for j, around in enumerate(near) if len(around) == 3]

    bond = _read(bonds, partial(properties.GetMMFFBondStretchParams, mol), (2, 2))
    bend = _read(angles, partial(properties.GetMMFFAngleBendParams, mol), (3, 2))
    for kind, wanted, found in (("bond", bonds, bond), ("angle", angles, bend)):
        missing = sorted(set(wanted) - set(map(tuple, found.atoms.tolist())))
        if missing:
            names = "-".join(mol.GetAtomWithIdx(k).GetSymbol() for k in missing[0])
            raise _no_force_field(mol, f"MMFF94 has no parameters for the {kind} {names}")
    linear = np.isin(types[bend.atoms[:, 1]], LINEAR_TYPES)
    angle = Rows(bend.atoms[~linear], bend.values[~linear])
    vdw_types, first = np.unique(types, return_index=True)
    vdw = np.array([[properties.GetMMFFVdWParams(i, j) for j in first.tolist()] for i in first.tolist()])
    nearer = {*bonds, *((i, k) for i, _, k in angles)}
    pairs_14 = sorted({(min(i, m), max(i, m)) for i, _, _, m in paths} - nearer)
    return Terms(
        atom=Rows(np.arange(len(types))[:, None], np.stack([elements, types, charges], axis=1)),
        bond=bond,
        angle=angle,
        linear_angle=Rows(bend.atoms[linear], bend.values[linear, :1]),
        stretch_bend=_read(angle.atoms.tolist(), partial(_coupling, properties, mol), (3, 5)),
        torsion=_read(torsions, partial(properties.GetMMFFTorsionParams, mol), (4, 3)),
        out_of_plane=_read(centres, lambda j, i, k, m: (0, properties.GetMMFFOopBendParams(mol, i, j, k, m) or 0.0), (4, 1)),
        pair_14=Rows(np.array(pairs_14, dtype=np.int64).reshape(-1, 2), np.zeros((len(pairs_14), 0))),
        vdw_types=vdw_types,
        vdw_r_star_ang=vdw[..., 2],
        vdw_eps_kcal_mol=vdw[..., 3],
    )


def _turns(atom: Chem.Atom) -> bool:
    """Can the atom be in the middle of a torsion? Not where its neighbours lie on a line."""
    triple = any(bond.GetBondType() == Chem.BondType.TRIPLE for bond in atom.GetBonds())
    return not triple and atom.GetHybridization() in (Chem.HybridizationType.SP2, Chem.HybridizationType.SP3)


def _read(atoms: Sequence[Sequence[int]], read: Callable[..., tuple[float, ...] | None], widths: tuple[int, int]) -> Rows:
    """Sorted rows of terms that exist; ``read`` gives their class, then their parameters. Widths: columns of atoms and of parameters."""
    found = {tuple(row): value[1:] for row in atoms if (value := read(*row)) is not None and any(value[1:])}
    index = np.array(list(found), dtype=np.int64).reshape(len(found), widths[0])
    values = np.array(list(found.values()), dtype=np.float64).reshape(len(found), widths[1])
    order = np.lexsort(index.T[::-1])
    return Rows(index[order], values[order])


def _coupling(properties: Any, mol: Chem.Mol, i: int, j: int, k: int) -> tuple[float, ...] | None:
    """Class and force constants of a stretch-bend term, then the resting lengths and the resting angle that it couples."""
    force = properties.GetMMFFStretchBendParams(mol, i, j, k)
    if force is None or not any(force[1:]):
        return None
    r_ij, r_kj = (properties.GetMMFFBondStretchParams(mol, end, j)[2] for end in (i, k))
    return (*force, r_ij, r_kj, properties.GetMMFFAngleBendParams(mol, i, j, k)[2])


def _strangest_atom(mol: Chem.Mol) -> str:
    for atom in mol.GetAtoms():
        symbol, degree = atom.GetSymbol(), atom.GetDegree()
        if symbol not in MOST_NEIGHBOURS:
            return f"{symbol} in a molecule"
        if degree > MOST_NEIGHBOURS[symbol]:
            return f"{symbol} with {degree} neighbours"
    return "one of its atoms"


def _no_force_field(mol: Chem.Mol, detail: str) -> PolymerError:
    return PolymerError(Chem.MolToSmiles(Chem.RemoveHs(mol, sanitize=False)), "no-force-field", f"{detail}; leave the polymer out")


def chain_terms(topology: UnitTopology, num_units: int, variant: Variant = "MMFF94s") -> Terms:
    """Terms of a chain, equal to read_terms of it, in a time linear in its length.

    Args:
        topology: the repeat unit.
        num_units: N.
        variant: as read_terms.

    Returns:
        Terms over the atoms of ``chain_mol(topology, num_units, hydrogens=True)``.

    Raises:
        InputError: num_units below 1.
        PolymerError: as read_terms.
    """
    copies = _Copies(topology, num_units)
    try:
        terms = _oligomer(TopologyKey(topology), min(num_units, copies.short), variant)
        if num_units <= copies.short:
            return terms
        if not copies.would_repeat(terms):
            return read_terms(chain_mol(topology, num_units, hydrogens=True), variant)
    except PolymerError as error:
        raise PolymerError(topology.psmiles, error.reason, error.detail) from None
    repeated: dict[str, Any] = {name: copies.of(rows) for name, rows in vars(terms).items() if isinstance(rows, Rows)}
    return replace(terms, **repeated)


@lru_cache(maxsize=64)
def _oligomer(key: TopologyKey, num_units: int, variant: Variant) -> Terms:
    return read_terms(chain_mol(key.topology, num_units, hydrogens=True), variant)


class _Copies:
    """Rows of an oligomer as rows of a chain. A row belongs to the first unit that it touches: rows before the copied unit stay, its own
    are repeated, rows behind it move to the end of the chain."""

    def __init__(self, topology: UnitTopology, num_units: int) -> None:
        _, nbr0, _, star1 = topology.key_atoms
        bonds = int(graph_distances(topology)[nbr0, star1])  # from one unit to the next
        self.copied = -(-REACH_BONDS // bonds)  # this unit and the next are REACH_BONDS away from both ends of the oligomer
        self.short = self.copied + 2 + -(-(REACH_BONDS + WIDEST_TERM_BONDS) // bonds)  # its units
        self.extra = num_units - self.short
        heavy, _ = atom_owners(topology.key_atoms, topology.num_atoms, self.short)
        hydrogens = chain_hydrogens(topology, self.short)
        own = topology.num_atoms - 2
        self.charge = int(topology.formal_charges.sum() - topology.formal_charges[[topology.key_atoms[0], topology.key_atoms[3]]].sum())
        self.units = np.concatenate([heavy, np.repeat(heavy, hydrogens)])  # (A,) of every atom of the oligomer
        is_heavy = np.arange(len(self.units)) < len(heavy)
        self.start = np.arange(len(self.units)) + np.where(is_heavy, 0, self.extra * own)  # (A,) the atom in the chain, not moved
        self.stride = np.where(is_heavy, own, hydrogens[1 : 1 + own].sum())  # (A,) and how far one unit moves it

    def _moved(self, atoms: NDArray[np.int64], units: int | NDArray[np.int64]) -> NDArray[np.int64]:
        return self.start[atoms] + units * self.stride[atoms]

    def of(self, rows: Rows) -> Rows:
        """Rows of the chain, sorted."""
        first = self.units[rows.atoms].min(axis=1)
        stay, repeated, move = (np.flatnonzero(side) for side in (first < self.copied, first == self.copied, first > self.copied))
        shifts = np.arange(self.extra + 1)
        copies = self._moved(rows.atoms[repeated], shifts[:, None, None]).reshape(-1, rows.atoms.shape[1])
        atoms = np.concatenate([self._moved(rows.atoms[stay], 0), copies, self._moved(rows.atoms[move], self.extra)])
        source = np.concatenate([stay, np.tile(repeated, len(shifts)), move])
        order = np.lexsort(atoms.T[::-1])
        return Rows(atoms[order], rows.values[source[order]])

    def would_repeat(self, terms: Terms) -> bool:
        """Has the unit behind the copied one the same terms, and is its charge its own? RDKit spreads an amidinium's charge over a whole
        run of N-C-N, however long."""
        if abs(terms.atom.values[self.units == self.copied, 2].sum() - self.charge) > 1e-6:
            return False
        for rows in (value for value in vars(terms).values() if isinstance(value, Rows)):
            first = self.units[rows.atoms].min(axis=1)
            here, behind = first == self.copied, first == self.copied + 1
            same_atoms = np.array_equal(self._moved(rows.atoms[here], 1), self._moved(rows.atoms[behind], 0))
            if not same_atoms or not np.allclose(rows.values[here], rows.values[behind], rtol=0, atol=1e-9):
                return False
        return True


def build_system(terms: Terms, masses_da: NDArray[np.float64] | None = None, environment: Environment = VACUUM) -> openmm.System:
    """System with one force group per kind of term: the position of the kind in KINDS.

    Args:
        terms: of the molecule, A atoms.
        masses_da: (A,); None takes standard atomic weights.
        environment: which non-bonded terms there are.

    Returns:
        System in OpenMM's units, not periodic. Several forces may share a group (bent and linear angles, Coulomb and its 1-4 scaling).
    """
    if masses_da is None:
        table = Chem.GetPeriodicTable()
        masses_da = np.array([table.GetAtomicWeight(int(number)) for number in terms.atom.values[:, 0]])
    system = openmm.System()
    for mass in masses_da.tolist():
        system.addParticle(mass)
    coupled = ("kba_ijk", "kba_kji", "r_ij", "r_kj", "theta0")
    turns = ([0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2])  # each bond of a centre against the plane of the other two
    wilson = Rows(np.concatenate([terms.out_of_plane.atoms[:, turn] for turn in turns]), np.tile(terms.out_of_plane.values, (3, 1)))
    forces = [
        ("bond", _fill(openmm.CustomBondForce(BOND), ("kb", "r0"), terms.bond)),
        ("angle", _fill(openmm.CustomAngleForce(ANGLE), ("ka", "theta0"), terms.angle)),
        ("angle", _fill(openmm.CustomAngleForce(LINEAR_ANGLE), ("ka",), terms.linear_angle)),
        ("stretch_bend", _fill(openmm.CustomCompoundBondForce(3, STRETCH_BEND), coupled, terms.stretch_bend)),
        ("torsion", _torsions(terms.torsion)),
        ("out_of_plane", _fill(openmm.CustomCompoundBondForce(4, OUT_OF_PLANE), ("koop",), wilson)),
        ("van_der_waals", _van_der_waals_force(terms, environment)),
        *(("electrostatics", force) for force in _coulomb_forces(terms, environment)),
    ]
    for kind, force in forces:
        force.setForceGroup(KINDS.index(kind))
        system.addForce(force)
    return system


def _fill(force: Any, names: tuple[str, ...], rows: Rows) -> Any:
    """Give a custom bond, angle or compound bond force its parameters and its terms."""
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


def _van_der_waals_force(terms: Terms, environment: Environment) -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce(VAN_DER_WAALS)
    size = len(terms.vdw_types)
    for name, table in (("r_star", terms.vdw_r_star_ang), ("eps", terms.vdw_eps_kcal_mol)):
        force.addTabulatedFunction(name, openmm.Discrete2DFunction(size, size, table.ravel(order="F").tolist()))
    return _pairwise(force, "kind", np.searchsorted(terms.vdw_types, terms.atom.values[:, 1]), terms, environment)


def _coulomb_forces(terms: Terms, environment: Environment) -> list[Any]:
    """Coulomb between all pairs, and what the scaling of 1-4 pairs takes off: both non-bonded forces then exclude the same pairs."""
    if not environment.electrostatics:
        return []
    charge = terms.atom.values[:, 2]
    force = openmm.CustomNonbondedForce(f"{COULOMB_KJ_MOL_ANG}*charge1*charge2/(10*r+0.05)")
    less = _fill(
        openmm.CustomBondForce(f"{(SCALE_14 - 1) * COULOMB_KJ_MOL_ANG}*product/(10*r+0.05)"),
        ("product",),
        Rows(terms.pair_14.atoms, charge[terms.pair_14.atoms].prod(axis=1, keepdims=True)),
    )
    return [_pairwise(force, "charge", charge, terms, environment), less]


def _pairwise(force: Any, name: str, values: NDArray[Any], terms: Terms, environment: Environment) -> openmm.CustomNonbondedForce:
    """Fill a non-bonded force: a value per atom, no terms one or two bonds apart, the cutoff."""
    force.addPerParticleParameter(name)
    for value in values.tolist():
        force.addParticle([value])
    force.createExclusionsFromBonds(terms.bond.atoms.tolist(), 2)
    force.setNonbondedMethod(openmm.CustomNonbondedForce.NoCutoff)
    if environment.cutoff_ang is not None:
        force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(environment.cutoff_ang / 10)
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(SWITCH_FRACTION * environment.cutoff_ang / 10)
    return force


def evaluate(
    terms: Terms, x_ang: NDArray[np.float64], environment: Environment = VACUUM
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Energy and forces of every kind of term, in double precision on OpenMM's Reference platform.

    Args:
        terms: of the molecule.
        x_ang: (A, 3).
        environment: as build_system.

    Returns:
        By kind: kcal/mol, and (A, 3) kcal/mol/angstrom.
    """
    system = build_system(terms, environment=environment)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.asarray(x_ang) / 10)
    states = [context.getState(getEnergy=True, getForces=True, groups={group}) for group in range(len(KINDS))]
    kcal_mol = unit.kilocalories_per_mole
    energies = [state.getPotentialEnergy().value_in_unit(kcal_mol) for state in states]
    forces = [state.getForces(asNumpy=True).value_in_unit(kcal_mol / unit.angstrom) for state in states]
    return dict(zip(KINDS, energies)), dict(zip(KINDS, forces))
