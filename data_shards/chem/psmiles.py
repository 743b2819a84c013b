"""P-SMILES: parse, check, canonicalise. Everything happens on the molecular graph; strings are only read and written by RDKit.

Two strings name the same polymer when they spell the same infinite chain: the atoms may be listed in any order, the chain may be cut
into units at another backbone bond, read backwards, or written with several units at once. The canonical form is the smallest unit,
cut where its string of blocks is smallest. Where single and multiple bonds alternate along the backbone the cut is at a single bond, so
``*=CC=*`` becomes ``*C=C*``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from rdkit import Chem, RDLogger, rdBase

from data_shards.errors import PolymerError

HEAD, TAIL = 1, 2  # isotope labels of a block's attachment points
MAX_PASSES = 4
ORIGIN = "origin"  # atom property: index in the molecule as parsed


@dataclass(frozen=True)
class CanonicalPsmiles:
    """A polymer by name.

    Attributes:
        psmiles: canonical P-SMILES of the smallest repeat unit, stereo marks kept.
        multiplicity: how many of these units one unit as written holds.
        group: 12 hex digits naming the polymer without stereo marks and isotopes.
        plain: canonical P-SMILES without stereo marks and isotopes, which the group stands for.
    """

    psmiles: str
    multiplicity: int
    group: str
    plain: str


def parse(psmiles: str) -> Chem.Mol:
    """Read and check a P-SMILES.

    Args:
        psmiles: with two stars, ``*`` or ``[*]``.

    Returns:
        Sanitised molecule with exactly two dummy atoms of one neighbour each.

    Raises:
        PolymerError: reason unparsable, star-count, ladder, star-degree, fragments, isotopic-hydrogen or junction-order.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(psmiles) if psmiles and psmiles.strip() else None
    if mol is None:
        raise PolymerError(psmiles, "unparsable", "RDKit cannot read this string as SMILES; check brackets, ring digits and valences")
    atoms = atoms_of(mol)
    for atom in atoms:
        atom.SetAtomMapNum(0)  # [*:1] and [*:2], as reaction tools write stars
    elements = [atom.GetAtomicNum() for atom in atoms]
    stars = [atom for atom, element in zip(atoms, elements, strict=True) if element == 0]
    if len(stars) == 4:
        raise PolymerError(psmiles, "ladder", "has 4 stars; ladder polymers are not supported, a repeat unit needs exactly 2 stars")
    if len(stars) != 2:
        raise PolymerError(psmiles, "star-count", f"has {len(stars)} stars; a repeat unit needs exactly 2, as in *CC(*)c1ccccc1")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise PolymerError(psmiles, "fragments", f"has {len(Chem.GetMolFrags(mol))} fragments; a repeat unit must be 1 connected fragment")
    if any(star.GetDegree() != 1 for star in stars):
        raise PolymerError(psmiles, "star-degree", f"a star has {max(s.GetDegree() for s in stars)} neighbours; each star needs exactly 1")
    if 1 in elements or any(star.GetIsotope() for star in stars):
        raise PolymerError(psmiles, "isotopic-hydrogen", "has an isotopic or free hydrogen, or a labelled star; write plain H and plain *")
    first, second = (star.GetBonds()[0] for star in stars)
    if first.GetOtherAtom(stars[0]).GetAtomicNum() == 0:
        raise PolymerError(psmiles, "star-degree", "the two stars are bonded to each other; at least 1 atom must stand between them")
    if first.GetBondType() != second.GetBondType():
        orders = f"{first.GetBondTypeAsDouble():g} and {second.GetBondTypeAsDouble():g}"
        raise PolymerError(
            psmiles, "junction-order", f"the bonds to the two stars have orders {orders}; units joined in a chain share one order"
        )
    if first.GetBondType() not in (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE):
        raise PolymerError(
            psmiles, "junction-order", f"the bonds to the stars are {first.GetBondType()}; they must be single, double or triple"
        )
    return mol


