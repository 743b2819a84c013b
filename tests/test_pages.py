"""Snippets of the pages run and print what the pages show; made tables and linked numbers are those of their sources."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from foundation.evaluation.metrics import METRICS
from foundation.evaluation.parts import PART_METRICS
from tests import pages

ROOT = Path(__file__).parents[1]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_pages_that_promise_it_are_checked() -> None:
    checked = {name(page) for page in pages.checked_pages()}
    assert checked >= {"README.md", "docs/tour.md", "docs/evaluation.md"}
    traps = {name(page) for page in (ROOT / "docs" / "traps").glob("*.md")} - {"docs/traps/index.md"}
    assert len(traps) >= 8
    assert traps <= checked


@pytest.mark.parametrize("page", [page for page in pages.checked_pages() if pages.has_outputs(page.read_text())], ids=name)
def test_snippets_print_what_the_page_shows(page: Path) -> None:
    text = page.read_text()
    printed = pages.run_snippets(text, page.name)
    for snippet, new in zip(pages.snippets(text), printed, strict=True):
        shown = list(snippet.output.lines) if snippet.output else []
        assert pages.agree(shown, new), f"line {snippet.code.first + 1}: run `python -m tests.pages {name(page)}`; printed:\n" + "\n".join(
            new
        )


@pytest.mark.parametrize("page", pages.checked_pages(), ids=name)
def test_tables_and_linked_numbers_are_those_of_their_sources(page: Path) -> None:
    text = page.read_text()
    assert pages.with_numbers(pages.with_tables(text, page.parent), page.parent) == text, f"run `python -m tests.pages {name(page)}`"


def test_every_number_among_the_results_is_linked_to_its_file() -> None:
    section = (ROOT / "README.md").read_text().split("## Results\n")[1].split("\n## ")[0]
    typed = pages.LINK.sub("", pages.MADE.sub("", section))
    numbers = [row.split(" | ")[1] for row in typed.splitlines() if row.startswith("| ")]
    assert len(numbers) > 5
    assert [cell for cell in numbers if re.search(r"\d", cell)] == []


def test_every_metric_is_named_on_its_page() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    assert [metric for metric in (*METRICS, *PART_METRICS) if f"`{metric}`" not in text] == []


def test_every_trap_is_in_the_list_of_traps() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "traps" / "index.md").read_text()))
    assert listed == {page.name for page in (ROOT / "docs" / "traps").glob("*.md")} - {"index.md"}


# ------------------------------------------------------------------------------------------------------------------- the checks check

PAGE = """# Page

```python
x = 2
```

```python
print("sum", x + 1, f"{x / 3:.3f}")
```
```text
sum 3 0.667
```
"""


def test_outputs_are_run_in_one_namespace_and_written_in_place() -> None:
    printed = pages.run_snippets(PAGE, "page")
    assert printed == [[], ["sum 3 0.667"]]
    assert pages.with_outputs(PAGE, printed) == PAGE
    stale = PAGE.replace("0.667", "0.5")
    assert pages.with_outputs(stale, printed) == PAGE
    with pytest.raises(ValueError, match="line 3 prints"):
        pages.with_outputs(PAGE, [["x"], []])


def test_an_error_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pages.run_snippets("text\n\n```python\nx = 1\n1 / 0\n```\n", "page")
    assert caught.traceback[-1].lineno == 4  # counted from 0


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 0.667 of 3", "loss 0.667 of 3", True),
        ("loss 0.667", "loss 0.668", True),
        ("loss 0.667", "loss 0.669", False),
        ("3 chains", "4 chains", False),
        ("loss 0.667", "loss 0.67", False),
        ("-0.01", "0.01", False),
        ("0.667 a", "0.667 b", False),
    ],
)
def test_outputs_agree_within_the_last_digit_of_a_decimal_number_alone(shown: str, printed: str, same: bool) -> None:
    assert pages.agree([shown], [printed]) is same


@pytest.mark.parametrize(
    ("shown", "right"),
    [
        ("[9.99 s](x.json#/a/1/b%20c)", "[1.50 s](x.json#/a/1/b%20c)"),
        ("[9 %](x.json#/share)", "[96 %](x.json#/share)"),
        ("[1,000](x.json#/big)", "[12,346](x.json#/big)"),
        ("[all 7 rows](x.json#/a)", "[all 2 rows](x.json#/a)"),
        ("[0.1 of 3](x.json#/share)", "[1.0 of 3](x.json#/share)"),
    ],
)
def test_linked_numbers_are_read_from_the_file(tmp_path: Path, shown: str, right: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [0, {"b c": 1.4999}], "share": 0.958, "big": 12345.6, "word": "y"}))
    assert pages.with_numbers(shown, tmp_path) == right
    assert pages.with_numbers(right, tmp_path) == right


@pytest.mark.parametrize("link", ["[1](x.json#/word)", "[1](x.json#/none)", "[no number](x.json#/one)", "[1](y.json#/one)"])
def test_a_link_to_no_number_is_an_error(tmp_path: Path, link: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"word": "y", "one": 1}))
    with pytest.raises((ValueError, LookupError, OSError)):
        pages.with_numbers(link, tmp_path)


def test_the_table_of_an_evaluation_links_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = {"value": 0.12345, "low": 0.1, "high": 0.2, "num_polymers": 3}
    results = {
        "attempts": {m: {"attempted": 9, "failed": 1, "reasons": {}} for m in ("model", "reference", "random links")},
        "metrics": {"link_dihedral_jsd_bits": {"methods": {"model": estimate, "random links": estimate}}},
    }
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / pages.EVALUATION).write_text(json.dumps(results))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    table = pages.evaluation_table(tmp_path)
    assert "| [0.123](docs/results/evaluation.json#/metrics/link_dihedral_jsd_bits/methods/model/value) [0.100, 0.200] |" in table
    assert len(pages.LINK.findall(table)) == 4
    assert pages.with_numbers(table, tmp_path) == table
    page = "<!-- made: evaluation -->\nold\n<!-- end -->\n"
    assert pages.with_tables(page, tmp_path) == page.replace("old\n", table)
