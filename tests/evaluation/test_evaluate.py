"""From shards to table: baselines on three polymers end to end, failures counted, same seed same bytes, one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.errors import PolymerError
from data_shards.reader import ShardSet
from foundation.batch import Batch, Condition
from foundation.errors import InputError
from foundation.evaluate import app
from foundation.evaluation import baselines, figures, metrics, protocol, table
from foundation.evaluation.baselines import LinkHistogram, pick_shapes, random_links, train_histogram
from foundation.evaluation.chains import chain_tables
from foundation.evaluation.measure import link_counts, measure, reference_of
from foundation.objectives.base import Capabilities, Samples
from foundation.objectives.polyconfm.config import PolyConFMConfig
from foundation.objectives.polyconfm.model import PolyConFM
from foundation.sampling.run import generate_chains
from tests.sampling.conftest import LibraryObjective, request_of, run_command


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LibraryObjective:
    made = LibraryObjective()
    monkeypatch.setattr("foundation.train.checkpoint.load_model", lambda path: (made, None))
    return made


def command(shards: ShardSet, out: Path, *more: str) -> int:
    return run_command(app, "--checkpoint", "y", "--shards", shards.path, "--out", str(out), "--num", "3", *more)


# ------------------------------------------------------------------------------------------------------------------------- baselines


def test_shapes_are_drawn_evenly_among_those_of_the_right_hand() -> None:
    shapes = np.arange(6.0)[:, None, None] * np.ones((6, 4, 3))
    signs = np.array([[1], [1], [1], [-1], [-1], [-1]], dtype=np.int8)
    wanted = np.array([[1], [-1]] * 50, dtype=np.int8)
    picked = pick_shapes(shapes, signs, wanted, 30, np.random.default_rng(0))
    assert picked.shape == (30, 100, 4, 3)
    which = picked[..., 0, 0]
    assert set(which[:, ::2].ravel()) == {0, 1, 2}
    assert set(which[:, 1::2].ravel()) == {3, 4, 5}
    assert np.bincount(which[:, ::2].ravel().astype(int)).min() > 400
    best = pick_shapes(shapes, signs, wanted, 2, np.random.default_rng(0), np.array([1.0, 3.0, 2.0, 1.0, 2.0, 3.0]))
    assert set(best[:, ::2, 0, 0].ravel()) == {1}
    assert set(best[:, 1::2, 0, 0].ravel()) == {5}
    free = pick_shapes(shapes, signs[:, :0], wanted[:, :0], 5, np.random.default_rng(0))
    assert len(np.unique(free)) == 6, "without stereocentres every shape serves"


def test_baselines_keep_units_and_differ_in_the_links_alone(shards: ShardSet) -> None:
    for entry in shards.samples("test"):
        sample = shards.read(entry)
        reference = reference_of(sample)
        histogram = train_histogram(shards.read(e) for e in shards.samples("train"))
        seen = {}
        for name, method in baselines.baselines(histogram):
            attempts = method(sample, reference.handedness, 4, 0)
            again = method(sample, reference.handedness, 4, 0)
            assert np.array_equal(attempts.x_ang, again.x_ang), "the same seed gives the same chains"
            values = measure(reference, attempts).values
            assert values["bond_within_mmff_fraction"] > 0.99
            assert values["junction_tail_residual_ang"] < 1e-5
            assert values.get("chirality_kept_fraction", 1.0) == 1
            seen[name] = values
        assert set(seen) == {"random links", "train histogram", "extended"}
        assert seen["extended"]["end_to_end_ang"] > metrics.end_to_end(reference.x_ang).mean()
        longest = 1.55 * (sample.num_units + 1) if sample.topology.psmiles == "*C*" else np.inf
        assert seen["extended"]["end_to_end_ang"] < longest
        assert sample.topology.psmiles != "*C*" or seen["extended"]["end_to_end_ang"] > 0.82 * longest, "an all-trans zigzag"


def test_link_laws(shards: ShardSet) -> None:
    sample = shards.read(shards.samples("test")[0])
    rng = np.random.default_rng(0)
    wild = random_links(sample, 2000, rng)
    assert wild.shape == (2000, sample.num_units - 1)
    assert metrics.histogram(wild.reshape(-1)).min() > 200
    counts = np.zeros(36)
    counts[[3, 20]] = 1.0, 3.0
    drawn = LinkHistogram(counts, {}, 1).draw(sample, 2000, rng)
    found = metrics.histogram(drawn.reshape(-1))
    assert set(np.flatnonzero(found)) == {3, 20}
    assert found[20] / found[3] == pytest.approx(3.0, rel=0.1)
    own = np.zeros(36)
    own[7] = 1.0
    drawn = LinkHistogram(counts, {sample.topology.psmiles: own}, 2).draw(sample, 10, rng)
    assert set(np.flatnonzero(metrics.histogram(drawn.reshape(-1)))) == {7}


def test_histogram_of_the_training_set_is_the_sum_of_its_polymers(shards: ShardSet) -> None:
    samples = [shards.read(entry) for entry in shards.samples("train")]
    histogram = train_histogram(samples)
    assert histogram.num_polymers == 2
    assert histogram.pooled.sum() == sum(len(s.heavy_ang) * (s.num_units - 1) for s in samples)
    assert np.array_equal(sum(histogram.by_psmiles.values()), histogram.pooled)
    tables = chain_tables(samples[0].topology, samples[0].num_units)
    assert np.array_equal(histogram.by_psmiles[samples[0].topology.psmiles], link_counts(tables, samples[0].heavy_ang))
    assert train_histogram([]) is None
    assert [name for name, _ in baselines.baselines(None)] == ["random links", "extended"]


def test_a_baseline_without_shapes_fails_with_its_reason(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def shapes(psmiles: str, seed: int):
        raise PolymerError(psmiles, "no-conformer", "cannot be embedded")

    monkeypatch.setattr(baselines, "library_shapes", shapes)
    sample = shards.read(shards.samples("test")[0])
    reference = reference_of(sample)
    found = measure(reference, baselines.assembled(random_links, sample, reference.handedness, 3, 0))
    assert (found.num_attempted, found.reasons) == (3, {"no-conformer": 3})
    assert "link_dihedral_jsd_bits" not in found.values


def test_fresh_grown_chains_have_the_references_configuration_and_other_coordinates(shards: ShardSet) -> None:
    settings = protocol.Settings("test", 2, None, 0, 1000, 10)
    sample = next(s for s in map(shards.read, shards.samples("test")) if s.topology.psmiles == "*CC(*)c1ccccc1")
    reference = reference_of(sample)
    values = measure(reference, protocol.grown(sample, settings)).values
    assert values["chirality_kept_fraction"] == 1
    assert values["rmsd_recall_ang"] > 0.5
    assert values["clash_rate_per_heavy_atom"] == 0


def test_growth_that_fails_is_counted(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(unit, num_units, **given):
        raise PolymerError("x", "no-self-avoiding-chain", "stopped")

    monkeypatch.setattr(protocol, "grow_chain", fail)
    sample = shards.read(shards.samples("test")[0])
    attempts = protocol.grown(sample, protocol.Settings("test", 2, None, 0, 1000, 10))
    assert attempts.reasons == ("no-self-avoiding-chain",) * 2
    assert attempts.num_attempted == 2


# --------------------------------------------------------------------------------------------------------------------------- command


def test_command_end_to_end(shards: ShardSet, model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval"
    assert command(shards, out) == 0
    results = json.loads((out / "results.json").read_text())
    methods = ["model", "reference", "grow engine", "random links", "train histogram", "extended"]
    assert list(results["attempts"]) == methods
    assert all(entry == {"attempted": 9, "failed": 0, "reasons": {}} for entry in results["attempts"].values())
    assert len(results["polymers"]) == 3
    assert results["shards"]["fingerprint"] == shards.fingerprint
    for name, metric in results["metrics"].items():
        assert metric["unit"], name
        assert metric["protocol"], name
        assert metric["failures"] in metrics.FAILURES.values(), name
        assert metric["group"] in metrics.GROUPS, name
        for estimate in metric["methods"].values():
            assert estimate["low"] <= estimate["value"] <= estimate["high"], name
    link = results["metrics"]["link_dihedral_jsd_bits"]["methods"]
    assert set(link) == set(methods) - {"reference"}
    assert results["metrics"]["connectivity_exact_fraction"]["methods"]["grow engine"]["value"] == 1
    assert results["metrics"]["chirality_kept_fraction"]["methods"]["model"]["num_polymers"] == 1, "two of three have no stereocentre"
    page = (out / "table.md").read_text()
    for name in ("link_dihedrals.png", "chain_size.png", "bond_errors.png", "torsion_maps.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"![{name}]({name})" in page
    assert "| distribution | link_dihedral_jsd_bits | bit |" in page
    assert "| legacy | smat_r_legacy_ang | angstrom |" in page
    assert "| sound | rmsd_recall_ang | angstrom |" in page
    assert "conformations attempted" in capsys.readouterr().out
    check_distributions(results, methods)
    assert command(shards, out) == 2
    assert "holds results.json already; choose another --out or pass --overwrite" in capsys.readouterr().err
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(shards, tmp_path / "again") == 0
    second = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    changed = {name for name in first if first[name] != second[name]}
    assert changed <= {"results.json", "table.md"}
    assert without_seconds(first["table.md"].decode()) == without_seconds(second["table.md"].decode())
    assert timeless(json.loads(second["results.json"])) == timeless(results)


def check_distributions(results: dict, methods: list[str]) -> None:
    """The samples that the report draws: three polymers of six written units, three conformations each."""
    junctions = sum(p["num_units"] - 2 for p in results["polymers"]) * 3
    maps = results["distributions"]["torsion_maps"]
    assert maps["bins"] == 36
    assert list(maps["maps"]) == methods
    for method, counts in maps["maps"].items():
        assert np.array(counts).shape == (36, 36), method
        assert np.sum(counts) == junctions, method
    sizes = results["distributions"]["radius_of_gyration_ang"]
    assert {method: len(values) for method, values in sizes.items()} == dict.fromkeys(methods, 9)
    means = [np.mean(sizes["reference"][3 * k : 3 * k + 3]) for k in range(3)]
    assert results["metrics"]["radius_of_gyration_ang"]["methods"]["reference"]["value"] == pytest.approx(np.mean(means), abs=1e-3)


def without_seconds(page: str) -> list[str]:
    return [line for line in page.splitlines() if "seconds_per_conformation" not in line]


def timeless(results: dict) -> dict:
    """Without the command line and the seconds, which no seed fixes."""
    kept = {k: v for k, v in results.items() if k != "command"}
    kept["metrics"] = {k: v for k, v in kept["metrics"].items() if k != "seconds_per_conformation"}
    for polymer in kept["polymers"]:
        for method in polymer["methods"].values():
            method["values"].pop("seconds_per_conformation", None)
    return kept


@pytest.mark.parametrize("wish", [(), ("--no-track",)])
def test_the_results_go_to_the_run_unless_told_otherwise(
    shards: ShardSet, model: LibraryObjective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: tuple[str, ...]
) -> None:
    seen = []

    def attach(checkpoint: str, evaluation: Path) -> bool:
        seen.append((checkpoint, evaluation, (evaluation / "results.json").is_file()))
        return True

    monkeypatch.setattr("foundation.track.attach.attach", attach)
    out = tmp_path / "eval"
    assert command(shards, out, "--limit", "1", "--num", "1", *wish) == 0
    assert [row[1:] for row in seen] == ([] if wish else [(out, True)])


def test_a_model_that_fails_is_not_flattered(shards: ShardSet, model: LibraryObjective, tmp_path: Path) -> None:
    model.fail = (0, 3, 4, 5)  # one of three, three of three, none
    assert command(shards, tmp_path / "e") == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["attempts"]["model"] == {"attempted": 9, "failed": 4, "reasons": {"gave up": 4}}
    bonds = results["metrics"]["bond_within_mmff_fraction"]["methods"]["model"]
    assert bonds["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert results["metrics"]["rmsd_recall_ang"]["methods"]["model"]["num_polymers"] == 2
    page = table.markdown(results, [])
    failed = next(line for line in page.splitlines() if "conformations failed" in line)
    assert [cell.strip() for cell in failed.split("|")][4:6] == ["4", "0"], "the model and the references"
    for name, metric in metrics.METRICS.items():
        found = [p["methods"]["model"]["values"].get(name) for p in results["polymers"]]
        assert f"| {name} |" in page
        if metric.failures == "zero" and found[0] is not None:
            assert found[0] <= 2 / 3, name
        if name not in COSTS and metric.failures == "absent":
            assert found[1] is None, f"{name} of a polymer without a single chain"


COSTS = ("seconds_per_conformation", "network_calls_per_conformation")


class Scored(LibraryObjective):
    """A model with a score network that sampling calls five times, and a density: normal about the origin of every coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Identity()
        self.capabilities = Capabilities(likelihood=True, needs_seed_conformers=True)

    @property
    def score_networks(self) -> tuple[torch.nn.Module, ...]:
        return (self.head,)

    def sample(self, condition: Condition, num: int, rng: torch.Generator) -> Samples:
        for _ in range(5):
            self.head(torch.zeros(1))
        return super().sample(condition, num, rng)

    def log_prob(self, batch: Batch) -> torch.Tensor:
        return -2.5 * (batch.num_units * (batch.atoms_per_unit[batch.chain_ptr[:-1]] - 2) + 2).double()


