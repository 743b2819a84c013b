"""What the terms of the scaling model cost here: one rank, two gloo ranks, no GPU.

    python -m benchmarks.scaling_measure --shards shards/corpus --out docs/results/scaling_measured.json

Times are processor seconds of one thread (medians), so that other work on the machine counts little; waiting is not in them. A GPU needs
other constants, but the number of operations, bytes and messages is the same, and so is the form of every term.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.setting import commit, processor
from data_shards.mixture import open_mixture
from data_shards.reader import ShardSet, open_shards
from foundation.config import RunConfig, apply_overrides
from foundation.data.loader import Reading, Step, StepLoader, order_of
from foundation.data.order import Order
from foundation.objectives import build_objective
from foundation.recipes import get_recipe
from foundation.train.engine import Engine
from foundation.train.ranks import Ranks
from foundation.train.rng import generator

BUDGETS = (256, 512, 1024)  # atoms of a micro-batch
WIDTHS = (64, 96, 160)  # channels: parameters 0.7 to 4 M
MESSAGES = tuple(4**k for k in range(5, 13))  # numbers of an all-reduce: 4 KiB to 64 MiB
NUM_STEPS, NUM_ROUNDS = 9, 3
FLOAT = 4  # bytes
PLANNED = (20_000, 80_000)  # samples of an epoch that is planned


def cpu_seconds(work: Callable[[], Any], repeats: int, before: Callable[[], Any] = lambda: None) -> float:
    """Median processor time of a call in this process, all its threads, after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        before()
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


class Operations(TorchDispatchMode):
    """Counts operations that reach a device, and bytes of collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes, self.messages = 0, Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            self.messages += 1
            self.bytes[name.removeprefix("c10d::").strip("_")] += max(_bytes(argument) for argument in args[:2])  # the whole side
        elif "view" not in name and name.split("::")[1] not in ("detach", "alias", "t.default", "expand", "slice", "select"):
            self.kernels += 1
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    """Of every tensor in nested lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0


def run_config(*overrides: str, recipe: str = "polyconfm_tiny") -> RunConfig:
    return apply_overrides(get_recipe(recipe), overrides)


def steps_of(config: RunConfig, shards: str, rank: int = 0, world_size: int = 1) -> Iterator[Step]:
    """The training steps of a rank, as the loop reads them."""
    opened = open_mixture(shards)
    order = order_of(opened, "train", config.train.seed, config.data.token_budget)
    per_step = config.train.micro_batches_per_step
    return StepLoader(opened, "train", order, Reading(), per_step=per_step, rank=rank, world_size=world_size).steps()


def train_step(engine: Engine, read: Step) -> None:
    """Forward, backward and update, without what the loop adds."""
    for micro in read.micro_batches:
        made = engine.forward(micro.batch, generator(micro.noise_seed, torch.device("cpu")), micro.weight)
        engine.backward(made.to_differentiate, last=micro is read.micro_batches[-1])
    engine.step(1e-4)


# ----------------------------------------------------------------------------------------------------------------------- one rank


def micro_batches(shards: str) -> list[dict[str, float]]:
    """Forward and backward of one micro-batch: floating-point operations, kernels and seconds, over sizes of batch and model."""
    from torch.utils.flop_counter import FlopCounterMode

    found = []
    for width in WIDTHS:
        objective = build_objective(run_config(f"objective.width={width}").objective)
        for budget in BUDGETS:
            read = next(steps_of(run_config(f"data.token_budget={budget}"), shards)).micro_batches[0]

            def work(objective: Any = objective, read: Any = read) -> None:
                objective.loss(read.batch, generator(read.noise_seed, torch.device("cpu"))).loss.backward()

            with FlopCounterMode(display=False) as flops:
                work()
            with Operations() as operations:
                work()
            found.append(
                {
                    "parameters": sum(p.numel() for p in objective.parameters()),
                    "atoms": read.batch.x_unit_ang.shape[0],
                    "flops": flops.get_total_flops(),
                    "kernels": operations.kernels,
                    "cpu_seconds": cpu_seconds(work, 3),
                }
            )
    return found


def updates() -> list[dict[str, float]]:
    """One AdamW step with the average of the weights, over sizes of the model."""
    found = []
    for width in WIDTHS:
        objective = build_objective(run_config(f"objective.width={width}").objective)
        for parameter in objective.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)
        average = [p.detach().clone() for p in objective.parameters()]

        def work(objective: Any = objective, optimizer: Any = optimizer, average: Any = average) -> None:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            for mean, parameter in zip(average, objective.parameters()):
                mean.lerp_(parameter.detach(), 0.01)

        found.append({"parameters": sum(p.numel() for p in objective.parameters()), "cpu_seconds": cpu_seconds(work, 5)})
    return found


