"""One-electron levels of an infinite chain by tight binding: what its graph says of gap, ionisation and conjugation along the backbone.

Every atom has four valence orbitals: hybrids for its bonds and lone pairs, p orbitals for what is conjugated. The chain is flat and
repeats without end, so that levels are those of H(k) = H0 + H1 exp(ik) + H1^T exp(-ik) at k = 0 and k = pi, where bands of a chain have
their edges. p orbitals see nothing of hybrids in a flat chain, which splits H(k) in two. No number is fitted to a polymer: terms are
those of free atoms, and couplings Harrison's universal ones, which fall with the square of the bond length. Levels are far too wide
apart for energies, but in the right order.

Source: Harrison, Elementary Electronic Structure (1999): Hartree-Fock terms of atoms and universal couplings; covalent radii: Cordero et
al., Dalton Trans. 2832 (2008); how much shorter multiple bonds are: about as in Pyykkö, Atsumi, Chem. Eur. J. 15, 12770 (2009).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_shards.schema import BOND_AROMATIC, BOND_DOUBLE, BOND_SINGLE, BOND_TRIPLE, UnitTopology

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]

# atomic number: valence electrons, s and p terms in eV, covalent radius in angstrom, period
ATOMS = {
    5: (3, -13.46, -8.43, 0.84, 2), 6: (4, -19.38, -11.07, 0.76, 2), 7: (5, -26.22, -13.84, 0.71, 2),
    8: (6, -34.02, -16.77, 0.66, 2), 9: (7, -42.78, -19.86, 0.57, 2), 13: (3, -10.71, -5.71, 1.21, 3),
    14: (4, -14.79, -7.58, 1.11, 3), 15: (5, -19.22, -9.54, 1.07, 3), 16: (6, -24.01, -11.60, 1.05, 3), 17: (7, -29.19, -13.78, 1.02, 3),
    32: (4, -15.15, -7.33, 1.20, 4), 33: (5, -18.91, -8.98, 1.19, 4), 34: (6, -22.86, -10.68, 1.20, 4), 35: (7, -27.00, -12.43, 1.20, 4),
    50: (4, -13.04, -6.76, 1.39, 5), 51: (5, -16.02, -8.14, 1.39, 5), 52: (6, -19.12, -9.54, 1.38, 5), 53: (7, -22.34, -10.97, 1.39, 5),
}  # fmt: skip
HYDROGEN, HYDROGEN_RADIUS = -13.61, 0.31
SS, SP, PP, PI = -1.32, 1.42, 2.22, -0.63  # couplings in units of hbar^2 / (m d^2)
HBAR2_OVER_M = 7.62  # eV angstrom^2
SHRINKS = {BOND_SINGLE: 1.0, BOND_DOUBLE: 0.88, BOND_TRIPLE: 0.79, BOND_AROMATIC: 0.92}
CONJUGATED = 0.965  # of a single bond between atoms with p orbitals
TWISTED = 0.5  # what is left of p couplings of single bonds turned by 60 degrees
NITROGENS, BORONS, CHALCOGENS, HALOGENS = (7, 15, 33), (5, 13), (8, 16, 34, 52), (9, 17, 35, 53)
LEVELS = ("homo", "lumo", "gap", "p homo", "p lumo", "p gap", "twisted homo", "twisted lumo", "twisted gap")
# mean and deviation in eV over 8,992 polymers of the public corpus that no test holds, values cut at the first and the last percentile
MEANS = (-13.55, -9.28, 4.27, -13.56, -9.28, 4.22, -13.73, -9.52, 4.21)
DEVIATIONS = (1.65, 0.91, 2.22, 1.67, 0.84, 2.12, 1.41, 0.66, 1.69)
LARGEST = 4.0  # standard deviations from the mean; a standardised level farther out lies here


def chain_levels(topology: UnitTopology) -> NDArray[np.float32]:
    """(LEVELS,) edges and gaps in eV of a flat infinite chain, of its p orbitals alone, and of a chain whose single bonds are turned.

    NaN where there is no such level, all NaN where an element has no parameters.

    Args:
        topology: of the repeat unit. Other units of the same chain fold k = 0 and pi elsewhere: levels are those of the polymer where the
            topology is that of its smallest unit.
    """
    chain = _orbitals(topology)
    if chain is None:
        return np.full(len(LEVELS), np.nan, dtype=np.float32)
    hybrids, (flat, turned) = _bands(*_hybrid_blocks(chain)), (_bands(*_p_blocks(chain, share)) for share in (1.0, TWISTED))
    edges, twisted = (_edges(np.sort(np.concatenate([own, hybrids], axis=1), axis=1), chain.electrons // 2) for own in (flat, turned))
    return np.array([*edges, *_edges_about(flat, 0.5 * (edges[0] + edges[1])), *twisted], dtype=np.float32)


def standardised_levels(topology: UnitTopology) -> NDArray[np.float32]:
    """(LEVELS,) of mean 0 and deviation 1 over polymers, cut at LARGEST; NaN as chain_levels."""
    return np.clip((chain_levels(topology) - MEANS) / DEVIATIONS, -LARGEST, LARGEST).astype(np.float32)


def _bands(inside: Matrix, across: Matrix) -> Matrix:
    """(2, orbitals) levels at k = 0 and pi."""
    both = across + across.T
    return np.linalg.eigvalsh(np.stack([inside + both, inside - both]))


def _edges(bands: Matrix, filled: int) -> tuple[float, float, float]:
    """Highest filled level, lowest empty one, and the gap between them."""
    filled = min(max(filled, 1), bands.shape[1] - 1)
    high, low = bands[:, filled - 1].max(), bands[:, filled].min()
    return high, low, low - high


def _edges_about(bands: Matrix, middle: float) -> tuple[float, float, float]:
    """Highest level below the middle, lowest above, and the gap; NaN where a side is empty."""
    high, low = bands[bands <= middle].max(initial=-np.inf), bands[bands > middle].min(initial=np.inf)
    high, low = (own if np.isfinite(own) else np.nan for own in (high, low))
    return high, low, low - high


# ------------------------------------------------------------------------------------------------------------------------ orbitals


class _Chain:
    """Atoms of a unit without stars, bonds among them and to the next unit, and their orbitals."""

    def __init__(self, topology: UnitTopology) -> None:
        star0, nbr0, nbr1, star1 = (int(k) for k in topology.key_atoms)
        own = np.delete(np.arange(topology.num_atoms), [star0, star1])
        place = np.full(topology.num_atoms, -1)
        place[own] = np.arange(len(own))
        ends = place[topology.bonds]
        inside = (ends >= 0).all(axis=1)
        self.bonds = np.concatenate([ends[inside], [[place[nbr1], place[nbr0]]]])
        self.orders = np.concatenate([topology.bond_orders[inside], [topology.junction_order]]).astype(np.int64)
        self.elements = topology.elements[own].astype(np.int64)
        self.hydrogens = topology.num_hydrogens[own].astype(np.int64)
        self.charge = int(topology.formal_charges[own].sum())
        self.aromatic = topology.aromatic[own]

    def read(self) -> None:
        electrons, s, p, radius, period = np.array([ATOMS[z] for z in self.elements.tolist()]).T
        self.s, self.p, self.radius = s, p, radius
        self.electrons = int(electrons.sum() + self.hydrogens.sum()) - self.charge
        i, j = self.bonds.T
        size = len(self.elements)
        sigma = np.bincount(self.bonds.ravel(), minlength=size) + self.hydrogens
        multiple = np.bincount(self.bonds.ravel(), np.repeat(np.select([self.orders == 2, self.orders == 3], [1, 2], 0), 2), size)
        multiple = np.where((multiple == 0) & self.aromatic, 1, multiple).astype(np.int64)
        number = np.where((period >= 3) & (sigma >= 3), 0, np.minimum(multiple, 2))  # hypervalent sulfur and phosphorus have none
        beside = np.zeros(size, dtype=bool)
        np.logical_or.at(beside, i, multiple[j] > 0)
        np.logical_or.at(beside, j, multiple[i] > 0)
        free = (number == 0) & (sigma <= 3)
        lone = np.isin(self.elements, CHALCOGENS) & (sigma <= 2)
        lone |= np.isin(self.elements, NITROGENS) & (period < 3) & beside
        lone |= np.isin(self.elements, BORONS)  # an empty p orbital
        number = np.where(free & lone, 1, number)
        number = np.where(free & np.isin(self.elements, HALOGENS) & (sigma <= 1), 2, number)
        self.p_orbitals = np.where(sigma >= 4, 0, np.minimum(number, 4 - sigma))
        self.hybrids = np.maximum(4 - self.p_orbitals, sigma)
        conjugated = (self.orders == BOND_SINGLE) & (self.p_orbitals[i] > 0) & (self.p_orbitals[j] > 0)
        conjugated &= ~(np.isin(self.elements[i], HALOGENS) | np.isin(self.elements[j], HALOGENS))
        shrinks = np.select([self.orders == order for order in SHRINKS], list(SHRINKS.values()), 1.0)
        self.lengths = (radius[i] + radius[j]) * np.where(conjugated, CONJUGATED, shrinks)


def _orbitals(topology: UnitTopology) -> _Chain | None:
    chain = _Chain(topology)
    if not set(chain.elements.tolist()) <= ATOMS.keys():
        return None
    chain.read()
    return chain


def _scatter(size: int, rows: Places, columns: Places, values: Matrix, crosses: NDArray[np.bool_]) -> tuple[Matrix, Matrix]:
    """Couplings inside a unit, symmetric, and from a unit to the next."""
    inside, across = np.zeros((size, size)), np.zeros((size, size))
    np.add.at(inside, (rows[~crosses], columns[~crosses]), values[~crosses])
    np.add.at(across, (rows[crosses], columns[crosses]), values[crosses])
    return inside + inside.T, across


def _p_blocks(chain: _Chain, share: float) -> tuple[Matrix, Matrix]:
    """H0 and H1 of p orbitals; `share` of the couplings of single bonds is left. The second p orbitals of a triple bond see each other."""
    first = np.cumsum(chain.p_orbitals) - chain.p_orbitals
    size = int(chain.p_orbitals.sum())
    i, j = chain.bonds.T
    coupled = np.flatnonzero((chain.p_orbitals[i] > 0) & (chain.p_orbitals[j] > 0))
    second = coupled[(chain.orders[coupled] == BOND_TRIPLE) & (chain.p_orbitals[i[coupled]] > 1) & (chain.p_orbitals[j[coupled]] > 1)]
    bonds = np.concatenate([coupled, second])
    which = np.concatenate([np.zeros(len(coupled), dtype=np.int64), np.ones(len(second), dtype=np.int64)])
    values = PI * HBAR2_OVER_M / chain.lengths[bonds] ** 2 * np.where(chain.orders[bonds] == BOND_SINGLE, share, 1.0)
    crosses = bonds == len(chain.bonds) - 1
    inside, across = _scatter(size, first[i[bonds]] + which, first[j[bonds]] + which, values, crosses)
    return inside + np.diag(np.repeat(chain.p, chain.p_orbitals)), across


def _hybrid_blocks(chain: _Chain) -> tuple[Matrix, Matrix]:
    """H0 and H1 of hybrids and of the s orbitals of hydrogens. An atom's first hybrids belong to its bonds, then come hydrogens."""
    number, hydrogens = int(chain.hybrids.sum()), int(chain.hydrogens.sum())
    first = np.cumsum(chain.hybrids) - chain.hybrids
    ends = np.concatenate([chain.bonds.ravel(), np.repeat(np.arange(len(chain.elements)), chain.hydrogens)])
    order = np.argsort(ends, kind="stable")
    counts = np.bincount(ends, minlength=len(chain.elements))
    rank = np.empty(len(ends), dtype=np.int64)
    rank[order] = np.arange(len(ends)) - np.repeat(np.cumsum(counts) - counts, counts)
    orbital = first[ends] + rank
    pairs, on_hydrogens = orbital[: chain.bonds.size].reshape(-1, 2), orbital[chain.bonds.size :]
    in_s, in_p = 1 / np.sqrt(chain.hybrids), np.sqrt(1 - 1 / chain.hybrids)  # amplitudes of an atom's hybrids
    i, j = chain.bonds.T
    bonded = in_s[i] * in_s[j] * SS - (in_s[i] * in_p[j] + in_p[i] * in_s[j]) * SP - in_p[i] * in_p[j] * PP
    carrier = ends[chain.bonds.size :]
    to_hydrogen = (in_s[carrier] * SS - in_p[carrier] * SP) * HBAR2_OVER_M / (chain.radius[carrier] + HYDROGEN_RADIUS) ** 2
    rows = np.concatenate([pairs[:, 0], on_hydrogens])
    columns = np.concatenate([pairs[:, 1], number + np.arange(hydrogens)])
    values = np.concatenate([bonded * HBAR2_OVER_M / chain.lengths**2, to_hydrogen])
    crosses = np.arange(len(values)) == len(chain.bonds) - 1
    inside, across = _scatter(number + hydrogens, rows, columns, values, crosses)
    atom = np.repeat(np.arange(len(chain.elements)), chain.hybrids)
    mixing = ((chain.s - chain.p) / chain.hybrids)[atom]  # between hybrids of one atom, and on each of them
    inside[:number, :number] += np.where(atom[:, None] == atom, mixing[:, None], 0.0) + np.diag(chain.p[atom])
    inside[np.arange(number, number + hydrogens), np.arange(number, number + hydrogens)] = HYDROGEN
    return inside, across


__all__ = ["ATOMS", "LEVELS", "chain_levels", "standardised_levels"]
