"""Run a YAML as a job: `ray job submit cluster/pretrain.yaml [key=value ...]`.

The YAML is a program: its first line calls this module. On a machine without a cluster the same file runs on a Ray of its own:
`python -m cluster.launch cluster/smoke.yaml`.
"""

from __future__ import annotations

from cluster import interpreter

if __name__ == "__main__":
    interpreter.ensure()  # before anything that only the right Python has

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.console import run
from data_shards.errors import InputError

if TYPE_CHECKING:
    from cluster.spec import PretrainSpec, SmokeSpec

KNOCK_LIMIT_SEC = 10
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="a file of cluster/ such as cluster/pretrain.yaml, or one of yours")],
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="field of the file (out=runs/x, resources.num_workers=2) or recipe (train.lr=1e-3)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and print the plan; start and write nothing")] = False,
) -> None:
    """Run a YAML as a job on the Ray cluster that it was submitted to, or on this machine.

    Exit 0 done, 2 bad input, 3 stopped but resumable.
    """
    from cluster.spec import DesignSpec, FinetuneSpec, PreprocessSpec, SmokeSpec, load_spec

    spec = load_spec(file, assignments or [])
    if isinstance(spec, PreprocessSpec):
        build_shards(dict(spec.build), dry_run=dry_run)
        return
    with connected() as resources:
        if isinstance(spec, FinetuneSpec):
            finetune(dict(spec.property), resources, dry_run=dry_run)
            return
        if isinstance(spec, DesignSpec):
            design(dict(spec.design), resources, dry_run=dry_run)
            return
        pretrain(spec, resources, dry_run=dry_run, build=spec.build if isinstance(spec, SmokeSpec) else None)


def pretrain(spec: PretrainSpec | SmokeSpec, resources: dict[str, float], *, dry_run: bool, build: dict[str, object] | None) -> None:
    """Plan, check, train.

    Args:
        spec: as read.
        resources: of the whole cluster.
        dry_run: stop before anything is started or written.
        build: options of data_shards.build where shards are to be made first (a finished build is kept as it is).
    """
    from cluster import preflight, workers
    from cluster.plan import make_plan

    plan = make_plan(spec, resources)
    say(plan.lines())
    if build is not None:
        build_shards({**build, "out": plan.shards}, dry_run=dry_run)
    if dry_run:
        say(["dry run: nothing was started or written"])
        return
    say(preflight.check(plan))
    restarts = workers.fit(plan)
    say([f"done: {plan.config.train.num_steps} steps in {plan.out}{restarts}"])


def build_shards(options: dict[str, object], *, dry_run: bool) -> None:
    """`python -m data_shards.build` with options from a YAML, on the cluster of this job."""
    from cluster.paths import resolve
    from cluster.spec import build_options, command_arguments
    from data_shards.build import app as build

    for name in ("input", "out", "to_test", "hold_out"):
        if options.get(name):
            options[name] = resolve(str(options[name]))
    arguments = command_arguments(options, build_options()) + (["--dry-run"] if dry_run else [])
    say([f"data_shards.build {' '.join(arguments)}"])
    build(arguments, standalone_mode=False)


def finetune(options: dict[str, object], resources: dict[str, float], *, dry_run: bool) -> None:
    """`python -m finetune.property` with options from a YAML; its fits are tasks on the cluster of this job."""
    from cluster.spec import command_arguments, property_options
    from finetune.property import app as command

    places = _placed(options, resources, f"runs/{options.get('task', 'tg')}", ("data", "out", "checkpoint"))
    arguments = command_arguments(places, property_options()) + (["--dry-run"] if dry_run else [])
    say([f"finetune.property {' '.join(arguments)}"])
    command(arguments, standalone_mode=False)


def design(options: dict[str, object], resources: dict[str, float], *, dry_run: bool) -> None:
    """`python -m finetune.design` with options from a YAML; its property models are fitted by tasks on the cluster of this job."""
    from cluster.spec import command_arguments, design_options
    from finetune.design.__main__ import app as command

    names = ("data", "unlabelled", "out", "checkpoint", "start")
    places = _placed(options, resources, f"runs/design-{options.get('task', 'tg')}", names)
    arguments = command_arguments(places, design_options()) + (["--dry-run"] if dry_run else [])
    say([f"finetune.design {' '.join(arguments)}"])
    command(arguments, standalone_mode=False)


def _placed(options: dict[str, object], resources: dict[str, float], out: str, names: tuple[str, ...]) -> dict[str, object]:
    """Options with a worker a processor, and files where the head started; words that are no files stay."""
    from cluster.paths import resolve
    from foundation.train.released import SMALL

    found = {"workers": max(int(resources.get("CPU", 1)), 1), "out": out, **options}
    return found | {name: resolve(str(found[name])) for name in names if found.get(name) and found[name] not in (SMALL, "none")}


@contextmanager
def connected() -> Iterator[dict[str, float]]:
    """Connect to the cluster of this job, or start one on this machine and stop it afterwards.

    Yields:
        The resources of the whole cluster.

    Raises:
        InputError: the cluster in RAY_ADDRESS cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address and "RAY_AUTH_MODE" not in os.environ:
        # a token for this run; Ray would leave one in the home folder, and ask for it ever after
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    import ray  # which reads them now

    if address:  # passed on, so that Ray's own helpers find this cluster where a machine runs several
        try:
            _knock(address)  # Ray itself would try for minutes
            ray.init(address=address, logging_level="warning", runtime_env={"env_vars": {"RAY_ADDRESS": address}})
        except (OSError, ray.exceptions.AuthenticationError):
            why = "no cluster answers there, or it asks for an access token that this process does not have"
            raise InputError(f"cannot join Ray at RAY_ADDRESS={address}: {why}; mend or unset RAY_ADDRESS") from None
    else:
        ray.init(address="local", include_dashboard=False, logging_level="warning")
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Connect to `host:port` and hang up; other forms of an address are left to Ray."""
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_LIMIT_SEC).close()


def say(lines: list[str]) -> None:
    """Plain lines to standard error, where logs go."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(app)
