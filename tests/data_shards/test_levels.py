"""Levels of a chain: known by hand, equal to those of a ring of many units, the same for every way of writing a polymer."""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np
import pytest

from data_shards.chem import levels
from data_shards.chem.levels import LARGEST, LEVELS, chain_levels, standardised_levels
from data_shards.chem.repeat_unit import build_unit, unit_graph

POLYMERS = ("*CC*", "*C=C*", "*C#C*", "*CC(*)c1ccccc1", "*CCO*", "*c1ccc(*)s1", "*NCCCCCC(*)=O", "*[SiH2]*", "*C(F)(F)C(*)(F)F")
POLYMERS += ("*Oc1ccc(S(=O)(=O)c2ccc(*)cc2)cc1", "*c1ccc2c(c1)C(=O)N(*)C2=O", "*CC(*)C(=O)[O-]", "*N=P(*)(Cl)Cl", "*=CC=*", "*B(*)c1ccccc1")


def named(psmiles: str) -> dict[str, float]:
    return dict(zip(LEVELS, chain_levels(unit_graph(psmiles)).astype(float).tolist(), strict=True))


def coupling(length: float) -> float:
    return levels.PI * levels.HBAR2_OVER_M / length**2


def test_gap_of_polyacetylene_is_that_of_su_schrieffer_and_heeger() -> None:
    """E = +- |t1 + t2 exp(ik)|: the gap is 2 |t1 - t2| at k = pi, the edges of the p band +- (t1 + t2) about the term of carbon."""
    double, single = coupling(2 * 0.76 * 0.88), coupling(2 * 0.76 * levels.CONJUGATED)
    found = named("*C=C*")
    assert found["p gap"] == pytest.approx(2 * abs(double - single), rel=1e-5)
    assert found["p homo"] + found["p lumo"] == pytest.approx(2 * -11.07, rel=1e-6)
    assert found["gap"] == pytest.approx(found["p gap"])
    assert found["twisted gap"] == pytest.approx(2 * abs(double - levels.TWISTED * single), rel=1e-5)


def test_ring_of_polystyrene_is_hueckels_benzene() -> None:
    """alpha +- beta, and no single bond to turn, as the ring touches no other p orbital."""
    beta = coupling(2 * 0.76 * 0.92)
    found = named("*CC(*)c1ccccc1")
    assert found["p homo"] == pytest.approx(-11.07 + beta, rel=1e-5)
    assert found["p lumo"] == pytest.approx(-11.07 - beta, rel=1e-5)
    assert found["homo"] == pytest.approx(found["p homo"])
    assert found["gap"] == pytest.approx(found["twisted gap"], rel=1e-6)


def test_triple_bonds_have_a_second_system_that_ends_with_them() -> None:
    orbitals = levels._orbitals(unit_graph("*C#C*"))
    assert orbitals is not None
    bands = levels._bands(*levels._p_blocks(orbitals, 1.0))
    triple = coupling(2 * 0.76 * 0.79)
    assert np.isclose(bands, -11.07 + triple).any(axis=1).all()
    assert np.isclose(bands, -11.07 - triple).any(axis=1).all()


