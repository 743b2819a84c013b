"""Where the flow begins: atoms joined by springs along bonds, or every atom by itself; both centred.

The harmonic prior has the density exp(-1/2 sum over bonds |x_i - x_j|^2) of centred coordinates, pieces by themselves: covariance L^+, the
pseudoinverse of the graph Laplacian L = B^T B, B the incidence matrix. With one normal number z for each bond, L^+ B^T z has just this
covariance, L^+ B^T B L^+ = L^+, so that a draw is one linear solve: exact for rings, pieces and chains of any length, and no eigenvalue has
to be told from zero.

Source: Jing et al., EigenFold, arXiv 2304.02198, eq. 3 (the prior). Differs: a linear solve instead of eigenvectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.molecules import Molecules

DENSE = 512  # atoms of the largest molecule up to which one batched Cholesky factorisation serves


def draw_prior(molecules: Molecules, kind: str, rng: torch.Generator) -> Tensor:
    """(B, n, 3) float32 angstrom, every piece of a molecule centred, padding zero."""
    mask = molecules.mask
    if kind == "gaussian":
        x = torch.randn(*mask.shape, 3, generator=rng, device=mask.device)
        return centre(x, mask)
    i, j = molecules.bond_atom[:, molecules.one_way]  # places in the flattened (B n) atoms
    z = torch.randn(len(i), 3, generator=rng, device=mask.device).double()
    pull = z.new_zeros(mask.numel(), 3).index_add(0, i, z).index_add(0, j, -z)
    solve = _dense if mask.shape[1] <= DENSE else _sparse
    x = solve(molecules, i, j, pull).reshape(*mask.shape, 3)
    piece, count = molecules.piece, molecules.num_pieces
    mean = x.new_zeros(count, 3).index_add(0, piece, x.reshape(-1, 3))
    size = x.new_zeros(count).index_add(0, piece, mask.reshape(-1).double())
    x = x - (mean / size.clamp(min=1)[:, None])[piece].reshape(x.shape)
    return (x * mask[..., None]).float()


def _dense(molecules: Molecules, i: Tensor, j: Tensor, pull: Tensor) -> Tensor:
    """One Cholesky factorisation a molecule; the first atom of every piece is held by a spring of its own, which does not pull."""
    rows, n = molecules.mask.shape
    laplace = pull.new_zeros(rows, n, n)
    row, a, b = i // n, i % n, j % n
    one = pull.new_ones(len(i))
    laplace.index_put_(
        (torch.cat([row] * 4), torch.cat([a, b, a, b]), torch.cat([a, b, b, a])), torch.cat([one, one, -one, -one]), accumulate=True
    )
    laplace.diagonal(dim1=1, dim2=2).add_(held(molecules).reshape(rows, n).double())
    return torch.cholesky_solve(pull.reshape(rows, n, 3), torch.linalg.cholesky(laplace))


def _sparse(molecules: Molecules, i: Tensor, j: Tensor, pull: Tensor) -> Tensor:
    """The same as one sparse system of all molecules, on the processor."""
    import numpy as np
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import splu

    number = len(pull)
    a, b = (own.cpu().numpy() for own in (i, j))
    ones = np.ones(len(a))
    shape = (np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a]))
    laplace = coo_array((np.concatenate([ones, ones, -ones, -ones]), shape), shape=(number, number)).tocsc()
    laplace = laplace + diags_array(held(molecules).double().cpu().numpy()).tocsc()
    return torch.from_numpy(splu(laplace.tocsc()).solve(pull.cpu().numpy())).to(pull.device)


def held(molecules: Molecules) -> Tensor:
    """(B n,) bool, the first atom of every piece, and the padding."""
    piece, count = molecules.piece, molecules.num_pieces
    place = torch.arange(len(piece), device=piece.device)
    first = place.new_full((count,), len(piece)).scatter_reduce(0, piece, place, "amin")
    return first[piece] == place


def centre(x: Tensor, mask: Tensor) -> Tensor:
    """(B, n, 3) with the mean of each molecule at the origin, padding zero."""
    x = x * mask[..., None]
    mean = x.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
    return (x - mean) * mask[..., None]


__all__ = ["DENSE", "centre", "draw_prior", "held"]
