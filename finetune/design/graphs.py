"""Repeat units as graphs of classes: atoms with their element and charge, the two stars first, and five kinds of pairs.

Only what a class cannot say is left to RDKit: hydrogens fill valences. A graph is a polymer when RDKit reads it and P-SMILES accepts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from torch import Tensor

from data_shards.chem.psmiles import atoms_of, canonicalise, parse
from data_shards.errors import PolymerError

MAX_ATOMS = 62  # of a graph with its two stars
NONE, SINGLE, DOUBLE, TRIPLE, AROMATIC = range(5)
KINDS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
CODE = {kind: code for code, kind in enumerate(KINDS, start=1)}
STAR = 0


@dataclass(frozen=True)
class AtomClass:
    """What an atom may be.

    Attributes:
        symbol: in SMILES.
        charge: formal.
        hydrogen: an aromatic atom that carries one, as in pyrrole.
        valence: bonds that it can have, hydrogens not counted.
        aromatic: aromatic bonds that it can have.
    """

    symbol: str
    charge: int
    hydrogen: bool
    valence: int
    aromatic: int


CLASSES = (
    AtomClass("*", 0, False, 1, 0),
    AtomClass("C", 0, False, 4, 3),
    AtomClass("N", 0, False, 3, 3),
    AtomClass("O", 0, False, 2, 2),
    AtomClass("F", 0, False, 1, 0),
    AtomClass("Si", 0, False, 4, 2),
    AtomClass("P", 0, False, 5, 2),
    AtomClass("S", 0, False, 6, 2),
    AtomClass("Cl", 0, False, 1, 0),
    AtomClass("Br", 0, False, 1, 0),
    AtomClass("I", 0, False, 1, 0),
    AtomClass("B", 0, False, 3, 2),
    AtomClass("Ge", 0, False, 4, 2),
    AtomClass("Se", 0, False, 2, 2),
    AtomClass("Sn", 0, False, 4, 0),
    AtomClass("N", 0, True, 2, 2),
    AtomClass("N", 1, False, 4, 3),
    AtomClass("N", -1, False, 2, 2),
    AtomClass("O", -1, False, 1, 0),
)
NUM_CLASSES, NUM_KINDS = len(CLASSES), 1 + len(KINDS)
PLACE = {(own.symbol, own.charge, own.hydrogen): place for place, own in enumerate(CLASSES)}
STAR_KEY = ("*", 0, False)
VALENCE = torch.tensor([own.valence for own in CLASSES])
# bonds of an atom that may take part in a double bond of a ring; sulfur, oxygen and pyrrole's nitrogen give a pair of electrons instead
ROOM = tuple(0 if own.hydrogen or own.symbol in ("O", "S", "Se") else 3 if own.symbol == "P" else own.valence for own in CLASSES)
AROMATIC_BONDS = torch.tensor([own.aromatic for own in CLASSES])


@dataclass(frozen=True)
class Graph:
    """One repeat unit.

    Attributes:
        atoms: (n,) classes; the first two are stars.
        bonds: (m, 3) two atoms and the kind.
    """

    atoms: NDArray[np.uint8]
    bonds: NDArray[np.uint8]


@dataclass(frozen=True)
class Graphs:
    """A padded batch.

    Attributes:
        atoms: (B, N) classes, 0 beyond the end.
        bonds: (B, N, N) kinds, symmetric, 0 on the diagonal and beyond the end.
        size: (B,) atoms of each.
    """

    atoms: Tensor
    bonds: Tensor
    size: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, N) where there is an atom."""
        return torch.arange(self.atoms.shape[1], device=self.size.device) < self.size[:, None]

    def one(self, row: int) -> Graph:
        """A graph of the batch."""
        n = int(self.size[row])
        i, j = torch.nonzero(torch.triu(self.bonds[row, :n, :n]), as_tuple=True)
        bonds = torch.stack([i, j, self.bonds[row, i, j]], 1)
        return Graph(self.atoms[row, :n].numpy().astype(np.uint8), bonds.numpy().astype(np.uint8))


