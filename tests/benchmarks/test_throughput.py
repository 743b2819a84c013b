"""What the throughput benchmarks compare is the same mathematics, and their pages hold what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import loader, objectives, sampling, scaling
from benchmarks.straightforward import straightforward_loss, widened
from data_shards.mixture import open_mixture
from foundation.errors import InputError
from foundation.objectives.polyconfm import model as model_file
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.sampling.request import read_request
from tests.polyconfm.chains import batch_of, model_of, rng
from tests.train.conftest import SMALL, build_shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_shards(tmp_path_factory.mktemp("throughput"))


def run(main: Any, *arguments: str) -> str:
    """A benchmark as a command; what it prints."""
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_straightforward_way_is_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every unit masked both draw the same noise; padding, and hidden units in the trunk, change nothing."""
    model, batch = model_of("torsional", "torsion"), batch_of()
    assert isinstance(model, PolyConFM)
    draw = model_file.draw_mask
    monkeypatch.setattr(model_file, "draw_mask", lambda *arguments: torch.ones_like(draw(*arguments)))
    ours = model.loss(batch, rng())
    theirs = straightforward_loss(model, batch, rng())
    torch.testing.assert_close(theirs.loss_per_chain, ours.loss_per_chain, rtol=1e-4, atol=1e-5)
    padded = straightforward_loss(model, widened(batch, batch.max_atoms + 9), rng())
    torch.testing.assert_close(padded.loss_per_chain, ours.loss_per_chain, rtol=1e-4, atol=1e-5)


def test_the_benchmark_of_steps_writes_what_it_measured(corpus: str, tmp_path: Path) -> None:
    arguments = ["--shards", corpus, "--recipes", "polyconfm_tiny", "--budget", "300", "--batches", "2", "--out", str(tmp_path)]
    arguments += ["--large", "polyconfm_tiny", "--large-units", "3", "--repeats", "2"]
    run(objectives.main, *arguments)
    found = json.loads((tmp_path / "objectives.json").read_text())
    tiny = found["recipes"]["polyconfm_tiny"]
    assert tiny["gflop"] > sum(tiny["forward_gflop"].values()) > 0
    assert sum(tiny["seconds"][part] for part in set(objectives.PARTS.values())) < 1.02 * tiny["seconds"]["forward"]
    assert 0.5 < found["padding"]["size buckets"] <= 1
    assert found["large"]["heavy_atoms_per_unit"] == 19
    assert len(found["large"]["seconds"]) == 2
    assert tiny["chains"] == sum(len(m.samples) for m in objectives.planned(open_mixture(corpus), 300, 2))
    page = (tmp_path / "throughput.md").read_text()
    assert "## Training steps" in page
    assert "| `polyconfm_tiny` |" in page


def test_the_benchmark_of_reading_counts_samples_and_waiting(corpus: str, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.json").write_text(json.dumps({"data": {"num_workers": 1}}))
    rows = [
        {"step": k, "train/step_sec": 2.0, "train/loader_wait_sec": 0.5 if k > 20 else 2.0, "train/chains_per_sec": 3.0}
        for k in range(1, 31)
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(loader.main, "--shards", corpus, "--run", str(run_folder), "--budget", "300", "--workers", "0", "--out", str(tmp_path))
    found = json.loads((tmp_path / "loader.json").read_text())
    assert found["run"]["share"] == 0.25
    assert found["run"]["steps"] == 10
    assert found["loader"][0]["first_epoch"] > 0
    assert "waited 25.0%" in (tmp_path / "throughput.md").read_text()


def test_the_benchmark_of_sampling_times_outermost_parts_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_of("torsional", "torsion").eval()
    assert isinstance(model, PolyConFM)
    given = model.config
    with sampling.stepped(model, {"ar_steps": 2, "local_steps": 2, "orientation_steps": 3}):
        assert (model.local_head.num_steps, model.orientation_head.num_steps) == (2, 3)
        made = sampling.generate(model, read_request("*CCO*", 5, "atactic", 0), 2, torch.device("cpu"))
    assert model.config == given
    assert (model.local_head.num_steps, model.orientation_head.num_steps) == (given.local_steps, given.orientation_steps)
    assert "know" not in vars(model)
    assert made["failed"] == 0
    assert sum(made["parts"].values()) == pytest.approx(made["seconds"])
    assert made["parts"]["units"] > 0
    assert made["parts"]["links"] > 0


def test_the_benchmark_of_ranks_runs_the_real_command(corpus: str, tmp_path: Path) -> None:
    changes = [word for field in SMALL if not field.startswith("train.num_steps") for word in ("--change", field)]
    arguments = ["--shards", corpus, "--recipe", "polyconfm_tiny", "--cases", "1:0", "--cases", "2:2", "--rounds", "1", "--steps", "3"]
    run(scaling.main, *arguments, *changes, "--budget", "150", "--micro-batches", "2", "--out", str(tmp_path))
    one, two = json.loads((tmp_path / "scaling.json").read_text())["polyconfm_tiny"]["cases"]
    assert (one["ranks"], one["zero_stage"], two["ranks"], two["zero_stage"]) == (1, 0, 2, 2)
    assert one["first_loss"] == pytest.approx(two["first_loss"], rel=1e-5), "the same step, shared by two"
    assert min(one["step_sec"], two["step_sec"], one["host_peak_mib"]) > 0
    assert "| `polyconfm_tiny` | 2 | 2 |" in (tmp_path / "throughput.md").read_text()


@pytest.mark.parametrize("case", ["2", "0:1", "2:4", "two:1", ""])
def test_a_case_that_is_none_is_refused(case: str) -> None:
    with pytest.raises(InputError, match="must be RANKS:ZERO_STAGE"):
        scaling.parse_case(case)
