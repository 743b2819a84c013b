"""The straightforward way of a training step, which benchmarks.objectives times ours against.

One chain a step, units padded to the largest of the shards, masked units carried along, every head on every unit, single precision.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.setting import finish, model_of
from data_shards.mixture import Mixture
from foundation.batch import Batch, to_dense
from foundation.config import TrainConfig
from foundation.data.collate import build_batch
from foundation.data.order import MicroBatch
from foundation.objectives.base import LossOut
from foundation.objectives.polyconfm import model as model_file
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.objectives.polyconfm.view import UnitView
from foundation.recipes import get_recipe
from foundation.train.optim import build_optimizer
from foundation.train.rng import generator


def straightforward_loss(model: PolyConFM, batch: Batch, rng: torch.Generator) -> LossOut:
    """The same loss with everything computed: masked units stay in the trunk as hidden keys, the local head runs on every unit.

    With every unit masked it equals PolyConFM.loss to rounding, noise included; otherwise it draws more noise and is as good a sample.
    """
    config, device = model.config, batch.chain_ptr.device
    mask = model_file.draw_mask(batch, config.full_mask_fraction, config.low_mask_fraction, rng)
    dropped = torch.rand(batch.num_chains, generator=rng, device=device) < config.label_dropout
    known = model.know(batch, dropped)
    x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    everything = torch.ones_like(mask)
    view = UnitView.of(batch, known.graphs, everything)
    tokens = model.fill_tokens(known, everything, model.encode_units(x_unit, view))
    context, memory = model.trunk.encode(tokens, known.klass, batch, ~mask, dense=True)
    z = model.trunk.decode(context, memory, known.query, batch, ~mask)
    total, count = model.local_head.loss(x_unit, view, z, rng)
    zeros, chain = x_unit.new_zeros(batch.num_chains), batch.unit_chain
    local = zeros.index_add(0, chain, total * mask) / zeros.index_add(0, chain, count * mask).clamp(min=1)
    context, _ = model.trunk.encode(tokens, known.klass, batch, everything)
    graphs = replace(known.graphs, atoms=known.graphs.atoms.detach())
    orientation = model.orientation_head.loss(batch, batch.world_from_unit, x_unit, batch.link_dihedral_rad, context.detach(), graphs, rng)
    per_chain = local + config.orientation_weight * orientation
    return LossOut(per_chain.mean(), {}, per_chain.detach())


def against_straightforward(
    recipe: str, shards: Mixture, plan: list[MicroBatch], read: list[Batch], device: torch.device
) -> dict[str, float]:
    """Seconds a chain of both ways, one micro-batch of ours and its chains one by one in turns."""
    model = model_of(recipe, device)
    widest = max(entry.atoms_per_unit for entry in shards.samples("train")[0])
    seeds = iter(range(1_000_000))

    def step(loss: Callable[[Batch, torch.Generator], LossOut], batch: Batch) -> float:
        rng = generator(next(seeds), device)
        began = time.perf_counter()
        loss(batch, rng).loss.backward()
        finish(device)
        model.zero_grad()
        return time.perf_counter() - began

    def plainly(batch: Batch, rng: torch.Generator) -> LossOut:
        return straightforward_loss(model, batch, rng)

    ours, theirs, unpadded = [], [], []
    for micro, batch in zip(plan, read, strict=True):
        ours.append(step(model.loss, batch) / batch.num_chains)
        some = list(zip(micro.samples, micro.conformations, strict=True))[:: max(1, len(micro.samples) // 4)]
        share = batch.num_chains / len(some)
        for index, conformation in some:
            sample = shards.sets[micro.source].read(shards.samples("train")[micro.source][index])
            single = build_batch([sample], [conformation], [index]).to(device)
            unpadded.append(step(plainly, single) * share)
            theirs.append(step(plainly, widened(single, widest)) * share)
    chains = sum(batch.num_chains for batch in read)
    run = get_recipe(recipe)
    atoms = run.data.token_budget * run.train.micro_batches_per_step
    chains_per_step = atoms * chains / sum(len(batch.x_unit_ang) for batch in read)
    update = update_seconds(model, run.train, read[0])
    mine = sum(sec * batch.num_chains for sec, batch in zip(ours, read, strict=True)) / chains
    straightforward, without_padding = sum(theirs) / chains, sum(unpadded) / chains
    return {
        "padded_to_atoms": widest,
        "seconds_per_chain": mine,
        "straightforward_seconds_per_chain": straightforward,
        "straightforward_unpadded_seconds_per_chain": without_padding,
        "ratio": straightforward / mine,
        "ratio_unpadded": without_padding / mine,
        "update_seconds": update,
        "chains_per_step": chains_per_step,
        "ratio_with_update": (straightforward + update) / (mine + update / chains_per_step),
        "ratio_unpadded_with_update": (without_padding + update) / (mine + update / chains_per_step),
        "median_chains": statistics.median(batch.num_chains for batch in read),
    }


def update_seconds(model: PolyConFM, config: TrainConfig, batch: Batch) -> float:
    """Median of clipping and AdamW, the same for both ways."""
    optimizer = build_optimizer(model, config)
    model.loss(batch, generator(0, batch.chain_ptr.device)).loss.backward()
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        finish(batch.chain_ptr.device)
        taken.append(time.perf_counter() - began)
    model.zero_grad()
    return statistics.median(taken)


def widened(batch: Batch, atoms: int) -> Batch:
    """The same chains with dense views of at least so many atoms a unit."""
    moved = batch.torsion_moved
    more = moved.new_zeros(len(moved), max(atoms - moved.shape[1], 0))
    return replace(batch, torsion_moved=torch.cat([moved, more], 1))
