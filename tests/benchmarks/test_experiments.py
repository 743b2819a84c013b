"""Experiments run on tiny shards and end in json, page and figures; verdicts follow from numbers; true frames leave no residual."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import auxiliary_losses, experiment, guidance, length_scaling, masking_ratio, sampling_steps
from benchmarks.experiments.__main__ import NAMES, main
from benchmarks.experiments.measure import difference, entropy_bits, exponent, holds_zero, largest_deviation, spread_ang
from data_shards import pipeline
from data_shards.chem.psmiles import canonicalise
from data_shards.chem.repeat_unit import build_unit
from data_shards.recipe import make_recipe
from data_shards.sources.table import TableSource
from foundation.config import apply_overrides
from foundation.recipes import get_recipe
from foundation.train.loop import train
from tests.sampling.conftest import run_command

TEST, VAL, TRAIN = ("*CC*", "*CCO*"), "*CC(*)C", ("*O[Si](*)(C)C", "*CC(*)Cl")
SMALL = (
    "data.token_budget=100",
    "objective.width=32",
    "objective.trunk_layers=1",
    "objective.unit_layers=1",
    "objective.graph_layers=1",
    "objective.local_layers=1",
    "objective.orientation_layers=1",
    "objective.ar_steps=2",
    "objective.local_steps=2",
    "objective.orientation_steps=2",
    "objective.clash_rounds=0",
    "train.micro_batches_per_step=1",
    "train.num_threads=1",
    "train.num_val_batches=0",
    "train.num_steps=1",
    "track.wandb=false",
)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five polymers of four written units with two conformations, all three splits."""
    out = tmp_path_factory.mktemp("experiment-shards") / "x"
    to_test = tuple(canonicalise(psmiles).group for psmiles in TEST)
    recipe = make_recipe(num_units=4, num_conformations=2, test_fraction=0.0, val_fraction=0.4, to_test=to_test)
    table = out.with_name("polymers.csv")
    table.write_text("\n".join(["psmiles", *TEST, VAL, *TRAIN]) + "\n")
    pipeline.build(recipe, TableSource(str(table)), out)
    return str(out)


