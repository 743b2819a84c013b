"""Pages whose numbers are made, not typed: `python -m tests.pages docs/tour.md` writes them anew, tests/test_pages.py holds them.

Three things of a page are made:
    outputs     what a ```python block prints, in the ```text block right behind it; the blocks of a page share their names, top to bottom
    tables      between `<!-- made: NAME -->` and `<!-- end -->`, by the function of that name below
    numbers     a link whose address ends in a JSON pointer (RFC 6901), such as [0.10 s](docs/results/grow.json#/scaling/0/median_sec):
                the first number of its text is the value there, rounded to the digits shown; times 100 where % follows. A list or an
                object stands for its length.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<file>[^)#\s]+\.json)#(?P<pointer>/[^)\s]*)\)")
MADE = re.compile(r"(<!-- made: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", flags=re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """A fenced block: the word behind the backticks, its lines, and where it lies (numbers of the two fence lines, from 0)."""

    language: str
    lines: tuple[str, ...]
    first: int
    last: int


def fences(text: str) -> list[Fence]:
    """Fenced blocks of a page, in order."""
    found, start, language = [], None, ""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start, language = place, line.strip()[3:]
        else:
            found.append(Fence(language, tuple(lines[start + 1 : place]), start, place))
            start = None
    assert start is None, f"the fence of line {(start or 0) + 1} is not closed"
    return found


# --------------------------------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Snippet:
    """A python block, and the block right behind it where it shows an output."""

    code: Fence
    output: Fence | None


def snippets(text: str) -> list[Snippet]:
    """Python blocks of a page. An output stands one empty line behind its block at most."""
    blocks = fences(text)
    after = [*blocks[1:], None]
    return [
        Snippet(block, below if below is not None and below.language == "text" and below.first - block.last <= 2 else None)
        for block, below in zip(blocks, after)
        if block.language == "python"
    ]


def run_snippets(text: str, name: str) -> list[list[str]]:
    """Lines that each python block prints, all run in one namespace; an error names the page and its line."""
    names: dict[str, Any] = {"__name__": name}
    printed = []
    for snippet in snippets(text):
        code = "\n" * (snippet.code.first + 1) + "\n".join(snippet.code.lines)
        shown = io.StringIO()
        with redirect_stdout(shown):
            exec(compile(code, name, "exec"), names)
        printed.append(shown.getvalue().rstrip("\n").split("\n") if shown.getvalue() else [])
    return printed


def with_outputs(text: str, printed: list[list[str]]) -> str:
    """The page with these outputs.

    Raises:
        ValueError: a block prints and has no place for it.
    """
    lines = text.split("\n")
    for snippet, output in reversed(list(zip(snippets(text), printed, strict=True))):
        if snippet.output is None:
            if output:
                raise ValueError(f"the block of line {snippet.code.first + 1} prints; put a ```text block behind it")
            continue
        lines[snippet.output.first + 1 : snippet.output.last] = output
    return "\n".join(lines)


def agree(shown: list[str], printed: list[str]) -> bool:
    """Whether two outputs are the same, but for one unit in the last shown digit of a number with decimals: machines differ there."""
    if len(shown) != len(printed):
        return False
    for left, right in zip(shown, printed):
        if NUMBER.split(left) != NUMBER.split(right):
            return False
        for old, new in zip(NUMBER.findall(left), NUMBER.findall(right), strict=True):
            if old != new and not (_decimals(old) == _decimals(new) > 0 and abs(_value(old) - _value(new)) < 1.5 * 10.0 ** -_decimals(old)):
                return False
    return True


# ---------------------------------------------------------------------------------------------------------------------------- numbers


def at_pointer(data: Any, pointer: str) -> Any:
    """What a JSON pointer names.

    Raises:
        LookupError: there is nothing.
    """
    for token in pointer.split("/")[1:]:
        token = token.replace("%20", " ").replace("~1", "/").replace("~0", "~")
        data = data[int(token)] if isinstance(data, list) else data[token]
    return data


def linked(link: re.Match[str], folder: Path) -> str:
    """The text of a link with the number that its file holds, as many digits as are shown.

    Raises:
        ValueError: the text has no number, or the file no number there.
    """
    text = link["text"]
    value = at_pointer(json.loads((folder / link["file"]).read_text()), link["pointer"])
    value = len(value) if isinstance(value, list | dict) else value
    shown = NUMBER.search(text)
    if shown is None or isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"[{text}] is linked to {link['pointer']} of {link['file']}, which is {value!r}: both must be numbers")
    percent = text[shown.end() :].lstrip().startswith("%")
    new = f"{value * (100 if percent else 1):,.{_decimals(shown[0])}f}"
    if "," not in shown[0]:  # thousands are set off where the page does so
        new = new.replace(",", "")
    return text[: shown.start()] + new + text[shown.end() :]


def with_numbers(text: str, folder: Path) -> str:
    """The page with every linked number read anew."""
    return LINK.sub(lambda link: f"[{linked(link, folder)}]({link['file']}#{link['pointer']})", text)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2].partition("e")[0])


def _value(number: str) -> float:
    return float(number.replace(",", ""))


# ----------------------------------------------------------------------------------------------------------------------------- tables


HEADER = "| metric | unit | better | a failed conformation | how it is measured |\n|---|---|---|---|---|"
WORDS = {"low": "low", "high": "high", "reference": "as the reference", "zero": "counts as 0", "one": "counts as 1", "absent": "left out"}


def metric_rows(metrics: Mapping[str, Any]) -> str:
    """A row for each metric: name, unit, direction, failures, protocol."""
    rows = [(f"`{name}`", m.unit, WORDS[m.better], WORDS[m.failures], m.protocol.replace("|", "\\|")) for name, m in metrics.items()]
    return "\n".join([HEADER, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def metrics_table(folder: Path) -> str:
    """Every metric of chains with its unit and protocol, by group."""
    from foundation.evaluation.metrics import GROUPS

    return "\n".join(f"**{group}**\n\n{metric_rows(members)}" for group, members in GROUPS.items())


def part_metrics_table(folder: Path) -> str:
    """Every metric of repeat units and oligomers."""
    from foundation.evaluation.parts import PART_METRICS

    return metric_rows(PART_METRICS)


EVALUATION = "docs/results/evaluation.json"
SHOWN = {  # metrics of the README's table, and how many digits
    "link_dihedral_jsd_bits": ("divergence of link dihedrals, bit", 3),
    "unit_torsion_jsd_bits": ("divergence of unit torsions, bit", 3),
    "radius_of_gyration_error": ("radius of gyration, relative error", 3),
    "clash_rate_per_heavy_atom": ("clashes per heavy atom", 3),
    "bond_within_mmff_fraction": ("bonds within 0.1 Å of MMFF94, fraction", 3),
    "emat_r_kcal_mol": ("energy per atom, recall, kcal/mol", 3),
    "rmsd_recall_ang": ("RMSD, recall, Å", 1),
}


def evaluation_table(folder: Path) -> str:
    """The evaluation of the released model, each number linked to its place in the json; where no such file lies, the first run's page."""
    path = ROOT / EVALUATION
    if not path.exists():
        return "Model, reference and every baseline on held-out polymers: [first run](docs/results/first-run.md).\n"
    results = json.loads(path.read_text())
    methods = [method for method in results["attempts"] if method != "reference"]
    lines = ["| " + " | ".join(["", *methods]) + " |", "|---|" + "---:|" * len(methods)]
    address = f"{EVALUATION}#/attempts/{{}}/failed"
    cells = (f"[{results['attempts'][m]['failed']} of {results['attempts'][m]['attempted']}]({address.format(_token(m))})" for m in methods)
    lines.append("| conformations failed | " + " | ".join(cells) + " |")
    for name, (words, digits) in SHOWN.items():
        if name in results["metrics"]:
            row = [_estimate(results["metrics"][name]["methods"].get(m), name, m, digits) for m in methods]
            lines.append(f"| {words} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _estimate(estimate: dict[str, Any] | None, metric: str, method: str, digits: int) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    place = f"{EVALUATION}#/metrics/{metric}/methods/{_token(method)}"
    interval = f" [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]" if method == "model" else ""
    return f"[{estimate['value']:.{digits}f}]({place}/value){interval}"


def _token(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1").replace(" ", "%20")


TABLES: dict[str, Callable[[Path], str]] = {"metrics": metrics_table, "part-metrics": part_metrics_table, "evaluation": evaluation_table}


def with_tables(text: str, folder: Path) -> str:
    """The page with every made table drawn anew."""
    return MADE.sub(lambda block: block[1] + TABLES[block["name"]](folder) + block[4], text)


# ------------------------------------------------------------------------------------------------------------------------------- page


def checked_pages() -> list[Path]:
    """Pages with an output, a made table or a linked number."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {page: page.read_text() for page in pages}
    return [page for page, text in texts.items() if MADE.search(text) or LINK.search(text) or any(s.output for s in snippets(text))]


def has_outputs(text: str) -> bool:
    """Whether the page shows what its blocks print: then all of them are run."""
    return any(snippet.output for snippet in snippets(text))


def made_anew(page: Path) -> str:
    """The page as it should read."""
    text = page.read_text()
    if has_outputs(text):
        text = with_outputs(text, run_snippets(text, page.name))
    return with_numbers(with_tables(text, page.parent), page.parent)


def main(
    paths: Annotated[list[Path] | None, typer.Argument(help="Markdown files; by default every page with something made")] = None,
) -> None:
    """Write outputs, tables and linked numbers of pages anew."""
    for path in paths or checked_pages():
        new = made_anew(path.resolve())
        changed = new != path.read_text()
        path.write_text(new)
        print(f"{path}: {'written anew' if changed else 'as it was'}")


if __name__ == "__main__":
    typer.run(main)
