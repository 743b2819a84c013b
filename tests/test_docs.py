"""What the pages say is so: commands and flags exist, files exist and are all named, sources are listed, pictures have text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_shards", "foundation", "finetune", "cluster")
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "SOURCES.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_lines(text: str) -> list[str]:
    """Lines of the sh blocks of a page, comments off."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands() -> list[tuple[str, list[str]]]:
    """(module, words after it) of every `python -m module ...` on the page."""
    words = [shlex.split(line) for line in code_lines(README)]
    return [(w[2], w[3:]) for w in words if w[:2] == ["python", "-m"]]


@cache
def help_of(module: str) -> str:
    """Help text, wide enough that no flag is cut."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_shows_the_main_job() -> None:
    assert {module for module, _ in commands()} >= {
        "data_shards.build",
        "data_shards.verify",
        "foundation.pretrain",
        "foundation.generate",
        "foundation.evaluate",
    }


@pytest.mark.parametrize(("module", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_of_the_page_have_these_flags(module: str, words: list[str]) -> None:
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}\b", help_of(module)), f"{module} has no {flag}"


def test_the_training_page_is_true() -> None:
    """Its commands have their flags, its overrides are keys of the recipe, and its job file's mixture can be read."""
    from cluster.spec import load_spec
    from foundation.config import apply_overrides
    from foundation.recipes import get_recipe

    page = (ROOT / "docs" / "training.md").read_text()
    words = [shlex.split(line) for line in code_lines(page)]
    assert len(words) >= 3
    for module, rest in ((w[2], w[3:]) for w in words):
        assert [flag for flag in rest if flag.startswith("--") and flag not in help_of(module)] == []
        apply_overrides(get_recipe("polyconfm_tiny"), [word for word in rest if re.match(r"(train|data)\.", word)])
    keys = set(re.findall(r"`((?:train|data)\.\w+)", page))
    assert len(keys) >= 10
    config = get_recipe("polyconfm_tiny").model_dump()
    assert [key for key in keys if key.split(".")[1] not in config[key.split(".")[0]]] == []
    mixture = re.search(r"`shards: (\{.*\})`", page)
    assert mixture is not None
    spec = load_spec(ROOT / "cluster" / "pretrain.yaml", [f"shards={mixture.group(1)}"])
    assert spec.shards == {"shards/md": 0.8, "shards/grow": 0.2}


def test_overrides_of_the_page_are_keys_of_the_recipe() -> None:
    from foundation.config import apply_overrides
    from foundation.recipes import RECIPES, get_recipe

    overrides = re.findall(r"\b((?:train|data|deepspeed|objective|track)\.[\w.]+=[^\s`]+)", README)
    assert len(overrides) >= 4
    apply_overrides(get_recipe("polyconfm_tiny"), [text.rstrip("`,;.)") for text in overrides])
    for recipe in RECIPES:
        assert f"`{recipe}`" in README


@pytest.mark.parametrize("line", [line for line in code_lines(README) if "ray job submit" in line])
def test_jobs_of_the_page_are_valid(line: str) -> None:
    from cluster.spec import load_spec

    words = [word for word in shlex.split(line)[3:] if word not in ("--working-dir", ".", "--", "--dry-run")]
    load_spec(ROOT / words[0], words[1:])


@pytest.mark.parametrize("line", [line for line in code_lines(README) if line.startswith("make ")])
def test_make_targets_of_the_page_exist(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


def tour() -> set[str]:
    """Files and folders in the first column of the file tour."""
    return set(re.findall(r"^\| `([\w./-]+)` \|", README.split("## File tour")[1], flags=re.MULTILINE))


def test_every_file_of_the_tour_exists() -> None:
    assert [name for name in sorted(tour()) if not (ROOT / name).exists()] == []


def test_every_file_of_the_rooms_is_in_the_tour() -> None:
    folders = tuple(name for name in tour() if name.endswith("/"))
    files = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"}
    files |= {str(path.relative_to(ROOT)) for path in (ROOT / "cluster").glob("*.yaml")}
    assert [name for name in sorted(files - tour()) if not name.startswith(folders)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_paper_named_in_the_code_is_in_the_sources() -> None:
    listed = set(re.findall(r"\d{4}\.\d{5}", (ROOT / "SOURCES.md").read_text()))
    named = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for paper in re.findall(r"arXiv:? ?(\d{4}\.\d{5})", path.read_text()):
                named[paper] = str(path.relative_to(ROOT))
    assert len(named) >= 8
    assert {paper: file for paper, file in named.items() if paper not in listed} == {}


def test_files_named_in_the_sources_exist() -> None:
    names = re.findall(r"`([\w./{},-]+\.(?:py|csv))`", (ROOT / "SOURCES.md").read_text())
    assert len(names) >= 8
    known = {path.name for room in ROOMS for path in (ROOT / room).rglob("*")} | {path.name for path in (ROOT / "tests").glob("*.py")}
    for name in names:
        inside = re.search(r"\{(.*)\}", name)
        for part in inside.group(1).split(",") if inside else [""]:
            full = re.sub(r"\{.*\}", part, name)
            assert (ROOT / full).exists() or Path(full).name in known, full


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_and_have_a_description(picture: Path) -> None:
    root = ElementTree.fromstring(picture.read_text())
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert len(root.findtext(f"{space}desc") or "") > 40
    assert f"]({picture.relative_to(ROOT)})" in README


def test_pins_cover_the_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pins}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w.-]+", text).group().lower().replace("_", "-") for text in wanted}  # type: ignore[union-attr]
    assert names <= pinned
    assert pins["torch"] == "2.13.0"
    assert not [version for version in pins.values() if "+" in version]
