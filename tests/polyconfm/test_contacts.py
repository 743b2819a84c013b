"""Contacts: the rates that the torsion heads compute are the derivatives of the distances that the chains really have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foundation.batch import Batch, to_dense
from foundation.geometry.torsions import rotate_torsions
from foundation.nn.contacts import LEFT_OUT, Contacts, every_pair, pairs_within
from foundation.objectives.polyconfm.view import UnitView
from tests.polyconfm.chains import batch_of, model_of

STEP_RAD = 2e-3


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of()


class _Recorder(Contacts):
    """Keeps what it is called with."""

    def forward(self, pairs, distance_ang, kind, first, second, moved, rate_ang):  # type: ignore[no-untyped-def]
        self.seen = distance_ang, kind, moved.expand_as(rate_ang), rate_ang
        return super().forward(pairs, distance_ang, kind, first, second, moved, rate_ang)


def compare(minus: tuple, at: tuple, plus: tuple, bond: int, rows: torch.Tensor) -> int:
    """Finite differences of the distances against the rate of one bond, on the rows where it exists; returns the number of pairs."""
    counts = (at[1] != LEFT_OUT)[rows]
    slope = ((plus[0] - minus[0]) / (2 * STEP_RAD))[rows]
    moved, rate = at[2][:, bond][rows], at[3][:, bond][rows]
    close = {"atol": 5e-3, "rtol": 5e-3}
    torch.testing.assert_close(rate[counts & moved], slope[counts & moved], **close)
    still = counts & ~moved
    torch.testing.assert_close(slope[still], torch.zeros_like(slope[still]), **close)
    return int((counts & moved).sum())


def test_rates_inside_a_unit_are_derivatives(batch: Batch) -> None:
    head = model_of("torsional", "torsion").local_head
    head.contacts = _Recorder(72)
    known = model_of("torsional", "torsion").know(batch)
    view = UnitView.of(batch, known.graphs, torch.ones(len(batch.unit_chain), dtype=torch.bool))
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    pairs = 0
    for bond in range(view.torsion_mask.shape[1]):
        seen = []
        for sign in (-1, 0, 1):
            turn = torch.zeros(view.torsion_mask.shape)
            turn[:, bond] = sign * STEP_RAD
            head.contacts_of(rotate_torsions(x, view.torsion_slot, view.torsion_moved, view.torsion_mask, turn), view)
            seen.append(head.contacts.seen)
        pairs += compare(*seen, bond, view.torsion_mask[:, bond])
    assert pairs > 300


def test_rates_across_junctions_are_derivatives(batch: Batch) -> None:
    model = model_of("torsional", "torsion")
    head, graphs = model.orientation_head, model.know(batch).graphs
    head.near, head.far = _Recorder(72), _Recorder(72)
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    joined = batch.has_next
    after = torch.where(joined, torch.arange(len(joined)) + 1, 0)
    skips = joined & joined[after]
    pairs = [0, 0, 0]
    for parity in (0, 1):  # every second junction turns, so that each pair feels one turn
        turning = joined & (batch.unit_position % 2 == parity)
        seen = []
        for sign in (-1, 0, 1):
            head.contacts_of(batch.link_dihedral_rad + sign * STEP_RAD * turning, x, batch, graphs)
            seen.append((head.near.seen, head.far.seen))
        near, far = zip(*seen, strict=True)
        pairs[0] += compare(*near, 0, turning)
        pairs[1] += compare(*far, 0, turning & skips)
        pairs[2] += compare(*far, 1, turning[after] & skips)
    assert min(pairs) > 100


def test_a_contact_pushes_the_two_sides_apart_in_opposite_senses() -> None:
    contacts, pair = Contacts(1), every_pair(1, 1, torch.device("cpu"))
    distance, one, kind = torch.tensor([[3.0]]), torch.ones(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64)
    moved, rate = torch.ones(1, 1, 1, dtype=torch.bool), torch.full((1, 1, 1), 0.4)
    there, back = contacts(pair, distance, kind, one, one, moved, rate), contacts(pair, distance, kind, one, one, moved, -rate)
    torch.testing.assert_close(there.odd, -back.odd)
    torch.testing.assert_close(there.even, back.even)
    assert there.odd.abs().max() > 0.01
    nothing = contacts(pair, distance, kind - 1, one, one, moved, rate)
    assert nothing.even.abs().max() == nothing.odd.abs().max() == 0


@pytest.mark.parametrize("turns", [1, 3, 11])
def test_features_are_the_sums_over_pairs_whatever_their_number(turns: int) -> None:
    """Brute force in float64, on both sides of the choice of what is multiplied first."""
    torch.manual_seed(turns)
    contacts = Contacts(7).double()
    first, second = torch.randn(3, 4, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    distance, kind = 1.5 + 5 * torch.rand(3, 4, 5, dtype=torch.float64), torch.randint(-1, 3, (3, 4, 5))
    moved, rate = torch.rand(3, turns, 4, 5) < 0.5, torch.randn(3, turns, 4, 5, dtype=torch.float64)
    nn.init.normal_(contacts.kind.weight)
    pairs = every_pair(4, 5, torch.device("cpu"))
    flat = distance.flatten(1), kind.flatten(1)
    made = contacts(pairs, *flat, first, second, moved.flatten(2), rate.flatten(2))
    share = contacts.atom(first)[:, :, None] * contacts.atom(second)[:, None] * contacts.kind.weight[kind.clamp(min=0)]
    basis = contacts.radial(distance).double()
    for got, felt in ((made.even, moved.double()), (made.odd, moved * rate)):
        sums = torch.einsum("rtij,rijm,rijc,rij->rtmc", felt, basis, share, (kind != LEFT_OUT).double())
        torch.testing.assert_close(got, sums.asinh().flatten(2), rtol=1e-9, atol=1e-9)


def test_pairs_within_a_set_are_listed_once() -> None:
    first, second = pairs_within(5, torch.device("cpu"))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(i, j) for i in range(5) for j in range(i + 1, 5)]
