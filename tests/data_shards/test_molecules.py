"""Molecules that are no polymers: from SMILES and SD files to shards, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from data_shards.build import app as build
from data_shards.chem.molecule import read_molecule
from data_shards.decoding import decode, decode_any, members_of
from data_shards.errors import InputError, ShardError
from data_shards.reader import open_shards
from data_shards.schema import MoleculeSample
from data_shards.show import app as show
from data_shards.verify import app as verify
from data_shards.writer import encode_molecule
from foundation.config import apply_overrides
from foundation.data.loader import Reading, StepLoader, order_of
from foundation.molecules import Molecules
from foundation.recipes import get_recipe
from foundation.train.loop import train
from tests.finetune.test_property import run

SMILES = ("CCO", "Cc1ccccc1", "C[C@H](O)F", "C[C@@H](O)F", "CC(=O)O", "CCN", "CCCC", "C1CCCCC1", "CCOC", "F/C=C/Cl", "F/C=C\\Cl", "CO")
BAD = {"*CC*": "star", "CCO.CC": "fragments", "nonsense": "unreadable"}
SPLIT = ["--val-fraction", "0.2", "--test-fraction", "0.1", "--workers", "0"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("molecules")
    (base / "m.csv").write_text("smiles\n" + "\n".join([*SMILES, *BAD]) + "\n")
    run(build, "--source", "smiles", "--input", str(base / "m.csv"), "--out", str(base / "shards"), "--conformers", "4", *SPLIT)
    return base / "shards"


def samples(folder: Path) -> list[MoleculeSample]:
    opened = open_shards(folder)
    found = [opened.read_any(entry) for split in opened.manifest.splits for entry in opened.samples(split)]
    return [own for own in found if isinstance(own, MoleculeSample)]


def test_molecules_are_embedded_and_bad_rows_counted(shards: Path) -> None:
    opened = open_shards(shards)
    assert opened.of_molecules
    assert opened.manifest.funnel.dropped == dict.fromkeys(BAD.values(), 1)
    made = samples(shards)
    assert sorted(own.graph.smiles for own in made) == sorted(Chem.CanonSmiles(text) for text in SMILES)
    for own in made:
        mol = Chem.AddHs(Chem.MolFromSmiles(own.graph.smiles))
        assert own.x_ang.shape == (4, mol.GetNumAtoms(), 3)
        assert (own.graph.elements == 1).sum() == (np.array([a.GetAtomicNum() for a in mol.GetAtoms()]) == 1).sum()
        for signed, three in zip(own.graph.signs, own.graph.around, strict=True):
            centre = [
                k for k in range(own.graph.num_atoms) if sum({k, j} <= set(pair) for pair in own.graph.bonds.tolist() for j in three) == 3
            ]
            arms = own.x_ang[:, three] - own.x_ang[:, centre[:1]]
            assert (np.sign(np.linalg.det(arms)) == signed).all()
    assert "every checksum and sample is right" in run(verify, str(shards))


def test_isomers_share_a_split(shards: Path) -> None:
    opened = open_shards(shards)
    where = {entry.psmiles: split for split in opened.manifest.splits for entry in opened.samples(split)}
    assert where[Chem.CanonSmiles("C[C@H](O)F")] == where[Chem.CanonSmiles("C[C@@H](O)F")]
    assert where[Chem.CanonSmiles("F/C=C/Cl")] == where[Chem.CanonSmiles("F/C=C\\Cl")]


def test_records_bring_their_coordinates(tmp_path: Path) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)F"))
    AllChem.EmbedMultipleConfs(mol, 3, randomSeed=1)
    path = tmp_path / "m.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for k in range(3):
            writer.write(mol, confId=k)
        wrong = Chem.Mol(mol)
        wrong.SetProp("smiles", "CCO")
        writer.write(wrong, confId=0)
    run(build, "--source", "molecules", "--input", str(path), "--out", str(tmp_path / "s"), *SPLIT[:2], "--test-fraction", "0", *SPLIT[4:])
    made = samples(tmp_path / "s")
    assert len(made) == 3
    assert open_shards(tmp_path / "s").manifest.funnel.dropped == {"smiles-mismatch": 1}
    for own in made:
        found = [np.abs(own.x_ang[0] - mol.GetConformer(k).GetPositions()).max() for k in range(3)]
        assert min(found) < 1e-3
        assert own.graph.signs.tolist() == read_molecule(mol).signs.tolist()


def test_damaged_molecules_are_named(shards: Path) -> None:
    sample = samples(shards)[0]
    members = {"__key__": sample.key, **encode_molecule(sample)}
    again = decode_any(members)
    assert isinstance(again, MoleculeSample)
    assert again.graph.smiles == sample.graph.smiles
    with pytest.raises(ShardError, match="is a molecule, not a chain"):
        decode(members)
    with pytest.raises(ShardError, match=r"lacks x\.npy"):
        decode_any({name: own for name, own in members.items() if name != "x.npy"})
    bad = replace(sample, graph=replace(sample.graph, bonds=sample.graph.bonds + 99))
    with pytest.raises(ShardError, match="beyond"):
        decode_any({"__key__": sample.key, **encode_molecule(bad)})
    with pytest.raises(ShardError, match="coordinates"):
        decode_any({"__key__": sample.key, **encode_molecule(replace(sample, x_ang=sample.x_ang[:, 1:]))})
    opened = open_shards(shards)
    entry = opened.samples("train")[0]
    with pytest.raises(ShardError, match="is a molecule"):
        opened.read(entry)
    assert members_of(opened.read_bytes(entry), entry.key, "here").keys() == {"json", "molecule.npz", "x.npy"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_gives_molecules(shards: Path, num_workers: int) -> None:
    from data_shards.mixture import open_mixture

    opened = open_mixture(str(shards))
    order = order_of(opened, "train", 0, 200)
    loader = StepLoader(opened, "train", order, Reading(num_workers=num_workers), per_step=2, rank=0, world_size=1)
    steps = loader.steps(0)
    step = next(steps)
    steps.close()
    for micro in step.micro_batches:
        assert isinstance(micro.batch, Molecules)
        assert micro.batch.x_ang is not None
        assert micro.batch.x_ang.sum(1).abs().max() < 1e-4
        i, j = micro.batch.bond_atom
        flat = micro.batch.x_ang.reshape(-1, 3)
        assert (flat[i] - flat[j]).norm(dim=1).min() > 0.8
        assert (flat[i] - flat[j]).norm(dim=1).max() < 2.0


def test_ditmc_trains_on_them_and_polyconfm_refuses(shards: Path, tmp_path: Path) -> None:
    small = ["train.num_steps=3", "train.checkpoint_every=3", "objective.width=32", "objective.num_layers=1", "track.wandb=False"]
    train(apply_overrides(get_recipe("ditmc_tiny"), small), tmp_path / "run", str(shards))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    with pytest.raises(InputError, match="holds molecules"):
        train(apply_overrides(get_recipe("polyconfm_tiny"), small[:2]), tmp_path / "other", str(shards))
    assert not (tmp_path / "other").exists()


def test_they_are_shown(shards: Path, tmp_path: Path) -> None:
    said = run(
        show, str(shards), "--sample", Chem.CanonSmiles("C[C@H](O)F"), "--out", str(tmp_path / "a.png"), "--sdf", str(tmp_path / "a.sdf")
    )
    assert "atoms" in said
    assert "radius of gyration" in said
    assert "end to end" not in said
    assert (tmp_path / "a.png").stat().st_size > 10_000
    found = list(Chem.SDMolSupplier(str(tmp_path / "a.sdf"), removeHs=False))
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in found] == 4 * [Chem.CanonSmiles("C[C@H](O)F")]
