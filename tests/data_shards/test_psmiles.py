"""P-SMILES: one string per polymer whatever the spelling (T3), typed errors (T5)."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem.psmiles import canonicalise, parse
from data_shards.errors import PolymerError

POLYMERS = [
    "[*]Oc1ccc(CC([*])=O)cc1",
    "[*]CC([*])c1ccccc1",
    "[*]CC([*])(C)C(=O)OC",
    "[*]NC(=O)CCCCC([*])=O",
    "[*]C[*]",
    "[*]c1ccc([*])cc1",
    "[*]O[Si]([*])(C)C",
    "[*]C=C[*]",
    "[*]=CC1CCC(C1)C=[*]",
    "*=C1C=CC(=*)C=C1",
    "*CC=CC*",
    "*C#Cc1ccc(*)cc1",
    "*OCCOC(=O)c1ccc(cc1)C(*)=O",
    "*N=P(*)(OCC)OCC",
    "*c1ccc(*)[nH]1",
    "*C[N+](C)(C)C*",
    "*C1C(*)C(=O)OC1=O",
    "*Oc1ccc(cc1)C(C)(C)c1ccc(cc1)Oc1ccc(cc1)S(=O)(=O)c1ccc(*)cc1",
    "*OC1C(CO)OC(*)C(O)C1O",
    "*[Ge](C)(C)[Sn](*)(C)C",
]


def respell(psmiles: str, copies: int, rng: np.random.Generator) -> str:
    """The same chain with ``copies`` units in one, cut at a random acyclic bond of the backbone, atoms listed in random order."""
    unit = Chem.MolFromSmiles(psmiles)
    size = unit.GetNumAtoms()
    head, tail = (atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() == 0)
    first, last = (unit.GetAtomWithIdx(star).GetNeighbors()[0].GetIdx() for star in (head, tail))
    path = [k for k in Chem.GetShortestPath(unit, head, tail) if k not in (head, tail)]
    inner = [unit.GetBondBetweenAtoms(u, v) for u, v in zip(path, path[1:], strict=False)]
    order = unit.GetAtomWithIdx(head).GetBonds()[0].GetBondType()
    whole = unit
    for _ in range(copies - 1):
        whole = Chem.CombineMols(whole, unit)
    mol = Chem.RWMol(whole)
    joints = [(k * size + last, (k + 1) % copies * size + first, order) for k in range(copies)]
    cuts = joints + [
        (k * size + bond.GetBeginAtomIdx(), k * size + bond.GetEndAtomIdx(), bond.GetBondType())
        for k in range(copies)
        for bond in inner
        if not bond.IsInRing()
    ]
    chosen = cuts[rng.integers(len(cuts))]
    for joint in joints:
        if joint != chosen:
            mol.AddBond(*joint)
    if chosen not in joints:
        mol.RemoveBond(*chosen[:2])
    for atom in chosen[:2]:
        mol.AddBond(atom, mol.AddAtom(Chem.Atom(0)), chosen[2])
    for star in sorted((k * size + star for k in range(copies) for star in (head, tail)), reverse=True):
        mol.RemoveAtom(star)
    built = mol.GetMol()
    Chem.SanitizeMol(built)
    order_of_atoms = rng.permutation(built.GetNumAtoms()).tolist()
    return str(Chem.MolToSmiles(Chem.RenumberAtoms(built, order_of_atoms), canonical=False))


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_every_spelling_has_one_canonical_form(psmiles: str) -> None:
    rng = np.random.default_rng(7)
    expected = canonicalise(psmiles)
    unit = Chem.MolFromSmiles(psmiles)
    short = len(Chem.GetShortestPath(unit, *(atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() == 0))) < 5
    spellings = set()
    for trial in range(12):
        copies = 1 + trial % 3
        if copies == 1 and short:
            continue  # a backbone of one or two atoms cannot be closed to a ring
        spelling = respell(psmiles, copies, rng)
        spellings.add(spelling)
        found = canonicalise(spelling)
        assert (found.psmiles, found.group) == (expected.psmiles, expected.group), spelling
        assert found.multiplicity == copies * expected.multiplicity, spelling
    assert len(spellings) >= 3


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_canonical_form_is_its_own(psmiles: str) -> None:
    once = canonicalise(psmiles)
    again = canonicalise(once.psmiles)
    assert (again.psmiles, again.multiplicity, again.group) == (once.psmiles, 1, once.group)
    assert len(once.group) == 12
    assert int(once.group, 16) >= 0


@pytest.mark.parametrize(
    ("same", "multiplicities"),
    [
        (("*C*", "*CC*", "*CCCC*", "[*]CCC[*]"), (1, 2, 4, 3)),
        (("*CCO*", "*COC*", "*OCC*", "C(C*)O*", "*CCOCCO*"), (1, 1, 1, 1, 2)),
        (("*CC(*)C", "*C(C)C*", "*CC(C)CC(C)*"), (1, 1, 2)),
        (("*NCCCCCC(*)=O", "*C(=O)NCCCCC*", "*CCCCCNC(*)=O"), (1, 1, 1)),
        (("*C=C*", "*=CC=*", "*C=CC=C*"), (1, 1, 2)),
        (("*c1ccc(*)cc1", "*c1ccc(-c2ccc(*)cc2)cc1"), (1, 2)),
    ],
)
def test_known_spellings_are_one_polymer(same: tuple[str, ...], multiplicities: tuple[int, ...]) -> None:
    found = [canonicalise(psmiles) for psmiles in same]
    assert len({entry.psmiles for entry in found}) == 1
    assert len({entry.group for entry in found}) == 1
    assert tuple(entry.multiplicity for entry in found) == multiplicities


def test_different_polymers_stay_apart() -> None:
    names = ["*CC*", "*CCO*", "*CO*", "*CCCO*", "*CC(*)C", "*CC(*)(C)C", "*CCC(*)C", "*OCC(*)C", "*OC(C)C(*)=O", "*OCCC(*)=O"]
    names += ["*CC(C)C(C)C*", "*c1ccc(*)cc1", "*c1cccc(*)c1", "*CC(C)CCC(C)*", "*=C1C=CC(=*)C=C1", "*C=CCC*", "*C#CCC*"]
    assert len({canonicalise(name).group for name in names}) == len(names)


def test_head_to_head_is_not_head_to_tail() -> None:
    assert canonicalise("*CC(C)C(C)C*").multiplicity == 1
    assert canonicalise("*CC(C)CC(C)*").multiplicity == 2


def test_groups_ignore_stereo_and_isotopes() -> None:
    plain = canonicalise("*OC(C)C(*)=O")
    left, right = canonicalise("*O[C@@H](C)C(*)=O"), canonicalise("*O[C@H](C)C(*)=O")
    assert len({plain.psmiles, left.psmiles, right.psmiles}) == 3
    assert plain.group == left.group == right.group
    cis, trans = canonicalise("*C/C=C\\C*"), canonicalise("*C/C=C/C*")
    assert cis.psmiles != trans.psmiles
    assert cis.group == trans.group == canonicalise("*CC=CC*").group
    assert canonicalise("*[13CH2]C*").group == canonicalise("*CC*").group


def test_stereo_marks_survive_another_cut() -> None:
    """Seen from the oxygen, hydrogen - methyl - carbonyl turn the same way in all three; checked by hand."""
    same = ("*O[C@H](C)C(=O)*", "*[C@H](C)C(=O)O*", "*C(=O)[C@@H](C)O*")
    mirrored = ("*O[C@@H](C)C(=O)*", "*[C@@H](C)C(=O)O*", "*C(=O)[C@H](C)O*")
    left, right = ({canonicalise(name).psmiles for name in names} for names in (same, mirrored))
    assert len(left) == len(right) == 1
    assert left != right
    assert canonicalise("*O[C@@H](C)C(=O)O[C@@H](C)C(=O)*").psmiles in right
    assert canonicalise("*O[C@@H](C)C(=O)O[C@@H](C)C(=O)*").multiplicity == 2
    assert canonicalise("*O[C@@H](C)C(=O)O[C@H](C)C(=O)*").multiplicity == 1  # alternating lactides are another unit


@pytest.mark.parametrize(
    ("psmiles", "kept"),
    [
        ("*/C=C(\\C#N)C(=O)OCCCCOC(=O)/C(C#N)=C/c1ccc(*)cc1", {"cis": 0, "trans": 2}),
        ("*/C=C(\\C#N)C(=O)OCCCCOC(=O)/C(C#N)=C\\c1ccc(*)cc1", {"cis": 1, "trans": 1}),
        ("*CC/C=C\\CO*", {"cis": 1, "trans": 0}),
        ("*OC/C=C/CC*", {"cis": 0, "trans": 1}),
    ],
)
def test_no_mark_flips_or_disappears(psmiles: str, kept: dict[str, int]) -> None:
    """Counted by which side of each marked double bond the chain's own backbone continues on."""
    mol = parse(canonicalise(psmiles).psmiles)
    path = set(Chem.GetShortestPath(mol, *(atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0)))
    found = {"cis": 0, "trans": 0}
    for bond in mol.GetBonds():
        if bond.GetStereo() > Chem.BondStereo.STEREOANY:
            turned = sum(k not in path for k in bond.GetStereoAtoms()) % 2
            trans = bond.GetStereo() in (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
            found["trans" if trans != bool(turned) else "cis"] += 1
    assert found == kept


@pytest.mark.parametrize(
    ("psmiles", "reason", "text"),
    [
        ("", "unparsable", "RDKit cannot read this string as SMILES; check brackets, ring digits and valences"),
        ("*C(C", "unparsable", "RDKit cannot read this string as SMILES; check brackets, ring digits and valences"),
        ("*C(C)(C)(C)(C)C*", "unparsable", "RDKit cannot read this string as SMILES; check brackets, ring digits and valences"),
        ("CC", "star-count", "has 0 stars; a repeat unit needs exactly 2, as in"),
        ("*CC", "star-count", "has 1 stars; a repeat unit needs exactly 2, as in"),
        ("*CC(*)C*", "star-count", "has 3 stars; a repeat unit needs exactly 2, as in"),
        ("*C1C(*)CC(*)C(*)C1", "ladder", "has 4 stars; ladder polymers are not supported, a repeat unit needs exactly 2 stars"),
        ("C*C*", "star-degree", "a star has 2 neighbours; each star needs exactly 1"),
        ("**", "star-degree", "the two stars are bonded to each other; at least 1 atom must stand between them"),
        ("*CC*.O", "fragments", "has 2 fragments; a repeat unit must be 1 connected fragment"),
        ("*C([2H])C*", "isotopic-hydrogen", "has an isotopic or free hydrogen, or a labelled star; write plain H and plain"),
        ("[1*]CC*", "isotopic-hydrogen", "has an isotopic or free hydrogen, or a labelled star; write plain H and plain"),
        ("*=CC*", "junction-order", "the bonds to the two stars have orders 2 and 1; units joined in a chain share one order"),
        ("*->[Fe]<-*", "junction-order", "the bonds to the stars are DATIVE; they must be single, double or triple"),
    ],
)
def test_errors_name_string_and_reason(psmiles: str, reason: str, text: str) -> None:
    for function in (parse, canonicalise):
        with pytest.raises(PolymerError) as caught:
            function(psmiles)
        assert caught.value.reason == reason
        assert str(caught.value).startswith(f"{psmiles!r}: {text}")


@pytest.mark.parametrize(
    "psmiles",
    [
        "*Oc1ccc(/N=N/c2ccc(S(=O)(=O)c3ccc(/N=N/c4ccc(OC(=O)c5ccc(/N=N/c6ccc(C(*)=O)cc6)cc5)cc4)cc3)cc2)cc1",
        "*CC1CCC(COP(=O)(/N=N/c2ccc(-c3ccc(/N=N/P(=O)(O*)OC)cc3)cc2)OC)CC1",
        "*/C=C/C=C\\*",
        "*C/C=C(/C)C*",
    ],
)
def test_marked_double_bonds_reach_a_fixed_form(psmiles: str) -> None:
    once = canonicalise(psmiles)
    assert "/" in once.psmiles
    assert canonicalise(once.psmiles).psmiles == once.psmiles
    assert canonicalise(once.psmiles).group == once.group


def test_both_spellings_of_the_star() -> None:
    assert canonicalise("[*]CC([*])c1ccccc1").psmiles == canonicalise("*CC(*)c1ccccc1").psmiles
    assert sum(atom.GetAtomicNum() == 0 for atom in parse("c1ccccc1C([*])C[*]").GetAtoms()) == 2


def test_atom_maps_are_no_chemistry() -> None:
    plain = canonicalise("*CC*")
    for written in ("[*:1]CC[*:1]", "[*:1]CC[*:2]", "[*:1][CH2:3]C[*:2]"):
        assert canonicalise(written) == plain
