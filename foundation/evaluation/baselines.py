"""What needs no training: library shapes of the units joined at link dihedrals of a simple law, and the grow engine itself.

All but grow take unit shapes of the right handedness from the library (relaxed RDKit geometries) and assemble them exactly. They differ
in the angles alone, but for the extended chain, whose units all have the longest shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import PolymerError
from data_shards.schema import PolymerSample, UnitTopology
from foundation.evaluation.chains import assemble_chains, chain_tables
from foundation.evaluation.measure import Attempts, link_counts
from foundation.evaluation.metrics import NUM_BINS, end_to_end
from foundation.sampling.request import library_shapes

NUM_EXTENDED_ANGLES = 72

DrawLinks = Callable[[PolymerSample, int, np.random.Generator], NDArray[np.float64]]  # (sample, num, rng) -> (num, N - 1) rad


def pick_shapes(
    shapes_ang: NDArray[np.floating],
    signs: NDArray[np.int8],
    wanted: NDArray[np.int8],
    num: int,
    rng: np.random.Generator,
    preference: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """A library shape for every unit of every chain, among those whose handedness agrees best with the unit's.

    Args:
        shapes_ang: (F, n, 3) library.
        signs: (F, c) handedness of each shape.
        wanted: (N, c) handedness of each unit.
        num: K chains.
        rng: of the draw.
        preference: (F,) the largest is taken; None draws evenly.

    Returns:
        (K, N, n, 3).
    """
    agree = wanted.astype(np.int64) @ signs.T.astype(np.int64)  # (N, F)
    allowed = agree == agree.max(axis=1, keepdims=True)
    lots = rng.random((num, *allowed.shape)) if preference is None else np.broadcast_to(preference, (num, *allowed.shape))
    return shapes_ang[np.where(allowed, lots, -1.0).argmax(axis=-1)].astype(np.float64)


def random_links(sample: PolymerSample, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniform on the circle."""
    return rng.uniform(-np.pi, np.pi, (num, sample.num_units - 1))


@dataclass(frozen=True)
class LinkHistogram:
    """Link dihedrals of the training set.

    Attributes:
        pooled: (NUM_BINS,) counts over all training polymers.
        by_psmiles: the same of single polymers, for those that are in the training set.
        num_polymers: that were read.
    """

    pooled: NDArray[np.float64]
    by_psmiles: dict[str, NDArray[np.float64]]
    num_polymers: int

    def draw(self, sample: PolymerSample, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Bins by their counts, uniform inside a bin; of the polymer itself where training held it."""
        counts = self.by_psmiles.get(sample.topology.psmiles, self.pooled)
        size = (num, sample.num_units - 1)
        bins = rng.choice(NUM_BINS, size=size, p=counts / counts.sum())
        return (bins + rng.random(size)) / NUM_BINS * 2 * np.pi - np.pi


def train_histogram(samples: Iterable[PolymerSample]) -> LinkHistogram | None:
    """Histogram of link dihedrals; None where the samples hold no junction."""
    pooled, by_psmiles, num = np.zeros(NUM_BINS), {}, 0
    for sample in samples:
        counts = link_counts(chain_tables(sample.topology, sample.num_units), sample.heavy_ang)
        pooled += counts
        num += 1
        if counts.sum() > 0:
            by_psmiles[sample.topology.psmiles] = counts
    return LinkHistogram(pooled, by_psmiles, num) if pooled.sum() > 0 else None


def assembled(draw: DrawLinks | None, sample: PolymerSample, wanted: NDArray[np.int8], num: int, seed: int) -> Attempts:
    """Conformations of one baseline; a polymer without library shapes fails with the reason.

    Args:
        draw: law of the link dihedrals; None: the extended chain, the same in every conformation.
        sample: the polymer.
        wanted: (N, c) handedness of its units.
        num: conformations.
        seed: of shapes and angles.
    """
    topology = sample.topology
    try:
        shapes_ang, signs = library_shapes(topology.psmiles, seed)
    except PolymerError as error:
        return Attempts(np.zeros((0, sample.heavy_ang.shape[1], 3)), (error.reason,) * num)
    rng = np.random.default_rng([seed, int(sample.key[:12], 16)])
    if draw is not None:
        shapes = pick_shapes(shapes_ang, signs, wanted, num, rng)
        return Attempts(assemble_chains(topology, shapes, draw(sample, num, rng)), (), shapes)
    x_ang, shapes = _extended(topology, shapes_ang, signs, wanted)
    return Attempts(np.repeat(x_ang, num, axis=0), (), np.repeat(shapes, num, axis=0))


def _extended(
    topology: UnitTopology, shapes_ang: NDArray[np.floating], signs: NDArray[np.int8], wanted: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(1, H, 3) the longest chain with the longest shape in every unit and one angle at every junction, and its (1, N, n, 3) shapes.

    The angle is searched because the link dihedral may be read over side chains, where trans is not along the backbone.
    """
    star0, star1 = (int(k) for k in topology.key_atoms[[0, 3]])
    length = np.linalg.norm(shapes_ang[:, star1] - shapes_ang[:, star0], axis=1)
    shapes = pick_shapes(shapes_ang, signs, wanted, 1, np.random.default_rng(0), length)
    angles = np.linspace(-np.pi, np.pi, NUM_EXTENDED_ANGLES, endpoint=False)
    trial = np.broadcast_to(shapes, (len(angles), *shapes.shape[1:]))
    x_ang = assemble_chains(topology, trial, np.repeat(angles[:, None], len(wanted) - 1, axis=1))
    return x_ang[[int(end_to_end(x_ang).argmax())]], shapes


def baselines(histogram: LinkHistogram | None) -> Iterator[tuple[str, Callable[[PolymerSample, NDArray[np.int8], int, int], Attempts]]]:
    """(name, method) of every baseline that the training set allows."""
    yield "random links", partial(assembled, random_links)
    if histogram is not None:
        yield "train histogram", partial(assembled, histogram.draw)
    yield "extended", partial(assembled, None)
