"""`finetune.design` and `finetune.propose` end to end on the bundled table: a folder, proposals, going on, bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from data_shards.chem.psmiles import canonicalise
from data_shards.errors import InputError
from finetune.design import job as design_job
from finetune.design.__main__ import app as design
from finetune.design.saved import load_generator
from finetune.propose import app as propose
from tests.finetune.test_property import run

SMALL = ["--task", "tg", "--workers", "0", "--limit", "40", "--steps", "12", "--no-track", "--start", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on 40 rows of the bundled table, and ten more polymers without values."""
    base = tmp_path_factory.mktemp("design")
    more = base / "more.csv"
    texts = ["*CC(*)[Si](C)(C)" + k * "C" for k in range(5, 15)] + ["*CC", "*CC(*)[Fe]"]
    more.write_text("psmiles\n" + "\n".join(texts) + "\n")
    assert "would" not in run(design, *SMALL, "--out", str(base / "tg"), "--unlabelled", str(more), "--dry-run")
    assert not (base / "tg").exists()
    said = run(design, *SMALL, "--out", str(base / "tg"), "--unlabelled", str(more))
    assert "50 polymers to learn from, 40 with values of a table" in said
    return base / "tg"


@pytest.fixture(scope="module")
def proposals(folder: Path) -> Path:
    out = folder.parent / "design" / "candidates.csv"
    run(propose, "--model", str(folder), "--target", "tg=60", "--num", "5", "--draws", "12", "--steps", "4", "--out", str(out))
    return out


def test_a_run_leaves_property_models_and_a_generator(folder: Path) -> None:
    assert (folder / "property" / "tg" / "results.json").is_file()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    made = load_generator(folder / "generator")
    assert [task.name for task in made.tasks] == ["tg"]
    assert len(made.known.psmiles) == 50
    assert made.known.labelled.sum() == 40
    assert np.isfinite(made.known.values).all()
    assert made.seen == set(made.known.groups)
    assert made.projection is not None
    assert made.projection.components.shape[1] == made.denoiser.config.reference_width
    assert made.mean[0] == pytest.approx(made.known.values.mean())
    refused = list(csv.DictReader((folder / "refused.csv").open()))
    assert any("Fe" in row["psmiles"] for row in refused)


def test_proposals_are_polymers_with_predictions_in_order(folder: Path, proposals: Path) -> None:
    rows = list(csv.DictReader(proposals.open()))
    facts = json.loads(proposals.with_suffix(".json").read_text())
    assert next(iter(rows[0])) == "psmiles"
    assert 0 < len(rows) <= 5
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len({canonicalise(row["psmiles"]).group for row in rows}) == len(rows)
    seen = load_generator(folder / "generator").seen
    for row in rows:
        assert float(row["tg_lower"]) <= float(row["tg"]) <= float(row["tg_upper"])
        assert (row["new"] == "true") == (canonicalise(row["psmiles"]).group not in seen)
        assert 1 <= float(row["accessibility"]) <= 10
    funnel = facts["funnel"]
    assert funnel["drawn"] == 60
    assert funnel["valid"] + sum(funnel["reasons"].values()) == 60  # nothing leaves the denominator
    assert funnel["distinct"] <= funnel["valid"]
    assert facts["proposed"] == len(rows)
    assert "<svg" in proposals.with_suffix(".svg").read_text()[:300]


def test_predictions_are_those_of_finetune_predict(folder: Path, proposals: Path, tmp_path: Path) -> None:
    from finetune.predict import app as predict

    out = tmp_path / "p.csv"
    run(predict, "--model", str(folder / "property" / "tg"), "--input", str(proposals), "--out", str(out), "--workers", "0")
    for ours, theirs in zip(csv.DictReader(proposals.open()), csv.DictReader(out.open()), strict=True):
        assert float(ours["tg"]) == pytest.approx(float(theirs["prediction"]), rel=1e-3)
        assert float(ours["tg_lower"]) == pytest.approx(float(theirs["lower"]), rel=2e-3)
        assert ours["in_domain"] == theirs["in_domain"]
        assert ours["nearest"] == theirs["nearest"]


def test_equal_seeds_give_equal_proposals_and_wishes_are_kept(folder: Path, tmp_path: Path) -> None:
    few = ["--model", str(folder), "--num", "3", "--draws", "50", "--steps", "4"]
    texts = []
    for name in ("a", "b"):
        run(propose, *few, "--target", "tg>60", "--out", str(tmp_path / f"{name}.csv"))
        texts.append((tmp_path / f"{name}.csv").read_text())
    assert texts[0] == texts[1]
    wishes = ["--like", "*CC(*)c1ccccc1", "--without", "N,O,F", "--keep", "*C(C)CCl", "--structures", "1", "--num-units", "3"]
    run(propose, *few, *wishes, "--out", str(tmp_path / "c.csv"))
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert rows
    for row in rows:
        assert not any(symbol in row["psmiles"].upper().replace("CL", "") for symbol in "NOF")
        assert Chem.MolFromSmiles(row["psmiles"]).HasSubstructMatch(Chem.MolFromSmarts("[#0,#6]C(C)CCl"))
    assert (tmp_path / "c.sdf").read_text().count("$$$$") == 1


