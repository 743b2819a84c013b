"""Where the relative paths of a job lead.

`ray job submit cluster/pretrain.yaml` runs in the folder where the head was started, and relative paths start there. With
`--working-dir .` Ray runs the job in a temporary copy that is deleted later. Results must not land there, so relative paths start where
the head was started all the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from data_shards.errors import InputError

HOME_VARIABLE = "POLYMER_HOME"  # overrides everything else, for clusters whose head was started by someone else
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray tells the driver of a job here which copy it runs in


def job_directory() -> Path:
    """The folder where relative paths start.

    Raises:
        InputError: the job runs in a temporary copy and the folder of the head cannot be found or written.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home:
        if not Path(home).is_dir():
            raise InputError(f"{HOME_VARIABLE}={home} is not a folder on the head node; set it to one that every node sees")
        return Path(home).resolve()
    if not in_temporary_copy():
        return Path.cwd()
    head = _head_directory()
    if head is None or not os.access(head, os.W_OK):
        where = f"{head} (where the head was started) cannot be written" if head else "the folder of the head is unknown"
        raise InputError(f"the job runs in a temporary copy and {where}; pass absolute paths for shards and out, or set {HOME_VARIABLE}")
    return head


def in_temporary_copy() -> bool:
    """True where Ray unpacked `--working-dir` for this job."""
    config = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
    return bool((config.get("runtime_env") or {}).get("working_dir"))


def _head_directory() -> Path | None:
    """Working directory of the raylet that started this job, which is where `ray start` was called."""
    import psutil

    for process in psutil.Process().parents():
        try:
            if "raylet" in process.name():
                return Path(process.cwd())
        except psutil.Error:
            continue
    return None


def resolve(path: str) -> str:
    """An address as it is, a relative path from `job_directory()`.

    Raises:
        InputError: as job_directory.
    """
    if "://" in path:
        return path
    given = Path(path).expanduser()
    return str(given if given.is_absolute() else (job_directory() / given).resolve())
