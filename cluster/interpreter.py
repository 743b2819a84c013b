"""Continue a job with the Python that the cluster runs on.

The first line of a YAML says `env python`: the one of the shell in which the head was started, which is another one wherever .venv was
not activated there. Only the standard library is used here, because that other Python may have nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

NEEDED = ("ray", "torch", "typer", "pydantic")
MARK = "CLUSTER_LAUNCH_PYTHON"  # set while continuing, so that it happens once
MAX_PARENTS = 8


def ensure() -> None:
    """Return where this Python has what a job needs; else start again with the one that has.

    Raises:
        SystemExit: code 2 where no such Python can be found.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    better = None if os.environ.get(MARK) else _of_the_head() or _beside()
    if better:
        os.environ[MARK] = better
        os.execv(better, [better, "-m", "cluster.launch", *sys.argv[1:]])
    print(
        f"error: {sys.executable} lacks {', '.join(missing)}; run `make install`, then `source .venv/bin/activate` before `ray start`",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _beside() -> str | None:
    """Python of the .venv in the current folder."""
    python = Path(".venv/bin/python").absolute()
    return str(python) if os.access(python, os.X_OK) else None


def _of_the_head() -> str | None:
    """Python of the raylet among the parents of this process; it names it among its own arguments."""
    pid = os.getpid()
    for _ in range(MAX_PARENTS):
        answer = subprocess.run(["ps", "-ww", "-o", "ppid=,args=", "-p", str(pid)], capture_output=True, text=True, check=False)
        parent, _, arguments = answer.stdout.strip().partition(" ")
        for word in arguments.split():
            name, _, value = word.partition("=")
            if name == "--python_worker_command" and os.access(value, os.X_OK):
                return value
        if not parent.isdigit() or int(parent) <= 1:
            return None
        pid = int(parent)
    return None
