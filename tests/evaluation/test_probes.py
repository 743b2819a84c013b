"""Linear probes: planted laws are found and nothing else, one polymer is one point, the paired difference, and training does not notice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from data_shards import pipeline
from data_shards.progress import Silent
from data_shards.reader import ShardSet, open_shards
from data_shards.recipe import make_recipe
from data_shards.sources.table import TableSource
from foundation.config import apply_overrides
from foundation.errors import InputError
from foundation.evaluation import probes, property_table, ridge
from foundation.evaluation.bootstrap import resample_weights
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.probe import app
from foundation.recipes import get_recipe
from foundation.track.tracker import read_metrics
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from tests.sampling.conftest import run_command
from tests.train.conftest import SMALL

CPU = torch.device("cpu")
POLYMERS = (
    "*C*",
    "*CC(*)C",
    "*CCO*",
    "*CC(*)Cl",
    "*O[Si](*)(C)C",
    "*C=CCC*",
    "*CC(*)O",
    "*CC(*)F",
    "*CC(*)OC",
    "*CC(*)C#N",
    "*CC(*)CC",
    "*CCS*",
)
WRITTEN_AGAIN = {"*CC*": "*C*", "*OCC*": "*CCO*"}  # other ways of writing two of them
RUN = (*SMALL, "train.num_steps=3", "train.checkpoint_every=3", "train.num_val_batches=0", "train.micro_batches_per_step=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Twelve polymers of three written units, two conformations, all three splits."""
    out = tmp_path_factory.mktemp("probes") / "x"
    table = out.with_name("polymers.csv")
    table.write_text("\n".join(["psmiles", *POLYMERS]) + "\n")
    pipeline.build(make_recipe(num_units=3, num_conformations=2, test_fraction=0.2, val_fraction=0.2), TableSource(str(table)), out)
    opened = open_shards(out)
    assert all(opened.samples(split) for split in ("train", "val", "test"))
    return opened


