"""Every pair of heads trains and samples; heads learn one polymer by heart; perfect predictions leave no residual (spec T32, T44, T45)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rdkit import Chem

from foundation.batch import Batch, to_dense
from foundation.geometry import igso3, torus
from foundation.geometry.align import kabsch_rmsd_packed
from foundation.geometry.assembly import assemble_links, assemble_overlap, chain_coordinates, condition_layout, link_dihedrals
from foundation.nn.parity import Graded
from foundation.objectives import build_objective
from foundation.objectives.base import Samples
from foundation.objectives.polyconfm.config import PolyConFMConfig
from tests.polyconfm.chains import CHAINS, HEADS, batch_of, model_of, rng


def with_seeds(batch: Batch) -> Batch:
    """Seed geometries for the torsional head: the first unit of every chain and its mirror image, turned at random by the head itself."""
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)[batch.chain_ptr[:-1]]
    seeds = torch.stack([x, x * torch.tensor([1.0, 1.0, -1.0])], 1)
    return replace(batch, seed_x_unit_ang=seeds, seed_mask=torch.ones(seeds.shape[:2], dtype=torch.bool))


def fit(model: torch.nn.Module, batch: Batch, steps: int, lr: float, seed: int = 0) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    noise, terms = rng(seed), []
    for _ in range(steps):
        out = model.loss(batch, noise)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        terms.append({name: float(value) for name, value in out.terms.items()})
    return terms


@pytest.mark.parametrize("heads", HEADS)
def test_every_pair_of_heads_starts_at_the_zero_predictor_trains_and_samples(heads: tuple[str, str]) -> None:
    torch.manual_seed(0)
    batch = with_seeds(batch_of(CHAINS[:3]))
    model = build_objective(PolyConFMConfig(local_head=heads[0], orientation_head=heads[1], ar_steps=2, local_steps=4, orientation_steps=6))
    first = [model.loss(batch, rng(s)).terms for s in range(12)]
    orientation = torch.stack([t["orientation"] for t in first]).mean()
    assert orientation == pytest.approx(1.0, abs=0.35)
    terms = fit(model, batch, 12, 3e-3)
    assert all(math.isfinite(v) for t in terms for v in t.values())
    samples = model.sample(batch, 2, rng(1))
    assert samples.failures == []
    assert len(samples.chain_ptr) == 7
    assert samples.x_ang.isfinite().all()
    again = model.sample(batch, 2, rng(1))
    assert torch.equal(samples.x_ang, again.x_ang)
    assert not torch.equal(samples.x_ang, model.sample(batch, 2, rng(2)).x_ang)
    first_chain = samples.x_ang[: int(samples.chain_ptr[1])]
    assert first_chain.mean(0).abs().max() < 1e-6


def untrained(model: torch.nn.Module, batch: Batch, seeds: int = 6) -> list[str]:
    """Parameters with a number that no draw of the loss gives a gradient; tables, whose rows wait for their turn, if no row has one."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    reached = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for seed in range(seeds):
        model.zero_grad()
        model.loss(batch, rng(seed)).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                reached[name] |= parameter.grad != 0
    return [name for name, found in reached.items() if not (found.any() if name in tables else found.all())]


@pytest.mark.parametrize("heads", HEADS)
def test_every_weight_is_trained(heads: tuple[str, str]) -> None:
    model = model_of(*heads, label_dropout=0.5)
    assert untrained(model, batch_of()) == []


def test_a_weight_that_nothing_reads_is_seen() -> None:
    model, batch = model_of("cartesian", "torsion"), batch_of(CHAINS[:2])
    model.forgotten = torch.nn.Parameter(torch.ones(3))
    model.trunk.table = torch.nn.Embedding(3, 2)
    model.fuse.partly = torch.nn.Parameter(torch.ones(4))
    loss = model.loss

    def reads_part(batch: Batch, noise: torch.Generator) -> object:
        out = loss(batch, noise)
        return replace(out, loss=out.loss + model.fuse.partly[:2].sum())

    model.loss = reads_part
    assert {"forgotten", "trunk.table.weight", "fuse.partly"} <= set(untrained(model, batch, 1))


@pytest.mark.parametrize("heads", HEADS)
def test_a_chain_with_coordinates_that_are_not_finite_is_a_failure_with_a_reason(heads: tuple[str, str]) -> None:
    torch.manual_seed(0)
    batch = with_seeds(batch_of(CHAINS[:2]))
    model = model_of(*heads, ar_steps=1, local_steps=2, orientation_steps=2)
    broken = replace(batch, handedness=batch.handedness.clone())
    broken.handedness[0] = float("nan")
    samples: Samples = model.sample(broken, 1, rng())
    assert [(f.chain, f.reason) for f in samples.failures] == [(0, "coordinates are not finite")]
    assert samples.x_ang[: int(samples.chain_ptr[1])].isnan().all()
    assert samples.x_ang[int(samples.chain_ptr[1]) :].isfinite().all()


def test_perfect_predictions_leave_no_residual() -> None:
    batch = batch_of()
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    chain, start, layout = batch.unit_chain, batch.unit_position == 0, condition_layout(batch)
    key, link = batch.key_slot[chain], batch.link_slot[chain]
    by_link = chain_coordinates(assemble_links(x, key, link, start, batch.link_dihedral_rad)[0], layout)
    by_frame = assemble_overlap(batch.world_from_unit, x, key, start)
    assert (kabsch_rmsd_packed(by_link, chain_coordinates(by_frame, layout), layout.heavy_ptr) < 1e-4).all()
    gap = torch.remainder(link_dihedrals(by_frame, key, link, start) - batch.link_dihedral_rad + math.pi, 2 * math.pi) - math.pi
    assert gap.abs().max() < 1e-4


