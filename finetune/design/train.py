"""Training of a denoiser: one loop for structures alone and for structures with properties. Stopped at any step, it goes on from the last
state that was written; the order of polymers, noise and dropped conditions are functions of the seed and the step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_shards.console import Resumable
from finetune.design.graphs import Graph, Graphs, collate
from finetune.design.network import Asked, Denoiser
from finetune.design.process import STEPS, Prior, noised
from foundation.errors import InputError
from foundation.train import snapshot
from foundation.train.health import StopRequest

STATE = "state.safetensors"
Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainSettings:
    """How a denoiser is trained.

    Attributes:
        steps: of the optimiser.
        pairs: of atoms in a batch, which bounds its time and memory: small units come in large batches.
        lr: after warming up; it falls to a twentieth as a cosine.
        warmup: steps.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, which are those that are used.
        power: of a uniform number that times are drawn by; above 1 there is more to learn from graphs with little noise.
        drop_all: share of polymers of which nothing is told, neither properties nor reference.
        drop_each: share of values that are not told, each by itself.
        drop_reference: share of polymers whose reference is not told.
        every: steps between two states on disk.
    """

    steps: int = 2_000
    pairs: int = 50_000
    lr: float = 6e-4
    warmup: int = 200
    weight_decay: float = 1e-2
    ema: float = 0.999
    power: float = 1.5
    drop_all: float = 0.1
    drop_each: float = 0.2
    drop_reference: float = 0.5
    every: int = 500


@dataclass(frozen=True)
class Material:
    """What is learned from.

    Attributes:
        graphs: of G polymers.
        properties: (G, P) standardised, NaN where unknown.
        references: (G, K, R) standardised embeddings of K other polymers that are like each; K = 0 where there are none.
        weight: (G,) how often each is read in a pass, on average.
    """

    graphs: Sequence[Graph]
    properties: NDArray[np.float32]
    references: NDArray[np.float32]
    weight: NDArray[np.float64]


def order_of(material: Material, settings: TrainSettings, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Batches of a pass: polymers of like size together, as many as their pairs allow, in a random order."""
    rng = np.random.default_rng([seed, 1, epoch])
    whole = np.floor(material.weight).astype(np.int64)
    times = whole + (rng.random(len(whole)) < material.weight - whole)
    rows = np.repeat(np.arange(len(times)), times)
    size = np.array([len(own.atoms) for own in material.graphs])
    rows = rng.permutation(rows)
    batches = packed(rows[np.argsort(size[rows], kind="stable")], size, settings.pairs)
    return [batches[k] for k in rng.permutation(len(batches))]


def packed(rows: NDArray[np.int64], size: NDArray[np.int64], pairs: int) -> list[NDArray[np.int64]]:
    """Rows of increasing size cut into batches of at most so many pairs of atoms, or of one row."""
    batches, start = [], 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * int(size[rows[stop]]) ** 2 <= pairs:
            stop += 1
        batches.append(rows[start:stop])
        start = stop
    return batches