def read_graph(psmiles: str, *, backwards: bool = False) -> Graph:
    """The smallest repeat unit of a polymer without stereo marks and isotopes, its atoms in the order of a SMILES that begins at a star.

    Args:
        psmiles: any spelling.
        backwards: begin at the other star.

    Raises:
        PolymerError: as psmiles.parse, and reasons too-large, atom-class, bond-type, junction-order.
    """
    mol = parse(canonicalise(psmiles).plain)
    if mol.GetNumAtoms() > MAX_ATOMS:
        detail = f"the repeat unit has {mol.GetNumAtoms() - 2} heavy atoms, at most {MAX_ATOMS - 2} are designed; use a smaller unit"
        raise PolymerError(psmiles, "too-large", detail)
    stars = [atom.GetIdx() for atom in atoms_of(mol) if atom.GetAtomicNum() == 0]
    if any(mol.GetAtomWithIdx(star).GetBonds()[0].GetBondType() != Chem.BondType.SINGLE for star in stars):
        raise PolymerError(psmiles, "junction-order", "units are joined by a multiple bond, which is not designed")
    mol = Chem.MolFromSmiles(Chem.MolToSmiles(mol, rootedAtAtom=stars[1 if backwards else 0]))
    atoms = atoms_of(mol)
    keys = [key_of(atom) for atom in atoms]
    strange = next((atom for atom, key in zip(atoms, keys, strict=True) if key not in PLACE or atom.GetNumRadicalElectrons()), None)
    if strange is not None:
        raise PolymerError(psmiles, "atom-class", f"has an atom {strange.GetSmarts()} that is not among those that are designed")
    kinds = {bond.GetBondType() for bond in mol.GetBonds()}
    if kinds - CODE.keys():
        raise PolymerError(psmiles, "bond-type", f"has a {str(min(kinds - CODE.keys())).lower()} bond, which is not designed")
    order = sorted(range(len(atoms)), key=lambda k: (keys[k] != STAR_KEY, k))
    place = {atom: k for k, atom in enumerate(order)}
    bonds = [(place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()], CODE[b.GetBondType()]) for b in mol.GetBonds()]
    return Graph(np.array([PLACE[keys[k]] for k in order], dtype=np.uint8), np.array(bonds, dtype=np.uint8).reshape(-1, 3))


def key_of(atom: Chem.Atom) -> tuple[str, int, bool]:
    """What decides the class of an atom."""
    return atom.GetSymbol(), atom.GetFormalCharge(), bool(atom.GetIsAromatic() and atom.GetTotalNumHs() and atom.GetSymbol() != "C")


def write_psmiles(graph: Graph, *, settle: bool = False) -> str:
    """Canonical P-SMILES of a graph.

    Args:
        graph: of one repeat unit.
        settle: aromatic bonds that have no Kekulé structure become single and double ones.

    Raises:
        PolymerError: it is no polymer; reasons star-count, star-degree, valence, aromaticity, fragments and those of psmiles.parse.
    """
    molecule = Chem.RWMol()
    aromatic = set(graph.bonds[graph.bonds[:, 2] == AROMATIC, :2].ravel().tolist())
    for k, place in enumerate(graph.atoms.tolist()):
        own = CLASSES[place]
        atom = Chem.Atom(own.symbol)
        atom.SetFormalCharge(own.charge)
        atom.SetIsAromatic(k in aromatic)
        if own.hydrogen:
            atom.SetNumExplicitHs(1)
            atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    for i, j, kind in graph.bonds.tolist():
        molecule.AddBond(i, j, KINDS[kind - 1])
    what = "the drawn graph"
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise PolymerError(
            what, "fragments", f"has {len(Chem.GetMolFrags(molecule))} fragments; a repeat unit must be 1 connected fragment"
        )
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
    except (Chem.KekulizeException, Chem.AtomKekulizeException) as error:
        if settle and len(aromatic):
            return write_psmiles(settled(graph))
        raise PolymerError(what, "aromaticity", _line(error)) from None
    except (Chem.AtomValenceException, ValueError) as error:
        raise PolymerError(what, "valence", _line(error)) from None
    odd = next((a for a in atoms_of(molecule) if a.GetSymbol() in ("S", "P", "Se") and a.GetDegree() > 1 and _hypervalent(a)), None)
    if odd is not None:
        raise PolymerError(
            what, "valence", f"has a {odd.GetSymbol()} of valence {odd.GetTotalValence()} with hydrogens; its bonds do not fit"
        )
    return canonicalise(Chem.MolToSmiles(molecule)).plain


