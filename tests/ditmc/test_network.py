"""The network's symmetries in both directions, attention against plain attention, blocks and padding, sizes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from e3nn import o3
from torch import Tensor

from foundation.geometry.rotations import random_rotations
from foundation.molecules import NUM_CLASSES, Molecules, possible_classes
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.equivariant import NUM_RADIAL, Basis, EquivariantTransformer, KindAttention, KindBlock, Tokens, bernstein
from foundation.objectives.ditmc.model import DiTMC
from foundation.objectives.ditmc.network import Attention, Conditioner
from tests.ditmc.given import SMILES, model_of, molecules_of, rng

VARIANTS = list(product(("ape", "rpe", "pe3"), ("all_pair", "bond_pair")))
TURNED = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]
ROTATION = TURNED * torch.det(TURNED).sign()
T = torch.tensor([0.1, 0.6, 0.9])


def given(texts: tuple[str, ...] = SMILES[2:5]) -> tuple[Molecules, Tensor]:
    molecules = molecules_of(texts, hydrogens=True)[0]
    x = torch.randn(*molecules.mask.shape, 3, generator=rng(1)) * 2 * molecules.mask[..., None]
    return molecules, x


def said(model: DiTMC, molecules: Molecules, x: Tensor, t: Tensor = T) -> Tensor:
    with torch.no_grad():
        return torch.cat(model.heads(x, t, model.conditioner(molecules)), -1)


@pytest.mark.parametrize(("scheme", "condition"), VARIANTS)
def test_numbering_of_atoms_does_not_matter(scheme: str, condition: str) -> None:
    model, (molecules, x) = model_of(scheme=scheme, condition=condition), given(("CC(=O)Oc1ccccc1C(=O)O",))
    n = molecules.mask.shape[1]
    order = torch.randperm(n, generator=rng(2))
    back = torch.argsort(order)
    moved = Molecules(
        molecules.atom_feat[:, order], molecules.mask, back[molecules.bond_atom], molecules.bond_feat,
        molecules.classes[:, order][:, :, order], molecules.piece,
    )  # fmt: skip
    one, two = said(model, molecules, x, T[:1]), said(model, moved, x[:, order], T[:1])
    assert (one[:, order] - two).abs().max() < 1e-5
    assert one.std() > 0.05


@pytest.mark.parametrize(("scheme", "condition"), VARIANTS)
def test_a_molecule_does_not_know_its_batch(scheme: str, condition: str) -> None:
    model, (molecules, x) = model_of(scheme=scheme, condition=condition), given()
    together = said(model, molecules, x)
    for row, text in enumerate(SMILES[2:5]):
        alone = molecules_of((text,), hydrogens=True)[0]
        n = alone.mask.shape[1]
        assert (said(model, alone, x[row : row + 1, :n], T[row : row + 1])[0] - together[row, :n]).abs().max() < 1e-5
    assert together[~molecules.mask].abs().max() == 0


@pytest.mark.parametrize("condition", ["all_pair", "bond_pair"])
def test_what_must_hold_holds_and_what_must_break_breaks(condition: str) -> None:
    """Errors of f(R x) = R f(x), f(x + a) = f(x) and of reflection, for each scheme."""
    molecules, x = given()
    mask = molecules.mask[..., None]
    flip = torch.tensor([1.0, 1.0, -1.0])

    def pairs(six: Tensor, turn: Tensor) -> Tensor:
        return torch.cat([own @ turn.T for own in six.chunk(2, -1)], -1)

    found = {}
    for scheme in ("ape", "rpe", "pe3"):
        model = model_of(scheme=scheme, condition=condition)
        plain = said(model, molecules, x)
        rotated = said(model, molecules, x @ ROTATION.T)
        moved = said(model, molecules, (x + torch.tensor([3.0, -2.0, 1.0])) * mask)
        mirrored = said(model, molecules, x * flip)
        size = plain.std()
        errors = (rotated - pairs(plain, ROTATION), moved - plain, mirrored - pairs(plain, torch.diag(flip)))
        found[scheme] = [float(error.abs().max() / size) for error in errors]
    assert found["pe3"][0] < 1e-4
    assert found["pe3"][1] < 1e-4
    assert found["pe3"][2] > 1e-3, "a molecule and its mirror image must be told apart"
    assert found["rpe"][0] > 0.1
    assert found["rpe"][1] < 1e-4
    assert min(found["ape"]) > 0.1


@pytest.mark.parametrize(("scheme", "condition"), VARIANTS)
def test_pairs_made_in_blocks_are_the_same_pairs(scheme: str, condition: str) -> None:
    molecules, x = given()
    grads = []
    for at_once in (10**9, 1):
        model = model_of(scheme=scheme, condition=condition, pairs_at_once=at_once)
        made = torch.cat(model.heads(x, T, model.conditioner(molecules)), -1)
        made.square().sum().backward()
        grads.append((made.detach(), [own.grad for own in model.parameters() if own.grad is not None]))
    assert (grads[0][0] - grads[1][0]).abs().max() < 1e-5
    assert len(grads[0][1]) == len(grads[1][1])
    for one, two in zip(grads[0][1], grads[1][1], strict=True):
        assert (one - two).abs().max() <= 1e-4 * one.abs().max() + 1e-6


@pytest.mark.parametrize("scheme", ["ape", "rpe", "pe3"])
def test_turns_are_read_and_lost_with_the_rest_of_the_graph(scheme: str) -> None:
    model = model_of(scheme=scheme)
    one, two = (molecules_of((text,), hydrogens=True)[0] for text in ("C[C@H](O)F", "C[C@@H](O)F"))
    x = torch.randn(*one.mask.shape, 3, generator=rng(1))
    assert (said(model, one, x, T[:1]) - said(model, two, x, T[:1])).abs().max() > 1e-4
    other = molecules_of(("O[C@H](C)Br",), hydrogens=True)[0]
    nothing = torch.zeros(1, dtype=torch.bool)
    with torch.no_grad():
        null = [torch.cat(model.heads(x, T[:1], model.conditioner(own, nothing)), -1) for own in (one, other)]
    assert torch.equal(null[0], null[1]), "of the null branch only the number of atoms is known"


@pytest.mark.parametrize("scheme", ["ape", "rpe", "pe3"])
def test_a_single_atom_and_coinciding_atoms_are_finite(scheme: str) -> None:
    model = model_of(scheme=scheme)
    molecules = molecules_of(("[Na+]", "CC"), hydrogens=False)[0]
    x = torch.zeros(2, 2, 3, requires_grad=True)
    made = torch.cat(model.heads(x, T[:2], model.conditioner(molecules)), -1)
    assert made.isfinite().all()
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_at_the_start_blocks_say_nothing() -> None:
    torch.manual_seed(0)
    model = DiTMC(DiTMCConfig(width=32, num_heads=4, num_layers=2))
    molecules, x = given()
    known = model.conditioner(molecules)
    assert torch.equal(model.network(x, T, known), model.network(2 * x, T, known))
    plain = model.network.out(model.network.norm(known.element))
    assert torch.allclose(model.network(x, T, known), plain, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- attention


def test_attention_without_gates_is_plain_attention_to_others() -> None:
    config = DiTMCConfig(width=32, num_heads=4)
    torch.manual_seed(1)
    layer, y = Attention(config), torch.randn(2, 7, 32)
    with torch.no_grad():
        layer.gates.weight.copy_(torch.cat([torch.eye(32), torch.eye(32)]))
        made = layer(y, lambda rows: torch.ones(2, rows.stop - rows.start, 7, 32), torch.ones(2, 7, dtype=torch.bool), 7)
        query, key, value = (own.view(2, 7, 4, 8).transpose(1, 2) for own in layer.qkv(y).chunk(3, -1))
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=~torch.eye(7, dtype=torch.bool))
        assert torch.allclose(made, layer.out(plain.transpose(1, 2).reshape(2, 7, 32)), atol=1e-5)


def test_attention_by_classes_is_attention_by_pairs() -> None:
    config = DiTMCConfig(width=32, num_heads=4)
    torch.manual_seed(1)
    layer, y, table = Attention(config), torch.randn(3, 9, 32), torch.randn(NUM_CLASSES + 1, 32)
    classes = torch.tensor([*possible_classes(9), NUM_CLASSES])[torch.randint(0, 14, (3, 9, 9))]
    mask = torch.arange(9) < torch.tensor([9, 6, 1])[:, None]
    with torch.no_grad():
        one = layer.by_class(y, table, classes, mask)
        two = layer(y, lambda rows: table[classes[:, rows]], mask, 4)
    assert torch.allclose(one[mask], two[mask], atol=1e-5)


# -------------------------------------------------------------------------------------------------------- degrees 0 and 1


def test_messages_are_products_of_e3nn() -> None:
    """One head, one channel: every path is a tensor product of the pair's filter with a token, up to its constant."""
    torch.manual_seed(0)
    config = DiTMCConfig(scheme="pe3", width=8, num_heads=1)
    layer = KindAttention(config, first=False, last=False)
    n = 5
    x = torch.randn(1, n, 3, generator=rng(1))
    kinds = [torch.randn(1, n, 8, generator=rng(2 + k)) if k < 2 else torch.randn(1, n, 3, 8, generator=rng(2 + k)) for k in range(4)]
    value = Tokens(*kinds)
    mask = torch.ones(1, n, dtype=torch.bool)
    radial = torch.rand(1, NUM_RADIAL, n, n, generator=rng(7))
    basis = Basis(radial, radial, x, x)
    zeros = Tokens(*(torch.zeros_like(own) for own in kinds))  # equal shares
    with torch.no_grad():
        made = layer._mixed(zeros, zeros, value, basis, mask, 0)
        f0, f1 = (torch.einsum("ck,bkij->bijc", own.weight, radial)[0] for own in (layer.filter_0, layer.filter_1))
    apart = x[0][None] - x[0][:, None]  # (i, j, 3)
    pair = {"0e": f0[:, :, None], "1o": apart[..., None] * f1[:, :, None]}
    token = {"0e": kinds[0][0][:, None], "0o": kinds[1][0][:, None], "1o": kinds[2][0], "1e": kinds[3][0]}
    constants = {(0, 0, 0): 1.0, (0, 1, 1): 3**0.5, (1, 0, 1): 3**0.5, (1, 1, 0): 3**0.5, (1, 1, 1): 6**0.5}
    expected = {name: torch.zeros(n, 2 * int(name[0]) + 1, 8) for name in token}
    share = (1 - torch.eye(n)) / (n - 1)
    for one, two, out in product(pair, token, token):
        degrees = (int(one[0]), int(two[0]), int(out[0]))
        odd = sum(own[1] == "o" for own in (one, two, out))
        if degrees in constants and odd % 2 == 0:
            tensor = constants[degrees] * o3.wigner_3j(*degrees)
            expected[out] += torch.einsum("xyz,ij,ijxc,jyc->izc", tensor, share, pair[one], token[two])
    for name, own in zip(("0e", "0o", "1o", "1e"), made, strict=True):
        assert own is not None
        found = own[0] if own.dim() == 4 else own[0][:, None]
        assert (found - expected[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("reflected", [False, True])
def test_blocks_turn_and_reflect_as_irreps_do(reflected: bool) -> None:
    """Even reflection, kind by kind: only the readout tells a molecule from its image."""
    model, (molecules, x) = model_of(scheme="pe3", num_layers=4), given()
    network = model.network
    assert isinstance(network, EquivariantTransformer)
    turn = ROTATION * (-1 if reflected else 1)
    known = model.conditioner(molecules)
    c = known.atoms + network.time(T)[:, None]

    def through(x: Tensor) -> Tokens:
        h = Tokens(known.element)
        for layer in network.blocks:
            assert isinstance(layer, KindBlock)
            h = layer(h, c, lambda rows: network.basis(x, known, rows), known.mask, x.shape[1])
        return h

    with torch.no_grad():
        one, two = through(x), through(x @ turn.T)
    irreps = o3.Irreps("0e + 0o + 1o + 1e").D_from_matrix(turn.double()).float()
    first = torch.cat([own if own.dim() == 4 else own[:, :, None] for own in one if own is not None], 2)
    second = torch.cat([own if own.dim() == 4 else own[:, :, None] for own in two if own is not None], 2)
    assert (torch.einsum("mk,bikc->bimc", irreps, first) - second)[molecules.mask].abs().max() < 2e-4 * first.abs().max()
    for own in one:
        assert own is not None
        assert own[molecules.mask].std() > 1e-5, "every kind carries something"


def test_radial_functions_add_up_to_one() -> None:
    r = torch.tensor([0.0, 1e-3, 1.0, 3.0, 40.0], dtype=torch.float64)
    made = bernstein(r[None, None])
    assert made.shape == (1, NUM_RADIAL, 1, 5)
    assert (made.sum(1) - 1).abs().max() < 1e-6
    assert made.min() >= 0
    assert made[0, :, 0, 1:].argmax(0).tolist() == sorted(made[0, :, 0, 1:].argmax(0).tolist()), "farther pairs lie in later functions"


# ------------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("fields", "published"),
    [
        ({"scheme": "rpe"}, 9.56e6),
        ({"scheme": "ape"}, 9.56e6),
        ({"scheme": "rpe", "width": 384, "num_heads": 12, "num_layers": 8}, 27.26e6),
        ({"scheme": "pe3"}, 27.17e6),
    ],
)
def test_sizes_are_the_published_ones(fields: dict[str, object], published: float) -> None:
    """But for what is another size on purpose: classes of pairs instead of 512 distances, features of atoms and bonds, dead outputs."""
    config = DiTMCConfig(**fields)  # type: ignore[arg-type]
    model, width = DiTMC(config), config.width
    conditioner = Conditioner(config)
    mine = sum(own.numel() for own in model.parameters())
    features = 94 + 4 - conditioner.node[0].in_features - conditioner.edge[0].in_features
    other = (512 - NUM_CLASSES - 1) * width + features * width
    if config.scheme == "pe3":
        other += 2 * width * (width + 1)  # scale and shift of scalars that are not read
        other += 13 * width * width + width  # scalars and pseudoscalars of the last block
        other += (512 - NUM_CLASSES - 1) * (128 - width)  # narrower embeddings of classes
    assert mine + other == pytest.approx(published, rel=1.5e-3)


def test_rotations_of_training_are_uniform_and_proper() -> None:
    turns = random_rotations((1000,), rng())
    assert torch.det(turns).min() > 0.999
    assert turns.mean(0).abs().max() < 0.1