def test_cost_and_likelihood(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("foundation.train.checkpoint.load_model", lambda path: (Scored(), None))
    assert command(shards, tmp_path / "e") == 0
    found = json.loads((tmp_path / "e" / "results.json").read_text())["metrics"]
    calls = found["network_calls_per_conformation"]["methods"]
    assert set(calls) == {"model"}
    assert calls["model"]["value"] == 5
    assert {m for m, e in found["seconds_per_conformation"]["methods"].items() if e["value"] > 0} == {
        "model",
        "grow engine",
        "random links",
        "train histogram",
        "extended",
    }
    assert found["nll_nats_per_heavy_atom"]["methods"]["model"]["value"] == pytest.approx(2.5)
    assert set(found["nll_nats_per_heavy_atom"]["methods"]) == {"model"}


def test_a_model_without_density_or_score_networks_has_neither_number(shards: ShardSet, model: LibraryObjective, tmp_path: Path) -> None:
    assert command(shards, tmp_path / "e", "--limit", "1") == 0
    found = json.loads((tmp_path / "e" / "results.json").read_text())["metrics"]
    assert found["nll_nats_per_heavy_atom"]["methods"] == {}
    assert found["network_calls_per_conformation"]["methods"] == {}


def test_network_calls_of_polyconfm_are_counted_and_the_hooks_removed() -> None:
    model = PolyConFM(PolyConFMConfig(width=32, num_heads=2, local_steps=3, orientation_steps=4, ar_steps=2, clash_rounds=0)).eval()
    request = request_of("*CC(*)c1ccccc1", 3)
    chains = list(generate_chains(model, [request], 2, 0, 4000, torch.device("cpu")))
    assert {chain.network_calls for chain in chains} == {2 * 3 + 4}, "every unit step and the orientation, once a noise level"
    assert all(chain.seconds > 0 for chain in chains)
    assert not any(network._forward_hooks for network in model.score_networks)


def test_a_model_without_a_single_chain_still_gives_a_table(shards: ShardSet, model: LibraryObjective, tmp_path: Path) -> None:
    model.fail = tuple(range(9))
    assert command(shards, tmp_path / "e") == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["metrics"]["connectivity_exact_fraction"]["methods"]["model"]["value"] == 0
    assert "model" not in results["metrics"]["rmsd_recall_ang"]["methods"]


def test_figures_come_from_results_json_alone(shards: ShardSet, model: LibraryObjective, tmp_path: Path) -> None:
    assert command(shards, tmp_path / "e", "--limit", "1") == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["protocol"]["num_polymers"] == 1
    (tmp_path / "f").mkdir()
    names = figures.draw(results, tmp_path / "f")
    assert all((tmp_path / "f" / name).read_bytes() == (tmp_path / "e" / name).read_bytes() for name in names)


def test_dry_run_writes_nothing(shards: ShardSet, model: LibraryObjective, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(shards, tmp_path / "e", "--dry-run") == 0
    assert "3 polymers of test, 3 conformations" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert model.calls == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--split", "tset"], "split 'tset' must be one of train, val, test"),
        (["--split", "val"], "has no polymer in split 'val'; pass another --split or build with a larger fraction"),
        (["--num", "0"], "num 0 must be >= 1; change --num"),
        (["--limit", "0"], "limit 0 must be >= 1; change --limit"),
        (["--train-limit", "0"], "train_limit 0 must be >= 1; change --train-limit"),
        (["--seed", "-1"], "seed -1 must be >= 0; change --seed"),
        (["--device", "tpu"], "device 'tpu' must be auto, cpu or cuda"),
        (["--shards", "missing"], "missing holds no manifest.json"),
    ],
)
def test_bad_input_is_one_sentence(
    shards: ShardSet, model: LibraryObjective, changes: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(shards, tmp_path / "e", *changes) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file_and_a_missing_checkpoint(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert command(shards, tmp_path / "file") == 2
    assert "file is a file; name a folder" in capsys.readouterr().err
    assert command(shards, tmp_path / "e", "--checkpoint", str(tmp_path / "none")) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"split 'val'"):
        protocol.select(shards, protocol.Settings("val", 1, None, 0, 1, 1))
