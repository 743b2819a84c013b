"""P-SMILES -> repeat unit: stars become the atoms they stand for, and the atoms that define frame, link and handedness are chosen.

Slots are the atoms of the canonical P-SMILES in the order of the string; star0 is the first star. Every choice below depends on the
canonical string alone (reference conformers come from a fixed seed), never on a conformer that a user draws.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.capped import CappedUnit, capped_unit, embed_heavy
from data_shards.chem.oligomer import BOND_CODES, heavy_chain
from data_shards.chem.psmiles import atoms_of, canonicalise, parse
from data_shards.chem.stereo import measure_signs, potential_centres, sign_from_tag
from data_shards.errors import PolymerError
from data_shards.schema import UnitTopology, unit_slots

MAX_UNIT_ATOMS = 150
REFERENCE_SEED = 20_240_229
NUM_REFERENCES = 4
NUM_REFERENCES_LARGE, LARGE_HEAVY_ATOMS = 2, 40  # distance geometry grows with the cube of the size
NUM_REFERENCES_STEREO = 8  # where relations between several open centres have to be found
MAX_DIASTEREOMERS = 4  # mirror images not counted
MIN_FRAME_SIN = 0.2
MIN_LINK_SIN = float(np.sin(np.deg2rad(10.0)))


@dataclass(frozen=True)
class RepeatUnit:
    """A repeat unit ready for building chains."""

    topology: UnitTopology
    mol: Chem.Mol  # heavy unit graph, stars substituted, atoms in slot order
    configurations: NDArray[np.int8]  # (P, c) sign patterns that one unit can have; row 0 is that of the isotactic chain
    capped: CappedUnit  # the unit with the first shells of its neighbours
    reference_ang: NDArray[np.float64]  # (R, atoms of capped, 3) embedded from a fixed seed, not relaxed


def build_unit(psmiles: str) -> RepeatUnit:
    """Repeat unit of a polymer.

    Args:
        psmiles: any spelling; it is canonicalised first, and the units of the last polymers are kept.

    Raises:
        PolymerError: as psmiles.parse, and reasons too-large, star-valence, bond-type, no-conformer.
    """
    canonical = canonicalise(psmiles).psmiles
    try:
        return _build(canonical)
    except PolymerError as error:
        raise PolymerError(psmiles, error.reason, error.detail) from None


@lru_cache(maxsize=1024)
def _build(canonical: str) -> RepeatUnit:
    topology, mol, written = _read(canonical)
    topology = _with_stereo(topology, written)
    capped = capped_unit(topology, mol)
    reference_ang, configurations = _reference(capped, canonical)
    x_ang = reference_ang[:, capped.slots]
    topology = replace(topology, frame_atoms=choose_frame(topology, x_ang), link_atoms=choose_link(topology, x_ang))
    return RepeatUnit(topology, mol, configurations, capped, reference_ang)


def unit_graph(psmiles: str) -> UnitTopology:
    """Topology of a polymer's repeat unit as far as its graph tells it: frame, link and stereo fields are placeholders.

    No conformer is embedded, so it is some fifty times faster than build_unit; enough for heavy_chain, and for what is counted on it.
    Stereo marks and isotopes are left out, so that it is the same for all members of a group.

    Args:
        psmiles: any spelling; it is canonicalised first.

    Raises:
        PolymerError: as psmiles.parse, and reasons too-large, star-valence, bond-type.
    """
    try:
        return _read(canonicalise(psmiles).plain)[0]
    except PolymerError as error:
        raise PolymerError(psmiles, error.reason, error.detail) from None


def _read(canonical: str) -> tuple[UnitTopology, Chem.Mol, Chem.Mol]:
    """Graph of the unit, the unit with its stars substituted, and the unit as written."""
    written = parse(canonical)
    if written.GetNumAtoms() > MAX_UNIT_ATOMS:
        detail = (
            f"the repeat unit has {written.GetNumAtoms()} heavy atoms with its stars, the bound is {MAX_UNIT_ATOMS}; use a smaller unit"
        )
        raise PolymerError(canonical, "too-large", detail)
    mol, key_atoms = substitute_stars(written, canonical)
    strange = {str(bond.GetBondType()) for bond in mol.GetBonds()} - {str(kind) for kind in BOND_CODES}
    if strange:
        raise PolymerError(canonical, "bond-type", f"has a {min(strange).lower()} bond; bonds must be single, double, triple or aromatic")
    return _graph(canonical, written, mol, key_atoms), mol, written


def substitute_stars(written: Chem.Mol, psmiles: str) -> tuple[Chem.Mol, NDArray[np.int32]]:
    """Replace the first star by the element of the second star's neighbour, and the other way round.

    Args:
        written: parsed P-SMILES.
        psmiles: for the message.

    Returns:
        Sanitised unit and its slots star0, nbr0, nbr1, star1.
    """
    star0, star1 = (atom.GetIdx() for atom in atoms_of(written) if atom.GetAtomicNum() == 0)
    nbr0, nbr1 = (written.GetAtomWithIdx(star).GetNeighbors()[0].GetIdx() for star in (star0, star1))
    for charged in (False, True):
        mol = Chem.RWMol(written)
        for star, source in ((star0, nbr1), (star1, nbr0)):
            atom, model = mol.GetAtomWithIdx(star), written.GetAtomWithIdx(source)
            atom.SetAtomicNum(model.GetAtomicNum())
            atom.SetFormalCharge(model.GetFormalCharge() if charged else 0)
            atom.SetIsotope(0)
            atom.SetNoImplicit(False)
            atom.SetNumExplicitHs(0)
        unit = mol.GetMol()
        try:
            Chem.SanitizeMol(unit)
        except (Chem.AtomValenceException, Chem.KekulizeException):
            continue
        return unit, np.array([star0, nbr0, nbr1, star1], dtype=np.int32)
    raise PolymerError(
        psmiles, "star-valence", "an atom beside a star cannot end a chain with the bond to its neighbour; write the unit with another cut"
    )


def _graph(canonical: str, written: Chem.Mol, mol: Chem.Mol, key_atoms: NDArray[np.int32]) -> UnitTopology:
    """Everything that can be read from the graph; frame, link and stereo fields empty."""
    star0, nbr0, nbr1, star1 = key_atoms.tolist()
    hydrogens = np.array([atom.GetTotalNumHs() for atom in atoms_of(written)], dtype=np.uint8)
    hydrogens[[star0, star1]] = hydrogens[[nbr1, nbr0]]
    bonds = np.array(sorted((*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), BOND_CODES[b.GetBondType()]) for b in mol.GetBonds()))
    atoms = atoms_of(mol)
    caps = [mol.GetAtomWithIdx(star).GetTotalNumHs() for star in (star0, star1)]
    none = np.zeros(0, dtype=np.int32)
    return UnitTopology(
        psmiles=canonical,
        elements=np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.uint8),
        formal_charges=np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int8),
        num_hydrogens=hydrogens,
        aromatic=np.array([atom.GetIsAromatic() for atom in atoms], dtype=bool),
        bonds=bonds[:, :2].astype(np.int32),
        bond_orders=bonds[:, 2].astype(np.uint8),
        key_atoms=key_atoms,
        frame_atoms=np.array([star0, nbr1, star1], dtype=np.int32),
        link_atoms=np.array([star0, star1], dtype=np.int32),
        stereo_centres=none,
        stereo_neighbours=none.reshape(0, 3),
        stereo_specified=none.astype(np.int8),
        cap_hydrogens=np.array(caps, dtype=np.uint8),
        junction_order=BOND_CODES[mol.GetAtomWithIdx(star0).GetBonds()[0].GetBondType()],
    )


def _with_stereo(topology: UnitTopology, written: Chem.Mol) -> UnitTopology:
    """Find the stereocentres of an inner unit of a 4-mer and read the signs that the P-SMILES fixes."""
    row = unit_slots(topology.key_atoms, topology.num_atoms, 4)[1]
    stars = set(topology.key_atoms[[0, 3]].tolist())
    slot_of = {atom: slot for slot, atom in enumerate(row.tolist()) if slot not in stars}
    centres = sorted(slot_of[k] for k in potential_centres(heavy_chain(topology, 4)) if k in slot_of)
    triples = [sorted(other.GetIdx() for other in written.GetAtomWithIdx(k).GetNeighbors())[:3] for k in centres]
    signs = [sign_from_tag(written.GetAtomWithIdx(k), triple) for k, triple in zip(centres, triples, strict=True)]
    return replace(
        topology,
        stereo_centres=np.array(centres, dtype=np.int32),
        stereo_neighbours=np.array(triples, dtype=np.int32).reshape(-1, 3),
        stereo_specified=np.array(signs, dtype=np.int8),
    )


def _reference(capped: CappedUnit, psmiles: str) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Reference conformers (R, atoms of capped, 3) from a fixed seed and the sign patterns (P, c) that a unit can have.

    Where a unit has several centres and an open one, rings may forbid some combinations: the patterns are those seen in the reference
    conformers,
    most frequent first. A pattern and its mirror image come together where the P-SMILES fixes nothing.
    """
    topology = capped.topology
    fixed = topology.stereo_specified
    related = len(fixed) > 1 and not fixed.all()
    count = NUM_REFERENCES if topology.num_atoms <= LARGE_HEAVY_ATOMS else NUM_REFERENCES_LARGE
    x_ang = embed_heavy(capped.with_signs(fixed), NUM_REFERENCES_STEREO if related else count, REFERENCE_SEED)
    if not len(x_ang):
        raise PolymerError(
            psmiles, "no-conformer", "no three-dimensional shape of the repeat unit could be embedded; check its rings and stereo marks"
        )
    if not related:
        patterns = np.stack([np.where(fixed == 0, sign, fixed) for sign in ((1,) if fixed.all() else (1, -1))])
        return x_ang, patterns.astype(np.int8)
    seen = measure_signs(x_ang[:, capped.slots], topology.stereo_centres, topology.stereo_neighbours)  # (R, c)
    seen = seen[(seen != 0).all(axis=1) & ((seen == fixed) | (fixed == 0)).all(axis=1)]
    if not len(seen):
        raise PolymerError(
            psmiles, "no-conformer", "no shape of the repeat unit with the stereo marks of the P-SMILES could be embedded; check the marks"
        )
    mirrored = not fixed.any()
    if mirrored:
        seen = seen * seen[:, :1]  # the member of each mirror pair whose first centre is +1
    ranked = sorted(Counter(map(tuple, seen.tolist())).items(), key=lambda item: (-item[1], item[0]))[:MAX_DIASTEREOMERS]
    patterns = np.array([pattern for pattern, _ in ranked], dtype=np.int8)
    return x_ang, np.stack([patterns, -patterns], axis=1).reshape(-1, len(fixed)) if mirrored else patterns


