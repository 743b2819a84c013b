"""Add an evaluation to the W&B run of a run folder: `python -m foundation.track.attach --run runs/y --evaluation runs/y/eval`.

foundation.evaluate starts it as a process of its own, which waits no longer than the mirror of a training does. Everything goes into
the summary of the run, nothing into its history: training may go on afterwards with the step that it would have had. What W&B lacks
of metrics.jsonl is sent first, and the state of the run stays what training left: a run that has not reached its last step is not
"finished" because somebody evaluated it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from data_shards.console import EXIT_RESUMABLE, Resumable, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PATIENCE_SEC = 10.0  # for the mirror of a training that has just ended
NAME = re.compile(r"\w+(?: \w+)*")
MODEL = "model"


@app.command()
def main(
    run_folder: Annotated[Path, typer.Option("--run", help="folder of a run that W&B tracks")],
    evaluation: Annotated[Path, typer.Option(help="folder with results.json and figures, written by foundation.evaluate")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show what would be added, send nothing")] = False,
) -> None:
    """Table, figures, torsion maps and summary numbers of an evaluation to W&B. Exit 0 done, 2 bad input, 3 not now, try again."""
    from foundation.errors import InputError

    results = read_results(evaluation)
    try:
        numbers, table = summary_numbers(results), metric_table(results)
        maps = torsion_maps(results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{evaluation / 'results.json'} is no result of foundation.evaluate ({type(error).__name__}: {error}); evaluate again"
        ) from None
    tracked = tracking_of(run_folder)
    if tracked is None:
        raise InputError(f"--run {run_folder} is not tracked by W&B (no wandb folder, track.wandb=false or WANDB_MODE=disabled)")
    figures = sorted(evaluation.glob("*.png"))
    print(f"{len(numbers)} numbers, a table of {len(table[1])} metrics, {len(figures)} figures, {len(maps)} torsion maps: {tracked[0]}")
    if dry_run:
        print("dry run: nothing was sent")
        return
    send(run_folder, *tracked, numbers, table, figures, maps)


# --------------------------------------------------------------------------------------------------------------- from evaluate


def attach(checkpoint: str, evaluation: Path) -> bool:
    """Add an evaluation to the run that its checkpoint lies in, if that is a tracked one. Nothing that goes wrong is an error.

    Args:
        checkpoint: run folder or checkpoint folder, as foundation.evaluate was given it.
        evaluation: folder of results.json.

    Returns:
        Whether W&B has it; False where there is nothing to add to.
    """
    from foundation.track.mirror import INIT_SEC, say
    from foundation.track.tracker import CLOSE_SEC, mirror_environment

    folder = folder_of(checkpoint)
    tracked = None if folder is None else tracking_of(folder)
    if folder is None or tracked is None:
        return False
    words = [sys.executable, "-m", "foundation.track.attach", "--run", str(folder), "--evaluation", str(evaluation)]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=mirror_environment(tracked[0]), start_new_session=True
    )
    try:
        return process.wait(PATIENCE_SEC + INIT_SEC + CLOSE_SEC) == 0
    except subprocess.TimeoutExpired:
        say("the evaluation was not taken in time; results.json has it")
        return False
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def folder_of(checkpoint: str) -> Path | None:
    """The run folder that a checkpoint lies in; None where it is somewhere else."""
    path = Path(checkpoint)
    return next((folder for folder in (path, path.absolute().parent.parent) if (folder / "run.json").is_file()), None)


def tracking_of(folder: Path) -> tuple[str, str] | None:
    """Mode (offline or online) and project of a run folder; None where W&B does not track it. WANDB_MODE wins."""
    from foundation.config import TrackConfig
    from foundation.track.mirror import read_object
    from foundation.track.tracker import mirror_mode

    if not (folder / "wandb").is_dir():
        return None
    with suppress(OSError, ValueError):  # of a run that this version cannot read
        track = TrackConfig(**read_object(folder / "config.json").get("track", {}))
        mode = mirror_mode(track, os.environ)
        return None if mode is None else (mode, track.project)
    return None


# -------------------------------------------------------------------------------------------------------------- what is added


def read_results(evaluation: Path) -> dict[str, Any]:
    """Content of results.json.

    Raises:
        InputError: there is none, or it is no JSON object.
    """
    from foundation.errors import InputError
    from foundation.track.mirror import read_object

    try:
        return read_object(evaluation / "results.json")
    except (OSError, ValueError) as error:
        raise InputError(f"--evaluation {evaluation} holds no results.json that can be read ({error}); run foundation.evaluate") from None


def parts_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tables of an evaluation: chains, and units and oligomers where they were measured too."""
    return {"chain": results, **results.get("parts", {})}


def summary_numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """eval/METRIC of the model, eval/PART/METRIC of the other parts, and which evaluation it was. What is null is left out."""
    found: dict[str, Any] = {
        "eval/split": results["settings"]["split"],
        "eval/weights_sha256": results["weights_sha256"],
        "eval/commit": results["commit"],
        "eval/shards_fingerprint": results["shards"]["fingerprint"],
    }
    for part, content in parts_of(results).items():
        prefix = "eval" if part == "chain" else f"eval/{part}"
        found[f"{prefix}/num_polymers"] = content["protocol"]["num_polymers"]
        attempts = content["attempts"].get(MODEL, {})
        found |= {f"{prefix}/conformations_{name}": attempts[name] for name in ("attempted", "failed") if name in attempts}
        for metric, row in content["metrics"].items():
            value = row["methods"].get(MODEL, {}).get("value")
            if not NAME.fullmatch(metric):
                raise ValueError(f"metric {metric!r}")
            if isinstance(value, int | float):
                found[f"{prefix}/{metric}"] = value
    return {name: value for name, value in found.items() if value is not None}


