"""Chains longer than those of training: does quality hold, and do time and memory of a unit?

    python -m benchmarks.experiments.length_scaling --checkpoint runs/y --shards shards/x --out runs/experiments/length_scaling

Quality: polymers of the split at multiples of their length in the shards, against chains of the grow engine of the same length. Cost:
one polymer at several lengths, each in a process of its own so that its largest memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
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
    number,
    plan,
    prepare,
    samples_of,
    verdict,
)
from data_shards.console import run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_shards.schema import PolymerSample, UnitTopology
    from foundation.sampling.request import ChainRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FACTORS = [1, 2, 3, 10, 100]
LENGTHS = [100, 300, 1000, 3000, 10_000]
TOLERANCE = 0.2  # of "constant"
WARM_UNITS = 20
QUALITY = (
    "link_dihedral_jsd_bits",
    "unit_torsion_jsd_bits",
    "clash_rate_per_heavy_atom",
    "mmff_energy_error_kcal_mol",
    "radius_of_gyration_error",
    "rmsd_recall_ang",
)
FLAT = ("link_dihedral_jsd_bits", "unit_torsion_jsd_bits", "clash_rate_per_heavy_atom", "mmff_energy_error_kcal_mol")


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    split: Split = "test",
    limit: Limit = 4,
    num: Num = 8,
    factors: Annotated[list[int], typer.Option(help="multiples of the length in the shards; may be repeated")] = FACTORS,
    lengths: Annotated[list[int], typer.Option(help="units of the chains whose cost is measured; may be repeated")] = LENGTHS,
    units: Annotated[int, typer.Option(help="units generated at each length at least, in single chains one after the other")] = 300,
    psmiles: Annotated[str, typer.Option(help="polymer whose cost is measured")] = "*CC(*)c1ccccc1",
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    one: Annotated[int, typer.Option(hidden=True, help="measure this length in this process and print it")] = 0,
) -> None:
    """Measure quality and cost against length. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers, read_request

    check_numbers(num=num, units=units)
    for name, values in (("factors", factors), ("lengths", lengths)):
        if min(values) < 1:
            raise InputError(f"{name} {min(values)} must be >= 1; change --{name}")
    if one:
        print(json.dumps(cost(checkpoint, read_request(psmiles, one, "atactic", seed), units, seed, device)))
        return
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    samples = samples_of(place, split, 1 if quick else limit)
    if quick:
        num, factors, lengths, units = 2, [1, 2], [4, 8], 8
    factors, lengths = sorted({1, *factors}), sorted(set(lengths))
    if dry_run:
        plan(place, f"{len(samples)} polymers at {factors} times their length, cost at {lengths} units of {psmiles}")
        return
    found = quality(place, samples, factors, num)
    costs = []
    with place.bars.stage("cost", len(lengths), unit="lengths") as stage:
        for length in lengths:
            costs.append(in_fresh_process(checkpoint, psmiles, length, units, place))
            stage.advance(1, f"{length} units")
    finish(place, {**found, "psmiles": psmiles, "cost": costs, "verdicts": [*cost_verdicts(costs), *quality_verdicts(found["quality"])]})


# ----------------------------------------------------------------------------------------------------------------------------- cost