def choose_frame(topology: UnitTopology, x_ang: NDArray[np.float64]) -> NDArray[np.int32]:
    """Slots a, o, b of the unit frame.

    The paper's atoms 1, 3, 4 (star0, nbr1, star1) unless they come close to a line in a reference conformer; then b becomes the atom
    that stays farthest from the line. A unit whose atoms all lie on one line keeps the paper's atoms: its frame has no meaning beyond
    the axis, and foundation.geometry completes it with a fixed perpendicular.

    Args:
        topology: the unit.
        x_ang: (R, n, 3) reference conformers.

    Source: PolyConFM (Fig. 1b, frame of atoms 1, 3, 4). Differs: the third point is replaced where the paper's frame degenerates.
    """
    star0, _, nbr1, star1 = topology.key_atoms.tolist()
    sines = axis_sines(x_ang, nbr1, star0).min(axis=0)  # (n,) smallest over the references
    best = star1 if sines[star1] >= MIN_FRAME_SIN else int(np.argmax(np.round(sines, 2)))
    if sines[best] < MIN_FRAME_SIN / 2:
        best = star1
    return np.array([star0, nbr1, best], dtype=np.int32)


def choose_link(topology: UnitTopology, x_ang: NDArray[np.float64]) -> NDArray[np.int32]:
    """Slots a (beside nbr1) and d (beside nbr0) of the link dihedral a - nbr1 - nbr0' - d'.

    The lowest-slot neighbour, unless it lies within 10 degrees of the junction's axis in a reference conformer (alkynes, nitriles):
    then the nearest atom by bonds that does not. A unit on one line keeps the neighbours.
    """
    star0, nbr0, nbr1, star1 = topology.key_atoms.tolist()
    chosen = []
    for start, end in ((nbr1, star1), (nbr0, star0)):
        off_axis = axis_sines(x_ang, start, end).min(axis=0) > MIN_LINK_SIN
        ordered = _outward(topology, start, end)
        chosen.append(next((k for k in ordered if off_axis[k]), ordered[0]))
    return np.array(chosen, dtype=np.int32)


def axis_sines(x_ang: NDArray[np.float64], origin: int, end: int) -> NDArray[np.float64]:
    """(R, n) sine of the angle at ``origin`` between the axis to ``end`` and each atom; 0 for the two atoms themselves."""
    axis = x_ang[:, end] - x_ang[:, origin]
    arms = x_ang - x_ang[:, origin, None]
    lengths = np.linalg.norm(arms, axis=-1) * np.linalg.norm(axis, axis=-1)[:, None]
    area: NDArray[np.float64] = np.linalg.norm(np.cross(arms, axis[:, None]), axis=-1)
    return np.divide(area, lengths, out=np.zeros_like(area), where=lengths > 1e-9)


def _outward(topology: UnitTopology, start: int, excluded: int) -> list[int]:
    """Slots in order of bonds from ``start`` (then of slot), without going through ``excluded``."""
    neighbours: dict[int, list[int]] = {k: [] for k in range(topology.num_atoms)}
    for i, j in topology.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    seen, shell, ordered = {start, excluded}, [start], []
    while shell:
        shell = sorted({other for k in shell for other in neighbours[k]} - seen)
        seen.update(shell)
        ordered.extend(shell)
    return ordered
