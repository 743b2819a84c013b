"""Untangling: chains come out without clashes, with angles that were drawn, and nothing else changed."""

from __future__ import annotations

import math

import numpy as np
import torch

from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.quality import find_clashes, vdw_radii_ang
from data_shards.schema import chain_bonds, chain_elements
from foundation.batch import to_dense
from foundation.encoders.unit import pair_classes
from foundation.geometry.assembly import assemble_links, chain_coordinates, condition_layout
from foundation.objectives.polyconfm.clashes import Untangled, untangle
from tests.polyconfm.chains import batch_of, model_of, rng

CHAINS = (("*CC(*)c1ccccc1", 40), ("*C*", 100), ("*Oc1ccc(CC(*)=O)cc1", 3), ("*O[Si](*)(C)C", 1))


def clashes_of(phi: torch.Tensor, farthest: int = 1000) -> list[int]:
    """Clashing atom pairs of units 1 to ``farthest`` places apart, for every chain, as the evaluation counts them."""
    batch = batch_of(CHAINS)
    x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    chain, layout = batch.unit_chain, condition_layout(batch)
    world, _ = assemble_links(x_unit, batch.key_slot[chain], batch.link_slot[chain], batch.unit_position == 0, phi)
    x_ang = chain_coordinates(world, layout).numpy()
    unit = torch.arange(len(chain))[:, None].expand_as(layout.atom)[layout.owned][torch.argsort(layout.atom[layout.owned])].numpy()
    counts = []
    for k, (psmiles, num_units) in enumerate(CHAINS):
        topology = build_unit(psmiles).topology
        rows = slice(int(layout.heavy_ptr[k]), int(layout.heavy_ptr[k + 1]))
        radii = vdw_radii_ang(chain_elements(topology, num_units))
        pairs = find_clashes(x_ang[rows], radii, chain_bonds(topology, num_units)[0])
        apart = np.abs(unit[rows][pairs[:, 0]] - unit[rows][pairs[:, 1]])
        counts.append(int(((apart >= 1) & (apart <= farthest)).sum()))
    return counts


def untangled(angles: torch.Tensor, rounds: int, seed: int = 0) -> Untangled:
    batch = batch_of(CHAINS)
    x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    return untangle(angles, x_unit, batch, pair_classes(batch), rounds, rng(seed))


def draws() -> torch.Tensor:
    """The angles of whole chains, each time shaken so that units far apart collide."""
    links = batch_of(CHAINS).link_dihedral_rad
    return links + 0.6 * torch.randn(9, len(links), generator=rng(3))


def test_shaken_chains_come_out_without_clashes_and_every_angle_was_drawn() -> None:
    angles = draws()
    before = clashes_of(angles[0])
    assert sum(before) >= 6, "the case must be hard"
    made = untangled(angles, 200)
    assert clashes_of(made.angles_rad) == [0, 0, 0, 0]
    assert made.num_before >= sum(before)
    assert made.units.shape == (2, 0)
    assert (made.angles_rad[None] == angles).any(0).all()
    assert torch.equal(made.angles_rad, untangled(angles, 200).angles_rad)


def test_a_round_never_adds_a_clash_and_whole_chains_are_left_alone() -> None:
    angles = draws()
    counts = np.array([clashes_of(untangled(angles, rounds).angles_rad) for rounds in (0, 3, 10, 30)])
    assert (np.diff(counts, axis=0) <= 1).all(), "an atom pair may cross the margin, no more"
    batch = batch_of(CHAINS)
    made = untangled(torch.stack([batch.link_dihedral_rad, angles[0]]), 20)
    assert torch.equal(made.angles_rad, batch.link_dihedral_rad)
    assert made.num_before == 0
    assert made.units.shape == (2, 0)


def test_neighbours_part_at_once_where_a_draw_allows_it() -> None:
    links = batch_of(CHAINS).link_dihedral_rad
    bad = (2 * torch.rand(3, len(links), generator=rng(6)) - 1) * math.pi
    assert min(sum(clashes_of(draw, 1)) for draw in bad) >= 3, "no draw is good as it stands"
    phi = untangled(torch.cat([bad, links[None]]), 1).angles_rad
    assert sum(clashes_of(phi, 1)) <= 1, "one pivot move may bring a pair back"
    assert (phi[None] == bad).any(0).sum() > 60, "good draws are kept"


def test_units_that_no_angle_parts_are_drawn_again_and_the_other_chains_stay() -> None:
    """Two units of one chain are crushed; only their chain changes, only they get another shape, and nothing clashes more."""
    batch = batch_of(CHAINS)
    model = model_of("cartesian", "torsion", local_steps=2, orientation_steps=4, clash_rounds=20, clash_proposals=2, clash_redraws=3).eval()
    x_unit = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms).clone()
    crushed = torch.tensor([5, 6])
    x_unit[crushed, 4:] = 0.1 * x_unit[crushed, 4:]
    classes = pair_classes(batch)
    made = untangle(batch.link_dihedral_rad[None].repeat(2, 1), x_unit, batch, classes, 1, rng(0))
    assert set(made.units.flatten().tolist()) >= {5, 6}
    with torch.no_grad():
        redrawn, after = model.redraw_clashing(batch, x_unit, made, rng(2))
    assert after.units.shape[1] <= made.units.shape[1]
    changed = (redrawn != x_unit).flatten(1).any(1)
    assert changed[crushed].all(), "the case must be one that a redraw improves"
    first = batch.unit_chain == 0
    assert not changed[~first].any()
    assert torch.equal(after.angles_rad[~first], made.angles_rad[~first])
    again = untangle(after.angles_rad[None].repeat(2, 1), redrawn, batch, classes, 0, rng(0)).units
    assert torch.equal(torch.sort(again.flatten()).values, torch.sort(after.units.flatten()).values), "what is reported is what is there"