def test_several_properties_at_once(tmp_path: Path) -> None:
    """Three permeabilities in one table, one of them unknown for some polymers, whose values are then predicted."""
    from data_shards.sources import textbook

    with open(textbook().path, newline="") as file:
        texts = [row["psmiles"] for row in csv.DictReader(file)][:24]
    lines = [f"{text},{10 * 1.2**k:.4g},{2 * 1.2**k:.4g},{'' if k % 6 == 0 else f'{50 * 1.1**k:.4g}'}" for k, text in enumerate(texts)]
    (tmp_path / "gas.csv").write_text("psmiles,O2,N2,CO2\n" + "\n".join(lines) + "\n")
    out = tmp_path / "gas"
    run(
        design,
        "--task",
        "gas",
        "--data",
        str(tmp_path / "gas.csv"),
        "--workers",
        "0",
        "--steps",
        "5",
        "--no-track",
        "--start",
        "none",
        "--out",
        str(out),
    )
    made = load_generator(out / "generator")
    assert [task.name for task in made.tasks] == ["o2", "n2", "co2"]
    assert made.known.values.shape == (24, 3)
    assert np.isfinite(made.known.values).all()
    np.testing.assert_allclose(np.exp(made.known.values[:, 0]), [float(line.split(",")[1]) for line in lines], rtol=1e-3)
    wanted = ["--target", "o2=100", "co2=500", "--num", "3", "--draws", "60", "--steps", "4"]
    run(propose, "--model", str(out), *wanted, "--out", str(tmp_path / "c.csv"))
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert rows
    assert {"o2", "o2_lower", "n2", "co2", "co2_upper"} <= rows[0].keys()
    facts = json.loads((tmp_path / "c.json").read_text())
    assert facts["targets"] == ["o2=100", "co2=500"]


def test_the_report_shows_proposals(proposals: Path) -> None:
    from foundation.report.page import write_report

    page = proposals.parents[1] / "report.html"
    write_report(proposals.parents[1], page)
    text = page.read_text()
    assert "Design candidates" in text
    assert "data:image/svg+xml;base64," in text


