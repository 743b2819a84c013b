"""`finetune.property` and `finetune.predict` end to end on the bundled table: results, resuming, predictions, bad input."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_shards.chem.repeat_unit import unit_graph
from data_shards.crew import Answer, Crash
from data_shards.errors import InputError
from finetune import pieces, stream
from finetune.export import app as export
from finetune.lora import load_adapter
from finetune.predict import app as predict
from finetune.property import app as fit
from finetune.saved import load_predictor
from finetune.stream import Ready
from foundation.sampling.embedding import graph_condition
from foundation.train.checkpoint import load_model
from tests.data_shards.test_psmiles import respell

SMALL = ["--workers", "0", "--limit", "40", "--members", "1", "--no-track"]
ROWS = ("*CC*,10.0", "*CC(*)C,20.0", "*CC(*)c1ccccc1,100.0", "*CCO*,-60.0", "*CC(*)Cl,80.0", "*CC(*)C#N,95.0", "*CC(*)(C)C,-70.0")


def run(app: Any, *arguments: str) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on 40 rows of the bundled table."""
    out = tmp_path_factory.mktemp("property") / "tg"
    run(fit, "--task", "tg", "--out", str(out), *SMALL)
    return out


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_run_leaves_everything_that_a_user_looks_at(folder: Path, facts: dict[str, Any]) -> None:
    for name in ("results.json", "predictions.csv", "card.md", "report.html", "refused.csv", "metrics.jsonl", "model/config.json"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("parity.png", "calibration.png", "learning_curve.png", "best.svg", "worst.svg"):
        assert (folder / "figures" / name).stat().st_size > 1000, name
    page = (folder / "report.html").read_text()
    assert "Parity of tg" in page
    assert "LightGBM on Morgan counts and RDKit descriptors" in page
    assert set(facts["scores"]) == {"ours", "untrained", "lightgbm", "mean"}
    assert set(facts["scores_of_heads"]) == {"gp", "network", "trees"}
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert len(rows) == facts["polymers"] == 40
    assert [row["psmiles"] for row in rows] == [row["psmiles"] for row in facts["predictions"]]
    assert len([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]) == 5


def test_scores_are_those_of_the_predictions(facts: dict[str, Any]) -> None:
    rows = facts["predictions"]
    measured, predicted, fold = (np.array([row[name] for row in rows]) for name in ("measured", "predicted", "fold"))
    errors = [np.abs(measured - predicted)[fold == k].mean() for k in np.unique(fold)]
    assert facts["scores"]["ours"]["mae"]["mean"] == pytest.approx(np.mean(errors))
    assert facts["scores"]["ours"]["mae"]["mean"] < 0.8 * facts["scores"]["mean"]["mae"]["mean"]
    inside = np.mean([row["lower"] <= row["measured"] <= row["upper"] for row in rows])
    assert facts["metrics"]["coverage"]["value"] == pytest.approx(inside)
    by_mean = np.abs(measured - np.array([measured[fold != k].mean() for k in fold])).mean()
    assert facts["differences"]["mean"]["value"] == pytest.approx(np.abs(measured - predicted).mean() - by_mean)


def test_no_fold_sees_its_own_values(folder: Path, tmp_path: Path) -> None:
    """Values of fold 0 changed by a thousand degrees change no prediction of fold 0."""
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    problem = pieces.load_problem(copy)
    before = pieces.read_piece(copy, pieces.Piece("ours", 0), problem.key)
    assert before is not None
    y = problem.y.copy()
    y[problem.fold == 0] += 1000.0
    changed = pieces.Problem(**{**vars(problem), "y": y})
    assert changed.key != problem.key
    pieces.save_problem(changed, copy)
    pieces.compute(copy, pieces.Piece("ours", 0), threads=1)
    after = pieces.read_piece(copy, pieces.Piece("ours", 0), changed.key)
    assert after is not None
    np.testing.assert_array_equal(before["value"], after["value"])


def test_a_stopped_run_computes_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    kept = np.load(copy / "pieces" / "lightgbm-3.npz")["value"]
    stamp = (copy / "pieces" / "ours-1.npz").stat().st_mtime_ns
    for gone in ("results.json", "pieces/lightgbm-3.npz", "report.html"):
        (copy / gone).unlink()
    run(fit, "--task", "tg", "--out", str(copy), *SMALL)
    assert (copy / "pieces" / "ours-1.npz").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(np.load(copy / "pieces" / "lightgbm-3.npz")["value"], kept)
    old, new = (json.loads((place / "results.json").read_text()) for place in (folder, copy))
    assert old["scores"] == new["scores"]


def test_other_settings_do_not_continue_a_run(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    with pytest.raises(InputError, match="holds finished results; pass --overwrite"):
        run(fit, "--task", "tg", "--out", str(copy), *SMALL)
    (copy / "results.json").unlink()
    with pytest.raises(InputError, match="was begun with other data or settings"):
        run(fit, "--task", "tg", "--out", str(copy), *SMALL, "--heads", "gp")


def test_predictions_do_not_depend_on_how_a_polymer_is_written(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("psmiles\n*CC*\n*CCCC*\n*CC(*)c1ccccc1\n*C(C*)c1ccccc1\n*C(c1ccccc1)C*\nnonsense\n*CCO*\n*OCC*\n*COC*\n")
    out = tmp_path / "out.csv"
    run(predict, "--model", str(folder), "--input", str(table), "--out", str(out), "--workers", "0")
    rows = list(csv.DictReader(out.open()))
    assert [row["psmiles"] for row in rows] == table.read_text().split()[1:]
    assert list(rows[0]) == ["psmiles", "prediction", "lower", "upper", "in_domain", "similarity", "nearest", "nearest_value", "reason"]
    values = [float(row["prediction"]) if row["prediction"] else None for row in rows]
    for same in ((0, 1), (2, 3, 4), (6, 7, 8)):
        assert np.ptp([values[k] for k in same]) <= 1e-5 * abs(values[same[0]] or 1)
    assert values[5] is None
    assert "RDKit" in rows[5]["reason"]
    for row in rows:
        assert not row["prediction"] or float(row["lower"]) < float(row["prediction"]) < float(row["upper"])


def test_a_training_polymer_is_its_own_neighbour_and_inside_the_domain(folder: Path, tmp_path: Path) -> None:
    saved = load_predictor(folder / "model")
    out = tmp_path / "out.csv"
    far = "*[Si](F)(F)[Ge](*)(Cl)Cl"
    run(predict, "--model", str(folder), "--psmiles", saved.psmiles[3], "--psmiles", far, "--out", str(out), "--workers", "0")
    near, strange = csv.DictReader(out.open())
    assert (near["in_domain"], near["similarity"], near["nearest"]) == ("true", "1.000", saved.psmiles[3])
    assert float(near["nearest_value"]) == pytest.approx(saved.values[3], rel=1e-5)
    assert strange["in_domain"] == "false"
    width = [float(row["upper"]) - float(row["lower"]) for row in (near, strange)]
    assert width[1] > width[0]


def test_a_saved_model_predicts_what_it_did_before(folder: Path) -> None:
    problem = pieces.load_problem(folder)
    polymers, rows = pieces.inputs_of(problem, folder)
    saved = load_predictor(folder / "model")
    again = saved.predictor.predict(saved.polymers, np.arange(len(rows)))
    train = pieces.fit(polymers, rows, problem.y, list(problem.groups), problem.settings, problem.seed)
    np.testing.assert_allclose(again.value, train.predict(polymers, rows).value, rtol=1e-6)
    np.testing.assert_allclose(again.spread, train.predict(polymers, rows).spread, rtol=1e-6)


def _as_if_written(path: Path, text: str) -> None:
    """Other text under the sum that the configuration names."""
    path.write_text(text)
    config = path.with_name("config.json")
    facts = json.loads(config.read_text())
    facts["sha256"][path.name] = hashlib.sha256(text.encode()).hexdigest()
    config.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8])),
        ("config.json", lambda path: path.write_text("{}")),
        ("config.json", lambda path: path.write_text(path.read_text().replace('"task": "tg"', '"task": "../../tg"'))),
        ("training.csv", lambda path: path.write_text("psmiles,value\n*CC*,x\n")),
        ("trees-0.txt", lambda path: path.write_text("tree\nversion=v4\n")),
        ("config.json", lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": {}}))),
        ("trees-0.txt", lambda path: _as_if_written(path, "not trees\n")),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(folder: Path, tmp_path: Path, name: str, damage: Any) -> None:
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    damage(copy / "model" / name)
    with pytest.raises(InputError, match=r"is no model of finetune\.property"):
        run(predict, "--model", str(copy), "--psmiles", "*CC*")


def test_a_model_of_another_pretrained_network_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "model" / "config.json").read_text())
    (copy / "model" / "config.json").write_text(json.dumps({**config, "weights": "0" * 64}))
    with pytest.raises(InputError, match="was trained on other weights"):
        run(predict, "--model", str(copy), "--psmiles", "*CC*")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "tq"], "no task 'tq'; did you mean tg"),
        (["--task", "egc"], "no table of band gap of a chain comes with the program"),
        (["--heads", "tree"], "--heads 'tree' must be of gp, network"),
        (["--adapter", "half"], "--adapter 'half' must be one of none, lora, full"),
        (["--adapter", "lora", "--heads", "gp"], "is trained with a network, but --heads is gp"),
        (["--conformations", "-1"], "conformations -1 must be >= 0"),
        (["--split", "scaffold"], "split 'scaffold' must be one of folds, cluster"),
        (["--members", "0"], "members 0 must be >= 1"),
        (["--seed", "-1"], "seed -1 must be >= 0"),
        (["--data", "TABLE", "--column", "nothing"], "has no column 'nothing'; the columns are value"),
        (["--data", "FEW"], "4 polymers with a value are fewer than the 5 folds"),
        (["--data", "CONSTANT"], "every polymer has the value 7"),
        (["--data", "NAN"], "none of 3 rows can be used"),
        (["--data", "TABLE", "--teacher", "eea"], "--teacher 'eea' must be TASK=FILE"),
        (["--data", "TABLE", "--teacher", "tg=TABLE"], "--teacher tg is the task itself"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    tables = {
        "TABLE": ROWS,
        "FEW": ROWS[:4],
        "CONSTANT": [row.partition(",")[0] + ",7" for row in ROWS],
        "NAN": [row.partition(",")[0] + ",nan" for row in ROWS[:3]],
    }
    for name, rows in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(("psmiles,value", *rows)) + "\n")
    given = [str(tmp_path / f"{word}.csv") if word in tables else word for word in arguments]
    with pytest.raises(InputError, match=sentence):
        run(fit, "--out", str(tmp_path / "out"), *given)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_done(tmp_path: Path) -> None:
    said = run(fit, "--task", "tg", "--limit", "30", "--dry-run", "--out", str(tmp_path / "tg"))
    assert "30 polymers of 30 rows; folds: drawn by seed 0" in said
    assert "leak check: " in said
    assert not (tmp_path / "tg").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --psmiles or --input, neither given"),
        (["--psmiles", "*CC*", "--input", "x.csv"], "give either --psmiles or --input, both given"),
        (["--psmiles", "*CC*", "--out", "x.txt"], "has the extension '.txt'; use .csv"),
        (["--psmiles", "nonsense"], "none of 1 polymers can be predicted, the first: nonsense: "),
        (["--psmiles", "*CC*", "--neighbours", "0"], "neighbours 0 must be >= 1"),
    ],
)
def test_bad_questions(folder: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run(predict, "--model", str(folder), *arguments)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no folder model; pass a folder that"):
        run(predict, "--model", str(tmp_path), "--psmiles", "*CC*")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_polymer_of_a_whole_table_has_one_prediction_however_it_is_written(folder: Path, shared_data: Path) -> None:
    """Cut elsewhere, read backwards, two units at once, atoms in any order: all polymers of egc, predictions equal to 1e-5."""
    rng = np.random.default_rng(11)
    table = list(csv.DictReader((shared_data / "property" / "egc.csv").open()))
    given = [row["psmiles"] for row in table]
    ready = Ready(folder)
    first = ready.rows(given, neighbours=1)
    written = []
    for psmiles in given:
        try:
            written.append(respell(psmiles, int(rng.integers(1, 3)), rng))
        except RuntimeError:  # so small a ring of units would have two bonds between the same atoms
            written.append(respell(psmiles, 3, rng))
    assert np.mean([a != b for a, b in zip(given, written, strict=True)]) > 0.99
    again = ready.rows(written, neighbours=1)
    values = [(a["prediction"], b["prediction"]) for a, b in zip(first, again, strict=True) if "prediction" in a and "prediction" in b]
    assert len(values) > 0.98 * len(given)
    assert sum(("prediction" in a) != ("prediction" in b) for a, b in zip(first, again, strict=True)) <= 10, "units too large as written"
    one, other = (np.array([float(value[k]) for value in values]) for k in (0, 1))
    far = np.abs(one - other) > 1e-5 * np.abs(one).clip(min=1.0)
    assert far.sum() == 0, [given[k] for k in np.flatnonzero(far)[:5]]


@pytest.mark.slow
def test_adapters_are_trained_used_and_exported(tmp_path: Path) -> None:
    """At most 5 % of the weights are trained; predictions need them; merged, they are a checkpoint that embeds as they do."""
    out, table = tmp_path / "tg", ["*CC(*)c1ccccc1", "*CCO*"]
    run(
        fit,
        "--task",
        "tg",
        "--out",
        str(out),
        *SMALL[:2],
        "--limit",
        "20",
        *SMALL[4:],
        "--adapter",
        "lora",
        "--heads",
        "network",
        "--no-baseline",
    )
    ready = Ready(out)
    rows = ready.rows(table)
    assert all(np.isfinite(float(row["prediction"])) for row in rows)
    adapted = ready.saved.predictor.networks[0].adapted
    assert sum(value.numel() for value in adapted.values()) <= 0.05 * sum(own.numel() for own in ready.base.parameters())
    assert "dry run: nothing was written" in run(export, "--model", str(out), "--out", str(tmp_path / "merged"), "--dry-run")
    assert not (tmp_path / "merged").exists()
    run(export, "--model", str(out), "--out", str(tmp_path / "merged"))
    merged, _ = load_model(tmp_path / "merged")
    fresh, _ = load_model("small")
    load_adapter(tmp_path / "merged", fresh)
    unit = graph_condition(unit_graph(table[0]))
    with torch.no_grad():
        one, other, before = (own.eval().embed(unit).chain for own in (merged, fresh, ready.base))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert (one - before).abs().max() > 1e-3
    assert "of rank 4" in (tmp_path / "merged" / "card.md").read_text()
    with pytest.raises(InputError, match="holds a released checkpoint; pass --overwrite"):
        run(export, "--model", str(out), "--out", str(tmp_path / "merged"))
    with pytest.raises(InputError, match="member 1 must be >= 0 and < 1"):
        run(export, "--model", str(out), "--out", str(tmp_path / "other"), "--member", "1")


def test_nothing_adapted_is_nothing_to_export(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was trained with --adapter none"):
        run(export, "--model", str(folder), "--out", str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_processes_predict_in_order_and_lose_only_who_kills_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks come back in any order; one under which a process died is done polymer by polymer."""
    given = [f"*{'C' * k}O*" for k in range(2, 12)]
    monkeypatch.setattr(stream, "CHUNK", 3)

    def backwards(function: Any, chunks: Any, limit_sec: float) -> Any:
        for chunk in reversed(list(chunks)):
            dies = given[4] in chunk.written
            yield chunk, Answer(Crash("its process died", 0.1) if dies else function(chunk), 0.0)

    monkeypatch.setattr(stream, "crew", lambda workers: nullcontext(backwards))
    table, out = tmp_path / "p.csv", tmp_path / "out.csv"
    table.write_text("\n".join(("psmiles", *given)) + "\n")
    run(predict, "--model", str(folder), "--input", str(table), "--out", str(out))
    rows = list(csv.DictReader(out.open()))
    assert [row["psmiles"] for row in rows] == given
    assert [row["reason"] for row in rows] == ["its process died" if k == 4 else "" for k in range(10)]
    alone = Ready(folder).rows(given)
    assert all(abs(float(rows[k]["prediction"]) - float(alone[k]["prediction"])) < 1e-3 for k in range(10) if k != 4)


def test_a_model_trained_anew_in_the_same_place_is_read_anew(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tg"
    shutil.copytree(folder, copy)
    before = run(predict, "--model", str(copy), "--psmiles", "*CC*", "--workers", "0")
    config = copy / "model" / "config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps({**facts, "half": 2 * facts["half"]}))
    assert run(predict, "--model", str(copy), "--psmiles", "*CC*", "--workers", "0") != before
