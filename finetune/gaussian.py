"""Regression by a Gaussian process on what is known of a polymer.

    k(x, x') = sum over inputs b of  w_b k_b(x, x')   (+ noise)

k_b is Tanimoto's similarity for counts of environments and a Matérn kernel for vectors; the few columns of `levels` have a length each
(automatic relevance determination). Weights, lengths and noise are learned by maximising the marginal likelihood, with a normal prior on
the logarithms of the lengths of columns; nothing is chosen by hand from task to task. Exact, in float64: the factorisation of n labels
costs n^3 / 3 operations, some seconds for 7,000.

Source: Rasmussen, Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5; Tanimoto's similarity as a kernel: Ralaivola
et al., Neural Networks 18, 1093 (2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foundation.errors import InputError

Inputs = Mapping[str, Tensor]  # name -> (P, d) float64; the names decide the kernel
SIMILARITY = "counts"  # the input whose kernel is Tanimoto's
EACH = "levels"  # the input whose columns have a length each
ALIKE = 0.5  # deviation of the logarithms of these lengths before labels are seen; without it a few hundred labels choose by chance
MOST_TO_LEARN = 1_000  # labels whose marginal likelihood the kernel is learned from
MOST_FOR_SPREAD = 1_000  # labels that the predicted spread is conditioned on
STEPS, RATE = 100, 0.15
JITTER = 1e-6
BLOCK = 1_024  # rows of the kernel matrix made at a time, which bounds memory


def tanimoto(a: Tensor, b: Tensor) -> Tensor:
    """(P, Q) similarities of rows of counts, 1 for rows that are equal; 0 where both are zero."""
    dot = a @ b.T
    total = _squares(a)[:, None] + _squares(b)[None] - dot
    return dot / total.clamp(min=1e-12)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """(P, Q) between rows."""
    return (_squares(a)[:, None] + _squares(b)[None] - 2 * a @ b.T).clamp(min=0)


def _squares(a: Tensor) -> Tensor:
    """(P,) lengths of rows, squared, without a matrix of squares."""
    return torch.einsum("pd,pd->p", a, a)


def matern(square: Tensor, length: Tensor) -> Tensor:
    """Matérn kernel of order 5/2 of squared distances, 1 where they are 0."""
    r = (5 * square / length.square() + 1e-12).sqrt()
    return (1 + r + r.square() / 3) * (-r).exp()


def compare(x: Inputs, z: Inputs) -> dict[str, Tensor]:
    """(P, Q) of each input, what no parameter of a kernel changes: similarities, or squared distances; nothing of EACH."""
    kinds = {name: tanimoto if name == SIMILARITY else squared_distance for name in x if name != EACH}
    return {name: kind(x[name], z[name]) for name, kind in kinds.items()}


class GaussianProcess(nn.Module):
    """Kernel and noise of a process that reads inputs of given widths.

    Args:
        widths: columns of each input.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.names = tuple(widths)
        wide = torch.tensor([float(width) for width in widths.values()], dtype=torch.float64)
        self.log_length = nn.Parameter(0.5 * wide.clamp(min=1).log())  # distances of standardised rows are about sqrt(2 d)
        self.log_weight = nn.Parameter(torch.full_like(wide, math.log(1.0 / max(len(widths), 1))))
        self.log_relevance = nn.Parameter(torch.zeros(widths.get(EACH, 0), dtype=torch.float64))  # of columns, in one over their length
        self.log_noise = nn.Parameter(torch.tensor(math.log(0.1), dtype=torch.float64))

    def kernel(self, x: Inputs, z: Inputs) -> Tensor:
        """(P, Q) covariance of labels without their noise."""
        return self.covariance(compare(x, z), x, z)

    def covariance(self, compared: Inputs, x: Inputs, z: Inputs) -> Tensor:
        """kernel, where inputs were compared before."""
        total = torch.zeros((), dtype=torch.float64)
        for k, name in enumerate(self.names):
            if name == SIMILARITY:
                own = compared[name]
            else:
                scale = self.log_relevance.exp()
                square = squared_distance(x[name] * scale, z[name] * scale) if name == EACH else compared[name]
                own = matern(square, self.log_length[k].exp())
            total = total + own * self.log_weight[k].exp()
        return total

    def prior(self, x: Inputs) -> Tensor:
        """(P,) diagonal of the kernel."""
        total = torch.zeros((), dtype=torch.float64)
        for k, name in enumerate(self.names):
            own = (x[name].square().sum(1) > 0).double() if name == SIMILARITY else torch.ones(len(x[name]), dtype=torch.float64)
            total = total + own * self.log_weight[k].exp()
        return total

    @property
    def noise(self) -> Tensor:
        """Variance of labels about what the inputs say."""
        return self.log_noise.exp() + JITTER

    def negative_log_likelihood(self, x: Inputs, y: Tensor) -> Tensor:
        """Of labels y (n,), per label."""
        factor = torch.linalg.cholesky(self.kernel(x, x) + self.noise * torch.eye(len(y), dtype=torch.float64))
        half = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
        return (0.5 * half.square().sum() + factor.diagonal().log().sum()) / len(y) + 0.5 * math.log(2 * math.pi)

    def learn(self, x: Inputs, y: Tensor, seed: int) -> float:
        """Fit kernel and noise to at most MOST_TO_LEARN labels.

        Returns:
            The last negative log likelihood per label.

        Raises:
            InputError: the likelihood is not finite.
        """
        chosen = drawn(len(y), MOST_TO_LEARN, seed)
        part, values = {name: own[chosen] for name, own in x.items()}, y[chosen]
        compared = compare(part, part)
        optimiser = torch.optim.Adam(self.parameters(), lr=RATE)
        value = math.nan
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimiser.zero_grad()
            noisy = self.covariance(compared, part, part) + self.noise * torch.eye(len(values), dtype=torch.float64)
            value, slope = _likelihood(noisy.detach(), values)
            noisy.backward(slope)  # type: ignore[no-untyped-call]
            (self.log_relevance.square().sum() / (2 * ALIKE**2 * len(values))).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():  # the likelihood of a handful of labels has no maximum
                self.log_noise.clamp_(math.log(1e-4), math.log(2.0))
                self.log_length.clamp_(-2.0, 8.0)
                self.log_weight.clamp_(-10.0, 4.0)
        if not math.isfinite(value):
            raise InputError("the likelihood of the labels is not finite; look for values that are far from all others")
        return value


