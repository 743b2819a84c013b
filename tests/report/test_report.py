"""The page of a run: what it says is what the files hold, and no file can break it or speak in it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foundation.report import figures, structures, svg, tables
from foundation.report.__main__ import app
from foundation.report.page import build_page, leave_report
from foundation.report.sources import RunFiles, read_run
from tests.report import made_up

ROOT = Path(__file__).parents[2]
HERE = ROOT / "foundation" / "report"
ABSENT = {"evaluation", "shapes", "structures", "shards", "property", "design", "setup"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `make demo` leaves it, with everything."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    made_up.write(folder, made_up.files(), made_up.rows())
    (folder / "polystyrene.sdf").write_text(made_up.sdf("*CC(*)c1ccccc1", 6))
    return folder


@pytest.fixture(scope="module")
def found(demo: Path) -> RunFiles:
    """The same, read; without structures, which cost time."""
    return replace(read_run(demo), structures=[])


class Page(HTMLParser):
    """Elements, and the text of sections by their anchor."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.open.append(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.sections[self.open[-1]] = self.sections.get(self.open[-1], "") + data


def command(*words: object) -> int:
    """Exit code of the command."""
    from data_shards.console import run

    with pytest.raises(SystemExit) as leave:
        run(lambda: app([str(word) for word in words]))
    return int(leave.value.code or 0)


# ------------------------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_one_page_and_never_over_another(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "page.html"
    assert command(demo, "--out", out, "--dry-run") == 0
    assert not out.parent.exists()
    assert "eval/results.json" in capsys.readouterr().out
    assert command(demo, "--out", out) == 0
    first = out.read_bytes()
    assert f"report: {out}" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert command(demo, "--out", out) == 2
    assert capsys.readouterr().err == f"error: {out} exists already; choose another --out or pass --overwrite\n"
    assert command(demo, "--out", out, "--overwrite") == 0
    assert out.read_bytes() == first  # equal runs give equal pages
    assert len(first) < 1_000_000


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, "is no folder; pass the folder of a run, such as runs/demo"),
        ([], "holds no run, shards, evaluation or structures; pass a run folder such as runs/demo"),
        (["a/run.json", "b/run.json"], "holds 2 runs (a, b); pass one of them"),
    ],
)
def test_bad_input_is_one_sentence(names: list[str] | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    for name in names or []:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    if names is not None:
        folder.mkdir(exist_ok=True)
    assert command(folder) == 2
    assert capsys.readouterr().err == f"error: {folder} {sentence}\n"


def test_a_run_folder_and_the_folder_around_it_show_the_same_training(demo: Path) -> None:
    around, alone = read_run(demo), read_run(demo / "model")
    assert around.rows == alone.rows
    assert len(alone.rows) == 60
    assert (around.name, alone.name) == ("demo/model", "model")
    assert alone.manifest == {}


def test_shards_named_by_the_run_are_found(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"shards": str(demo / "shards")}))
    assert read_run(tmp_path).manifest["funnel"]["kept"] == 9


# -------------------------------------------------------------------------------------------------------------------------- content


