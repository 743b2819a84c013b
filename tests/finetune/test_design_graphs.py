"""Repeat units as graphs of classes: there and back, and what is refused."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.chem.psmiles import canonicalise
from data_shards.errors import PolymerError
from finetune.design.graphs import AROMATIC, CLASSES, DOUBLE, SINGLE, Graph, collate, read_graph, read_graphs, settled, write_psmiles
from tests.data_shards.test_psmiles import respell

POLYMERS = (
    "*CC(*)c1ccccc1", "*OC(C)C(=O)*", "*C*", "*c1ccc(*)[nH]1", "*C=CC#C*", "*[Si](C)(C)O*", "*CC(*)C[N+](C)(C)CCS(=O)(=O)[O-]",
    "*NC(=O)c1ccc2[nH]c(nc2c1)-c1ccc(*)cc1", "*OP(=O)(Oc1ccccc1)N=P(*)(F)F", "*c1ccc(-c2nc3ccccc3n2*)cc1", "*C1CC2CC1C(*)C2",
)  # fmt: skip


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_there_and_back(psmiles: str) -> None:
    plain = canonicalise(psmiles).plain
    for seed in range(3):
        graph = read_graph(respell(psmiles, 3, np.random.default_rng(seed)))
        assert write_psmiles(graph) == plain
        assert graph.atoms[:2].tolist() == [0, 0]
        assert (graph.atoms[2:] > 0).all()
    order = np.append([1, 0], 2 + np.random.default_rng(1).permutation(len(graph.atoms) - 2))  # atoms may come in any order
    place = np.argsort(order)
    shuffled = Graph(graph.atoms[order], np.column_stack([place[graph.bonds[:, :2]], graph.bonds[:, 2]]).astype(np.uint8))
    assert write_psmiles(shuffled) == plain


def test_a_batch_is_symmetric_and_comes_apart_again() -> None:
    graphs = [read_graph(psmiles) for psmiles in POLYMERS]
    batch = collate(graphs)
    assert torch.equal(batch.bonds, batch.bonds.transpose(1, 2))
    assert batch.mask.sum(1).tolist() == [len(own.atoms) for own in graphs]
    for row, own in enumerate(graphs):
        again = batch.one(row)
        assert again.atoms.tolist() == own.atoms.tolist()
        assert sorted(map(tuple, np.sort(again.bonds[:, :2]).tolist())) == sorted(map(tuple, np.sort(own.bonds[:, :2]).tolist()))
        assert write_psmiles(again) == write_psmiles(own)


@pytest.mark.parametrize(
    ("psmiles", "reason"),
    [
        ("*CC", "star-count"),
        ("*" + 61 * "C(C)(F)" + "O*", "too-large"),
        ("*CC(*)[Fe]", "atom-class"),
        ("*=C=*", "junction-order"),
        ("*C[CH]C*", "atom-class"),
    ],
)
def test_what_is_refused(psmiles: str, reason: str) -> None:
    with pytest.raises(PolymerError) as caught:
        read_graph(psmiles)
    assert caught.value.reason == reason
    graphs, kept, refused = read_graphs([psmiles, "*CC*"])
    assert (len(graphs), kept, [place for place, _ in refused]) == (1, [1], [0])
    assert refused[0][1].startswith(reason)


def graph(symbols: str, bonds: list[tuple[int, int, int]]) -> Graph:
    """A graph of plain atoms after two stars."""
    classes = [0, 0, *(next(k for k, own in enumerate(CLASSES) if own.symbol == symbol) for symbol in symbols)]
    return Graph(np.array(classes, dtype=np.uint8), np.array(bonds, dtype=np.uint8).reshape(-1, 3))


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (graph("CC", [(0, 2, SINGLE), (1, 3, SINGLE)]), "fragments"),
        (graph("CF", [(0, 2, SINGLE), (2, 3, SINGLE), (1, 3, SINGLE)]), "valence"),
        (graph("CO", [(0, 2, SINGLE), (2, 3, DOUBLE), (1, 3, SINGLE)]), "valence"),
        (graph("CC", [(0, 2, SINGLE), (2, 3, AROMATIC), (1, 3, SINGLE)]), "aromaticity"),
        (graph("C", [(0, 2, SINGLE), (0, 1, SINGLE)]), "star-degree"),
        (graph("CSC", [(0, 2, SINGLE), (2, 3, DOUBLE), (3, 4, SINGLE), (1, 4, SINGLE)]), "valence"),
        (graph("CC", [(0, 2, SINGLE), (2, 3, SINGLE), (1, 3, DOUBLE)]), "junction-order"),
    ],
)
def test_why_a_graph_is_no_polymer(drawn: Graph, reason: str) -> None:
    with pytest.raises(PolymerError) as caught:
        write_psmiles(drawn)
    assert caught.value.reason == reason


def test_public_gas_polymers_go_there_and_back(shared_data: Path) -> None:
    """All polymers of two stars; those of the list of others are refused with a reason."""
    with (shared_data / "design" / "o2_n2_co2.csv").open() as file:
        texts = [row["psmiles"] for row in csv.DictReader(file)]
    assert [write_psmiles(read_graph(text)) for text in texts] == [canonicalise(text).plain for text in texts]
    with (shared_data / "design" / "o2_n2_co2_not_two_star.csv").open() as file:
        graphs, _, refused = read_graphs(row["raw_smiles"] for row in csv.DictReader(file))
    assert not graphs
    assert Counter(reason.partition(":")[0] for _, reason in refused).keys() == {"ladder", "star-count"}


def test_rings_without_a_kekule_structure_are_settled() -> None:
    """Fluorene with its thirteen ring carbons drawn as aromatic: the one in the ring of five is saturated, the others stay aromatic."""
    whole = read_graph("*c1ccc2c(c1)Cc1cc(*)ccc1-2")
    bonds = whole.bonds.copy()
    bonds[2:, 2] = AROMATIC
    stars = (bonds[:, :2] < 2).any(axis=1)
    bonds[:, 2] = np.where(stars, SINGLE, AROMATIC)
    drawn = Graph(whole.atoms, bonds)
    with pytest.raises(PolymerError, match=r"aromaticity|kekulize"):
        write_psmiles(drawn)
    assert write_psmiles(drawn, settle=True) == canonicalise("*c1ccc2c(c1)Cc1cc(*)ccc1-2").plain
    assert AROMATIC not in settled(drawn).bonds[:, 2]
    pyrrole = read_graph("*c1c[nH]c(*)c1")
    assert write_psmiles(settled(pyrrole)) == write_psmiles(pyrrole)
    thiophene = read_graph("*c1ccc(*)s1")
    assert write_psmiles(settled(thiophene)) == write_psmiles(thiophene)
    ladder = read_graph("*c1ccc2nc(-c3ccc(*)nc3)ccc2c1")
    assert write_psmiles(settled(ladder)) == write_psmiles(ladder)
