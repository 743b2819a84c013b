"""Make the dashboard of a W&B project: `python -m foundation.track.dashboard --project polymers [--entity E] [--dry-run]`.

LAYOUT says which panels there are, in which order and what each is for; it is plain data, shown by --dry-run without a network.
docs/tracking.md says what to do when a panel looks wrong.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from data_shards.console import Resumable, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

NAME = "Polymer pretraining"
TIMEOUT_SEC = 10.0  # for the first answer of the server
COLUMNS = 3  # panels beside each other


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: lines (metrics against the step), bars (a number of each run), media (molecules by step) or object (a table or
            images out of the summaries of the runs).
        title: above it.
        keys: names of metrics, of media or of what foundation/track/attach.py adds.
        shows: one sentence, the same as on docs/tracking.md.
        log_y: logarithmic.
        smoothing: of the lines, 0 to 1; the lines as they are stay behind the smooth ones.
        pattern: regular expression of more metrics, where their names are those of a user's files.
    """

    kind: Literal["lines", "bars", "media", "object"]
    title: str
    keys: tuple[str, ...]
    shows: str
    log_y: bool = False
    smoothing: float = 0.0
    pattern: str | None = None


FLOW, FLOW_SHOWS = ("clean", "noise", "velocity"), "atoms and noise, or velocities, of ditmc"
AUXILIARY = ("tokens", "agreement", "statistics", "descriptors", "levels")
LAYOUT: dict[str, tuple[Panel, ...]] = {
    "Loss": (
        Panel("lines", "Loss, training", ("train/loss",), "the loss of each step, smoothed", log_y=True, smoothing=0.9),
        Panel("lines", "Loss, validation", ("val/loss",), "the same noise and chains each time, so that steps can be compared", log_y=True),
        Panel("lines", "Loss by head, training", ("train/local", "train/orientation"), "1 is what predicting zero gives", smoothing=0.9),
        Panel("lines", "Loss by head, validation", ("val/local", "val/orientation"), "1 is what predicting zero gives"),
        Panel("lines", "Parts of a flow, training", tuple(f"train/{t}" for t in FLOW), FLOW_SHOWS, log_y=True, smoothing=0.9),
        Panel("lines", "Parts of a flow, validation", tuple(f"val/{t}" for t in FLOW), FLOW_SHOWS, log_y=True),
        Panel("lines", "Auxiliary terms, training", tuple(f"train/{t}" for t in AUXILIARY), "each before its weight", smoothing=0.9),
        Panel("lines", "Auxiliary terms, validation", tuple(f"val/{t}" for t in AUXILIARY), "each before its weight"),
        Panel("lines", "Loss by shard set", tuple(f"val/loss_of_set_{k}" for k in range(1, 5)), "only of a mixture; the first four sets"),
        Panel("lines", "Learning rate", ("train/lr",), "warm-up, then decay"),
    ),
    "Throughput": (
        Panel("lines", "Chains per second", ("train/chains_per_sec",), "of all ranks", smoothing=0.9),
        Panel(
            "lines", "Atoms per second", ("train/atoms_per_sec",), "of all ranks; steadier than chains, which differ in size", smoothing=0.9
        ),
        Panel("lines", "Padding efficiency", ("train/padding_efficiency",), "share of the atoms computed that are real", smoothing=0.9),
        Panel(
            "lines", "Where a step's time goes", ("train/step_sec", "train/loader_wait_sec"), "whole step, and waiting for data", log_y=True
        ),
        Panel("lines", "Checkpoints hold up training", ("train/checkpoint_blocked_sec",), "seconds, after steps that ended with one"),
        Panel("lines", "Chains read", ("train/samples_seen",), "the cursor of the data order"),
    ),
    "Health": (
        Panel("lines", "Gradient norm", ("train/grad_norm",), "before clipping; a gap is a skipped step", log_y=True),
        Panel("lines", "Skipped steps", ("train/skipped_steps",), "steps so far that changed nothing"),
        Panel("lines", "Checkpoints that failed", ("train/failed_checkpoints",), "since this process started"),
        Panel("lines", "Memory", ("memory/host_peak_mib", "memory/device_peak_mib"), "peaks so far of rank 0, MiB"),
    ),
    "Samples": (
        Panel("media", "Sampled chain", ("sample",), "a chain from the averaged weights, to be turned"),
        Panel("lines", "Worst bond error", ("sample/worst_bond_error_ang",), "of the sampled chain, angstrom"),
        Panel("lines", "Clashes", ("sample/num_clashes",), "pairs of atoms of the sampled chain that are too close"),
        Panel("lines", "Radius of gyration", ("sample/radius_of_gyration_ang",), "of the sampled chain, angstrom"),
        Panel("lines", "Samples that failed", ("sample/failed",), "1 where no chain could be made"),
        Panel("lines", "Seconds of sampling", ("sample/seconds",), "in which training waits"),
    ),
    "Probes": (
        Panel("lines", "Linear probes", ("probe/NAME_r2",), "R2 of each property of train.probe_tables", pattern=r"probe/\w+_r2"),
        Panel("lines", "Probes that failed", ("probe/failed",), "1 where they could not be measured"),
        Panel("lines", "Seconds of probing", ("probe/seconds",), "in which training waits"),
    ),
    "Property": (
        Panel("lines", "Loss of a generator of repeat units", ("design/loss", "design/atoms", "design/pairs"), "of finetune.design"),
        Panel("lines", "Error of a fold", ("property/rmse", "property/mae"), "of finetune.property; the step counts folds"),
        Panel("lines", "R2 and rank correlation of a fold", ("property/r2", "property/spearman"), "1 is perfect"),
        Panel("lines", "Values inside their intervals", ("property/coverage",), "90 % are promised"),
        Panel(
            "lines",
            "Baselines of a fold",
            ("property/untrained_error", "property/lightgbm_error"),
            "in the metric that the task is judged by",
        ),
    ),
    "Evaluation": (
        Panel("object", "Metrics against baselines", ("eval/metrics",), "every metric and method with its interval"),
        Panel("bars", "Link dihedral divergence", ("eval/link_dihedral_jsd_bits",), "bit, lower is better; runs side by side"),
        Panel("bars", "Unit torsion divergence", ("eval/unit_torsion_jsd_bits",), "bit, lower is better; runs side by side"),
        Panel("bars", "Clash rate", ("eval/clash_rate_per_heavy_atom",), "per heavy atom, lower is better; runs side by side"),
        Panel("object", "Torsion maps", ("eval/torsion_maps",), "consecutive link dihedrals, model beside reference"),
        Panel("object", "Figures", ("eval/figures",), "the figures of the evaluation"),
    ),
}


