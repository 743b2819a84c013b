"""A generator for others to start from: `python -m finetune.design.release --model runs/structures --out weights/structures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from finetune.design.saved import Generator

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LARGEST_BYTES = 25_000_000
CARD, RESULTS = "card.md", "results.json"


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="folder of finetune.design --task structures")],
    out: Annotated[Path, typer.Option(help="folder of the released generator, made here")],
    draws: Annotated[int, typer.Option(help="polymers that are drawn and judged for the card")] = 500,
    seed: Annotated[int, typer.Option(help="of these")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show what would be written, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in --out")] = False,
) -> None:
    """Weights in bf16, names of the polymers seen, and a card with what was drawn. No polymer of the training data is written.

    finetune.design begins from --out by --start; by default it begins from foundation/weights/structures, where that is there. Exit 0 done,
    2 bad input.
    """
    from dataclasses import replace

    import torch

    from data_shards.manifest import write_atomic
    from data_shards.progress import progress
    from finetune.design.job import GENERATOR
    from finetune.design.saved import Known, load_generator, save_generator
    from foundation.errors import InputError
    from foundation.sampling.provenance import provenance, write_json
    from foundation.sampling.request import check_numbers

    check_numbers(draws=draws)
    if not (model / GENERATOR).is_dir():
        raise InputError(f"--model {model} holds no folder {GENERATOR}; pass a folder that finetune.design has finished")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise InputError(f"--out {out} exists; pass --overwrite to replace it, or another --out")
    made = load_generator(model / GENERATOR)
    if made.tasks:
        names = ", ".join(task.name for task in made.tasks)
        raise InputError(f"--model {model} knows {names}, and its polymers with their values; release a generator of --task structures")
    with torch.no_grad():
        for own in made.denoiser.parameters():
            own.copy_(own.to(torch.bfloat16))  # what is judged is what is released
    number = sum(own.numel() for own in made.denoiser.parameters())
    if 2 * number > LARGEST_BYTES:
        raise InputError(f"the weights take {2 * number / 1e6:.1f} MB in bf16, at most {LARGEST_BYTES / 1e6:g} MB are released")
    if dry_run:
        print(f"{number} parameters, {2 * number / 1e6:.2f} MB in bf16, {len(made.seen)} polymers seen; nothing was written to {out}")
        return
    found = judged(made, draws, seed, progress())
    facts = {**provenance(None, None), "parameters": number, "polymers": len(made.seen), **_training(model), "drawn": found}
    save_generator(replace(made, known=Known.none(0)), out, half=True)
    write_json(out / RESULTS, facts)
    write_atomic(out / CARD, card(facts).encode())
    print(f"{out}: {2 * number / 1e6:.2f} MB; {found['valid']:.1%} of {draws} draws are polymers; card: {out / CARD}")


def judged(made: Generator, draws: int, seed: int, bars: Any) -> dict[str, Any]:
    """Quality of draws without any wish."""
    import numpy as np

    from finetune.design.drawing import Wishes, draw_polymers
    from finetune.design.evaluate import judge, quality
    from finetune.design.guide import synthetic_accessibility
    from finetune.design.sample import SampleSettings

    wishes = Wishes(np.zeros((draws, 0)), np.zeros((draws, 0), dtype=np.float32))
    outcomes = draw_polymers(made, wishes, SampleSettings(guidance=1.0), seed, bars)
    found = judge([own.psmiles for own in outcomes], [own.reason for own in outcomes])
    polymers = [text for text in found.psmiles if text]
    own = quality(found, made.seen, polymers)
    own["plain"] = float(np.mean([one.plain for one in outcomes]))
    own["accessibility"] = float(synthetic_accessibility(polymers).mean()) if polymers else None
    del own["fragments"]  # of what was drawn with itself
    reasons = [one.reason for one in outcomes if one.reason]
    return {**own, "reasons": {name: reasons.count(name) for name in sorted(set(reasons))}, "examples": polymers[:12]}


def _training(model: Path) -> dict[str, Any]:
    """Steps and the loss of the last hundred of them, as far as the run's files say."""
    try:
        lines = (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [float(json.loads(line)["design/loss"]) for line in lines[-100:]]
        return {"steps": int(json.loads(lines[-1])["step"]), "loss": sum(losses) / len(losses)}
    except (OSError, ValueError, KeyError, IndexError):
        return {"steps": None, "loss": None}


def card(facts: dict[str, Any]) -> str:
    """What it is, how it was made, what it draws, what it is not for."""
    own = facts["drawn"]
    reasons = ", ".join(f"{number} {name}" for name, number in own["reasons"].items()) or "none"
    trained = "" if facts["loss"] is None else f" for {facts['steps']} steps (loss {facts['loss']:.3f} nats an atom over the last hundred)"
    examples = "\n".join(f"- `{text}`" for text in own["examples"])
    return f"""# A generator of repeat units

A discrete diffusion model of repeat-unit graphs ([how it works](../../../docs/inverse_design.md)), {facts["parameters"]:,} parameters
in bf16. `finetune.design` begins from it; it knows no property.

Trained on {facts["polymers"]:,} polymers{trained}.
`seen.json` names them by the hash of their canonical P-SMILES; no polymer of the training data is part of this folder.

| of {own["drawn"]} draws, guidance 1 | |
|---|---:|
| polymers | {own["valid"] * own["stars"]:.1%} |
| polymers with every atom and bond drawn by itself | {own["plain"]:.1%} |
| distinct, of polymers | {own["unique"]:.1%} |
| not in training, of polymers | {own["novel"]:.1%} |
| internal diversity | {own["diversity"]:.3f} |
| synthetic accessibility, mean (1 easy, 10 hard) | {own["accessibility"]:.2f} |

No polymers: {reasons}. The first drawn:

{examples}

Not for: polymers with more than 60 heavy atoms a unit, ladder polymers, multiple bonds between units, stereochemistry. What it draws is
plausible to a small network, not to a chemist: predict properties and look before you believe.

Commit {str(facts["commit"])[:10]}, versions {facts["versions"]}. Licence: as the project.
"""


if __name__ == "__main__":
    run(app)
