"""The command from P-SMILES to file: order, seeds, failures in the count, one sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from foundation.errors import CheckpointError, InputError, PolymerError
from foundation.generate import app
from foundation.sampling.request import check_numbers, check_seed, plan_batches, read_request, read_requests
from foundation.sampling.run import OUT_OF_MEMORY, choose_device, generate_chains
from tests.sampling.conftest import LibraryObjective, request_of, run_command

CPU = torch.device("cpu")


def test_units_are_counted_as_written() -> None:
    assert request_of("*CCCC*", 5).num_units == 20
    assert request_of("*CC(*)C", 5).num_units == 5
    request = read_request("*CC(*)c1ccccc1", 8, "syndiotactic", 0)
    assert request.handedness[:, 0].tolist() == [1, -1] * 4


def test_batches_hold_every_conformation_once_and_stay_in_the_budget() -> None:
    requests = [request_of("*C*", 5), request_of("*CC(*)c1ccccc1", 4), request_of("*CCO*", 3)]
    batches = list(plan_batches(requests, 3, 45))
    assert [entry for batch in batches for entry in batch] == [(r, k) for r in range(3) for k in range(3)]
    sizes = [sum(requests[r].num_packed_atoms() for r, _ in batch) for batch in batches]
    assert max(sizes) <= 45
    assert len(batches) > 2
    assert [len(batch) for batch in plan_batches(requests, 3, 1)] == [1] * 9
    long = [request_of("*C*", 500)]
    assert [len(batch) for batch in plan_batches(long, 4, 400)] == [1] * 4
    assert [len(batch) for batch in plan_batches(long, 4, 400, units_at_once=64)] == [2, 2], "64 units of 3 atoms of each chain at a time"


def test_chains_come_in_order_with_the_handedness_asked_for_and_repeat_by_seed() -> None:
    requests = [request_of("*CC(*)c1ccccc1", 6), request_of("*C*", 7)]
    first, again, other = (list(generate_chains(LibraryObjective(), requests, 3, seed, 200, CPU)) for seed in (4, 4, 5))
    assert [(c.request, c.conformation) for c in first] == [(r, k) for r in range(2) for k in range(3)]
    assert all(np.array_equal(a.x_ang, b.x_ang) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.x_ang, b.x_ang) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0].x_ang, first[1].x_ang)
    assert [c.x_ang.shape for c in first] == [(requests[c.request].num_heavy_atoms, 3) for c in first]
    assert first[0].x_unit_ang.shape == (6, requests[0].topology.num_atoms, 3)


def test_a_failed_or_broken_chain_is_a_value_with_its_reason() -> None:
    chains = list(generate_chains(LibraryObjective(fail=(1,), nan=(2,)), [request_of("*C*", 4)], 4, 0, 10_000, CPU))
    assert [c.reason for c in chains] == [None, "gave up", "coordinates are not finite", None]
    assert [c.x_ang is None for c in chains] == [False, True, True, False]


def test_a_batch_that_does_not_fit_into_memory_is_halved() -> None:
    class Small(LibraryObjective):
        def sample(self, condition, num, rng):
            if condition.num_chains > 1 or int(condition.num_units[0]) > 5:
                raise torch.OutOfMemoryError("no")
            return super().sample(condition, num, rng)

    chains = list(generate_chains(Small(), [request_of("*C*", 4), request_of("*C*", 6)], 2, 0, 10_000, CPU))
    assert [c.reason for c in chains] == [None, None, OUT_OF_MEMORY, OUT_OF_MEMORY]


def test_a_polymer_without_seed_shapes_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from foundation.sampling import request as module
    from foundation.sampling.request import library_shapes as true

    def shapes(psmiles: str, seed: int):
        if psmiles == "*C*":
            raise PolymerError(psmiles, "no-conformer", "cannot be embedded")
        return true(psmiles, seed)

    monkeypatch.setattr(module, "library_shapes", shapes)
    chains = list(generate_chains(LibraryObjective(), [request_of("*C*", 4), request_of("*CCO*", 3)], 2, 0, 10_000, CPU))
    assert [c.reason for c in chains] == ["no-conformer: cannot be embedded"] * 2 + [None] * 2


def test_command_writes_file_and_provenance(model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "ps.sdf"
    line = ["--checkpoint", "runs/y", "--psmiles", "*CC(*)c1ccccc1", "--num-units", "6", "--num", "3", "--seed", "1"]
    assert run_command(app, *line, "--out", str(out)) == 0
    records = list(Chem.SDMolSupplier(str(out)))
    assert [mol.GetIntProp("conformation") for mol in records] == [0, 1, 2]
    assert records[0].GetProp("tacticity") == "atactic"
    facts = json.loads(out.with_name("ps.sdf.provenance.json").read_text())
    assert facts["conformations"] == {"attempted": 3, "written": 3, "failed": 0}
    assert facts["command"][1:] == [*line, "--out", str(out)]
    assert len(facts["weights_sha256"]) == 64
    assert set(facts["versions"]) >= {"python", "torch", "rdkit", "numpy"}
    assert facts["polymers"][0]["num_canonical_units"] == 6
    shown = capsys.readouterr().out
    assert "3 conformations attempted, 3 written, 0 failed" in shown
    again = tmp_path / "again.sdf"
    assert run_command(app, *line, "--out", str(again)) == 0
    assert again.read_bytes() == out.read_bytes(), "one seed, two files"


def test_a_table_keeps_its_bad_rows_in_the_count(model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "p.csv", tmp_path / "p.xyz"
    table.write_text("name,psmiles\na,*CCO*\nb,CC\nc,*C(*)*\nd,*CC(*)C\ne,*CC*\n")
    line = [
        "--checkpoint",
        "y",
        "--input",
        str(table),
        "--num-units",
        "3",
        "--num",
        "2",
        "--limit",
        "4",
        "--no-hydrogens",
        "--out",
        str(out),
    ]
    assert run_command(app, *line) == 0
    facts = json.loads((tmp_path / "p.xyz.provenance.json").read_text())
    assert facts["conformations"] == {"attempted": 8, "written": 4, "failed": 4}
    assert [(refusal["row"], refusal["reason"]) for refusal in facts["refused"]] == [(2, "star-count"), (3, "star-count")]
    shown = capsys.readouterr().out
    assert "8 conformations attempted, 4 written, 4 failed" in shown
    assert "row 2 CC:" in shown
    assert out.read_text().count("Properties=") == 4


def test_failures_of_the_model_are_reported(model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.fail = (0,)
    line = ["--checkpoint", "y", "--psmiles", "*CCO*", "--num-units", "3", "--num", "2"]
    assert run_command(app, *line, "--out", str(tmp_path / "a.sdf")) == 0
    facts = json.loads((tmp_path / "a.sdf.provenance.json").read_text())
    assert facts["failed"] == [{"row": 1, "psmiles": "*CCO*", "conformation": 0, "reason": "gave up"}]
    assert "1 x gave up" in capsys.readouterr().out
    model.fail = (0, 1)
    assert run_command(app, *line, "--out", str(tmp_path / "b.sdf")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == ("error: no conformation could be made: gave up (2 of 2); nothing was written")
    assert not (tmp_path / "b.sdf").exists()


def test_relaxed_conformations_lie_apart_and_are_labelled(
    model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_shards.conformers.dynamics import chain_energy_kcal_mol
    from data_shards.conformers.mmff_system import THETA

    raw, out = tmp_path / "raw.sdf", tmp_path / "pp.sdf"
    words = ["--checkpoint", "x", "--psmiles", "*CC(*)C", "--num-units", "6", "--num", "2"]
    assert run_command(app, *words, "--out", str(raw)) == 0
    assert run_command(app, *words, "--out", str(out), "--relax") == 0
    assert out.read_text() == raw.read_text()  # the raw file does not know of it
    assert "2 relaxed; " in capsys.readouterr().out
    before, after = (list(Chem.SDMolSupplier(str(path), removeHs=False)) for path in (out, tmp_path / "pp.relaxed.sdf"))
    assert len(before) == len(after) == 2
    request = request_of("*CC(*)C", 6)
    for one, other in zip(before, after, strict=True):
        assert other.GetProp("relaxed").startswith("MMFF94s")
        energies = [float(other.GetProp(f"energy_{when}_kcal_mol")) for when in ("before", "after")]
        assert energies[1] < energies[0] - 1
        x = other.GetConformer().GetPositions()
        heavy = request.num_heavy_atoms
        again = chain_energy_kcal_mol(request.topology, request.num_units, x[:heavy], x[heavy:], environment=THETA)
        assert again[0] == pytest.approx(energies[1], abs=0.1)  # a file has four decimals
        assert Chem.MolToSmiles(Chem.RemoveHs(one), isomericSmiles=True) == Chem.MolToSmiles(Chem.RemoveHs(other), isomericSmiles=True)
    facts = json.loads((tmp_path / "pp.sdf.provenance.json").read_text())["relaxed"]
    assert facts["outcomes"] == {"relaxed": 2}
    assert run_command(app, *words, "--out", str(tmp_path / "b.sdf"), "--relax") == 0
    (tmp_path / "b.sdf").unlink()
    (tmp_path / "b.sdf.provenance.json").unlink()
    assert run_command(app, *words, "--out", str(tmp_path / "b.sdf"), "--relax") == 2
    assert "b.relaxed.sdf exists already" in capsys.readouterr().err


def test_a_polymer_without_a_force_field_is_written_raw(
    model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sn.sdf"
    words = ["--checkpoint", "x", "--psmiles", "*C[Sn](*)(C)C", "--num-units", "3", "--num", "2", "--out", str(out), "--relax"]
    assert run_command(app, *words) == 0
    assert "2 no-force-field" in capsys.readouterr().out
    assert len(Chem.SDMolSupplier(str(out))) == 2
    assert not (tmp_path / "sn.relaxed.sdf").exists()


def test_strict_leaves_out_chains_that_fail_the_check(model: LibraryObjective, tmp_path: Path) -> None:
    model.scale.data.fill_(30.0)  # angles all over the circle: chains run into themselves
    line = ["--checkpoint", "y", "--psmiles", "*CC(*)c1ccccc1", "--num-units", "40", "--num", "3"]
    assert run_command(app, *line, "--out", str(tmp_path / "a.sdf")) == 0
    checks = [mol.GetProp("check") for mol in Chem.SDMolSupplier(str(tmp_path / "a.sdf"))]
    assert set(checks) <= {"clash", "extra-bond"}
    assert len(checks) == 3
    assert run_command(app, *line, "--strict", "--out", str(tmp_path / "b.sdf")) == 2


def test_dry_run_writes_nothing(model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--checkpoint", "y", "--psmiles", "*CCO*", "--num", "2", "--out", str(tmp_path / "a.sdf"), "--dry-run"]
    assert run_command(app, *line) == 0
    assert "1 polymers x 2 conformations" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert model.calls == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--psmiles", "CC"], "'CC': "),
        (["--psmiles", "*C(*)*"], "'*C(*)*': "),
        (["--psmiles", "*CC*", "--num-units", "0"], "num_units 0 must be >= 1; change --num-units"),
        (["--psmiles", "*CC*", "--num", "0"], "num 0 must be >= 1; change --num"),
        (["--psmiles", "*CC*", "--seed", "-1"], "seed -1 must be >= 0; change --seed"),
        (["--psmiles", "*CC*", "--batch-atoms", "0"], "batch_atoms 0 must be >= 1; change --batch-atoms"),
        (["--psmiles", "*CC*", "--tacticity", "tactic"], "tacticity 'tactic' must be one of isotactic, syndiotactic, atactic"),
        (["--psmiles", "*CC*", "--out", "x.mol2"], "use one of .pdb, .sdf, .xyz"),
        (["--psmiles", "*CC*", "--device", "tpu"], "device 'tpu' must be auto, cpu or cuda; change --device"),
        (["--psmiles", "*CC*", "--input", "p.csv"], "give either --psmiles or --input, both given"),
        ([], "give either --psmiles or --input, neither given"),
        (["--input", "missing.csv"], "missing.csv does not exist"),
        (["--psmiles", "*CC*", "--checkpoint", "missing"], "'missing' does not exist"),
    ],
)
def test_bad_input_is_one_sentence(changes: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--checkpoint": str(tmp_path), "--out": str(tmp_path / "x.sdf")}
    given |= dict(zip(changes[::2], changes[1::2], strict=True))
    code = run_command(app, *[word for pair in given.items() for word in pair])
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.startswith("error: ")
    assert message.count("\n") == 1, "one sentence, no traceback"
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


def test_library_calls_refuse_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"limit 0 must be >= 1; change --limit"):
        check_numbers(limit=0)
    with pytest.raises(InputError, match=r"seed -3 must be >= 0"):
        check_seed(-3)
    with pytest.raises(InputError, match=r"neither given"):
        read_requests(None, None, None, None, 3, "atactic", 0)
    with pytest.raises(PolymerError, match=r"\*"):
        read_request("CC", 3, "atactic", 0)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"device 'cuda' was asked for but this machine shows none; pass --device cpu"):
            choose_device("cuda")
    assert choose_device("cpu") == CPU
    from foundation.train.checkpoint import load_model

    with pytest.raises(CheckpointError, match=r"does not exist"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize("command", ["generate", "evaluate", "embed"])
def test_help_is_quick_and_names_units(command: str) -> None:
    start = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", f"foundation.{command}", "--help"], capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - start
    assert shown.returncode == 0
    assert "--checkpoint" in shown.stdout
    imported = subprocess.run(
        [sys.executable, "-c", f"import sys, foundation.{command}; print(int('torch' in sys.modules or 'rdkit' in sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert imported.stdout.strip() == "0", "heavy imports belong inside the command"
    assert seconds < 20  # two seconds on a free machine; the import check above is the sharp one
