"""Shares of atoms: derivatives by finite differences, equal for atoms that a mirror exchanges, and a drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.chem.drawing import coloured_sheet
from data_shards.chem.fingerprint import centred_environments, morgan_counts
from data_shards.chem.repeat_unit import unit_graph
from data_shards.chem.topology import graph_distances
from data_shards.progress import Silent
from finetune.attribution import atom_shares
from finetune.polymers import How, Polymers, read_polymers
from finetune.predictor import Predictor, Settings, fit
from foundation.train.checkpoint import load_model

POLYMERS = ("*CC(*)c1ccccc1", "*CC*", "*CC(*)C", "*CCO*", "*CC(*)Cl", "*CC(*)C#N", "*CC(*)(C)C", "*CC(*)O", "*CC(*)F", "*CCS*", "*CC(*)OC")


@pytest.fixture(scope="module")
def fitted() -> tuple[Predictor, Polymers, object]:
    model, _ = load_model("small")
    polymers = read_polymers(POLYMERS, {"small": model}, How(torch.device("cpu"), 10_000, 0, Silent()))["small"]
    y = np.array([[100.0], [-80], [-10], [-60], [80], [95], [-70], [85], [40], [-40], [-30]])
    made = fit(polymers, np.arange(len(POLYMERS)), y, list(POLYMERS), Settings(heads=("gp",)), seed=0)
    return made, polymers, model


def shifted(made: Predictor, polymers: Polymers, counts: float, embedding: np.ndarray | None = None) -> float:
    """Mean of the first polymer, its environments times a factor, its embedding replaced."""
    assert made.posterior is not None
    x = made.scales.inputs(polymers, np.array([0]))
    x["counts"] = x["counts"] * counts
    if embedding is not None:
        x["embedding"] = torch.from_numpy(made.scales.vectors["embedding"](embedding[None].astype(np.float64)))
    return float(made.scales.deviation[0] * made.posterior.mean(x)[0])


def test_environments_of_atoms_are_those_that_are_counted() -> None:
    for psmiles in POLYMERS:
        unit = unit_graph(psmiles)
        listed = np.bincount(np.concatenate([np.array(bits, dtype=int) for bits in centred_environments(unit)]), minlength=2048)
        counts = morgan_counts(unit)
        assert (listed >= counts).all()
        assert ((listed > 0) == (counts > 0)).mean() > 0.99
    alone = centred_environments(unit_graph("*CC(*)c1ccccc1"))
    assert [len(bits) for bits in alone].count(0) == 2, "stars have none"


def test_shares_of_environments_are_the_derivative_by_all_of_them(fitted: tuple[Predictor, Polymers, object]) -> None:
    made, polymers, _ = fitted
    shares = atom_shares(made, polymers, 0, unit_graph(POLYMERS[0]), model=None)
    numeric = (shifted(made, polymers, 1 + 1e-5) - shifted(made, polymers, 1 - 1e-5)) / 2e-5
    assert shares.sum() == pytest.approx(numeric, rel=1e-4)


def test_shares_through_the_graph_are_a_derivative_too(fitted: tuple[Predictor, Polymers, object]) -> None:
    made, polymers, model = fitted
    unit = unit_graph(POLYMERS[0])
    through = atom_shares(made, polymers, 0, unit, model) - atom_shares(made, polymers, 0, unit, model=None)
    step = 1e-2
    ends = []
    for factor in (1 + step, 1 - step):
        handles = [table.register_forward_hook(lambda _, __, found, f=factor: found * f) for table in model.graph.atom.values()]
        from foundation.sampling.embedding import graph_condition

        with torch.no_grad():
            ends.append(model.embed(graph_condition(unit)).chain[0].double().numpy())
        for handle in handles:
            handle.remove()
    numeric = (shifted(made, polymers, 1.0, ends[0]) - shifted(made, polymers, 1.0, ends[1])) / (2 * step)
    assert through.sum() == pytest.approx(numeric, rel=0.03, abs=0.02)


def test_atoms_that_a_mirror_exchanges_have_one_share(fitted: tuple[Predictor, Polymers, object]) -> None:
    made, polymers, model = fitted
    unit = unit_graph("*CC(*)c1ccccc1")
    shares = atom_shares(made, polymers, 0, unit, model)
    ring = np.flatnonzero(unit.aromatic)
    hops = graph_distances(unit)
    ipso = next(k for k in ring if (hops[k] == 1).sum() == 3)
    for away in (1, 2):
        one, other = ring[hops[ipso][ring] == away]
        assert shares[one] == pytest.approx(shares[other], abs=1e-3 * float(np.abs(shares).max()))


def test_a_sheet_is_svg_with_every_legend() -> None:
    drawn = coloured_sheet(["*CC*", "*CC(*)C"], [np.array([0.0, 1, -1, 0]), np.zeros(5)], ["first", "second"])
    assert drawn.startswith("<?xml")
    assert drawn.count("<path") > 5
    assert coloured_sheet(["*CC*"], [np.zeros(4)], [""]).startswith("<?xml")
