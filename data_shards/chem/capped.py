"""One repeat unit as it sits inside a chain: the unit with the first shell of its neighbours, ready for embedding.

Configuration written on it: the tetrahedral signs asked for, the double-bond marks of the P-SMILES, and trans along the backbone (or
across the two highest-ranked neighbours) at double bonds without a mark, so that every conformation of a polymer is of one isomer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom

from data_shards.chem.oligomer import Piece, close_over, cut_out, heavy_chain
from data_shards.chem.stereo import tag_from_sign
from data_shards.schema import UnitTopology, unit_slots

MARKED = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOCIS, Chem.BondStereo.STEREOTRANS)
MAX_EMBED_ITERATIONS = 30


@dataclass(frozen=True)
class CappedUnit:
    """A unit with its neighbours' first shells."""

    mol: Chem.Mol  # all atoms explicit
    slots: NDArray[np.int64]  # (n,) atom of every slot
    hydrogens: NDArray[np.int64]  # (h,) hydrogens of the unit's own atoms, in the order of their slots
    topology: UnitTopology

    def with_signs(self, signs: NDArray[np.int8]) -> Chem.Mol:
        """Copy of the molecule with the signs (c,) of its stereocentres written as chiral tags; 0 leaves a centre open."""
        mol = Chem.Mol(self.mol)
        for centre, triple, sign in zip(self.topology.stereo_centres, self.topology.stereo_neighbours, signs, strict=True):
            if sign:
                atom = mol.GetAtomWithIdx(int(self.slots[centre]))
                atom.SetChiralTag(tag_from_sign(atom, self.slots[triple].tolist(), int(sign)))
        return mol


def capped_unit(topology: UnitTopology, unit_mol: Chem.Mol) -> CappedUnit:
    """Cut the middle unit of a 5-mer, with the first shells of its neighbours, out of the chain.

    Args:
        topology: graph of the unit; frame, link and stereo fields may still be empty.
        unit_mol: the unit with substituted stars, slot order; gives the double-bond marks.
    """
    chain = heavy_chain(topology, 5)
    row = unit_slots(topology.key_atoms, topology.num_atoms, 5)[2]
    star0, _, _, star1 = (int(k) for k in topology.key_atoms)
    shell = {other.GetIdx() for star in (star0, star1) for other in chain.GetAtomWithIdx(int(row[star])).GetNeighbors()}
    piece = cut_out(chain, close_over(chain, shell | set(row.tolist())))
    slots = np.array([piece.index[k] for k in row.tolist()])
    own = [k for k in range(topology.num_atoms) if k not in (star0, star1)]
    mark_double_bonds(piece.mol, {int(atom): k for k, atom in enumerate(slots)}, unit_mol, backbone_of(piece))
    hydrogens = [
        other.GetIdx() for k in own for other in piece.mol.GetAtomWithIdx(int(slots[k])).GetNeighbors() if other.GetAtomicNum() == 1
    ]
    return CappedUnit(piece.mol, slots, np.array(hydrogens, dtype=np.int64), topology)


def backbone_of(piece: Piece) -> set[int]:
    """Atoms of a shortest path through the piece, from its first to its last chain atom."""
    first, last = piece.index[min(piece.index)], piece.index[max(piece.index)]
    return set(Chem.GetShortestPath(piece.mol, first, last)) if first != last else {first}


