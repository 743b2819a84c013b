"""What a user asks for: polymers, lengths and configuration, and the batches they are generated in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import InputError, PolymerError
from data_shards.schema import UnitTopology
from data_shards.sources.table import TableSource

if TYPE_CHECKING:
    from foundation.batch import Condition
    from foundation.objectives.base import Capabilities

TACTICITIES = ("isotactic", "syndiotactic", "atactic")
NUM_SHAPES = 16  # geometries a polymer offers to a model that starts from them, and to the baselines of evaluation


@dataclass(frozen=True)
class ChainRequest:
    """One chain to generate.

    Attributes:
        psmiles: as the user wrote it.
        num_written_units: repeat units as the user wrote them.
        topology: canonical repeat unit.
        num_units: N, canonical units: written units times the canonical units that one of them holds.
        tacticity: isotactic | syndiotactic | atactic.
        seed: of the tacticity and of the conformations.
        handedness: (N, c) int8 in {-1, +1}, sign wanted at every stereocentre.
        row: 1 is the first row of the user's table, or the only polymer.
    """

    psmiles: str
    num_written_units: int
    topology: UnitTopology
    num_units: int
    tacticity: str
    seed: int
    handedness: NDArray[np.int8]
    row: int = 1

    @property
    def num_heavy_atoms(self) -> int:
        """H."""
        return self.num_units * (self.topology.num_atoms - 2) + 2

    def num_packed_atoms(self, units_at_once: int | None = None) -> int:
        """Atoms of all units, or of as many as are sampled at once, stars included: what a batch is filled by."""
        return min(self.num_units, units_at_once or self.num_units) * self.topology.num_atoms


@dataclass(frozen=True)
class Refusal:
    """A polymer that cannot be used; it stays in the count of attempts."""

    row: int
    psmiles: str
    reason: str  # key of the funnel
    detail: str


def read_request(psmiles: str, num_units: int, tacticity: str, seed: int, row: int = 1) -> ChainRequest:
    """A checked request.

    Args:
        psmiles: repeat unit with two stars.
        num_units: repeat units as written, >= 1.
        tacticity: of the stereocentres that the P-SMILES leaves open.
        seed: any integer.
        row: of the user's table.

    Raises:
        InputError: num_units or tacticity out of bounds.
        PolymerError: the P-SMILES cannot be used.
    """
    from data_shards.chem.chain import tacticity_signs
    from data_shards.chem.psmiles import canonicalise
    from data_shards.chem.repeat_unit import build_unit

    check_numbers(num_units=num_units)
    if tacticity not in TACTICITIES:
        raise InputError(f"tacticity {tacticity!r} must be one of {', '.join(TACTICITIES)}; change --tacticity")
    canonical = canonicalise(psmiles)
    topology = build_unit(canonical.psmiles).topology
    total = num_units * canonical.multiplicity
    signs = tacticity_signs(topology, total, tacticity, seed)
    return ChainRequest(psmiles, num_units, topology, total, tacticity, seed, signs, row)


def check_numbers(**numbers: int | None) -> None:
    """Refuse counts below one; the keyword is the name of the flag.

    Raises:
        InputError: a number below 1.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value} must be >= 1; change --{name.replace('_', '-')}")


def check_seed(seed: int) -> None:
    """Refuse a negative seed.

    Raises:
        InputError: seed below 0.
    """
    if seed < 0:
        raise InputError(f"seed {seed} must be >= 0; change --seed")


def read_requests(
    psmiles: str | None, table: str | None, column: str | None, limit: int | None, num_units: int, tacticity: str, seed: int
) -> tuple[list[ChainRequest], list[Refusal]]:
    """Requests from one P-SMILES or from a table. A bad row of a table becomes a Refusal; a single bad P-SMILES is an error.

    Raises:
        InputError: neither or both given, unreadable table, number out of bounds.
        PolymerError: the one P-SMILES cannot be used.
    """
    if (psmiles is None) == (table is None):
        given = "neither" if psmiles is None else "both"
        raise InputError(f"give either --psmiles or --input, {given} given")
    check_numbers(num_units=num_units)
    if psmiles is not None:
        return [read_request(psmiles, num_units, tacticity, seed)], []
    assert table is not None
    requests, refused = [], []
    for row in TableSource(table, column, limit).rows():
        try:
            requests.append(read_request(row.psmiles, num_units, tacticity, seed, row.number))
        except PolymerError as error:
            refused.append(Refusal(row.number, row.psmiles, error.reason, error.detail))
    return requests, refused


def chain_condition(request: ChainRequest, capabilities: Capabilities) -> Condition:
    """What a model is told about one chain; seed geometries are made only where the objective needs them.

    Raises:
        PolymerError: it needs seed geometries and there is none.
    """
    from foundation.data.collate import condition

    seeds = library_shapes(request.topology.psmiles, request.seed)[0] if capabilities.needs_seed_conformers else None
    return condition(request.topology, request.num_units, request.handedness, seeds)


@lru_cache(maxsize=4096)
def library_shapes(psmiles: str, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """(NUM_SHAPES, n, 3) relaxed RDKit geometries of a unit and their handedness (NUM_SHAPES, c).

    Raises:
        PolymerError: no geometry can be made.
    """
    from data_shards.conformers.fragments import seed_shapes

    return seed_shapes(psmiles, NUM_SHAPES, seed)


def plan_batches(
    requests: Sequence[ChainRequest], num: int, batch_atoms: int, units_at_once: int | None = None
) -> Iterator[list[tuple[int, int]]]:
    """(request, conformation) pairs in order, cut into batches.

    Args:
        requests: chains.
        num: conformations of each.
        batch_atoms: atoms of all units of a batch; a chain larger than this makes a batch of its own.
        units_at_once: of the objective's capabilities.
    """
    batch: list[tuple[int, int]] = []
    filled = 0
    for index, request in enumerate(requests):
        for conformation in range(num):
            if batch and filled + request.num_packed_atoms(units_at_once) > batch_atoms:
                yield batch
                batch, filled = [], 0
            batch.append((index, conformation))
            filled += request.num_packed_atoms(units_at_once)
    if batch:
        yield batch
