"""Chains sampled while training goes on: real molecules from the averaged weights, and training does not see that they were made."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from foundation.errors import PolymerError
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.track.mirror import pieces, records
from foundation.track.tracker import read_metrics
from foundation.train.loop import train
from tests.train.conftest import FOUR, curve, small
from tests.train.test_ranks import job, train_on_two_ranks

SAMPLES = ("track.samples_every=2", "track.sample_units=4", "track.sample_psmiles=*CCO*")
NAMES = ["step-00000002", "step-00000004"]
FILES = ("model", "ema", "optimizer")


def weights(run: Path) -> list[bytes]:
    return [(run / "checkpoints" / "step-00000004" / f"{name}.safetensors").read_bytes() for name in FILES]


def test_training_is_the_same_to_the_last_bit_and_the_molecules_reach_wandb(
    shards: str, four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    train(small(*FOUR, *SAMPLES, "track.wandb=true"), out, shards)
    assert curve(out) == curve(four_steps)
    assert weights(out) == weights(four_steps)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row.get("sample/failed") for row in rows] == [None, 0.0, None, 0.0]
    places = []
    for row, name in zip(rows[1::2], NAMES, strict=True):
        (mol,) = Chem.SDMolSupplier(str(out / "samples" / f"{name}.sdf"), removeHs=False)
        assert Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol))) == Chem.CanonSmiles("O" + "CCO" * 4 + "C")
        assert row["sample/radius_of_gyration_ang"] == pytest.approx(mol.GetDoubleProp("radius_of_gyration_ang"), abs=1e-3)
        assert row["sample/worst_bond_error_ang"] < 0.1
        assert row["train/step_sec"] >= row["train/loader_wait_sec"] > 0
        assert row["memory/host_peak_mib"] > 50
        places.append(mol.GetConformer().GetPositions())
    assert not torch.allclose(*map(torch.from_numpy, places))  # the weights have moved in between
    (piece,) = pieces(out, next((out / "wandb").glob("offline-run-*")).name.rsplit("-", 1)[1])
    shown = {}
    for record in records(piece):
        for item in record.history.item:
            if (item.nested_key and item.nested_key[0] == "sample" and "molecule-file" in item.value_json) or item.key == "sample":
                shown[record.history.step.num] = item.value_json
    assert sorted(shown) == [2, 4]
    media = {path.read_bytes() for path in piece.parent.rglob("media/molecule/*.sdf")}
    assert media == {(out / "samples" / f"{name}.sdf").read_bytes() for name in NAMES}


def test_a_chain_that_cannot_be_made_is_a_warning(
    shards: str, four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        torch.rand(7)  # it has drawn numbers before
        raise RuntimeError("index out of range")

    monkeypatch.setattr(PolyConFM, "sample", broken)
    with caplog.at_level(logging.WARNING):
        train(small(*FOUR, *SAMPLES), tmp_path / "run", shards)
    assert "no chain was sampled at step 2 (RuntimeError: index out of range)" in caplog.text
    assert [row.get("sample/failed") for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [None, 1.0, None, 1.0]
    assert curve(tmp_path / "run") == curve(four_steps)
    assert not (tmp_path / "run" / "samples").exists() or not list((tmp_path / "run" / "samples").iterdir())


def test_a_polymer_that_cannot_be_used_ends_the_run_before_it_begins(shards: str, tmp_path: Path) -> None:
    with pytest.raises(PolymerError, match=r"'CCO'"):
        train(small(*FOUR, *SAMPLES, "track.sample_psmiles=CCO"), tmp_path / "run", shards)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_weights_spread_over_two_ranks_are_gathered_for_it(shards: str, tmp_path: Path) -> None:
    zero = "train.zero_stage=3"
    train_on_two_ranks([job(shards, tmp_path / "with", zero, *SAMPLES), job(shards, tmp_path / "without", zero)], tmp_path)
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert [row.get("sample/failed") for row in read_metrics(tmp_path / "with" / "metrics.jsonl")] == [None, 0.0, None, 0.0]
    assert sorted(path.stem for path in (tmp_path / "with" / "samples").glob("*.sdf")) == NAMES