def in_fresh_process(checkpoint: str, psmiles: str, length: int, units: int, place: Place) -> dict[str, Any]:
    """Cost of a length, measured by this command in a process of its own."""
    words = ["--checkpoint", checkpoint, "--shards", place.shards.path, "--out", str(place.out), "--psmiles", psmiles]
    words += ["--device", str(place.device), "--seed", str(place.seed), "--units", str(units), "--one", str(length)]
    command = [sys.executable, "-m", "benchmarks.experiments.length_scaling", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{length} units: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cost(checkpoint: str, request: ChainRequest, units: int, seed: int, device: str) -> dict[str, Any]:
    """Seconds and largest memory of single chains, one after the other, until so many units were made.

    Memory is what the process, or the GPU, holds at its largest beyond what it held before it sampled anything. Time is taken after a
    short chain.
    """
    import numpy as np
    import psutil
    import torch

    from foundation.evaluation.chains import chain_tables
    from foundation.evaluation.metrics import count_clashes
    from foundation.sampling.request import chain_condition, read_request
    from foundation.sampling.run import choose_device, generate_chains
    from foundation.train.checkpoint import load_model

    where = choose_device(device)
    model = load_model(checkpoint)[0].to(where)
    short = read_request(request.psmiles, WARM_UNITS, request.tacticity, request.seed)
    chain_condition(short, model.capabilities)  # RDKit has been at work: its memory is not that of sampling
    before = torch.cuda.memory_allocated(where) if where.type == "cuda" else psutil.Process().memory_info().rss
    reset_peak(where)
    list(generate_chains(model, [short], 1, seed, 1, where))
    num = -(-units // request.num_units)
    wall, processor = time.perf_counter(), time.process_time()
    made = list(generate_chains(model, [request], num, seed, 1, where))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = peak_bytes(where)
    tables = chain_tables(request.topology, request.num_units)
    kept = [chain.x_ang for chain in made if chain.x_ang is not None]
    x_ang = np.stack(kept) if kept else None
    return {
        "units": request.num_units,
        "chains": num,
        "failed": num - len(kept),
        "wall_seconds": wall,
        "processor_seconds": processor,
        "peak_extra_bytes": float(max(peak - before, 0)),
        "clash_rate_per_heavy_atom": None if x_ang is None else float(count_clashes(x_ang, clash_finder(tables)).mean() / x_ang.shape[1]),
        "characteristic_ratio": None if x_ang is None else characteristic_ratio(request.topology, request.num_units, x_ang),
    }


def reset_peak(device: Any) -> None:
    """Forget the largest memory so far."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with open("/proc/self/clear_refs", "w") as file:  # proc(5): 5 resets VmHWM
        file.write("5")


def peak_bytes(device: Any) -> int:
    """Largest memory since reset_peak: resident memory of the process, or what tensors took of the GPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def clash_finder(tables: Any) -> Any:
    """(H, 3) -> clashing pairs, by the rule of the evaluation."""
    from functools import partial

    from data_shards.conformers.quality import HEAVY_CLASH_FACTOR, find_clashes, vdw_radii_ang

    return partial(find_clashes, radii_ang=vdw_radii_ang(tables.elements), bonds=tables.bonds, factor=HEAVY_CLASH_FACTOR)


def characteristic_ratio(topology: UnitTopology, num_units: int, x_ang: NDArray[np.floating]) -> float:
    """C_n of (K, H, 3) chains over their backbone, mean over chains."""
    from data_shards.conformers.statistics import backbone_path
    from foundation.evaluation import backbone

    return float(backbone.characteristic_ratio(x_ang[:, backbone_path(topology, num_units)]).mean())


def cost_verdicts(costs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Is a unit as dear in a long chain as in a short one, in time and in memory?"""
    from benchmarks.experiments.measure import exponent, largest_deviation

    lengths = [row["units"] for row in costs]
    made = []
    for label, values, may_fall in (
        ("processor seconds", [row["processor_seconds"] / row["chains"] for row in costs], False),
        ("peak memory", [row["peak_extra_bytes"] for row in costs], True),
    ):
        a_unit = [value / length for value, length in zip(values, lengths, strict=True)]
        if min(values) <= 0:
            made.append(verdict(False, f"{label} of a unit: the shortest chain needs too little to be measured"))
            continue
        off, rises = largest_deviation(a_unit), max(a_unit) / a_unit[0]
        holds = off <= TOLERANCE or (may_fall and rises <= 1 + TOLERANCE)
        power = f", exponent {exponent(lengths, values):.2f}" if len(set(lengths)) > 1 else ""
        made.append(
            verdict(
                holds,
                f"{label} of a unit constant within {TOLERANCE:.0%}{', or falling,' if may_fall else ''} from {lengths[0]} to "
                f"{lengths[-1]} units: largest deviation from the mean {off:.0%}, last / first {a_unit[-1] / a_unit[0]:.2f}{power}",
            )
        )
    return made


# -------------------------------------------------------------------------------------------------------------------------- quality


def quality(place: Place, samples: list[PolymerSample], factors: list[int], num: int) -> dict[str, Any]:
    """Metrics of every polymer at every multiple of its length; long chains are fewer, one at least."""
    import numpy as np

    from benchmarks.experiments.measure import difference, estimate, score, values_of
    from foundation.evaluation.protocol import reference_of
    from foundation.sampling.growth import grow_sample
    from foundation.sampling.request import Refusal

    values: dict[int, dict[str, NDArray[np.float64]]] = {}
    facts: dict[int, dict[str, Any]] = {}
    with place.bars.stage("quality", len(factors) * len(samples), unit="chains") as stage:
        for factor in factors:
            count, reasons = max(1, num // factor), []
            own: dict[str, list[float]] = {name: [] for name in (*QUALITY, "characteristic_ratio", "reference_characteristic_ratio")}
            for sample in samples:
                made = grow_sample(longer(sample, factor, place.seed), max(2, count))
                if isinstance(made, Refusal):
                    reasons.append(made.reason)
                    for column in own.values():
                        column.append(np.nan)
                    continue
                reference = reference_of(made)
                scored, _ = score(place.model, [made], [reference], count, place.seed, place.device)
                for name in QUALITY:
                    own[name].append(float(values_of(scored, name)[0]))
                x_ang = scored[0].attempts.x_ang
                for name, chains in (("characteristic_ratio", x_ang), ("reference_characteristic_ratio", reference.x_ang)):
                    own[name].append(characteristic_ratio(made.topology, made.num_units, chains) if len(chains) else np.nan)
                reasons += list(scored[0].attempts.reasons)
                stage.advance(1, f"{made.num_units} units")
            values[factor] = {name: np.array(column) for name, column in own.items()}
            facts[factor] = {"conformations": count, "units": int(np.median([s.num_units for s in samples])) * factor, "reasons": reasons}
    short = values[factors[0]]
    rows = [
        {
            "factor": factor,
            **facts[factor],
            "values": {name: estimate(column, place.seed) for name, column in own.items()},
            "changes": {name: difference(column, short[name], place.seed) for name, column in own.items()},
        }
        for factor, own in values.items()
    ]
    note = "References are chains of the grow engine of the same length; a change is paired over polymers against the shortest chains. "
    note += "The divergence of few junctions from few is above zero by chance, and less so the longer the chain."
    return {"num_polymers": len(samples), "quality": rows, "notes": [note]}


def longer(sample: PolymerSample, factor: int, seed: int) -> ChainRequest:
    """The polymer of a sample at a multiple of its length."""
    from data_shards.chem.chain import tacticity_signs
    from foundation.sampling.request import ChainRequest

    topology, units = sample.topology, sample.num_units * factor
    signs = tacticity_signs(topology, units, sample.tacticity, seed)
    return ChainRequest(topology.psmiles, units, topology, units, sample.tacticity, seed, signs)


def quality_verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Are the longest chains that have a metric as good as the shortest, within noise? All judged metrics are better low."""
    made = []
    for name in FLAT:
        measured = [row for row in rows[1:] if row["changes"][name]["value"] is not None]
        if measured:
            change, factor = measured[-1]["changes"][name], measured[-1]["factor"]
            made.append(
                verdict(change["low"] <= 0, f"{name} at {factor} times the length is no worse than at 1: change {interval(change)}")
            )
    return made


# ----------------------------------------------------------------------------------------------------------------------------- page


def tables(result: dict[str, Any]) -> list[Table]:
    """Quality against the multiple of the length, cost against the length."""
    names = (*QUALITY, "characteristic_ratio", "reference_characteristic_ratio")
    body = [
        [
            f"{row['factor']} x",
            str(row["units"]),
            str(row["conformations"]),
            str(len(row["reasons"])),
            *(interval(row["values"][n]) for n in names),
        ]
        for row in result["quality"]
    ]
    header = ["units", "chains", "failed", "processor ms a unit", "wall ms a unit", "peak memory a unit, kB", "clashes / atom", "C_n"]
    costs = [
        [
            str(row["units"]),
            str(row["chains"]),
            str(row["failed"]),
            number(1000 * row["processor_seconds"] / row["chains"] / row["units"], 1),
            number(1000 * row["wall_seconds"] / row["chains"] / row["units"], 1),
            number(row["peak_extra_bytes"] / row["units"] / 1000, 1),
            number(row["clash_rate_per_heavy_atom"], 4),
            number(row["characteristic_ratio"], 2),
        ]
        for row in result["cost"]
    ]
    title = f"Quality of {result['num_polymers']} polymers"
    return [
        Table(title, ["length", "units (median)", "conformations", "failed", *names], body),
        Table(f"Cost of single chains of `{result['psmiles']}`", header, costs),
    ]


def _cost(axes: Any, result: dict[str, Any]) -> None:
    lengths = [row["units"] for row in result["cost"]]
    axes.plot(lengths, [1000 * row["processor_seconds"] / row["chains"] / row["units"] for row in result["cost"]], "o-", color=RED)
    axes.set(xlabel="units of the chain", ylabel="processor ms a unit", xscale="log", title=f"Cost of a unit, {result['psmiles']}")
    axes.yaxis.label.set_color(RED)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(lengths, [row["peak_extra_bytes"] / row["units"] / 1000 for row in result["cost"]], "s--", color=BLUE)
    other.set_ylabel("peak memory, kB a unit", color=BLUE)
    other.set_ylim(bottom=0)


def _quality(axes: Any, result: dict[str, Any]) -> None:
    for name in FLAT:
        points = [(row["factor"], row["values"][name]) for row in result["quality"] if row["values"][name]["value"] is not None]
        axes.plot([f for f, _ in points], [v["value"] for _, v in points], "o-", label=name)
    axes.set(xlabel="multiple of the length in training", ylabel="see the legend", xscale="log", title="Quality against length")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "length_scaling",
    "chains of 1 to 100 times the training length: quality, and time and memory of a unit up to 10,000 units",
    "Does a model trained on short chains make long ones as well, and at the same cost a unit?",
    tables,
    {"length_scaling_cost.png": _cost, "length_scaling_quality.png": _quality},
)

if __name__ == "__main__":
    run(app)
