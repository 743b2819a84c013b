"""The bundled polymers and their comparison with a measured table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_shards.chem.psmiles import canonicalise
from data_shards.chem.repeat_unit import build_unit
from data_shards.errors import InputError
from data_shards.sources import textbook
from data_shards.sources.check_textbook import app, compare

TABLE = Path(__file__).parents[2] / "data_shards" / "sources" / "textbook.csv"
with TABLE.open(newline="") as handle:
    ROWS = list(csv.DictReader(handle))


def _table(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_table_is_complete_and_distinct() -> None:
    assert len(ROWS) >= 150
    assert all(row[column].strip() for row in ROWS for column in ("name", "psmiles", "class", "tg_celsius", "reference"))
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    assert len({canonicalise(row["psmiles"]).group for row in ROWS}) == len(ROWS)
    assert all(-150 <= float(row["tg_celsius"]) <= 450 for row in ROWS)
    classes = {row["class"] for row in ROWS}
    assert {
        "polyolefin",
        "polyester",
        "polyamide",
        "polycarbonate",
        "polyimide",
        "polysiloxane",
        "polyphosphazene",
        "polyurethane",
    } <= classes


@pytest.mark.parametrize("row", ROWS[::19], ids=lambda row: row["name"])
def test_bundled_polymers_build(row: dict[str, str]) -> None:
    assert build_unit(row["psmiles"]).topology.num_atoms >= 3


def test_source_yields_the_table() -> None:
    rows = list(textbook().rows())
    assert [row.psmiles for row in rows] == [row["psmiles"] for row in ROWS]
    assert rows[0].labels == {"name": "polyethylene", "class": "polyolefin"}


def test_comparison_goes_by_polymer(tmp_path: Path) -> None:
    reference = _table(tmp_path / "tg.csv", "psmiles,value\n*COC*,-60\n*OCC*,-70\n*CC,5\n*C(*)c1ccccc1,1\n*CC(*)c1ccccc1,150\n")
    found = {entry.name: entry for entry in compare(reference)}
    assert len(found) == len(ROWS)
    assert found["poly(ethylene oxide)"].reference_celsius == -65
    assert found["poly(ethylene oxide)"].difference == -2
    assert found["polystyrene"].difference == -50
    assert found["nylon 6"].reference_celsius is None
    assert found["nylon 6"].difference != found["nylon 6"].difference
    result = CliRunner().invoke(app, ["--reference", reference])
    assert result.exit_code == 0
    assert "266 polymers, 2 of them in" in result.output
    assert "1 differ by more than 40:" in result.output
    assert "polystyrene  *CC(c1ccccc1)*  100 here, 150 there" in result.output


def test_a_reference_without_common_polymers(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--reference", _table(tmp_path / "tg.csv", "psmiles,value\n*CCCCCCCCCCCCCF*,1\n")])
    assert result.exit_code == 0
    assert "266 polymers, 0 of them in" in result.output


def test_bad_input_says_what_to_change(tmp_path: Path) -> None:
    words = _table(tmp_path / "words.csv", "psmiles,value\n*CC*,warm\n")
    with pytest.raises(InputError, match=r"words.csv row 1 has value 'warm', which is not a finite number; give degrees Celsius"):
        compare(words)
    with pytest.raises(InputError, match=r"has no column 'tg'; it has 'psmiles', 'value'; change --column"):
        compare(words, "tg")
    good = _table(tmp_path / "good.csv", "psmiles,value\n*CC*,1\n")
    twice = _table(tmp_path / "twice.csv", "name,psmiles,tg_celsius\na,*CC*,1\nb,*CCCC*,1\n")
    with pytest.raises(InputError, match=r"has one polymer twice, as 'a' and 'b'; keep one of the two rows"):
        compare(good, textbook=twice)
    result = CliRunner().invoke(app, ["--reference", good, "--bound", "0"])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "bound 0 must be greater than 0 degrees Celsius; change --bound"