@lru_cache(maxsize=4096)
def canonicalise(psmiles: str) -> CanonicalPsmiles:
    """Canonical name of a polymer.

    Raises:
        PolymerError: as parse.
    """
    mol = parse(psmiles)
    name, multiplicity = _smallest_unit(mol)
    for _ in range(MAX_PASSES):
        if "/" not in name and "\\" not in name:
            break
        # RDKit's canonical order may depend on the marks themselves; repeat until the string is its own canonical form
        again, times = _smallest_unit(Chem.MolFromSmiles(name))
        if again == name:
            break
        name, multiplicity = again, multiplicity * times
    plain = name
    if any(mark in name for mark in "@/\\") or any(atom.GetIsotope() for atom in atoms_of(mol)):
        bare = Chem.Mol(mol)
        Chem.RemoveStereochemistry(bare)
        for atom in atoms_of(bare):
            atom.SetIsotope(0)
        plain = _smallest_unit(bare)[0]
    return CanonicalPsmiles(name, multiplicity, hashlib.sha1(plain.encode()).hexdigest()[:12], plain)


def _smallest_unit(mol: Chem.Mol) -> tuple[str, int]:
    """Canonical string of the smallest unit and how many of it the molecule holds."""
    mol, marks = Chem.Mol(mol), _marks(mol)
    for atom in atoms_of(mol) if marks else ():
        atom.SetIntProp(ORIGIN, atom.GetIdx())
    blocks, bonds = _blocks(mol)
    forward = [(_label(block), order) for block, order in zip(blocks, bonds, strict=True)]
    turned = [_swap_ends(block) for block in reversed(blocks)]
    # read backwards, the bond after a block is the one that stood before it
    orders = [bonds[k - 2] for k in range(len(blocks), 0, -1)]
    backward = [(_label(block), order) for block, order in zip(turned, orders, strict=True)]
    period = next(p for p in range(1, len(blocks) + 1) if len(blocks) % p == 0 and forward == forward[p:] + forward[:p])
    weakest = min(bonds)
    choices = []
    for sequence, parts in ((forward, blocks), (backward, turned)):
        for start in range(period):
            rotation = [(start + k) % len(parts) for k in range(period)]
            if sequence[rotation[-1]][1] == weakest:
                choices.append(([sequence[k] for k in rotation], [parts[k] for k in rotation]))
    _, chosen = min(choices, key=lambda choice: choice[0])
    return _join(chosen, marks), len(blocks) // period


def _blocks(mol: Chem.Mol) -> tuple[list[Chem.Mol], list[float]]:
    """The unit cut at every acyclic bond of the path between its stars.

    Returns:
        Blocks from head to tail, attachment points labelled by isotope, and the order of the bond after each (the last: the junction).
    """
    mol = Chem.Mol(mol)
    head, tail = (atom.GetIdx() for atom in atoms_of(mol) if atom.GetAtomicNum() == 0)
    path = Chem.GetShortestPath(mol, head, tail)
    cuts, labels, orders = [], [], []
    for u, v in zip(path[1:-2], path[2:-1], strict=True):
        bond = mol.GetBondBetweenAtoms(u, v)
        if bond.IsInRing() or bond.GetStereo() > Chem.BondStereo.STEREOANY:
            continue  # a double bond with a stereo mark stays whole, or the mark would be lost
        cuts.append(bond.GetIdx())
        # the dummy left on an atom carries the label that belongs to that atom's side of the cut
        labels.append((HEAD, TAIL) if bond.GetBeginAtomIdx() == u else (TAIL, HEAD))
        orders.append(bond.GetBondTypeAsDouble())
    mol.GetAtomWithIdx(head).SetIsotope(HEAD)
    mol.GetAtomWithIdx(tail).SetIsotope(TAIL)
    junction = mol.GetAtomWithIdx(tail).GetBonds()[0].GetBondTypeAsDouble()
    if not cuts:
        return [mol], [junction]
    cut = Chem.FragmentOnBonds(mol, cuts, dummyLabels=labels)
    rank = {atom: k for k, atom in enumerate(path)}
    pieces: list[tuple[int, Chem.Mol]] = []
    atoms: list[tuple[int, ...]] = []
    for piece in Chem.GetMolFrags(cut, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=atoms):
        pieces.append((min(rank[a] for a in atoms[len(pieces)] if a in rank), piece))
    return [piece for _, piece in sorted(pieces, key=lambda entry: entry[0])], [*orders, junction]


