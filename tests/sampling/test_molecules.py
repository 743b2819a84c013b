"""Molecules from SMILES to a file: what is asked for is what is written, what is not is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from torch import Tensor, nn

from data_shards.chem.molecule import embedded, standard_molecule
from foundation.generate import app
from foundation.molecules import Molecules
from foundation.objectives.base import Capabilities
from foundation.sampling.molecules import drawn, judged, read_molecules
from tests.sampling.conftest import LibraryObjective, run_command

SMILES = "C/C=C/[C@H](F)Cl"


class Embedded(nn.Module):
    """Draws what ETKDG makes of one molecule; every third conformation is its mirror image, every fourth noise, the first not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities(molecules=True)
        self.calls: list[int] = []

    def sample_molecules(self, molecules: Molecules, rng: torch.Generator) -> Tensor:
        _, _, mol = standard_molecule(SMILES, 100)
        x = torch.from_numpy(embedded(mol, SMILES, molecules.num_chains, int(torch.randint(2**31, (), generator=rng))))
        self.calls.append(len(x))
        x[2::3] *= -1
        x[3::4] = torch.randn(x[3::4].shape, generator=rng)
        x[0] = torch.nan
        return x


OBJECTIVE = Embedded


def test_conformations_are_judged() -> None:
    request = read_molecules([SMILES])[0]
    x = drawn(Embedded(), request.graph, 9, (0, 0), 1000, torch.device("cpu"))
    said = [outcome for _, outcome in judged(request, x)]
    assert said == [
        "coordinates are not finite", "ok", "another configuration", "bonds are missing or too many", "ok",
        "another configuration", "ok", "bonds are missing or too many", "another configuration",
    ]  # fmt: skip
    free = read_molecules(["CC=CC(F)Cl"])[0]
    assert [outcome for _, outcome in judged(free, x[1:3])] == ["ok", "ok"], "no configuration was asked for"


def test_the_file_holds_what_was_made(model: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.sdf"
    words = ["--checkpoint", "x", "--smiles", SMILES, "--num", "9"]
    assert run_command(app, *words, "--out", str(out), "--batch-atoms", "60") == 0
    assert model.calls == [5, 4], "sixty atoms at a time"
    found = list(Chem.SDMolSupplier(str(out), removeHs=False))
    facts = json.loads((tmp_path / "m.sdf.provenance.json").read_text())["molecules"][0]
    assert sum(facts["outcomes"].values()) == 9
    assert len(found) == 9 - facts["outcomes"]["coordinates are not finite"]
    assert {mol.GetProp("check") for mol in found} == facts["outcomes"].keys() - {"coordinates are not finite"}
    assert all(mol.GetNumAtoms() == 12 for mol in found)
    assert f"{len(found)} written" in capsys.readouterr().out
    assert run_command(app, *words, "--strict", "--out", str(tmp_path / "s.sdf")) == 0
    strict = list(Chem.SDMolSupplier(str(tmp_path / "s.sdf"), removeHs=False))
    assert {mol.GetProp("check") for mol in strict} == {"ok"}
    again = tmp_path / "again.sdf"
    assert run_command(app, *words, "--out", str(again), "--batch-atoms", "60") == 0
    assert again.read_bytes() == out.read_bytes()


def test_bad_requests_are_one_sentence(
    model: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = ["--out", str(tmp_path / "m.sdf")], ["--checkpoint", "x", "--num", "2"]
    for words, sentence in (
        ([*out, "--smiles", "C1CC"], "cannot read it as SMILES"),
        ([*out, "--smiles", "*CC*"], "has a star"),
        ([*out, "--smiles", "CC", "--psmiles", "*CC*"], "give molecules or polymers"),
        ([*out, "--smiles", "CC", "--relax"], "are for polymers"),
        (["--out", str(tmp_path / "m.pdb"), "--smiles", "CC"], "use .sdf or .xyz"),
    ):
        assert run_command(app, *base, *words) == 2
        assert sentence in capsys.readouterr().err
    assert run_command(app, *base, *out, "--smiles", SMILES, "--dry-run") == 0
    assert "1 molecules x 2 conformations, 24 atoms" in capsys.readouterr().out
    monkeypatch.setattr("foundation.train.checkpoint.load_model", lambda path: (LibraryObjective(), None))
    assert run_command(app, *base, *out, "--smiles", "CC") == 2
    assert "draws chains of polymers, not molecules" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_nothing_could_be_made(
    model: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "sample_molecules", lambda molecules, rng: torch.full((molecules.num_chains, 12, 3), np.nan))
    assert run_command(app, "--checkpoint", "x", "--smiles", SMILES, "--num", "3", "--out", str(tmp_path / "m.sdf")) == 2
    assert "no conformation could be made: 3 x coordinates are not finite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
