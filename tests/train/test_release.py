"""A released checkpoint: the averaged weights to the last bit of bf16, no word of where they were made, nothing run, nothing tampered."""

from __future__ import annotations

import fnmatch
import json
import math
import pickle
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.console import run as run_program
from data_shards.reader import open_shards
from foundation import release
from foundation.errors import CheckpointError, ConfigError
from foundation.sampling.provenance import weights_fingerprint
from foundation.train import checkpoint, loop, released, snapshot
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from tests.train.conftest import small

ROOT = Path(__file__).parents[2]
STEPS = ("train.num_steps=2", "train.checkpoint_every=1", "train.validate_every=2", "track.project=a-secret-project")


@pytest.fixture(scope="module")
def run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps whose configuration names places that nobody else should read."""
    out = tmp_path_factory.mktemp("run") / "run"
    store = tmp_path_factory.mktemp("store")
    train(small(*STEPS, f"train.checkpoint_store=file://{store}/a-secret-place"), out, shards)
    return out


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "tiny"
    assert command("--checkpoint", run, "--out", out, "--hardware", "one core") == 0
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def command(*words: object) -> int:
    """Exit code of the command."""
    try:
        run_program(lambda: release.app([str(word) for word in words], standalone_mode=False))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def nearest_bf16(x: torch.Tensor) -> torch.Tensor:
    """The two neighbours whose lower 16 bits are zero, the nearer one, ties to even: by integers, without torch's conversion."""
    bits = x.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    low, rest = bits >> 16, bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (low % 2 == 1))
    whole = ((low + up.long()) << 16) & 0xFFFFFFFF
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32).view(torch.float32)


