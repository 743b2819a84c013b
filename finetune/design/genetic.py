"""Genetic search over pieces of repeat units: what the generator is compared with, at the same number of calls of the property models.

A unit is cut at a bond of its backbone or beside it; children take the head side of one parent and the tail side of another, or exchange
what hangs on the chain. Source: Jensen, Chem. Sci. 10, 3567 (2019), for graphs; here pieces keep both ends of the repeat unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from data_shards.chem.psmiles import atoms_of, canonicalise, parse
from data_shards.errors import PolymerError
from finetune.design.graphs import MAX_ATOMS

TRIES = 20  # for a child that is a polymer
ELITE = 0.3  # share of a population that has children
MUTATIONS = (6, 7, 8, 9, 14, 16)  # elements that an atom of the same number of neighbours may become
Score = Callable[[Sequence[str]], NDArray[np.float64]]


def search(parents: Sequence[str], score: Score, calls: int, rng: np.random.Generator, size: int = 50) -> list[str]:
    """Polymers of the last population, best first.

    Args:
        parents: P-SMILES to begin with, already the best that are known.
        score: of polymers, to be small; called for every new one.
        calls: polymers that may be scored.
        rng: of everything drawn.
        size: of a population.
    """
    population = {canonicalise(text).plain: np.inf for text in parents[:size]}
    names = list(population)
    population.update(zip(names, score(names).tolist(), strict=True))
    left = calls - len(names)
    while left > 0:
        ranked = sorted(population, key=lambda name: population[name])
        best = ranked[: max(2, int(ELITE * len(ranked)))]
        children: set[str] = set()
        for _ in range(TRIES * size):
            if len(children) >= min(size, left):
                break
            one, other = rng.choice(best, 2)
            made = child(str(one), str(other), rng)
            if made is not None and made not in population:
                children.add(made)
        if not children:
            break
        fresh = sorted(children)
        left -= len(fresh)
        population.update(zip(fresh, score(fresh).tolist(), strict=True))
        population = {name: population[name] for name in sorted(population, key=lambda name: population[name])[:size]}
    return sorted(population, key=lambda name: population[name])


def child(one: str, other: str, rng: np.random.Generator) -> str | None:
    """Canonical P-SMILES of a child of two polymers, or of a changed atom of the first; None where it is no polymer."""
    try:
        made = _changed(parse(one), rng) if rng.random() < 0.3 else _crossed(parse(one), parse(other), rng)
        if made is None:
            return None
        with rdBase.BlockLogs():
            text = Chem.MolToSmiles(made)
            found = canonicalise(text).plain
        return found if Chem.MolFromSmiles(found).GetNumAtoms() <= MAX_ATOMS else None
    except (PolymerError, ValueError, RuntimeError):
        return None


def _changed(mol: Chem.Mol, rng: np.random.Generator) -> Chem.Mol | None:
    """One atom outside rings becomes another element."""
    atoms = [atom for atom in atoms_of(mol) if atom.GetAtomicNum() and not atom.IsInRing() and not atom.GetFormalCharge()]
    if not atoms:
        return None
    made = Chem.RWMol(mol)
    atom = made.GetAtomWithIdx(atoms[rng.integers(len(atoms))].GetIdx())
    atom.SetAtomicNum(int(rng.choice(MUTATIONS)))
    atom.SetNoImplicit(False)
    atom.SetNumExplicitHs(0)
    Chem.SanitizeMol(made)
    return made.GetMol()


def _crossed(one: Chem.Mol, other: Chem.Mol, rng: np.random.Generator) -> Chem.Mol | None:
    """The part of the first that holds its first star, or both, joined with the part of the second that holds what is missing."""
    halves = [_cut(mol, rng) for mol in (one, other)]
    if any(half is None for half in halves):
        return None
    (head, first_both), (tail, second_both) = (half for half in halves if half is not None)
    if first_both != second_both:
        return None
    joined = Chem.molzip(Chem.CombineMols(head[0], tail[1]))
    Chem.SanitizeMol(joined)
    return joined


def _cut(mol: Chem.Mol, rng: np.random.Generator) -> tuple[tuple[Chem.Mol, Chem.Mol], bool] | None:
    """A unit cut at a single bond outside rings: the side that keeps the first star, the other side, and whether the first has both."""
    stars = [atom.GetIdx() for atom in atoms_of(mol) if atom.GetAtomicNum() == 0]
    bonds = [
        bond
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        and bond.GetBeginAtom().GetAtomicNum()
        and bond.GetEndAtom().GetAtomicNum()
    ]
    if not bonds:
        return None
    bond = bonds[rng.integers(len(bonds))]
    cut = Chem.FragmentOnBonds(mol, [bond.GetIdx()], dummyLabels=[(0, 0)])
    atoms: list[tuple[int, ...]] = []
    parts = list(Chem.GetMolFrags(cut, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=atoms))
    if len(parts) != 2:
        return None
    new = mol.GetNumAtoms()  # the dummies of the cut come after all atoms
    for part, own in zip(parts, atoms, strict=True):
        for k, place in enumerate(own):
            if place >= new:
                part.GetAtomWithIdx(k).SetAtomMapNum(1)
    first = next(k for k, own in enumerate(atoms) if stars[0] in own)
    return (parts[first], parts[1 - first]), stars[1] in atoms[first]


__all__ = ["child", "search"]