def metric_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, a metric each: for every method its value and, as text, its interval."""
    parts = parts_of(results)
    methods = list(dict.fromkeys(method for content in parts.values() for method in content["attempts"]))
    columns = ["part", "metric", "unit", "better", *(text for method in methods for text in (method, f"{method}, interval"))]
    rows: list[list[Any]] = []
    for part, content in parts.items():
        for metric, row in content["metrics"].items():
            cells: list[Any] = []
            for method in methods:
                estimate = row["methods"].get(method)
                if estimate is None or estimate["value"] is None:
                    cells += [None, None]
                else:
                    cells += [float(estimate["value"]), f"[{estimate['low']:.4g}, {estimate['high']:.4g}]"]
            rows.append([part, metric, row["unit"], row["better"], *cells])
    return columns, rows


def torsion_maps(results: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Counts of consecutive link dihedrals by method, first angle along rows; a method without any is left out."""
    import numpy as np

    found = {}
    for method, counts in results.get("distributions", {}).get("torsion_maps", {}).get("maps", {}).items():
        rows = np.asarray(counts, dtype=float)
        if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or not np.isfinite(rows).all():
            raise ValueError(f"torsion map of {method!r} has shape {rows.shape}")
        if rows.sum() > 0:
            found[str(method)] = rows.tolist()
    return found


def draw_map(counts: list[list[float]], method: str, highest: float, path: Path) -> None:
    """PNG of a torsion map.

    Args:
        counts: (B, B), first angle along rows, from -180 to 180 degrees.
        method: title.
        highest: fraction of the pairs in a bin that has the darkest colour, the same for all methods of an evaluation.
        path: file to write.
    """
    import numpy as np
    from matplotlib.figure import Figure

    fractions = np.asarray(counts)
    figure = Figure(figsize=(4.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        (fractions / fractions.sum()).T, origin="lower", extent=(-180, 180, -180, 180), vmin=0, vmax=highest, cmap="viridis"
    )
    ticks = np.arange(-180, 181, 60)
    axes.set(xlabel="link dihedral i, degree", ylabel="link dihedral i + 1, degree", xticks=ticks, yticks=ticks)
    axes.set_title(f"{method}, {fractions.sum():.0f} pairs", fontsize=10, loc="left")
    figure.colorbar(image, label="fraction of the pairs")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def of_one_size(figures: list[Path], scratch: Path) -> dict[str, Path]:
    """PNG files by name, as they are where all have one size; else on white of the largest: W&B shows a panel of images in one size."""
    from PIL import Image

    sizes = set()
    for path in figures:
        with Image.open(path) as image:
            sizes.add(image.size)
    if len(sizes) < 2:
        return {path.stem: path for path in figures}
    found = {}
    for path in figures:
        with Image.open(path) as image:
            canvas = Image.new("RGB", (max(width for width, _ in sizes), max(height for _, height in sizes)), "white")
            canvas.paste(image.convert("RGB"))
            canvas.save(scratch / path.name)
        found[path.stem] = scratch / path.name
    return found


# -------------------------------------------------------------------------------------------------------------------- sending


def send(
    folder: Path,
    mode: str,
    project: str,
    numbers: Mapping[str, Any],
    table: tuple[list[str], list[list[Any]]],
    figures: list[Path],
    maps: Mapping[str, list[list[float]]],
) -> None:
    """Open the run again, add, and leave it in the state in which training left it.

    Raises:
        Resumable: training goes on, or W&B cannot be used.
    """
    from foundation.track.mirror import INIT_SEC, Busy, media, mirror, say
    from foundation.track.tracker import FINISH_SEC

    def give_up() -> None:
        say(f"not everything was taken in time; `wandb sync` uploads what lies in {folder / 'wandb'}")
        os._exit(EXIT_RESUMABLE)

    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_X_DISABLE_STATS"] = "true"  # `system` is of the training, not of this process
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())  # where W&B keeps what `wandb sync` will upload of a table
    with tempfile.TemporaryDirectory() as scratch:
        drawn = {method: Path(scratch) / f"map-{place}.png" for place, method in enumerate(maps)}
        highest = max((max(map(max, counts)) / sum(map(sum, counts)) for counts in maps.values()), default=0.0)
        for method, path in drawn.items():
            draw_map(maps[method], method, highest, path)
        images = {"eval/figures": of_one_size(figures, Path(scratch)), "eval/torsion_maps": drawn}
        limit = threading.Timer(PATIENCE_SEC + INIT_SEC + FINISH_SEC, give_up)
        limit.daemon = True
        limit.start()
        try:
            mirror(
                folder,
                mode,
                project,
                came=lambda seconds: True,
                ended_well=lambda: reached_its_end(folder),
                at_the_end=lambda run: run.summary.update({**numbers, **media({"eval/metrics": table}, images)}),
                patience_sec=PATIENCE_SEC,
            )
        except Busy:
            raise Resumable(f"training of {folder} goes on; attach the evaluation when it has ended") from None
        except Exception as error:
            text = next(iter(str(error).splitlines()), "")
            raise Resumable(f"W&B cannot be used ({type(error).__name__}: {text}); results.json has everything") from None
        finally:
            limit.cancel()


def reached_its_end(folder: Path) -> bool:
    """Whether training has done all its steps; W&B is told that the run is finished only then."""
    from foundation.track.mirror import read_object
    from foundation.track.tracker import read_metrics

    train = read_object(folder / "config.json").get("train")
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl")]
    return isinstance(train, dict) and bool(steps) and steps[-1] >= train.get("num_steps", float("inf"))


if __name__ == "__main__":
    run(app)
