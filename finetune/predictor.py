"""What predicts a property of a polymer: a Gaussian process and neural heads on the same inputs, averaged.

Everything here is fitted to labels of a training fold: scales, kernels, weights, and when training stops. Values are standardised inside;
a prediction is in the unit of the task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
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

Rows = NDArray[np.int64]
HEADS = ("gp", "network")


@dataclass(frozen=True)
class Settings:
    """What is fitted.

    Attributes:
        heads: of HEADS, averaged.
        adapter: none: the pretrained model stays as it is; lora: adapters are trained with the network; full: all of it is.
        rank: of adapters.
        members: networks, each with a validation part and a seed of its own.
        conformations: generated of each polymer and embedded beside its graph; they are averaged.
        network: how they are trained.
    """

    heads: tuple[str, ...] = HEADS
    adapter: str = "none"
    rank: int = 4
    members: int = 3
    conformations: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)


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
        """Of a network besides the embedding: (R, F) float32, descriptors and logarithms of counts."""
        described = self.vectors["descriptors"](polymers.vectors(rows)["descriptors"])
        counted = np.log1p(np.maximum(polymers.features.counts[rows], 0))
        return torch.from_numpy(np.concatenate([described, counted], axis=1).astype(np.float32))


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
    """

    settings: Settings
    scales: Scales
    posterior: Posterior | None
    networks: tuple[Fitted, ...]

    def predict(self, polymers: Polymers, rows: Rows, encoder: Encoder | None = None) -> Prediction:
        """Values of polymers.

        Args:
            polymers, rows: which.
            encoder: of the pretrained model, reading these very polymers, where adapters were trained.
        """
        found, spreads = {}, []
        if self.posterior is not None:
            mean, deviation = self.posterior.predict(self.scales.inputs(polymers, rows))
            found["gp"] = mean.numpy()
            spreads.append(deviation.numpy())
        if self.networks:
            others = self.scales.others(polymers, rows)
            each = []
            for one in self.networks:
                encode = self._encode(polymers, rows, one, encoder)
                each.append(
                    predict_network(one.head, encode, others, np.arange(len(rows)), self.settings.network.batch)[:, 0].double().numpy()
                )
            found["network"] = np.mean(each, axis=0)
            if not spreads:
                valid = float(np.mean([one.valid for one in self.networks]))
                spreads.append(np.sqrt(np.var(each, axis=0) + valid**2))
        own = np.mean(list(found.values()), axis=0)
        apart = np.std(list(found.values()), axis=0)
        scale, shift = self.scales.deviation[0], self.scales.mean[0]
        values = {name: shift + scale * value for name, value in found.items()}
        return Prediction(shift + scale * own, scale * np.sqrt(spreads[0] ** 2 + apart**2), values)

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

        flat = scaler.deviation <= 1e-9 * (1 + np.abs(scaler.mean))
        mean = torch.tensor(scaler.mean, dtype=torch.float32)
        factor = torch.tensor(np.where(flat, 0.0, 1 / np.where(flat, 1.0, scaler.deviation)), dtype=torch.float32)

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
    heard: Callable[[str], None] | None = None,
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
        heard: told what is going on.
    """
    scales = Scales(
        {name: Scaler.of(x) for name, x in polymers.vectors(rows[~np.isnan(y[:, 0])]).items()},
        np.nanmean(y, axis=0),
        np.maximum(np.nanstd(y, axis=0), 1e-12),
    )
    standard = (y - scales.mean) / scales.deviation
    posterior = None
    if "gp" in settings.heads:
        own = ~np.isnan(standard[:, 0])
        posterior = gaussian.fit(scales.inputs(polymers, rows[own]), torch.from_numpy(standard[own, 0]), seed)
    networks = []
    if "network" in settings.heads:
        others = scales.others(polymers, rows)
        labels, own = torch.from_numpy(standard.astype(np.float32)), np.flatnonzero(~np.isnan(y[:, 0]))
        table = torch.from_numpy(scales.vectors["embedding"](polymers.embedding[rows]).astype(np.float32))
        for member in range(settings.members):
            _, valid = validation_part(groups, own, seed=seed * 1000 + member)
            train = np.setdiff1d(np.arange(len(rows)), valid)
            if encoder is not None:
                encoder.load({})
            encode = (lambda chosen: table[chosen]) if encoder is None else encoder.scaled(scales.vectors["embedding"])
            model = None if encoder is None else encoder.model
            told = None if heard is None else (lambda epoch, loss, error: heard(f"epoch {epoch} loss {loss:.3f} valid {error:.3f}"))
            size = polymers.features.atoms[rows]
            networks.append(
                fit_network(encode, model, others, labels, size, train, valid, table.shape[1], settings.network, seed * 1000 + member, told)
            )
    return Predictor(settings, scales, posterior, tuple(networks))


__all__ = ["HEADS", "Encoder", "Prediction", "Predictor", "Scales", "Settings", "fit"]
