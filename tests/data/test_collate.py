"""Samples to batches: what is derived at load is right, and assembly gives the stored chain back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from data_shards.chem.chain import chain_mol, tacticity_signs
from data_shards.chem.repeat_unit import build_unit, unit_graph
from data_shards.conformers.fragments import seed_shapes
from data_shards.schema import TopologyKey
from foundation.batch import ATOM_FEATURES, to_dense, to_packed
from foundation.data.collate import _graph_tensors, collate_conditions, condition, graph_tensors, mirror
from foundation.geometry.align import kabsch_rmsd_packed
from foundation.geometry.assembly import assemble_links, chain_coordinates, condition_layout
from tests.polyconfm.chains import CHAINS, batch_of, sample


def test_decomposed_chains_assemble_to_what_the_shard_holds() -> None:
    batch = batch_of()
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    chain = batch.unit_chain
    world, _ = assemble_links(x, batch.key_slot[chain], batch.link_slot[chain], batch.unit_position == 0, batch.link_dihedral_rad)
    layout = condition_layout(batch)
    stored = torch.cat([torch.from_numpy(sample(*c).heavy_ang[0]) for c in CHAINS]).double()
    assert (kabsch_rmsd_packed(chain_coordinates(world, layout), stored, layout.heavy_ptr) < 1e-4).all()


def test_atom_features_agree_with_rdkit() -> None:
    names = list(ATOM_FEATURES)
    for psmiles in ("*CC(*)c1ccccc1", "*Oc1ccc(CC(*)=O)cc1", "*CC(*)(C)C(=O)OC", "*C[N+](C)(C)C*"):
        unit = build_unit(psmiles)
        topology = unit.topology
        given = condition(topology, 3, tacticity_signs(topology, 3, "atactic", 0)).atom_feat
        mol = chain_mol(topology, 3)
        own = [k for k in range(topology.num_atoms) if k not in topology.key_atoms[[0, 3]]]
        for place, slot in enumerate(own):
            atom = mol.GetAtomWithIdx(1 + len(own) + place)  # the middle unit
            row = dict(zip(names, given[slot].tolist(), strict=True))
            assert row["element"] == atom.GetAtomicNum()
            assert row["degree"] == atom.GetDegree()
            assert row["hydrogens"] == atom.GetTotalNumHs()
            assert row["charge"] == atom.GetFormalCharge() + 4
            assert row["aromatic"] == atom.GetIsAromatic()
            assert (row["ring_size"] > 0) == atom.IsInRing()


def test_handedness_is_that_of_the_grown_chain_and_flips_in_the_mirror() -> None:
    batch = batch_of()
    expected = tacticity_signs(build_unit(CHAINS[0][0]).topology, CHAINS[0][1], "atactic", 0)
    units = batch.handedness[: CHAINS[0][1] * 10].view(CHAINS[0][1], -1)
    centre = int(build_unit(CHAINS[0][0]).topology.stereo_centres[0])
    assert np.array_equal(units[:, centre].numpy().astype(int), expected[:, 0])
    assert len(set(expected[:, 0].tolist())) == 2
    assert torch.equal(mirror(batch).handedness, -batch.handedness)
    assert torch.equal(mirror(mirror(batch)).x_unit_ang, batch.x_unit_ang)


def test_what_is_kept_of_a_bare_graph_is_not_taken_for_the_whole_unit() -> None:
    """Both have the same P-SMILES, bonds and frame; only the whole unit says which atoms define its link and which are stereocentres."""
    psmiles = CHAINS[0][0]
    bare, whole = unit_graph(psmiles), build_unit(psmiles).topology
    assert np.array_equal(bare.frame_atoms, whole.frame_atoms)
    for first, second in ((bare, whole), (whole, bare)):
        _graph_tensors.cache_clear()
        graph_tensors(first)
        assert graph_tensors(second)["link_slot"][0].tolist() == second.link_atoms.tolist()
        assert graph_tensors(second)["stereo_slot"][:, 0].tolist() == second.stereo_centres.tolist()
    kept = _graph_tensors.cache_info().hits
    assert graph_tensors(replace(whole, bonds=whole.bonds.copy())) is graph_tensors(whole)
    assert _graph_tensors.cache_info().hits == kept + 2


def test_two_topologies_that_differ_in_any_field_are_two_keys() -> None:
    whole = build_unit(CHAINS[0][0]).topology
    changed = [replace(whole, psmiles="*CC(*)c1ccccc1C"), replace(whole, junction_order=2)]
    for name, value in vars(whole).items():
        if isinstance(value, np.ndarray):
            assert value.size, name
            changed.append(
                replace(whole, **{name: np.where(np.arange(value.size).reshape(value.shape) == 0, value + 1, value).astype(value.dtype)})
            )
    assert len({TopologyKey(one) for one in (whole, *changed)}) == 1 + len(changed) == len(vars(whole)) + 1
    assert TopologyKey(whole) == TopologyKey(replace(whole))


def test_conditions_of_different_polymers_pack_with_their_seeds() -> None:
    parts = []
    for psmiles, num_units in (("*CC(*)c1ccccc1", 4), ("*C*", 7)):
        topology = build_unit(psmiles).topology
        shapes, _ = seed_shapes(psmiles, 4, 0)
        parts.append(condition(topology, num_units, tacticity_signs(topology, num_units, "isotactic", 1), shapes))
    packed = collate_conditions(parts)
    assert packed.num_units.tolist() == [4, 7]
    assert packed.seed_x_unit_ang is not None
    assert packed.seed_x_unit_ang.shape[0] == 2
    assert packed.seed_x_unit_ang.shape[2] == packed.max_atoms == 10
    origin = packed.seed_x_unit_ang[0][:, int(packed.frame_slot[0, 1])]
    assert origin.abs().max() < 1e-5  # seeds stand in the unit frame


def test_dense_and_packed_are_inverse() -> None:
    batch = batch_of()
    dense = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    assert torch.equal(to_packed(dense, batch.atom_ptr), batch.x_unit_ang)
    assert dense.shape[1] > int(batch.atoms_per_unit.min())
