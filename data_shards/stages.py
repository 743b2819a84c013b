"""What happens to one polymer: standardise, conform, quality, encode. Pure functions; a bad polymer becomes a `Dropped`, never a crash.

Nothing here knows about Ray, files or other polymers, so the result depends on the recipe and the row alone.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from types import FrameType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import PolymerError
from data_shards.manifest import SampleEntry
from data_shards.recipe import BuildRecipe
from data_shards.schema import PolymerSample
from data_shards.sources.table import Row

HARD_LIMIT_FACTOR = 1.5  # a worker stuck in compiled code past this multiple of the time limit ends itself
_DETAIL_LENGTH = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Standard:
    """A row whose P-SMILES has been understood."""

    row: Row
    psmiles: str  # canonical
    group: str
    num_units: int  # N, canonical units
    key: str
    seed: int  # of this chain: the recipe's seed mixed with its identity


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a sample, and why."""

    number: int
    psmiles: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Finished:
    """A sample as tar members, and its manifest entry without a place."""

    entry: SampleEntry
    members: dict[str, bytes]


class TimeLimit(BaseException):
    """Raised inside chemistry when its time is over. Not an Exception, so that no library swallows it."""


def standardise(recipe: BuildRecipe, row: Row) -> Standard | Dropped:
    """Canonical P-SMILES, number of canonical units, key."""
    return _guarded(recipe, row, lambda: _standardise(recipe, row))


def conform(recipe: BuildRecipe, work: Standard) -> Finished | Dropped:
    """Grow the chain, keep the conformations that pass, encode them."""
    return _guarded(recipe, work.row, lambda: _conform(recipe, work))


def _standardise(recipe: BuildRecipe, row: Row) -> Standard:
    from data_shards.chem.psmiles import canonicalise, parse
    from data_shards.writer import sample_key

    if not row.psmiles:
        raise PolymerError(row.psmiles, "empty", "the cell is empty")
    canonical = canonicalise(row.psmiles)
    num_atoms = parse(canonical.psmiles).GetNumHeavyAtoms() + 2
    if num_atoms > recipe.max_atoms_per_unit:
        bound = f"{num_atoms} heavy atoms per unit, stars included, must be <= {recipe.max_atoms_per_unit}"
        raise PolymerError(row.psmiles, "too-large", f"{bound}; raise --max-atoms-per-unit")
    num_units = recipe.num_units * canonical.multiplicity
    mixed = hashlib.sha256(f"{recipe.seed}\n{canonical.psmiles}\n{num_units}".encode()).digest()
    # One random stream per polymer: with the recipe's seed alone every atactic chain would carry the same sequence of signs.
    seed = int.from_bytes(mixed[:4], "big") & 0x7FFFFFFF
    return Standard(row, canonical.psmiles, canonical.group, num_units, sample_key(canonical.psmiles, num_units, seed), seed)


def _conform(recipe: BuildRecipe, work: Standard) -> Finished:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.fragments import fragment_library
    from data_shards.conformers.grow import grow_chain
    from data_shards.writer import encode

    with threadpool_limits(1):  # sums of a threaded BLAS depend on the number of threads
        unit = build_unit(work.psmiles)
        library = fragment_library(unit, num_conformers=recipe.num_fragments, seed=work.seed)
        chain = grow_chain(
            unit,
            work.num_units,
            num_conformations=recipe.num_conformations,
            tacticity=recipe.tacticity,
            seed=work.seed,
            library=library,
        )
        sample = PolymerSample(
            key=work.key,
            topology=unit.topology,
            num_units=work.num_units,
            tacticity=recipe.tacticity,
            seed=work.seed,
            engine=recipe.engine,
            heavy_ang=chain.heavy_ang,
            hydrogen_ang=chain.hydrogen_ang,
            energies_kcal_mol=None,  # a grown chain is assembled from relaxed fragments, not scored as a whole
            provenance=_provenance(recipe, work) | chain.info,
        )
        ends = library.heavy_ang[:, unit.topology.bonds]  # (F, m, 2, 3)
        lengths_ang = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=2).T
        sample = keep_good(sample, work.row.psmiles, chain.handedness, lengths_ang)
    topology = sample.topology
    entry = SampleEntry(
        sample.key, topology.psmiles, work.group, 0, 0, sample.num_units, topology.num_atoms, num_conformations=len(sample.heavy_ang)
    )
    return Finished(entry, encode(sample))