@pytest.fixture(scope="session")
def checkpoint(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model after one step."""
    out = tmp_path_factory.mktemp("experiment-run") / "run"
    train(apply_overrides(get_recipe("polyconfm_tiny"), SMALL), out, shards)
    return str(out)


def result_of(name: str, shards: str, checkpoint: str, out: Path, *more: str) -> dict[str, Any]:
    """The json of a quick run, after a look at what lies beside it."""
    module = import_module(f"benchmarks.experiments.{name}")
    given = ("--checkpoint", checkpoint, "--shards", shards, "--out", str(out), "--quick", *more)
    assert run_command(module.app, *given) == 0
    result: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert result["setting"]["shards"]["path"] == shards
    assert result["setting"]["quick"]
    assert len(result["setting"]["commit"]) >= 7
    page = (out / f"{name}.md").read_text()
    assert result["setting"]["machine"] in page
    for figure in module.EXPERIMENT.figures:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
        assert f"![{figure}]({figure})" in page
    for said in result.get("verdicts", []):
        assert said["text"] in page
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    experiment.draw(module.EXPERIMENT, out / f"{name}.json")
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}, "drawn from the json alone"
    return result


# ----------------------------------------------------------------------------------------------------------------------- experiments


def test_true_frames_give_the_chain_back_and_errors_of_frames_do_not(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("frame_assembly", shards, checkpoint, tmp_path / "o")
    at = {(row["way"], row["sigma_deg"]): row for row in result["rows"]}
    for way in ("link dihedrals", "rotations, overlap", "rotations, projected"):
        assert at[way, 0.0]["residual_ang"] < 1e-4
        assert at[way, 0.0]["rmsd_ang"] < 1e-3
        assert at[way, 10.0]["rmsd_ang"] > 0.05
    assert at["link dihedrals", 10.0]["residual_ang"] < 1e-5, "shared bonds meet whatever the angles"
    assert at["rotations, projected", 10.0]["residual_ang"] < 1e-3
    assert at["rotations, overlap", 10.0]["residual_ang"] > 0.05
    assert all(said["holds"] for said in result["verdicts"])
    growth = [point["rmsd_ang"] for point in result["growth"]["10.0"]]
    assert growth[0] < 1e-3 < growth[-1], "one unit alone is not touched by its links"


def test_one_polymer_is_learned_step_by_step(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("unit_reconstruction", shards, checkpoint, tmp_path / "o")
    assert [point["step"] for point in result["curve"]] == [0, 3, 6]
    assert all(np.isfinite(list(point.values())).all() for point in (*result["curve"], *result["given"].values()))
    assert (
        result["given"]["half of the units against the other half"]["to_nearest_reference_ang"]
        < result["curve"][0]["to_nearest_reference_ang"]
    )


def test_cost_and_quality_against_length(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("length_scaling", shards, checkpoint, tmp_path / "o")
    assert [row["units"] for row in result["cost"]] == [4, 8]
    assert [row["chains"] for row in result["cost"]] == [2, 1]
    assert all(row["processor_seconds"] > 0 for row in result["cost"])
    assert [row["factor"] for row in result["quality"]] == [1, 2]
    assert result["quality"][0]["changes"]["link_dihedral_jsd_bits"]["value"] == 0
    assert result["quality"][1]["values"]["characteristic_ratio"]["value"] > 0


def test_guidance_of_one_is_the_reference(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("guidance", shards, checkpoint, tmp_path / "o")
    assert [row["guidance"] for row in result["rows"]] == [1.0, 2.0]
    assert result["rows"][0]["changes"]["spread_ang"]["value"] == 0


def test_budgets_are_held_against_the_largest(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("sampling_steps", shards, checkpoint, tmp_path / "o")
    assert [(row["ar_steps"], row["local_steps"], row["orientation_steps"]) for row in result["rows"]] == [(1, 2, 3), (2, 2, 3), (2, 4, 4)]
    assert result["rows"][-1]["changes"]["link_dihedral_jsd_bits"]["value"] == 0


def test_sources_of_3d_are_compared_on_the_same_polymers(shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of("property_input", shards, checkpoint, tmp_path / "o")
    assert list(result["sources"]) == ["self-generated", "RDKit", "reference"]
    assert len(result["targets"]) == result["num_polymers"] >= 4
    assert all(len(own) == result["num_polymers"] for own in result["predictions"].values())
    assert all(row["attempted"] == 8 for row in result["sources"].values())


@pytest.fixture
def table(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """A property of the five polymers, enough for a regression that nobody believes."""
    monkeypatch.setattr("foundation.evaluation.property_table.FEWEST", 5)
    path = tmp_path_factory.mktemp("property") / "softness.csv"
    path.write_text("psmiles,value\n" + "".join(f"{psmiles},{k * k}\n" for k, psmiles in enumerate([*TEST, VAL, *TRAIN])))
    return str(path)


def test_auxiliary_losses_are_trained_and_probed(shards: str, checkpoint: str, table: str, tmp_path: Path) -> None:
    result = result_of("auxiliary_losses", shards, checkpoint, tmp_path / "o", "--table", table)
    cases = ["none", "token 0.1", "agreement 0.1", "statistics 0.1", "descriptor 0.1", "level 0.1", "all 0.1"]
    assert [row["case"] for row in result["rows"]] == cases
    assert list(result["properties"]["softness"]["r2"]) == ["before training", *cases]
    changes = result["properties"]["softness"]["squared_error_change_of_variance"]
    assert changes["before training"]["value"] == 0
    assert len({change["value"] for change in changes.values()}) >= 6, "agreement is nothing where a micro-batch has one polymer"
    assert all(row["values"]["unit_torsion_jsd_bits"]["value"] > 0 for row in result["rows"])


def test_auxiliary_losses_pay_where_probes_read_more_than_without() -> None:
    def said(none: float, one: float, before: float) -> bool:
        properties = {"tg": {"r2": {"none": none, "token 1": one, "before training": before}}}
        return bool(auxiliary_losses.pays([{"case": "none"}, {"case": "token 1"}], properties)["holds"])

    assert said(0.3, 0.6, 0.5)
    assert not said(0.3, 0.4, 0.5)
    assert not said(0.7, 0.6, 0.5)


@pytest.mark.parametrize("name", ["masking_ratio", "head_ablation"])
def test_models_are_trained_and_compared(name: str, shards: str, checkpoint: str, tmp_path: Path) -> None:
    result = result_of(name, shards, checkpoint, tmp_path / "o")
    assert len(result["rows"]) == 2
    assert result["steps"] == 2
    if name == "head_ablation":
        heads = [(row["local_head"], row["orientation_head"]) for row in result["rows"]]
        assert heads == [("torsional", "so3"), ("cartesian", "torsion")]
        assert all(row["true_units"]["link_dihedral_jsd_bits"]["value"] > 0 for row in result["rows"])
    else:
        assert [row["masking"] for row in result["rows"]] == ["0.5", "default mixture"]
        assert all(value is None or value > 0 for row in result["rows"] for value in row["validation_loss"].values())


def test_every_experiment_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out
    files = {path.stem for path in Path(experiment.__file__).parent.glob("*.py") if path.read_text().rstrip().endswith("run(app)")}
    assert files == set(NAMES)
    assert all(any(line.startswith(name) and len(line) > 40 for line in printed.splitlines()) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_writes_nothing(
    name: str, shards: str, checkpoint: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"benchmarks.experiments.{name}")
    given = ("--checkpoint", checkpoint, "--shards", shards, "--out", str(tmp_path / "o"), "--dry-run")
    more = {"property_input": ("--limit", "8"), "auxiliary_losses": ("--table", table)}  # every row is canonicalised
    assert run_command(module.app, *given, *more.get(name, ())) == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("guidance", ["--scales", "-1"], "scales -1 must be >= 0; change --scales"),
        ("guidance", ["--split", "tset"], "split 'tset' must be one of train, val, test"),
        ("guidance", ["--num", "0"], "num 0 must be >= 1; change --num"),
        ("masking_ratio", ["--ratios", "1.5"], "ratios 1.5 must be above 0 and at most 1; change --ratios"),
        ("frame_assembly", ["--sigmas", "-2"], "sigmas -2 must be >= 0 degrees; change --sigmas"),
        ("length_scaling", ["--lengths", "0"], "lengths 0 must be >= 1; change --lengths"),
        ("sampling_steps", ["--ar-steps", "0"], "ar_steps 0 must be >= 1; change --ar-steps"),
        (
            "sampling_steps",
            ["--diffusion-steps", "10:0"],
            "diffusion_steps '10:0' must be a number >= 1, or two as LOCAL:ORIENTATION; change --diffusion-steps",
        ),
        ("unit_reconstruction", ["--head", "x"], "head 'x' must be torsional or cartesian; change --head"),
        ("unit_reconstruction", ["--polymer", "9"], "has 2 polymers of two units or more, not 10; change --polymer"),
        ("property_input", ["--column", "x", "--limit", "8"], "has no column 'x'"),
        ("auxiliary_losses", ["--table", "x.csv", "--weights", "0"], "weights 0 must be above 0"),
        ("property_input", ["--folds", "1"], "folds 1 must be >= 2; change --folds"),
    ],
)
def test_bad_input_is_one_sentence(
    name: str, changes: list[str], sentence: str, shards: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"benchmarks.experiments.{name}")
    assert run_command(module.app, "--checkpoint", checkpoint, "--shards", shards, "--out", str(tmp_path / "o"), *changes) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(shards: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "guidance.json").write_text("{}")
    assert run_command(guidance.app, "--checkpoint", checkpoint, "--shards", shards, "--out", str(tmp_path)) == 2
    assert "holds guidance.json already; choose another --out or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "guidance.json").read_text() == "{}"


# -------------------------------------------------------------------------------------------------------------------------- verdicts


def cost_row(units: int, seconds: float, kilobytes: float) -> dict[str, Any]:
    return {"units": units, "chains": 2, "processor_seconds": 2 * seconds, "peak_extra_bytes": 1000 * kilobytes}


def test_cost_is_constant_only_where_every_length_is_near_the_mean() -> None:
    linear = [cost_row(n, 0.01 * n, 5.0 * n) for n in (100, 1000, 10_000)]
    assert [said["holds"] for said in length_scaling.cost_verdicts(linear)] == [True, True]
    assert "exponent 1.00" in length_scaling.cost_verdicts(linear)[0]["text"]
    slower = [*linear[:2], cost_row(10_000, 0.015 * 10_000, 5.0 * 10_000)]
    assert [said["holds"] for said in length_scaling.cost_verdicts(slower)] == [False, True]
    square = [cost_row(n, 0.01 * n, 0.01 * n**2) for n in (100, 1000)]
    time, memory = length_scaling.cost_verdicts(square)
    assert (time["holds"], memory["holds"]) == (True, False)
    assert "exponent 2.00" in memory["text"]
    window = [cost_row(n, 0.01 * n, 500.0) for n in (100, 10_000)]
    assert length_scaling.cost_verdicts(window)[1]["holds"], "memory that does not grow with the chain is no fault"


def change(low: float, high: float) -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high, "num_polymers": 5}


def test_quality_is_flat_unless_worse_beyond_noise() -> None:
    names = length_scaling.FLAT
    first = {"factor": 1, "changes": {name: change(0.0, 0.0) for name in names}}
    row = {"factor": 100, "changes": {name: change(-0.1, 0.1) for name in names} | {names[0]: change(0.1, 0.2)}}
    assert [said["holds"] for said in length_scaling.quality_verdicts([first, row])] == [False, *[True] * (len(names) - 1)]
    row["changes"][names[0]] = {"value": None, "low": None, "high": None, "num_polymers": 0}
    assert len(length_scaling.quality_verdicts([first, row])) == len(names) - 1
    nearer = {"factor": 10, "changes": {name: change(0.1, 0.2) for name in names}}
    said = length_scaling.quality_verdicts([first, nearer, row])
    assert not said[0]["holds"]
    assert "at 10 times" in said[0]["text"], "the longest chains that have the metric"
    assert all(other["holds"] and "at 100 times" in other["text"] for other in said[1:])


def test_the_cheapest_budget_within_noise_is_named() -> None:
    def row(ar: int, steps: int, seconds: float, low: float) -> dict[str, Any]:
        changes = {name: change(low, low + 0.1) for name in sampling_steps.JUDGED}
        return {"ar_steps": ar, "local_steps": steps, "orientation_steps": steps, "seconds_per_unit": seconds, "changes": changes}

    rows = [row(1, 5, 1.0, 0.05), row(8, 20, 4.0, -0.05), row(4, 20, 3.0, -0.01), row(16, 200, 40.0, 0.0)]
    said = sampling_steps.enough(rows)
    assert said["holds"]
    assert "4 autoregressive x 20 diffusion steps are within noise of 16 x 200 at 8% of the time" in said["text"]
    assert not sampling_steps.enough([rows[0], rows[-1]])["holds"]
    assert sampling_steps.grid([1, 4], [(5, 10), (50, 50)]) == [(1, 5, 10), (4, 5, 10), (4, 50, 50)]


def test_guidance_is_off_unless_a_scale_is_better_beyond_noise() -> None:
    def row(scale: float, low: float, value: float) -> dict[str, Any]:
        name = "unit_torsion_jsd_bits"
        return {"guidance": scale, "changes": {name: change(low, low + 0.1)}, "values": {name: {"value": value}}}

    assert guidance.off_is_best([row(1, 0.0, 0.3), row(2, -0.05, 0.29)])["holds"]
    said = guidance.off_is_best([row(1, 0.0, 0.3), row(2, -0.3, 0.1), row(3, -0.2, 0.2)])
    assert not said["holds"]
    assert "guidance 2" in said["text"]


def test_the_mixture_is_judged_where_sampling_starts() -> None:
    def row(name: str, loss: float | None) -> dict[str, Any]:
        return {"masking": name, "validation_loss": {"0.3": 9.0, "1": loss}}

    assert masking_ratio.mixture_is_near_best([row("0.5", 0.8), row("0.9", 0.7), row("default mixture", 0.705)])["holds"]
    assert not masking_ratio.mixture_is_near_best([row("0.9", 0.7), row("default mixture", 0.75)])["holds"]
    assert not masking_ratio.mixture_is_near_best([row("0.9", None), row("default mixture", None)])["holds"]


# --------------------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_of_the_measure() -> None:
    assert exponent([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    assert largest_deviation([1.0, 1.0, 1.6]) == pytest.approx(1.6 / 1.2 - 1)
    assert entropy_bits(np.array([[1, 1, 1, 1], [5, 0, 0, 0]])) == pytest.approx([2.0, 0.0])
    triangle = np.random.default_rng(0).normal(size=(1, 7, 3))
    assert spread_ang(np.repeat(triangle, 3, axis=0)) == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(spread_ang(triangle))
    values = np.random.default_rng(1).normal(size=40)
    assert holds_zero(difference(values, values, 0))
    assert not holds_zero(difference(values + 0.5, values, 0))
    assert holds_zero(difference(values, np.random.default_rng(2).normal(size=40), 0))


def test_characteristic_ratio_of_a_zigzag_and_of_a_random_walk() -> None:
    topology = build_unit("*C*").topology
    angle, steps = np.deg2rad(112.0), np.arange(51)
    zigzag = np.stack([1.53 * np.sin(angle / 2) * steps, 1.53 * np.cos(angle / 2) * (steps % 2), 0.0 * steps], axis=1)
    assert length_scaling.characteristic_ratio(topology, 49, zigzag[None]) == pytest.approx(50 * np.sin(angle / 2) ** 2)
    walk = np.random.default_rng(0).normal(size=(4000, 50, 3)).cumsum(1)
    walk = np.concatenate([np.zeros((4000, 1, 3)), walk], axis=1)
    assert length_scaling.characteristic_ratio(topology, 49, walk) == pytest.approx(1.0, rel=0.05)