def sizes_of_recipes(shards: str) -> dict[str, dict[str, float]]:
    """Forward operations per atom of the large recipes, counted on one small micro-batch; backward does twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    found = {}
    for recipe in ("polyconfm_base", "polyconfm_large"):
        config = run_config("data.token_budget=256", recipe=recipe)
        objective = build_objective(config.objective)
        read = next(steps_of(config, shards)).micro_batches[0]
        rng = generator(read.noise_seed, torch.device("cpu"))
        with torch.no_grad(), FlopCounterMode(display=False) as flops, Operations() as operations:
            objective.loss(read.batch, rng)
        settings = get_recipe(recipe)
        found[recipe] = {
            "parameters": sum(p.numel() for p in objective.parameters()),
            "flops_per_atom": 3 * flops.get_total_flops() / read.batch.x_unit_ang.shape[0],
            "kernels_per_micro_batch": 3 * operations.kernels,
            "atoms_per_micro_batch": settings.data.token_budget,
            "micro_batches_per_step": settings.train.micro_batches_per_step,
            "zero_stage": settings.train.zero_stage,
        }
    return found


def loading(shards: ShardSet) -> dict[str, float]:
    """Reading and packing samples, reading the manifest, planning an epoch."""
    from foundation.data.collate import build_batch

    entries = shards.samples("train")[:128]
    samples = [shards.read(entry) for entry in entries]
    read = cpu_seconds(lambda: [shards.read(entry) for entry in entries], 5)
    pack = cpu_seconds(lambda: build_batch(samples, [0] * len(samples), list(range(len(samples)))), 5)
    everything = sum(len(shards.samples(split)) for split in ("train", "val", "test"))
    planning = []
    for count in PLANNED:
        order = Order((7,) * count, tuple(20 + i % 80 for i in range(count)), (4,) * count, 0, 32_768)
        began = time.process_time()
        plan = order.plan(0)
        planning.append({"samples": count, "cpu_seconds": time.process_time() - began, "micro_batches": len(plan)})
    return {
        "atoms_per_sample": statistics.mean(e.atoms_per_unit * e.num_units for e in entries),
        "read_cpu_seconds_per_sample": read / len(entries),
        "pack_cpu_seconds_per_sample": pack / len(entries),
        "bytes_per_sample": sum((Path(shards.path) / entry.name).stat().st_size for _, entry in shards.manifest.shards()) / everything,
        "manifest_bytes_per_sample": (Path(shards.path) / "manifest.json").stat().st_size / everything,
        "manifest_cpu_seconds_per_sample": cpu_seconds(lambda: open_shards(shards.path), 5) / everything,
        "plan_cpu_seconds_per_sample": (planning[1]["cpu_seconds"] - planning[0]["cpu_seconds"]) / (PLANNED[1] - PLANNED[0]),
        "manifest_memory_bytes_per_sample": _memory(lambda: open_shards(shards.path)) / everything,
        "plan_bytes_per_sample": _memory(lambda: order.plan(1)) / PLANNED[1],
    }


def _memory(make: Callable[[], Any]) -> float:
    """Python memory that a result holds, bytes."""
    import tracemalloc

    tracemalloc.start()
    held = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del held
    return size


def writing(mib: int = 192) -> dict[str, float]:
    """A checkpoint's way to the disk: copy, write, read back, hash, flush; seconds per byte."""
    import hashlib

    from safetensors.torch import load_file, save_file

    tensors = {str(k): torch.rand(2**20) for k in range(mib // 4)}
    size = _bytes(list(tensors.values()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"

        def write() -> None:
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
            load_file(path)
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

        cpu = cpu_seconds(write, 3)
        began = time.perf_counter()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        flush = time.perf_counter() - began
    return {"bytes": size, "cpu_seconds_per_byte": cpu / size, "flush_wall_seconds_per_byte": flush / size}


# ---------------------------------------------------------------------------------------------------------------------- two ranks


def collectives(rank: int, meeting: str, shards_path: str) -> dict[str, Any]:
    """As one of two processes that meet in a file: all-reduce, words, and what ZeRO sends."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
    ranks = Ranks.start(rank, 2)
    found: dict[str, Any] = {"all_reduce": [], "zero": [], "words": 0.0}
    for numbers in MESSAGES:
        tensor = torch.ones(numbers)
        seconds = cpu_seconds(lambda tensor=tensor: dist.all_reduce(tensor), 5 if numbers > 2**20 else 15, dist.barrier)
        found["all_reduce"].append({"bytes": FLOAT * numbers, "cpu_seconds": seconds})
    found["words"] = cpu_seconds(lambda: ranks.gather(({f"term{k}": 0.5 for k in range(8)}, False)), 15, dist.barrier)
    for stage in range(4):
        for accumulate in (1, 2):
            # small tensors stay whole under ZeRO 3 by default, and here all are small
            fields = [f"train.zero_stage={stage}", f"train.micro_batches_per_step={2 * accumulate}", "data.token_budget=256"]
            config = run_config(*fields, "objective.width=64", "deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
            objective = build_objective(config.objective)
            parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
            tensors = sum(p.requires_grad for p in objective.parameters())
            engine = Engine(objective, config, ranks)
            steps = steps_of(config, shards_path, rank, 2)
            train_step(engine, next(steps))
            with Operations() as operations:
                train_step(engine, next(steps))
            row = {"stage": stage, "accumulate": accumulate, "parameters": parameters, "parameter_tensors": tensors}
            found["zero"].append({**row, "messages": operations.messages, "bytes": dict(operations.bytes)})
    dist.barrier()
    return found


def steps_alone_or_together(rank: int, meeting: str, shards_path: str, world_size: int) -> dict[str, Any]:
    """Seconds of steps of one micro-batch per rank. Alone, a rank takes the same micro-batches, but nobody shares its gradient."""
    import torch.distributed as dist

    store = dist.FileStore(meeting, 2)
    if world_size == 2:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ranks = Ranks.start(rank if world_size == 2 else 0, world_size)
    config = run_config(f"train.micro_batches_per_step={world_size}", "data.token_budget=1024")
    engine = Engine(build_objective(config.objective), config, ranks)
    steps = steps_of(run_config("train.micro_batches_per_step=2", "data.token_budget=1024"), shards_path, rank, 2)
    reads = [next(steps) for _ in range(NUM_STEPS)]
    store.set(f"ready{rank}", "yes")
    store.wait(["ready0", "ready1"])  # both cores are busy either way
    times = []
    for read in reads:
        began = time.process_time()
        train_step(engine, read)
        times.append(time.process_time() - began)
    return {"cpu_seconds": times[1:], "parameters": sum(p.numel() for p in engine.parameters.values())}


def two_processes(what: str, *arguments: Any) -> list[dict[str, Any]]:
    """Results of a function of this file in two fresh processes, called with rank, meeting place and arguments."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import json, sys; from pathlib import Path; from benchmarks import scaling_measure as m\n"
            f"found = m.{what}(int(sys.argv[1]), '{folder}/meet', *{arguments!r})\n"
            f"Path('{folder}/' + sys.argv[1]).write_text(json.dumps(found))"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        processes = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(r)], env=environment) for r in range(2)]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"{what}: the two processes ended with {codes}")
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(2)]


