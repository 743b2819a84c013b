"""The terms of MMFF94 and MMFF94s. RDKit assigns atom types, charges and parameters; `mmff_system` turns them into an OpenMM system.

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
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from data_shards.chem.chain import chain_mol
from data_shards.chem.topology import graph_distances
from data_shards.errors import PolymerError
from data_shards.schema import TopologyKey, UnitTopology, atom_owners, chain_hydrogens

Variant = Literal["MMFF94", "MMFF94s"]

LINEAR_TYPES = (4, 53, 61)  # centres of linear angles: sp carbon, the middle N of an azide, N of an isonitrile or diazonium
MOST_NEIGHBOURS = {"H": 1, "C": 4, "N": 4, "O": 3, "F": 1, "Si": 4, "P": 4, "S": 4, "Cl": 4, "Br": 1, "I": 1}  # in a molecule
REACH_BONDS = 8  # nothing further away changes type, charge or parameters of an atom
WIDEST_TERM_BONDS = 3


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