def test_hybrids_of_carbon_diagonalise_to_its_terms() -> None:
    """Four hybrids of an atom without neighbours are one s and three p orbitals."""
    orbitals = levels._orbitals(unit_graph("*CC*"))
    assert orbitals is not None
    inside, _ = levels._hybrid_blocks(orbitals)
    assert np.linalg.eigvalsh(inside[:4, :4]).tolist() == pytest.approx([-19.38, -11.07, -11.07, -11.07])


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_bands_are_levels_of_a_ring_of_units(psmiles: str) -> None:
    """A ring of an even number of units has the levels of k = 0 and pi among its own."""
    orbitals = levels._orbitals(unit_graph(psmiles))
    assert orbitals is not None
    for inside, across in (levels._p_blocks(orbitals, 1.0), levels._hybrid_blocks(orbitals)):
        size, units = len(inside), 6
        ring = np.zeros((units * size, units * size))
        for k in range(units):
            here, there = k * size, (k + 1) % units * size
            ring[here : here + size, here : here + size] += inside
            ring[here : here + size, there : there + size] += across
            ring[there : there + size, here : here + size] += across.T
        whole = np.linalg.eigvalsh(ring)
        for level in levels._bands(inside, across).ravel():
            assert np.abs(whole - level).min() < 1e-9
        assert np.trace(inside) * units == pytest.approx(whole.sum())


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_electrons_fill_bonds_and_lone_pairs(psmiles: str) -> None:
    """Orbitals are four an atom and one a hydrogen; a polymer without radicals has an even number of electrons and a gap."""
    topology = unit_graph(psmiles)
    orbitals = levels._orbitals(topology)
    assert orbitals is not None
    assert orbitals.electrons % 2 == 0
    assert (orbitals.p_orbitals + orbitals.hybrids == 4).all()
    found = named(psmiles)
    assert found["gap"] > 0.3
    assert found["gap"] == pytest.approx(found["lumo"] - found["homo"], abs=1e-5)


@pytest.mark.parametrize(
    "ways", [("*CCO*", "*COC*", "*OCC*"), ("*c1ccc(*)cc1", "*c1ccc(cc1)-c1ccc(*)cc1"), ("*CC=CC*", "*C=CCC*", "*=CCCC=*")]
)
def test_levels_do_not_depend_on_how_a_polymer_is_written(ways: tuple[str, ...]) -> None:
    first, *others = (chain_levels(unit_graph(psmiles)) for psmiles in ways)
    for other in others:
        np.testing.assert_allclose(other, first, atol=2e-5)


def test_a_doubled_unit_has_the_same_edges() -> None:
    """k = pi of the smallest unit is k = 0 of the doubled one; nothing of the chain lies outside."""
    one, two = chain_levels(unit_graph("*C=C*")), chain_levels(build_unit("*C=CC=C*").topology)
    for name in ("homo", "lumo", "gap"):
        assert two[LEVELS.index(name)] == pytest.approx(one[LEVELS.index(name)], abs=1e-5)


def test_order_of_gaps_is_that_of_experience() -> None:
    """Longer conjugation, smaller gap; saturated chains have the largest."""
    order = ["*C=C*", "*c1ccc(*)s1", "*c1ccc(*)cc1", "*CC(*)c1ccccc1", "*CC*"]
    gaps = [named(psmiles)["gap"] for psmiles in order]
    assert gaps == sorted(gaps)


def test_standardised_levels_are_near_0_and_1_and_cut() -> None:
    with files("data_shards.sources").joinpath("textbook.csv").open() as table:  # smaller units than the corpus has
        units = [unit_graph(row["psmiles"]) for row in csv.DictReader(table)]
    plain, found = (np.stack([one(unit) for unit in units]) for one in (chain_levels, standardised_levels))
    assert found.dtype == np.float32
    assert np.abs(np.nanmean(found, 0)).max() < 1.5
    assert ((np.nanstd(found, 0) > 0.5) & (np.nanstd(found, 0) < 2.0)).all()
    inside = np.isfinite(found) & (np.abs(found) < LARGEST)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))
    np.testing.assert_allclose(found[inside], ((plain - levels.MEANS) / levels.DEVIATIONS)[inside], atol=1e-5)
    assert np.nanmax(np.abs(found)) == LARGEST


def test_an_element_without_parameters_has_no_levels() -> None:
    assert np.isfinite(chain_levels(unit_graph("*[Ge](*)(C)C"))[: LEVELS.index("p homo")]).all()
    assert np.isnan(chain_levels(unit_graph("*[Fe]*"))).all()
    assert np.isnan(chain_levels(unit_graph("*CC*"))[LEVELS.index("p homo")])
