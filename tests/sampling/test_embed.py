"""Embeddings: one row per input row, bad rows with their reason, batches and processes without influence on the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_shards.chem.repeat_unit import unit_graph
from data_shards.progress import Silent
from foundation.data.collate import _graph_tensors
from foundation.embed import app
from foundation.errors import PolymerError
from foundation.sampling import growth
from foundation.sampling.embedding import UNITS_WITHOUT_SHAPE, embed_generated, embed_graphs, embed_polymers, graph_condition
from foundation.sampling.run import generate_chains
from foundation.train.checkpoint import load_model
from tests.sampling.conftest import LibraryObjective, request_of, run_command

CPU = torch.device("cpu")


def test_batches_do_not_change_the_numbers() -> None:
    requests = [request_of(psmiles, 3) for psmiles in ("*CCO*", "*C*", "*CC(*)C")]
    whole, lost = embed_polymers(LibraryObjective(), requests, 2, 10_000, CPU, Silent())
    single, _ = embed_polymers(LibraryObjective(), requests, 2, 1, CPU, Silent())
    assert lost == []
    assert whole.shape == (3, 2)
    assert np.abs(whole - single).max() < 1e-5
    assert len(np.unique(whole[:, 0].round(4))) == 3, "three polymers, three embeddings"


@pytest.mark.slow
def test_processes_do_not_change_the_numbers() -> None:
    requests = [request_of(psmiles, 3) for psmiles in ("*CCO*", "*C*", "*CC(*)C")]
    alone, _ = embed_polymers(LibraryObjective(), requests, 2, 10_000, CPU, Silent())
    several, _ = embed_polymers(LibraryObjective(), requests, 2, 10_000, CPU, Silent(), workers=2)
    assert np.array_equal(alone, several)


def test_command_writes_one_row_per_input_row(
    model: LibraryObjective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = growth.grow_chain

    def grow(unit, num_units, **given):
        if unit.topology.psmiles == "*CC(*)C":
            raise PolymerError("*CC(*)C", "no-self-avoiding-chain", "stopped at unit 2")
        return true(unit, num_units, **given)

    monkeypatch.setattr(growth, "grow_chain", grow)
    table, out = tmp_path / "p.csv", tmp_path / "made" / "e.parquet"
    table.write_text("polymer\n*CCO*\nCC\n*CC(*)C\n*CC*\n")
    line = ["--checkpoint", "y", "--input", str(table), "--column", "polymer", "--num-units", "3", "--num", "1", "--out", str(out)]
    assert run_command(app, *line) == 0
    frame = pd.read_parquet(out)
    assert frame["row"].tolist() == [1, 2, 3, 4]
    assert frame["psmiles"].tolist() == ["*CCO*", "CC", "*CC(*)C", "*CC*"]
    assert frame["canonical_psmiles"].tolist()[3] == "*C*"
    assert frame["num_units"].tolist()[3] == 6
    assert frame["reason"].isna().tolist() == [True, False, False, True]
    assert frame["reason"][2] == "no-self-avoiding-chain: stopped at unit 2"
    assert frame[["e0", "e1"]].notna().all(axis=1).tolist() == [True, False, False, True]
    facts = json.loads((tmp_path / "made" / "e.parquet.provenance.json").read_text())
    assert facts["polymers"] == {"attempted": 4, "failed": 2}
    assert "4 polymers attempted, 2 embedded, 2 failed" in capsys.readouterr().out
    assert run_command(app, *line) == 2
    assert "e.parquet exists already; choose another --out or pass --overwrite" in capsys.readouterr().err
    before = out.read_bytes()
    assert run_command(app, *line, "--overwrite") == 0
    assert out.read_bytes() == before, "same seed, same bytes"


def test_nothing_is_written_where_nothing_can_be(model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "p.csv", tmp_path / "e.parquet"
    table.write_text("psmiles\nCC\n")
    assert run_command(app, "--checkpoint", "y", "--input", str(table), "--out", str(out)) == 2
    assert "none of 1 polymers could be embedded, the first: row 1 CC: " in capsys.readouterr().err
    assert run_command(app, "--checkpoint", "y", "--input", str(table), "--out", str(tmp_path / "e.csv")) == 2
    assert "has the extension '.csv'; use .parquet" in capsys.readouterr().err
    assert run_command(app, "--checkpoint", "y", "--input", str(table), "--out", str(out), "--workers", "0") == 2
    assert "workers 0 must be >= 1; change --workers" in capsys.readouterr().err
    table.write_text("psmiles\n*CC*\n")
    assert run_command(app, "--checkpoint", "y", "--input", str(table), "--out", str(out), "--dry-run") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_embeddings_of_graphs_do_not_depend_on_the_batch() -> None:
    units = [unit_graph(psmiles) for psmiles in ("*CC(*)c1ccccc1", "*CC*", "*OCC(=O)*", "*CC(*)C(=O)OCCCC")]
    model, _ = load_model("small")
    whole = embed_graphs(model, units, 10_000, CPU, Silent())
    single = embed_graphs(model, units, 1, CPU, Silent())
    turned = embed_graphs(model, units[::-1], 10_000, CPU, Silent())[::-1]
    np.testing.assert_allclose(whole, single, atol=2e-5)
    np.testing.assert_allclose(whole, turned, atol=2e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    same = embed_graphs(model, [unit_graph("*CCCC*")], 1, CPU, Silent())
    np.testing.assert_allclose(same[0], single[1], atol=2e-5)


def test_a_chain_without_shapes_has_an_embedding_with_a_gradient() -> None:
    model, _ = load_model("small")
    condition = graph_condition(unit_graph("*CC(*)c1ccccc1"))
    found = model.embed(condition)
    assert found.unit.shape[0] == UNITS_WITHOUT_SHAPE
    assert found.chain.shape[0] == 1
    found.chain.sum().backward()
    for part in ("graph", "sequence", "chain_class", "trunk.decoder"):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if n.startswith(part)), part
    assert all(p.grad is None or not p.grad.any() for n, p in model.named_parameters() if n.startswith(("local_head", "orientation_head")))


def test_embeddings_of_generated_chains_are_means_over_those_that_were_made() -> None:
    requests = [request_of("*CC(*)CC", 4), request_of("*CC(*)C", 4)]
    both, refused = embed_generated(LibraryObjective(), requests, 2, 0, 10_000, CPU, Silent())
    assert not refused
    assert np.isfinite(both).all()
    some, refused = embed_generated(LibraryObjective(fail=(0, 1)), requests, 2, 0, 10_000, CPU, Silent())
    assert np.isnan(some[0]).all()
    assert [refusal.psmiles for refusal in refused] == ["*CC(*)CC"]
    np.testing.assert_array_equal(some[1], both[1])
    one, _ = embed_generated(LibraryObjective(fail=(0,)), requests, 2, 0, 10_000, CPU, Silent())
    assert np.isfinite(one[0]).all()
    assert (one[0] != both[0]).any()


def test_embedding_the_graph_of_a_polymer_changes_no_chain_of_it() -> None:
    """One process does both: `finetune.propose --structures` reads property models of the graph first."""
    model, _ = load_model("small")
    request = request_of("*CC(*)c1ccccc1", 4)

    def chain() -> np.ndarray:
        (made,) = generate_chains(model, [request], 1, 0, 10_000, CPU)
        assert made.x_ang is not None
        return made.x_ang

    _graph_tensors.cache_clear()
    alone = chain()
    _graph_tensors.cache_clear()
    embed_graphs(model, [unit_graph(request.psmiles)], 10_000, CPU, Silent())
    np.testing.assert_array_equal(chain(), alone)