def keep_good(sample: PolymerSample, written: str, handedness: NDArray[np.int8], reference_ang: NDArray[np.float64]) -> PolymerSample:
    """The quality stage: only conformations without broken bonds, clashes or wrong handedness stay.

    Args:
        sample: as built.
        written: the P-SMILES as the user wrote it, for the message.
        handedness: (N, c) signs that the chain must have.
        reference_ang: (m, F) lengths of the unit's bonds in the shapes that the chain was built from.

    Raises:
        PolymerError: no conformation passes; the reason is the first one's.
    """
    from data_shards.conformers.quality import check_chain

    reports = [
        check_chain(sample.topology, sample.num_units, heavy, hydrogen, handedness=handedness, reference_ang=reference_ang)
        for heavy, hydrogen in zip(sample.heavy_ang, sample.hydrogen_ang, strict=True)
    ]
    good = [index for index, report in enumerate(reports) if report.ok]
    if not good:
        raise PolymerError(written, f"quality:{reports[0].reason}", f"none of {len(reports)} conformations passed: {reports[0]}")
    if len(good) == len(reports):
        return sample
    energies = sample.energies_kcal_mol
    return replace(
        sample,
        heavy_ang=sample.heavy_ang[good],
        hydrogen_ang=sample.hydrogen_ang[good],
        energies_kcal_mol=None if energies is None else energies[good],
    )


def _provenance(recipe: BuildRecipe, work: Standard) -> dict[str, Any]:
    return {
        "recipe": recipe.digest,
        "versions": versions(),
        "row": work.row.number,
        "written": work.row.psmiles,
        "group": work.group,
        "units_as_written": recipe.num_units,
        **work.row.labels,
    }


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide the coordinates."""
    return {name: version(name) for name in ("rdkit", "numpy", "scipy")}


def _guarded(recipe: BuildRecipe, row: Row, action: Callable[[], T]) -> T | Dropped:
    try:
        with _time_limit(recipe.time_limit_sec):
            return action()
    except PolymerError as error:
        return _dropped(row, error.reason, error.detail)
    except TimeLimit:
        return _dropped(row, "timeout", f"took longer than {recipe.time_limit_sec:g} s; raise --time-limit")
    except Exception as error:  # the funnel is the place for a defect in chemistry: one polymer, not the whole build
        return _dropped(row, f"error:{type(error).__name__}", str(error))


def _dropped(row: Row, reason: str, detail: str) -> Dropped:
    return Dropped(row.number, row.psmiles, reason, " ".join(detail.split())[:_DETAIL_LENGTH])


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in this block after `seconds`. Only a main thread can be interrupted; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def hard_limit(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer than `seconds`, even when compiled code never returns. For worker processes only."""
    with open(os.devnull, "w") as sink:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sink)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def to_staged(outcome: Finished | Dropped) -> bytes:
    """One polymer's outcome as one file: a JSON line, then the members one after the other."""
    if isinstance(outcome, Dropped):
        return json.dumps({"dropped": asdict(outcome)}, sort_keys=True).encode() + b"\n"
    sizes = {name: len(data) for name, data in outcome.members.items()}
    head = json.dumps({"entry": asdict(outcome.entry), "sizes": sizes}, sort_keys=True).encode() + b"\n"
    return head + b"".join(outcome.members[name] for name in sorted(outcome.members))


def from_staged(blob: bytes) -> Finished | Dropped | None:
    """The outcome back from its file, or None where the file is torn (a power cut), so that the polymer is done again."""
    head, _, body = blob.partition(b"\n")
    try:
        facts = json.loads(head)
        if "dropped" in facts:
            return Dropped(**facts["dropped"])
        members, start = {}, 0
        for name, size in sorted(facts["sizes"].items()):
            members[name] = body[start : start + size]
            start += size
        return Finished(SampleEntry(**facts["entry"]), members) if start == len(body) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
