"""Fixtures of the shard room: a polyethylene sample written by hand (no chemistry needed), one Ray, one small real shard set."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_shards.manifest import SampleEntry
from data_shards.schema import PolymerSample, UnitTopology
from data_shards.writer import sample_key

POLYMERS = (
    "*CC*",
    "*CC(*)c1ccccc1",
    "*CC(C)*",
    "*CCO*",
    "*OC(C)C(*)=O",
    "*CC(*)(C)C(=O)OC",
    "*CC(*)Cl",
    "*c1ccc(O*)cc1",
    "*C=CCC*",
    "*CC(*)C#N",
)


def polymethylene_topology() -> UnitTopology:
    """`*C*`: one carbon and its two stars, the smallest unit there is."""
    return UnitTopology(
        psmiles="*C*",
        elements=np.array([6, 6, 6], dtype=np.uint8),
        formal_charges=np.zeros(3, dtype=np.int8),
        num_hydrogens=np.full(3, 2, dtype=np.uint8),
        aromatic=np.zeros(3, dtype=bool),
        bonds=np.array([[0, 1], [1, 2]], dtype=np.int32),
        bond_orders=np.ones(2, dtype=np.uint8),
        key_atoms=np.array([0, 1, 1, 2], dtype=np.int32),
        frame_atoms=np.array([0, 1, 2], dtype=np.int32),
        link_atoms=np.array([0, 2], dtype=np.int32),
        stereo_centres=np.zeros(0, dtype=np.int32),
        stereo_neighbours=np.zeros((0, 3), dtype=np.int32),
        stereo_specified=np.zeros(0, dtype=np.int8),
        cap_hydrogens=np.array([3, 3], dtype=np.uint8),
        junction_order=1,
    )


@pytest.fixture
def make_sample() -> Callable[..., PolymerSample]:
    """Planar zigzag polymethylene with C-C 1.53 angstrom, C-H 1.09 angstrom."""

    def make(num_units: int = 6, num_conformations: int = 2, seed: int = 0) -> PolymerSample:
        count = num_units + 2
        step = np.arange(count)
        heavy = np.stack([1.275 * step, 0.846 * (step % 2), 0 * step], axis=1)
        up = np.where(step % 2 == 1, 1.0, -1.0)[:, None]
        side = np.concatenate([0.63 * up, np.full_like(up, 0.89)], axis=1)
        pair = np.stack([heavy + np.pad(side * sign, ((0, 0), (1, 0))) for sign in ([1, 1], [1, -1])], axis=1)
        ends = np.array([[-0.63 * 1.7, 0.2, 0.0], [0.63 * 1.7, 0.2, 0.0]])
        hydrogens = np.concatenate([pair[0], heavy[:1] + ends[0], pair[1:].reshape(-1, 3), heavy[-1:] + ends[1]])
        shift = np.arange(num_conformations)[:, None, None].astype(np.float32)
        return PolymerSample(
            key=sample_key("*C*", num_units, seed),
            topology=polymethylene_topology(),
            num_units=num_units,
            tacticity="atactic",
            seed=seed,
            engine="grow",
            heavy_ang=heavy[None].astype(np.float32) + shift,
            hydrogen_ang=hydrogens[None].astype(np.float32) + shift,
            energies_kcal_mol=np.linspace(-1.0, 1.0, num_conformations),
            provenance={"row": 1, "written": "*CC*"},
        )

    return make


@pytest.fixture
def make_entry() -> Callable[[PolymerSample], SampleEntry]:
    """The manifest entry of a sample, before its place is known."""

    def make(sample: PolymerSample) -> SampleEntry:
        return SampleEntry(
            sample.key, sample.topology.psmiles, "group", 0, 0, sample.num_units, sample.topology.num_atoms, len(sample.heavy_ang)
        )

    return make


@pytest.fixture(scope="session")
def polymers() -> tuple[str, ...]:
    """Ten real polymers: no stereocentre, one, open and ring backbones, double bonds, hetero atoms."""
    return POLYMERS


@pytest.fixture
def write_table() -> Callable[..., Path]:
    """A CSV with one P-SMILES per row."""

    def write(path: Path, polymers: tuple[str, ...] = POLYMERS, column: str = "psmiles") -> Path:
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", column])
            table.writerows((number, psmiles) for number, psmiles in enumerate(polymers))
        return path

    return write


@pytest.fixture(scope="session")
def ray_two_cpus() -> Iterator[None]:
    """One Ray for all tests that need it; started the way the build starts it."""
    from data_shards.crew import start_ray

    with start_ray(2):
        yield
