"""Angles taken from other junctions: of the same kind, mirrored where the kind is, never of another polymer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from foundation.batch import Batch, Condition
from foundation.data.collate import mirror
from foundation.objectives.polyconfm.proposals import FEWEST, exchanged, junction_kinds
from tests.polyconfm.chains import batch_of, rng

PLAIN, CHIRAL = "*CCO*", "*CC(*)c1ccccc1"


def units_of(condition: Condition, chain: int) -> Tensor:
    return (condition.unit_chain == chain).nonzero()[:, 0]


def centre_signs(batch: Batch) -> Tensor:
    """(U,) handedness of the one stereocentre of every unit of batch_of, 0 where there is none."""
    return torch.zeros(len(batch.unit_chain)).index_add(0, batch.atom_unit, batch.handedness)


def test_kinds_are_polymer_and_configuration_of_both_units() -> None:
    batch = batch_of(((CHIRAL, 12), (PLAIN, 5), (CHIRAL, 9)))
    kind, sign = junction_kinds(batch)
    hand, joined = centre_signs(batch), batch.has_next
    same = (hand * hand[batch.unit_after]).long()  # 1 meso, -1 racemo, 0 achiral
    for chosen in (units_of(batch, 0), units_of(batch, 2), torch.cat([units_of(batch, 0), units_of(batch, 2)])):
        inside = chosen[joined[chosen]]
        assert len(set(zip(kind[inside].tolist(), same[inside].tolist(), strict=True))) == 2  # meso and racemo, told apart and no more
        assert len(set(kind[inside].tolist())) == 2
        assert (sign[inside] == hand[inside]).all()
    plain = units_of(batch, 1)
    assert len(set(kind[plain[:-1]].tolist())) == 1
    assert not set(kind[plain].tolist()) & set(kind[units_of(batch, 0)].tolist())


def test_the_mirror_image_has_the_same_kinds_and_the_opposite_signs() -> None:
    batch = batch_of(((CHIRAL, 12), ("*CC(*)(C)C(=O)OC", 6)))
    kind, sign = junction_kinds(batch)
    other, opposite = junction_kinds(mirror(batch))
    chiral = centre_signs(batch) != 0
    assert chiral.all()
    assert torch.equal(kind, other)
    assert torch.equal(sign, -opposite)


def test_every_proposal_is_an_angle_of_the_same_kind_turned_to_its_hand() -> None:
    batch = batch_of(((CHIRAL, 12), (PLAIN, 5), (CHIRAL, 9)))
    angles = torch.arange(1.0, len(batch.unit_chain) + 1)  # each its own name
    drawn, rare = exchanged(angles, batch, 400, rng())
    kind, sign = junction_kinds(batch)
    joined = batch.has_next
    source = drawn.abs().long() - 1
    assert joined[source[:, joined]].all()
    assert (kind[source] == kind)[:, joined].all()
    assert (drawn.sign() == sign * sign[source])[:, joined].all()
    for unit in joined.nonzero()[:, 0].tolist():  # all of the kind are met, evenly
        alike = (joined & (kind == kind[unit])).nonzero()[:, 0]
        counts = torch.bincount(source[:, unit], minlength=len(kind))[alike]
        assert (counts > 0).all()
        assert counts.max() < 400 / len(alike) + 6 * (400 / len(alike)) ** 0.5
    size = torch.bincount(kind[joined], minlength=len(kind))
    assert torch.equal(rare, joined & (size[kind] < FEWEST))
    assert rare[units_of(batch, 1)[:-1]].all()


def test_chains_without_a_junction_need_no_proposal() -> None:
    batch = batch_of((("*O[Si](*)(C)C", 1),))
    drawn, rare = exchanged(torch.zeros(1), batch, 3, rng())
    assert drawn.shape == (3, 1)
    assert not rare.any()


def test_without_handedness_a_polymer_has_one_kind() -> None:
    """Configuration enters through handedness; a batch whose handedness is wiped has one kind a polymer."""
    batch = batch_of(((CHIRAL, 12),))
    wiped = replace(batch, handedness=torch.zeros_like(batch.handedness))
    assert len(set(junction_kinds(wiped)[0].tolist())) == 1
    assert len(set(junction_kinds(batch)[0][:-1].tolist())) == 2
