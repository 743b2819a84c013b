"""Descriptors that RDKit counts atom by atom in Python, or along one path after another: the same numbers from arrays of atoms.

Half of the time of descriptors.py went into these few. Tests hold every one of them against RDKit.

Source: Kier, Hall, Molecular Connectivity in Structure-Activity Analysis (1986): connectivity indices; Hall, Mohney, Kier, J. Chem. Inf.
Comput. Sci. 31, 76 (1991): electrotopological states.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem.EState.EState import GetPrincipleQuantumNumber
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from data_shards.chem.psmiles import atoms_of

Values = NDArray[np.float64]
Places = NDArray[np.int64]
ONE = -1  # in a path: no atom, a factor of 1
FEW = 120  # atoms below which RDKit's matrix of distances, whose time grows with their third power, is the faster one


def graph_indices(mol: Chem.Mol) -> dict[str, float]:
    """Valence electrons and connectivity indices of a molecule by the names RDKit gives them.

    Args:
        mol: with implicit hydrogens.
    """
    atoms = _Atoms(mol)
    simple, valence, bare = (_inverse_root(own) for own in (atoms.degree, atoms.valence_delta, atoms.bare_delta))
    found = {
        "NumValenceElectrons": float((atoms.outer - atoms.charge + atoms.hydrogens).sum()),
        "Chi0": float(simple.sum()),
        "Chi0v": float(valence.sum()),
        "Chi0n": float(bare.sum()),
        "Chi1": _over(atoms.bonds, simple),
        "Chi1v": _over(atoms.bonds, valence),
        "Chi1n": _over(atoms.bonds, bare),
    }
    for length, (paths, share) in _paths(atoms).items():
        found |= {f"Chi{length}v": _over(paths, valence, share), f"Chi{length}n": _over(paths, bare, share)}
    return found


def e_states(mol: Chem.Mol) -> Values:
    """(H,) electrotopological states of heavy atoms, as RDKit's EStateIndices."""
    atoms = _Atoms(mol)
    electrons = atoms.outer - atoms.hydrogens
    intrinsic = np.divide(4.0 / atoms.period**2 * electrons + 1.0, atoms.degree, out=np.zeros(len(electrons)), where=atoms.degree > 0)
    weight = 1.0 / (_distances(mol, atoms.bonds) + 1.0) ** 2
    own: Values = intrinsic + intrinsic * weight.sum(1) - weight @ intrinsic
    return own


class _Atoms:
    """Columns (H,) of a molecule's atoms, and its (B, 2) bonds."""

    def __init__(self, mol: Chem.Mol) -> None:
        rows = [
            (*_element(atom.GetAtomicNum()), atom.GetTotalNumHs(), atom.GetFormalCharge(), atom.GetDegree(), atom.GetAtomicNum())
            for atom in atoms_of(mol)
        ]
        self.outer, self.period, self.hydrogens, self.charge, self.degree, number = np.array(rows, dtype=np.float64).reshape(-1, 6).T
        self.bonds = np.argwhere(np.triu(Chem.GetAdjacencyMatrix(mol)))
        self.bare_delta = self.outer - self.hydrogens
        inner = np.maximum(number - self.outer - 1.0, 1.0)
        self.valence_delta = np.where(number <= 10, self.bare_delta, self.bare_delta / inner)


@cache
def _element(number: int) -> tuple[int, int]:
    """Outer electrons and period."""
    return Chem.GetPeriodicTable().GetNOuterElecs(number), GetPrincipleQuantumNumber(number)


def _inverse_root(delta: Values) -> Values:
    return np.divide(1.0, np.sqrt(np.maximum(delta, 0.0)), out=np.zeros(len(delta)), where=delta > 0)


def _over(paths: Places, factor: Values, share: Values | float = 1.0) -> float:
    """Sum over (P, L) paths of the products of their atoms' factors, each path counted `share` times."""
    return float((np.append(factor, 1.0)[paths].prod(axis=1) * share).sum())


def _paths(atoms: _Atoms) -> dict[int, tuple[Places, Values]]:
    """Paths of 2, 3 and 4 bonds by their atoms, and how often each row counts, as RDKit counts them.

    A row is met from both of its ends. A ring of as many bonds counts once, with each atom once; of four bonds also a ring of three with
    one atom beside it, whose branching atom then counts twice.
    """
    size = len(atoms.degree)
    ends = np.concatenate([atoms.bonds, atoms.bonds[:, ::-1]])
    order = np.argsort(ends[:, 0], kind="stable")
    targets, first = ends[order, 1], np.searchsorted(ends[order, 0], np.arange(size + 1))
    paths, found = ends, {}
    for length in (2, 3, 4):
        last = paths[:, -1]
        many = first[last + 1] - first[last]
        row = np.repeat(np.arange(len(paths)), many)
        step = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many) + first[last[row]]
        longer = np.concatenate([paths[row], targets[step][:, None]], axis=1)
        back = longer[:, :-1] == longer[:, -1:]  # where the new atom stood before
        fresh = ~back.any(axis=1)
        rings = back[:, 0] & (length > 2)
        tailed = back[:, 1] & (length > 3)
        longer[rings, -1] = ONE
        share = np.where(rings, 0.5 / length, 0.5)
        counted = fresh | rings | tailed
        found[length] = longer[counted], share[counted]
        paths = longer[fresh]
    return found


def _distances(mol: Chem.Mol, bonds: Places) -> Values:
    """(H, H) bonds between atoms, infinite where there is no path."""
    size = mol.GetNumAtoms()
    if size < FEW:
        near = Chem.GetDistanceMatrix(mol)
        return np.where(near < size, near, np.inf)
    graph = csr_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(size, size))
    return np.asarray(shortest_path(graph, method="D", directed=False, unweighted=True))


__all__ = ["e_states", "graph_indices"]
