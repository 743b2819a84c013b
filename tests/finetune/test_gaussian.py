"""The Gaussian process against scikit-learn's, and laws that it must obey."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from finetune import gaussian
from finetune.gaussian import GaussianProcess


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def labelled(n: int, rng: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    counts = torch.poisson(torch.full((n, 12), 0.7, dtype=torch.float64), generator=rng)
    y = torch.sin(x[:, 0]) + 0.3 * counts[:, 0] + 0.05 * torch.randn(n, generator=rng, dtype=torch.float64)
    return {"counts": counts, "descriptors": x}, y


def test_one_vector_is_scikit_learns_process(rng: torch.Generator) -> None:
    (given, y), (new, _) = labelled(40, rng), labelled(9, rng)
    x, z = given["descriptors"], new["descriptors"]
    ours = GaussianProcess({"descriptors": 4}).requires_grad_(False)
    weight, length, noise = float(ours.log_weight.exp()), float(ours.log_length.exp()), float(ours.noise)
    kernel = ConstantKernel(weight) * Matern(length, nu=2.5) + WhiteKernel(noise)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(x.numpy(), y.numpy())
    likelihood = -float(ours.negative_log_likelihood({"descriptors": x}, y)) * len(y)
    assert likelihood == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-5)
    mean, deviation = gaussian.condition(ours, {"descriptors": x}, y, 0).predict({"descriptors": z})
    expected, spread = theirs.predict(z.numpy(), return_std=True)
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(deviation.numpy(), spread, atol=1e-6)


def test_similarity_is_tanimotos_on_sets() -> None:
    a = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    assert gaussian.tanimoto(a, b).tolist() == [[pytest.approx(1 / 3), 1.0], [0.0, 0.0]]


def test_kernel_is_positive_symmetric_and_has_the_prior_on_its_diagonal(rng: torch.Generator) -> None:
    x, _ = labelled(60, rng)
    x["counts"][7] = 0.0
    process = GaussianProcess({"counts": 12, "descriptors": 4}).requires_grad_(False)
    matrix = process.kernel(x, x)
    assert torch.allclose(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9
    torch.testing.assert_close(matrix.diagonal(), process.prior(x), rtol=0, atol=1e-9)


def test_gradient_of_the_likelihood(rng: torch.Generator) -> None:
    x, y = labelled(12, rng)
    x["levels"] = torch.randn(12, 2, generator=rng, dtype=torch.float64)
    process = GaussianProcess({"counts": 12, "descriptors": 4, "levels": 2})
    names = [name for name, _ in process.named_parameters()]

    def value(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Likelihood(process), {f"process.{n}": p for n, p in zip(names, parameters, strict=True)}, (x, y))

    assert torch.autograd.gradcheck(value, tuple(p.detach().clone().requires_grad_() for p in process.parameters()), atol=1e-6)


def test_slope_of_the_likelihood_is_that_of_autograd(rng: torch.Generator) -> None:
    x, y = labelled(30, rng)
    process = GaussianProcess({"counts": 12, "descriptors": 4})
    noisy = (process.kernel(x, x) + process.noise * torch.eye(30, dtype=torch.float64)).detach().requires_grad_()
    factor = torch.linalg.cholesky(noisy)
    half = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    expected = (0.5 * half.square().sum() + factor.diagonal().log().sum()) / 30
    value, slope = gaussian._likelihood(noisy.detach(), y)
    assert value == pytest.approx(float(process.negative_log_likelihood(x, y).detach()))
    found = torch.autograd.grad(expected, noisy)[0]
    torch.testing.assert_close(slope + slope.T, found + found.T)


def test_columns_of_levels_have_a_length_each(rng: torch.Generator) -> None:
    """A column twice as relevant is one twice as large; learning tells the one that says all from those that say nothing."""
    x = {"levels": torch.randn(120, 3, generator=rng, dtype=torch.float64)}
    y = torch.sin(2 * x["levels"][:, 0])
    process = GaussianProcess({"levels": 3})
    with torch.no_grad():
        process.log_relevance[1] = np.log(2.0)
        expected = GaussianProcess({"levels": 3}).kernel(*({"levels": x["levels"] * torch.tensor([1.0, 2.0, 1.0])},) * 2)
        torch.testing.assert_close(process.kernel(x, x), expected)
        process.log_relevance.zero_()
    process.learn(x, y, seed=0)
    assert float(process.log_relevance[0].detach()) > float(process.log_relevance[1:].detach().max()) + 0.3


class _Likelihood(torch.nn.Module):
    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: gaussian.Inputs, y: torch.Tensor) -> torch.Tensor:
        return self.process.negative_log_likelihood(x, y)


def test_learning_finds_noise_and_beats_the_mean(rng: torch.Generator) -> None:
    (x, y), (new, truth) = labelled(250, rng), labelled(100, rng)
    mean, deviation = gaussian.fit(x, y, seed=0).predict(new)
    assert float((mean - truth).square().mean()) < 0.15 * float(truth.var())
    inside = ((mean - truth).abs() < 1.645 * deviation).double().mean()
    assert 0.8 <= float(inside) <= 0.98


def test_a_spread_from_some_labels_is_an_upper_bound(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (new, _) = labelled(80, rng), labelled(20, rng)
    process = GaussianProcess({"counts": 12, "descriptors": 4}).requires_grad_(False)
    whole = gaussian.condition(process, x, y, 0).predict(new)
    monkeypatch.setattr(gaussian, "MOST_FOR_SPREAD", 30)
    part = gaussian.condition(process, x, y, 0).predict(new)
    torch.testing.assert_close(part[0], whole[0])
    assert bool((part[1] >= whole[1] - 1e-12).all())
    assert bool((part[1] > whole[1] + 1e-3).any())


def test_blocks_do_not_change_the_numbers(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (new, _) = labelled(50, rng), labelled(5, rng)
    process = GaussianProcess({"counts": 12, "descriptors": 4}).requires_grad_(False)
    whole = gaussian.condition(process, x, y, 0).predict(new)[0]
    monkeypatch.setattr(gaussian, "BLOCK", 7)
    torch.testing.assert_close(gaussian.condition(process, x, y, 0).predict(new)[0], whole)


def test_drawn_labels_are_different_ones() -> None:
    chosen = gaussian.drawn(1000, 400, seed=1)
    assert len(chosen) == len(set(chosen.tolist())) == 400
    assert gaussian.drawn(300, 400, seed=1).tolist() == list(range(300))
