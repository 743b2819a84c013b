"""Every command answers --help at once, without a heavy import, and every job file can be submitted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHEBANG = "#!/usr/bin/env -S python -m cluster.launch"
HEAVY = ("torch", "ray", "rdkit", "openmm", "deepspeed", "webdataset", "wandb", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn")
CONTRACT = {
    "data_shards.build": ("--input", "--source", "--out", "--num-units", "--conformers", "--engine", "--workers", "--limit", "--dry-run"),
    "data_shards.show": (),
    "data_shards.verify": (),
    "foundation.pretrain": ("--recipe", "--shards", "--out", "--dry-run"),
    "foundation.generate": ("--checkpoint", "--psmiles", "--num-units", "--num", "--out", "--dry-run"),
    "foundation.evaluate": ("--checkpoint", "--shards", "--split", "--out", "--limit", "--dry-run"),
    "foundation.embed": ("--checkpoint", "--input", "--out", "--limit", "--dry-run"),
    "foundation.probe": ("--checkpoint", "--shards", "--table", "--out", "--limit", "--seed", "--device", "--dry-run", "--overwrite"),
    "foundation.report": ("--out", "--overwrite", "--dry-run"),
    "foundation.release": ("--checkpoint", "--out", "--evaluation", "--dry-run", "--overwrite"),
    "finetune.property": (
        "--task",
        "--data",
        "--column",
        "--checkpoint",
        "--out",
        "--adapter",
        "--rank",
        "--limit",
        "--dry-run",
        "--overwrite",
    ),
    "finetune.predict": ("--model", "--psmiles", "--input", "--out", "--limit", "--dry-run", "--overwrite"),
    "finetune.design": ("--task", "--data", "--checkpoint", "--out", "--limit", "--dry-run", "--overwrite"),
    "finetune.design.release": ("--model", "--out", "--dry-run", "--overwrite"),
    "finetune.propose": ("--model", "--target", "--num", "--out", "--keep", "--dry-run", "--overwrite"),
    "cluster.launch": ("--dry-run",),
}


def command_modules() -> list[str]:
    """Modules that run as programs, found by how they end."""
    files = [path for room in ("data_shards", "foundation", "finetune", "cluster") for path in (ROOT / room).rglob("*.py")]
    programs = [p.relative_to(ROOT).with_suffix("") for p in files if p.read_text().rstrip().endswith("run(app)")]
    return sorted(".".join(path.parts).removesuffix(".__main__") for path in programs)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """This Python in the project root, with lines wide enough that rich cuts no flag."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_contract_names_every_command() -> None:
    assert set(command_modules()) >= set(CONTRACT)


@pytest.mark.parametrize("module", command_modules())
def test_help_answers_without_heavy_imports(module: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as leave:\n"
        "    assert not leave.code, leave.code\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-200:]
    for flag in CONTRACT.get(module, ()):
        assert re.search(rf"{flag}\b", done.stdout), f"{module} --help does not name {flag}"


@pytest.mark.parametrize("module", command_modules())
def test_an_unknown_flag_is_bad_input(module: str) -> None:
    done = python("-m", module, "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


def job_files() -> list[Path]:
    """YAML files of cluster/ that are jobs; ray_cluster.yaml and the like describe machines."""
    return [
        path
        for path in sorted((ROOT / "cluster").glob("*.yaml"))
        if "\nkind: " in path.read_text() and "apiVersion" not in path.read_text()
    ]


def test_the_job_files_are_there() -> None:
    assert {path.name for path in job_files()} >= {"pretrain.yaml", "smoke.yaml", "preprocess.yaml", "finetune_tg.yaml", "design.yaml"}


@pytest.mark.parametrize("path", job_files(), ids=lambda path: path.name)
def test_a_job_file_is_a_program(path: Path) -> None:
    assert path.read_text().splitlines()[0] == SHEBANG
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", job_files(), ids=lambda path: path.name)
def test_git_keeps_the_executable_bit(path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "--stage", str(path)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed.startswith("100755"), listed or f"{path} is not tracked"


@pytest.mark.parametrize("name", [".ci/run"])
def test_the_check_of_a_change_is_executable(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    lines = (ROOT / name).read_text().splitlines()
    assert lines[-2:] == ["make lint", "make test"]


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("None", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('words')", 1),
        ("os.kill(os.getpid(), signal.SIGINT)", 130),
        ("raise InputError('a sentence')", 2),
        ("1 / 0", 1),
    ],
)
def test_leaving_at_once_keeps_the_exit_code_and_runs_no_exit_handler(ending: str, code: int) -> None:
    """A rank that failed may not take the interpreter down in order (docs/log.md, SIGABRT of a rank that fails)."""
    program = (
        "import atexit, os, signal, sys\nfrom data_shards.console import leave_at_once, run\nfrom data_shards.errors import InputError\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"atexit.register(print, 'in order')\ndef app():\n    leave_at_once()\n    print('said')\n    {ending}\nrun(app)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.splitlines()[0] == "said"
    assert ("in order" in ended.stdout) == (ending == "None")
