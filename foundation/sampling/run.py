"""Conformations of many chains from one model: batches by an atom budget, one random stream a batch, failures as values."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.batch import Condition, select_chains
from foundation.data.collate import collate_conditions
from foundation.errors import InputError, PolymerError
from foundation.objectives.base import Objective, Samples
from foundation.sampling.request import ChainRequest, chain_condition, plan_batches

OUT_OF_MEMORY = "out of memory"
BATCH_ATOMS = {"cpu": 16_000, "cuda": 20_000}  # progress shows batch by batch


@dataclass(frozen=True)
class GeneratedChain:
    """One conformation, or the reason why there is none.

    Attributes:
        request: index of its request.
        conformation: 0 is the first of its request.
        x_ang: (H, 3) float64 heavy atoms in schema order, or None.
        x_unit_ang: (N, n, 3) unit shapes that the chain was assembled from, or None where the objective has no units.
        reason: None, or why x_ang is None.
        seconds: wall time of its batch / conformations of the batch.
        network_calls: forward passes of the objective's score networks that its batch took; 0 where it names none.
    """

    request: int
    conformation: int
    x_ang: NDArray[np.float64] | None
    x_unit_ang: NDArray[np.float64] | None = None
    reason: str | None = None
    seconds: float = 0.0
    network_calls: int = 0


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        InputError: unknown name, or cuda where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} must be auto, cpu or cuda; change --device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for but this machine shows none; pass --device cpu")
    return torch.device(name)


def generate_chains(
    model: Objective, requests: Sequence[ChainRequest], num: int, seed: int, batch_atoms: int, device: torch.device
) -> Iterator[GeneratedChain]:
    """Conformations in the order (request, conformation).

    The same model, requests, num, seed, batch_atoms and device give the same numbers to the last bit.

    Args:
        model: in eval mode, on the device.
        requests: chains.
        num: conformations of each.
        seed: any integer >= 0.
        batch_atoms: atoms of all units of a batch.
        device: of the model.
    """
    for index, batch in enumerate(plan_batches(requests, num, batch_atoms, model.capabilities.units_at_once)):
        yield from _generate(model, requests, batch, (seed, index), device)


def stream_of(*key: int) -> int:
    """A seed for a torch.Generator from a tuple of integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generate(
    model: Objective, requests: Sequence[ChainRequest], batch: list[tuple[int, int]], key: tuple[int, ...], device: torch.device
) -> list[GeneratedChain]:
    conditions, reasons = _conditions(model, requests, batch)
    usable = [entry for entry in batch if entry[0] in conditions]
    made = iter(_sample(model, requests, usable, conditions, key, device)) if usable else iter(())
    return [next(made) if entry[0] in conditions else GeneratedChain(*entry, None, None, reasons[entry[0]]) for entry in batch]


def _conditions(
    model: Objective, requests: Sequence[ChainRequest], batch: list[tuple[int, int]]
) -> tuple[dict[int, Condition], dict[int, str]]:
    """What the model is told of each request of a batch, or why it cannot be told."""
    conditions: dict[int, Condition] = {}
    reasons: dict[int, str] = {}
    for index in sorted({request for request, _ in batch}):
        try:
            conditions[index] = chain_condition(requests[index], model.capabilities)
        except PolymerError as error:
            reasons[index] = f"{error.reason}: {error.detail}"
    return conditions, reasons


def _sample(
    model: Objective,
    requests: Sequence[ChainRequest],
    batch: list[tuple[int, int]],
    conditions: dict[int, Condition],
    key: tuple[int, ...],
    device: torch.device,
) -> list[GeneratedChain]:
    """One call of the model; a batch that does not fit into memory is halved. Every polymer is described once, then repeated."""
    distinct, place = np.unique([request for request, _ in batch], return_inverse=True)
    packed = collate_conditions([conditions[int(index)] for index in distinct])
    condition = select_chains(packed, torch.from_numpy(place.astype(np.int64))).to(device)
    rng = torch.Generator(device).manual_seed(stream_of(*key))
    began = time.perf_counter()
    try:
        with torch.no_grad(), counted_calls(model) as calls:
            samples = model.sample(condition, 1, rng)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            return [GeneratedChain(*batch[0], None, None, OUT_OF_MEMORY)]
        half = len(batch) // 2
        first = _sample(model, requests, batch[:half], conditions, (*key, 0), device)
        return first + _sample(model, requests, batch[half:], conditions, (*key, 1), device)
    x_ang = samples.x_ang.double().cpu().numpy()  # waits for the device
    cost = (time.perf_counter() - began) / len(batch), len(calls)
    return _unpack(samples, x_ang, condition, requests, batch, cost)


@contextmanager
def counted_calls(model: Any) -> Iterator[list[int]]:
    """A list that grows by one with every forward pass of the objective's score networks."""
    calls: list[int] = []
    hooks = [network.register_forward_hook(lambda *_: calls.append(1)) for network in getattr(model, "score_networks", ())]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _unpack(
    samples: Samples,
    x_ang: NDArray[np.float64],
    condition: Condition,
    requests: Sequence[ChainRequest],
    batch: list[tuple[int, int]],
    cost: tuple[float, int],
) -> list[GeneratedChain]:
    heavy = samples.chain_ptr.tolist()
    x_unit = None if samples.x_unit_ang is None else samples.x_unit_ang.double().cpu().numpy()
    units = condition.atom_ptr[condition.chain_ptr].tolist()
    reasons = {failure.chain: failure.reason for failure in samples.failures}
    chains = []
    for row, (request, conformation) in enumerate(batch):
        place = x_ang[heavy[row] : heavy[row + 1]]
        reason = reasons.get(row)
        if reason is None and len(place) != requests[request].num_heavy_atoms:
            raise AssertionError(f"{len(place)} atoms for a chain of {requests[request].num_heavy_atoms}")
        if reason is None and not np.isfinite(place).all():
            reason = "coordinates are not finite"
        if reason is not None:
            chains.append(GeneratedChain(request, conformation, None, None, reason, *cost))
            continue
        shapes = None if x_unit is None else x_unit[units[row] : units[row + 1]].reshape(requests[request].num_units, -1, 3)
        chains.append(GeneratedChain(request, conformation, place, shapes, None, *cost))
    return chains
