"""Everything that can be known to go wrong, checked on every node before the first worker starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.plan import shown
from data_shards.errors import InputError, ShardError

if TYPE_CHECKING:
    from cluster.plan import Plan
    from data_shards.mixture import Mixture
    from foundation.config import RunConfig

BYTES_PER_PARAMETER = 16  # of a checkpoint: weights, their average and the two moments of AdamW, each float32
DISK_MARGIN_BYTES = 256 * 2**20
CHUNK_BYTES = 2**22
PROBE = ".preflight"


@dataclass(frozen=True)
class NodeView:
    """What one node sees."""

    host: str
    fingerprint: str | None  # of the shards; None where they are not there
    problem: str  # why not
    free_bytes: int  # on the disk of the run folder; -1 where it is not there
    versions: tuple[str, ...]


def check(plan: Plan) -> list[str]:
    """Check shards, nodes and disk. Ray must be connected.

    Returns:
        One line per check that passed.

    Raises:
        InputError: one sentence for the first check that failed.
    """
    from data_shards.mixture import open_mixture

    opened = open_mixture(plan.shards)
    lines = [_check_splits(opened)]
    lines.append(_check_start(plan, opened.fingerprint))
    lines.append(_check_nodes(plan, opened.fingerprint))
    lines.append(_check_contents(opened, plan.verify))
    return lines


def _check_splits(opened: Mixture) -> str:
    counts = {split: opened.count(split) for split in ("train", "val", "test")}
    if not counts["train"]:
        fix = "build more polymers or lower --val-fraction and --test-fraction"
        raise InputError(f"{opened.path} holds 0 training samples, at least 1 is needed; {fix}")
    return f"shards: {counts['train']} chains to train on, {counts['val']} for validation, fingerprint {opened.fingerprint[:12]}"


def _check_start(plan: Plan, fingerprint: str) -> str:
    """The run folder is new, empty or of this run. It is made here, so that every node can be asked whether it sees it."""
    from foundation.pretrain import check_out
    from foundation.train import checkpoint

    out = Path(plan.out)
    check_out(out, overwrite=False)
    begin = checkpoint.start_of(out, plan.config, fingerprint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PROBE).touch()
        (out / PROBE).unlink()
    except OSError as error:
        raise InputError(f"out {out} cannot be written ({error.strerror}); choose another folder with out=...") from None
    return f"start: continues after {begin}" if begin is not None else "start: at step 0"


def count_parameters(config: RunConfig) -> int:
    """Parameters of the model, without memory for them."""
    import torch

    from foundation.objectives import build_objective

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_objective(config.objective).parameters())


def _check_nodes(plan: Plan, fingerprint: str) -> str:
    """Every node must see the same shards, the run folder, enough disk and the same software."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    look = ray.remote(num_cpus=0)(view_from_node)
    views: list[NodeView] = ray.get(
        [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(plan.shards, plan.out) for node in nodes]
    )
    train = plan.config.train
    kept = train.keep_last + 1 + (train.num_steps // train.keep_every if train.keep_every else 0)
    needed = count_parameters(plan.config) * BYTES_PER_PARAMETER * kept + DISK_MARGIN_BYTES
    return judge_nodes(views, plan, fingerprint, needed)


def view_from_node(shards: str | dict[str, float], out: str) -> NodeView:
    """What this node sees; runs as a Ray task."""
    import platform
    from importlib.metadata import version

    from data_shards.mixture import open_mixture

    try:
        fingerprint, problem = open_mixture(shards).fingerprint, ""
    except InputError as error:
        fingerprint, problem = None, str(error)
    free = shutil.disk_usage(out).free if Path(out).is_dir() else -1
    versions = (f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "deepspeed", "ray")))
    return NodeView(platform.node(), fingerprint, problem, free, versions)


def judge_nodes(views: list[NodeView], plan: Plan, fingerprint: str, needed_bytes: int) -> str:
    """Compare what the nodes see.

    Args:
        views: one per node.
        plan: what will run.
        fingerprint: of the shards as this process sees them.
        needed_bytes: room for the checkpoints.

    Raises:
        InputError: names the node and what it lacks.
    """
    for view in views:
        if view.fingerprint is None:
            raise InputError(f"node {view.host} does not see the shards ({view.problem}); put them on a folder that every node sees")
        if view.fingerprint != fingerprint:
            raise InputError(f"node {view.host} sees other shards in {shown(plan.shards)}; put them on a folder that every node sees")
        if view.free_bytes < 0:
            raise InputError(f"node {view.host} does not see the run folder {plan.out}; choose a folder that every node sees with out=...")
        if view.free_bytes < needed_bytes:
            raise InputError(
                f"{plan.out} has {view.free_bytes / 2**30:.2f} GiB free on node {view.host}, the run needs {needed_bytes / 2**30:.2f} GiB; "
                "free some, choose another out, or lower train.keep_last or raise train.keep_every"
            )
        if view.versions != views[0].versions:
            here, there = " ".join(view.versions), " ".join(views[0].versions)
            raise InputError(f"node {view.host} runs {here}, node {views[0].host} runs {there}; install the same versions on every node")
    room = min(view.free_bytes for view in views) / 2**30
    return f"nodes: {len(views)} see the shards and the run folder, {room:.1f} GiB free of {needed_bytes / 2**30:.2f} needed"


def _check_contents(opened: Mixture, verify: str) -> str:
    """Checksums of all shards, one Ray task each."""
    import ray

    listed = [(one, shard) for one in opened.sets for _, shard in one.manifest.shards()]
    if verify == "sizes":
        return f"contents: {len(listed)} shards have the right sizes; checksums not read (verify: sizes)"
    task = ray.remote(num_cpus=1)(sha256_of)
    for (one, shard), digest in zip(listed, ray.get([task.remote(one.address(shard)) for one, shard in listed]), strict=True):
        if digest != shard.sha256:
            raise ShardError(
                f"{one.path}/{shard.name} has sha256 {digest[:12]}, the manifest says {shard.sha256[:12]}; "
                "copy it again or rebuild the shards"
            )
    return f"contents: every checksum of {len(listed)} shards is right"


def sha256_of(address: str) -> str:
    """Digest of one file; runs as a Ray task."""
    import hashlib

    import fsspec

    digest = hashlib.sha256()
    with fsspec.open(address, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
