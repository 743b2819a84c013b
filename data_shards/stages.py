"""What happens to one polymer: standardise, conform, quality, encode. Pure functions; a bad polymer becomes a `Dropped`, never a crash.

Nothing here knows about Ray, files or other polymers, so the result depends on the recipe and the row alone.
"""

from __future__ import annotations

import hashlib
import json
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
from data_shards.schema import MoleculeSample, PolymerSample
from data_shards.sources.table import Row

MAX_PSMILES_LENGTH = 2_000  # the search for the smallest unit takes a time that grows faster than linear
_DETAIL_LENGTH = 300
_PSMILES_SHOWN = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Standard:
    """A row whose P-SMILES has been understood."""

    row: Row
    psmiles: str  # canonical
    group: str
    num_units: int  # N, canonical units; 0 where the structure of the row has to tell
    key: str  # of the sample; where N is not known yet, a hash of the polymer and its structure
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


@dataclass(frozen=True)
class Outcome:
    """What became of one polymer, and what that cost."""

    result: Finished | Dropped
    core_sec: float  # processor seconds


class TimeLimit(BaseException):
    """Raised inside chemistry when its time is over. Not an Exception, so that no library swallows it."""


def standardise(recipe: BuildRecipe, row: Row) -> Standard | Dropped:
    """Canonical P-SMILES, number of canonical units, key."""
    return _guarded(recipe, row, lambda: _standardise(recipe, row))


def conform(recipe: BuildRecipe, source: str, item: tuple[Standard, bytes]) -> Finished | Dropped:
    """Build (or import) the chain, keep the conformations that pass, encode them.

    Args:
        recipe: of the build.
        source: name of the source, one of sources.SOURCES.
        item: what is to be built, and its structure where the source has one.
    """
    work, payload = item
    return _guarded(recipe, work.row, lambda: _conform(recipe, source, work, payload))


def _standardise(recipe: BuildRecipe, row: Row) -> Standard:
    from data_shards.chem.psmiles import canonicalise, parse
    from data_shards.writer import sample_key

    if not row.psmiles:
        raise PolymerError("", row.labels.get("reason", "empty"), row.labels.get("detail", "there is no P-SMILES"))
    if len(row.psmiles) > MAX_PSMILES_LENGTH:
        raise PolymerError(row.psmiles, "too-large", f"{len(row.psmiles)} characters must be <= {MAX_PSMILES_LENGTH}; leave it out")
    if recipe.of_molecules:
        return _standard_molecule(recipe, row)
    canonical = canonicalise(row.psmiles)
    if canonical.group in recipe.hold_out:
        raise PolymerError(row.psmiles, "held-out", "the polymer is named in --hold-out")
    num_atoms = parse(canonical.psmiles).GetNumHeavyAtoms() + 2
    if num_atoms > recipe.max_atoms_per_unit:
        bound = f"{num_atoms} heavy atoms per unit, stars included, must be <= {recipe.max_atoms_per_unit}"
        raise PolymerError(row.psmiles, "too-large", f"{bound}; raise --max-atoms-per-unit")
    num_units = 0 if row.record else recipe.num_units * canonical.multiplicity
    mixed = hashlib.sha256(f"{recipe.seed}\n{canonical.psmiles}\n{row.record or num_units}".encode()).digest()
    # One random stream per polymer: with the recipe's seed alone every atactic chain would carry the same sequence of signs.
    seed = int.from_bytes(mixed[:4], "big") & 0x7FFFFFFF
    key = mixed.hex()[:24] if row.record else sample_key(canonical.psmiles, num_units, seed)
    return Standard(row, canonical.psmiles, canonical.group, num_units, key, seed)


def _standard_molecule(recipe: BuildRecipe, row: Row) -> Standard:
    from data_shards.chem.molecule import standard_molecule

    smiles, flat, _ = standard_molecule(row.psmiles, recipe.max_atoms_per_unit)
    group = hashlib.sha256(flat.encode()).hexdigest()[:12]  # isomers share a split
    if group in recipe.hold_out:
        raise PolymerError(row.psmiles, "held-out", "the molecule is named in --hold-out")
    mixed = hashlib.sha256(f"{recipe.seed}\n{smiles}\n{row.record}".encode()).digest()
    return Standard(row, smiles, group, 1, mixed.hex()[:24], int.from_bytes(mixed[:4], "big") & 0x7FFFFFFF)


