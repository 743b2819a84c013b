"""Polymers as the numbers that heads read: environments, descriptors, size, levels, and what the pretrained model says of them.

Everything here is a function of the smallest repeat unit without stereo marks, so every way of writing a polymer gives the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from data_shards.manifest import write_atomic
from data_shards.progress import Progress
from data_shards.schema import UnitTopology
from finetune.fingerprints import NUMBERS, Features, Refused, features
from foundation.errors import InputError, PolymerError

if TYPE_CHECKING:
    import torch

CUT = 5.0  # standard deviations; what lies farther out is taken to lie here


@dataclass(frozen=True)
class Polymers:
    """K polymers, row by row.

    Attributes:
        features: environments, descriptors, size and levels of the unit; kept counts rows of what was asked for.
        embedding: (K, D) float32 of the pretrained model.
    """

    features: Features
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.embedding)

    def subset(self, rows: NDArray[np.integer]) -> Polymers:
        """Some of them, in the order given."""
        own = self.features
        numbers = {name: getattr(own, name)[rows] for name in NUMBERS}
        return Polymers(Features.of(np.arange(len(rows)), numbers, ()), self.embedding[rows])

    def vectors(self, rows: NDArray[np.integer] | slice = slice(None)) -> dict[str, NDArray[np.float64]]:
        """(R, .) descriptors with sizes, levels, both NaN where there is none, and the embedding."""
        own = self.features
        sizes = own.shape[rows].astype(np.float64)
        described = np.concatenate([own.descriptors[rows], sizes, np.log(sizes[:, :2])], axis=1)
        return {
            "descriptors": described,
            "levels": own.levels[rows].astype(np.float64),
            "embedding": self.embedding[rows].astype(np.float64),
        }

    def densities(self, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.float64]:
        """(R, bits) environments per heavy atom of the unit."""
        own = self.features
        found: NDArray[np.float64] = own.counts[rows] / np.maximum(own.shape[rows, :1], 1.0).astype(np.float64)
        return found


@dataclass(frozen=True)
class How:
    """Who reads polymers.

    Attributes:
        device: of the models.
        batch_atoms: atoms of all units of a batch.
        workers: for features, as `crew`.
        bars: where progress is shown.
        conformations: of each polymer that a model generates and embeds, beside the embedding of its graph; they are averaged.
    """

    device: torch.device
    batch_atoms: int
    workers: int | None
    bars: Progress
    conformations: int = 0


def read_polymers(psmiles: Sequence[str], models: Mapping[str, Any], how: How) -> dict[str, Polymers]:
    """What heads read of polymers, of each model by its name; polymers without it are refused with a reason.

    Args:
        psmiles: any spelling.
        models: objectives in eval mode on the device; features are the same for all.
        how: the work is done.
    """
    from foundation.sampling.embedding import embed_graphs

    found = _readable(features(psmiles, how.workers, how.bars), psmiles)
    parts = {name: [embed_graphs(model, found.units, how.batch_atoms, how.device, how.bars)] for name, model in models.items()}
    if how.conformations and len(found.units):
        for name, model in models.items():
            parts[name].append(_shapes(found.units, model, how))
    vectors = {name: np.concatenate(own, axis=1) for name, own in parts.items()}
    there = np.logical_and.reduce([np.isfinite(own).all(axis=1) for own in vectors.values()])
    lost = [Refused(int(k), psmiles[k], "the model made no conformation of it") for k in found.kept[~there]]
    kept = _only(found, there, [*found.refused, *lost])
    return {name: Polymers(kept, own[there]) for name, own in vectors.items()}


def _shapes(units: Sequence[UnitTopology], model: Any, how: How) -> NDArray[np.float32]:
    """(K, D) embeddings of generated chains of UNITS_WITHOUT_SHAPE units, NaN where there is none."""
    from foundation.sampling.embedding import UNITS_WITHOUT_SHAPE, embed_generated
    from foundation.sampling.request import read_request

    requests, rows = [], []
    for row, unit in enumerate(units):
        try:
            requests.append(read_request(unit.psmiles, UNITS_WITHOUT_SHAPE, "atactic", 0, row))
            rows.append(row)
        except PolymerError:
            continue
    vectors, _ = embed_generated(model, requests, how.conformations, 0, how.batch_atoms, how.device, how.bars)
    out = np.full((len(units), vectors.shape[1]), np.nan, dtype=np.float32)
    out[rows] = vectors
    return out


def _readable(found: Features, psmiles: Sequence[str]) -> Features:
    """Without polymers that have an atom no token of the sequence encoder stands for."""
    from foundation.encoders.sequence import tokenise

    refused, keep = list(found.refused), np.ones(len(found.kept), dtype=bool)
    for row, unit in enumerate(found.units):
        try:
            tokenise(unit.psmiles)
        except InputError as error:
            index = int(found.kept[row])
            refused.append(Refused(index, psmiles[index], str(error)))
            keep[row] = False
    return _only(found, keep, refused)


def _only(found: Features, keep: NDArray[np.bool_], refused: Sequence[Refused]) -> Features:
    units = tuple(unit for unit, own in zip(found.units, keep, strict=True) if own)
    why = tuple(sorted(refused, key=lambda one: one.index))
    numbers = {name: getattr(found, name)[keep] for name in NUMBERS}
    return replace(Features.of(found.kept[keep], numbers, why), units=units)


def make_polymers(named: Mapping[str, str], key: str, cache: Path, models: Mapping[str, Any], how: How) -> None:
    """Read polymers into a file, unless it holds all of them, for all of the models, already.

    Args:
        named: canonical name -> P-SMILES.
        key: what the numbers depend on besides the polymers and the name of a model, such as the fingerprint of the weights.
        cache: .npz file; a damaged one, or one of another key, is made anew.
        models, how: as read_polymers.
    """
    kept = [load_polymers(cache, key, name) for name in models]
    if all(own is not None and set(named) <= own[0].keys() for own in kept):
        return
    made = read_polymers(list(named.values()), models, how)
    own = next(iter(made.values())).features
    rows = np.full(len(named), -1)
    rows[own.kept] = np.arange(len(own.kept))
    refused = np.array([(one.index, one.psmiles, one.reason) for one in own.refused], dtype=str).reshape(-1, 3)
    parts: dict[str, Any] = {name: getattr(own, name) for name in NUMBERS} | {"refused": refused}
    parts |= {f"embedding_{name}": polymers.embedding for name, polymers in made.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=np.array(key), names=np.array(list(named)), rows=rows, **parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cache, buffer.getvalue())


def load_polymers(cache: Path, key: str, name: str) -> tuple[dict[str, int], Polymers] | None:
    """Row of each polymer, -1 where it was refused, and what one of the models says of them; None where the file holds no such thing."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            place = dict(zip(file["names"].tolist(), file["rows"].tolist(), strict=True))
            refused = tuple(Refused(int(index), psmiles, reason) for index, psmiles, reason in file["refused"].tolist())
            own = Features.of(np.flatnonzero(file["rows"] >= 0), file, refused)
            return place, Polymers(own, file[f"embedding_{name}"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


@dataclass(frozen=True)
class Scaler:
    """Columns of mean 0 and deviation 1 over the polymers of a training fold.

    Attributes:
        mean, deviation: (d,); a column without deviation becomes 0.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.floating]) -> Self:
        """From rows of training; NaN does not count."""
        known = np.isfinite(x).any(0)
        own = np.asarray(x, dtype=np.float64)[:, known]
        cut = np.clip(own, *np.nanpercentile(own, [0.5, 99.5], axis=0))  # one polymer unlike all others must not decide the scale
        mean, deviation = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        mean[known], deviation[known] = np.nanmean(cut, axis=0), np.nanstd(cut, axis=0)
        return cls(mean, deviation)

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """(R, d) standardised, cut at CUT; NaN becomes the mean."""
        found: NDArray[np.float64] = np.clip(np.nan_to_num((x - self.mean) * self.factor, nan=0.0), -CUT, CUT)
        return found

    @property
    def factor(self) -> NDArray[np.float64]:
        """(d,) one over the deviation, 0 where there is none."""
        flat = self.deviation <= 1e-9 * (1 + np.abs(self.mean))
        return np.where(flat, 0.0, 1 / np.where(flat, 1.0, self.deviation))


__all__ = ["CUT", "How", "Polymers", "Scaler", "load_polymers", "make_polymers", "read_polymers"]