def strings(value: Any) -> Iterator[str]:
    """Every key and text of nested JSON."""
    if isinstance(value, dict):
        yield from value
        yield from (text for item in value.values() for text in strings(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in strings(item))
    elif isinstance(value, str):
        yield value


def test_the_weights_are_the_average_rounded_once_and_used_in_fp32(run: Path, made: Path) -> None:
    average, config = load_model(run)
    model, back = load_model(made)
    assert not model.training
    assert back.objective == config.objective
    wanted, found = average.state_dict(), model.state_dict()
    assert wanted.keys() == found.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], nearest_bf16(tensor)) for name, tensor in wanted.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in wanted.items())
    stored = snapshot.load_tensors(made / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    last, _ = load_model(run, ema=False)
    assert any(not torch.equal(found[name], nearest_bf16(tensor)) for name, tensor in last.state_dict().items())


def test_a_table_that_is_not_trained_is_not_rounded() -> None:
    module = torch.nn.Linear(3, 3)
    module.register_buffer("frequencies", torch.tensor([1.2345678, 1e-8]))
    module.register_buffer("count", torch.tensor(2**40 + 1))
    made = released.rounded(module.state_dict(), module)
    assert made["weight"].dtype == made["bias"].dtype == torch.bfloat16
    assert torch.equal(made["frequencies"], module.frequencies)
    assert torch.equal(made["count"], module.count)


def test_it_says_how_it_was_made_and_not_where(run: Path, made: Path, shards: str) -> None:
    assert sorted(path.name for path in made.iterdir()) == ["card.md", "config.json", "curve.png", "model.safetensors", "polymers.json"]
    polymers = json.loads((made / "polymers.json").read_text())
    assert polymers == {split: sorted({entry.group for entry in open_shards(shards).samples(split)}) for split in ("train", "val")}
    facts = json.loads((made / "config.json").read_text())
    state = checkpoint.read_state(checkpoint.committed(run)[-1])
    assert (facts["step"], facts["samples_seen"], facts["fingerprint"]) == (2, state.samples_seen, open_shards(shards).fingerprint)
    assert facts["sha256"] == snapshot.sha256(made / "model.safetensors")
    assert [text for text in strings(facts) if "/" in text or "\\" in text or "secret" in text] == []
    card = (made / "card.md").read_text()
    assert "secret" not in card
    assert str(run.parent) not in card
    assert shards not in card
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"fingerprint `{open_shards(shards).fingerprint}`" in card
    assert f"| steps | 2, {state.samples_seen} chains seen |" in card
    assert f"| seconds | {sum(row['train/step_sec'] for row in rows):.0f} of training steps;" in card
    assert "| hardware | one core; ranks: 1, threads of each: 1 |" in card
    assert f"training {rows[0]['train/loss']:.4g} at the first step, {rows[1]['train/loss']:.4g} at the last" in card
    assert "It was not evaluated when this page was written." in card
    assert "Apache-2.0" in card
    assert (made / "curve.png").read_bytes().startswith(b"\x89PNG")
    mode = (made / "model.safetensors").stat().st_mode
    assert mode == (made / "config.json").stat().st_mode


def test_the_command_of_the_card_makes_the_same_configuration(run: Path, made: Path) -> None:
    import shlex

    from foundation.config import apply_overrides, parse_config
    from foundation.evaluation.card import command_of
    from foundation.recipes import get_recipe

    line = re.search(r"\| command \| `(.*)` \|", (made / "card.md").read_text())
    assert line is not None
    words = shlex.split(line[1])
    assert words[:9] == ["python", "-m", "foundation.pretrain", "--recipe", "polyconfm_tiny", "--shards", "SHARDS", "--out", "RUN"]
    config = parse_config(json.loads((made / "config.json").read_text())["config"])
    assert apply_overrides(get_recipe("polyconfm_tiny"), words[9:]) == config
    assert len(words) > 15
    assert "--init-from FIRST_RUN" in command_of(config, second_phase=True)


def test_a_run_records_hardware_and_where_its_weights_came_from(made: Path, shards: str, tmp_path: Path) -> None:
    out = tmp_path / "second"
    train(small("train.num_steps=1"), out, shards, init_from=made)
    facts = json.loads((out / "run.json").read_text())
    assert facts["init_from"] == str(made)
    assert "cores" in facts["hardware"]
    train(small("train.num_steps=2"), out, shards)
    assert json.loads((out / "run.json").read_text())["init_from"] == str(made)
    assert command("--checkpoint", out, "--out", tmp_path / "tiny") == 0
    card = (tmp_path / "tiny" / "card.md").read_text()
    assert "--init-from FIRST_RUN" in card
    assert f"| hardware | {facts['hardware']};" in card


def test_a_second_phase_starts_from_the_released_weights(made: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}
    engine = loop.Engine

    def watched(objective: torch.nn.Module, *rest: Any) -> Any:
        seen.update({name: tensor.clone() for name, tensor in objective.state_dict().items()})
        return engine(objective, *rest)

    monkeypatch.setattr(loop, "Engine", watched)
    train(small("train.num_steps=1"), tmp_path / "run", shards, init_from=checkpoint.find(made))
    model, _ = load_model(made)
    assert all(torch.equal(seen[name], tensor) for name, tensor in model.state_dict().items())


def test_small_is_what_the_package_holds(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "WEIGHTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    for use in (load_model, checkpoint.find):
        with pytest.raises(CheckpointError, match=r"checkpoint 'small' is not in this installation \(.*small holds no config.json\); pass"):
            use("small")
    shutil.copytree(made, tmp_path / "small")
    model, _ = load_model("small")
    assert weights_fingerprint(model) == weights_fingerprint(load_model(made)[0])
    assert checkpoint.find("small") == tmp_path / "small"
    with pytest.raises(CheckpointError, match="holds the averaged weights alone; pass a run folder"):
        load_model("small", ema=False)


def test_the_package_carries_its_weights() -> None:
    assert released.WEIGHTS == ROOT / "foundation" / "weights"
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["foundation"]
    for name in ("model.safetensors", "config.json", "card.md", "curve.png", "results.json"):
        assert any(fnmatch.fnmatch(f"weights/small/{name}", pattern) for pattern in data), name
    assert "*.safetensors binary" in (ROOT / ".gitattributes").read_text().splitlines()
    if (released.WEIGHTS / "small").is_dir():
        load_model("small")
        assert (released.WEIGHTS / "small" / "model.safetensors").stat().st_size <= released.LARGEST_BYTES


def test_weights_that_were_touched_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors is not as it was released \(sha256 [0-9a-f]{12}, config.json names"):
        load_model(copy)
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="is not as it was released"):
        load_model(copy)


class Exploit:
    """Unpickled, it leaves a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def sign(folder: Path, **changes: Any) -> None:
    """config.json of whoever changed the files: the sum is right."""
    facts = json.loads((folder / "config.json").read_text())
    sha256 = snapshot.sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**facts, "sha256": sha256, **changes}))


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_in_their_place_is_not_run(copy: Path, tmp_path: Path, how: str) -> None:
    path, left = copy / "model.safetensors", tmp_path / "it-ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Exploit(left)))
    else:
        torch.save({"weight": Exploit(left)}, path)
    sign(copy)
    with pytest.raises(CheckpointError, match=r"model.safetensors is no safetensors file"):
        load_model(copy)
    assert not left.exists()


def test_files_that_do_not_fit_are_refused(copy: Path) -> None:
    from safetensors.torch import save_file

    facts = json.loads((copy / "config.json").read_text())
    objective = {**facts["config"]["objective"], "width": 64}
    sign(copy, config={**facts["config"], "objective": objective})
    with pytest.raises(CheckpointError, match=r"is a checkpoint of another model: .* has shape .* there and .* here"):
        load_model(copy)
    for changes, sentence in (
        ({"format": 2}, r"of another version of this program \(format 2, this one reads 1\)"),
        ({"more": 1}, "of another version of this program"),
        ({"sha256": "../../etc/passwd"}, "names no sha256 of the weights"),
    ):
        (copy / "config.json").write_text(json.dumps({**facts, **changes}))
        with pytest.raises(CheckpointError, match=sentence):
            load_model(copy)
    for text in ("[]", "{", "[" * 100_000):
        (copy / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
            load_model(copy)
    (copy / "config.json").write_text(
        json.dumps({key: value for key, value in facts.items() if key != "config"})
    )  # a generator of finetune.design
    with pytest.raises(CheckpointError, match=r"holds no pretrained model, its config.json has no 'config'; pass small or a folder of"):
        load_model(copy)
    (copy / "config.json").write_text(json.dumps({**facts, "config": {**facts["config"], "objective": {"name": "os.system"}}}))
    with pytest.raises(ConfigError, match=r"os.system"):
        load_model(copy)
    save_file({"a": torch.zeros(1)}, copy / "model.safetensors")
    (copy / "config.json").write_text(json.dumps(facts))
    sign(copy)
    with pytest.raises(CheckpointError, match="is a checkpoint of another model"):
        load_model(copy)


def test_nothing_is_overwritten_or_written_for_nothing(
    run: Path, made: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert command("--checkpoint", run, "--out", copy) == 2
    assert "holds a released checkpoint; pass --overwrite" in capsys.readouterr().err
    (copy / "results.json").write_text("of an earlier release")
    newest = checkpoint.committed(run)[-1]
    assert command("--checkpoint", newest, "--out", copy, "--overwrite", "--hardware", "one core") == 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert command("--checkpoint", run, "--out", run, "--overwrite") == 2
    assert "exists and is no released checkpoint" in capsys.readouterr().err
    assert command("--checkpoint", made, "--out", tmp_path / "new") == 2
    assert "belongs to no folder with run.json; pass a run folder" in capsys.readouterr().err
    assert command("--checkpoint", run, "--out", tmp_path / "new", "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    monkeypatch.setattr(released, "LARGEST_BYTES", 100_000)
    assert command("--checkpoint", run, "--out", tmp_path / "new") == 2
    assert re.search(r"the weights take 0\.\d MB in bf16, at most 0.1 MB are released; release a smaller model", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def results(weights: str, fingerprint: str, *, parts: bool) -> dict[str, Any]:
    """As foundation.evaluate writes them, for one metric."""
    own = {"value": 0.1234, "low": 0.1, "high": 0.2, "num_polymers": 3}
    other = {"value": 0.5, "low": 0.4, "high": 0.6, "num_polymers": 3}
    part = {
        "protocol": {"num_polymers": 3, "interval": "95% percentile bootstrap"},
        "attempts": {name: {"attempted": 12, "failed": 1, "reasons": {"gave up": 1}} for name in ("model", "random links")},
        "metrics": {
            "jsd": {
                "group": "distribution",
                "unit": "bit",
                "protocol": "a|b",
                "better": "low",
                "methods": {"model": own, "random links": other},
            }
        },
        "polymers": [{"psmiles": "*CC*"}],
    }
    whole = {
        "checkpoint": "/home/somebody/runs/x", "command": ["/home/somebody/evaluate"], "weights_sha256": weights, "commit": "abc",
        "shards": {"path": "/home/somebody/shards", "fingerprint": fingerprint}, "settings": {"split": "test", "num": 4},
        "distributions": {}, **part,
    }  # fmt: skip
    return {**whole, "parts": {"unit": part, "oligomer": part}} if parts else whole


@pytest.mark.parametrize("which", ["average", "released"])
def test_the_card_shows_metrics_beside_the_baselines(
    run: Path, made: Path, shards: str, tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = weights_fingerprint(load_model(run if which == "average" else made)[0])
    path, out = tmp_path / "results.json", tmp_path / "tiny"
    path.write_text(json.dumps(results(measured, open_shards(shards).fingerprint, parts=which == "released")))
    assert command("--checkpoint", run, "--out", out, "--evaluation", path) == 0
    card = (out / "card.md").read_text()
    assert "| jsd | bit | 0.123 [0.100, 0.200] | 0.500 [0.400, 0.600] | 3 |" in card
    assert "| conformations failed |  | 1 | 1 |  |" in card
    assert ("measured before the weights were rounded to bf16" in card) == (which == "average")
    assert ("measured with these very weights" in card) == (which == "released")
    assert ("### Oligomers" in card) == (which == "released")
    assert "which are not those it was trained on" not in card
    stored = json.loads((out / "results.json").read_text())
    assert "somebody" not in (out / "results.json").read_text() + card
    assert stored["metrics"]["jsd"]["methods"]["model"]["value"] == 0.1234
    assert ("parts" in stored) == (which == "released")
    path.write_text(json.dumps(results("0" * 64, "f" * 64, parts=False)))
    assert command("--checkpoint", run, "--out", tmp_path / "other", "--evaluation", path) == 2
    assert "measures other weights (sha256 000000000000)" in capsys.readouterr().err
    path.write_text("{}")
    assert command("--checkpoint", run, "--out", tmp_path / "other", "--evaluation", path) == 2
    assert "is no results.json of foundation.evaluate" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_steps_that_are_not_in_the_file_are_named(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text(lines[1] + "\n")
    assert command("--checkpoint", copy, "--out", tmp_path / "tiny") == 0
    card = (tmp_path / "tiny" / "card.md").read_text()
    assert "(steps that metrics.jsonl lacks and that are not counted: 1)" in card
    assert math.isfinite(json.loads(lines[1])["train/step_sec"])
