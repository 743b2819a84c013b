"""What property models say of candidates, and which of them are proposed: near what is asked for, and unlike each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.progress import Progress
from finetune.design.goals import Target

if TYPE_CHECKING:
    from finetune.polymers import Polymers

SPREAD = 0.3  # deviations of the miss that a candidate wholly unlike the chosen ones is worth
SYNTHESIS = 0.1  # deviations of the miss that a point of the synthetic accessibility above EASY costs
EASY = 4.0
NORMAL_90 = 1.6449  # deviations from the middle to the end of a 90 % interval


@dataclass(frozen=True)
class Said:
    """Of K candidates, in the order of their P-SMILES.

    Attributes:
        kept: (K,) bool, whether the models have inputs for it; everything else is NaN or empty where not.
        value, low, high: (K, P) learned values and ends of their intervals.
        similarity: (K,) to the nearest labelled polymer of training.
        in_domain: (K,) bool, of all models.
        nearest: (K,) that polymer.
        embedding: (K, D) of the pretrained model.
        counts, atoms: (K, bits) and (K,) Morgan environments, which candidates are compared by.
    """

    kept: NDArray[np.bool_]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    similarity: NDArray[np.float64]
    in_domain: NDArray[np.bool_]
    nearest: tuple[str, ...]
    embedding: NDArray[np.float32]
    counts: NDArray[np.int16]
    atoms: NDArray[np.int64]

    def some(self, places: NDArray[np.int64]) -> Said:
        """Of some of the candidates."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            own = getattr(self, field.name)
            chosen[field.name] = tuple(own[k] for k in places) if isinstance(own, tuple) else own[places]
        return Said(**chosen)

    def and_then(self, other: Said) -> Said:
        """These candidates, then those."""
        joined: dict[str, Any] = {}
        for own in (field.name for field in fields(self)):
            one, two = getattr(self, own), getattr(other, own)
            joined[own] = one + two if isinstance(one, tuple) else np.concatenate([one, two])
        return Said(**joined)


class Guide:
    """Property models of a design folder.

    Args:
        folders: of finetune.property, in the order of the properties.
        checkpoint: of the pretrained model; None: where it was.
    """

    def __init__(self, folders: Sequence[Path], checkpoint: str | None = None) -> None:
        from finetune.stream import Ready

        self.ready = [Ready(folder, checkpoint) for folder in folders]

    def read(self, psmiles: Sequence[str], bars: Progress, workers: int = 0) -> Polymers:
        """Inputs of the models, which share the pretrained one."""
        import torch

        from finetune.pieces import OURS
        from finetune.polymers import How, read_polymers
        from foundation.sampling.run import BATCH_ATOMS

        settings = self.ready[0].saved.predictor.settings
        how = How(torch.device("cpu"), BATCH_ATOMS["cpu"], workers, bars, settings.conformations)
        return read_polymers(list(psmiles), {OURS: self.ready[0].base}, how)[OURS]

    def say(self, psmiles: Sequence[str], bars: Progress, workers: int = 0) -> Said:
        """Predictions of candidates."""
        polymers = self.read(psmiles, bars, workers)
        own, number, every = polymers.features, len(psmiles), np.arange(len(polymers))
        kept = np.zeros(number, dtype=bool)
        kept[own.kept] = True

        def spread_out(found: NDArray[Any], fill: Any) -> NDArray[Any]:
            out = np.full((number, *found.shape[1:]), fill, dtype=found.dtype)
            out[own.kept] = found
            return out

        columns, inside, nearest = [], [], []
        for ready in self.ready:
            saved = ready.saved
            found = saved.predictor.predict(polymers, every, ready.encoder(own.units))
            half = saved.half or np.inf
            columns.append(np.stack([found.value, found.value - half * found.spread, found.value + half * found.spread]))
            order, similarity = ready.near.nearest(own.counts, own.atoms, 1)
            inside.append(similarity[:, 0] >= saved.similar)
            nearest.append((similarity[:, 0], np.array([saved.psmiles[place] for place in saved.own[order[:, 0]]], dtype=object)))
        value, low, high = np.stack(columns, axis=-1)
        best = np.argmax(np.stack([similarity for similarity, _ in nearest]), axis=0)
        similarity = np.stack([similarity for similarity, _ in nearest])[best, every]
        names = np.stack([texts for _, texts in nearest])[best, every]
        return Said(
            kept=kept,
            value=spread_out(value, np.nan),
            low=spread_out(low, np.nan),
            high=spread_out(high, np.nan),
            similarity=spread_out(similarity, np.nan),
            in_domain=spread_out(np.logical_and.reduce(inside), False),
            nearest=tuple(spread_out(names, "").tolist()),
            embedding=spread_out(polymers.embedding, np.nan),
            counts=spread_out(own.counts, 0),
            atoms=spread_out(own.atoms, 1),
        )


def misses(targets: Sequence[Target], said: Said, columns: Sequence[int], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) how far polymers are expected to miss the targets: root mean square over targets and over what predictions do not know.

    A prediction on the target with an error of a deviation is as far from it as a sure one a deviation away: what the models know nothing
    of is not proposed first.

    Args:
        targets: asked for.
        said: predictions with intervals.
        columns: of each target among the properties.
        deviation: (P,) of the training values, the unit of the result.
    """
    if not targets:
        return np.zeros(len(said.value))
    unsure = (said.high - said.low) / (2 * NORMAL_90)
    unsure = np.where(np.isfinite(unsure), unsure, 0.0)
    parts = [
        target.expected(said.value[:, column], unsure[:, column]) / deviation[column] ** 2
        for target, column in zip(targets, columns, strict=True)
    ]
    return np.sqrt(np.mean(parts, axis=0))


def synthetic_accessibility(psmiles: Sequence[str]) -> NDArray[np.float64]:
    """(K,) scores from 1, easy, to 10 of repeat units with their stars, as the public gas tables have it.

    Source: Ertl, Schuffenhauer, J. Cheminform. 1, 8 (2009), as RDKit's contribution has it.
    """
    import importlib.util

    from rdkit import Chem
    from rdkit.Chem import RDConfig

    spec = importlib.util.spec_from_file_location("sascorer", Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py")
    assert spec is not None
    assert spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return np.array([scorer.calculateScore(Chem.MolFromSmiles(text)) for text in psmiles])


def rank(cost: NDArray[np.float64], counts: NDArray[np.integer], atoms: NDArray[np.integer], number: int) -> list[int]:
    """Candidates in the order of proposal: the cheapest first, then each time the one whose cost, less what it adds, is lowest.

    What a candidate adds is SPREAD times its distance (1 - Tanimoto of counts per heavy atom) to the nearest one already chosen (maximal
    marginal relevance; Carbonell, Goldstein, SIGIR 1998).

    Args:
        cost: (K,) to be small.
        counts, atoms: (K, bits) and (K,) of each.
        number: of candidates wanted, at most.
    """
    from finetune.fingerprints import Neighbours

    near = Neighbours(counts, atoms)
    chosen: list[int] = []
    closest = np.zeros(len(cost))
    left = np.ones(len(cost), dtype=bool)
    for _ in range(min(number, len(cost))):
        worth = np.where(left, cost + SPREAD * closest, np.inf)
        best = int(worth.argmin())
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, near.similarity(counts[best : best + 1], atoms[best : best + 1])[0])
    return chosen


__all__ = ["EASY", "SYNTHESIS", "Guide", "Said", "misses", "rank", "synthetic_accessibility"]
