"""The files of a run that a report is made of, found and read. What is missing or damaged is a sentence, never a crash."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foundation.errors import InputError

MAX_BYTES = 512 * 2**20  # of one file that is read whole
MAX_STRUCTURES = 24  # structure files that are looked at
MAX_CANDIDATES = 20  # rows of the table of candidates
MAX_COLUMNS = 8
MAX_GALLERY_BYTES = 8 * 2**20
LARGEST = 1e100  # differences and sums of numbers below it stay finite
T = TypeVar("T")


@dataclass
class RunFiles:
    """What was found.

    Attributes:
        folder: as named by the user.
        name: of the run, for the title.
        places: path of each part that was read, for people.
        troubles: sentence for each part that could not be read, by part.
        rows: of metrics.jsonl.
        structures: SDF files.
    """

    folder: Path
    name: str
    places: dict[str, str] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    funnel: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    property: dict[str, Any] = field(default_factory=dict)
    candidates: list[list[str]] = field(default_factory=list)  # the first row holds the names of the columns
    proposed: dict[str, Any] = field(default_factory=dict)  # what became of all draws
    gallery: bytes = b""  # SVG
    structures: list[Path] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------- values of unknown files


def number(value: Any) -> float | None:
    """A number that can be drawn, or None for everything else: text, NaN, infinity, what no measurement gives."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return None
    return float(value)


def numbers(value: Any) -> list[float]:
    """The finite numbers of a list."""
    return [found for item in listing(value) if (found := number(item)) is not None]


def mapping(value: Any) -> dict[str, Any]:
    """An object of JSON, or an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """A list of JSON, or an empty one."""
    return value if isinstance(value, list) else []


# ------------------------------------------------------------------------------------------------------------------------ finding


def read_run(folder: Path) -> RunFiles:
    """Read everything that a report shows.

    Args:
        folder: a run, or a folder that holds one run with shards, structures and eval beside it.

    Raises:
        InputError: no folder, nothing of a run in it, or several runs.
    """
    run = run_folder(folder)
    name = folder.resolve().name
    found = RunFiles(folder, f"{name}/{run.name}" if run.resolve() != folder.resolve() else name)
    beside = [folder] if run == folder else [folder, run]
    found.rows = _read(found, "metrics", run / "metrics.jsonl", read_rows) or []
    found.config = _json(found, "config", [run / "config.json"])
    found.run = _json(found, "run", [run / "run.json"])
    shards = [base / "shards" for base in beside]
    named = found.run.get("shards")
    if isinstance(named, str) and "\0" not in named:
        shards.append(Path(named))
    found.manifest = _json(found, "shards", [path / "manifest.json" for path in shards])
    if "shards" in found.places:
        found.funnel = _json(found, "funnel", [Path(found.places["shards"]).with_name("funnel.json")])
    found.results = _json(found, "evaluation", [base / "eval" / "results.json" for base in beside])
    own = [folder / "results.json"] if (folder / "problem.npz").is_file() else []  # the folder of finetune.property itself
    found.property = _json(found, "property", own + [base / "property" / "results.json" for base in beside])
    for base in beside:
        path = base / "design" / "candidates.csv"
        if not found.candidates and path.is_file():
            found.candidates = _read(found, "design", path, read_candidates) or []
            found.proposed = _json(found, "draws", [path.with_suffix(".json")])
            found.gallery = _read(found, "gallery", path.with_suffix(".svg"), read_gallery) or b""
    samples = [sorted(base.glob("samples/*.sdf"))[-1:] for base in beside]  # of a chain sampled while training: the last
    found.structures = [path for base in beside for path in sorted(base.glob("*.sdf"))] + [path for last in samples for path in last]
    found.structures = found.structures[:MAX_STRUCTURES]
    if not (found.rows or found.run or found.manifest or found.results or found.structures or found.property or found.candidates):
        raise InputError(f"{folder} holds no run, shards, evaluation or structures; pass a run folder such as runs/demo")
    return found


def run_folder(folder: Path) -> Path:
    """The run: the folder itself, its only subfolder that is one, or the one called model; the folder where there is none.

    Raises:
        InputError: no such folder, or several runs.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; pass the folder of a run, such as runs/demo")
    if _is_run(folder):
        return folder
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    if len(inside) > 1:
        model = [path for path in inside if path.name == "model"]
        if not model:
            names = ", ".join(path.name for path in inside)
            raise InputError(f"{folder} holds {len(inside)} runs ({names}); pass one of them")
        return model[0]
    return inside[0] if inside else folder


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() or (folder / "run.json").is_file()


# ------------------------------------------------------------------------------------------------------------------------ reading


def _read(found: RunFiles, part: str, path: Path, read: Callable[[Path], T]) -> T | None:
    """A file by its reader; what is wrong with it becomes the part's trouble."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_BYTES:
            found.troubles[part] = f"{path} is larger than {MAX_BYTES // 2**20} MiB, the bound"
            return None
        value = read(path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found.troubles[part] = f"{path} cannot be read ({reason[:200]})"
        return None
    found.places[part] = str(path)
    return value


def _json(found: RunFiles, part: str, paths: list[Path]) -> dict[str, Any]:
    """The first of these files that is there."""
    for path in paths:
        value = _read(found, part, path, read_object)
        if value is not None:
            return value
    return {}


def read_object(path: Path) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: not JSON, or something else than an object.
    """
    value = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} where an object should be")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    from foundation.track.tracker import read_metrics

    return read_metrics(path)


def read_gallery(path: Path) -> bytes:
    """A picture that is shown as an image, in which no script runs.

    Raises:
        ValueError: too large for a page.
    """
    data = path.read_bytes()
    if len(data) > MAX_GALLERY_BYTES:
        raise ValueError(f"it has {len(data)} bytes, at most {MAX_GALLERY_BYTES} are shown")
    return data


def read_candidates(path: Path) -> list[list[str]]:
    """Names of the columns and the first rows; no more columns than fit."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row[:MAX_COLUMNS] for row, _ in zip(csv.reader(file), range(MAX_CANDIDATES + 1), strict=False) if row]
    width = len(rows[0]) if rows else 0
    return [[*row, *[""] * (width - len(row))][:width] for row in rows]
