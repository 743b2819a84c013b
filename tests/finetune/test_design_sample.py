"""Denoiser, guidance, bonds placed by valence, training that goes on, and fragments that are kept."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.console import Resumable
from data_shards.progress import Silent
from finetune.design.drawing import Wishes, draw_polymers, draw_sizes
from finetune.design.goals import check_reach, parse_targets, properties_of
from finetune.design.graphs import AROMATIC_BONDS, NONE, NUM_KINDS, STAR, VALENCE, Graphs, collate, read_graph, write_psmiles
from finetune.design.guide import rank
from finetune.design.network import Asked, Denoiser, DenoiserConfig
from finetune.design.process import Prior, noised
from finetune.design.sample import SampleSettings, guided, place_bonds, sample, usage
from finetune.design.saved import Generator, Known, load_generator, save_generator
from finetune.design.train import STATE, Material, TrainSettings, order_of, step_of, told, train
from finetune.design.wish import classes_of, fragment
from foundation.errors import CheckpointError, InputError

POLYMERS = ("*CC(*)c1ccccc1", "*CCO*", "*OC(C)C(=O)*", "*CC(F)(F)*", "*c1ccc(*)s1", "*NCCCCCC(*)=O", "*C=CC#C*", "*[Si](C)(C)O*")
GRAPHS = [read_graph(psmiles) for psmiles in POLYMERS]
PRIOR = Prior.of(GRAPHS)
SMALL = DenoiserConfig(width=32, pair_width=16, paths=8, num_layers=2, num_heads=4, num_properties=2, reference_width=3)


def network(seed: int = 0, config: DenoiserConfig = SMALL) -> Denoiser:
    """With weights that let every condition through."""
    torch.manual_seed(seed)
    made = Denoiser(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def noisy(t: int = 200) -> Graphs:
    return noised(collate(GRAPHS), torch.full((len(GRAPHS),), t), PRIOR, torch.Generator().manual_seed(t))


def asked(seed: int = 1) -> Asked:
    rng = torch.Generator().manual_seed(seed)
    return Asked(torch.randn(len(GRAPHS), 2, generator=rng), torch.randn(len(GRAPHS), 3, generator=rng))


def times(t: int = 200) -> Tensor:
    return torch.full((len(GRAPHS),), t)


# -------------------------------------------------------------------------------------------------------------- network


@torch.no_grad()
def test_padding_and_the_rest_of_the_batch_do_not_matter() -> None:
    net, given, conditions = network(), noisy(), asked()
    atoms, pairs = net(given, times(), conditions)
    for row in (1, 3):
        n = int(given.size[row])
        alone = Graphs(given.atoms[[row], :n], given.bonds[[row], :n, :n], given.size[[row]])
        own_atoms, own_pairs = net(alone, times()[:1], conditions.rows(torch.tensor([row])))
        torch.testing.assert_close(own_atoms[0], atoms[row, :n], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(own_pairs[0], pairs[row, :n, :n], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_of_one_is_what_was_asked_and_the_null_branch_knows_nothing() -> None:
    net, given, one, other = network(), noisy(), asked(1), asked(2)
    plain = [own.softmax(-1) for own in net(given, times(), one)]
    for found, expected in zip(guided(net, given, times(), one, 1), plain, strict=True):
        assert torch.equal(found, expected.log().softmax(-1)) or torch.allclose(found, expected, atol=1e-6)
    calls = []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    guided(net, given, times(), one, 1)
    assert len(calls) == 1  # the null branch is not computed
    guided(net, given, times(), one, 2)
    assert len(calls) == 3
    hook.remove()
    for condition in (Asked(other.properties, one.reference), Asked(one.properties, other.reference), other):
        assert all(
            torch.equal(a, b) for a, b in zip(guided(net, given, times(), one, 0), guided(net, given, times(), condition, 0), strict=True)
        )
        different = guided(net, given, times(), condition, 1)
        assert not torch.allclose(different[0], plain[0], atol=1e-4)  # each condition says something
    assert torch.isnan(one.null().properties).all()
    assert torch.isnan(one.null().reference).all()
    null, told_one = guided(net, given, times(), one, 0), guided(net, given, times(), one, 1)
    twice = guided(net, given, times(), one, 2)
    for a, b, c in zip(null, told_one, twice, strict=True):
        expected = (b.double().square() / a.double()).nan_to_num()
        torch.testing.assert_close(c.double(), expected / expected.sum(-1, keepdim=True), atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------- bonds


def test_bonds_never_break_a_valence_and_make_one_piece() -> None:
    rng = torch.Generator().manual_seed(0)
    size = torch.randint(6, 25, (40,), generator=rng)
    width = int(size.max())
    mask = torch.arange(width) < size[:, None]
    atoms = torch.where(mask, 1 + torch.multinomial(PRIOR.atoms[1:].float().expand(40, -1), width, True, generator=rng), STAR)
    atoms[:, :2] = STAR
    pairs = torch.rand(40, width, width, NUM_KINDS, generator=rng).pow(3)
    pairs[..., NONE] *= 8
    pairs = (pairs + pairs.transpose(1, 2)) / (pairs + pairs.transpose(1, 2)).sum(-1, keepdim=True)
    kinds = place_bonds(atoms, pairs, size)
    assert torch.equal(kinds, kinds.transpose(1, 2))
    aromatic = (kinds == 4).sum(-1)
    plain, double = torch.where(kinds < 4, kinds, 0).sum(-1), (kinds == 2).any(-1)
    assert (usage(plain, aromatic, atoms, double) <= VALENCE[atoms])[mask].all()
    assert (aromatic <= AROMATIC_BONDS[atoms]).all()
    assert ((kinds[:, :2] > 0).sum(-1) == 1).all()  # a star has one bond
    assert not kinds[:, 0, 1].any()
    room = (usage(plain, aromatic, atoms, double) < VALENCE[atoms]) & mask
    for row in range(40):
        reached = torch.eye(width)[0] > 0
        for _ in range(width):
            reached |= (kinds[row, reached] > 0).any(0)
        rest = mask[row] & ~reached
        assert not rest.any() or not (room[row] & reached).any() or not (room[row] & rest).any()  # in pieces only where one is used up


RINGS = (
    "*c1ccc(-n2c(=O)c3cc4c(=O)n(*)c(=O)c4cc3c2=O)cc1",  # a carbon of an aromatic ring with its double bond out of it
    "*Oc1ccc2c(=O)n3c4cc(*)ccc4nc3c3cccc1c23",
    "*c1ccc2oc(=O)c(*)cc2c1",
    "*C=c1ccc(=Cc2ccc(*)s2)s1",
    "*c1ccc2c(c1)C(=O)N(*)C2=O",
    "*c1cc[n+](*)cc1",
    "*c1ccc2c(c1)[nH]c1cc(*)ccc12",
)


@pytest.mark.parametrize("psmiles", [*POLYMERS, *RINGS])
@pytest.mark.parametrize("sure", [1.0, 0.6])
def test_bonds_of_a_polymer_are_placed_as_they_are(psmiles: str, sure: float) -> None:
    """What is likeliest everywhere is what is placed: no valence is in the way of a polymer, in whatever order its bonds come."""
    own = collate([read_graph(psmiles)])
    truth = torch.nn.functional.one_hot(own.bonds, NUM_KINDS).float()
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(4))
    noise = noise + noise.transpose(1, 2)
    pairs = sure * truth + (1 - sure) * noise / noise.sum(-1, keepdim=True)
    kinds = place_bonds(own.atoms, pairs, own.size)
    assert torch.equal(kinds, own.bonds)
    assert write_psmiles(Graphs(own.atoms, kinds, own.size).one(0)) == write_psmiles(read_graph(psmiles))


def test_aromatic_bonds_close_rings_or_become_others() -> None:
    """A chain of five carbons, likeliest aromatic, and a ring of six that is."""
    atoms = torch.tensor([[0, 0, *11 * [1]]])
    likely = torch.full((1, 13, 13, NUM_KINDS), 1e-4)
    likely[..., NONE] = 1.0

    def say(i: int, j: int, kind: int, other: int) -> None:
        for a, b in ((i, j), (j, i)):
            likely[0, a, b] = 1e-4
            likely[0, a, b, kind], likely[0, a, b, other] = 0.7, 0.3

    for i in range(2, 6):
        say(i, i + 1, 4, 1)
    for i in range(7, 12):
        say(i, i + 1, 4, 1)
    say(7, 12, 4, 1)
    say(6, 7, 1, 2)
    say(0, 2, 1, 2)
    say(1, 10, 1, 2)
    kinds = place_bonds(atoms, likely, torch.tensor([13]))[0]
    assert [int(kinds[i, i + 1]) for i in range(2, 7)] == [1, 1, 1, 1, 1]
    assert [int(kinds[i, i + 1]) for i in range(7, 12)] == [4] * 5
    assert int(kinds[7, 12]) == 4


def test_certain_bonds_are_placed_as_they_are() -> None:
    clean = collate(GRAPHS)
    pairs = torch.nn.functional.one_hot(clean.bonds, NUM_KINDS).float()
    assert torch.equal(place_bonds(clean.atoms, pairs, clean.size), clean.bonds)


def test_what_is_forbidden_is_not_drawn_and_what_is_kept_is_there() -> None:
    net = network(config=replace(SMALL, num_properties=0, reference_width=0))
    none = Asked(torch.zeros(24, 0), torch.zeros(24, 0))
    rng = torch.Generator().manual_seed(4)
    size = torch.full((24,), 14)
    forbidden = classes_of("F,S")
    drawn = sample(net, PRIOR.without(forbidden), size, none, SampleSettings(steps=4, guidance=1), rng, fragment("*c1ccccc1"))
    assert not torch.isin(drawn.graphs.atoms, torch.tensor(forbidden)).any()
    kept = fragment("*c1ccccc1")
    n = kept.graph.atoms.shape[1]
    assert n == 8
    for found in (drawn.graphs, drawn.plain):
        assert (found.atoms[:, 2:n] == kept.graph.atoms[0, 2:]).all()
        assert torch.equal(found.bonds[:, :n, :n][:, kept.known], kept.graph.bonds[0][kept.known].expand(24, -1))
    assert not kept.known[1].any()  # the other star is free
    for smiles, words in (("c1ccc", "cannot be read"), ("*=C", "one single bond"), ("[Fe]C", "not designed"), ("*C(*)*", "3 stars")):
        with pytest.raises(InputError, match=words):
            fragment(smiles)


# ------------------------------------------------------------------------------------------------------------- training


def material(num_properties: int = 0) -> Material:
    number = len(GRAPHS)
    values = np.random.default_rng(0).normal(size=(number, num_properties)).astype(np.float32)
    return Material(GRAPHS, values, np.zeros((number, 0, 0), dtype=np.float32), np.ones(number))


def test_a_pass_reads_every_polymer_as_often_as_its_weight_says() -> None:
    weighted = replace(material(), weight=np.array([2.0, 0.5] + 6 * [1.0]))
    passes = [np.concatenate(order_of(weighted, TrainSettings(pairs=300), 3, epoch)) for epoch in range(200)]
    counts = np.bincount(np.concatenate(passes), minlength=8) / 200
    np.testing.assert_allclose(counts[[0, *range(2, 8)]], [2.0] + 6 * [1.0])
    assert counts[1] == pytest.approx(0.5, abs=0.12)
    for batch in order_of(weighted, TrainSettings(pairs=300), 3, 0):
        assert len(batch) == 1 or len(batch) * max(len(GRAPHS[k].atoms) for k in batch) ** 2 <= 300


def test_conditions_are_dropped_together_and_one_by_one() -> None:
    number = 4_000
    references = np.arange(3 * number, dtype=np.float32).reshape(number, 3, 1)
    rows = np.arange(number)
    every = Material([GRAPHS[0]] * number, np.zeros((number, 2), np.float32), references, np.ones(number))
    settings = TrainSettings(drop_all=0.2, drop_each=0.25, drop_reference=0.5)
    given = told(every, rows, settings, np.random.default_rng(0))
    absent, no_reference = torch.isnan(given.properties), torch.isnan(given.reference).any(1)
    assert float(absent.float().mean()) == pytest.approx(0.2 + 0.8 * 0.25, abs=0.03)
    assert float(no_reference.float().mean()) == pytest.approx(0.2 + 0.8 * 0.5, abs=0.03)
    nothing = (absent.all(1) & no_reference).float().mean()
    assert float(nothing) == pytest.approx(0.2 + 0.8 * 0.25**2 * 0.5, abs=0.03)
    there = ~no_reference
    assert (given.reference[there, 0] // 3 == torch.from_numpy(rows)[there]).all()  # one of its own references


def test_training_goes_on_where_it_was_stopped_to_the_last_bit(tmp_path: Path) -> None:
    config = replace(SMALL, num_properties=2, reference_width=0)
    settings = TrainSettings(steps=12, pairs=600, warmup=4, every=5)
    whole = train(network(config=config), material(2), PRIOR, settings, 7)
    seen: list[int] = []

    def stop(step: int, metrics: dict[str, float]) -> None:
        seen.append(step)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(config=config), material(2), PRIOR, settings, 7, tmp_path, stop)
    assert (tmp_path / STATE).is_file()
    again = train(network(config=config), material(2), PRIOR, settings, 7, tmp_path, lambda step, _: seen.append(step))
    assert seen == [*range(1, 9), *range(6, 13)]  # from the state of step 5
    for (name, one), (_, other) in zip(whole.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(InputError, match="another model"):
        train(network(config=replace(config, width=16)), material(2), PRIOR, settings, 7, tmp_path)


def test_a_request_to_stop_leaves_the_state_of_the_step_before_it(tmp_path: Path) -> None:
    config = replace(SMALL, num_properties=2, reference_width=0)
    settings = TrainSettings(steps=9, pairs=600, warmup=4, every=100)

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Resumable, match="at step 7 of 9"):
        train(network(config=config), material(2), PRIOR, settings, 7, tmp_path, stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert step_of(tmp_path) == 7
    seen: list[int] = []
    again = train(network(config=config), material(2), PRIOR, settings, 7, tmp_path, lambda step, _: seen.append(step))
    assert seen == [8, 9]
    whole = train(network(config=config), material(2), PRIOR, settings, 7)
    for (name, one), (_, other) in zip(whole.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_it_learns_four_polymers_by_heart_and_tells_them_by_their_property(tmp_path: Path) -> None:
    """Four polymers of one size with the values -1.5, -0.5, 0.5, 1.5: drawn when asked for, and saved and read again."""
    texts = ("*CC(*)CCC", "*OC(C)C(=O)*", "*CC(F)(F)C*", "*SCCCC*")
    graphs = [read_graph(text) for text in texts]
    assert {len(own.atoms) for own in graphs} == {7}
    values = np.array([[-1.5], [-0.5], [0.5], [1.5]])
    given = Material(16 * graphs, np.tile(values, (16, 1)).astype(np.float32), np.zeros((64, 0, 0), np.float32), np.ones(64))
    prior = Prior.of(graphs)
    config = DenoiserConfig(width=64, pair_width=16, paths=8, num_layers=3, num_heads=4, num_properties=1)
    torch.manual_seed(0)
    net = train(Denoiser(config), given, prior, TrainSettings(steps=900, lr=2e-3, warmup=50, ema=0.99), 0)
    task = properties_of("tg")
    known = Known(texts, texts, np.full(4, 7), values, np.ones(4, dtype=bool))
    made = Generator(net, prior, task, np.zeros(1), np.ones(1), None, known, np.bincount([7]), frozenset(texts))
    save_generator(made, tmp_path)
    made = load_generator(tmp_path)
    wanted = np.repeat(values, 16, axis=0)
    wishes = Wishes(wanted, np.zeros((64, 0), dtype=np.float32))
    outcomes = draw_polymers(made, wishes, SampleSettings(steps=100, guidance=2.0), 0, Silent())
    canonical = [write_psmiles(own) for own in graphs]
    right = [own.psmiles == canonical[k // 16] for k, own in enumerate(outcomes)]
    assert np.mean(right) > 0.9
    assert np.mean([own.plain for own in outcomes]) > 0.85
    (tmp_path / "seen.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not what was written"):
        load_generator(tmp_path)


# -------------------------------------------------------------------------------------------------------------- wishes


def test_targets_are_read_and_bad_ones_are_named() -> None:
    gas, tg = properties_of("gas"), properties_of("tg")
    one, other = parse_targets(["o2=100", "10<CO2<500"], gas)
    assert (one.task.name, one.low, one.high, one.is_value) == ("o2", 100, 100, True)
    assert (other.task.name, other.low, other.high) == ("co2", 10, 500)
    assert str(parse_targets(["tg>450"], tg)[0]) == "tg>450"
    np.testing.assert_allclose(one.learned, [np.log(100)] * 2)
    sure = np.full(3, 1e-9)
    np.testing.assert_allclose(other.expected(np.log([5.0, 100.0, 1000.0]), sure), [np.log(2) ** 2, 0, np.log(2) ** 2], atol=1e-12)
    np.testing.assert_allclose(parse_targets(["tg<-10.5"], tg)[0].expected(np.array([-20.0, 0.0]), sure[:2]), [0, 10.5**2], atol=1e-12)
    draws = np.random.default_rng(0).normal(1.2, 0.7, 400_000)
    for target, far in (
        (parse_targets(["tg=2"], tg)[0], (draws - 2) ** 2),
        (parse_targets(["tg>1"], tg)[0], np.maximum(1 - draws, 0) ** 2),
        (parse_targets(["1<tg<1.5"], tg)[0], np.maximum(np.maximum(1 - draws, draws - 1.5), 0) ** 2),
    ):
        found = target.expected(np.array([1.2]), np.array([0.7]))[0]
        assert found == pytest.approx(far.mean(), rel=0.01)
    for words, problem in (
        (["o2=0"], "above 0"), (["tg=1"], "does not know"), (["o2"], "must be a value"), (["5<o2<1"], "exchange"),
        (["o2=1", "o2>2"], "more than once"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=problem):
            parse_targets(words, gas)
    with pytest.raises(InputError, match="--task must be one of"):
        properties_of("colour")
    values = np.linspace(0, 100, 101)[:, None]
    assert not check_reach(parse_targets(["tg=50"], tg), values, tg)
    assert "extrapolated" in check_reach(parse_targets(["tg=120"], tg), values, tg)[0]
    with pytest.raises(InputError, match="out of reach"):
        check_reach(parse_targets(["tg=300"], tg), values, tg)


def test_ranges_are_filled_as_the_training_values_are_spread() -> None:
    target = parse_targets(["tg>50"], properties_of("tg"))[0]
    rng = np.random.default_rng(0)
    values = rng.normal(40, 10, 5_000)
    wish = target.wish(2_000, values, rng)
    assert wish.min() >= 50
    assert wish.mean() == pytest.approx(values[values > 50].mean(), abs=0.5)
    beyond = parse_targets(["tg>90"], properties_of("tg"))[0].wish(100, np.linspace(0, 80, 50), rng)
    assert beyond.min() >= 90
    assert beyond.max() <= 90 + 0.25 * 40 + 1e-6


def test_sizes_are_those_of_polymers_with_such_values() -> None:
    size = np.repeat([10, 30], 50)
    known = Known(("*C*",) * 100, ("x",) * 100, size, np.where(size == 10, -1.0, 1.0)[:, None] * 20, np.ones(100, dtype=bool))
    made = Generator(network(), PRIOR, properties_of("tg"), np.zeros(1), np.full(1, 20.0), None, known, np.bincount(size), frozenset())
    rng = np.random.default_rng(0)
    found = draw_sizes(made, np.array([[-20.0]] * 50 + [[20.0]] * 50 + [[np.nan]] * 200), rng)
    assert set(found[:50].tolist()) == {10}
    assert set(found[50:100].tolist()) == {30}
    assert 0.3 < (found[100:] == 10).mean() < 0.7
    assert draw_sizes(made, np.array([[-20.0]] * 20), rng, fewest=12).min() == 30


def test_proposals_are_cheap_and_unlike_each_other() -> None:
    counts = np.zeros((4, 8), dtype=np.int16)
    counts[:2, :4], counts[2, 4:], counts[3, :3] = 2, 2, 2
    atoms = np.full(4, 4)
    assert rank(np.array([0.0, 0.01, 0.2, 0.5]), counts, atoms, 4) == [0, 2, 1, 3]  # the twin of the first waits
    assert rank(np.array([0.0, 0.01, 5.0, 5.0]), counts, atoms, 2) == [0, 1]