def settled(graph: Graph) -> Graph:
    """Aromatic bonds as single and double ones: as many double bonds as find two atoms with room, those of six-membered rings first.

    What is aromatic in spite of that, RDKit sees by itself. An atom that finds no partner, such as the odd one of fluorene's ring of five,
    is saturated.
    """
    import networkx as nx

    atoms, bonds = graph.atoms.astype(np.int64), graph.bonds.copy()
    aromatic = bonds[:, 2] == AROMATIC
    used = np.zeros(len(atoms), dtype=np.int64)
    for end in range(2):
        np.add.at(used, bonds[:, end], np.where(aromatic, 1, bonds[:, 2]))
    room = np.array([ROOM[place] for place in atoms]) - used >= 1
    rings = nx.Graph(bonds[aromatic, :2].tolist())
    six = {atom for ring in nx.minimum_cycle_basis(rings) if len(ring) == 6 for atom in ring}
    free = nx.Graph()
    free.add_weighted_edges_from((i, j, 1 + (i in six) + (j in six)) for i, j, _ in bonds[aromatic].tolist() if room[i] and room[j])
    double = {frozenset(pair) for pair in nx.max_weight_matching(free, maxcardinality=True)}
    bonds[aromatic, 2] = [DOUBLE if frozenset(pair) in double else SINGLE for pair in bonds[aromatic, :2].tolist()]
    return Graph(graph.atoms, bonds)


def _hypervalent(atom: Chem.Atom) -> bool:
    """Beyond the lowest valence and filled up by hydrogens."""
    lowest = 3 if atom.GetSymbol() == "P" else 2
    return atom.GetTotalNumHs() > 0 and atom.GetTotalValence() > lowest


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def collate(graphs: Sequence[Graph]) -> Graphs:
    """Pad to the largest."""
    size = np.array([len(own.atoms) for own in graphs])
    atoms = np.zeros((len(graphs), size.max(initial=2)), dtype=np.int64)
    atoms[np.arange(atoms.shape[1]) < size[:, None]] = np.concatenate([own.atoms for own in graphs])
    bonds = np.zeros((len(graphs), atoms.shape[1], atoms.shape[1]), dtype=np.int64)
    row = np.repeat(np.arange(len(graphs)), [len(own.bonds) for own in graphs])
    i, j, kind = np.concatenate([own.bonds for own in graphs]).T.astype(np.int64)
    bonds[row, i, j] = bonds[row, j, i] = kind
    return Graphs(torch.from_numpy(atoms), torch.from_numpy(bonds), torch.from_numpy(size))


def read_graphs(psmiles: Iterable[str], *, backwards: bool = False) -> tuple[list[Graph], list[int], list[tuple[int, str]]]:
    """Graphs, the places of those that have one, and the places and reasons of the others."""
    graphs, kept, refused = [], [], []
    for place, text in enumerate(psmiles):
        try:
            graphs.append(read_graph(text, backwards=backwards))
            kept.append(place)
        except PolymerError as error:
            refused.append((place, f"{error.reason}: {error.detail}"))
    return graphs, kept, refused


__all__ = [
    "CLASSES",
    "MAX_ATOMS",
    "NUM_CLASSES",
    "NUM_KINDS",
    "Graph",
    "Graphs",
    "collate",
    "key_of",
    "read_graph",
    "read_graphs",
    "settled",
    "write_psmiles",
]