def _molecule(recipe: BuildRecipe, work: Standard, payload: bytes) -> Finished:
    """A molecule, embedded or from its record."""
    from data_shards.chem.molecule import embedded, read_molecule, read_record, standard_molecule
    from data_shards.writer import encode_molecule

    if recipe.engine == "record":
        graph, x_ang = read_record(payload, work.psmiles)
    else:
        _, _, mol = standard_molecule(work.psmiles, recipe.max_atoms_per_unit)
        x_ang = embedded(mol, work.psmiles, recipe.num_conformations, work.seed)
        graph = read_molecule(mol)
    sample = MoleculeSample(work.key, replace(graph, smiles=work.psmiles), x_ang, recipe.engine, _provenance(recipe, work))
    return Finished(SampleEntry(work.key, work.psmiles, work.group, 0, 0, 1, graph.num_atoms, len(x_ang)), encode_molecule(sample))


@dataclass(frozen=True)
class _Built:
    """A chain before the quality stage, and what its conformations are compared with."""

    sample: PolymerSample
    handedness: NDArray[np.int8] | None  # (N, c)
    shapes_ang: NDArray[np.floating] | None  # (F, n, 3)
    refused: tuple[str, ...] = ()  # K reasons, "" where there is none, of conformations that came out of their relaxation as another chain


def _conform(recipe: BuildRecipe, source: str, work: Standard, payload: bytes) -> Finished:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from data_shards.writer import encode

    if source == "shards":
        return _taken(work, payload)
    if recipe.of_molecules:
        return _molecule(recipe, work, payload)
    with threadpool_limits(1):  # sums of a threaded BLAS depend on the number of threads
        built = _imported(recipe, source, work, payload) if recipe.engine == "import" else _grown(recipe, work)
        raw: PolymerSample | None = None
        if recipe.relax:
            sound = good_ones(recipe, built, work.row.psmiles)  # a chain must be whole before it is relaxed
            built = replace(built, sample=select(built.sample, sound))
            raw, built = built.sample, _relaxed(built)
        kept = good_ones(recipe, built, work.row.psmiles)
    sample = select(built.sample, kept)
    return Finished(_entry(sample, work), encode(sample, raw=None if raw is None else select(raw, kept)))


def _taken(work: Standard, payload: bytes) -> Finished:
    """A sample of another shard set, which was checked when that was built."""
    from data_shards.sources.shards import read_sample

    sample, members = read_sample(payload, work.row.psmiles, work.row.labels)
    return Finished(_entry(sample, work), members)


def _entry(sample: PolymerSample, work: Standard) -> SampleEntry:
    """What the manifest says of a sample, without its place."""
    topology = sample.topology
    return SampleEntry(
        sample.key, topology.psmiles, work.group, 0, 0, sample.num_units, topology.num_atoms, num_conformations=len(sample.heavy_ang)
    )


def _grown(recipe: BuildRecipe, work: Standard) -> _Built:
    """A chain from the fast builder, or from dynamics that starts there."""
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.fragments import fragment_library
    from data_shards.conformers.grow import GrownChain, grow_chain

    unit = build_unit(work.psmiles)
    library = fragment_library(unit, num_conformers=recipe.num_fragments, seed=work.seed)
    asked: dict[str, Any] = {
        "num_conformations": recipe.num_conformations,
        "tacticity": recipe.tacticity,
        "seed": work.seed,
        "library": library,
    }
    if recipe.md is not None:
        from data_shards.conformers.dynamics import sample_chain

        chain: GrownChain = sample_chain(unit, work.num_units, **asked, settings=recipe.md)
    else:
        chain = grow_chain(unit, work.num_units, **asked)
    sample = PolymerSample(
        key=work.key,
        topology=unit.topology,
        num_units=work.num_units,
        tacticity=recipe.tacticity,
        seed=work.seed,
        engine=recipe.engine,
        heavy_ang=chain.heavy_ang,
        hydrogen_ang=chain.hydrogen_ang,
        energies_kcal_mol=chain.energies_kcal_mol,  # a grown chain has none: it is put together from relaxed shapes, not scored as a whole
        provenance=_provenance(recipe, work) | {"units_as_written": recipe.num_units} | chain.info,
    )
    # Atoms in motion stretch their bonds: chains of dynamics are held to the bounds that hold for any bond of these elements.
    return _Built(sample, chain.handedness, library.heavy_ang if recipe.engine == "grow" else None)