def test_every_section_is_there_and_says_what_the_files_say(demo: Path) -> None:
    page = Page(build_page(read_run(demo)))
    assert [a["id"] for tag, a in page.elements if tag == "section" and a.get("class") == "absent"] == []
    text = page.sections
    assert "12 polymers of the test split, 2 conformations each" in text["evaluation"]
    assert "better in 2 of 3, worse in 1, not told apart in 0. Worse: bond within MMFF." in text["evaluation"]
    assert "Repeat units" in text["evaluation"]
    assert "Oligomers" in text["evaluation"]
    assert "0.2[0.1, 0.3]" in text["evaluation"]
    assert "no-force-field2" in text["shards"]
    assert "read 12; conform 9." in text["shards"]
    assert "polystyrene, conformation 2" in text["structures"]
    assert "6 units, 50 heavy atoms" in text["structures"]
    assert "mean absolute error 9 K" in text["property"]
    assert "*CC*" in text["design"]
    assert "train.lr" in text["setup"]


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    made_up.write(tmp_path, {}, made_up.rows(5))
    (tmp_path / "design" / "candidates.csv").unlink()
    page = Page(build_page(read_run(tmp_path)))
    absent = {a["id"] for tag, a in page.elements if tag == "section" and a.get("class") == "absent"}
    assert absent == ABSENT
    assert all("Absent: " in page.sections[str(anchor)] for anchor in absent)
    assert "script" not in {tag for tag, _ in page.elements}  # no viewer without chains


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "NaN", '{"metrics": ' + "[" * 100_000, "\xff\0"])
def test_a_damaged_file_is_named(demo: Path, text: str, tmp_path: Path) -> None:
    for name in made_up.files():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    (tmp_path / "model" / "metrics.jsonl").write_text(text, encoding="latin-1")
    (tmp_path / "x.sdf").write_text(text, encoding="latin-1")
    damaged = read_run(tmp_path)
    assert set(damaged.troubles) == {"config", "run", "shards", "evaluation", "property"}
    page = Page(build_page(damaged))
    assert "eval/results.json cannot be read" in page.sections["evaluation"]
    assert "Left out: x.sdf" in page.sections["structures"]


def test_tables_and_pictures_can_be_read_without_eyes(demo: Path) -> None:
    text = build_page(read_run(demo))
    page = Page(text)
    assert all(a.get("scope") in ("col", "row", "rowgroup") for tag, a in page.elements if tag == "th")
    assert len(re.findall("<table", text)) == len(re.findall("<caption>[^<]", text)) > 5
    pictures = [a for tag, a in page.elements if tag == "svg"]
    assert len(pictures) > 15
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 10 for a in pictures)
    assert all(a.get("aria-label") for tag, a in page.elements if tag == "button")
    assert re.search(r"<html lang=\"en\">", text)


def test_no_address_of_another_place_is_in_the_page(demo: Path) -> None:
    text = build_page(read_run(demo))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy.group(1).startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    page = Page(text)
    addresses = [value for _, a in page.elements for name, value in a.items() if name in ("src", "href", "srcset", "action", "data")]
    assert all(str(value).startswith(("#", "data:,")) for value in addresses)
    assert "url(" not in text
    assert "@import" not in text


# ------------------------------------------------------------------------------------------------------------------ hostile content


def test_no_file_can_speak_in_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>&"
    content = {name: made_up.poisoned(data) for name, data in made_up.files().items()}
    content["eval/results.json"]["metrics"]["link_dihedral_jsd_bits"]["better"] = "low"
    cell = '"' + made_up.HOSTILE.replace('"', '""').replace("\ud800", "").replace("\0", "") + '"'
    made_up.write(folder, content, [made_up.poisoned(row) for row in made_up.rows()], f"psmiles,{cell}\n{cell},1\n")
    evil = made_up.HOSTILE.replace("\ud800", "").replace("\0", "")
    (folder / f"{evil.replace('/', '')[:90]}.sdf").write_text(made_up.sdf("*CC*", 4, note=evil).replace("*CC*", evil))
    (folder / "names.sdf").write_text(made_up.sdf("*CC*", 4, note=evil))
    (folder / "broken.sdf").write_text(evil)
    hostile, tame = tmp_path / "page.html", tmp_path / "tame"
    assert command(folder, "--out", hostile) == 0
    made_up.write(tame, made_up.files(), made_up.rows())
    (tame / "names.sdf").write_text(made_up.sdf("*CC*", 4))
    page = Page(hostile.read_text())
    ours = {tag for tag, _ in Page(build_page(read_run(tame))).elements}
    assert {tag for tag, _ in page.elements} == ours
    assert len([1 for tag, _ in page.elements if tag == "script"]) == 3
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert "window.hacked" in page.sections["evaluation"]  # shown as the text that it is


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON data but the inside of long lists."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from places(item, (*path, key))


