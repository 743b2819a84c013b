"""Tasks and tables: the literal table is consistent, columns are found, polymers are counted once, and bad input is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.table import load
from finetune.tasks import TASKS, get_task
from foundation.errors import InputError

POLYMERS = ("*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*CCO*", "*CC(*)Cl", "*CC(*)C#N")


def csv(path: Path, *rows: str, header: str = "psmiles,value") -> str:
    path.write_text("\n".join((header, *rows)) + "\n")
    return str(path)


def several(*more: str) -> list[str]:
    return [f"{psmiles},{k + 1}" for k, psmiles in enumerate(POLYMERS)] + list(more)


def test_the_tasks_are_those_of_the_issue_and_teach_only_tasks_that_there_are() -> None:
    assert list(TASKS) == [
        "tg",
        "egc",
        "egb",
        "eea",
        "ei",
        "xc",
        "eps",
        "nc",
        "eat",
        "density",
        "rg",
        "tc",
        "ffv",
        "o2",
        "n2",
        "co2",
        "ch4",
        "own",
        "own_log",
    ]
    for name, task in TASKS.items():
        assert task.name == name
        assert set(task.teachers) | set(task.leaks) <= set(TASKS) - {name}
        assert task.citation
    assert TASKS["tg"].metric == "mae"
    assert [task.name for task in TASKS.values() if task.transform == "log"] == ["tc", "o2", "n2", "co2", "ch4", "own_log"]
    assert not set(TASKS["egc"].teachers) & {"egb", "eea", "ei"}, "these tables still hold polymers that are kept apart for testing egc"


def test_a_task_that_does_not_exist() -> None:
    assert get_task(" TG ").name == "tg"
    with pytest.raises(InputError, match=r"no task 'egz'; did you mean eg[cb]"):
        get_task("egz")
    with pytest.raises(InputError, match="did you mean tc"):
        get_task("thermal conductivity")
    with pytest.raises(InputError, match="no task ''; --task must be one of tg, egc"):
        get_task("")


def test_a_transform_has_its_inverse_and_refuses_what_it_cannot_take() -> None:
    values = np.array([0.05, 0.2, 1.6])
    for name in ("tc", "tg"):
        assert TASKS[name].backward(TASKS[name].forward(values)) == pytest.approx(values, rel=1e-14)
    assert TASKS["tc"].forward(values) == pytest.approx(np.log(values))
    with pytest.raises(InputError, match=r"learns the logarithm, but the smallest value is -1 and must be > 0"):
        TASKS["tc"].forward(np.array([1.0, -1.0]))


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("psmiles,density,Rg,value,static_dielectric_const", "value"),
        ("psmiles,density,Rg,eps,static_dielectric_const", "eps"),
        ("psmiles,density,Rg,EPS,other", "EPS"),
        ("psmiles,density,Rg,other,Static_Dielectric_Const", "Static_Dielectric_Const"),
        ("psmiles,number,name,label,source", "number"),
    ],
)
def test_the_column_is_value_or_named_like_the_task_or_the_only_one_with_numbers(tmp_path: Path, header: str, column: str) -> None:
    cells = ("{k},x,y,z" if "number" in header else "{k},{k},{k},{k}",)
    path = csv(tmp_path / "t.csv", *(f"{p},{cells[0].format(k=k)}" for k, p in enumerate(POLYMERS)), header=header)
    assert load("eps", path).column == column
    assert load("eps", path, "density" if "density" in header else "number").column in ("density", "number")


def test_rows_become_polymers_and_refused_rows_keep_their_reason(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", *several("*OCC*,14", "*CCCC*,3", "*CC,1", "*CC(*)Br,", "*CC(*)I,high", "*CC(*)I,inf", "zz*,1"))
    found = load("tg", path)
    assert len(found.groups) == len(set(found.groups)) == len(POLYMERS)
    by_name = dict(zip(found.canonical, zip(found.values, found.spread, strict=True), strict=True))
    assert by_name["*C*"] == (2.0, 2.0), "canonical, mean of 1 and 3"
    assert by_name["*CCO*"] == (9.0, 10.0)
    assert by_name["*CC(*)C"] == (2.0, 0.0)
    assert [row.row for row in found.refused] == [9, 10, 11, 12, 13]
    assert [row.psmiles for row in found.refused] == ["*CC", "*CC(*)Br", "*CC(*)I", "*CC(*)I", "zz*"]
    reasons = [row.reason for row in found.refused]
    assert reasons[0].startswith("has 1 stars")
    assert reasons[2] == "has no finite number in column value, but 'high'"
    assert reasons[4].startswith("RDKit cannot read")
    assert found.rows["rows"] == 13 == len(found.groups) + len(found.refused) + found.rows["of a polymer that came before"]
    assert len(load("tg", path, limit=6).refused) == 0


def test_folds_of_the_table(tmp_path: Path) -> None:
    rows = [f"{psmiles},{k},{k % 3}" for k, psmiles in enumerate(POLYMERS)]
    fold = load("tg", csv(tmp_path / "t.csv", *rows, header="psmiles,value,fold")).fold
    assert fold is not None
    assert fold.tolist() == [0, 1, 2, 0, 1, 2]
    assert load("tg", csv(tmp_path / "u.csv", *several())).fold is None


def test_the_bundled_table() -> None:
    found = load("tg")
    assert found.column == "tg_celsius"
    assert len(found.groups) > 250
    assert not found.refused
    with pytest.raises(InputError, match="no table of band gap of a chain comes with the program, only one of tg; pass yours with --data"):
        load("egc")


@pytest.mark.parametrize(
    ("rows", "header", "column", "sentence"),
    [
        (several(), "psmiles,value", "x", "has no column 'x'; the columns are value; change the column"),
        (several(), "polymer,value", None, "has no column named psmiles or smiles"),
        (["*CC*,1,2"], "psmiles,tm,density", None, "numbers in tm, density of its columns, so the property must be named; pass --column"),
        (["*CC*,", "CC,1"], "psmiles,value", None, r"none of 2 rows can be used, the first because '\*CC\*' has no finite number"),
        (["*CC*,nan"] * 5, "psmiles,value", "value", "none of 5 rows can be used"),
        (several()[:4], "psmiles,value", None, "4 polymers with a value are fewer than the 5 folds"),
        ([f"{p},7" for p in POLYMERS], "psmiles,value", None, "every polymer has the value 7; name another column"),
        ([f"{p},{k},3" for k, p in enumerate(POLYMERS)], "psmiles,value,fold", None, "every polymer is in fold 3, at least 2 are needed"),
        (several("*CC(*)Br,0"), "psmiles,value", None, "task tc learns the logarithm, but the smallest value is 0 and must be > 0"),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path: Path, rows: list[str], header: str, column: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        load("tc", csv(tmp_path / "t.csv", *rows, header=header), column)
    assert "\n" not in str(error.value)


def test_public_tables_are_known_by_their_columns(shared_data: Path) -> None:
    names = {"density": "density", "rg": "Rg", "tc": "thermal_conductivity", "nc": "refractive_index", "eps": "static_dielectric_const"}
    for task, column in names.items():
        found = load(task, str(shared_data / "property" / "pi1070.csv"), limit=60)
        assert found.column == column
        assert not found.refused
