"""Backbone of a chain, its size and its torsions, and how long a quantity remembers itself. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_shards.chem.topology import adjacency, backbone, graph_distances
from data_shards.schema import UnitTopology, atom_owners, chain_hydrogens, unit_slots

WINDOW = 5.0  # of Sokal's rule: lags up to this multiple of the autocorrelation time are added up
RESOLVED = 20.0  # a series this many autocorrelation times long gives that time


def backbone_path(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """Heavy atoms on a shortest path from the head cap to the tail cap, in order; of two ways around a ring the one of lower slots."""
    bonded, hops = adjacency(topology), graph_distances(topology)
    star0, star1 = int(topology.key_atoms[0]), int(topology.key_atoms[3])
    path = [star0]
    while path[-1] != star1:
        path.append(int(np.flatnonzero(bonded[path[-1]] & (hops[star1] + 1 == hops[star1, path[-1]]))[0]))
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    return np.concatenate([slots[0, path[:1]], slots[:, path[1:-1]].ravel(), slots[-1, path[-1:]]])


def backbone_positions(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """Where along the backbone every atom hangs, in bonds.

    Args:
        topology: the repeat unit.
        num_units: N.

    Returns:
        (A,) for heavy atoms and then hydrogens in schema order: the number of bonds from the head cap to the backbone atom that is
        nearest to the atom, the first of several.
    """
    hops = graph_distances(topology).astype(np.int64)
    star0, nbr0, _, star1 = topology.key_atoms.tolist()
    chain = np.flatnonzero(backbone(topology))
    chain = chain[np.argsort(hops[star0, chain], kind="stable")]
    inner = chain[1:-1]
    anchor = hops[star0, inner[hops[:, inner].argmin(axis=1)]]  # of own atoms: a star carries nothing here
    anchor[[star0, star1]] = hops[star0, [star0, star1]]
    unit, slot = atom_owners(topology.key_atoms, topology.num_atoms, num_units)
    heavy = unit * hops[nbr0, star1] + anchor[slot]
    return np.concatenate([heavy, np.repeat(heavy, chain_hydrogens(topology, num_units))])


def radius_of_gyration_ang(x_ang: NDArray[np.floating], masses_da: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mass-weighted radii of gyration (...,) of atoms (..., A, 3) with masses (A,)."""
    share = masses_da / masses_da.sum()
    from_centre = x_ang - (share[:, None] * x_ang).sum(axis=-2, keepdims=True)
    size: NDArray[np.float64] = np.sqrt((share * (from_centre**2).sum(axis=-1)).sum(axis=-1))
    return size


def torsions_rad(x_ang: NDArray[np.floating]) -> NDArray[np.float64]:
    """Torsions (..., P - 3) along a path of atoms (..., P, 3), in (-pi, pi], trans is pi; bonds in rings included.

    Source: Blondel and Karplus, J. Comput. Chem. 17 (1996) 1132, eq. 2: no square root of a difference.
    """
    step = np.diff(np.asarray(x_ang, dtype=np.float64), axis=-2)
    before, axis, after = step[..., :-2, :], step[..., 1:-1, :], step[..., 2:, :]
    one, other = np.cross(before, axis), np.cross(axis, after)
    along = np.linalg.norm(axis, axis=-1)
    angles: NDArray[np.float64] = np.arctan2(along * (before * other).sum(axis=-1), (one * other).sum(axis=-1))
    return angles


def autocorrelation(series: NDArray[np.floating]) -> NDArray[np.float64]:
    """Normalised autocorrelation (T,) at lags 0, 1, ..., averaged over quantities.

    Args:
        series: (T,) or (T, ...) fluctuations of quantities about their means, in time; they are added up before normalising.

    Returns:
        (T,); all ones where nothing moves.
    """
    values = np.asarray(series, dtype=np.float64).reshape(len(series), -1)
    spectrum = np.abs(np.fft.rfft(values, n=2 * len(values), axis=0)) ** 2
    summed = np.fft.irfft(spectrum.sum(axis=1))[: len(values)] / np.arange(len(values), 0, -1)
    return summed / summed[0] if summed[0] > 0 else np.ones(len(values))


def autocorrelation_time(series: NDArray[np.floating]) -> float:
    """Integrated autocorrelation time in steps of the series: tau = 1/2 + sum over lags of the autocorrelation, so that T steps are worth
    T / (2 tau) independent ones; 1/2 for white noise, and for less than that.

    The sum ends at the first lag that is WINDOW times the sum so far. It can be trusted where the series is RESOLVED tau long or more;
    of a shorter one it is a lower bound where the mean that was taken off is its own.

    Args:
        series: as `autocorrelation`.

    Source: Sokal, in Functional Integration, ed. DeWitt-Morette et al., Plenum 1997, 131, section 3.
    """
    sums = np.cumsum(autocorrelation(series)) - 0.5
    ended = np.flatnonzero(np.arange(len(sums)) >= WINDOW * sums)
    return max(0.5, float(sums[ended[0]] if len(ended) else sums[-1]))
