"""What must hold for every pair of heads: reflection changes the sign of odd results only; batches do not mix; slots may be permuted.

Rotation and translation are removed by the unit frames, so those tests compare losses of rotated chains. Tolerances are float32 noise.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foundation.batch import Batch, Condition, select_chains, to_dense
from foundation.data.collate import ChainExample, collate, featurise, mirror
from foundation.geometry.rotations import random_rotations
from foundation.objectives.polyconfm.view import UnitView
from tests.polyconfm.chains import CHAINS, HEADS, batch_of, model_of, rng, sample


def _loss_inputs(model: torch.nn.Module, batch: Batch) -> tuple:
    known = model.know(batch)
    everything = torch.ones(len(batch.unit_chain), dtype=torch.bool)
    view = UnitView.of(batch, known.graphs, everything)
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    tokens = model.fill_tokens(known, everything, model.encode_units(x, view))
    context, memory = model.trunk.encode(tokens, known.klass, batch, everything)
    z = model.trunk.decode(context, memory, known.query, batch, ~everything)
    return x, view, tokens, context, z


@pytest.mark.parametrize("local", ["torsional", "cartesian"])
def test_reflection_negates_the_odd_half_of_every_token_and_leaves_the_even_half(batch: Batch, local: str) -> None:
    model = model_of(local, "torsion")
    plain, mirrored = _loss_inputs(model, batch), _loss_inputs(model, mirror(batch))
    for before, after in zip(plain[2:], mirrored[2:], strict=True):
        assert before.odd.abs().max() > 1e-2
        assert before.even.abs().max() > 1e-2
        torch.testing.assert_close(after.even, before.even, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(after.odd, -before.odd, atol=2e-5, rtol=1e-4)


def test_a_chiral_unit_and_its_mirror_image_have_different_tokens(batch: Batch) -> None:
    model = model_of("torsional", "torsion")
    before, after = _loss_inputs(model, batch)[2], _loss_inputs(model, mirror(batch))[2]
    chiral = torch.zeros(len(batch.unit_chain)).index_add(0, batch.atom_unit, batch.handedness.abs()) > 0
    assert chiral.any()
    assert not chiral.all()
    assert ((before.odd - after.odd).abs().amax(-1)[chiral] > 1e-2).all()


def test_torsion_scores_are_odd_under_reflection(batch: Batch) -> None:
    model = model_of("torsional", "torsion")
    scores = []
    for image in (batch, mirror(batch)):
        x, view, _, _, z = _loss_inputs(model, image)
        scores.append(model.local_head(x, torch.full((len(x),), 0.7), view, z))
    assert scores[0].abs().max() > 1e-3
    torch.testing.assert_close(scores[1], -scores[0], atol=2e-5, rtol=1e-4)


def test_link_scores_are_odd_and_rotation_scores_change_as_axial_vectors(batch: Batch) -> None:
    sigma = torch.full((batch.num_chains,), 0.7)
    torsion, so3 = model_of("torsional", "torsion"), model_of("torsional", "so3")
    link, spin = [], []
    for image in (batch, mirror(batch)):
        x, _, _, context, _ = _loss_inputs(torsion, image)
        link.append(torsion.orientation_head(image.link_dihedral_rad, sigma, x, context, image, torsion.know(image).graphs))
        x, _, _, context, _ = _loss_inputs(so3, image)
        spin.append(so3.orientation_head(image.world_from_unit, sigma, x, context, image))
    torch.testing.assert_close(link[1], -link[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(spin[1], spin[0] * torch.tensor([-1.0, -1.0, 1.0]), atol=2e-5, rtol=1e-4)
    assert link[0].abs().max() > 1e-3
    assert spin[0].abs().max() > 1e-3


def test_a_global_rotation_of_the_frames_changes_no_body_frame_score(batch: Batch) -> None:
    model = model_of("torsional", "so3")
    x, _, _, context, _ = _loss_inputs(model, batch)
    turn = random_rotations((), rng(5))
    t = torch.full((batch.num_chains,), 0.4)
    plain = model.orientation_head(batch.world_from_unit, t, x, context, batch)
    turned = model.orientation_head(turn @ batch.world_from_unit, t, x, context, batch)
    torch.testing.assert_close(turned, plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("heads", HEADS)
def test_rotating_and_moving_the_chains_changes_no_loss(heads: tuple[str, str]) -> None:
    model, turn = model_of(*heads), random_rotations((), rng(3)).double().numpy()
    moved = [replace(sample(*c), heavy_ang=(sample(*c).heavy_ang @ turn.T + 7.0).astype("float32")) for c in CHAINS]
    plain = model.loss(batch_of(), rng()).loss_per_chain
    turned = model.loss(collate([featurise(s, 0) for s in moved]), rng()).loss_per_chain
    assert plain.std() > 0
    torch.testing.assert_close(turned, plain, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("heads", HEADS)
def test_a_chain_does_not_see_the_other_chains_of_its_batch(heads: tuple[str, str]) -> None:
    model = model_of(*heads)
    alone, among = batch_of(CHAINS[1:2]), batch_of()
    single, many = _loss_inputs(model, alone), _loss_inputs(model, among)
    mine = among.unit_chain == 1
    for part in (2, 3, 4):
        torch.testing.assert_close(many[part].even[mine], single[part].even, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(many[part].odd[mine], single[part].odd, atol=1e-5, rtol=1e-4)
    embedded = model.embed(among).chain[1:2], model.embed(alone).chain
    torch.testing.assert_close(*embedded, atol=1e-5, rtol=1e-4)


def permute_slots(batch: Batch, order: torch.Tensor) -> Batch:
    """A batch of one chain with its unit's slots renumbered: new slot k is old slot order[k]."""
    place = torch.argsort(order)
    bonds, feats = place[batch.bond_index], batch.bond_feat
    units = len(batch.unit_chain)
    return replace(
        batch,
        atom_feat=batch.atom_feat[order],
        represents=place[batch.represents[order]],
        bond_index=bonds,
        bond_feat=feats,
        key_slot=place[batch.key_slot],
        frame_slot=place[batch.frame_slot],
        link_slot=place[batch.link_slot],
        torsion_slot=place[batch.torsion_slot],
        torsion_moved=batch.torsion_moved[:, order],
        stereo_slot=place[batch.stereo_slot],
        handedness=batch.handedness.reshape(units, -1)[:, order].reshape(-1),
        x_unit_ang=batch.x_unit_ang.reshape(units, -1, 3)[:, order].reshape(-1, 3),
    )


