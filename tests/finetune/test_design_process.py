"""The discrete diffusion of graphs against brute force: schedule, forward marginals, posterior, and a sampler given the exact denoiser."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from finetune.design.graphs import NONE, NUM_CLASSES, NUM_KINDS, STAR, Graphs, collate, read_graph, write_psmiles
from finetune.design.process import STEPS, Prior, alpha_bar, draw, draw_prior, noised, posterior, step_back

POLYMERS = ("*CC(*)c1ccccc1", "*CCO*", "*OC(C)C(=O)*", "*CC(F)(F)*", "*c1ccc(*)s1", "*NCCCCCC(*)=O", "*C=CC#C*", "*[Si](C)(C)O*")
GRAPHS = [read_graph(psmiles) for psmiles in POLYMERS]
PRIOR = Prior.of(GRAPHS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_schedule_is_the_published_one() -> None:
    found = alpha_bar(torch.tensor([0, 125, 250, 375, STEPS]))
    np.testing.assert_allclose(found, [0.99991, 0.84533, 0.49229, 0.14373, 0.0], atol=5e-6)
    assert (alpha_bar(torch.arange(STEPS + 1)).diff() < 0).all()


def test_the_prior_is_counted_in_graphs() -> None:
    count = np.bincount(np.concatenate([own.atoms for own in GRAPHS]), minlength=NUM_CLASSES).astype(float)
    count[STAR] = 0
    np.testing.assert_allclose(PRIOR.atoms, count / count.sum())
    batch = collate(GRAPHS)
    chances = PRIOR.of_pairs(batch.size, batch.atoms.shape[1])
    assert (chances >= 0).all()
    torch.testing.assert_close(chances.sum(-1), torch.ones_like(chances[..., 0]))
    torch.testing.assert_close(chances, chances.transpose(1, 2))
    assert (chances[:, :2, :2, NONE] == 1).all()  # two stars
    assert (chances[:, :2, 2:, 2:] == 0).all()  # a star has single bonds
    upper = torch.triu(batch.mask[:, :, None] & batch.mask[:, None], diagonal=1)
    of_stars, others = upper.clone(), upper.clone()
    of_stars[:, 2:], others[:, :2] = False, False
    for which, expected in ((of_stars, 2 * len(GRAPHS)), (others, sum(len(own.bonds) - 2 for own in GRAPHS))):
        assert float(((1 - chances[..., NONE]) * which).sum()) == pytest.approx(expected, rel=0.15)  # as many bonds as there are, about
    assert float(chances[0, 0, 2, 1]) > 0.9  # a SMILES that begins at a star goes on with the atom beside it
    assert chances[0, 3, 4, 1] > 5 * chances[0, 3, 7, 1]  # neighbours in the order
    without = PRIOR.without([4])
    assert without.atoms[4] == 0
    assert float(without.atoms.sum()) == pytest.approx(1)


def test_draws_have_the_chances_given() -> None:
    chances = torch.tensor([0.0, 0.2, 0.0, 0.7, 0.1, 0.0], dtype=torch.float64)
    found = torch.bincount(draw(3.0 * chances.expand(40_000, 6), rng()), minlength=6).numpy()
    assert found[[0, 2, 5]].sum() == 0
    assert stats.chisquare(found[[1, 3, 4]], 40_000 * chances[[1, 3, 4]].numpy()).pvalue > 0.01


@pytest.mark.parametrize("t", [100, 300, STEPS])
def test_forward_marginals_are_those_of_the_transition(t: int) -> None:
    """Frequencies of atoms and of pairs against abar [z = z_0] + (1 - abar) P, by chi squared."""
    many = 60_000
    one = collate(GRAPHS[2:3])
    clean = Graphs(one.atoms.expand(many, -1), one.bonds.expand(many, -1, -1), one.size.expand(many))
    noisy = noised(clean, torch.full((many,), t), PRIOR, rng(t))
    share = float(alpha_bar(torch.tensor(t)))
    of_pairs = PRIOR.of_pairs(one.size, one.atoms.shape[1])[0].numpy()
    places = [(noisy.atoms[:, k], one.atoms[0, k], PRIOR.atoms.numpy()) for k in (2, 3)]
    places += [(noisy.bonds[:, i, j], one.bonds[0, i, j], of_pairs[i, j]) for i, j in ((0, 2), (1, 3), (2, 3), (3, 4), (4, 6))]
    for drawn, clean_class, noise in places:
        expected = (1 - share) * noise
        expected[int(clean_class)] += share
        found = np.bincount(drawn, minlength=len(noise))
        there = expected > 0
        assert found[~there].sum() == 0
        assert stats.chisquare(found[there], many * expected[there]).pvalue > 0.001


def test_graphs_are_whole_at_every_time() -> None:
    """Symmetric, empty diagonal, nothing beyond the end, two stars first."""
    clean = collate(GRAPHS)
    now = draw_prior(PRIOR, clean.size, rng(1))
    atoms = torch.nn.functional.one_hot(clean.atoms, NUM_CLASSES).double() + 0.01
    atoms[..., STAR] = 0
    pairs = torch.nn.functional.one_hot(clean.bonds, NUM_KINDS).double() + 0.01
    for t, s in itertools.pairwise(range(STEPS, 0, -50)):
        for own in (now, noised(clean, torch.full((len(GRAPHS),), t), PRIOR, rng(t))):
            assert torch.equal(own.bonds, own.bonds.transpose(1, 2))
            assert not own.bonds.diagonal(dim1=1, dim2=2).any()
            beyond = ~own.mask
            assert not own.atoms[beyond].any()
            assert not own.bonds[beyond].any()
            assert ((own.atoms == STAR) & own.mask).sum(1).tolist() == [2] * len(GRAPHS)
            assert (own.atoms[:, :2] == STAR).all()
            assert not own.bonds[:, 0, 1].any()
        now = step_back(now, atoms / atoms.sum(-1, keepdim=True), pairs / pairs.sum(-1, keepdim=True), t, s, rng(s))


def chance_of_both(clean: int, then: int, now: int, noise: dict[int, float], hidden: list[tuple[bool, bool, float]]) -> float:
    """Joint chance of what an element is at s and at t, over its histories and its noise."""
    return sum(
        chance * p * ((clean if at_then else drawn) == then) * ((clean if at_now else drawn) == now)
        for at_then, at_now, chance in hidden
        for drawn, p in noise.items()
    )


def test_posterior_is_bayes_rule_by_enumeration() -> None:
    """Three nodes, a star and two atoms with the pairs between them. All that is hidden is summed over: what was replaced when, by what."""
    at_s, at_t = (float(alpha_bar(torch.tensor(x))) for x in (150, 320))
    a_s, a_t = (torch.tensor([x], dtype=torch.float64) for x in (at_s, at_t))
    classes = (1, 2, 3)
    weight = PRIOR.atoms[list(classes)].numpy()
    noise = dict(zip(classes, weight / weight.sum(), strict=True))
    chances = PRIOR.of_pairs(torch.tensor([3]), 4)[0].numpy()
    of_pairs = [dict(enumerate(chances[i, j])) for i, j in ((0, 2), (0, 3), (2, 3))]
    clean = (1, 3, 1, 0, 2)  # two atoms, then the pairs star-atom, star-atom, atom-atom
    noises = [noise, noise, *of_pairs]
    hidden = [(True, True, at_t), (True, False, at_s - at_t), (False, False, 1 - at_s)]  # clean at s, clean at t, chance of this history
    states = list(itertools.product(classes, classes, (0, 1), (0, 1), range(NUM_KINDS)))
    for now in ((1, 3, 1, 0, 2), (2, 3, 0, 0, 0), (3, 1, 1, 1, 1), (1, 1, 0, 1, 4)):
        joint = np.zeros(len(states))
        for row, then in enumerate(states):  # elements are independent, given the clean graph
            joint[row] = math.prod(chance_of_both(clean[k], then[k], now[k], noises[k], hidden) for k in range(5))
        expected = joint / joint.sum()
        width = [NUM_CLASSES] * 2 + [NUM_KINDS] * 3
        each = [posterior(torch.tensor([now[k]]), torch.eye(width[k], dtype=torch.float64)[[clean[k]]], a_s, a_t)[0] for k in range(5)]
        found = [math.prod(float(each[k][then[k]]) for k in range(5)) for then in states]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert sum(found) == pytest.approx(1)


def exact_denoiser(data: Graphs, weight: Tensor, now: Graphs, t: float) -> tuple[Tensor, Tensor]:
    """Chances of clean atoms and pairs where the data are a few graphs with these weights: Bayes' rule, graph by graph."""
    share = float(alpha_bar(torch.tensor([t])))
    upper = torch.triu(torch.ones(data.bonds.shape[1:], dtype=torch.bool), diagonal=1)
    pair_noise = PRIOR.of_pairs(now.size, now.atoms.shape[1]).gather(-1, now.bonds[..., None])[..., 0]
    atom_noise = PRIOR.atoms[now.atoms]
    likelihood = []
    for k in range(len(weight)):
        of_atoms = share * (now.atoms == data.atoms[k]) + (1 - share) * atom_noise
        of_pairs = share * (now.bonds == data.bonds[k]) + (1 - share) * pair_noise
        likelihood.append(of_atoms[:, 2:].log().sum(1) + (of_pairs.log() * upper).sum((1, 2)) + math.log(float(weight[k])))
    known = torch.stack(likelihood, 1).softmax(1)
    atoms = torch.einsum("bk,kna->bna", known, torch.nn.functional.one_hot(data.atoms, NUM_CLASSES).double())
    pairs = torch.einsum("bk,knmc->bnmc", known, torch.nn.functional.one_hot(data.bonds, NUM_KINDS).double())
    return atoms, pairs


def test_with_the_exact_denoiser_the_data_come_back() -> None:
    """Three polymers of seven atoms, with chances 0.5, 0.3 and 0.2; noise goes back to them, and to nothing else."""
    texts, weight = ["*CC(*)CCC", "*OC(C)C(=O)*", "*CC(F)(F)C*"], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    data = collate([read_graph(text) for text in texts])
    assert data.size.unique().numel() == 1
    many = 3_000
    generator = rng(5)
    now = draw_prior(PRIOR, data.size[:1].expand(many), generator)
    times = torch.linspace(STEPS, 0, 251).tolist()
    for t, s in itertools.pairwise(times):
        now = step_back(now, *exact_denoiser(data, weight, now, t), t, s, generator)
    same = torch.stack([((now.atoms == data.atoms[k]).all(1) & (now.bonds == data.bonds[k]).flatten(1).all(1)) for k in range(3)], 1)
    assert float(same.any(1).double().mean()) > 0.99  # abar(0) is 0.99991
    np.testing.assert_allclose(same.double().mean(0), weight, atol=0.035)
    assert write_psmiles(now.one(int(same[:, 1].nonzero()[0]))) == write_psmiles(read_graph(texts[1]))