def atoms_of(mol: Chem.Mol) -> list[Chem.Atom]:
    """Atoms in order; RDKit's own sequence of them takes five times as long to walk through."""
    return [mol.GetAtomWithIdx(k) for k in range(mol.GetNumAtoms())]


def _label(block: Chem.Mol) -> str:
    return str(Chem.MolToSmiles(block))


def _swap_ends(block: Chem.Mol) -> Chem.Mol:
    turned = Chem.Mol(block)
    for atom in atoms_of(turned):
        if atom.GetAtomicNum() == 0:
            atom.SetIsotope(HEAD + TAIL - atom.GetIsotope())
    return turned


def _marks(mol: Chem.Mol) -> dict[tuple[int, int], tuple[int, int, bool]]:
    """Marked double bonds: their two atoms -> a neighbour of each, and whether these are trans. A star names the atom it stands for."""
    stars = [atom.GetIdx() for atom in atoms_of(mol) if atom.GetAtomicNum() == 0]
    stands_for = {star: mol.GetAtomWithIdx(other).GetNeighbors()[0].GetIdx() for star, other in zip(stars, stars[::-1], strict=True)}
    found = {}
    for bond in mol.GetBonds():
        if bond.GetStereo() > Chem.BondStereo.STEREOANY:
            left, right = (stands_for.get(k, k) for k in bond.GetStereoAtoms())
            trans = bond.GetStereo() in (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
            found[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] = left, right, trans
    return found


def _restore_marks(mol: Chem.Mol, marks: dict[tuple[int, int], tuple[int, int, bool]]) -> None:
    """Write the marks of the molecule as parsed on the joined blocks; a neighbour that is not there has become a star."""
    origin = {atom.GetIntProp(ORIGIN): atom for atom in atoms_of(mol) if atom.GetAtomicNum() and atom.HasProp(ORIGIN)}
    for bond in mol.GetBonds():
        bond.SetBondDir(Chem.BondDir.NONE)
        if bond.GetStereo() != Chem.BondStereo.STEREONONE:
            bond.SetStereo(Chem.BondStereo.STEREONONE)
    for ends, (*leaders, trans) in marks.items():
        if not all(end in origin for end in ends):
            continue
        chosen: list[int] = []
        for end, other, leader in zip(ends, ends[::-1], leaders, strict=True):
            around = [k for k in origin[end].GetNeighbors() if k.GetIdx() != origin[other].GetIdx()]
            here = [k for k in around if k.GetAtomicNum() and k.GetIntProp(ORIGIN) == leader] or [k for k in around if not k.GetAtomicNum()]
            chosen.extend(k.GetIdx() for k in here[:1])
        bond = mol.GetBondBetweenAtoms(origin[ends[0]].GetIdx(), origin[ends[1]].GetIdx())
        if bond is not None and len(chosen) == 2:
            left, right = chosen if bond.GetBeginAtomIdx() == origin[ends[0]].GetIdx() else chosen[::-1]
            bond.SetStereoAtoms(left, right)
            bond.SetStereo(Chem.BondStereo.STEREOTRANS if trans else Chem.BondStereo.STEREOCIS)


def _join(blocks: list[Chem.Mol], marks: dict[tuple[int, int], tuple[int, int, bool]]) -> str:
    """Blocks in a row -> canonical P-SMILES; the outer attachment points become the stars."""
    whole: Chem.Mol | None = None
    for k, block in enumerate(blocks):
        part = Chem.Mol(block)
        for atom in atoms_of(part):
            if atom.GetAtomicNum() != 0:
                atom.SetAtomMapNum(0)
                continue
            joint = k if atom.GetIsotope() == HEAD else k + 1
            atom.SetAtomMapNum(0 if joint in (0, len(blocks)) else joint)
            atom.SetIsotope(0)
        whole = part if whole is None else Chem.CombineMols(whole, part)
    assert whole is not None
    with rdBase.BlockLogs():
        joined = Chem.molzip(whole) if len(blocks) > 1 else whole
        joined = Chem.RemoveHs(joined)
    if marks:
        _restore_marks(joined, marks)
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(joined))))


RDLogger.DisableLog("rdApp.warning")  # type: ignore[attr-defined]  # stereo marks that a cut makes meaningless are dropped on purpose
