"""Parts of the pipeline that need no chemistry: recipe, tables, split, staging, guards, Ray crew, progress."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data_shards.crew import Crash, crew, start_ray
from data_shards.errors import InputError, PolymerError
from data_shards.manifest import MANIFEST_NAME, ShardEntry
from data_shards.pipeline import rows_digest
from data_shards.plan import Plan, split_sizes
from data_shards.progress import Bars, Plain, Silent
from data_shards.recipe import FLAGS, BuildRecipe, make_recipe, read_settings
from data_shards.schema import PolymerSample
from data_shards.sources import Row, TableSource, open_source, textbook
from data_shards.stages import Dropped, Finished, Outcome, Standard, _guarded, from_staged, to_staged
from data_shards.staging import NothingUsable, Staging, check_out, open_staging, remove_old
from data_shards.store import Folder
from data_shards.writer import encode

Make = Callable[..., Any]
RECIPE = make_recipe()


# recipe


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_units": 0}, r"^num_units 0 must be greater than or equal to 1; change --num-units$"),
        ({"num_conformations": -1}, r"^num_conformations -1 must be .* 1; change --conformers$"),
        ({"tacticity": "random"}, r"^tacticity 'random' must be 'isotactic', 'syndiotactic' or 'atactic'; change --tacticity$"),
        ({"engine": "magic"}, r"^engine 'magic' must be 'grow', 'md', 'import', 'etkdg' or 'record'; change --engine$"),
        ({"md": {}}, r"^engine md needs its settings and no other engine has any; change --engine or --md$"),
        ({"quality": {"heavy_clash": "2"}}, r"^quality.heavy_clash '2' must be less than or equal to 1; change --quality$"),
        ({"quality": {"clash": "1"}}, r"^quality.clash is unknown; --quality takes heavy_clash, .*max_ring_size$"),
        ({"samples_per_shard": 0}, r"change --shard-size$"),
        (
            {"val_fraction": 0.6, "test_fraction": 0.4},
            r"^val_fraction \+ test_fraction = 1 must be below 1; nothing would be left",
        ),
        ({"time_limit_sec": float("nan")}, r"change --time-limit$"),
    ],
)
def test_a_bad_recipe_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_recipe(**values)


def test_every_field_changes_the_digest() -> None:
    changes = {"tacticity": "isotactic", "to_test": ("a" * 12,), "hold_out": ("a" * 12,), "val_fraction": 0.1, "test_fraction": 0.1}
    changes |= {"relax": True, "quality": {"max_ring_size": 6}}
    for name, field in BuildRecipe.model_fields.items():
        if name in ("engine", "md"):  # they go together
            continue
        value = changes.get(name, None if isinstance(field.default, str | tuple) else field.default)
        value = value + 1 if name not in changes else value
        assert make_recipe(**{name: value}).digest != RECIPE.digest, name
    assert make_recipe(engine="md").digest != make_recipe(engine="import").digest != RECIPE.digest
    assert make_recipe(to_test=("b", "a", "b")).digest == make_recipe(to_test=("a", "b")).digest
    with pytest.raises(InputError, match=r"^--quality 'heavy_clash' must be name=value, with one of heavy_clash, hydrogen_clash"):
        read_settings("quality", ["heavy_clash"])


def test_the_command_offers_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    import inspect

    from data_shards.build import main

    flags = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items()}
    for name, field in BuildRecipe.model_fields.items():
        flag = FLAGS.get(name, name).removeprefix("--").replace("-", "_")
        if name not in ("to_test", "hold_out", "num_fragments", "quality"):
            assert flags[flag] == field.default, name


# tables


def read_table(path: Path, **options: Any) -> list[Row]:
    source = TableSource(str(path), **options)
    rows = list(source.rows())
    assert rows == list(source.rows())
    return rows


def test_a_table_reads_the_same_from_every_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": ["PE", None, "x"], "PSMILES": ["*CC*", " *CO* ", None], "n": [1, 2, 3]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    wanted = [Row(1, "*CC*", {"name": "PE"}), Row(2, "*CO*"), Row(3, "", {"name": "x"})]
    for name in ("a.csv", "a.csv.gz", "a.tsv", "a.parquet"):
        assert read_table(tmp_path / name) == wanted, name
    assert read_table(tmp_path / "a.parquet", limit=2) == wanted[:2] == read_table(tmp_path / "a.csv", limit=2)
    assert [row.psmiles for row in read_table(tmp_path / "a.csv", column="n")] == ["1", "2", "3"]
    for rows in (1, 2, 3):  # read in parts of any size
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("data_shards.sources.table.ROWS_PER_READ", rows)
            assert read_table(tmp_path / "a.parquet") == read_table(tmp_path / "a.csv") == wanted
    assert rows_digest(wanted) != rows_digest(wanted[:2])


def test_the_column_is_found_by_its_usual_names(tmp_path: Path) -> None:
    for name in ("psmiles", "PSMILES", "smiles", "SMILES", "P-SMILES"):
        (tmp_path / "a.csv").write_text(f"id,{name}\n1,*CC*\n")
        assert read_table(tmp_path / "a.csv")[0].psmiles == "*CC*"
    (tmp_path / "a.csv").write_text("SMILES,psmiles\nCC,*CC*\n")
    assert read_table(tmp_path / "a.csv")[0].psmiles == "*CC*"


def _binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("nothing.csv", lambda path: None, r"nothing.csv does not exist; pass the table of polymers with --input"),
        ("folder.csv", lambda path: path.mkdir(), r"folder.csv is a folder; pass a CSV or Parquet file"),
        ("a.csv", lambda path: path.write_text(""), r"a.csv is empty; give a table with a header"),
        ("a.csv", lambda path: path.write_text("psmiles\n"), r"a.csv has a header but no row"),
        (
            "a.csv",
            lambda path: path.write_text("id,poly\n1,*CC*\n"),
            r"a.csv has no column named psmiles or smiles; it has 'id', 'poly';",
        ),
        ("a.csv", _binary, r"a.csv has no column named psmiles or smiles; it has .*; name the P-SMILES column with --column"),
        ("a.parquet", _binary, r"a.parquet cannot be read as a table \(.*\); give a CSV or Parquet file"),
        ("nothing.parquet", lambda path: None, r"nothing.parquet does not exist"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, name: str, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=sentence) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bad_table_options_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("psmiles\n*CC*\n")
    with pytest.raises(InputError, match=r"has no column 'x'; it has 'psmiles'; change --column"):
        read_table(tmp_path / "a.csv", column="x")
    with pytest.raises(InputError, match=r"limit 0 must be >= 1; change --limit"):
        read_table(tmp_path / "a.csv", limit=0)
    with pytest.raises(InputError, match=r"no table given; pass one with --input"):
        open_source("table", None)
    with pytest.raises(InputError, match=r"--source textbook reads its own table, not a.csv"):
        textbook("a.csv")
    with pytest.raises(
        InputError, match=r"source 'zinc' must be one of table, textbook, sdf, shards, polyconfm-lmdb, smiles, molecules; change --source"
    ):
        open_source("zinc", None)
    with pytest.raises(InputError, match=r"--source sdf needs a file; pass it with --input"):
        open_source("sdf", None)
    with pytest.raises(InputError, match=r"--source textbook has its own columns, not 'x'"):
        textbook(column="x")


# plan


def planned(recipe: BuildRecipe, groups: list[str], path: Path | str = ":memory:") -> Plan:
    """A plan with one understood chain for every group."""
    plan = Plan(path, recipe)
    plan.load(Row(number, f"*{number}*") for number in range(1, len(groups) + 1))
    for rows in plan.waiting(7):
        plan.record([Standard(row, row.psmiles, groups[row.number - 1], 3, f"{row.number * 7919 % 1009:04d}", 0) for row in rows])
    plan.arrange()
    return plan


def splits(plan: Plan) -> dict[str, str]:
    """group -> split; a group in two splits would be lost here, so it is counted."""
    found = {(work.group, name.split("-")[0]) for name in plan.shards(finished=False) for work in plan.chains(name)}
    assert len({group for group, _ in found}) == len(found)
    return dict(found)


def test_split_takes_whole_groups_by_rank() -> None:
    groups = [hashlib.sha1(str(number).encode()).hexdigest()[:12] for number in range(400)]
    split = splits(planned(RECIPE, groups * 2))
    sizes = {name: sum(1 for value in split.values() if value == name) for name in ("train", "val", "test")}
    assert sizes == {"train": 360, "val": 20, "test": 20}
    ranked = sorted(groups, key=lambda group: hashlib.sha1(f"0:{group}".encode()).hexdigest())
    assert {group for group in groups if split[group] == "test"} == set(ranked[:20])
    assert splits(planned(RECIPE, list(reversed(groups)))) == split
    assert splits(planned(make_recipe(split_seed=1), groups)) != split


@pytest.mark.parametrize(("count", "val", "test"), [(1, 0, 0), (9, 0, 0), (10, 1, 1), (12, 1, 1), (29, 1, 1), (30, 2, 2)])
def test_small_sets_still_have_val_and_test(count: int, val: int, test: int) -> None:
    assert split_sizes(RECIPE, count, 0, count) == (val, test)
    values = list(splits(planned(RECIPE, [f"g{number}" for number in range(count)])).values())
    assert (values.count("val"), values.count("test"), values.count("train")) == (val, test, count - val - test)


def test_few_groups_leave_some_for_training() -> None:
    assert sorted(splits(planned(RECIPE, ["a"] * 8 + ["b"] * 8)).values()) == ["test", "train"]
    assert sorted(splits(planned(RECIPE, ["a"] * 20)).values()) == ["train"]
    assert set(splits(planned(make_recipe(val_fraction=0, test_fraction=0), [f"g{n}" for n in range(50)])).values()) == {"train"}


def test_polymers_named_for_test_go_there_and_count_towards_it() -> None:
    groups = [f"g{number}" for number in range(100)]
    split = splits(planned(make_recipe(to_test=("g3", "g50", "elsewhere")), groups))
    assert split["g3"] == split["g50"] == "test"
    assert "elsewhere" not in split
    assert sum(1 for value in split.values() if value == "test") == 5
    many = splits(planned(make_recipe(to_test=tuple(groups[:40])), groups))
    assert sum(1 for value in many.values() if value == "test") == 40


def test_a_plan_is_arithmetic_and_is_kept(tmp_path: Path) -> None:
    recipe = make_recipe(samples_per_shard=8, val_fraction=0, test_fraction=0)
    groups = [f"g{number}" for number in range(20)]
    plan = planned(recipe, groups, tmp_path / "plan.sqlite")
    names = plan.shards(finished=False)
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    keys = [[work.key for work in plan.chains(name)] for name in names]
    assert [len(part) for part in keys] == [8, 8, 4]
    assert [key for part in keys for key in part] == sorted(key for part in keys for key in part)
    entry = ShardEntry(names[1], 0, 0, "", ())
    plan.finish(names[1], entry, [Dropped(work.row.number, "x", "timeout", "slow") for work in plan.chains(names[1])], {})
    plan.close()
    again = Plan(tmp_path / "plan.sqlite", recipe)
    again.load(iter([]))  # it has its rows
    again.arrange()
    assert (again.num_rows, again.num_understood, again.num_chains, again.num_finished) == (20, 20, 20, 8)
    assert (again.shards(finished=True), again.shards(finished=False)) == ([names[1]], [names[0], names[2]])
    assert again.funnel().dropped == {"timeout": 8}
    assert again.polymers() == (20, 12)
    assert again.stages() == [("standardise", {}), ("hold out", {}), ("one of each chain", {}), ("conform", {"timeout": 8})]
    again.close()


def test_the_first_of_equal_chains_is_kept() -> None:
    plan = Plan(":memory:", RECIPE)
    plan.load(Row(number, "*CC*") for number in range(1, 6))
    same = {1: "a", 2: "b", 3: "a", 5: "a"}
    plan.record(
        [Standard(Row(number, "*CC*"), "*C*", "g", 2, key, 0) for number, key in same.items()] + [Dropped(4, "*CC*", "ladder", "x")]
    )
    plan.arrange()
    lost = [(drop.number, drop.reason, drop.detail) for drop in plan.dropped()]
    assert lost == [(3, "duplicate", "the same chain as row 1"), (4, "ladder", "x"), (5, "duplicate", "the same chain as row 1")]


# staging


def test_staging_survives_and_notices_torn_files(tmp_path: Path, make_sample: Make, make_entry: Make) -> None:
    sample: PolymerSample = make_sample()
    finished = Outcome(Finished(make_entry(sample), encode(sample)), 0.5)
    dropped = Outcome(Dropped(7, "*C", "star-count", "one star"), 0.25)
    assert from_staged(to_staged(finished)) == finished
    assert from_staged(to_staged(dropped)) == dropped
    for cut in (0, 5, 300, 2000, len(to_staged(finished)) - 1):
        assert from_staged(to_staged(finished)[:cut]) is None
    staging = Staging(tmp_path)
    staging.put("abcd", finished)
    assert staging.get("abcd") == finished
    assert staging.get("abce") is None
    assert staging.count() == 1
    staging.remove("abcd")
    assert staging.count() == 0


def test_an_output_folder_that_is_taken_is_named(tmp_path: Path) -> None:
    rows = rows_digest([Row(1, "*CC*")])
    assert check_out(Folder(tmp_path / "new"), RECIPE, rows, False) is None
    out = tmp_path / "out"
    out.mkdir()
    assert check_out(Folder(out), RECIPE, rows, False) is None
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out holds other files; pass --overwrite"):
        check_out(Folder(out), RECIPE, rows, False)
    (out / MANIFEST_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"schema version None.*or pass --overwrite to build all of it again"):
        check_out(Folder(out), RECIPE, rows, False)
    assert check_out(Folder(out), RECIPE, rows, True) is None
    remove_old(Folder(out), set())
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_only_the_same_build_continues(tmp_path: Path, make_sample: Make, make_entry: Make) -> None:
    out, rows = Folder(tmp_path / "out"), rows_digest([Row(1, "*CC*")])
    finished = Outcome(Finished(make_entry(make_sample()), encode(make_sample())), 1.0)
    interrupted = open_staging(out, RECIPE, rows)
    interrupted.__enter__().put("aa", finished)
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert check_out(out, RECIPE, rows, False) is None
    with pytest.raises(InputError, match=r"holds an unfinished build of another recipe, table or software version; pass --overwrite"):
        check_out(out, make_recipe(seed=1), rows, False)
    again = open_staging(out, RECIPE, rows)
    assert again.__enter__().get("aa") == finished
    with pytest.raises(InputError, match=r"another process is building .*out; wait for it"):
        open_staging(out, RECIPE, rows).__enter__()
    assert not again.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with open_staging(out, make_recipe(seed=1), rows) as staging:
        assert staging.get("aa") is None
    assert not out.path.exists()  # nothing came of it
    with pytest.raises(InputError), open_staging(out, RECIPE, rows):  # a store that fails, say: the work is kept
        raise InputError("no connection")
    assert out.staging.exists()
    with pytest.raises(NothingUsable), open_staging(out, RECIPE, rows):
        raise NothingUsable("no polymer")
    assert not out.path.exists()


# guards


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def _swallow() -> None:
    try:
        time.sleep(5)
    except Exception:  # as careless code does: the time limit must pass through it
        time.sleep(5)


def test_whatever_goes_wrong_with_a_polymer_is_a_row() -> None:
    row, quick = Row(3, "*CC*"), make_recipe(time_limit_sec=0.2)

    def bad() -> None:
        raise PolymerError("*CC*", "ladder", "four\nstars")

    def defect() -> None:
        raise ZeroDivisionError("by zero")

    assert _guarded(RECIPE, row, lambda: 5) == 5
    assert _guarded(RECIPE, row, bad) == Dropped(3, "*CC*", "ladder", "four stars")
    assert _guarded(RECIPE, row, defect) == Dropped(3, "*CC*", "error:ZeroDivisionError", "by zero")
    assert _guarded(quick, row, _swallow) == Dropped(3, "*CC*", "timeout", "took longer than 0.2 s; raise --time-limit")
    assert _guarded(quick, row, lambda: _sleep(0.01)) == "awake"
    time.sleep(0.3)  # the alarm is off: nothing is raised here


# Ray


def _task(word: str) -> str:
    if word == "exit":
        os._exit(1)
    if word == "hang":
        time.sleep(60)
    if word == "defect":
        raise ZeroDivisionError("outside the guard")
    return word.upper()


@pytest.mark.dist
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_worker_that_dies_or_hangs_takes_no_other_with_it() -> None:
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    words = ["a", "exit", "b", "hang", "c", "d"]
    start = time.monotonic()
    with crew(2) as unordered:
        answers = {words.index(word): answer.value for word, answer in unordered(_task, words, 3.0)}
        assert {index: answer for index, answer in answers.items() if not isinstance(answer, Crash)} == {0: "A", 2: "B", 4: "C", 5: "D"}
        assert isinstance(answers[1], Crash)
        assert "the worker process died (WorkerCrashedError)" in answers[1].detail
        assert isinstance(answers[3], Crash)
        assert 4.5 < answers[3].seconds < 30
        with pytest.raises(ZeroDivisionError, match="outside the guard"):
            list(unordered(_task, ["defect"], 3.0))
    assert time.monotonic() - start < 45


@pytest.mark.parametrize("kind", ["ConnectionError", "AuthenticationError"])
def test_a_cluster_that_cannot_be_joined_is_one_sentence(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import ray

    asked = []

    def refuse(address: str, **options: object) -> None:
        asked.append(address)
        raise ConnectionError("no answer") if kind == "ConnectionError" else ray.exceptions.AuthenticationError("no token")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match=r"cannot join Ray at RAY_ADDRESS=10.0.0.1:6379: .*; mend or unset RAY_ADDRESS"):
        start_ray(None).__enter__()
    assert asked == ["10.0.0.1:6379"]


# progress


def test_progress_says_what_was_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.progress.SECONDS_BETWEEN_LINES", 0.0)
    for kind in (Plain(), Bars(), Silent()):
        with kind.stage("conform", 5, 1) as bar:
            bar.advance(2, note="dropped 1")
            bar.advance()
        kind.say("finished")
        shown = capsys.readouterr().err
        assert ("conform" in shown and "4/5" in shown and "dropped 1" in shown and "finished" in shown) != isinstance(kind, Silent)
        with kind.stage("predict", None) as bar:
            bar.advance(3)
        shown = capsys.readouterr().err
        assert isinstance(kind, Silent) or "3 polymers" in shown or "3/?" in shown
