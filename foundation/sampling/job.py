"""One generation job from model to file: generate, check, write, report. Attempts that fail stay in the count, with their reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.conformers.quality import check_chain
from data_shards.progress import Progress
from data_shards.recipe import QualityLimits
from foundation.errors import InputError, PolymerError
from foundation.sampling.provenance import provenance, write_json
from foundation.sampling.relax import RelaxedFile, relaxed_path
from foundation.sampling.request import ChainRequest, Refusal, library_shapes, plan_batches
from foundation.sampling.run import generate_chains
from foundation.sampling.writers import Properties, StructureFile, provenance_path

MAX_FAILURE_LINES = 20
MAX_TABLE_ROWS = 60
WIDTH = 130  # columns where the output is no terminal
LIMITS = QualityLimits(bond_error_ang=0.1)  # against the same bond in the relaxed shapes


@dataclass(frozen=True)
class Job:
    """Everything that decides the content of the file, but for the weights."""

    requests: list[ChainRequest]
    refused: list[Refusal]
    num: int  # conformations of each chain
    seed: int
    batch_atoms: int
    hydrogens: bool
    strict: bool  # leave out conformations that fail the check
    relax: bool  # write a second file with what the force field makes of them
    device: torch.device
    checkpoint: str


@dataclass(frozen=True)
class Lost:
    """A conformation that was attempted and is not in the file."""

    row: int
    psmiles: str
    conformation: int
    reason: str


@dataclass
class Report:
    """What happened, polymer by polymer.

    Attributes:
        attempted: conformations, those of refused polymers included.
        written: conformations in the file.
        lost: conformations without a record.
        refused: polymers that could not be used.
        relaxed: where relaxed conformations lie and what became of each; empty where none was asked for.
        checks: (row, psmiles, worst bond error in angstrom, clashes, radius of gyration in angstrom, reason or "ok") of written ones.
    """

    attempted: int
    written: int = 0
    lost: list[Lost] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    checks: list[tuple[int, str, float, int, float, str]] = field(default_factory=list)
    relaxed: dict[str, Any] = field(default_factory=dict)


def radius_of_gyration(x_ang: NDArray[np.floating]) -> float:
    """Root mean square distance of heavy atoms from their centroid: (H, 3) -> angstrom."""
    return math.sqrt(float(((x_ang - x_ang.mean(axis=0)) ** 2).sum(axis=1).mean()))


def write_chains(model: Any, job: Job, out: Path, bars: Progress) -> Report:
    """Generate, check and write; the file and its provenance appear together at the end.

    Args:
        model: objective in eval mode on job.device.
        job: what to make.
        out: structure file.
        bars: where progress is shown.

    Raises:
        InputError: not one conformation could be made; nothing is written.
    """
    attempted = job.num * (len(job.requests) + len(job.refused))
    report = Report(attempted, refused=job.refused)
    with ExitStack() as stack:
        file = stack.enter_context(StructureFile(out, job.hydrogens))
        relaxed = RelaxedFile(out, job.hydrogens) if job.relax else None
        if relaxed is not None:
            stack.enter_context(relaxed.file)
        stage = stack.enter_context(bars.stage("generate", job.num * len(job.requests), unit="conformations"))
        chains = generate_chains(model, job.requests, job.num, job.seed, job.batch_atoms, job.device)
        for chain in chains:
            request = job.requests[chain.request]
            reason = chain.reason
            if chain.x_ang is not None:
                reason = _write_one(file, relaxed, report, job, request, chain.x_ang, chain.conformation)
            if reason is not None:
                report.lost.append(Lost(request.row, request.psmiles, chain.conformation, reason))
            stage.advance(1, f"{report.written} written, {len(report.lost)} failed")
        if report.written == 0:
            raise InputError(
                f"no conformation could be made: {'; '.join(_reasons(report, job.num)) or 'no polymer given'}; nothing was written"
            )
        file.commit()
        if relaxed is not None:
            report.relaxed = relaxed.facts()
            if relaxed.file.num_records:
                relaxed.file.commit()
    write_json(provenance_path(out), _provenance(model, job, report))
    return report


def _write_one(
    file: StructureFile,
    relaxed: RelaxedFile | None,
    report: Report,
    job: Job,
    request: ChainRequest,
    x_ang: NDArray[np.float64],
    conformation: int,
) -> str | None:
    """Append a conformation, or say why not."""
    quality = check_chain(
        request.topology,
        request.num_units,
        x_ang,
        handedness=request.handedness,
        shapes_ang=relaxed_shapes(request),
        limits=LIMITS,
    )
    if job.strict and not quality.ok:
        return quality.reason
    refusal = file.refusal(x_ang)
    if refusal is not None:
        return refusal
    size = radius_of_gyration(x_ang)
    verdict = quality.reason or "ok"
    properties: Properties = {
        "psmiles": request.psmiles,
        "canonical_psmiles": request.topology.psmiles,
        "num_units": request.num_written_units,
        "num_canonical_units": request.num_units,
        "tacticity": request.tacticity,
        "seed": request.seed,
        "conformation": conformation,
        "check": verdict,
        "worst_bond_error_ang": quality.worst_bond_error_ang,
        "num_clashes": quality.num_clashes,
        "radius_of_gyration_ang": size,
    }
    file.add(request, x_ang, properties)
    if relaxed is not None:
        relaxed.add(request, x_ang, properties)
    report.written += 1
    report.checks.append((request.row, request.psmiles, quality.worst_bond_error_ang, quality.num_clashes, size, verdict))
    return None


def relaxed_shapes(request: ChainRequest) -> NDArray[np.float32] | None:
    """(F, n, 3) relaxed shapes of the unit; None where there is no library for it."""
    try:
        return library_shapes(request.topology.psmiles, request.seed)[0]
    except PolymerError:
        return None


def _reasons(report: Report, num: int) -> Iterator[str]:
    """Reasons of failed conformations, most frequent first; a refused polymer counts for all its conformations."""
    count = Counter(lost.reason for lost in report.lost)
    count.update({refusal.reason: 0 for refusal in report.refused})
    for refusal in report.refused:
        count[refusal.reason] += num
    for reason, times in count.most_common():
        yield f"{reason} ({times} of {report.attempted})"


def _provenance(model: Any, job: Job, report: Report) -> dict[str, Any]:
    written = Counter(check[0] for check in report.checks)
    passed = Counter(check[0] for check in report.checks if check[5] == "ok")
    return {
        **provenance(model, job.checkpoint),
        "seed": job.seed,
        "batch_atoms": job.batch_atoms,
        "device": str(job.device),
        "hydrogens": "placed by RDKit AddHs on generated heavy atoms" if job.hydrogens else None,
        "conformations": {"attempted": report.attempted, "written": report.written, "failed": report.attempted - report.written},
        "reasons": list(_reasons(report, job.num)),
        "relaxed": report.relaxed or None,
        "polymers": [
            {
                "row": request.row,
                "psmiles": request.psmiles,
                "canonical_psmiles": request.topology.psmiles,
                "num_units": request.num_written_units,
                "num_canonical_units": request.num_units,
                "tacticity": request.tacticity,
                "seed": request.seed,
                "heavy_atoms": request.num_heavy_atoms,
                "written": written[request.row],
                "passed_check": passed[request.row],
            }
            for request in job.requests
        ],
        "refused": [vars(refusal) for refusal in job.refused],
        "failed": [vars(lost) for lost in report.lost],
    }


def show_plan(model: Any, job: Job, out: Path) -> None:
    """Print what would be made."""
    batches = sum(1 for _ in plan_batches(job.requests, job.num, job.batch_atoms, model.capabilities.units_at_once))
    heavy = sum(request.num_heavy_atoms for request in job.requests) * job.num
    print(f"{len(job.requests)} polymers x {job.num} conformations, {heavy} heavy atoms in {batches} batches on {job.device}")
    for refusal in job.refused:
        print(f"  row {refusal.row} {refusal.psmiles}: {refusal.detail}")
    print(f"dry run: nothing was written to {out}")


def show_report(report: Report, out: Path) -> None:
    """Print a table of the polymers and every failure."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(out), title_justify="left")
    table.add_column("polymer", overflow="fold")
    for name in ("written", "failed", "passed check", "worst bond error, ang", "clashes", "Rg, ang (min mean max)"):
        table.add_column(name, justify="right")
    lost = Counter(entry.row for entry in report.lost)
    by_row: dict[int, list[tuple[int, str, float, int, float, str]]] = {}
    psmiles_of = {entry.row: entry.psmiles for entry in report.lost}
    for check in report.checks:
        by_row.setdefault(check[0], []).append(check)
        psmiles_of[check[0]] = check[1]
    for row, psmiles in sorted(psmiles_of.items())[:MAX_TABLE_ROWS]:
        checks = by_row.get(row, [])
        bonds, clashes, sizes = (np.array([check[k] for check in checks]) for k in (2, 3, 4))
        passed = sum(check[5] == "ok" for check in checks)
        if checks:
            spread = f"{sizes.min():.1f} {sizes.mean():.1f} {sizes.max():.1f}"
            table.add_row(psmiles, str(len(checks)), str(lost[row]), str(passed), f"{bonds.max():.3f}", f"{clashes.mean():.1f}", spread)
        else:
            table.add_row(psmiles, "0", str(lost[row]), "0", "-", "-", "-")
    screen = Console()
    (screen if screen.is_terminal else Console(width=WIDTH)).print(table)
    if len(psmiles_of) > MAX_TABLE_ROWS:
        print(f"... and {len(psmiles_of) - MAX_TABLE_ROWS} polymers more, in the provenance")
    print(f"{report.attempted} conformations attempted, {report.written} written, {report.attempted - report.written} failed")
    for refusal in report.refused[:MAX_FAILURE_LINES]:
        print(f"  row {refusal.row} {refusal.psmiles}: {refusal.detail}")
    for reason, times in Counter(entry.reason for entry in report.lost).most_common(MAX_FAILURE_LINES):
        print(f"  {times} x {reason}")
    if report.relaxed:
        outcomes = ", ".join(f"{times} {outcome}" for outcome, times in sorted(report.relaxed["outcomes"].items()))
        print(f"{report.relaxed['force_field']}: {outcomes}; {relaxed_path(out)}")
    print(f"provenance: {provenance_path(out)}")
