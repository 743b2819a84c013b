"""Who is trained on and who is judged by: folds of polymers, folds of clusters of polymers, and validation parts of training folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.clusters import clusters, spread_over_folds
from finetune.table import Labels
from foundation.errors import InputError
from foundation.evaluation.ridge import FOLDS, make_folds

SPLITS = ("folds", "cluster")
VALIDATION = 0.1  # of a training fold


def split(
    labels: Labels, how: str, seed: int, counts: NDArray[np.integer] | None = None, atoms: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """(P,) fold of each polymer, 0 to FOLDS - 1 or as the table numbers them.

    Args:
        labels: polymers, each once.
        how: `folds`: the column fold of the table, else drawn; `cluster`: polymers that are like each other share a fold.
        seed: of what is drawn, and of ties between clusters.
        counts: (P, bits) Morgan counts, for clusters.
        atoms: (P,) heavy atoms of a unit, for clusters.

    Raises:
        InputError: no such split, or fewer clusters than folds.
    """
    if how not in SPLITS:
        raise InputError(f"split {how!r} must be one of {', '.join(SPLITS)}; change --split")
    if how == "folds":
        return labels.fold if labels.fold is not None else make_folds(np.array(labels.groups), FOLDS, seed)
    if counts is None or atoms is None:
        raise InputError("split 'cluster' needs Morgan counts and heavy atoms of the polymers; pass those of fingerprints.features")
    cluster = clusters(counts, atoms, labels.groups)
    number = int(cluster.max()) + 1
    if number < FOLDS:
        raise InputError(f"{labels.path}: its polymers form {number} clusters, fewer than the {FOLDS} folds; use --split folds")
    return spread_over_folds(cluster, labels.groups, FOLDS, seed)


def validation_part(
    groups: Sequence[str], train_index: NDArray[np.integer], fraction: float = VALIDATION, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A training fold as what is fitted and what training is stopped by.

    A polymer's side follows from its name and the seed alone, so that it stays there when polymers are added. Neither side is empty.

    Args:
        groups: (P,) canonical names.
        train_index: (T,) indices of the training fold, two at least.
        fraction: of the training fold in the validation part, on average.
        seed: another seed gives another part.

    Returns:
        (T - V,) and (V,) indices into groups, in the order of train_index.
    """
    train = np.asarray(train_index, dtype=np.int64)
    if len(train) < 2:
        raise InputError(f"a training fold has {len(train)} polymers and must have >= 2, one to fit and one to stop by; give more")
    draw = np.array([_uniform(groups[k], seed) for k in train])
    part = draw < fraction
    if part.all() or not part.any():
        part = draw == draw.min()
    return train[~part], train[part]


def _uniform(group: str, seed: int) -> float:
    """A number in [0, 1) of a polymer."""
    return int.from_bytes(hashlib.sha256(f"{seed} {group}".encode()).digest()[:8], "big") / 2.0**64


__all__ = ["FOLDS", "SPLITS", "VALIDATION", "split", "validation_part"]
