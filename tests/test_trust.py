"""No file that is loaded can execute code: read from the sources of the four rooms, in which no call is left that could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_shards", "foundation", "finetune", "cluster")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "pandas.read_pickle"}
YAML_SAFE = {"SafeLoader", "CSafeLoader"}
CALLED = {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module", "os.system", "os.popen", "torch.hub.load"}
# modules named by a literal table of ours, not by a file: foundation.objectives.OBJECTIVES
IMPORTS_BY_TABLE = {"foundation/config.py", "foundation/objectives/__init__.py"}


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for, dotted, anywhere in a file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """`np.load` -> "numpy.load"; what is called on an expression keeps a leading dot."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, known)}.{node.attr}"
    return ""


def keyword(call: ast.Call, name: str) -> object:
    """Constant value of a keyword; None where it is absent or no constant."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


def breaches(file: str, text: str) -> list[str]:
    """Calls and imports that can run what a file says."""
    tree = ast.parse(text)
    known = aliases(tree)
    safe = YAML_SAFE | narrowed(tree, known)
    found = [f"{file} imports {name}" for name in known.values() if name in UNPICKLERS or name.split(".")[0] in UNPICKLERS]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = dotted(call.func, known)
        given = {k.arg for k in call.keywords}
        wrong = (
            name in CALLED
            or name.endswith((".read_pickle", ".unsafe_load", ".full_load", ".unsafe_load_all"))
            or (name == "torch.load" and keyword(call, "weights_only") is not True)
            or (
                name in ("numpy.load", "numpy.lib.format.read_array")
                and "allow_pickle" in given
                and keyword(call, "allow_pickle") is not False
            )
            or (name == "numpy.lib.format.read_array" and "allow_pickle" not in given)
            or (name in ("yaml.load", "yaml.load_all") and not any(dotted(a, known).split(".")[-1] in safe for a in loaders(call)))
            or (keyword(call, "shell") is True)
            or (name == "importlib.import_module" and not isinstance(call.args[0], ast.Constant) and file not in IMPORTS_BY_TABLE)
        )
        if wrong:
            found.append(f"{file}:{call.lineno} {name}")
    return found


def narrowed(tree: ast.AST, known: dict[str, str]) -> set[str]:
    """Classes of a file whose only base is a safe loader."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {c.name for c in classes if [dotted(base, known).split(".")[-1] in YAML_SAFE for base in c.bases] == [True]}


def loaders(call: ast.Call) -> list[ast.expr]:
    return [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "Loader")]


def test_no_source_can_run_what_a_file_says() -> None:
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    assert len(files) > 80
    assert [found for path in files for found in breaches(str(path.relative_to(ROOT)), path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=False)",
        "from torch import load\nload('x', map_location='cpu')",
        "import torch\ntorch.load('x', weights_only=flag)",
        "import pickle",
        "from cloudpickle import loads",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "import numpy as np\nnp.lib.format.read_array(file)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import yaml\nclass Mine(yaml.Loader): ...\nyaml.load(text, Loader=Mine)",
        "import pandas as pd\npd.read_pickle('x')",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "from importlib import import_module\nimport_module(config['class'])",
    ],
)
def test_a_breach_is_seen(text: str) -> None:
    assert breaches("foundation/x.py", text)


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x')\nnp.lib.format.read_array(file, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nclass Plain(yaml.SafeLoader): ...\nyaml.load(text, Loader=Plain)",
        "import re\nre.compile('x')\nmodel.eval()",
        "import json\njson.loads(text)",
    ],
)
def test_what_only_reads_data_is_not(text: str) -> None:
    assert breaches("foundation/x.py", text) == []
