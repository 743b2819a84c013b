"""Long chains from windows: whole, exact at every junction, and the clashes that are counted are those of the assembled chains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.quality import find_clashes, vdw_radii_ang
from data_shards.schema import chain_bonds, chain_elements
from foundation.batch import Condition, cut_chains, first_units
from foundation.encoders.unit import pair_classes
from foundation.geometry.assembly import assemble_links, chain_coordinates, condition_layout, link_dihedrals
from foundation.geometry.rigid import Rigid
from foundation.objectives.polyconfm import windows
from foundation.objectives.polyconfm.clashes import Placed, Surroundings, untangle
from foundation.sampling.request import chain_condition
from tests.polyconfm.chains import model_of, rng
from tests.sampling.conftest import request_of

SMALL = {"width": 32, "num_heads": 4, "trunk_layers": 1, "unit_layers": 1, "graph_layers": 1, "local_layers": 1, "orientation_layers": 1}
STEPS = {"ar_steps": 1, "local_steps": 2, "orientation_steps": 2, "clash_proposals": 2, "clash_redraws": 1, "clash_rounds": 2}


def condition_of(psmiles: str, num_units: int) -> Condition:
    model = model_of("torsional", "torsion", **SMALL, **STEPS)
    return chain_condition(request_of(psmiles, num_units), model.capabilities)


@pytest.mark.parametrize("heads", [("torsional", "torsion"), ("cartesian", "so3")])
def test_a_chain_of_several_windows_is_whole(heads: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 12)
    monkeypatch.setattr(windows, "CONTEXT", 4)
    monkeypatch.setattr(windows, "LOOKAHEAD", 2)
    monkeypatch.setattr(windows, "MAX_TRIES", 1)
    model = model_of(*heads, **SMALL, **STEPS)
    condition = chain_condition(request_of("*CC(*)C", 30), model.capabilities)
    samples = model.sample(condition, 2, rng(1))
    assert samples.failures == []
    assert samples.info is not None
    assert samples.info["windows"] >= 2 * (30 - 2) // (12 - 2)
    assert samples.x_unit_ang is not None
    assert samples.link_dihedral_rad is not None
    x_ang = samples.x_ang.view(2, 92, 3)
    assert x_ang.isfinite().all()
    assert not torch.equal(x_ang[0], x_ang[1])
    shapes = samples.x_unit_ang.view(60, 5, 3)
    assert (shapes.square().sum((1, 2)) > 1).all(), "every unit was drawn"
    slot = torch.from_numpy(np.tile(build_unit("*CC(*)C").topology.key_atoms.astype(np.int64), (60, 1)))
    link = torch.from_numpy(np.tile(build_unit("*CC(*)C").topology.link_atoms.astype(np.int64), (60, 1)))
    start = torch.arange(60) % 30 == 0
    world, _ = assemble_links(shapes, slot, link, start, samples.link_dihedral_rad)
    found = link_dihedrals(world, slot, link, start)
    last = torch.arange(60) % 30 == 29
    gap = torch.remainder(found - samples.link_dihedral_rad + torch.pi, 2 * torch.pi) - torch.pi
    assert gap[~last].abs().max() < 1e-4
    assert torch.equal(samples.x_ang, model.sample(condition, 2, rng(1)).x_ang)


def test_a_window_is_the_chain_cut_at_its_ends() -> None:
    condition = condition_of("*CC(*)C", 9)
    part, unit = cut_chains(condition, first_units(condition), condition.atom_ptr, torch.tensor([0]), torch.tensor([2]), torch.tensor([7]))
    assert unit.tolist() == [2, 3, 4, 5, 6]
    assert part.num_units.tolist() == [5]
    whole = condition.handedness.view(9, 5)
    assert torch.equal(part.handedness.view(5, 5), whole[2:7])
    assert torch.equal(part.atom_feat, condition.atom_feat)


def brute_force(psmiles: str, num_units: int, x_ang: np.ndarray, settled: int, twice: int) -> int:
    """Clashing pairs of two units of which one is at or behind `settled`, all against all; those of the atom `twice` count twice."""
    topology = build_unit(psmiles).topology
    pairs = find_clashes(x_ang, vdw_radii_ang(chain_elements(topology, num_units)), chain_bonds(topology, num_units)[0])
    unit = np.clip((np.arange(len(x_ang)) - 1) // (topology.num_atoms - 2), 0, num_units - 1)
    counted = (unit[pairs].max(1) >= settled) & (unit[pairs[:, 0]] != unit[pairs[:, 1]])
    return int(counted.sum() + (counted & (pairs == twice).any(1)).sum())


def test_clashes_of_a_window_with_what_was_placed_are_those_of_the_whole_chain() -> None:
    psmiles, num_units, begin, settled = "*CC(*)c1ccccc1", 40, 20, 23
    condition = condition_of(psmiles, num_units)
    chain, start = condition.unit_chain, condition.unit_position == 0
    key, link = condition.key_slot[chain], condition.link_slot[chain]
    assert condition.seed_x_unit_ang is not None
    x_unit = condition.seed_x_unit_ang[0, torch.randint(16, (num_units,), generator=rng(2))]
    layout = condition_layout(condition)
    whole = (condition, first_units(condition), condition.atom_ptr)
    part, unit = cut_chains(*whole, torch.tensor([0]), torch.tensor([begin]), torch.tensor([num_units]))
    shared = int(layout.atom[begin, key[begin, 0]])  # star0 of the window is an atom of the unit before it
    seen, far = 0, 0
    for seed in range(30):  # coils that cross themselves
        phi = 2 * torch.pi * torch.rand(num_units, generator=rng(seed)) - torch.pi
        world, world_from_unit = assemble_links(x_unit, key, link, start, phi)
        x_ang = chain_coordinates(world, layout).numpy()
        row, slot = (layout.owned & (torch.arange(num_units) < begin)[:, None]).nonzero().T
        placed = Placed()
        for some in (slice(0, 25), slice(25, 100), slice(100, None)):
            elements = condition.atom_feat[slot[some], 0].numpy()
            placed.add(world[row[some], slot[some]].numpy(), np.zeros(len(row[some]), dtype=np.int64), vdw_radii_ang(elements))
        pose = world_from_unit[torch.tensor([begin])]
        around = Surroundings(part.unit_position < settled - begin, pose, placed, torch.tensor([0]))
        made = untangle(phi[unit].expand(2, -1), x_unit[unit], part, pair_classes(part), 0, rng(), around)
        between = made.units[:, made.units[0] != made.units[1]]
        nearer = brute_force(psmiles, num_units, x_ang * 0.994, settled, shared)  # the search keeps a margin of 0.01 angstrom
        assert brute_force(psmiles, num_units, x_ang, settled, shared) <= between.shape[1] <= nearer
        assert (part.unit_position[between[1]] >= settled - begin).all(), "two settled units are nobody's clash any more"
        seen += between.shape[1]
        far += int((between[0] == 0).sum())
    assert min(seen, far) >= 5, "the case must be hard"


def test_settled_units_keep_their_angles_when_clashes_are_removed() -> None:
    condition = condition_of("*CC(*)c1ccccc1", 24)
    assert condition.seed_x_unit_ang is not None
    x_unit = condition.seed_x_unit_ang[0, torch.randint(16, (24,), generator=rng(2))]
    draws = 2 * torch.pi * torch.rand(5, 24, generator=rng(3)) - torch.pi
    draws[:, :9] = draws[0, :9]
    pose = Rigid.identity((1,), torch.float64)
    around = Surroundings(condition.unit_position < 10, pose, Placed(), torch.tensor([0]))
    made = untangle(draws, x_unit, condition, pair_classes(condition), 40, rng(), around)
    assert torch.equal(made.angles_rad[:9], draws[0, :9])
    assert not torch.equal(made.angles_rad[9:-1], draws[0, 9:-1])
