"""Prior, paths and samplers against exact laws: covariances, moments, and networks replaced by the exact regressor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.molecules import Molecules
from foundation.objectives.ditmc import prior as priors
from foundation.objectives.ditmc.flow import EDGE, MOVED_ANG, Path, follow
from foundation.objectives.ditmc.prior import draw_prior
from tests.ditmc.given import molecules_of, rng

DRAWS = 4_000


def many(text: str, number: int, *, hydrogens: bool = False) -> Molecules:
    return molecules_of([text], hydrogens=hydrogens)[0].repeated(number)


# ------------------------------------------------------------------------------------------------------------------ prior


@pytest.mark.parametrize("text", ["CCCCCC", "c1ccccc1", "CC(C)(C)C1CC1", "CCO.CN"])
@pytest.mark.parametrize("dense", [True, False])
def test_the_covariance_is_the_pseudoinverse_of_the_laplacian(text: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "DENSE", 512 if dense else 0)
    molecules = many(text, DRAWS)
    x = draw_prior(molecules, "harmonic", rng()).double()
    n = x.shape[1]
    laplace = torch.zeros(n, n, dtype=torch.float64)
    bonds = molecules.bond_atom[:, (molecules.bond_atom[0] < n)]
    laplace[bonds[0], bonds[1]] = -1.0
    laplace.diagonal().copy_(-laplace.sum(1))
    expected = torch.linalg.pinv(laplace)
    found = torch.einsum("bic,bjc->ij", x, x) / (3 * DRAWS)
    error = ((expected.diagonal()[:, None] * expected.diagonal() + expected.square()) / (3 * DRAWS)).sqrt()
    assert ((found - expected).abs() < 4.5 * error).all()
    assert x.mean(1).abs().max() < 1e-5
    axes = torch.einsum("bic,bid->cd", x, x)  # turned draws have the same law: no axis is special
    assert (axes / axes.diagonal().mean() - torch.eye(3)).abs().max() < 0.05


def test_bonds_of_a_tree_are_normal_vectors() -> None:
    x = draw_prior(many("CCCCCC", 20_000), "harmonic", rng(1))
    bonds = x[:, 1:] - x[:, :-1]
    flat = bonds.reshape(len(x), -1).double()
    covariance = flat.T @ flat / len(x)
    assert (covariance - torch.eye(15)).abs().max() < 4 / math.sqrt(len(x)) * 1.5
    assert bonds.norm(dim=-1).mean().item() == pytest.approx(2 * math.sqrt(2 / math.pi), abs=0.01)


def test_pieces_are_centred_by_themselves_and_padding_stays_empty() -> None:
    molecules = molecules_of(["CCO.CN", "CCCCCCCC", "C"], hydrogens=False)[0]
    for kind in ("harmonic", "gaussian"):
        x = draw_prior(molecules, kind, rng())
        assert x[~molecules.mask].abs().max() == 0
        assert x.sum(1).abs().max() < 1e-5
    x = draw_prior(molecules, "harmonic", rng())
    assert x[0, :3].mean(0).abs().max() < 1e-6
    assert x[0, 3:5].mean(0).abs().max() < 1e-6
    assert x[2].abs().max() == 0


def test_a_long_chain_is_drawn_exactly() -> None:
    """2,000 atoms, one sparse system; the mean squared end-to-end distance of a tree of normal bonds is three times its bonds."""
    molecules = many("C" * 2000, 8)
    x = draw_prior(molecules, "harmonic", rng(2))
    square = (x[:, -1] - x[:, 0]).square().sum(-1).mean().item()
    assert square == pytest.approx(3 * 1999, rel=0.8)
    bonds = x[:, 1:] - x[:, :-1]
    assert bonds.square().mean().item() == pytest.approx(1.0, abs=0.03)


# ------------------------------------------------------------------------------------------------------------------- path


@pytest.mark.parametrize("noise", ["bridge", "none", "const"])
def test_moments_on_the_path(noise: str) -> None:
    path = Path(noise, 0.5)
    x0, x1 = torch.tensor([[1.0, -2.0, 0.5]]).expand(100_000, 3), torch.tensor([[3.0, 0.0, -1.0]]).expand(100_000, 3)
    z = torch.randn(x0.shape, generator=rng())
    for t in (0.0, 0.3, 0.9, 1.0):
        x = path.between(x0, x1, z, torch.full((len(x0),), t))
        gamma = {"bridge": 0.5 * math.sqrt(t * (1 - t)), "none": 0.0, "const": 0.5}[noise]
        assert (x.mean(0) - ((1 - t) * x0[0] + t * x1[0])).abs().max() < 4 * gamma / math.sqrt(len(x)) + 1e-6
        assert x.std(0).max().item() == pytest.approx(gamma, rel=0.02, abs=1e-5)


def test_rates_are_derivatives() -> None:
    path, t = Path("bridge", 0.7), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    slope = (path.gamma(t + 1e-6) - path.gamma(t - 1e-6)) / 2e-6
    assert (slope - path.gamma_rate(t)).abs().max() < 1e-6


def test_weights_of_the_loss() -> None:
    path = Path("none", 0.5)
    t = torch.tensor([0.0, 0.5, 0.9, 0.99])
    zero, one = torch.zeros(4, 2, 3), torch.ones(4, 2, 3)
    clean, noise = path.errors((one, zero), zero, zero, zero, t)
    assert clean[:, 0].tolist() == pytest.approx([1, 4, 100, 100], rel=1e-5)
    assert noise.abs().max() == 0


def test_late_times_have_their_law() -> None:
    t = Path("none", 0.5).draw_times(200_000, "late", rng(), torch.device("cpu"))
    assert t.mean().item() == pytest.approx(0.98 * 1.9 / 2.9 + 0.02 * 0.5, abs=0.003)
    assert Path("bridge", 0.5, velocity=True).draw_times(10_000, "uniform", rng(), torch.device("cpu")).min() >= EDGE


# --------------------------------------------------------------------------------------------------- samplers, exact regressor


ORIGIN = 1.7  # deviation of the prior


class Mixture:
    """Normal modes and a normal prior in one dimension, independent: E[x1 | x_t] and E[z | x_t] in closed form."""

    def __init__(self, path: Path, means: list[float], deviations: list[float], shares: list[float]) -> None:
        self.path = path
        self.mean, self.deviation, self.share = (torch.tensor(own, dtype=torch.float64) for own in (means, deviations, shares))

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double().reshape(-1, *[1] * x.dim())
        gamma = self.path.gamma(t)
        spread = ((1 - t) * ORIGIN) ** 2 + t**2 * self.deviation**2 + gamma**2  # variance of x_t in each mode
        away = x[..., None] - t * self.mean
        chance = (self.share.log() - 0.5 * away.square() / spread - 0.5 * spread.log()).softmax(-1)
        clean = (chance * (self.mean + t * self.deviation**2 / spread * away)).sum(-1)
        noise = (chance * gamma / spread * away).sum(-1)
        if self.path.velocity:
            origin = (chance * (1 - t) * ORIGIN**2 / spread * away).sum(-1)
            inside = t[..., 0].clamp(EDGE, 1 - EDGE)
            return clean - origin + self.path.gamma_rate(inside) * noise, torch.zeros_like(noise)
        return clean, noise


def carried(noise: str, solver: str, steps: int, law: tuple[list[float], list[float], list[float]], *, velocity: bool = False) -> Tensor:
    path = Path(noise, 0.5, velocity)
    start = ORIGIN * torch.randn(10_000, 1, 1, generator=rng(3), dtype=torch.float64)
    return follow(path, Mixture(path, *law), start, solver, steps, 1e-5)[:, 0, 0]


@pytest.mark.parametrize(("solver", "steps"), [("euler", 200), ("heun", 50), ("adaptive", 0)])
@pytest.mark.parametrize(("noise", "velocity"), [("bridge", False), ("none", False), ("bridge", True), ("none", True)])
@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_a_normal_law_is_reached(solver: str, steps: int, noise: str, velocity: bool, deviation: float) -> None:
    x = carried(noise, solver, steps, ([1.0], [deviation], [1.0]), velocity=velocity)
    assert x.std().item() == pytest.approx(deviation, rel=0.03)
    assert x.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("separation", [4.0, 1.5, 1.0, 0.6])
@pytest.mark.parametrize("noise", ["bridge", "none"])
def test_two_modes_keep_their_shares(separation: float, noise: str) -> None:
    x = carried(noise, "heun", 200, ([-separation / 2, separation / 2], [0.05, 0.05], [0.7, 0.3]))
    assert (x > 0).double().mean().item() == pytest.approx(0.3, abs=0.015)


def test_the_published_sampler_contracts() -> None:
    """What `const` is kept for: narrower laws, and minorities that are lost where modes lie closer than its noise."""
    for deviation, found in ((0.5, 0.072), (1.0, 0.39)):
        assert carried("const", "euler", 50, ([0.0], [deviation], [1.0])).std().item() == pytest.approx(found, rel=0.1)
    shares = []
    for separation in (4.0, 1.5, 1.0, 0.6):
        x = carried("const", "euler", 50, ([-separation / 2, separation / 2], [0.05, 0.05], [0.7, 0.3]))
        shares.append((x > 0).double().mean().item())
    assert shares == pytest.approx([0.266, 0.136, 0.011, 0.0], abs=0.02)


@pytest.mark.parametrize("noise", ["bridge", "none", "const"])
def test_the_last_step_is_the_clean_prediction(noise: str) -> None:
    path = Path(noise, 0.5)
    clean, z = torch.randn(2, 5, 3, generator=rng(1)), torch.randn(2, 5, 3, generator=rng(2))
    x = torch.randn(2, 5, 3, generator=rng(3))
    assert (x + path.moved(x, 0.98, (clean, z), 0.98, 1.0) - clean).abs().max() < 1e-5


def test_euler_of_the_path_is_euler_of_the_rate() -> None:
    path = Path("bridge", 0.5)
    x, clean, z = (torch.randn(2, 5, 3, generator=rng(k), dtype=torch.float64) for k in range(3))
    step = path.moved(x, 0.4, (clean, z), 0.4, 0.4 + 1e-7) / 1e-7
    assert (step - path.rate(lambda *_: (clean, z), x, torch.full((2,), 0.4))).abs().max() < 1e-5


@pytest.mark.parametrize(("noise", "order"), [("none", 2), ("bridge", 1)])
def test_errors_fall_with_steps(noise: str, order: int) -> None:
    """Heun's method is of second order where the path is smooth; a bridge ends like a square root, and it is only better than Euler's."""
    law = ([-0.75, 0.75], [0.3, 0.2], [0.6, 0.4])
    exact = carried(noise, "heun", 800, law)
    counts = (20, 40)
    heun, euler = ([float((carried(noise, own, n, law) - exact).abs().mean()) for n in counts] for own in ("heun", "euler"))
    assert heun[0] / heun[1] > 2**order * 0.8
    assert euler[0] / euler[1] == pytest.approx(2, rel=0.3)
    assert heun[0] < 0.7 * euler[0]


# ------------------------------------------------------------------------------------------------------------ superposition


def test_superposition_agrees_with_scipy() -> None:
    from foundation.geometry.align import kabsch

    x = torch.randn(4, 9, 3, generator=rng(1), dtype=torch.float64)
    turn = torch.from_numpy(Rotation.random(4, random_state=1).as_matrix())
    y = x @ turn.transpose(1, 2) + 0.1 * torch.randn(4, 9, 3, generator=rng(2), dtype=torch.float64)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    found = kabsch(x, y)[0].rot
    for k in range(4):
        expected, _ = Rotation.align_vectors(y[k].numpy(), x[k].numpy())
        assert np.abs(found[k].numpy() - expected.as_matrix()).max() < 1e-6


@pytest.mark.parametrize("noise", ["bridge", "none", "const"])
def test_what_a_network_has_to_say_is_of_order_one(noise: str) -> None:
    """Atoms that move by 1.5 angstrom: (x1 - x) over the scale has deviation one at all times, and none is lost."""
    path, rng = Path(noise, 0.5), torch.Generator().manual_seed(0)
    x0, moved, z = (torch.randn(4, 20_000, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    x1 = x0 + MOVED_ANG * moved
    t = torch.tensor([0.0, 0.3, 0.8, 0.99], dtype=torch.float64)
    x = path.between(x0, x1, z, t)
    unit = path.clean(x, t, torch.ones_like(x)) - x
    said = (x1 - x) / unit
    assert torch.allclose(said.flatten(1).std(1), torch.ones(4, dtype=torch.float64), atol=0.02)
    assert torch.allclose(path.clean(x, t, said), x1)
    late = torch.full((4,), 1.0, dtype=torch.float64)
    assert torch.allclose(path.clean(x, late, said), x) == (noise != "const")