def losses(denoiser: Denoiser, clean: Graphs, asked: Asked, prior: Prior, t: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B,) cross entropies of clean atoms and of clean pairs in nats per atom of a graph, stars not counted among the atoms."""
    atoms, pairs = denoiser(noised(clean, t, prior, rng), t, asked)
    mask = clean.mask.clone()
    both = torch.triu(mask[:, :, None] & mask[:, None], diagonal=1)
    both[:, 0, 1] = False  # two stars are never bonded
    mask[:, :2] = False
    of_atoms = nn.functional.cross_entropy(atoms.transpose(1, 2), clean.atoms, reduction="none") * mask
    of_pairs = nn.functional.cross_entropy(pairs.permute(0, 3, 1, 2), clean.bonds, reduction="none") * both
    return of_atoms.sum(1) / clean.size, of_pairs.sum((1, 2)) / clean.size


def told(material: Material, rows: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator) -> Asked:
    """What is told of polymers while training; a reference is one of the polymers that are like each, never the polymer itself."""
    properties = material.properties[rows].copy()
    nothing = rng.random(len(rows)) < settings.drop_all
    properties[(rng.random(properties.shape) < settings.drop_each) | nothing[:, None]] = np.nan
    number, width = material.references.shape[1:]
    reference = np.full((len(rows), width), np.nan, dtype=np.float32)
    if number:
        given = ~nothing & (rng.random(len(rows)) >= settings.drop_reference)
        reference[given] = material.references[rows[given], rng.integers(number, size=int(given.sum()))]
    return Asked(torch.from_numpy(properties), torch.from_numpy(reference))


def train(
    denoiser: Denoiser,
    material: Material,
    prior: Prior,
    settings: TrainSettings,
    seed: int,
    folder: Path | None = None,
    tell: Log | None = None,
) -> Denoiser:
    """Train, and return the denoiser with its averaged weights, in eval mode.

    Args:
        denoiser: at its start; what is trained further comes with its weights.
        material: polymers.
        prior: of the process.
        settings: how.
        seed: of the order, noise and dropped conditions.
        folder: where states are written and looked for; None: nowhere.
        tell: called after every step with its loss.

    Raises:
        InputError: a loss that is not finite, or a state of other settings.
        Resumable: SIGINT or SIGTERM came, and there is a folder.
    """
    descent = Descent(denoiser, settings)
    step = _restore(folder, denoiser, descent.averaged, descent.optimiser)
    denoiser.train()
    with StopRequest() if folder is not None else nullcontext(StopRequest()) as stop:
        for number, rows in _from(step, material, settings, seed):
            rng = np.random.default_rng([seed, 2, number])
            noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
            asked = told(material, rows, settings, rng)
            clean = collate([material.graphs[k] for k in rows])
            t = torch.from_numpy(np.ceil(STEPS * rng.random(len(rows)) ** settings.power).clip(1, STEPS).astype(np.int64))
            atoms, pairs = losses(denoiser, clean, asked, prior, t, noise)
            loss = (atoms + pairs).mean()
            if not math.isfinite(loss.item()):
                raise InputError(f"the loss is {loss.item()} at step {number}; lower lr {settings.lr:g}")
            descent.step(loss, number)
            if tell is not None:
                tell(number + 1, {"design/loss": loss.item(), "design/atoms": atoms.mean().item(), "design/pairs": pairs.mean().item()})
            done = number + 1
            if folder is not None and (done % settings.every == 0 or done == settings.steps or stop.asked):
                _keep(folder, done, denoiser, descent.averaged, descent.optimiser)
            if stop.asked and done < settings.steps:
                raise Resumable(f"at step {done} of {settings.steps}, whose state is written; the same command continues")
    descent.settle()
    return denoiser.eval()


class Descent:
    """AdamW with the learning rate of each step, gradients cut at length 1, and averaged weights beside.

    Args:
        model: trained in place.
        settings: how.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model, self.settings = model, settings
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.averaged = {name: own.detach().clone() for name, own in model.named_parameters()}

    def step(self, loss: Tensor, number: int) -> None:
        """One update by a loss; the first has the number 0."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * rate(number, self.settings)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.settings.ema, (1 + number) / (10 + number))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.averaged[name].lerp_(parameter, 1 - decay)

    def settle(self) -> None:
        """Give the model its averaged weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.averaged[name])


def rate(step: int, settings: TrainSettings) -> float:
    """Share of the learning rate at a step."""
    away = max(step - settings.warmup, 0) / max(settings.steps - settings.warmup, 1)
    return float(min(1.0, (step + 1) / max(settings.warmup, 1)) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(away, 1.0)))))


def _from(step: int, material: Material, settings: TrainSettings, seed: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(step, rows) from a step to the last."""
    number, epoch = 0, 0
    while number < settings.steps:
        for rows in order_of(material, settings, seed, epoch):
            if step <= number < settings.steps:
                yield number, rows
            number += 1
        epoch += 1


def _keep(folder: Path, step: int, denoiser: Denoiser, averaged: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """One file, which is whole or not there."""
    content = {f"model.{name}": own for name, own in denoiser.state_dict().items()}
    content |= {f"ema.{name}": own for name, own in averaged.items()}
    for k, moments in optimiser.state_dict()["state"].items():
        content |= {f"optimiser.{k}.{name}": torch.as_tensor(own) for name, own in moments.items()}
    content["step"] = torch.tensor(step)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{STATE}.writing"
    snapshot.save_tensors(aside, {name: own.detach().contiguous() for name, own in content.items()})
    os.replace(aside, folder / STATE)


def step_of(folder: Path) -> int:
    """Steps behind the state in a folder, 0 where there is none."""
    return int(snapshot.load_tensors(folder / STATE)["step"]) if (folder / STATE).is_file() else 0


def _restore(folder: Path | None, denoiser: Denoiser, averaged: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    """The step to go on with, 0 where nothing was written."""
    if folder is None or not (folder / STATE).is_file():
        return 0
    content = snapshot.load_tensors(folder / STATE)
    try:
        denoiser.load_state_dict({name.removeprefix("model."): own for name, own in content.items() if name.startswith("model.")})
        for name in averaged:
            averaged[name].copy_(content[f"ema.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, own in content.items():
            if name.startswith("optimiser."):
                _, place, kind = name.split(".")
                moments.setdefault(int(place), {})[kind] = own
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    except (RuntimeError, KeyError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / STATE} is of another model ({why}); pass --overwrite to begin anew") from None
    return int(content["step"])


__all__ = ["STATE", "Descent", "Material", "TrainSettings", "losses", "order_of", "packed", "rate", "step_of", "told", "train"]