def test_renumbering_the_atoms_of_a_unit_changes_no_score_and_permutes_predicted_atoms() -> None:
    one = batch_of(CHAINS[:1])
    order = torch.randperm(one.max_atoms, generator=rng(2))
    renumbered = permute_slots(one, order)
    for local in ("torsional", "cartesian", "ditmc"):
        model = model_of(local, "torsion")
        (x, view, _, _, z), (y, other, _, _, w) = _loss_inputs(model, one), _loss_inputs(model, renumbered)
        level = torch.full((len(x),), 0.5)
        before, after = model.local_head(x, level, view, z), model.local_head(y, level, other, w)
        before, after = (own[0] if local == "ditmc" else own for own in (before, after))
        expected = before if local == "torsional" else before[:, order]
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)


def test_reflection_of_the_flow_of_a_unit(batch: Batch) -> None:
    """DiTMC in the slot, whose relative positions know no symmetry: averaging over both images makes reflection exact."""
    model = model_of("ditmc", "torsion")
    made = []
    for image in (batch, mirror(batch)):
        x, view, _, _, z = _loss_inputs(model, image)
        made.append(model.local_head(x, torch.full((len(x),), 0.7), view, z))
    flip = torch.tensor([1.0, 1.0, -1.0])
    for before, after in zip(*made, strict=True):
        assert before.abs().max() > 1e-2
        torch.testing.assert_close(after, before * flip, atol=1e-4, rtol=1e-3)


def test_select_chains_repeats_and_reorders() -> None:
    whole = batch_of()
    picked = select_chains(whole, torch.tensor([3, 0, 0]))
    expected = collate([ChainExample(batch_of((CHAINS[k],))) for k in (3, 0, 0)])
    for name in Condition.__dataclass_fields__:
        got, want = getattr(picked, name), getattr(expected, name)
        if name == "torsion_moved":
            got = got[:, : want.shape[1]]
        assert got is want is None or torch.equal(got, want), name
