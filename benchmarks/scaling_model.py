"""What a step would cost on 8 to 4,096 GPUs: compute, collectives, loader, checkpoint. docs/scaling.md says what it means.

    python -m benchmarks.scaling_measure --shards shards/corpus     # once per machine
    python -m benchmarks.scaling_model                              # predictions, figure, tables of docs/scaling.md

Numbers of operations, bytes and messages are measured here (docs/results/scaling_measured.json); seconds for each on a GPU cluster are
assumptions, all of them in `Machine`.

Source: ring all-reduce, Patarasu and Yuan 2009 (doi 10.1016/j.jpdc.2008.09.002); ZeRO volumes, arXiv 1910.02054, section 7.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

SIZES = (8, 64, 512, 4096)
LIVE_NUMBERS = 1e9  # DeepSpeed's stage3_max_live_parameters: weights gathered for forward stay for backward up to here
FETCHED_NUMBERS = 5e7  # DeepSpeed's stage3_prefetch_bucket_size
FLOAT = 4  # bytes; weights, gradients and moments are fp32, bf16 is used inside operations only
STEPS_PER_EPOCH = 100  # below that a run is a few passes of huge steps; the corpus is taken to grow until it is reached


@dataclass(frozen=True)
class Link:
    """A way between two processes: seconds of a message, bytes per second in one direction."""

    latency_sec: float
    bytes_per_sec: float


@dataclass(frozen=True)
class Machine:
    """One kind of cluster. What is not from a data sheet is an assumption, and named in docs/scaling.md."""

    gpus_per_node: int = 8
    peak_flops: float = 989.4e12  # H100 SXM, bf16, dense (NVIDIA H100 data sheet)
    achieved: float = 0.35  # of it, in kernels that are large enough; Llama 3 reports 0.38 to 0.43 (arXiv 2407.21783, table 4)
    kernel_sec: float = 5e-6  # launch of one operation from Python
    memory_bytes_per_sec: float = 3.35e12  # HBM3 (data sheet)
    inside: Link = Link(4e-6, 0.8 * 450e9)  # NVLink 4, 900 GB/s both ways (data sheet)
    between: Link = Link(10e-6, 0.8 * 50e9)  # one NDR InfiniBand card of 400 Gb/s for each GPU (DGX H100 data sheet)
    words: Link = Link(50e-6, 1e9)  # gloo over TCP, which carries Python objects
    to_host_bytes_per_sec: float = 25e9  # PCIe 5 to pageable memory
    storage_bytes_per_sec: float = 2e9  # one process writing to a shared file system
    reads_per_sec: float = 50e3  # small reads that one file server answers
    loader_workers: int = 4  # of a rank (data.num_workers)
    open_files: int = 1024  # of a process, by default
    restart_sec: float = 180.0  # noticing a lost node, waiting for room, starting processes
    gpu_hours_per_failure: float = 16384 * 54 * 24 / 419  # Llama 3 (arXiv 2407.21783, section 3.3.4)


@dataclass(frozen=True)
class Recipe:
    """What a recipe asks for, counted by scaling_measure."""

    parameters: float
    flops_per_atom: float
    kernels_per_micro_batch: float
    atoms_per_micro_batch: float
    micro_batches_per_step: int
    zero_stage: int
    checkpoint_every: int = 2000


# ----------------------------------------------------------------------------------------------------------------------- collectives


def ring_all_reduce(size: float, ranks: int, link: Link) -> float:
    """Seconds to sum size bytes over ranks: a reduce-scatter and an all-gather around the ring."""
    return 2 * ring_all_gather(size, ranks, link)


def ring_all_gather(size: float, ranks: int, link: Link) -> float:
    """Seconds until every rank has all of size bytes, of which each had its share; a reduce-scatter is the same backwards."""
    return (ranks - 1) * (link.latency_sec + size / ranks / link.bytes_per_sec)


def tree_all_reduce(size: float, ranks: int, link: Link) -> float:
    """Seconds by a double binary tree: few messages, each byte sent twice at most."""
    return 2 * math.ceil(math.log2(ranks)) * link.latency_sec + 2 * size / link.bytes_per_sec if ranks > 1 else 0.0


def all_reduce(size: float, gpus: int, machine: Machine) -> float:
    """Seconds over nodes: scatter inside, the shares between nodes by the better of ring and tree, gather inside."""
    local = min(gpus, machine.gpus_per_node)
    nodes, share = gpus // local, size / local
    between = min(ring_all_reduce(share, nodes, machine.between), tree_all_reduce(share, nodes, machine.between))
    return 2 * ring_all_gather(size, local, machine.inside) + between


def zero_volume(stage: int, parameters: float, accumulate: int) -> float:
    """Numbers that a rank sends in a step of DeepSpeed, for many ranks.

    The paper has 2 psi for stages 0 to 2 and 3 psi for stage 3. Differs: DeepSpeed's stages 1 and 2 reduce whole buckets to all ranks
    (use_multi_rank_bucket_allreduce), which is 3 psi with the gathering of the weights; stages 2 and 3 reduce after every micro-batch,
    since no rank may keep a whole gradient; stage 3 gathers the weights of models below LIVE_NUMBERS once for each, others twice.
    """
    per_step, per_micro_batch = {0: (2, 0), 1: (3, 0), 2: (1, 2), 3: (0, 2 if parameters < LIVE_NUMBERS else 3)}[stage]
    return (per_step + accumulate * per_micro_batch) * parameters


def memory_bytes(stage: int, parameters: float, ranks: int) -> float:
    """Of weights, gradients, two moments, masters and the average on a rank; activations come on top."""
    whole, shared = {0: (5, 0), 1: (3, 3), 2: (2, 4), 3: (0, 6)}[stage]
    return FLOAT * parameters * (whole + shared / ranks)


# ------------------------------------------------------------------------------------------------------------------------ prediction


def fit(rows: list[dict[str, float]], *terms: str) -> dict[str, float]:
    """Seconds as a sum of rates times terms ("1" is a constant), least squares of the relative error, no rate below zero."""
    from scipy.optimize import nnls

    seconds = np.array([row["cpu_seconds"] for row in rows])
    matrix = np.array([[1.0 if term == "1" else row[term] for term in terms] for row in rows]) / seconds[:, None]
    scale = matrix.max(axis=0)
    rates, _ = nnls(matrix / scale, np.ones(len(rows)))
    errors = np.abs(matrix @ (rates / scale) - 1)
    return {**dict(zip(terms, (rates / scale).tolist())), "median_relative_error": float(np.median(errors))}


@dataclass(frozen=True)
class Prediction:
    """One recipe on one size; seconds of a step unless said otherwise."""

    gpus: int
    micro_batches_per_step: int
    compute: float
    collectives: float
    update: float
    words: float
    loader_stall: float
    checkpoint: float  # its share of a step
    checkpoint_blocks_sec: float  # once every checkpoint_every steps
    samples_per_step: float
    corpus_samples: float
    startup_sec: float  # reading the manifest and planning an epoch, in every rank
    metadata_bytes_per_node: float
    reads_per_sec: float
    launch_ratio: float  # seconds to launch the operations of a micro-batch over seconds to compute them

    @property
    def step(self) -> float:
        return self.compute + self.collectives + self.update + self.words + self.loader_stall + self.checkpoint

    @property
    def efficiency(self) -> float:
        """Part of the time in which GPUs compute."""
        return self.compute / self.step

    @property
    def efficiency_of_gpus(self) -> float:
        """The same without loader and words: what the hardware would allow."""
        return self.compute / (self.compute + self.collectives + self.update)


def predict(recipe: Recipe, gpus: int, loading: dict[str, float], machine: Machine) -> Prediction:
    """A step on so many GPUs. micro_batches_per_step grows to one for every rank where the recipe has fewer."""
    accumulate = max(1, recipe.micro_batches_per_step // gpus)
    arithmetic = recipe.flops_per_atom * recipe.atoms_per_micro_batch / machine.achieved / machine.peak_flops
    launches = recipe.kernels_per_micro_batch * machine.kernel_sec
    compute = accumulate * max(arithmetic, launches)
    samples = accumulate * recipe.atoms_per_micro_batch / loading["atoms_per_sample"]
    load = samples * (loading["read_cpu_seconds_per_sample"] + loading["pack_cpu_seconds_per_sample"]) / machine.loader_workers
    volume = zero_volume(recipe.zero_stage, recipe.parameters, accumulate)
    collectives = all_reduce(volume / 2 * FLOAT, gpus, machine)
    if recipe.zero_stage == 3 and gpus > 1:  # many messages, each of at most the size that is fetched ahead
        local = min(gpus, machine.gpus_per_node)
        message = (local - 1) * machine.inside.latency_sec + math.ceil(math.log2(gpus // local)) * machine.between.latency_sec
        collectives += 2 * accumulate * math.ceil(recipe.parameters / FETCHED_NUMBERS) * message
    update = 10 * FLOAT * recipe.parameters / (gpus if recipe.zero_stage else 1) / machine.memory_bytes_per_sec
    words = 2 * ring_all_gather(1024 * gpus, gpus, machine.words)  # sizes, then contents
    saved = 4 * FLOAT * recipe.parameters  # weights, average, two moments, all through rank 0
    gather = saved / (machine.between if gpus > machine.gpus_per_node else machine.inside).bytes_per_sec if recipe.zero_stage else 0.0
    step_samples = samples * gpus
    corpus = step_samples * STEPS_PER_EPOCH
    local = min(gpus, machine.gpus_per_node)
    busy = compute + collectives + update + words
    stall = max(0.0, load - busy)
    written = saved * (loading["cpu_seconds_per_byte"] + 1 / machine.storage_bytes_per_sec)  # beside the next steps
    late = max(0.0, written - recipe.checkpoint_every * (busy + stall))  # the next checkpoint waits for it
    blocks = gather + saved / machine.to_host_bytes_per_sec + late
    return Prediction(
        gpus=gpus,
        micro_batches_per_step=accumulate * gpus,
        compute=compute,
        collectives=collectives,
        update=update,
        words=words,
        loader_stall=stall,
        checkpoint=blocks / recipe.checkpoint_every,
        checkpoint_blocks_sec=blocks,
        samples_per_step=step_samples,
        corpus_samples=corpus,
        startup_sec=corpus * (loading["manifest_cpu_seconds_per_sample"] + loading["plan_cpu_seconds_per_sample"]),
        metadata_bytes_per_node=corpus * local * (loading["manifest_memory_bytes_per_sample"] + loading["plan_bytes_per_sample"]),
        reads_per_sec=step_samples / (busy + stall),
        launch_ratio=launches / arithmetic,
    )


def limits(recipe: Recipe, made: Prediction, machine: Machine) -> list[tuple[str, float]]:
    """What is beyond its bound, worst first: (name, how many times the bound)."""
    again_sec = made.startup_sec + machine.restart_sec + recipe.checkpoint_every * made.step / 2  # of every failure
    found = {
        "micro_batches_per_step of the recipe is below the number of ranks": made.gpus / recipe.micro_batches_per_step,
        "operations are launched slower than they compute": made.launch_ratio,
        "reading and packing samples takes longer than computing": (made.loader_stall + made.compute) / made.compute,
        "collectives take more than a quarter of a step": made.collectives / made.step / 0.25,
        "words of all ranks take more than 5 % of a step": made.words / made.step / 0.05,
        "gloo connects every pair: sockets of a process against its open files": made.gpus / machine.open_files,
        "one file server answers that many small reads": made.reads_per_sec / machine.reads_per_sec,
        "every rank reads the manifest and plans the epoch: more than a minute": made.startup_sec / 60,
        "manifest and order in every rank: more than 64 GiB a node": made.metadata_bytes_per_node / 2**36,
        "checkpoints through rank 0 block more than 2 % of the time": made.checkpoint / made.step / 0.02,
        "starting again and repeating steps takes more than 2 % of the time": again_sec
        / (machine.gpu_hours_per_failure * 3600 / made.gpus)
        / 0.02,
    }
    return sorted(((name, ratio) for name, ratio in found.items() if ratio > 1), key=lambda item: -item[1])


# ---------------------------------------------------------------------------------------------------------------------------- report


def validate(measured: dict[str, Any]) -> dict[str, Any]:
    """The terms fitted to this machine, and the step of two ranks predicted from one rank and the fit of all-reduce."""
    steps = measured["steps"]
    reduced = fit(measured["collectives"]["all_reduce"], "1", "bytes")
    predicted = steps["one_rank_cpu_seconds"] + reduced["1"] + reduced["bytes"] * FLOAT * steps["parameters"]
    volumes = []
    for row in measured["collectives"]["zero"]:
        sent = sum((2 if name.startswith("allreduce") else 1) * size / FLOAT for name, size in row["bytes"].items())
        expected = zero_volume(row["stage"], row["parameters"], row["accumulate"])
        volumes.append({**row, "sent": sent / row["parameters"], "expected": expected / row["parameters"]})
    return {
        "micro_batch": fit(measured["micro_batches"], "flops", "kernels"),
        "update": fit(measured["updates"], "parameters", "1"),
        "all_reduce": reduced,
        "two_ranks": {
            "predicted_cpu_seconds": predicted,
            "measured_cpu_seconds": steps["two_ranks_cpu_seconds"],
            "relative_error": predicted / steps["two_ranks_cpu_seconds"] - 1,
            "one_rank_cpu_seconds": steps["one_rank_cpu_seconds"],
        },
        "zero_volumes": volumes,
    }


def model(measured: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Everything that docs/scaling.md shows."""
    loading = {**measured["loading"], "cpu_seconds_per_byte": measured["writing"]["cpu_seconds_per_byte"]}
    predictions: dict[str, list[dict[str, Any]]] = {}
    for name, counted in measured["recipes"].items():
        recipe = Recipe(**counted)
        for gpus in (1, *SIZES):
            made = predict(recipe, gpus, loading, machine)
            rates = {"step": made.step, "efficiency": made.efficiency, "efficiency_of_gpus": made.efficiency_of_gpus}
            rates["memory_bytes"] = memory_bytes(recipe.zero_stage, recipe.parameters, gpus)
            rates["efficiency_with_twice_the_launches"] = predict(recipe, gpus, loading, replace(machine, kernel_sec=1e-5)).efficiency
            predictions.setdefault(name, []).append({**asdict(made), **rates, "limits": limits(recipe, made, machine)})
    return {"measured_on": measured["setting"], "machine": asdict(machine), "fits": validate(measured), "predictions": predictions}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/scaling.md by name."""
    steps = ["| recipe | GPUs | micro-batches a step | step, s | compute | collectives | update | words | waiting for samples | checkpoint"]
    steps[0] += " | efficiency | of the GPUs alone |"
    steps.append("|---|" + "---:|" * 11)
    breaks = ["| recipe | GPUs | over its bound, worst first (times) |", "|---|---:|---|"]
    for recipe, rows in found["predictions"].items():
        for row in rows:
            if row["gpus"] == 1:
                continue
            keys = ("step", "compute", "collectives", "update", "words", "loader_stall", "checkpoint")
            times = " | ".join(f"{row[key]:.3f}" for key in keys)
            shares = f"{row['efficiency']:.0%} | {row['efficiency_of_gpus']:.0%}"
            steps.append(f"| `{recipe}` | {row['gpus']:,} | {row['micro_batches_per_step']:,} | {times} | {shares} |")
            beyond = "; ".join(f"{name} ({ratio:.1f})" for name, ratio in row["limits"])
            breaks.append(f"| `{recipe}` | {row['gpus']:,} | {beyond or 'nothing'} |")
    fits = found["fits"]
    zero = ["| ZeRO | micro-batches of a rank | sent, counted | sent, formula | messages |", "|---:|---:|---:|---:|---:|"]
    zero += [
        f"| {r['stage']} | {r['accumulate']} | {r['sent']:.2f} Ψ | {r['expected']:.2f} Ψ | {r['messages']} |" for r in fits["zero_volumes"]
    ]
    check = fits["two_ranks"]
    one = [
        "| quantity | value |",
        "|---|---:|",
        f"| forward and backward | {fits['micro_batch']['flops'] * 1e9:.3f} s per GFLOP + {fits['micro_batch']['kernels'] * 1e6:.1f} µs"
        f" per operation (median error {fits['micro_batch']['median_relative_error']:.0%}) |",
        f"| clipping, AdamW, average | {fits['update']['1'] * 1e3:.0f} ms + {fits['update']['parameters'] * 1e9:.1f} ns per parameter |",
        f"| gloo all-reduce, two ranks | {fits['all_reduce']['1'] * 1e6:.0f} µs + {fits['all_reduce']['bytes'] * 1e9:.2f} ns per byte"
        f" (median error {fits['all_reduce']['median_relative_error']:.0%}) |",
        f"| step of one rank, measured | {check['one_rank_cpu_seconds']:.3f} s |",
        f"| step of two ranks, predicted | {check['predicted_cpu_seconds']:.3f} s |",
        f"| step of two ranks, measured | {check['measured_cpu_seconds']:.3f} s |",
        f"| error of the prediction | {check['relative_error']:+.0%} |",
    ]
    return {"predictions": "\n".join(steps), "limits": "\n".join(breaks), "zero": "\n".join(zero), "fits": "\n".join(one)}


def fill(page: str, found: dict[str, Any]) -> str:
    """The page with its tables between `<!-- table: NAME -->` and `<!-- end -->` made anew."""
    for name, table in tables(found).items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name}, needs 1")
    return page


def draw(found: dict[str, Any], path: Path) -> None:
    """Efficiency against GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.0, 3.6))
    for (recipe, rows), colour in zip(found["predictions"].items(), ("#1f5fa8", "#d9731a")):
        gpus = [row["gpus"] for row in rows]
        axis.plot(gpus, [row["efficiency"] for row in rows], color=colour, marker="o", label=f"{recipe}, as it is")
        axis.plot(
            gpus, [row["efficiency_of_gpus"] for row in rows], color=colour, ls="--", label=f"{recipe}, compute and collectives alone"
        )
    axis.set_xscale("log", base=2)
    axis.set(xlabel="GPUs (H100 class)", ylabel="part of the time in which GPUs compute", ylim=(0, 1.05))
    axis.set_xticks([1, *SIZES], [f"{size:,}" for size in (1, *SIZES)])
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(
    measured: Path = typer.Option(Path("docs/results/scaling_measured.json"), help="What scaling_measure found."),
    out: Path = typer.Option(Path("docs/results/scaling_model.json"), help="Where the predictions go."),
    page: Path = typer.Option(Path("docs/scaling.md"), help="Page whose tables are made anew."),
    figure: Path = typer.Option(Path("docs/figures/scaling.png"), help="Where the figure goes."),
) -> None:
    """Fit, predict, write."""
    found = json.loads(json.dumps(model(json.loads(measured.read_text()), Machine())))
    out.write_text(json.dumps(found, indent=1) + "\n")
    page.write_text(fill(page.read_text(), found))
    draw(found, figure)
    typer.echo("\n\n".join(tables(found).values()))


if __name__ == "__main__":
    typer.run(main)
