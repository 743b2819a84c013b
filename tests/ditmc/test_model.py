"""The objective on real chains: what it reads of them, loss, sampling, embedding, and that it learns."""

from __future__ import annotations

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from data_shards.chem.molecule import read_molecule
from foundation.batch import Batch, to_dense
from foundation.errors import ConfigError
from foundation.geometry.align import kabsch
from foundation.molecules import TURN_AFTER, TURN_BEFORE, Molecules, chain_atoms
from foundation.objectives import build_objective
from foundation.objectives.base import Objective
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.model import DiTMC
from foundation.recipes import get_recipe
from tests.ditmc.given import model_of, rng
from tests.polyconfm.chains import CHAINS, batch_of, sample

SMALL = (("*CC(*)c1ccccc1", 5), ("*CC(*)(C)C(=O)OC", 4), ("*Oc1ccc(CC(*)=O)cc1", 3))


def whole(batch: Batch) -> tuple[Molecules, torch.Tensor]:
    return model_of().pieces(batch, rng())


def test_atoms_are_those_of_the_shards() -> None:
    molecules, x = whole(batch_of())
    for row, (psmiles, num_units) in enumerate(CHAINS):
        chain = torch.from_numpy(sample(psmiles, num_units).heavy_ang[0])
        n = len(chain)
        assert molecules.mask[row].sum() == n
        assert (x[row, :n] - x[row, :n].mean(0) - (chain - chain.mean(0))).abs().max() < 1e-4
        bonds = molecules.bond_atom[:, (molecules.bond_atom[0] // molecules.mask.shape[1]) == row] % molecules.mask.shape[1]
        length = (x[row, bonds[0]] - x[row, bonds[1]]).norm(dim=-1)
        assert length.min() > 1.1
        assert length.max() < 2.0


def test_turns_are_those_of_the_coordinates() -> None:
    """Around a stereocentre the atoms of a pair, with the third, have a triple product of the sign that the class says."""
    molecules, x = whole(batch_of(SMALL))
    found = 0
    for row in range(len(molecules.mask)):
        classes = molecules.classes[row]
        near = classes == 1
        for i, j in torch.nonzero(classes == TURN_AFTER).tolist():
            centre = torch.nonzero(near[i] & near[j]).flatten().tolist()
            third = [
                k for k in torch.nonzero(classes[j] == TURN_AFTER).flatten().tolist() if classes[k, i] == TURN_AFTER and near[k, centre[0]]
            ]
            assert len(centre) == len(third) == 1
            arms = x[row, [i, j, third[0]]] - x[row, centre[0]]
            assert torch.linalg.det(arms.double()) > 0
            assert classes[j, i] == TURN_BEFORE
            found += 1
    assert found == 3 * (5 + 4)


@pytest.mark.parametrize("units", [1, 2])
def test_pieces_are_cut_from_chains(units: int) -> None:
    batch = batch_of(SMALL)
    model = model_of(units=units)
    molecules, x = model.pieces(batch, rng(3))
    atoms = batch.graph_ptr.diff()
    assert molecules.num_atoms.tolist() == ((atoms - 2) * units + 2).tolist()
    n = molecules.mask.shape[1]
    length = (x.reshape(-1, 3)[molecules.bond_atom[0]] - x.reshape(-1, 3)[molecules.bond_atom[1]]).norm(dim=-1)
    assert length.min() > 1.1
    assert length.max() < 2.0
    everything = chain_atoms(batch)
    first = torch.cdist(x[0, :n].double(), everything[: batch.num_units[0]].reshape(-1, 3))
    assert first.min(1).values[molecules.mask[0]].max() < 1e-4
    other, _ = model.pieces(batch, rng(4))
    assert torch.equal(other.classes.sum(), molecules.classes.sum()) or units == 1


@pytest.mark.parametrize("scheme", ["ape", "rpe", "pe3"])
@pytest.mark.parametrize(
    "fields", [{}, {"predict": "velocity"}, {"noise": "none", "prior": "gaussian", "align": False}, {"drop": 0.5, "times": "late"}]
)
def test_the_loss_has_a_gradient_everywhere(scheme: str, fields: dict[str, object]) -> None:
    model = model_of(scheme=scheme, **fields)
    assert isinstance(model, Objective)
    out = model(batch_of(SMALL), rng())
    assert out.loss.isfinite()
    assert out.loss_per_chain.shape == (3,)
    assert out.loss.item() == pytest.approx(out.loss_per_chain.mean().item(), rel=1e-5)
    out.loss.backward()
    silent = [name for name, own in model.named_parameters() if own.grad is None]
    assert silent == []
    again = model(batch_of(SMALL), rng())
    assert torch.equal(again.loss, out.loss)


def test_a_chain_does_not_know_its_batch() -> None:
    """Errors of a molecule with the same draws, alone and beside larger ones."""
    model, (molecules, x) = model_of(), whole(batch_of(SMALL))
    known = model.conditioner(molecules)
    t = torch.tensor([0.2, 0.5, 0.8])
    together, _ = model.heads(x, t, known)
    for row in range(3):
        alone, own = whole(batch_of((SMALL[row],)))
        made, _ = model.heads(own, t[row : row + 1], model.conditioner(alone))
        assert (made[0] - together[row, : own.shape[1]]).abs().max() < 1e-4


@pytest.mark.parametrize("scheme", ["ape", "rpe", "pe3"])
def test_chains_are_drawn_with_their_atoms(scheme: str) -> None:
    model = model_of(scheme=scheme, steps=3)
    batch = batch_of(SMALL)
    made = model.sample(batch, 2, rng(1))
    sizes = [len(sample(*chain).heavy_ang[0]) for chain in SMALL for _ in range(2)]
    assert made.chain_ptr.diff().tolist() == sizes
    assert made.x_ang.isfinite().all()
    assert made.failures == []
    means = to_dense(made.x_ang, made.chain_ptr, max(sizes)).sum(1)
    assert means.abs().max() < 1e-3
    assert torch.equal(made.x_ang, model.sample(batch, 2, rng(1)).x_ang)
    assert not torch.equal(made.x_ang[: sizes[0]], made.x_ang[sizes[0] : 2 * sizes[0]])


def test_what_is_not_finite_is_a_failure_with_a_reason() -> None:
    model = model_of(steps=2)
    with torch.no_grad():
        model.network.out.weight.fill_(torch.nan)
    made = model.sample(batch_of(SMALL), 1, rng())
    assert [own.chain for own in made.failures] == [0, 1, 2]
    assert made.x_ang.isnan().all()


def test_guidance_of_one_is_what_was_learned() -> None:
    batch = batch_of(SMALL)
    plain = model_of(drop=0.1, steps=2).sample(batch, 1, rng()).x_ang
    assert torch.equal(plain, model_of(steps=2).sample(batch, 1, rng()).x_ang)
    assert not torch.allclose(plain, model_of(drop=0.1, guidance=2.0, steps=2).sample(batch, 1, rng()).x_ang)


def test_embeddings_are_of_units_and_chains() -> None:
    model, batch = model_of(), batch_of(SMALL)
    made = model.embed(batch)
    assert made.unit.shape == (12, 32)
    assert made.chain.shape == (3, 32)
    alone = model.embed(batch_of((SMALL[1],)))
    assert torch.allclose(alone.chain[0], made.chain[1], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 36}, "multiple of 4 x num_heads"),
        ({"guidance": 2.0}, "drop=0.1"),
        ({"predict": "velocity", "noise": "const"}, "bridge or none"),
        ({"scheme": "cpe"}, "scheme"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiTMCConfig(**{"num_heads": 4, "width": 32, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ditmc_tiny", "ditmc_base", "ditmc_large", "ditmc_pe3"])
def test_recipes_build(name: str) -> None:
    model = build_objective(get_recipe(name).objective)
    assert isinstance(model, DiTMC)
    number = sum(own.numel() for own in model.parameters())
    low, high = {"ditmc_tiny": (0.7, 1.5), "ditmc_base": (9.3, 9.7), "ditmc_large": (27.5, 29), "ditmc_pe3": (8.3, 9.6)}[name]
    assert low < number / 1e6 < high
    with pytest.raises(ConfigError):
        get_recipe("ditmc")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_molecule_is_learned_by_heart() -> None:
    """Eight conformers of one molecule: every one is drawn again to 0.1 angstrom, and nothing else."""
    mol = Chem.AddHs(Chem.MolFromSmiles("NCCOC(C)CF"))
    AllChem.EmbedMultipleConfs(mol, 8, randomSeed=1)
    mol = Chem.RemoveHs(mol)
    x = torch.stack([torch.from_numpy(own.GetPositions()) for own in mol.GetConformers()]).float()
    once = Molecules.of_graphs([read_molecule(mol)])
    molecules = once.repeated(32)
    torch.manual_seed(0)
    model = DiTMC(DiTMCConfig(scheme="pe3", width=64, num_heads=4, num_layers=4, steps=50))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    noise = rng(1)
    for step in range(2000):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / 2000)
        clean, z = model.errors(molecules, x.repeat(4, 1, 1), noise)
        optimiser.zero_grad()
        (clean + z).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    made = model.eval().sample_molecules(once.repeated(32), rng(2))
    away = kabsch(made[:, None], x[None].expand(32, -1, -1, -1))[1]
    assert away.min(1).values.mean() < 0.1
    assert len(set(away.argmin(1).tolist())) >= 6