def _likelihood(noisy: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Negative log likelihood per label of a noisy kernel matrix (n, n), and its derivative by the matrix.

    Source: Rasmussen, Williams (2006), equations 5.8 and 5.9; a third of the time of a derivative through the factorisation.
    """
    factor = torch.linalg.cholesky(noisy)
    inverse = torch.cholesky_inverse(factor)
    weights = inverse @ y
    value = (0.5 * float(y @ weights) + float(factor.diagonal().log().sum())) / len(y) + 0.5 * math.log(2 * math.pi)
    return value, (inverse - torch.outer(weights, weights)) / (2 * len(y))


def drawn(number: int, most: int, seed: int) -> Tensor:
    """At most so many of the first whole numbers, drawn, increasing."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:most].sort().values


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process that knows n labels.

    Attributes:
        process: kernel and noise.
        x: (n, d) of each input.
        weights: (n,) of the labels in a prediction.
        chosen: (m,) places of the labels that the spread is conditioned on.
        factor: (m, m) Cholesky factor of their noisy kernel matrix.
    """

    process: GaussianProcess
    x: Inputs
    weights: Tensor
    chosen: Tensor
    factor: Tensor

    def mean(self, x: Inputs) -> Tensor:
        """(P,) mean, with a gradient."""
        return self.process.kernel(x, self.x) @ self.weights

    @torch.no_grad()
    def predict(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """(P,) mean and (P,) standard deviation of a new label, noise included.

        The spread is that of a process that knows the chosen labels alone: an upper bound, at a cost that does not grow with n.
        """
        kernel = self.process.kernel(self.x, x)
        half = torch.linalg.solve_triangular(self.factor, kernel[self.chosen], upper=False)
        variance = (self.process.prior(x) - half.square().sum(0)).clamp(min=0) + self.process.noise
        return kernel.T @ self.weights, variance.sqrt()


@torch.no_grad()
def condition(process: GaussianProcess, x: Inputs, y: Tensor, seed: int) -> Posterior:
    """Give labels to a process whose kernel is known."""
    matrix = torch.empty(len(y), len(y), dtype=torch.float64)
    for start in range(0, len(y), BLOCK):
        matrix[start : start + BLOCK] = process.kernel({name: own[start : start + BLOCK] for name, own in x.items()}, x)
    matrix.diagonal().add_(process.noise)
    weights = torch.cholesky_solve(y[:, None], torch.linalg.cholesky(matrix))[:, 0]
    chosen = drawn(len(y), MOST_FOR_SPREAD, seed)
    return Posterior(process, x, weights, chosen, torch.linalg.cholesky(matrix[chosen][:, chosen]))


def fit(x: Inputs, y: Tensor, seed: int) -> Posterior:
    """Learn the kernel from labels y (n,), then give them all to it."""
    process = GaussianProcess({name: own.shape[1] for name, own in x.items()})
    process.learn(x, y, seed)
    return condition(process.requires_grad_(False), x, y, seed)


__all__ = [
    "EACH", "GaussianProcess", "Inputs", "Posterior", "compare", "condition", "drawn", "fit", "matern", "squared_distance", "tanimoto",
]  # fmt: skip