def test_it_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Property models and inputs are not made again, and the generator is the same to the last bit."""
    out = tmp_path / "tg"
    shutil.copytree(folder, out)
    shutil.rmtree(out / "generator")
    called: list[str] = []
    monkeypatch.setattr("finetune.job.work", lambda *_: called.append("property"))
    monkeypatch.setattr(design_job, "train", _counted(design_job.train, called))
    (out / "state.safetensors").unlink()
    run(design, *SMALL, "--out", str(out), "--unlabelled", str(folder.parent / "more.csv"))
    assert called == ["train"]
    ours, theirs = (load_generator(base / "generator").denoiser.state_dict() for base in (folder, out))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    with pytest.raises(InputError, match="finished generator"):
        run(design, *SMALL, "--out", str(out))
    shutil.rmtree(out / "generator")
    with pytest.raises(InputError, match="other data or settings"):
        run(design, *SMALL, "--out", str(out))


def _counted(function: Any, called: list[str]) -> Any:
    def counted(*arguments: Any) -> Any:
        called.append("train")
        return function(*arguments)

    return counted


def test_a_fitted_property_model_is_taken(folder: Path, tmp_path: Path) -> None:
    fitted = folder / "property" / "tg"
    table = tmp_path / "mine.csv"
    rows = list(csv.DictReader((fitted / "predictions.csv").open()))
    table.write_text("psmiles,x\n" + "\n".join(f"{row['psmiles']},{k}" for k, row in enumerate(rows)) + "\n")
    small = ["--workers", "0", "--steps", "2", "--no-track", "--start", "none"]
    with pytest.raises(InputError, match=r"--fitted .* predicts tg, which is not of --task own"):
        run(design, *small, "--task", "own", "--data", str(table), "--column", "x", "--fitted", str(fitted), "--out", str(tmp_path / "own"))
    with pytest.raises(InputError, match=r"--fitted .* holds no folder model"):
        run(design, *small, "--fitted", str(tmp_path), "--out", str(tmp_path / "own"))
    taken = ["--limit", "40", "--fitted", str(fitted), "--out", str(tmp_path / "tg")]
    assert f"40 polymers of 40 rows, predicted by {fitted}" in run(design, *small, *taken, "--dry-run")
    run(design, *small, *taken)
    written = (fitted / "model" / "model.safetensors", tmp_path / "tg" / "property" / "tg" / "model" / "model.safetensors")
    assert written[0].read_bytes() == written[1].read_bytes()
    assert load_generator(tmp_path / "tg" / "generator").tasks[0].name == "tg"


@pytest.mark.slow
def test_adapted_encoders_guide(tmp_path: Path) -> None:
    """LoRA adapters of the property model are read with it, and change what is said."""
    from data_shards.progress import Silent
    from finetune.design.guide import Guide

    out = tmp_path / "tg"
    run(design, *SMALL, "--adapter", "lora", "--out", str(out))
    guide = Guide([out / "property" / "tg"])
    settings = guide.ready[0].saved.predictor.settings
    assert settings.adapter == "lora"
    said = guide.say(["*CC(*)c1ccccc1", "*CCO*", "nonsense"], Silent())
    assert said.kept.tolist() == [True, True, False]
    assert np.isfinite(said.value[:2]).all()
    assert np.isnan(said.value[2]).all()
    done = run(propose, "--model", str(out), "--num", "2", "--draws", "40", "--steps", "4", "--out", str(tmp_path / "c.csv"))
    assert "candidates:" in done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "colour"], "--task must be one of"),
        (["--task", "gas"], "--data"),
        (["--task", "structures"], "--data"),
        (["--task", "tg", "--steps", "0"], "steps 0"),
        (["--task", "tg", "--adapter", "some"], "--adapter 'some'"),
        (["--task", "tg", "--data", "nowhere.csv"], "nowhere.csv"),
        (["--task", "tg", "--start", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_of_design(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run(design, *arguments, "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "tg=9999"], "out of reach"),
        (["--target", "o2=1"], "does not know"),
        (["--target", "tg"], "must be a value or a range"),
        (["--keep", "c1ccc"], "cannot be read as SMILES"),
        (["--without", "C"], "--without C"),
        (["--like", "*CC"], "--like"),
        (["--num", "0"], "num 0"),
        (["--draws", "0.5"], "--draws 0.5"),
    ],
)
def test_bad_input_of_propose(arguments: list[str], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run(propose, "--model", str(folder), "--out", str(tmp_path / "x.csv"), "--steps", "2", *arguments)
    assert not (tmp_path / "x.csv").exists()


def test_other_bad_input_of_propose(folder: Path, proposals: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"finetune\.design has finished"):
        run(propose, "--model", str(tmp_path), "--out", str(tmp_path / "x.csv"))
    with pytest.raises(InputError, match="extension"):
        run(propose, "--model", str(folder), "--out", str(tmp_path / "x.txt"))
    with pytest.raises(InputError, match="exists"):
        run(propose, "--model", str(folder), "--out", str(proposals))


def test_a_generator_of_structures_is_released_and_begun_from(tmp_path: Path) -> None:
    """Without polymers and values; another task begins from its weights."""
    from finetune.design.release import app as release
    from finetune.design.saved import load_generator

    table = tmp_path / "polymers.csv"
    table.write_text("psmiles\n" + "\n".join("*CC(*)[Si](C)(C)" + k * "C" for k in range(1, 30)) + "\n")
    model, out = tmp_path / "structures", tmp_path / "released"
    run(
        design,
        "--task",
        "structures",
        "--data",
        str(table),
        "--steps",
        "8",
        "--workers",
        "0",
        "--no-track",
        "--start",
        "none",
        "--out",
        str(model),
    )
    run(release, "--model", str(model), "--out", str(out), "--draws", "40", "--dry-run")
    assert not out.exists()
    run(release, "--model", str(model), "--out", str(out), "--draws", "40")
    made = load_generator(out)
    assert (made.tasks, made.known.psmiles, len(made.seen)) == ((), (), 29)
    assert (out / "polymers.csv").read_text().count("\n") == 1
    assert "Trained on 29 polymers for 8 steps" in (out / "card.md").read_text()
    other = tmp_path / "tg"
    start = [word for word in SMALL if word not in ("--start", "none")]
    run(design, *start, "--start", str(out), "--steps", "1", "--out", str(other))
    begun = load_generator(other / "generator")
    assert begun.seen > made.seen
    assert (begun.prior.pairs == made.prior.pairs).all()
    with pytest.raises(InputError, match="knows tg"):
        run(release, "--model", str(other), "--out", str(tmp_path / "x"))
    with pytest.raises(InputError, match="exists"):
        run(release, "--model", str(model), "--out", str(out))