def mark_double_bonds(mol: Chem.Mol, slot_of: dict[int, int], unit_mol: Chem.Mol, backbone: set[int]) -> None:
    """Write cis/trans on every stereogenic double bond: as marked in the unit, else trans along the backbone or by rank.

    Args:
        mol: changed in place.
        slot_of: atom of mol -> slot, for the atoms of one unit.
        unit_mol: the unit, whose marks are copied.
        backbone: atoms of mol along the chain.
    """
    atom_of = {slot: atom for atom, slot in slot_of.items()}
    ranks = list(Chem.CanonicalRankAtoms(mol, breakTies=False, includeChirality=False))
    for info in Chem.FindPotentialStereo(mol, cleanIt=False, flagPossible=True):
        if info.type != Chem.StereoType.Bond_Double:
            continue
        bond = mol.GetBondWithIdx(info.centeredOn)
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        own = unit_mol.GetBondBetweenAtoms(slot_of[ends[0]], slot_of[ends[1]]) if ends[0] in slot_of and ends[1] in slot_of else None
        if own is not None and own.GetStereo() in MARKED:
            left, right = (atom_of[k] for k in own.GetStereoAtoms())
            if own.GetBeginAtomIdx() != slot_of[ends[0]]:
                left, right = right, left
            trans = own.GetStereo() in (Chem.BondStereo.STEREOTRANS, Chem.BondStereo.STEREOE)
        else:
            left, right = (_leading_neighbour(mol, end, other, backbone, ranks) for end, other in (ends, ends[::-1]))
            trans = True
        bond.SetStereoAtoms(left, right)
        bond.SetStereo(Chem.BondStereo.STEREOTRANS if trans else Chem.BondStereo.STEREOCIS)


def _leading_neighbour(mol: Chem.Mol, atom: int, other: int, backbone: set[int], ranks: list[int]) -> int:
    neighbours = [k.GetIdx() for k in mol.GetAtomWithIdx(atom).GetNeighbors() if k.GetIdx() != other]
    leading: int = max(neighbours, key=lambda k: (k in backbone, mol.GetAtomWithIdx(k).GetAtomicNum(), ranks[k], -k))
    return leading


def embed(mol: Chem.Mol, count: int, seed: int, *, keep_isomer: bool = False) -> list[int]:
    """Embed conformers with ETKDGv3, then with random coordinates, then with the double bonds left open.

    Args:
        mol: all atoms explicit; conformers are added to it.
        count: conformers wanted.
        seed: of the embedding; one thread, so that the same seed gives the same bits.
        keep_isomer: never leave a double bond open that has a configuration.

    Returns:
        Identifiers of the conformers, possibly none.
    """
    params: Any = rdDistGeom.ETKDGv3()
    params.randomSeed = seed % (2**31 - 1)
    params.numThreads = 1
    params.maxIterations = MAX_EMBED_ITERATIONS
    for attempt in range(3):
        if attempt == 1:
            params.useRandomCoords = True
        if attempt == 2:
            doubles = [bond for bond in mol.GetBonds() if bond.GetStereo() in MARKED]
            if not doubles or keep_isomer:
                return []
            for bond in doubles:
                bond.SetStereo(Chem.BondStereo.STEREONONE)
        with rdBase.BlockLogs():  # UFF names every atom whose radius it does not know
            found = list(rdDistGeom.EmbedMultipleConfs(mol, count, params))
        if found:
            return found
    return []


def embed_heavy(mol: Chem.Mol, count: int, seed: int) -> NDArray[np.float64]:
    """Embed the heavy atoms alone, then put every hydrogen where the bonds of its atom leave room.

    Distance geometry of half the atoms costs a fifth; hydrogens may touch until the conformer is relaxed.

    Args:
        mol: all atoms explicit, heavy ones first; it is not changed.
        count: conformers wanted.
        seed: of the embedding.

    Returns:
        (<= count, atoms, 3) coordinates, angstrom.
    """
    heavy = Chem.RemoveHs(mol)
    if any(atom.GetAtomicNum() == 1 for atom in heavy.GetAtoms()):  # one that a stereo mark stands on
        full = Chem.Mol(mol)
        return positions(full, embed(full, count, seed))
    found = embed(heavy, count, seed)
    return positions(Chem.AddHs(heavy, addCoords=True), found)


def positions(mol: Chem.Mol, conformers: list[int]) -> NDArray[np.float64]:
    """(len(conformers), atoms, 3) coordinates, angstrom."""
    return np.array([mol.GetConformer(k).GetPositions() for k in conformers]).reshape(len(conformers), mol.GetNumAtoms(), 3)