def steps_of_one_and_two(shards: str) -> dict[str, Any]:
    """Each step's least processor time of several rounds, alone and together in turn, since the machine is shared; mean over steps."""
    rounds: dict[int, list[list[float]]] = {1: [], 2: []}
    for _ in range(NUM_ROUNDS):
        for world_size, times in rounds.items():
            found = two_processes("steps_alone_or_together", shards, world_size)
            times.append([seconds for rank in found for seconds in rank["cpu_seconds"]])
    least = {world_size: statistics.mean(min(step) for step in zip(*times)) for world_size, times in rounds.items()}
    return {"one_rank_cpu_seconds": least[1], "two_ranks_cpu_seconds": least[2], "parameters": found[0]["parameters"]}


def main(
    shards: str = typer.Option("shards/corpus", help="Shard folder."),
    out: Path = typer.Option(Path("docs/results/scaling_measured.json"), help="Where the numbers go."),
) -> None:
    """Measure every term once; a few minutes on a quiet machine."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "setting": {"machine": processor(), "torch": torch.__version__, "commit": commit()},
    }
    parts: dict[str, Callable[[], Any]] = {
        "updates": updates,
        "writing": writing,
        "loading": lambda: loading(open_shards(shards)),
        "collectives": lambda: two_processes("collectives", shards)[0],
        "steps": lambda: steps_of_one_and_two(shards),
        "recipes": lambda: sizes_of_recipes(shards),
        "micro_batches": lambda: micro_batches(shards),
    }
    for name, measure in parts.items():
        began = time.perf_counter()
        found[name] = measure()
        typer.echo(f"{name}: {time.perf_counter() - began:.0f} s")
    out.write_text(json.dumps(found, indent=1) + "\n")
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