def with_value(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one place changed."""
    changed = copy.deepcopy(data)
    if not path:
        return value if isinstance(value, dict) else {}
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def fewer(results: dict[str, Any]) -> dict[str, Any]:
    """Results with three methods, two metrics and one part of one metric: every kind of place once."""
    small = {k: fewer(v) if isinstance(v, dict) else v for k, v in results.items() if k not in made_up.METHODS[2:5]}
    dropped = ("oligomer", "bond_within_mmff_fraction", "made_up_metric", "size_ratio")
    return {k: v for k, v in small.items() if k not in dropped}


ODD: list[Any] = [None, math.nan, math.inf, -1, 0, 1e308, 5e-324, 10**400, "x", True, [], [[]], [None, {}], {}, {"x": []}]


@pytest.mark.parametrize("part", ["results", "manifest", "funnel", "property", "config", "run"])
def test_no_value_of_any_file_breaks_the_page(found: RunFiles, part: str) -> None:
    alone = RunFiles(Path("x"), "x", run={"commit": "x"})  # nothing else, so that a page is made in a millisecond
    data = fewer(found.results) if part == "results" else getattr(found, part)
    count = 0
    for number, path in enumerate(places(data)):
        for value in ODD if part != "results" else ODD[number % 7 :: 7]:
            text = build_page(replace(alone, **{part: with_value(data, path, value)}))
            drawn = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)  # configuration is shown as it is
            assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', re.sub(r'(aria-label|title)="[^"]*"', "", drawn)), (path, value)
            count += 1
    assert count > 30


@pytest.mark.parametrize("value", ODD, ids=str)
def test_no_row_of_the_metrics_breaks_the_page(found: RunFiles, value: Any) -> None:
    rows = [dict.fromkeys(row, value) for row in found.rows]
    for changed in (rows, rows[:1] + found.rows, [found.rows[0] | {"train/loss": value}]):
        assert "<h1>" in build_page(replace(found, rows=changed))


# -------------------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("better", "model", "baselines", "verdict"),
    [
        ("low", (1.0, 0.9, 1.1), {"extended": (2.0, 1.8, 2.2)}, ("better", "extended")),
        ("low", (3.0, 2.9, 3.1), {"extended": (2.0, 1.8, 2.2)}, ("worse", "extended")),
        ("low", (2.1, 2.0, 2.3), {"extended": (2.0, 1.8, 2.2)}, ("alike", "extended")),
        ("low", (1.0, 0.9, 1.1), {"extended": (2.0, 1.8, 2.2), "random links": (0.5, 0.4, 0.6)}, ("worse", "random links")),
        ("high", (1.0, 0.9, 1.1), {"extended": (0.5, 0.4, 0.6)}, ("better", "extended")),
        ("high", (0.3, 0.2, 0.35), {"extended": (0.5, 0.4, 0.6), "random links": (0.1, 0, 0.2)}, ("worse", "extended")),
        ("reference", (9.0, 8.8, 9.2), {"extended": (14.0, 13.8, 14.2)}, ("better", "extended")),  # the reference is 10
        ("reference", (5.0, 4.8, 5.2), {"extended": (14.0, 13.8, 14.2)}, ("alike", "extended")),  # 4.8 to 5.2 below, 3.8 to 4.2 above?
        ("low", (1.0, 0.9, 1.1), {"grow engine": (0.1, 0.1, 0.1)}, ("none", None)),  # makes the references
        ("low", (2e-6, 2e-6, 2e-6), {"extended": (1e-8, 1e-8, 1e-8)}, ("alike", "extended")),  # rounding
    ],
)
def test_the_verdict_of_a_metric(
    better: str, model: tuple[float, ...], baselines: dict[str, tuple[float, ...]], verdict: tuple[str, str | None]
) -> None:
    methods = {"model": model, "reference": (10.0, 9.5, 10.5), **baselines}
    metric = {
        "better": better,
        "methods": {m: dict(zip(("value", "low", "high"), e, strict=True)) | {"num_polymers": 9} for m, e in methods.items()},
    }
    if better == "reference" and model[0] == 5.0:
        verdict = ("worse", "extended")  # 4.8 to 5.2 away against 3.8 to 4.2
    assert tables.judge(metric) == verdict
    few = with_value(metric, ("methods", "model", "num_polymers"), 4)
    assert tables.judge(few)[0] == ("few" if verdict[1] else "none")


@pytest.mark.parametrize(
    ("better", "difference", "verdict"),
    [("low", (-1.0, -1.5, -0.5), "better"), ("low", (-1.0, -2.5, 0.5), "alike"), ("high", (-1.0, -1.5, -0.5), "worse")],
)
def test_a_difference_over_the_same_polymers_decides_where_intervals_overlap(
    better: str, difference: tuple[float, ...], verdict: str
) -> None:
    names = ("value", "low", "high")
    methods = {"model": (2.0, 1.0, 3.0), "extended": (3.0, 2.0, 4.0)}
    metric = {
        "better": better,
        "methods": {m: dict(zip(names, e, strict=True)) | {"num_polymers": 9} for m, e in methods.items()},
        "model_minus": {"extended": dict(zip(names, difference, strict=True)) | {"num_polymers": 9}},
    }
    assert tables.judge(metric) == (verdict, "extended")
    assert tables.judge({**metric, "model_minus": "no table"})[0] == "alike"


# --------------------------------------------------------------------------------------------------------------------------- figures


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(1, 50))
def test_smoothing_is_a_centred_mean(values: list[float], window: int) -> None:
    half = window // 2
    brute = [np.mean(values[max(0, k - half) : k + half + 1]) for k in range(len(values))]
    assert np.allclose(figures.smooth(values, window), brute, atol=1e-9)


@given(st.integers(1, 2000))
def test_long_curves_keep_their_range(count: int) -> None:
    ys = np.sin(np.arange(count)).tolist()
    xs, mean, low, high = figures.binned(list(range(count)), ys)
    assert len(xs) <= figures.MOST_POINTS
    assert min(low) == min(ys)
    assert max(high) == max(ys)
    assert all(a <= b + 1e-12 and b <= c + 1e-12 for a, b, c in zip(low, mean, high, strict=True))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    assume(span >= 1e-9 * abs(low))  # below it floats hold too few digits for ticks in between
    high = low + span
    made = svg.ticks(low, high)
    assert 2 <= len(made) <= 11
    step = made[1] - made[0]
    assert all(low - 1e-6 * step <= tick <= high + 1e-6 * step for tick in made)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 0.05


def test_a_torsion_map_has_its_angles_the_right_way_round() -> None:
    """Rows are the first dihedral, along y upwards; columns the next one, along x."""
    counts = np.zeros((36, 36))
    counts[24, 3] = 1  # 65 degrees, then -145
    made = figures.torsion_maps({"distributions": {"torsion_maps": {"bins": 36, "maps": {"model": counts.tolist()}}}})
    assert len(made) == 1
    assert "the fullest bin lies at 65, -145 degrees" in made[0]
    assert re.findall(r'd="([^"]*)" class="level6"', made[0]) == ["M3 11h1v1h-1z"]  # fourth column, twelfth row from the top


def test_places_on_the_page_are_those_of_the_values() -> None:
    plot = svg.Plot("t", "a", "x", "y", (0, 10), (0, 1))
    left, right = svg.LEFT, svg.WIDTH - svg.RIGHT
    assert plot.at_x(0) == left
    assert plot.at_x(10) == right
    assert plot.at_x(2.5) == pytest.approx(left + 0.25 * (right - left), abs=0.06)
    assert plot.at_y(1) == svg.TOP
    assert plot.at_x(99) == right  # what lies outside stays at the edge
    log = svg.Plot("t", "a", "x", "y", (0.1, 10), (0, 1), log_x=True)
    assert log.at_x(1) == pytest.approx((left + right) / 2, abs=0.06)


# ---------------------------------------------------------------------------------------------------------------------------- chains


def test_chains_are_turned_but_never_mirrored() -> None:
    rng = np.random.default_rng(0)
    x_ang = rng.normal(size=(40, 3)) * [2.0, 9.0, 5.0] + 7
    turned = structures.lying(x_ang)
    far = np.linalg.norm(x_ang[:, None] - x_ang[None], axis=-1)
    assert np.allclose(np.linalg.norm(turned[:, None] - turned[None], axis=-1), far)
    assert (np.diff(turned.std(axis=0)) < 0).all()
    volume = [np.linalg.det(x[1:4] - x[0]) for x in (x_ang, turned)]
    assert volume[0] == pytest.approx(volume[1])


@pytest.mark.parametrize(("psmiles", "own"), [("*CC(*)c1ccccc1", 8), ("*CCCC*", 1), ("*OC(C)C(=O)*", 5)])
def test_units_of_a_chain_are_its_repeat_units(psmiles: str, own: int, tmp_path: Path) -> None:
    """Known from the graph alone: neighbouring units share one bond, and all have as many atoms but for the caps at the ends."""
    (tmp_path / "x.sdf").write_text(made_up.sdf(psmiles, 5, count=1))
    chain = structures.read_file(tmp_path / "x.sdf")[0]
    assert chain.units is not None
    total = 20 if psmiles == "*CCCC*" else 5  # counted in the smallest unit, here *C*
    sizes = np.bincount(chain.units)
    assert sizes.tolist() == [own + 1, *[own] * (total - 2), own + 1]
    unit = np.array(chain.units)
    crossing = np.sort(unit[chain.bonds], axis=1)
    crossing = crossing[crossing[:, 0] != crossing[:, 1]]
    assert sorted(map(tuple, crossing.tolist())) == [(k, k + 1) for k in range(total - 1)]
    assert "H" not in chain.elements


def test_a_chain_of_another_polymer_has_no_units(tmp_path: Path) -> None:
    text = made_up.sdf("*CC(*)c1ccccc1", 5, count=1)
    for old, new in ((">  <num_units>  (1) \n5", ">  <num_units>  (1) \n4"), ("*CC(*)c1ccccc1", "*CC(*)C1CCCCC1*")):
        assert old in text
        (tmp_path / "x.sdf").write_text(text.replace(old, new))
        assert structures.read_file(tmp_path / "x.sdf")[0].units is None


def test_the_page_holds_no_more_chains_than_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / f"{name}.sdf").write_text(made_up.sdf("*CC*", 4, count=6))
    chains, left_out = structures.read_chains(sorted(tmp_path.glob("*.sdf")))
    assert len(chains) == 2 * structures.MAX_PER_FILE
    assert left_out == []
    monkeypatch.setattr(structures, "MAX_ATOMS", 25)
    chains, left_out = structures.read_chains(sorted(tmp_path.glob("*.sdf")))
    assert len(chains) == 2
    assert len(left_out) == 2


# --------------------------------------------------------------------------------------------------------------------------- package


def test_the_viewer_is_the_one_that_its_licence_names() -> None:
    licence = (HERE / "vendor" / "3Dmol-LICENSE.txt").read_text()
    assert hashlib.sha256((HERE / "vendor" / "3Dmol-min.js").read_bytes()).hexdigest() in licence
    version = re.search(r"3dmol (\S+) \(BSD-3-Clause\)", licence)
    assert version is not None
    assert f"3Dmol.js {version.group(1)} " in (HERE / "page.py").read_text()
    for name in ("iobuffer", "netcdfjs", "pako", "upng-js", "jQuery", "Three.js"):
        assert name in licence


def test_the_package_carries_the_files_of_the_page() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["foundation.report"]
    carried = {path for pattern in data for path in HERE.glob(pattern)}
    assert carried >= {path for path in HERE.rglob("*.*") if path.suffix in (".js", ".css", ".txt")}


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb. Source: WCAG 2.2."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text(), flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    for text in ("ink", "soft", "accent", "good", "bad"):
        for ground in ("paper", "card"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("write", [lambda run: (run / "report.html").mkdir(), lambda run: None])
def test_training_ends_with_a_page_or_a_warning(write: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    made_up.write(run, {}, made_up.rows(5))
    write(run / "model")
    with caplog.at_level("INFO"):
        leave_report(run / "model")
    page = run / "model" / "report.html"
    assert [record.levelname for record in caplog.records] == ["INFO" if page.is_file() else "WARNING"]
    assert "report.html" in caplog.text
