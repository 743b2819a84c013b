"""The house: one arrow between rooms, one door per heavy package, imports that do no work. Read from the source: every branch counts."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_shards", "foundation", "finetune", "cluster")  # each may name the ones before it
FLOORS = (  # inside foundation: each floor may name itself and the ones before it
    {"errors", "units", "batch"},
    {"geometry", "nn"},
    {"encoders", "molecules"},
    {"data", "objectives"},
    {"config", "recipes", "track"},
    {"sampling"},
    {"evaluation"},
    {"train"},
    {"pretrain", "generate", "evaluate", "embed", "probe", "report", "release"},
)
DOORS = {  # package -> the files and folders that may name it
    "deepspeed": ("foundation/train/engine.py", "foundation/train/elastic.py"),
    "ray": ("data_shards/crew.py", "cluster/"),
    "webdataset": ("data_shards/writer.py", "foundation/data/loader.py"),
    "wandb": ("foundation/track/mirror.py",),
    "wandb_workspaces": ("foundation/track/dashboard.py",),
    "peft": ("finetune/lora.py",),
    "openmm": ("data_shards/conformers/",),
    "rdkit": ("data_shards/chem/", "data_shards/conformers/", "foundation/sampling/", "foundation/evaluation/", "finetune/design/"),
    "torchdiffeq": ("foundation/nn/ode.py",),
    "e3nn": ("foundation/nn/",),
    "safetensors": ("foundation/train/snapshot.py",),
    "torch": ("foundation/", "finetune/", "cluster/preflight.py"),
    "torch.distributed": ("foundation/train/",),
    "lmdb": ("data_shards/sources/polyconfm_lmdb.py",),
    "pickle": (),
}


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: str  # relative to the project
    module: str  # dotted, absolute
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def sources() -> list[Path]:
    """Every Python file of the four rooms."""
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports_of(file: str, text: str) -> list[Import]:
    """Import statements anywhere in a file: inside functions, under TYPE_CHECKING, in `importlib.import_module("...")`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [Import(file, alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found += [Import(file, f"{base}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            named = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [Import(file, name, node.lineno) for name in named]
    return found


ALL_IMPORTS = [found for path in sources() for found in imports_of(str(path.relative_to(ROOT)), path.read_text())]


def against_the_arrow(imports: list[Import]) -> list[str]:
    """Imports of a higher room."""
    rank = {room: index for index, room in enumerate(ROOMS)}
    return [
        str(i)
        for i in imports
        if (target := i.module.split(".")[0]) in rank and (room := i.file.split("/")[0]) in rank and rank[target] > rank[room]
    ]


def against_the_floors(imports: list[Import]) -> list[str]:
    """Imports inside foundation of a higher floor."""
    rank = {name: index for index, floor in enumerate(FLOORS) for name in floor}
    found = []
    for i in imports:
        here, there = i.file.removesuffix(".py").split("/"), i.module.split(".")
        if here[0] == there[0] == "foundation" and len(here) > 1 and len(there) > 1 and rank.get(there[1], -1) > rank.get(here[1], 99):
            found.append(str(i))
    return found


def through_no_door(imports: list[Import]) -> list[str]:
    """Imports of a heavy package outside its door."""
    found = []
    for i in imports:
        for package, doors in DOORS.items():
            named = i.module == package or i.module.startswith(package + ".")
            if named and not any(i.file == door or (door.endswith("/") and i.file.startswith(door)) for door in doors):
                found.append(str(i))
    return found


def test_the_sources_are_there() -> None:
    files = {path.relative_to(ROOT).parts[0] for path in sources()}
    assert files == set(ROOMS)
    assert len(ALL_IMPORTS) > 200


def test_a_lower_room_never_names_a_higher_one() -> None:
    assert against_the_arrow(ALL_IMPORTS) == []


def test_a_lower_floor_of_foundation_never_names_a_higher_one() -> None:
    assert against_the_floors(ALL_IMPORTS) == []


def test_every_part_of_foundation_stands_on_a_floor() -> None:
    known = set().union(*FLOORS) | {"__init__", "__pycache__", "weights"}
    parts = {path.stem for path in (ROOT / "foundation").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts <= known, f"{sorted(parts - known)} must be put on a floor in this file"


def test_heavy_packages_have_one_door() -> None:
    assert through_no_door(ALL_IMPORTS) == []


def test_every_door_that_exists_is_used() -> None:
    """A door that nothing passes through is a stale line of this table."""
    for package in ("deepspeed", "ray", "webdataset", "wandb", "rdkit"):
        assert any(i.module.split(".")[0] == package for i in ALL_IMPORTS), package


@pytest.mark.parametrize(
    ("file", "text", "check", "complaint"),
    [
        ("data_shards/chem/x.py", "def f():\n    from foundation.batch import Batch", against_the_arrow, "data_shards/chem/x.py:2"),
        ("foundation/x.py", "if TYPE_CHECKING:\n    import finetune.lora", against_the_arrow, "imports finetune.lora"),
        ("foundation/x.py", "import_module('cluster.spec')", against_the_arrow, "imports cluster.spec"),
        ("foundation/nn/x.py", "from foundation.train import loop", against_the_floors, "imports foundation.train.loop"),
        ("foundation/nn/x.py", "from ..sampling import run", against_the_floors, "imports foundation.sampling.run"),
        ("data_shards/chem/x.py", "import torch", through_no_door, "imports torch"),
        ("foundation/data/x.py", "import torch.distributed as dist", through_no_door, "imports torch.distributed"),
        ("foundation/data/x.py", "def f():\n    import deepspeed", through_no_door, "imports deepspeed"),
        ("foundation/track/console.py", "from wandb import init", through_no_door, "imports wandb.init"),
        ("foundation/data/x.py", "import pickle", through_no_door, "imports pickle"),
    ],
)
def test_the_checks_see_a_breach(file: str, text: str, check: object, complaint: str) -> None:
    found = check(imports_of(file, text))  # type: ignore[operator]
    assert len(found) == 1
    assert complaint in found[0]


def test_no_name_for_leftovers() -> None:
    names = [str(p.relative_to(ROOT)) for p in sources()]
    assert [n for n in names if any(part in ("utils.py", "common", "helpers.py", "misc.py") for part in Path(n).parts)] == []


def test_files_and_functions_stay_readable() -> None:
    """400 lines a file, 60 a function; the training loop and an objective's loss and sample may have 120: they read top to bottom."""
    longer = {"train", "loss", "sample"}
    found = []
    for path in sources():
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        if text.count("\n") > 400:
            found.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                if lines > (120 if node.name in longer else 60):
                    found.append(f"{name}:{node.lineno} {node.name} has {lines} lines")
    assert found == []


def test_every_module_imports_quietly() -> None:
    """All modules of all rooms in one process: no output, no thread left behind, the global generators untouched."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in sources()]
    code = (
        "import importlib, random, threading\n"
        "import numpy, torch\n"
        "state = (random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert state == (random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()), 'drew'\n"
        "assert not torch.distributed.is_initialized()\n"
        "print(threading.active_count())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
