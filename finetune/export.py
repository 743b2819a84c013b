"""Give what finetune.property --adapter lora has trained to others: `python -m finetune.export --model runs/egc --out weights/egc`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    from foundation.train.snapshot import TrainState

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CARD = "card.md"


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="folder of finetune.property, trained with --adapter lora or full")],
    out: Annotated[Path, typer.Option(help="folder that is made here")],
    member: Annotated[int, typer.Option(help="which of the networks, counted from 0")] = 0,
    checkpoint: Annotated[
        str | None, typer.Option(help="the pretrained model it was trained on, where it is no longer at the place named then")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and stop, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out")] = False,
) -> None:
    """The pretrained model with one network's adapters added to its weights, as a checkpoint, and the adapters alone beside it.

    --checkpoint of the other commands takes --out: model.safetensors holds the sums in fp32. adapter.json and adapter.safetensors are for
    finetune.lora.load_adapter. Heads stay where they are. Exit 0 done, 2 bad input.
    """
    import torch

    from finetune.predictor import Encoder
    from finetune.stream import Ready
    from foundation.errors import InputError
    from foundation.release import check_out
    from foundation.train import released

    check_out(out, overwrite)
    ready = Ready(model, checkpoint)
    settings, networks = ready.saved.predictor.settings, ready.saved.predictor.networks
    if settings.adapter == "none":
        raise InputError(f"--model {model} was trained with --adapter none and changed nothing; train it with --adapter lora")
    if not 0 <= member < len(networks):
        raise InputError(f"member {member} must be >= 0 and < {len(networks)}, the networks of {model}; change --member")
    if dry_run:
        print(f"network {member} of {model}, adapter {settings.adapter}; dry run: nothing was written to {out}")
        return
    Encoder(ready.tuned, (), torch.device("cpu")).load(networks[member].adapted)
    files, weights, facts = _adapter(ready.tuned, settings.adapter, ready.saved.weights, settings.rank)
    facts |= {"task": ready.saved.task.title, "model": str(model), "member": member, "base": ready.saved.weights}
    facts |= {"checkpoint": checkpoint or ready.saved.checkpoint, "epoch": networks[member].epoch, "valid": networks[member].valid}
    files[CARD] = card(facts).encode()
    sha256 = released.write(out, weights, state_of(facts["checkpoint"]), lambda _, __: files)
    print(f"exported: {out}, {facts['trained']} of {facts['parameters']} parameters were trained, sha256 {sha256[:16]}")


def _adapter(tuned: Any, kind: str, base: str, rank: int) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
    """Files of the adapters alone, weights with them added, and numbers for the card."""
    from finetune.lora import SETTINGS, WEIGHTS, LoraSettings, adapter_weights, linear_layers, merge, save_adapter
    from finetune.network import PATHS

    trained = sum(own.numel() for own in tuned.parameters() if own.requires_grad)
    files: dict[str, bytes] = {}
    if kind == "lora":
        factors = adapter_weights(tuned)
        targets = tuple(dict.fromkeys(name.partition(".lora_")[0] for name in factors))
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(Path(folder), tuned, LoraSettings(rank=rank, alpha=2.0 * rank, targets=targets, base=base))
            files = {name: (Path(folder) / name).read_bytes() for name in (SETTINGS, WEIGHTS)}
        merge(tuned)
    parameters = sum(own.numel() for own in tuned.parameters())
    parts = len(linear_layers(tuned, PATHS))
    return files, dict(tuned.state_dict()), {"kind": kind, "rank": rank, "trained": trained, "parameters": parameters, "layers": parts}


def state_of(checkpoint: str) -> TrainState:
    """Where a pretrained model stood."""
    from foundation.train import released
    from foundation.train.checkpoint import opened, read_state
    from foundation.train.snapshot import TrainState, read_json

    folder = released.folder_of(checkpoint)
    if folder is None:
        with opened(checkpoint) as newest:
            return read_state(newest)
    facts = read_json(folder / released.CONFIG)
    step, seen = int(facts["step"]), int(facts["samples_seen"])
    return TrainState(step, seen, 0, facts["fingerprint"], facts["config"], {"versions": facts["versions"]})


def card(facts: dict[str, Any]) -> str:
    """What this checkpoint is, in Markdown."""
    low_rank = f"low-rank adapters of rank {facts['rank']} on {facts['layers']} linear layers" if facts["kind"] == "lora" else "all weights"
    return "\n".join(
        [
            f"# A pretrained model adapted to {facts['task']}",
            "",
            "Made by `python -m finetune.export`. `--checkpoint` of the other commands takes this folder.",
            "",
            "| | |",
            "|---|---|",
            f"| adapted by | `{facts['model']}`, network {facts['member']}, epoch {facts['epoch']} |",
            f"| error on its validation part | {facts['valid']:.3f} standard deviations of the property |",
            f"| what was trained | {low_rank} of what reads a polymer without its shape:"
            f" {facts['trained']} of {facts['parameters']} parameters |",
            f"| pretrained model | {facts['checkpoint']}, sha256 `{facts['base']}` |",
            "",
            "What makes shapes (the 3-D encoder and the diffusion heads) is as it was. Conformations of this model are conditioned on"
            " vectors that moved, and have not been evaluated: generate with the pretrained model.",
            "",
        ]
    )


if __name__ == "__main__":
    run(app)
