"""Models that an experiment trains itself, by the usual trainer, and their loss on fixed validation batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.experiment import Place
from foundation.config import RunConfig, apply_overrides
from foundation.data.loader import Reading, ValidationBatch, validation_batches
from foundation.errors import InputError
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from foundation.train.rng import generator

NUM_BATCHES = 16  # of a validation


def briefly(place: Place, name: str, steps: int, overrides: Sequence[str]) -> tuple[Path, Any, RunConfig]:
    """Train the configuration of the checkpoint from fresh weights, or go on with a run that was stopped.

    Args:
        place: of the experiment; the run folder is made inside its --out.
        name: of the run folder.
        steps: optimiser steps.
        overrides: key=value.

    Returns:
        Run folder, model in eval mode on the device, configuration.
    """
    fields = [f"train.num_steps={steps}", f"train.checkpoint_every={steps}", f"train.validate_every={steps}", "train.num_val_batches=0"]
    fields += [f"train.seed={place.seed}", "train.checkpoint_store=null", "track.wandb=false", "track.samples_every=0"]
    out = place.out / "runs" / name
    train(apply_overrides(place.config, [*fields, *overrides]), out, place.shards.path)
    model, config = load_model(out)
    return out, model.to(place.device), config


def validation(place: Place) -> list[ValidationBatch]:
    """Fixed batches of the validation split.

    Raises:
        InputError: the shards have none.
    """
    budget = place.config.data.token_budget
    reading = Reading(targets=("descriptors", "levels"))  # which some of the models may have learned
    batches = validation_batches(place.mixture, reading, token_budget=budget, count=NUM_BATCHES, rank=0, world_size=1)
    if not batches:
        raise InputError(f"{place.shards.path} has no polymer in split 'val'; build it with a larger --val-fraction")
    return batches


@torch.no_grad()
def validation_loss(model: Any, batches: Sequence[ValidationBatch], term: str) -> float:
    """Mean of one term of the loss over the chains of the batches, with their fixed noise; NaN where no batch has it."""
    device = next(model.parameters()).device
    total = weight = 0.0
    for fixed in batches:
        terms = model.loss(fixed.batch.to(device), generator(fixed.noise_seed, device)).terms
        if term in terms:
            total += fixed.weight * float(terms[term])
            weight += fixed.weight
    return total / weight if weight else math.nan