@pytest.fixture(scope="module")
def checkpoint(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model after three steps."""
    out = tmp_path_factory.mktemp("probed") / "run"
    train(apply_overrides(get_recipe("polyconfm_tiny"), RUN), out, shards.path)
    return str(out)


def csv(path: Path, *rows: str, header: str = "psmiles,value") -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Every polymer with a number, two of them written in two ways."""
    rows = [f"{psmiles},{k}" for k, psmiles in enumerate(POLYMERS)]
    return csv(tmp_path / "density.csv", *rows, *(f"{psmiles},{POLYMERS.index(of) + 4}" for psmiles, of in WRITTEN_AGAIN.items()))


def opened(shards: ShardSet, *words: str) -> probes.ProbeSet:
    return probes.open_probes(shards, words, None, 4000, Silent())


# ---------------------------------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 7.0), (1e-12, 0.0), (1e9, -4e9)])
def test_a_planted_linear_law_is_recovered_whatever_its_unit(scale: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(200, 12)) * 10.0 ** rng.uniform(-3, 3, size=12)
    y = scale * ((x / x.std(0)) @ rng.normal(size=12)) + shift
    fold = ridge.make_folds(np.arange(200).astype(str), 5, 0)
    found = ridge.scores(y, ridge.cross_validate(x, y, fold), 0)
    assert found["r2"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert found["spearman"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert found["mae"]["value"] < 0.01 * y.std()
    assert found["r2"]["low"] <= found["r2"]["value"] <= found["r2"]["high"]


def test_shuffled_values_are_not_predicted() -> None:
    """Over forty shuffles the mean R2 is not above zero, and no score lies far from it."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 30))
    y = x[:, 0] + 0.1 * rng.normal(size=120)
    fold = ridge.make_folds(np.arange(120).astype(str), 5, 0)
    assert ridge.r2(y, ridge.cross_validate(x, y, fold)) > 0.9
    found = []
    for _ in range(40):
        shuffled = rng.permutation(y)
        found.append(ridge.r2(shuffled, ridge.cross_validate(x, shuffled, fold)))
    assert np.mean(found) < 0.02
    assert max(found) < 0.3


def test_no_polymer_is_predicted_by_a_regression_that_saw_its_group() -> None:
    rng = np.random.default_rng(0)
    x, noise, groups = rng.normal(size=(60, 4)), rng.normal(size=60), np.arange(60).astype(str)
    twice = [np.concatenate([own, own]) for own in (x, noise, groups)]
    fold = ridge.make_folds(twice[2], 5, 0)
    assert np.array_equal(fold[:60], fold[60:])
    assert np.bincount(fold).tolist() == [24] * 5
    assert ridge.r2(twice[1], ridge.cross_validate(twice[0], twice[1], fold)) < 0.3, "a twin in training would give noise away"


def test_predictions_do_not_depend_on_the_values_of_their_own_fold() -> None:
    rng = np.random.default_rng(3)
    x, y, fold = rng.normal(size=(50, 6)), rng.normal(size=50), np.arange(50) % 5
    before = ridge.cross_validate(x, y, fold)
    changed = np.where(fold == 2, y + 100, y)
    after = ridge.cross_validate(x, changed, fold)
    assert np.array_equal(before[fold == 2], after[fold == 2])
    assert not np.allclose(before[fold != 2], after[fold != 2])


def test_one_embedding_unlike_all_others_does_not_decide() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 8))
    y = x @ rng.normal(size=8)
    x[17] += 1e4
    predicted = ridge.cross_validate(x, y, np.arange(100) % 5)
    assert np.abs(predicted[17]) <= np.abs(y).max() + ridge.BEYOND * np.ptp(y)
    assert ridge.r2(np.delete(y, 17), np.delete(predicted, 17)) > 0.5


def test_rank_correlations_are_those_of_scipy_on_the_drawn_polymers() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=25), rng.integers(0, 6, size=25).astype(float)  # with ties
    weights = resample_weights(25, 0)[:30]
    brute = [scipy.stats.spearmanr(np.repeat(a, w.astype(int)), np.repeat(b, w.astype(int))).statistic for w in weights]
    assert ridge.rank_correlations(a, b, weights) == pytest.approx(brute)
    assert ridge.rank_correlations(a, np.ones(25), weights[:2]).tolist() == [0.0, 0.0]


def test_intervals_are_those_of_drawn_polymers() -> None:
    rng = np.random.default_rng(6)
    y = rng.normal(300.0, 2.0, size=40)
    predicted = y + rng.normal(size=40)
    drawn = [np.repeat(np.arange(40), w.astype(int)) for w in resample_weights(40, 9)]
    found = ridge.scores(y, predicted, 9)
    for name, score in (("r2", ridge.r2), ("mae", lambda a, b: np.abs(a - b).mean())):
        low, high = np.quantile([score(y[rows], predicted[rows]) for rows in drawn], [0.025, 0.975])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high)), name
        assert found[name]["value"] == pytest.approx(score(y, predicted))
    assert found["spearman"]["value"] == pytest.approx(scipy.stats.spearmanr(y, predicted).statistic)


def test_the_paired_difference_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(7)
    y, own, others = rng.normal(size=30), rng.normal(size=30), rng.normal(size=(3, 30))
    each = [(own[p] - y[p]) ** 2 - sum((other[p] - y[p]) ** 2 for other in others) / 3 for p in range(30)]
    found = ridge.paired_difference(y, own, others, 4)
    means = [sum(w[p] * each[p] for p in range(30)) / 30 for w in resample_weights(30, 4)]
    assert found["value"] == pytest.approx(sum(each) / 30)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert ridge.paired_difference(y, own, own[None], 4)["value"] == 0.0
    assert [probes.verdict({"low": low, "high": high}) for low, high in ((-2, -1), (-1, 1), (1, 2))] == ["better", "no difference", "worse"]


# -------------------------------------------------------------------------------------------------------------------------- tables


def test_names_paths_and_columns_of_tables() -> None:
    assert property_table.parse_tables(["a/tg.csv", "s3://b/egc.parquet:value", "pi.csv:Rg", "pi.csv:Cp/Cv", "t.tsv.gz"]) == {
        "tg": ("a/tg.csv", None),
        "egc": ("s3://b/egc.parquet", "value"),
        "pi": ("pi.csv", "Rg"),
        "Cv": ("pi.csv:Cp/Cv", None),
        "t": ("t.tsv.gz", None),
    }
    assert list(property_table.parse_tables(["pi.csv:Rg", "pi.csv:n atoms"])) == ["pi_Rg", "pi_n_atoms"]
    with pytest.raises(InputError, match="both give the property tg"):
        property_table.parse_tables(["a/tg.csv", "b/tg.csv"])
    with pytest.raises(InputError, match="no table was given"):
        property_table.parse_tables([])


def test_the_column_is_value_or_the_only_one_with_numbers(tmp_path: Path) -> None:
    several = csv(tmp_path / "a.csv", "*CC*,x,1,2,3", header="psmiles,source,spread,value,fold")
    assert property_table.read_column(several, None)[1:] == ("psmiles", "value")
    single = csv(tmp_path / "b.csv", "*CC*,PE,-120,0", header="SMILES,name,tg_celsius,fold")
    assert property_table.read_column(single, None)[1:] == ("SMILES", "tg_celsius")
    unclear = csv(tmp_path / "c.csv", "*CC*,1,2", header="psmiles,tg,tm")
    with pytest.raises(InputError, match=r"numbers in tg, tm of its columns, so the property must be named; pass .*c.csv:COLUMN"):
        property_table.read_column(unclear, None)
    with pytest.raises(InputError, match="no column 'x'"):
        property_table.read_column(unclear, "x")


def test_ways_of_writing_a_polymer_are_one_point(shards: ShardSet, table: str) -> None:
    found = opened(shards, table)
    (density,) = found.tables.values()
    assert len(density.groups) == len(set(density.groups)) == len(POLYMERS)
    assert sorted(found.groups) == sorted(density.groups)
    by_name = dict(zip(density.psmiles, density.values, strict=True))
    assert by_name["*C*"] == 0 + 2
    assert by_name["*CCO*"] == 2 + 2
    assert by_name["*CC(*)C"] == 1
    assert density.rows == {"rows": 14, "without a number": 0, "of a polymer that came before": 2}
    chosen, (_,) = probes.regress(density, found, [np.random.default_rng(0).normal(size=(12, 3))], 0)
    assert len(chosen) == 12


def test_rows_that_cannot_be_used_are_counted(shards: ShardSet, tmp_path: Path) -> None:
    rows = [f"{psmiles},{k}" for k, psmiles in enumerate(POLYMERS)]
    word = csv(tmp_path / "t.csv", *rows, "*CC(*)Br,3", "CC,1", "*CC(*)I,", "*CC(*)I,high", "*CC(*)I,inf")
    found = opened(shards, word)
    assert found.tables["t"].rows["without a number"] == 3
    assert found.tables["t"].rows["rows"] == 17
    assert sum(found.tables["t"].rows.values()) == 17 + 3 + 1, "one row is no polymer"
    x = np.random.default_rng(0).normal(size=(12, 3))
    lost = x.copy()
    lost[3] = np.nan
    made = probes.compare(found, lost, {0: x}, 0)["t"]
    assert made["polymers"] == {
        "with a value": 13,
        "not in the shards": 1,
        "without an embedding": {"trained": 1, "random 0": 0},
        "compared": 11,
    }
    assert len(made["values"]) == len(made["predictions"]["trained"]) == len(made["predictions"]["random"]["0"]) == 11
    assert found.tables["t"].psmiles[found.tables["t"].groups.index(found.groups[3])] not in made["psmiles"]


def test_a_column_of_folds_is_respected(shards: ShardSet, tmp_path: Path) -> None:
    fold = [k % 3 for k in range(12)]
    rows = [f"{psmiles},{k},{f}" for (k, psmiles), f in zip(enumerate(POLYMERS), fold, strict=True)]
    word = csv(tmp_path / "t.csv", *rows, "*CC*,5,2", header="psmiles,value,fold")
    found = opened(shards, word)
    kept = found.tables["t"]
    assert kept.fold is not None
    assert kept.fold.tolist() == fold
    assert kept.rows["in another fold than the first row of their polymer"] == 1
    x = np.random.default_rng(0).normal(size=(12, 4))
    _, (predicted,) = probes.regress(kept, found, [x], 0)
    own = x[[found.groups.index(group) for group in kept.groups]]
    assert np.array_equal(predicted, ridge.cross_validate(own, kept.values, np.array(fold)))
    assert probes.compare(found, x, {0: x}, 0)["t"]["folds"] == "column fold"
    broken = csv(tmp_path / "b.csv", *rows, "*CC(*)Br,5,x", header="psmiles,value,fold")
    with pytest.raises(InputError, match="no whole number in column fold of row 13"):
        opened(shards, broken)


@pytest.mark.parametrize(
    ("rows", "header", "sentence"),
    [
        ([f"{p},1" for p in POLYMERS[:9]], "psmiles,value", "9 of 9 polymers with a value lie in .*, at least 10 are needed"),
        ([f"{p},1" for p in POLYMERS], "psmiles,value", "every polymer has the value 1; name another column"),
        ([f"{p},{k},4" for k, p in enumerate(POLYMERS)], "psmiles,value,fold", "every polymer is in fold 4, at least 2 folds are needed"),
    ],
)
def test_tables_that_nothing_can_be_learned_from(shards: ShardSet, tmp_path: Path, rows: list[str], header: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        opened(shards, csv(tmp_path / "t.csv", *rows, header=header))


# ---------------------------------------------------------------------------------------------------------------------- embeddings


def test_embeddings_are_means_over_conformations_however_they_are_packed(shards: ShardSet, table: str, checkpoint: str) -> None:
    from foundation.data.collate import featurise

    model, _ = load_model(checkpoint)
    found = opened(shards, table)
    x = probes.embed(found, model, CPU, Silent())
    single = probes.embed(probes.open_probes(shards, [table], None, 1, Silent()), model, CPU, Silent())
    assert x == pytest.approx(single, abs=1e-5)
    entry = shards.samples("test")[0]
    sample = shards.read(entry)
    with torch.no_grad():
        own = [model.embed(featurise(sample, k).batch).chain[0].numpy() for k in range(2)]
    assert x[found.groups.index(entry.group)] == pytest.approx(np.mean(own, axis=0), abs=1e-5)


def test_a_planted_property_of_the_embeddings_is_found_again(shards: ShardSet, table: str, checkpoint: str, tmp_path: Path) -> None:
    """The whole way: values that are linear in the first direction of the model's own embeddings."""
    model, config = load_model(checkpoint)
    x = probes.embed(opened(shards, table), model, CPU, Silent())
    groups = opened(shards, table).groups
    centred = x - x.mean(0)
    planted = centred @ np.linalg.svd(centred)[2][0]
    by_group = dict(zip(groups, planted / planted.std(), strict=True))
    names = dict(zip(opened(shards, table).tables["density"].groups, POLYMERS, strict=True))
    rows = [f"{names[group]},{value}" for group, value in by_group.items()]
    found = opened(shards, csv(tmp_path / "planted.csv", *rows))
    x = probes.embed(found, model, CPU, Silent())
    assert probes.r2_by_property(found, x, 0)["planted"] > 0.8
    state = torch.get_rng_state()
    random = probes.random_model(config, 0)
    assert torch.equal(state, torch.get_rng_state())
    again = probes.random_model(config, 0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in random.state_dict().items())
    assert any(not torch.equal(value, again[name]) for name, value in probes.random_model(config, 1).state_dict().items())


# ------------------------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_json_and_one_table(
    shards: ShardSet, table: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "probes.json"
    line = ["--checkpoint", checkpoint, "--shards", shards.path, "--table", table, "--out", str(out), "--random-inits", "2"]
    assert run_command(app, *line, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "density: 12 of 12 polymers with value" in said
    assert "dry run: nothing was written" in said
    assert not out.parent.exists()
    assert run_command(app, *line) == 0
    said = capsys.readouterr().out
    assert "14 rows of" in said
    result = json.loads(out.read_text())
    made = result["properties"]["density"]
    y, own = np.array(made["values"]), np.array(made["predictions"]["trained"])
    others = np.array([made["predictions"]["random"][k] for k in ("0", "1")])
    assert made["trained"]["r2"]["value"] == pytest.approx(1 - ((own - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert made["random"]["r2"]["value"] == pytest.approx(np.mean(list(made["random"]["r2_of_seed"].values())))
    assert made["difference"]["value"] == pytest.approx(((own - y) ** 2 - ((others - y) ** 2).mean(0)).mean())
    assert made["difference_of_variance"]["value"] == pytest.approx(made["random"]["r2"]["value"] - made["trained"]["r2"]["value"])
    assert made["verdict"] in said
    assert result["settings"]["random_seeds"] == [0, 1]
    assert result["shards"]["fingerprint"] == shards.fingerprint
    before = out.read_bytes()
    assert run_command(app, *line) == 2
    assert "exists already; choose another --out or pass --overwrite" in capsys.readouterr().err
    assert run_command(app, *line, "--overwrite") == 0
    again = json.loads(out.read_text())
    assert {**again, "command": 0} == {**json.loads(before), "command": 0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "p.txt"], "has the extension '.txt'; use .json"),
        (["--random-inits", "0"], "random_inits 0 must be >= 1; change --random-inits"),
        (["--limit", "3"], "3 of 3 polymers with a value lie in"),
        (["--seed", "-1"], "seed -1 must be >= 0; change --seed"),
        (["--table", "absent.csv"], "absent.csv does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, shards: ShardSet, table: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", checkpoint, "--shards", shards.path, "--table", table, "--out", str(tmp_path / "p.json"), *words]
    assert run_command(app, *line) == 2
    errors = [said for said in capsys.readouterr().err.splitlines() if said.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert not (tmp_path / "p.json").exists()


# ------------------------------------------------------------------------------------------------------------------------ training


def probed(shards: ShardSet, table: str, every: int) -> tuple[str, ...]:
    return f"train.probe_shards={shards.path}", f"train.probe_tables={json.dumps([table])}", f"train.probe_every={every}"


def test_training_is_the_same_to_the_last_bit_and_its_last_probe_is_that_of_the_checkpoint(
    shards: ShardSet, table: str, checkpoint: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(apply_overrides(get_recipe("polyconfm_tiny"), [*RUN, *probed(shards, table, 2)]), out, shards.path)
    rows, plain = read_metrics(out / "metrics.jsonl"), read_metrics(Path(checkpoint) / "metrics.jsonl")
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in plain]
    for name in ("model", "ema", "optimizer"):
        files = [folder / "checkpoints" / "step-00000003" / f"{name}.safetensors" for folder in (out, Path(checkpoint))]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert [row.get("probe/failed") for row in rows] == [None, 0.0, 0.0], "every second step and after the last"
    assert rows[1]["probe/density_r2"] != rows[2]["probe/density_r2"]
    assert rows[2]["probe/seconds"] > 0
    assert not any(name.startswith("probe/") for row in plain for name in row)
    found, (model, config) = opened(shards, table), load_model(out)
    expected = probes.r2_by_property(found, probes.embed(found, model, CPU, Silent()), config.train.seed)
    assert rows[2]["probe/density_r2"] == pytest.approx(expected["density"], rel=1e-9)


def test_probes_that_break_are_a_warning(
    shards: ShardSet, table: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        torch.rand(7)  # it has drawn numbers before
        raise RuntimeError("index out of range")

    monkeypatch.setattr(PolyConFM, "embed", broken)
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        train(apply_overrides(get_recipe("polyconfm_tiny"), [*RUN, *probed(shards, table, 1)]), out, shards.path)
    assert "the weights were not probed at step 1 (RuntimeError: index out of range)" in caplog.text
    rows, plain = read_metrics(out / "metrics.jsonl"), read_metrics(Path(checkpoint) / "metrics.jsonl")
    assert [row["probe/failed"] for row in rows] == [1.0] * 3
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in plain]


def test_probes_that_cannot_be_measured_end_a_run_before_it_begins(shards: ShardSet, table: str, tmp_path: Path) -> None:
    recipe = get_recipe("polyconfm_tiny")
    with pytest.raises(InputError, match="probe_every 5 needs probe_shards and probe_tables; set train"):
        apply_overrides(recipe, ["train.probe_every=5"])
    with pytest.raises(InputError, match=r"absent.csv does not exist"):
        train(apply_overrides(recipe, [*RUN, *probed(shards, "absent.csv", 5)]), tmp_path / "run", shards.path)
    assert not (tmp_path / "run").exists()
    assert apply_overrides(recipe, ["train.probe_tables=a.csv:b"]).train.probe_tables == ("a.csv:b",)
