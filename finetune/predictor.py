"""What predicts a property of a polymer: a Gaussian process, neural heads and trees on the same inputs, weighted (stacking.py).

Everything here is fitted to labels of a training fold: scales, kernels, weights, and when training stops. Values are standardised inside;
a prediction is in the unit of the task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune import gaussian
from finetune.gaussian import Posterior
from finetune.network import Fitted, NetworkSettings, fit_network, predict_network
from finetune.polymers import Polymers, Scaler
from finetune.splits import validation_part
from finetune.stacking import stack
from finetune.trees import Trees, grow

Rows = NDArray[np.int64]
HEADS = ("gp", "network", "trees")
LOUD = 4.0  # times a deviation: levels are few among thousands of inputs of a network


@dataclass(frozen=True)
class Settings:
    """What is fitted.

    Attributes:
        heads: of HEADS.
        adapter: none: the pretrained model stays as it is; lora: adapters are trained with the network; full: all of it is.
        rank: of adapters.
        members: networks, and sets of trees, each with a validation part and a seed of its own.
        conformations: generated of each polymer and embedded beside its graph; they are averaged.
        network: how they are trained.
    """

    heads: tuple[str, ...] = HEADS
    adapter: str = "none"
    rank: int = 4
    members: int = 3
    conformations: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)

    @classmethod
    def parse(cls, facts: Mapping[str, Any]) -> Settings:
        """From what dataclasses.asdict made of one."""
        return cls(**{**facts, "heads": tuple(facts["heads"]), "network": NetworkSettings(**facts["network"])})


@dataclass(frozen=True)
class Scales:
    """Of inputs and values, from a training fold.

    Attributes:
        vectors: of each input that is a vector.
        mean, deviation: (T,) of the learned values of each property.
    """

    vectors: dict[str, Scaler]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def inputs(self, polymers: Polymers, rows: Rows) -> dict[str, torch.Tensor]:
        """Of a Gaussian process: (R, .) float64."""
        own = {name: torch.from_numpy(self.vectors[name](x)) for name, x in polymers.vectors(rows).items()}
        return {"counts": torch.from_numpy(polymers.densities(rows)), **own}

    def others(self, polymers: Polymers, rows: Rows) -> torch.Tensor:
        """Of a network besides the embedding: (R, F) float32, descriptors, levels and logarithms of counts."""
        own = polymers.vectors(rows)
        described, levels = (self.vectors[name](own[name]) for name in ("descriptors", "levels"))
        counted = np.log1p(np.maximum(polymers.features.counts[rows], 0))
        return torch.from_numpy(np.concatenate([described, LOUD * levels, counted], axis=1).astype(np.float32))


@dataclass(frozen=True)
class Prediction:
    """Of R polymers.

    Attributes:
        value: (R,) in the unit of learned values.
        spread: (R,) positive, what the heads say of their own error; not calibrated.
        of_head: (R,) of each kind of head alone.
    """

    value: NDArray[np.float64]
    spread: NDArray[np.float64]
    of_head: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Predictor:
    """Fitted heads.

    Attributes:
        settings: as fitted.
        scales: of inputs and values.
        posterior: of the Gaussian process, or None.
        networks: fitted, or none.
        trees: grown, or none.
        valid: error of each kind of head on polymers that it was not fitted to, standardised.
        weights: of the kinds of heads.
    """

    settings: Settings
    scales: Scales
    posterior: Posterior | None
    networks: tuple[Fitted, ...]
    trees: tuple[Trees, ...]
    valid: dict[str, float]
    weights: dict[str, float]

    def predict(self, polymers: Polymers, rows: Rows, encoder: Encoder | None = None) -> Prediction:
        """Values of polymers.

        Args:
            polymers, rows: which.
            encoder: of the pretrained model, reading these very polymers, where adapters were trained.
        """
        found: dict[str, NDArray[np.float64]] = {}
        spread = np.full(len(rows), sum(self.weights[name] * error for name, error in self.valid.items()))
        if self.posterior is not None:
            mean, deviation = self.posterior.predict(self.scales.inputs(polymers, rows))
            found["gp"], spread = mean.numpy(), deviation.numpy()
        if self.networks:
            others, batch, every = self.scales.others(polymers, rows), self.settings.network.batch, np.arange(len(rows))
            each = (predict_network(one.head, self._encode(polymers, rows, one, encoder), others, every, batch) for one in self.networks)
            found["network"] = np.mean([own[:, 0].double().numpy() for own in each], axis=0)
        if self.trees:
            x = for_trees(polymers, rows)
            found["trees"] = np.mean([one.predict(x) for one in self.trees], axis=0)
        own = np.sum([self.weights[name] * value for name, value in found.items()], axis=0)
        apart = np.sum([self.weights[name] * (value - own) ** 2 for name, value in found.items()], axis=0)
        scale, shift = self.scales.deviation[0], self.scales.mean[0]
        values = {name: shift + scale * value for name, value in found.items()}
        return Prediction(shift + scale * own, scale * np.sqrt(spread**2 + apart), values)

    def _encode(self, polymers: Polymers, rows: Rows, one: Fitted, encoder: Encoder | None) -> Callable[[Rows], torch.Tensor]:
        scaler = self.scales.vectors["embedding"]
        if encoder is None:
            table = torch.from_numpy(scaler(polymers.embedding[rows]).astype(np.float32))
            return lambda chosen: table[chosen]
        encoder.load(one.adapted)
        return encoder.scaled(scaler)


class Encoder:
    """The pretrained model with what of it is trained, reading polymers by row.

    Args:
        model: objective, already with adapters where there are any.
        units: (P,) repeat units.
        device: of the model.
    """

    def __init__(self, model: Any, units: Sequence[Any], device: torch.device) -> None:
        from foundation.sampling.embedding import graph_condition

        self.model, self.device = model, device
        self.conditions = [graph_condition(unit) for unit in units]
        self.start = {name: own.detach().clone() for name, own in model.named_parameters() if own.requires_grad}

    def part(self, chosen: Rows) -> Encoder:
        """The same model reading some of the polymers, which are then counted from 0."""
        other = copy.copy(self)
        other.conditions = [self.conditions[k] for k in chosen]
        return other

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Trained weights by name; without any, those it came with."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in (weights or self.start).items():
                own[name].copy_(value)

    def scaled(self, scaler: Scaler) -> Callable[[Rows], torch.Tensor]:
        """Standardised embeddings, with a gradient, of polymers by place."""
        from foundation.data.collate import collate_conditions

        mean, factor = (torch.tensor(own, dtype=torch.float32) for own in (scaler.mean, scaler.factor))

        def encode(chosen: Rows) -> torch.Tensor:
            given = collate_conditions([self.conditions[k] for k in chosen]).to(self.device)
            return (self.model.embed(given).chain.float().cpu() - mean) * factor

        return encode


def fit(
    polymers: Polymers,
    rows: Rows,
    y: NDArray[np.float64],
    groups: Sequence[str],
    settings: Settings,
    seed: int,
    encoder: Encoder | None = None,
) -> Predictor:
    """Fit all heads to a training fold.

    Args:
        polymers: inputs.
        rows: (N,) of the training fold in polymers; a polymer is named once.
        y: (N, T) learned values, NaN where there is none; column 0 is the property.
        groups: (N,) canonical names, which decide the validation parts.
        settings: what is fitted.
        seed: of everything that is drawn.
        encoder: reading these very polymers, where adapters or the whole model are trained.
    """
    scales = Scales(
        {name: Scaler.of(x) for name, x in polymers.vectors(rows[~np.isnan(y[:, 0])]).items()},
        np.nanmean(y, axis=0),
        np.maximum(np.nanstd(y, axis=0), 1e-12),
    )
    standard = (y - scales.mean) / scales.deviation
    own = np.flatnonzero(~np.isnan(y[:, 0]))
    parts = [validation_part(groups, own, seed=seed * 1000 + member)[1] for member in range(settings.members)]
    held: dict[str, list[NDArray[np.float64]]] = {name: [] for name in settings.heads}
    posterior = None
    if "gp" in settings.heads:
        x, labels = scales.inputs(polymers, rows[own]), torch.from_numpy(standard[own, 0])
        posterior = gaussian.fit(x, labels, seed)
        if len(settings.heads) > 1:
            held["gp"] = [_without(posterior, labels, np.isin(own, part), seed) for part in parts]
    networks = []
    if "network" in settings.heads:
        others, size = scales.others(polymers, rows), polymers.features.atoms[rows]
        table = torch.from_numpy(scales.vectors["embedding"](polymers.embedding[rows]).astype(np.float32))
        values = torch.from_numpy(standard.astype(np.float32))
        for member, part in enumerate(parts):
            train = np.setdiff1d(np.arange(len(rows)), part)
            if encoder is not None:
                encoder.load({})
            encode = (lambda chosen: table[chosen]) if encoder is None else encoder.scaled(scales.vectors["embedding"])
            model, drawn = None if encoder is None else encoder.model, seed * 1000 + member
            made = fit_network(encode, model, others, values, size, train, part, table.shape[1], settings.network, drawn)
            networks.append(made)
            held["network"].append(predict_network(made.head, encode, others, part, settings.network.batch)[:, 0].double().numpy())
    grown = []
    if "trees" in settings.heads:
        read, target = for_trees(polymers, rows), standard[:, 0]
        for member, part in enumerate(parts):
            train = np.setdiff1d(own, part)
            grown.append(grow(read[train], target[train], read[part], target[part], seed * 1000 + member, torch.get_num_threads()))
            held["trees"].append(grown[-1].valid)
    weights, valid = {name: 1.0 for name in settings.heads}, {}
    truth = np.concatenate([standard[part, 0] for part in parts])
    told = {name: np.concatenate(said) for name, said in held.items() if said}
    if told:
        valid = {name: float(np.sqrt(np.mean((said - truth) ** 2))) for name, said in told.items()}
        weights = dict(zip(told, stack(np.stack(list(told.values()), axis=1), truth).tolist(), strict=True))
    return Predictor(settings, scales, posterior, tuple(networks), tuple(grown), valid, weights)


def for_trees(polymers: Polymers, rows: Rows) -> NDArray[np.float32]:
    """(R, .) what trees read: counts, descriptors, shape, levels. Embeddings make them worse."""
    return np.concatenate([polymers.features.matrix(rows), polymers.features.levels[rows]], axis=1)


def _without(posterior: Posterior, labels: torch.Tensor, part: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """What a process of the same kernel says of some of its polymers when it does not know their labels."""
    keep, out = np.flatnonzero(~part), np.flatnonzero(part)
    x = {name: own[keep] for name, own in posterior.x.items()}
    known = gaussian.condition(posterior.process, x, labels[keep], seed)
    with torch.no_grad():
        return np.asarray(known.mean({name: own[out] for name, own in posterior.x.items()}).numpy())


__all__ = ["HEADS", "LOUD", "Encoder", "Prediction", "Predictor", "Scales", "Settings", "fit", "for_trees"]
