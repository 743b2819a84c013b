"""What errors of junction angles and of unit frames do to a chain.

    python -m benchmarks.experiments.frame_assembly --checkpoint runs/y --shards shards/x --out runs/experiments/frame_assembly

True unit shapes are joined at true, perturbed and generated link dihedrals, and placed at true and perturbed rotations, with and without
the projection onto the shared bonds. The residual is the distance between the two copies of a shared bond's far atom.
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
    number,
    plan,
    prepare,
    samples_of,
    verdict,
)
from data_shards.console import run

if TYPE_CHECKING:
    import torch

    from data_shards.schema import PolymerSample
    from foundation.batch import Batch

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SIGMAS_DEG = [0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 45.0, 90.0]
ZERO_ANG = 1e-3  # shards and unit shapes are float32: a chain of some hundred angstrom carries 1e-5 of rounding an atom
WAYS = ("link dihedrals", "rotations, overlap", "rotations, projected")


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 12,
    num: Num = 4,
    sigmas: Annotated[list[float], typer.Option(help="perturbations, degree; may be repeated")] = SIGMAS_DEG,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Assemble true units with perturbed and generated frames. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers

    check_numbers(num=num)
    if min(sigmas) < 0:
        raise InputError(f"sigmas {min(sigmas):g} must be >= 0 degrees; change --sigmas")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 2 if quick else limit)
    sigmas = [0.0, 10.0] if quick else sorted({0.0, *sigmas})
    if dry_run:
        plan(place, f"{len(samples)} polymers, {num} chains each, perturbations of {', '.join(f'{s:g}' for s in sigmas)} degrees")
        return
    finish(place, measure(place, samples, sigmas, num))


def measure(place: Place, samples: list[PolymerSample], sigmas: list[float], num: int) -> dict[str, Any]:
    """Residual and RMSD of every way and perturbation, means over polymers; error against length; generated links on true units."""
    import numpy as np

    from benchmarks.experiments.measure import estimate, join_true_units, true_units
    from foundation.evaluation.measure import link_counts
    from foundation.evaluation.metrics import jensen_shannon_bits, radius_of_gyration
    from foundation.evaluation.protocol import reference_of

    rows: dict[tuple[str, float], list[tuple[float, float]]] = {}
    growth: dict[float, list[tuple[int, float]]] = {}
    generated, sizes = [], []
    with place.bars.stage("assemble", len(samples)) as stage:
        for index, (sample, batch) in enumerate(zip(samples, true_units(samples, num, place.device), strict=True)):
            for sigma in sigmas:
                rng = np.random.default_rng([place.seed, index, int(1000 * sigma)])
                for way, (residual, x_ang, truth) in perturbed(batch, np.deg2rad(sigma), rng).items():
                    rows.setdefault((way, sigma), []).append((residual, rmsd(x_ang, truth)))
                    if way == WAYS[0] and sigma > 0:
                        growth.setdefault(sigma, []).extend(prefixes(sample, x_ang, truth))
            reference = reference_of(sample)
            x_ang, _ = join_true_units(place.model, batch, place.seed, index)
            divergence = float(jensen_shannon_bits(link_counts(reference.tables, x_ang), reference.link_counts))
            truth = reference.x_ang[np.arange(num) % len(reference.x_ang)]
            generated.append((rmsd(x_ang, truth), divergence))
            sizes.append(float(radius_of_gyration(reference.x_ang).mean()))
            stage.advance(1, sample.topology.psmiles[:40])
    table = [
        {
            "way": way,
            "sigma_deg": sigma,
            "residual_ang": float(np.mean([r for r, _ in pairs])),
            "rmsd_ang": float(np.mean([d for _, d in pairs])),
        }
        for (way, sigma), pairs in rows.items()
    ]
    zero = {row["way"]: row for row in table if row["sigma_deg"] == 0}
    worst = max(max(row["residual_ang"], row["rmsd_ang"]) for row in zero.values())
    links = [row["residual_ang"] for row in table if row["way"] == WAYS[0]]
    return {
        "num_polymers": len(samples),
        "rows": table,
        "growth": {str(sigma): _by_length(pairs) for sigma, pairs in growth.items()},
        "generated": {
            "rmsd_ang": estimate([a for a, _ in generated], place.seed),
            "link_dihedral_jsd_bits": estimate([b for _, b in generated], place.seed),
            "radius_of_gyration_ang": estimate(sizes, place.seed),
        },
        "verdicts": [
            verdict(worst < ZERO_ANG, f"true units in true frames give the chain back: largest mean error {worst:.1e} angstrom"),
            verdict(max(links) < ZERO_ANG, f"whatever the link dihedrals, shared bonds meet: largest residual {max(links):.1e} angstrom"),
        ],
        "notes": [
            "Perturbations are normal: of every link dihedral, or a rotation of every unit by a normal angle about a random axis.",
            "Residual: mean distance between star0 of a unit and nbr1 of the one before; RMSD: plain Kabsch against the stored chain.",
            "The RMSD of generated links is against one stored chain of many that are as good: compare it with the radius of gyration.",
        ],
    }


def perturbed(batch: Batch, sigma_rad: float, rng: Any) -> dict[str, tuple[float, Any, Any]]:
    """way -> residual in angstrom, (K, H, 3) chains and the stored ones, for one batch of a polymer."""
    import torch

    from benchmarks.experiments.measure import centred, shapes_of
    from foundation.geometry.assembly import assemble_links, assemble_overlap, chain_coordinates, condition_layout, project_rotations
    from foundation.geometry.rotations import axis_rotation
    from foundation.geometry.vectors import product, unit_vector

    x_unit, chain, start = shapes_of(batch), batch.unit_chain, batch.unit_position == 0
    key, link, layout = batch.key_slot[chain], batch.link_slot[chain], condition_layout(batch)
    count, device = len(chain), x_unit.device
    turn = torch.from_numpy(sigma_rad * rng.standard_normal(count)).to(device)
    axis = unit_vector(torch.from_numpy(rng.standard_normal((count, 3))).to(device))
    rot = product(batch.world_from_unit.double(), axis_rotation(axis, turn))
    placed = {
        WAYS[0]: assemble_links(x_unit, key, link, start, batch.link_dihedral_rad.double() + turn)[0],
        WAYS[1]: assemble_overlap(rot, x_unit, key, start),
        WAYS[2]: assemble_overlap(project_rotations(rot, x_unit, key, start), x_unit, key, start),
    }
    stored = torch.einsum("uij,uaj->uai", batch.world_from_unit.double(), x_unit.double()) + batch.origin_world_ang[:, None]
    truth = centred(chain_coordinates(stored, layout), batch.num_chains)
    return {
        way: (residual(world, key, batch), centred(chain_coordinates(world, layout), batch.num_chains), truth)
        for way, world in placed.items()
    }


def residual(world: torch.Tensor, key: torch.Tensor, batch: Batch) -> float:
    """Mean distance between star0 of every unit and nbr1 of the one before, angstrom; (U, A, 3) units in place."""
    from foundation.geometry.assembly import NBR1, STAR0
    from foundation.geometry.vectors import take_slots

    points = take_slots(world, key)
    gap = (points[batch.unit_after, STAR0] - points[:, NBR1]).norm(dim=-1)[batch.has_next]
    return float(gap.mean())


def rmsd(x_ang: Any, truth: Any) -> float:
    """Mean Kabsch RMSD of (K, H, 3) chains to those of the same index, angstrom."""
    import torch

    from foundation.geometry.align import kabsch

    return float(kabsch(torch.from_numpy(x_ang), torch.from_numpy(truth))[1].mean())


def prefixes(sample: PolymerSample, x_ang: Any, truth: Any) -> list[tuple[int, float]]:
    """(units, RMSD of the first so many units) at 1, 2, 4, ... units."""
    size = sample.topology.num_atoms - 2
    lengths = sorted({2**k for k in range(20) if 2**k <= sample.num_units} | {sample.num_units})
    return [(n, rmsd(x_ang[:, : 1 + n * size], truth[:, : 1 + n * size])) for n in lengths]


def _by_length(pairs: list[tuple[int, float]]) -> list[dict[str, float]]:
    lengths = sorted({n for n, _ in pairs})
    return [{"units": n, "rmsd_ang": sum(v for m, v in pairs if m == n) / sum(m == n for m, _ in pairs)} for n in lengths]


def tables(result: dict[str, Any]) -> list[Table]:
    """Ways against perturbations, and what the model draws."""
    sigmas = sorted({row["sigma_deg"] for row in result["rows"]})
    at = {(row["way"], row["sigma_deg"]): row for row in result["rows"]}
    header = ["perturbation, degree", *(f"{way}: {what}" for way in WAYS for what in ("residual, Å", "RMSD, Å"))]
    rows = [[f"{s:g}", *(number(at[way, s][k]) for way in WAYS for k in ("residual_ang", "rmsd_ang"))] for s in sigmas]
    made = result["generated"]
    generated = [[name, number(value["value"])] for name, value in made.items()]
    return [
        Table(f"True units of {result['num_polymers']} polymers", header, rows),
        Table("True units, link dihedrals drawn by the model", ["", "mean"], generated),
    ]


def _errors(axes: Any, result: dict[str, Any]) -> None:
    for way, colour in zip(WAYS, (BLUE, RED, GREEN), strict=True):
        rows = [row for row in result["rows"] if row["way"] == way and row["sigma_deg"] > 0]
        sigma = [row["sigma_deg"] for row in rows]
        axes.plot(sigma, [row["rmsd_ang"] for row in rows], "o-", color=colour, label=f"{way}: RMSD")
        seen = [row["residual_ang"] for row in rows]
        if max(seen) > ZERO_ANG:
            axes.plot(sigma, seen, "s:", color=colour, label=f"{way}: residual")
    axes.set(xlabel="perturbation, degree", ylabel="angstrom", xscale="log", yscale="log", title="True units, perturbed frames")
    axes.legend(fontsize=8, frameon=False)


def _growth(axes: Any, result: dict[str, Any]) -> None:
    for sigma, points in result["growth"].items():
        axes.plot([p["units"] for p in points], [max(p["rmsd_ang"], 1e-4) for p in points], "o-", label=f"{float(sigma):g} degrees")
    axes.set(
        xlabel="first units of the chain", ylabel="RMSD, angstrom", xscale="log", yscale="log", title="Growth of the error with length"
    )
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "frame_assembly",
    "true units at true, perturbed and generated frames: residual of shared bonds, RMSD against perturbation and length",
    "How much of a chain is lost by errors of the frames alone, and which way of assembly keeps the shared bonds?",
    tables,
    {"frame_assembly.png": _errors, "frame_assembly_growth.png": _growth},
)

if __name__ == "__main__":
    run(app)
