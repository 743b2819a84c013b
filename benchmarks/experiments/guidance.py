"""What classifier-free guidance of the local head does.

    python -m benchmarks.experiments.guidance --checkpoint runs/y --shards shards/x --out runs/experiments/guidance

The same weights sample the same polymers at several guidance scales: 0 is without the class of the chain, 1 is off, more exaggerates it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
    GREEN,
    RED,
    Checkpoint,
    Device,
    DryRun,
    Experiment,
    Limit,
    Num,
    Out,
    Overwrite,
    Place,
    Quick,
    Seed,
    Shards,
    Split,
    Table,
    finish,
    interval,
    plan,
    prepare,
    samples_of,
    verdict,
)
from data_shards.console import run

if TYPE_CHECKING:
    from data_shards.schema import PolymerSample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SCALES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
METRICS = ("unit_torsion_jsd_bits", "link_dihedral_jsd_bits", "clash_rate_per_heavy_atom", "bond_mae_reference_ang")
OFF = 1.0


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    scales: Annotated[list[float], typer.Option(help="guidance scales; may be repeated")] = SCALES,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Sweep the guidance scale at sampling. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(num=num)
    if min(scales) < 0:
        raise InputError(f"scales {min(scales):g} must be >= 0; change --scales")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    scales, num = ([1.0, 2.0], 2) if quick else (sorted({OFF, *scales}), num)
    if dry_run:
        plan(place, f"{len(samples)} polymers, {num} conformations at guidance {', '.join(f'{s:g}' for s in scales)}")
        return
    finish(place, measure(place, samples, scales, num))


def measure(place: Place, samples: list[PolymerSample], scales: list[float], num: int) -> dict[str, Any]:
    """Divergences, clashes and spread at every scale, with the paired change against no guidance."""
    import numpy as np

    from benchmarks.experiments.measure import difference, estimate, score, spread_ang, values_of, with_fields
    from foundation.evaluation.protocol import reference_of

    references = [reference_of(sample) for sample in samples]
    values: dict[float, dict[str, Any]] = {}
    failed = {}
    with place.bars.stage("guidance", len(scales), unit="scales") as stage:
        for scale in scales:
            scored, _ = score(with_fields(place.model, guidance=scale), samples, references, num, place.seed, place.device)
            values[scale] = {name: values_of(scored, name) for name in METRICS}
            values[scale]["spread_ang"] = np.array([spread_ang(one.attempts.x_ang) for one in scored])
            failed[scale] = sum(len(one.attempts.reasons) for one in scored)
            stage.advance(1, f"{scale:g}")
    off = values[OFF]
    rows = [
        {
            "guidance": scale,
            "failed": failed[scale],
            "values": {name: estimate(own, place.seed) for name, own in values[scale].items()},
            "changes": {name: difference(own, off[name], place.seed) for name, own in values[scale].items()},
        }
        for scale in scales
    ]
    return {"num_polymers": len(samples), "num": num, "rows": rows, "verdicts": [off_is_best(rows)]}


def off_is_best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Does no scale lower the divergence of unit torsions beyond noise?"""
    better = [row for row in rows if (row["changes"]["unit_torsion_jsd_bits"]["high"] or 0.0) < 0]
    if not better:
        return verdict(True, "no guidance scale lowers the divergence of unit torsions beyond noise: the default of 1 stands")
    best = min(better, key=lambda row: row["values"]["unit_torsion_jsd_bits"]["value"])
    change = best["changes"]["unit_torsion_jsd_bits"]
    return verdict(False, f"the default of 1 stands; guidance {best['guidance']:g} changes the divergence by {interval(change)} bit")


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a scale."""
    names = [*METRICS, "spread_ang"]
    rows = [[f"{row['guidance']:g}", str(row["failed"]), *(interval(row["values"][name]) for name in names)] for row in result["rows"]]
    changes = [[f"{row['guidance']:g}", *(interval(row["changes"][name]) for name in names)] for row in result["rows"]]
    title = f"{result['num_polymers']} polymers, {result['num']} conformations each"
    return [Table(title, ["guidance", "failed", *names], rows), Table("Paired change against guidance 1", ["guidance", *names], changes)]


def _sweep(axes: Any, result: dict[str, Any]) -> None:
    scales = [row["guidance"] for row in result["rows"]]
    for name, label, colour in (
        ("unit_torsion_jsd_bits", "unit torsions", RED),
        ("link_dihedral_jsd_bits", "link dihedrals", BLUE),
    ):
        own = [row["values"][name] for row in result["rows"]]
        if any(v["value"] is None for v in own):
            continue
        axes.plot(scales, [v["value"] for v in own], "o-", color=colour, label=f"divergence of {label}, bit")
        axes.fill_between(scales, [v["low"] for v in own], [v["high"] for v in own], color=colour, alpha=0.15, linewidth=0)
    spread = [row["values"]["spread_ang"]["value"] for row in result["rows"]]
    axes.set(xlabel="guidance scale (1 = off)", ylabel="bit", title="Guidance of the local head")
    axes.set_ylim(bottom=0)
    if all(value is not None for value in spread):
        other = axes.twinx()
        other.plot(scales, spread, "s:", color=GREEN)
        other.set_ylabel("mean RMSD between conformations, angstrom", color=GREEN)
        other.set_ylim(0, 1.3 * max(spread))
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "guidance",
    "guidance scales 0 to 3: divergences, clashes, spread of the conformations",
    "What does classifier-free guidance of the local head buy, and what does it cost in diversity?",
    tables,
    {"guidance.png": _sweep},
)

if __name__ == "__main__":
    run(app)
