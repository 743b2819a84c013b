"""SD files as a source: streaming, one record at a time, and a reason for every defect of a record."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tracemalloc
from pathlib import Path

import pytest
from rdkit import Chem

from data_shards.chem.chain import chain_mol
from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.errors import InputError, PolymerError
from data_shards.sources import sdf
from data_shards.sources.sdf import SdfSource, read_structure

PSMILES = "*CCO*"


@pytest.fixture(scope="module")
def molblocks() -> dict[str, str]:
    """A chain of six units as V2000 and V3000, with and without hydrogens, no property."""
    unit = build_unit(PSMILES)
    chain = grow_chain(unit, 6, num_conformations=1, seed=1)
    made = {}
    for hydrogens in (True, False):
        mol = chain_mol(unit.topology, 6, hydrogens=hydrogens)
        conformer = Chem.Conformer(mol.GetNumAtoms())
        rows = [*chain.heavy_ang[0].tolist(), *(chain.hydrogen_ang[0].tolist() if hydrogens else [])]
        for index, row in enumerate(rows):
            conformer.SetAtomPosition(index, row)
        conformer.Set3D(True)
        mol.AddConformer(conformer)
        for version in (2000, 3000):
            made[f"V{version}{'' if hydrogens else ' heavy'}"] = Chem.MolToMolBlock(mol, forceV3000=version == 3000)
    return made


def record(block: str, **properties: str) -> bytes:
    """An SD record."""
    items = "".join(f">  <{name}>  (1)\n{value}\n\n" for name, value in properties.items())
    return f"{block}{items}$$$$\n".encode()


@pytest.mark.parametrize("version", ["V2000", "V3000", "V2000 heavy", "V3000 heavy"])
def test_both_versions_of_the_format_are_read(version: str, molblocks: dict[str, str]) -> None:
    blob = record(molblocks[version], psmiles=PSMILES, source="a test", energy_kcal_mol="-12.5")
    found = read_structure(blob, PSMILES)
    assert found.num_units == 6
    assert found.facts["record"] == hashlib.sha256(blob).hexdigest()
    assert found.facts["properties"] == {"source": "a test", "energy_kcal_mol": "-12.5"}
    whole = "heavy" not in version
    assert (found.energies_kcal_mol is not None) == whole
    assert found.facts["energy_of_record_kcal_mol"] == -12.5
    assert found.facts["hydrogens_added"] == (0 if whole else found.hydrogen_ang.shape[1])


def test_lines_may_end_as_on_windows(molblocks: dict[str, str]) -> None:
    blob = record(molblocks["V2000"], psmiles=PSMILES).replace(b"\n", b"\r\n")
    assert read_structure(blob, PSMILES).num_units == 6


def changed(block: str, line: int, old: str, new: str) -> str:
    lines = block.split("\n")
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    return "\n".join(lines)


def flattened(block: str) -> str:
    """A drawing: no third coordinate, and the header says so."""
    lines = block.split("\n")
    lines[1] = "     RDKit          2D"
    count = int(lines[3][:3])
    return "\n".join(lines[:4] + [line[:20] + "    0.0000" + line[30:] for line in lines[4 : 4 + count]] + lines[4 + count :])


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        (lambda block: block.replace("M  END", ""), "unreadable-record"),
        (lambda block: block[:400], "unreadable-record"),
        (lambda block: "", "unreadable-record"),
        (lambda block: changed(block, 3, block.split("\n")[3][:3], "999"), "unreadable-record"),
        (lambda block: changed(block, 3, block.split("\n")[3][:6], "  0  0"), "unreadable-record"),
        (lambda block: changed(block, 5, block.split("\n")[5][:10], "       nan"), "not-finite"),
        (lambda block: changed(block, 5, block.split("\n")[5][:10], "      -inf"), "not-finite"),
        (lambda block: changed(block, 5, block.split("\n")[5][:10], "  12x.3456"), "unreadable-record"),
        (lambda block: changed(block, 5, " C ", " N "), "valence"),
        (lambda block: block.replace(" O ", " S "), "psmiles-mismatch"),
        (lambda block: changed(block, 5, " C ", " Xx"), "unreadable-record"),
        (lambda block: changed(block, 5, " C ", " F "), "valence"),
        (flattened, "no-conformer"),
        (lambda block: "title\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n", "no-conformer"),
        (
            lambda block: (
                "title\n\n\n  0  0  0  0  0  0  0  0  0  0999 V3000\nM  V30 BEGIN CTAB\nM  V30 COUNTS 900000000 0 0 0 0\nM  END\n"
            ),
            "too-large",
        ),
        (lambda block: "\0\xff" * 300 + "\nM  END\n", "unreadable-record"),
    ],
)
def test_every_defect_has_a_reason(defect: object, reason: str, molblocks: dict[str, str]) -> None:
    blob = record(defect(molblocks["V2000"]), psmiles=PSMILES)  # type: ignore[operator]
    with pytest.raises(PolymerError) as caught:
        read_structure(blob, PSMILES)
    assert caught.value.reason == reason
    assert caught.value.psmiles == PSMILES


def test_properties_with_defects_have_a_reason(molblocks: dict[str, str]) -> None:
    block = molblocks["V2000"]
    for name, value, reason in (
        ("translation_A", "1 2", "bad-property"),
        ("translation_A", "1 2 nan", "bad-property"),
        ("energy_kcal_mol", "low", "bad-property"),
        ("translation_A", "0 0 12.5", "not-periodic"),
    ):
        with pytest.raises(PolymerError) as caught:
            read_structure(record(block, psmiles=PSMILES, **{name: value}), PSMILES)
        assert caught.value.reason == reason
    for psmiles, reason in (("", "empty"), ("*CC(*)C", "psmiles-mismatch"), ("CC", "star-count"), ("*C(", "unparsable")):
        with pytest.raises(PolymerError) as caught:
            read_structure(record(block), psmiles)
        assert caught.value.reason == reason


def test_a_chain_with_a_broken_bond_gives_its_longer_part(molblocks: dict[str, str]) -> None:
    lines = molblocks["V2000 heavy"].split("\n")
    atoms, bonds = int(lines[3][:3]), int(lines[3][3:6])
    cut = next(k for k in range(4 + atoms, 4 + atoms + bonds) if {int(lines[k][:3]), int(lines[k][3:6])} == {8, 9})
    lines[3] = f"{atoms:3d}{bonds - 1:3d}{lines[3][6:]}"
    found = read_structure(record("\n".join(lines[:cut] + lines[cut + 1 :]), psmiles=PSMILES), PSMILES)
    assert 1 <= found.num_units < 6
    assert found.facts["heavy_atoms_left_out"] == 20 - (3 * found.num_units + 2)


@pytest.fixture
def folder(tmp_path: Path, molblocks: dict[str, str]) -> Path:
    """Three files of 50 records, one gzipped; every tenth record has no P-SMILES."""
    block = molblocks["V2000"]
    for index, name in enumerate(("b.sdf", "a.sdf", "c.sdf.gz")):
        rows = [record(block, **({} if k % 10 == 9 else {"Psmiles": PSMILES}), number=f"{index}-{k}") for k in range(50)]
        data = b"".join(rows)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "notes.txt").write_text("no records")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_its_names(folder: Path) -> None:
    source = SdfSource(str(folder))
    rows = list(source.rows())
    assert [row.number for row in rows] == list(range(1, 151))
    assert [row.psmiles for row in rows] == [("" if k % 10 == 9 else PSMILES) for k in range(150)]
    assert list(source.rows()) == rows
    for number in (1, 50, 51, 150, 33, 101, 149, 2):
        blob = source.payload(number)
        assert hashlib.sha256(blob).hexdigest() == rows[number - 1].record
        index, place = divmod(number - 1, 50)
        assert f"\n{(1, 0, 2)[index]}-{place}\n" in blob.decode()
    fresh = SdfSource(str(folder))
    assert fresh.payload(120) == source.payload(120)
    with pytest.raises(InputError, match="no record 151"):
        source.payload(151)
    assert [row.number for row in SdfSource(str(folder), limit=60).rows()] == list(range(1, 61))
    assert {row.psmiles for row in SdfSource(str(folder), "number").rows()} == {f"{i}-{k}" for i in range(3) for k in range(50)}


def test_reading_does_not_keep_what_it_has_read(tmp_path: Path, molblocks: dict[str, str]) -> None:
    blob = record(molblocks["V2000"], psmiles=PSMILES)
    peaks = []
    for count in (60, 600):
        path = tmp_path / f"{count}.sdf"
        path.write_bytes(blob * count)
        tracemalloc.start()
        assert sum(1 for _ in SdfSource(str(path)).rows()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_a_record_without_an_end_is_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molblocks: dict[str, str]) -> None:
    monkeypatch.setattr(sdf, "MAX_RECORD_BYTES", 5000)
    good = record(molblocks["V2000"], psmiles=PSMILES)
    assert len(good) < 5000
    path = tmp_path / "long.sdf"
    path.write_bytes(b"x" * 200_000 + b"\n$$$$\n" + good + good.removesuffix(b"$$$$\n") + b"\n\n")
    source = SdfSource(str(path))
    rows = list(source.rows())
    assert [row.psmiles for row in rows] == ["", PSMILES, PSMILES]
    assert len(source.payload(1)) == 5001
    with pytest.raises(PolymerError) as caught:
        read_structure(source.payload(1), PSMILES)
    assert caught.value.reason == "too-large"
    assert read_structure(source.payload(3), PSMILES).num_units == 6


def test_a_path_without_records_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.sdf").write_bytes(b"\n\n")
    (tmp_path / "broken.sdf.gz").write_bytes(b"no gzip at all")
    (tmp_path / "cut.sdf.gz").write_bytes(gzip.compress(b"x" * 10_000_000)[:2000])
    (tmp_path / "folder").mkdir()
    for path in ("", "/no/such/file.sdf", tmp_path / "empty.sdf", tmp_path / "broken.sdf.gz", tmp_path / "cut.sdf.gz", tmp_path / "folder"):
        with pytest.raises(InputError):
            SdfSource(str(path))
    with pytest.raises(InputError, match="limit 0"):
        SdfSource(str(tmp_path / "empty.sdf"), limit=0)


def test_a_structure_travels_between_processes(molblocks: dict[str, str]) -> None:
    found = read_structure(record(molblocks["V2000"]), PSMILES)
    again = pickle.loads(pickle.dumps(found))
    assert (again.heavy_ang == found.heavy_ang).all()
    assert again.facts == found.facts