@app.command()
def main(
    project: Annotated[str, typer.Option(help="W&B project of the runs: track.project")],
    entity: Annotated[
        str | None, typer.Option(help="user or team that owns it; by default WANDB_ENTITY, else the owner of the key")
    ] = None,
    name: Annotated[str, typer.Option(help="of the new dashboard; one of the same name stays beside it")] = NAME,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the layout as JSON; no network, no key")] = False,
) -> None:
    """Curves, throughput, health, samples and evaluation as a W&B workspace. Exit 0 done, 2 bad input, 3 W&B was not reached."""
    if dry_run:
        layout = {section: [asdict(panel) for panel in panels] for section, panels in LAYOUT.items()}
        print(json.dumps({"project": project, "entity": entity, "name": name, "sections": layout}, indent=2))
        return
    print(f"dashboard: {save(project, entity, name)}")


def save(project: str, entity: str | None, name: str) -> str:
    """Make the workspace on the server; its address.

    Raises:
        InputError: the package or the key is missing, or the server refuses.
        Resumable: the server cannot be reached.
    """
    from foundation.errors import InputError
    from foundation.track.mirror import default_entity

    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    check_package()
    check_key(url)
    reach(url)
    try:
        made = workspace(project, entity or os.environ.get("WANDB_ENTITY") or default_entity(TIMEOUT_SEC), name)
        made.save()
        return str(made.url)
    except (ConnectionError, TimeoutError) as error:
        raise Resumable(f"W&B stopped answering ({error}); the same command tries again") from None
    except Exception as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"W&B did not take the dashboard of project {project!r}: {text}; check --project, --entity and the key") from None


def check_package() -> None:
    """Raise InputError where wandb-workspaces is not installed: it comes with an extra of its own."""
    from importlib.util import find_spec

    from foundation.errors import InputError

    if find_spec("wandb_workspaces") is None:
        raise InputError("the package wandb-workspaces is missing; pip install -c constraints.txt -e '.[dashboard]'")


def check_key(url: str) -> None:
    """Raise InputError where neither the environment nor `wandb login` has given a key: W&B would ask for one."""
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlparse

    from foundation.errors import InputError

    with suppress(OSError, NetrcParseError):
        if netrc(os.environ.get("NETRC")).authenticators(urlparse(url).hostname or ""):
            return
    if not os.environ.get("WANDB_API_KEY"):
        raise InputError("there is no key for W&B; set WANDB_API_KEY or run `wandb login`; --dry-run shows the layout without one")


def reach(url: str) -> None:
    """Raise Resumable where nobody answers within TIMEOUT_SEC: the package itself would try for minutes."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from foundation.errors import InputError

    if not url.startswith(("https://", "http://")):
        raise InputError(f"WANDB_BASE_URL {url!r} is no address; write https://api.wandb.ai or that of your server")
    try:
        urlopen(url, timeout=TIMEOUT_SEC).close()
    except HTTPError:  # it answers
        return
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Resumable(f"{url} cannot be reached within {TIMEOUT_SEC:g} s ({reason}); the same command tries again") from None


def workspace(project: str, entity: str, name: str) -> Any:
    """LAYOUT as an object of wandb-workspaces; nothing is sent."""
    import wandb_workspaces.workspaces as ws

    sections = []
    for title, panels in LAYOUT.items():
        layout = ws.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(panels) // COLUMNS))
        sections.append(ws.Section(name=title, panels=[drawn(panel) for panel in panels], is_open=True, layout_settings=layout))
    settings = ws.WorkspaceSettings(x_axis="step", group_by_prefix="first")
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def drawn(panel: Panel) -> Any:
    """A panel as an object of wandb-workspaces."""
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "lines":
        return wr.LinePlot(
            title=panel.title,
            x="step",
            y=list(panel.keys),
            metric_regex=panel.pattern,
            log_y=panel.log_y or None,
            smoothing_type="exponentialTimeWeighted" if panel.smoothing else "none",
            smoothing_factor=panel.smoothing,
            smoothing_show_original=True,
        )
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    (key,) = panel.keys
    return wr.WeavePanelSummaryTable(table_name=key)


if __name__ == "__main__":
    run(app)
