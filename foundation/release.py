"""Write a released checkpoint: `python -m foundation.release --checkpoint runs/small --out foundation/weights/small`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from torch import Tensor

    from foundation.config import RunConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RUN, METRICS = "run.json", "metrics.jsonl"


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Option(help="run folder of foundation.pretrain, or one of its checkpoint folders")],
    out: Annotated[Path, typer.Option(help="folder of the released checkpoint, made here")],
    evaluation: Annotated[Path | None, typer.Option(help="results.json of foundation.evaluate for this checkpoint, for the card")] = None,
    hardware: Annotated[str | None, typer.Option(help="what it was trained on, for the card; by default what the run recorded")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show what would be written, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the released checkpoint in --out")] = False,
) -> None:
    """Averaged weights in bf16, at most 25 MB, with a configuration without paths, a model card, a loss curve and the metrics.

    --checkpoint of the other commands takes --out; foundation/weights/small is what they call small. Exit 0 done, 2 bad input.
    """
    check_out(out, overwrite)
    folder = run_of(checkpoint)

    from foundation.evaluation import card
    from foundation.objectives import build_objective
    from foundation.track.tracker import read_metrics
    from foundation.train import released
    from foundation.train.checkpoint import load_weights, opened, read_state
    from foundation.train.snapshot import read_json

    facts = read_json(folder / RUN)
    with opened(checkpoint) as newest:
        state = read_state(newest)
        config = released.parse_config(state.config)
        module = build_objective(config.objective)
        average = load_weights(newest, module, ema=True)
    weights = released.rounded(average, module)
    released.check_size(weights)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    results, evaluated = (None, "") if evaluation is None else read_evaluation(evaluation, config, average, weights)
    metrics = [row for row in read_metrics(folder / METRICS) if row["step"] <= state.step]
    name = f"{num_parameters} parameters of step {state.step} of {config.recipe}"
    if dry_run:
        print(f"{name}, {released.num_bytes(weights) / 1e6:.2f} MB in bf16, {'with' if results else 'without'} metrics")
        print(f"dry run: nothing was written to {out}")
        return
    polymers = polymers_of(facts, state.fingerprint)
    if not polymers:
        print(f"the shards of this run cannot be read, so {released.POLYMERS} is left out and leaks cannot be checked")
    words = hardware or facts.get("hardware") or f"{facts.get('machine', 'unknown')}, not recorded more exactly"

    def beside(sha256: str, num_bytes: int) -> dict[str, bytes]:
        seen = card.Facts(
            out.name, config, facts, metrics, state.step, state.samples_seen, state.fingerprint,
            num_parameters, num_bytes, sha256, words, results, evaluated,
        )  # fmt: skip
        files = {card.CARD: card.card(seen).encode(), card.CURVE: card.curve(metrics), **polymers}
        return files if results is None else {**files, card.RESULTS: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()}

    sha256 = released.write(out, weights, state, beside)
    print(f"released: {out}, {name}, {(out / released.MODEL).stat().st_size / 1e6:.2f} MB, sha256 {sha256[:16]}")


def check_out(out: Path, overwrite: bool) -> None:
    """The folder is new, or a released checkpoint that may go.

    Raises:
        InputError: taken.
    """
    from foundation.errors import InputError
    from foundation.train.released import CONFIG, MODEL

    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not all((out / name).is_file() for name in (CONFIG, MODEL))):
        raise InputError(f"--out {out} exists and is no released checkpoint; pass another --out")
    if any(out.iterdir()) and not overwrite:
        raise InputError(f"--out {out} holds a released checkpoint; pass --overwrite to replace it, or another --out")


def run_of(checkpoint: Path) -> Path:
    """The run folder of a run or checkpoint folder.

    Raises:
        InputError: there is none.
    """
    from foundation.errors import InputError

    for folder in (checkpoint, checkpoint.resolve().parent.parent):
        if (folder / RUN).is_file():
            return folder
    raise InputError(f"--checkpoint {checkpoint} belongs to no folder with {RUN}; pass a run folder of foundation.pretrain, such as runs/y")


def polymers_of(facts: dict[str, Any], fingerprint: str) -> dict[str, bytes]:
    """polymers.json by name; nothing where the shards of the run are not where they were."""
    from data_shards.reader import open_shards
    from foundation.errors import InputError
    from foundation.train.released import POLYMERS

    if not isinstance(facts.get("shards"), str):
        return {}
    try:
        shards = open_shards(facts["shards"])
    except InputError:
        return {}
    if shards.fingerprint != fingerprint:
        return {}
    splits = [split for split in ("train", "val") if split in shards.manifest.splits]
    found = {split: sorted({entry.group for entry in shards.samples(split)}) for split in splits}
    return {POLYMERS: (json.dumps(found, indent=0) + "\n").encode()}


def read_evaluation(path: Path, config: RunConfig, average: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[dict[str, Any], str]:
    """What the card shows of results.json, and which weights it measured.

    Raises:
        InputError: no results.json of foundation.evaluate, or of other weights.
    """
    from foundation.errors import InputError
    from foundation.evaluation.card import kept
    from foundation.objectives import build_objective
    from foundation.sampling.provenance import weights_fingerprint

    try:
        results = kept(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path} is no results.json of foundation.evaluate ({why}); pass one with --evaluation, or leave it out") from None
    module = build_objective(config.objective)
    for tensors, words in ((average, "measured before the weights were rounded to bf16"), (weights, "measured with these very weights")):
        module.load_state_dict(tensors)  # in fp32, as they are used
        if weights_fingerprint(module) == results["weights_sha256"]:
            return results, words
    raise InputError(
        f"{path} measures other weights (sha256 {str(results['weights_sha256'])[:12]}); evaluate this checkpoint, or leave --evaluation out"
    )


if __name__ == "__main__":
    run(app)