def _imported(recipe: BuildRecipe, source: str, work: Standard, payload: bytes) -> _Built:
    """A chain that the source brought along."""
    from data_shards.sources import read_structure
    from data_shards.writer import sample_key

    found = read_structure(source, payload, work.psmiles)
    sample = PolymerSample(
        key=sample_key(found.topology.psmiles, found.num_units, work.seed),
        topology=found.topology,
        num_units=found.num_units,
        tacticity="as imported",
        seed=work.seed,
        engine="import",
        heavy_ang=found.heavy_ang,
        hydrogen_ang=found.hydrogen_ang,
        energies_kcal_mol=found.energies_kcal_mol,
        provenance=_provenance(recipe, work) | {"source": source} | found.facts,
    )
    return _Built(sample, None, None)


def _relaxed(built: _Built) -> _Built:
    from data_shards.conformers.dynamics import relax_chain

    sample = built.sample
    found = relax_chain(sample.topology, sample.num_units, sample.heavy_ang, sample.hydrogen_ang)
    facts = {
        "force_field": "MMFF94s",
        "energies_before_kcal_mol": [float(energy) for energy in found.energy_before_kcal_mol],
        "converged": [bool(converged) for converged in found.converged],
    }
    relaxed = replace(
        sample,
        heavy_ang=found.heavy_ang,
        hydrogen_ang=found.hydrogen_ang,
        energies_kcal_mol=found.energy_after_kcal_mol,
        provenance=sample.provenance | {"relaxed": facts},
    )
    return _Built(relaxed, built.handedness, None, found.reasons)


def good_ones(recipe: BuildRecipe, built: _Built, written: str) -> list[int]:
    """The quality stage: indices of the conformations without a defect.

    Raises:
        PolymerError: no conformation passes; the reason is the first one's.
    """
    from data_shards.conformers.quality import check_chain

    sample = built.sample
    reports = [
        check_chain(
            sample.topology,
            sample.num_units,
            heavy,
            hydrogen,
            handedness=built.handedness,
            shapes_ang=built.shapes_ang,
            limits=recipe.quality,
        )
        for heavy, hydrogen in zip(sample.heavy_ang, sample.hydrogen_ang, strict=True)
    ]
    refused = built.refused or ("",) * len(reports)
    reasons = [earlier or report.reason for report, earlier in zip(reports, refused, strict=True)]
    good = [index for index, reason in enumerate(reasons) if not reason]
    if not good:
        raise PolymerError(written, f"quality:{reasons[0]}", f"none of {len(reports)} conformations passed: {reports[0]}")
    return good


def select(sample: PolymerSample, kept: list[int]) -> PolymerSample:
    """The sample with some of its conformations."""
    if len(kept) == len(sample.heavy_ang):
        return sample
    energies = sample.energies_kcal_mol
    return replace(
        sample,
        heavy_ang=sample.heavy_ang[kept],
        hydrogen_ang=sample.hydrogen_ang[kept],
        energies_kcal_mol=None if energies is None else energies[kept],
    )


def _provenance(recipe: BuildRecipe, work: Standard) -> dict[str, Any]:
    return {
        "recipe": recipe.digest,
        "versions": versions(),
        "row": work.row.number,
        "written": work.row.psmiles,
        "group": work.group,
        **work.row.labels,
    }


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide the coordinates."""
    return {name: version(name) for name in ("rdkit", "numpy", "scipy", "openmm")}


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
    return Dropped(row.number, row.psmiles[:_PSMILES_SHOWN], reason, " ".join(detail.split())[:_DETAIL_LENGTH])


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


def to_staged(outcome: Outcome) -> bytes:
    """One polymer's outcome as one file: a JSON line, then the members one after the other."""
    head: dict[str, Any] = {"core_sec": outcome.core_sec}
    if isinstance(outcome.result, Dropped):
        return json.dumps({**head, "dropped": asdict(outcome.result)}, sort_keys=True).encode() + b"\n"
    members = outcome.result.members
    head |= {"entry": asdict(outcome.result.entry), "sizes": {name: len(data) for name, data in members.items()}}
    return json.dumps(head, sort_keys=True).encode() + b"\n" + b"".join(members[name] for name in sorted(members))


def from_staged(blob: bytes) -> Outcome | None:
    """The outcome back from its file, or None where the file is torn (a power cut), so that the polymer is done again."""
    head, _, body = blob.partition(b"\n")
    try:
        facts = json.loads(head)
        if "dropped" in facts:
            return Outcome(Dropped(**facts["dropped"]), facts["core_sec"])
        members, start = {}, 0
        for name, size in sorted(facts["sizes"].items()):
            members[name] = body[start : start + size]
            start += size
        return Outcome(Finished(SampleEntry(**facts["entry"]), members), facts["core_sec"]) if start == len(body) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
