"""Splits: every polymer judged once by a model that has not seen it, whatever the order of the table, and like polymers together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.progress import Silent
from finetune.clusters import SIMILAR, clusters, spread_over_folds
from finetune.fingerprints import Features, Neighbours, features
from finetune.splits import FOLDS, split, validation_part
from finetune.table import Labels, load
from foundation.errors import InputError


@pytest.fixture(scope="module")
def labels() -> Labels:
    return load("tg", limit=150)


@pytest.fixture(scope="module")
def made(labels: Labels) -> Features:
    return features(labels.psmiles, 0, Silent())


def shuffled(labels: Labels, order: np.ndarray) -> Labels:
    groups, psmiles = (tuple(own[k] for k in order) for own in (labels.groups, labels.psmiles))
    return replace(labels, groups=groups, psmiles=psmiles, values=labels.values[order])


@pytest.mark.parametrize("how", ["folds", "cluster"])
def test_folds_are_complete_balanced_and_do_not_depend_on_the_order_of_rows(labels: Labels, made: Features, how: str) -> None:
    fold = split(labels, how, 0, made.counts, made.atoms)
    assert set(fold.tolist()) == set(range(FOLDS))
    sizes = np.bincount(fold)
    assert np.array_equal(fold, split(labels, how, 0, made.counts, made.atoms))
    assert not np.array_equal(fold, split(labels, how, 1, made.counts, made.atoms))
    order = np.random.default_rng(0).permutation(len(labels.groups))
    again = split(shuffled(labels, order), how, 0, made.counts[order], made.atoms[order])
    assert np.array_equal(again, fold[order])
    largest = 1 if how == "folds" else np.bincount(clusters(made.counts, made.atoms, labels.groups)).max()
    assert sizes.max() - sizes.min() <= largest


def test_folds_of_the_table_come_first(labels: Labels) -> None:
    own = np.arange(len(labels.groups)) % 3
    assert np.array_equal(split(replace(labels, fold=own), "folds", 0), own)


def test_what_cannot_be_split(labels: Labels, made: Features) -> None:
    with pytest.raises(InputError, match="split 'scaffold' must be one of folds, cluster"):
        split(labels, "scaffold", 0)
    with pytest.raises(InputError, match="needs Morgan counts"):
        split(labels, "cluster", 0)
    few = replace(labels, groups=labels.groups[:4], psmiles=labels.psmiles[:4])
    with pytest.raises(InputError, match="clusters, fewer than the 5 folds; use --split folds"):
        split(few, "cluster", 0, made.counts[:4], made.atoms[:4])


def test_clusters_are_those_of_the_definition(labels: Labels, made: Features) -> None:
    """Butina's algorithm written down again, one polymer at a time."""
    found = clusters(made.counts, made.atoms, labels.groups)
    similarity = Neighbours(made.counts, made.atoms).similarity(made.counts, made.atoms)
    near = similarity >= SIMILAR
    number = {k: int(near[k].sum()) for k in range(len(near))}
    left, expected = set(number), []
    for centre in sorted(number, key=lambda k: (-number[k], labels.groups[k])):
        if centre in left:
            expected.append({k for k in left if near[centre, k]})
            left -= expected[-1]
    assert [set(np.flatnonzero(found == k).tolist()) for k in range(found.max() + 1)] == expected
    assert len(expected) > FOLDS
    assert max(len(own) for own in expected) > 3


def test_clusters_keep_like_polymers_off_the_other_side(labels: Labels, made: Features) -> None:
    similarity = Neighbours(made.counts, made.atoms).similarity(made.counts, made.atoms)
    np.fill_diagonal(similarity, 0)

    def nearest_other_fold(fold: np.ndarray) -> float:
        return float(np.where(fold[:, None] != fold[None], similarity, 0).max(1).mean())

    drawn, clustered = (split(labels, how, 0, made.counts, made.atoms) for how in ("folds", "cluster"))
    assert nearest_other_fold(clustered) < 0.9 * nearest_other_fold(drawn)


def test_whole_clusters_are_spread_evenly() -> None:
    cluster = np.repeat(np.arange(30), np.arange(1, 31))
    groups = [f"{k:03d}" for k in range(len(cluster))]
    fold = spread_over_folds(cluster, groups, 5, 0)
    assert all(len(set(fold[cluster == k].tolist())) == 1 for k in range(30))
    assert np.ptp(np.bincount(fold)) <= 2, "465 polymers in clusters of 1 to 30"


def test_validation_parts_are_disjoint_complete_and_of_the_wanted_size() -> None:
    groups = [f"polymer {k}" for k in range(4000)]
    train = np.arange(0, 4000, 2)
    inside, part = validation_part(groups, train, 0.1, 3)
    assert sorted([*inside.tolist(), *part.tolist()]) == train.tolist()
    assert abs(len(part) - 200) < 4 * np.sqrt(2000 * 0.1 * 0.9)
    assert np.array_equal(part, validation_part(groups, train, 0.1, 3)[1])
    assert len(set(part.tolist()) & set(validation_part(groups, train, 0.1, 4)[1].tolist())) < 60, "about a tenth by chance"


def test_a_polymer_stays_on_its_side_when_others_come() -> None:
    groups = [f"polymer {k}" for k in range(500)]
    before = {groups[k] for k in validation_part(groups, np.arange(300), 0.2, 0)[1]}
    more = ["new one", *groups[::-1]]
    after = {more[k] for k in validation_part(more, np.arange(len(more)), 0.2, 0)[1]}
    assert before == after & set(groups[:300])


def test_neither_side_of_a_validation_part_is_empty() -> None:
    for size in range(2, 30):
        for fraction in (0.0, 0.1, 1.0):
            inside, part = validation_part([str(k) for k in range(size)], np.arange(size), fraction, size)
            assert len(inside) >= 1
            assert len(part) >= 1
            assert len(inside) + len(part) == size
    with pytest.raises(InputError, match="a training fold has 1 polymers and must have >= 2"):
        validation_part(["a"], np.array([0]), 0.1, 0)


def test_folds_of_public_tables_never_part_a_polymer(shared_data: Path) -> None:
    found = load("eps", str(shared_data / "property" / "eps.csv"))
    assert found.rows["in another fold than the first row of their polymer"] == 0
    assert np.array_equal(split(found, "folds", 0), found.fold)
