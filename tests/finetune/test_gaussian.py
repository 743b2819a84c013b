"""The Gaussian process against scikit-learn's, and laws that it must obey."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from finetune import gaussian
from finetune.gaussian import GaussianProcess, Labelled


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def labelled(n: int, rng: torch.Generator, tasks: int = 1) -> Labelled:
    x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    counts = torch.poisson(torch.full((n, 12), 0.7, dtype=torch.float64), generator=rng)
    task = torch.randint(tasks, (n,), generator=rng)
    y = torch.sin(x[:, 0]) + 0.3 * counts[:, 0] + 0.05 * torch.randn(n, generator=rng, dtype=torch.float64)
    return Labelled({"counts": counts, "descriptors": x}, task, y)


def test_one_vector_is_scikit_learns_process(rng: torch.Generator) -> None:
    given, new = labelled(40, rng), labelled(9, rng)
    ours = GaussianProcess({"descriptors": 4}, 1).requires_grad_(False)
    given = Labelled({"descriptors": given.x["descriptors"]}, given.task * 0, given.y)
    weight, length = float(ours.log_weight.exp()), float(ours.log_length.exp())
    noise = float(ours.noise(torch.zeros(1, dtype=torch.int64)))
    kernel = ConstantKernel(weight) * Matern(length, nu=2.5) + WhiteKernel(noise)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(given.x["descriptors"].numpy(), given.y.numpy())
    likelihood = -float(ours.negative_log_likelihood(given)) * len(given)
    assert likelihood == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-5)
    mean, deviation = gaussian.condition(ours, given, 0).predict({"descriptors": new.x["descriptors"]})
    expected, spread = theirs.predict(new.x["descriptors"].numpy(), return_std=True)
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(deviation.numpy(), spread, atol=1e-6)


def test_similarity_is_that_of_rdkit_on_sets() -> None:
    a = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    assert gaussian.tanimoto(a, b).tolist() == [[pytest.approx(1 / 3), 1.0], [0.0, 0.0]]


def test_kernel_of_several_properties_is_positive_and_symmetric(rng: torch.Generator) -> None:
    given = labelled(60, rng, tasks=3)
    process = GaussianProcess({"counts": 12, "descriptors": 4}, 3)
    for parameter in process.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=rng)
    matrix = process.kernel(given.x, given.task, given.x, given.task).detach()
    assert torch.allclose(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9
    explicit = torch.zeros_like(matrix)
    for k, own in enumerate((gaussian.tanimoto(given.x["counts"], given.x["counts"]), None)):
        base = own if own is not None else gaussian.matern(given.x["descriptors"], given.x["descriptors"], process.log_length[1].exp())
        relation = process.shared[k] @ process.shared[k].T + torch.diag(process.log_own[k].exp())
        explicit += (process.log_weight[k].exp() * base * relation[given.task][:, given.task]).detach()
    assert torch.allclose(matrix, explicit)


def test_gradient_of_the_likelihood(rng: torch.Generator) -> None:
    given = labelled(12, rng, tasks=2)
    process = GaussianProcess({"counts": 12, "descriptors": 4}, 2)
    names = [name for name, _ in process.named_parameters()]

    def value(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Likelihood(process), {f"process.{n}": p for n, p in zip(names, parameters)}, (given,))

    assert torch.autograd.gradcheck(value, tuple(p.detach().clone().requires_grad_() for p in process.parameters()), atol=1e-6)


class _Likelihood(torch.nn.Module):
    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process

    def forward(self, given: Labelled) -> torch.Tensor:
        return self.process.negative_log_likelihood(given)


def test_learning_finds_noise_and_beats_the_mean(rng: torch.Generator) -> None:
    given, new = labelled(250, rng), labelled(100, rng)
    posterior = gaussian.fit(given, 1, seed=0)
    mean, deviation = posterior.predict(new.x)
    assert float((mean - new.y).square().mean()) < 0.15 * float(new.y.var())
    inside = ((mean - new.y).abs() < 1.645 * deviation).double().mean()
    assert 0.8 <= float(inside) <= 0.98


def test_a_teacher_helps_where_labels_are_few(rng: torch.Generator) -> None:
    x = torch.randn(200, 3, generator=rng, dtype=torch.float64)
    truth = torch.sin(2 * x[:, 0]) + x[:, 1]
    few, test = torch.arange(12), torch.arange(100, 200)
    own = Labelled({"descriptors": x[few]}, torch.zeros(12, dtype=torch.int64), truth[few])
    both = Labelled(
        {"descriptors": torch.cat([x[few], x[:100]])},
        torch.cat([torch.zeros(12, dtype=torch.int64), torch.ones(100, dtype=torch.int64)]),
        torch.cat([truth[few], -truth[:100]]),
    )
    alone, _ = gaussian.fit(own, 1, seed=0).predict({"descriptors": x[test]})
    taught, _ = gaussian.fit(both, 2, seed=0).predict({"descriptors": x[test]})
    assert float((taught - truth[test]).square().mean()) < 0.5 * float((alone - truth[test]).square().mean())


def test_balanced_keeps_half_for_the_property_that_is_predicted() -> None:
    task = torch.cat([torch.zeros(300, dtype=torch.int64), torch.ones(700, dtype=torch.int64)])
    chosen = gaussian.balanced(task, 400, seed=1)
    assert len(chosen) == len(set(chosen.tolist())) == 400
    assert int((task[chosen] == 0).sum()) == 200
    assert len(gaussian.balanced(task[:300], 400, seed=1)) == 300
    assert int((task[gaussian.balanced(task, 900, 1)] == 0).sum()) == 300
