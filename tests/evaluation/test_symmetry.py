"""Superposition over the symmetries of a chain: every trade tried by brute force, RDKit's best RMSD, and never above the plain one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from data_shards.chem.chain import chain_mol
from data_shards.schema import TopologyKey
from foundation.evaluation import metrics, symmetry
from foundation.evaluation.chains import ChainTables, chain_tables
from foundation.evaluation.measure import handedness
from foundation.evaluation.symmetry import chain_starts, symmetric_rmsd_matrix, unit_symmetry
from tests.sampling.conftest import FIXTURES, chain_of, request_of

COUNTS = {  # P-SMILES -> choices of each exchange of a unit, and whether the chain reads the same backwards
    "*CC(*)c1ccccc1": ([2], False),
    "*Oc1ccc(CC(*)=O)cc1": ([2], False),
    "*CC(*)(C)C(=O)OC": ([], False),
    "*c1ccc(*)cc1": ([2], True),
    "*O[Si](*)(C)C": ([2], False),
    "*C*": ([], True),
    "*CC(*)C[N+](C)(C)C": ([6], False),
    "*CC(*)C(=O)[O-]": ([2], False),
    "*CC(*)c1ccc([N+](=O)[O-])cc1": ([2, 2], False),
    "*CC(*)(C(F)(F)F)C(F)(F)F": ([72], False),
    "*CC(*)C(=O)OC(C(F)(F)F)C(F)(F)C(F)(F)F": ([6, 2, 6], False),
    "*C(F)(F)*": ([2], True),
    "*CCO*": ([], False),
    "*c1ccc(C(c2ccc(*)cc2)(C)C)cc1": ([2, 2, 2], False),
    "*NC(=O)CCCCC(*)=O": ([], False),
    "*C=C*": ([], None),
}


COMPLETE = ("*CC(*)c1ccccc1", "*c1ccc(*)cc1", "*C*", "*NC(=O)CCCCC(*)=O", "*CC(*)C[N+](C)(C)C", "*CCO*")  # no cap equals a branch


def tables_of(psmiles: str, num_units: int) -> ChainTables:
    return chain_tables(request_of(psmiles, num_units).topology, num_units)


def all_names(tables: ChainTables, x: np.ndarray) -> list[np.ndarray]:
    """Every automorphism that the module knows of, as atom orders of the whole chain."""
    exchanges = unit_symmetry(TopologyKey(tables.topology)).exchanges
    choices = [range(len(e.images)) for _ in range(tables.num_units) for e in exchanges]
    orders = []
    for start in chain_starts(tables, x):
        for pick in product(*choices):
            order = start.copy()
            for k, (unit, exchange) in enumerate(product(range(tables.num_units), exchanges)):
                order[tables.slots[unit, exchange.slots]] = start[tables.slots[unit, exchange.images[pick[k]]]]
            orders.append(order)
    return orders


def mol_of(tables: ChainTables, x: np.ndarray) -> Chem.Mol:
    mol = Chem.Mol(chain_mol(tables.topology, tables.num_units))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.ascontiguousarray(x))
    mol.AddConformer(conformer)
    return mol


@pytest.mark.parametrize("psmiles", COUNTS)
def test_exchanges_of_known_units(psmiles: str) -> None:
    request = request_of(psmiles, 3)
    tables = chain_tables(request.topology, 3)
    sizes, backwards = COUNTS[psmiles]
    assert sorted(len(e.images) for e in unit_symmetry(TopologyKey(tables.topology)).exchanges) == sorted(sizes)
    assert backwards is None or (len(chain_starts(tables, chain_of(request))) == 2) == backwards


@pytest.mark.parametrize("psmiles", COUNTS)
def test_every_exchange_is_an_automorphism_of_the_molecule(psmiles: str) -> None:
    """And of some units RDKit, which enumerates them all, finds the same."""
    request = request_of(psmiles, 2)
    tables = chain_tables(request.topology, 2)
    orders = {tuple(order.tolist()) for order in all_names(tables, chain_of(request))}
    bonds = set(map(tuple, tables.bonds.tolist()))
    for order in list(orders)[:200]:
        assert sorted(order) == list(range(tables.num_heavy_atoms))
        assert (tables.elements[list(order)] == tables.elements).all()
        assert {tuple(sorted((order[i], order[j]))) for i, j in bonds} == bonds
    if psmiles in COMPLETE:
        mol = chain_mol(tables.topology, 2)
        assert orders == set(mol.GetSubstructMatches(mol, uniquify=False, maxMatches=100_000))


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*c1ccc(*)cc1", "*O[Si](*)(C)C", "*C*", "*CC(*)C(=O)[O-]", "*C(F)(F)*"])
def test_against_brute_force_over_every_trade(psmiles: str) -> None:
    """Near pairs: the best of all trades is found. Far pairs: between the best and the plain one."""
    request = request_of(psmiles, 3)
    tables = chain_tables(request.topology, 3)
    rng = np.random.default_rng(0)
    y = np.stack([chain_of(request, seed, 1.0) for seed in range(2)])
    orders = all_names(tables, y[0])
    named = np.stack([y[k % 2][orders[int(rng.integers(len(orders)))]] for k in range(6)])
    x = named + rng.normal(scale=0.15, size=named.shape)
    found, plain = symmetric_rmsd_matrix(tables, y, x), metrics.rmsd_matrix(y, x)
    brute = np.min([metrics.rmsd_matrix(y, x[:, order]) for order in orders], axis=0)
    same = np.array([[k % 2 == j for k in range(6)] for j in range(2)])
    assert found[same] == pytest.approx(brute[same], abs=1e-9)
    assert (brute - 1e-9 <= found).all()
    assert (found <= plain + 1e-12).all()
    assert found[same].max() < 0.35
    assert len(orders) == 1 or plain[same].max() > 0.35


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*c1ccc(*)cc1", "*O[Si](*)(C)C", "*CC(*)C(=O)[O-]", "*CC(*)C[N+](C)(C)C"])
def test_against_rdkits_best_rmsd(psmiles: str) -> None:
    request = request_of(psmiles, 3)
    tables = chain_tables(request.topology, 3)
    rng = np.random.default_rng(1)
    y = chain_of(request, 0, 1.0)
    orders = all_names(tables, y)
    for _ in range(4):
        x = y[orders[int(rng.integers(len(orders)))]] + rng.normal(scale=0.1, size=y.shape)
        expected = rdMolAlign.GetBestRMS(mol_of(tables, x), mol_of(tables, y), maxMatches=100_000)
        assert symmetric_rmsd_matrix(tables, y[None], x[None])[0, 0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("psmiles", FIXTURES)
def test_never_above_the_plain_rmsd_and_deaf_to_names(psmiles: str) -> None:
    request = request_of(psmiles, 8)
    tables = chain_tables(request.topology, 8)
    x = np.stack([chain_of(request, seed, 1.5) for seed in range(4)])
    found, plain = symmetric_rmsd_matrix(tables, x[:2], x[2:]), metrics.rmsd_matrix(x[:2], x[2:])
    assert (found <= plain).all()
    start = chain_starts(tables, x[0])[-1]
    assert symmetric_rmsd_matrix(tables, x[:2], x[:2][:, start]) == pytest.approx(symmetric_rmsd_matrix(tables, x[:2], x[:2]), abs=1e-6)


def test_long_chains_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of("*CC(*)c1ccccc1", 8)
    tables = chain_tables(request.topology, 8)
    x = np.stack([chain_of(request, seed, 1.5) for seed in range(3)])
    whole = symmetric_rmsd_matrix(tables, x[:1], x[1:])
    monkeypatch.setattr(symmetry, "MAX_PRODUCTS", 16 * 37)
    assert symmetric_rmsd_matrix(tables, x[:1], x[1:]) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(("tacticity", "allowed"), [("syndiotactic", True), ("isotactic", False)])
def test_a_reversal_that_would_change_the_configuration_is_refused(tacticity: str, allowed: bool) -> None:
    """Poly(ethylidene): handedness read from the other end is turned round and inverted; of eight units that alternate it stays."""
    request = request_of("*C(*)C", 8, tacticity)
    tables = chain_tables(request.topology, 8)
    swap = unit_symmetry(TopologyKey(tables.topology)).reversal
    assert swap is not None
    x = chain_of(request)
    back = np.arange(tables.num_heavy_atoms)
    back[tables.slots] = tables.slots[::-1, swap]
    before, after = handedness(tables, np.stack([x, x[back]]))
    assert np.array_equal(after, -before[::-1])
    assert (len(chain_starts(tables, x)) == 2) == allowed