class _Oracle(torch.nn.Module):
    """Stands where a network stands and knows the answer."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.answer(*arguments)  # type: ignore[operator]


def test_the_link_sampler_with_the_exact_score_returns_the_law() -> None:
    batch = batch_of((("*C*", 400),))
    model = build_objective(PolyConFMConfig(orientation_steps=100))
    centre, width, share = torch.tensor([-1.2, 1.0, 3.0]), 0.25, torch.tensor([0.2, 0.5, 0.3])

    def exact(phi: torch.Tensor, sigma: torch.Tensor, x: torch.Tensor, context: Graded, condition: Batch, graphs: None) -> torch.Tensor:
        total = (sigma[0].square() + width**2).sqrt()
        offset = phi[:, None] - centre
        weight = (torus.log_density(offset, total) + share.log()).softmax(-1)
        return (weight * torus.score(offset, total)).sum(-1) * torus.score_norm_sq(sigma[0]).rsqrt() * condition.has_next

    head, x = model.orientation_head, to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    head.forward = exact
    nothing = Graded(torch.zeros(400, 72), torch.zeros(400, 24))
    drawn = torch.cat([head.sample(batch, x, nothing, None, rng(k))[:-1] for k in range(40)]).double().sort().values
    grid = torch.linspace(-math.pi, math.pi, 20001, dtype=torch.float64)
    density = (torus.log_density(grid[:, None] - centre, torch.tensor(width, dtype=torch.float64)).exp() * share).sum(-1)
    law = torch.cumulative_trapezoid(density, grid)
    at = torch.searchsorted(grid, drawn).clamp(1, 20000) - 1
    empirical = (torch.arange(len(drawn)) + 0.5) / len(drawn)
    assert (empirical - law[at]).abs().max() < 0.02


def test_the_rotation_sampler_with_the_exact_score_finds_the_known_frames() -> None:
    batch = batch_of(CHAINS[:1])
    model = build_objective(PolyConFMConfig(orientation_head="so3", orientation_steps=100, project_shared_bond=False))
    head, truth = model.orientation_head, batch.world_from_unit

    def exact(rot: torch.Tensor, t: torch.Tensor, *rest: object) -> torch.Tensor:
        sigma = head.schedule.sigma(t[0]).expand(len(rot))
        return igso3.score_of_rotation(truth.transpose(1, 2) @ rot, sigma) / igso3.score_norm(sigma)[:, None]

    head.forward = exact
    x = to_dense(batch.x_unit_ang, batch.atom_ptr, batch.max_atoms)
    found = head.sample(batch, x, Graded(torch.zeros(5, 72), torch.zeros(5, 24)), None, rng())
    trace = (truth.double().transpose(1, 2) @ found).diagonal(dim1=1, dim2=2).sum(1)
    assert torch.arccos(((trace - 1) / 2).clamp(-1, 1)).max() < 0.05


def renumberings(batch: Batch) -> list[list[int]]:
    """Orders of the atoms of the first unit graph that no graph feature tells apart, such as a ring turned by 180 degrees."""
    size = int(batch.graph_ptr[1])
    mol = Chem.RWMol()
    for number in batch.atom_feat[:size, 0].tolist():
        mol.AddAtom(Chem.Atom(int(number)))
    for i, j in {(min(pair), max(pair)) for pair in batch.bond_index.T.tolist() if max(pair) < size and pair[0] != pair[1]}:
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    return [list(match) for match in mol.GetMol().GetSubstructMatches(mol.GetMol(), uniquify=False)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cartesian_head_learns_one_unit_to_a_tenth_of_an_angstrom() -> None:
    torch.manual_seed(0)
    one, copies = batch_of((("*CC(*)c1ccccc1", 1),)), batch_of((("*CC(*)c1ccccc1", 1),) * 16)
    model = build_objective(PolyConFMConfig(local_head="cartesian", phase="local", local_steps=30, label_dropout=0.0))
    fit(model, copies, 1200, 3e-3)
    shapes = model.sample(one, 16, rng(1)).x_unit_ang.view(16, 10, 3)
    truth, ptr = one.x_unit_ang.repeat(16, 1), torch.arange(17) * 10
    orders = renumberings(one)
    assert len(orders) == 2
    rmsd = torch.stack([kabsch_rmsd_packed(shapes[:, order].reshape(-1, 3), truth, ptr) for order in orders])
    assert (rmsd.min(0).values < 0.1).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_torsional_and_link_heads_learn_one_chain_by_heart() -> None:
    torch.manual_seed(0)
    one, copies = (with_seeds(batch_of((("*CC(*)c1ccccc1", 5),) * num)) for num in (1, 8))
    model = build_objective(
        PolyConFMConfig(label_dropout=0.0, full_mask_fraction=0.0, low_mask_fraction=0.0, clash_rounds=0, orientation_steps=60)
    )
    terms = fit(model, copies, 1000, 2e-3)
    late = terms[-100:]
    assert sum(t["orientation"] for t in late) / 100 < 0.25
    drawn = model.sample(one, 8, rng(2)).link_dihedral_rad
    assert drawn is not None
    gap = torch.remainder(drawn.view(8, 5)[:, :4] - one.link_dihedral_rad[:4] + math.pi, 2 * math.pi) - math.pi
    assert (gap.abs() < math.radians(10)).float().mean() > 0.5, gap.abs().rad2deg()
    assert (gap.abs() < math.radians(30)).float().mean() > 0.9
