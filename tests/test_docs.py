"""What the pages say is so: keys exist, files exist and are all named, sources are listed, pictures have text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_shards", "foundation", "finetune", "cluster")
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "SOURCES.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_shows_the_main_job() -> None:
    shown = set(re.findall(r"^python -m ([\w.]+)", README, flags=re.MULTILINE))
    assert shown >= {"data_shards.build", "data_shards.verify", "foundation.pretrain", "foundation.generate", "foundation.evaluate"}


def test_the_training_page_is_true() -> None:
    """Its keys are keys of the recipe, and its job file's mixture can be read. Its commands: tests/test_page_commands.py."""
    from cluster.spec import load_spec
    from foundation.recipes import get_recipe

    page = (ROOT / "docs" / "training.md").read_text()
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


def tour() -> set[str]:
    """Files and folders in the first column of the file tour."""
    return set(re.findall(r"^\| `([\w./-]+)` \|", (ROOT / "docs" / "files.md").read_text(), flags=re.MULTILINE))


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
