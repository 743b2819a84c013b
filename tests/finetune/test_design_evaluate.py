"""Metrics of drawn polymers at their ends, and the baselines that designs are compared with."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.chem.psmiles import canonicalise
from finetune.design.evaluate import diversity, errors, fragment_similarity, frechet, judge, quality
from finetune.design.genetic import child, search
from finetune.design.guide import synthetic_accessibility
from finetune.design.language import LanguageConfig, LanguageModel, speak, spelled, train_language
from finetune.design.train import TrainSettings
from foundation.encoders.sequence import tokenise

POLYMERS = ("*CC(*)c1ccccc1", "*CCO*", "*OC(C)C(=O)*", "*CC(F)(F)*", "*c1ccc(*)s1", "*NCCCCCC(*)=O")


def test_synthetic_accessibility_is_that_of_the_public_table(shared_data: Path) -> None:
    """And of five molecules by RDKit's own contribution, to its two digits."""
    with (shared_data / "design" / "o2_n2_co2.csv").open() as file:
        rows = list(csv.DictReader(file))[::9]
    np.testing.assert_allclose(synthetic_accessibility([row["psmiles"] for row in rows]), [float(row["SA"]) for row in rows], atol=0.006)


def test_golden_accessibility() -> None:
    found = synthetic_accessibility(["CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C1CC12CC2", "*CC(*)c1ccccc1"])
    np.testing.assert_allclose(found, [1.980, 1.000, 1.580, 2.956, 4.119], atol=1e-3)


def test_duplicates_have_no_diversity_and_training_no_novelty() -> None:
    same = judge(["*CCO*", "*OCC*", "*COC*"], ["", "", ""])
    assert len(set(same.groups)) == 1
    seen = frozenset(same.groups)
    found = quality(same, seen, list(POLYMERS))
    assert found["diversity"] == pytest.approx(0, abs=1e-6)
    assert found["novel"] == 0
    assert found["unique"] == pytest.approx(1 / 3)
    own = quality(judge(POLYMERS, [""] * len(POLYMERS)), frozenset(), list(POLYMERS))
    assert own["fragments"] == pytest.approx(1)
    assert own["unique"] == own["novel"] == own["valid"] == own["stars"] == 1
    assert 0.6 < own["diversity"] < 1
    assert diversity([]) is None
    assert fragment_similarity(["*C*"], []) is None


def test_what_is_no_polymer_stays_in_the_denominator() -> None:
    judged = judge(["*CCO*", "CCO", "*CC", "*C(C)(C)(C)(C)*", None, None], ["", "", "", "", "valence", "fragments"])
    found = quality(judged, frozenset(), list(POLYMERS))
    assert found["drawn"] == 6
    assert found["valid"] == 0.5  # three molecules
    assert found["stars"] == pytest.approx(1 / 3)


def test_frechet_distance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x, x + np.array([3.0, 0, 0, 0])) == pytest.approx(9.0, rel=1e-6)
    assert frechet(x, 2 * x) == pytest.approx(np.trace(np.cov(x, rowvar=False)) + np.square(x.mean(axis=0)).sum(), rel=1e-6)


def test_errors_leave_out_what_was_not_asked() -> None:
    found = errors(np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[0.0, np.nan], [1.0, 4.0]]), [1.0, 0.5])
    assert found["mae"] == [1.5, 0.5]
    assert found["bias"] == [1.5, 0.5]


def test_children_are_polymers_and_search_finds_what_is_asked_for() -> None:
    rng = np.random.default_rng(1)
    made = [child(*rng.choice(POLYMERS, 2).tolist(), rng) for _ in range(60)]
    there = [text for text in made if text]
    assert len(there) > 20
    assert all(canonicalise(text).plain == text for text in there)
    asked: list[int] = []

    def score(texts: list[str]) -> np.ndarray:  # as many oxygens as possible
        asked.append(len(texts))
        return np.array([-text.count("O") for text in texts], dtype=np.float64)

    found = search(POLYMERS, score, 200, rng, size=20)
    assert sum(asked) <= 200
    assert found[0].count("O") > max(text.count("O") for text in POLYMERS)


def test_a_language_model_learns_strings_by_heart() -> None:
    assert [canonicalise(text).group for text in spelled("*CC(*)c1ccccc1")] == 2 * [canonicalise("*CC(*)c1ccccc1").group]
    values = np.linspace(-1, 1, len(POLYMERS), dtype=np.float32)[:, None]
    config = LanguageConfig(width=48, num_layers=2, num_heads=4, num_properties=1)
    settings = TrainSettings(steps=500, lr=3e-3, warmup=20, ema=0.97)  # batches of like length: one or two of the six at a time
    losses: list[float] = []
    model = train_language(POLYMERS, values, np.ones(6), config, settings, 0, lambda _, m: losses.append(m["design/loss"]))
    assert losses[-1] < 0.25 * losses[0]
    said = speak(model, torch.from_numpy(np.repeat(values, 5, axis=0)), 1.5, torch.Generator().manual_seed(0))
    judged = judge(said, [""] * len(said))
    right = [name == canonicalise(POLYMERS[k // 5]).group for k, name in enumerate(judged.groups)]
    assert np.mean(right) > 0.7


@torch.no_grad()
def test_a_language_model_sees_nothing_of_what_comes() -> None:
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(width=32, num_layers=2, num_heads=4)).eval()
    tokens = torch.tensor([tokenise("*CC(*)c1ccccc1")])
    other = tokens.clone()
    other[0, 6:] = tokens[0, 3]
    none = torch.zeros(1, 0)
    torch.testing.assert_close(model(tokens, none)[:, :6], model(other, none)[:, :6])
