"""Checkpoints in an object store over HTTP: copied six_steps, verified, pruned; a new machine goes on from there; outages stop nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from data_shards import store
from data_shards.console import run as run_command
from foundation import generate, pretrain
from foundation.errors import CheckpointError, ConfigError, InputError
from foundation.track.tracker import read_metrics
from foundation.train import checkpoint
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from foundation.train.store import CheckpointStore, Uploads
from tests.object_store import FAKE, Gateway
from tests.train.conftest import SIX, SMALL, losses, small

FILES = {"COMMITTED", "state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_SEC", 0.0)


def uploaded(address: str, *folders: Path) -> str:
    """Checkpoints put there by hand."""
    fs = fsspec.filesystem("s3")
    for folder in folders:
        for path in folder.iterdir():
            fs.put_file(str(path), f"{address}/{folder.name}/{path.name}")
    return address


def there(address: str) -> dict[str, set[str]]:
    """Files of every checkpoint of a store."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    found: dict[str, set[str]] = {}
    for path in fs.find(address):
        found.setdefault(path.split("/")[-2], set()).add(path.split("/")[-1])
    return found


def command(app: Callable[..., object], *words: object) -> int:
    """Run a command in this process as `python -m` would; its exit code."""
    try:
        run_command(lambda: app([str(word) for word in words], standalone_mode=False))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_new_machine_goes_on_from_the_store(shards: str, six_steps: Path, address: str, gateway: Gateway, tmp_path: Path) -> None:
    config = small(*SIX, f"train.checkpoint_store={address}")
    uploaded(address, six_steps / "checkpoints" / "step-00000004")
    gateway.requests.clear()
    result = train(config, tmp_path / "run", shards)
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000006"
    assert losses(tmp_path / "run") == losses(six_steps)[4:]
    assert there(address) == {"step-00000004": FILES, "step-00000006": FILES}
    for name in ("model", "ema", "optimizer"):
        file = f"step-00000006/{name}.safetensors"
        assert fsspec.filesystem("s3").cat_file(f"{address}/{file}") == (six_steps / "checkpoints" / file).read_bytes()
    puts = [path.rsplit("/", 2)[-2:] for method, path, _ in gateway.requests if method == "PUT"]
    assert puts[-1] == ["step-00000006", "COMMITTED"], "the marker comes last"
    # and once more from nothing, to the end
    again = train(config, tmp_path / "again", shards)
    assert (again.step, again.train_loss) == (6, None)
    # one checkpoint older goes when one more is there, but for those kept for ever
    longer = small(*SIX, f"train.checkpoint_store={address}", "train.num_steps=8", "train.keep_last=1", "train.keep_every=4")
    train(longer, tmp_path / "again", shards)
    assert there(address).keys() == {"step-00000004", "step-00000008"}


def test_the_newest_good_one_of_both_places_is_taken(
    shards: str, six_steps: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(*SIX, f"train.checkpoint_store={address}")
    four, six = (six_steps / "checkpoints" / name for name in ("step-00000004", "step-00000006"))
    out = tmp_path / "run"
    shutil.copytree(six_steps, out)
    uploaded(address, four, six)
    # newest: damaged in both places; the one before: damaged here, good there
    (out / "checkpoints" / "step-00000006" / "ema.safetensors").write_bytes(b"")
    fsspec.filesystem("s3").rm_file(f"{address}/step-00000006/model.safetensors")
    (out / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    folder = checkpoint.newest_good(out, CheckpointStore(address), lambda state: None)
    assert folder == out / "checkpoints" / "step-00000004"
    checkpoint.verify(folder)
    assert (folder / "state.json").read_bytes() == (four / "state.json").read_bytes()
    for text in (
        "step-00000006/ema.safetensors is missing or damaged",
        "step-00000006/model.safetensors is missing",
        "state.json is missing or",
    ):
        assert text in caplog.text
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert kept == {"latest", "step-00000004", "step-00000004.damaged", "step-00000006.damaged"}
    # what is newer here than there is used, and copied
    fresh = Path(shutil.copytree(six_steps, tmp_path / "fresh"))
    train(config, fresh, shards)
    assert there(address)["step-00000006"] == FILES
    assert losses(fresh) == losses(six_steps)


def test_a_store_of_another_run_or_out_of_reach_is_refused_before_anything_is_written(
    shards: str, six_steps: Path, address: str, gateway: Gateway, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    uploaded(address, six_steps / "checkpoints" / "step-00000006")
    words = ("--recipe", "polyconfm_tiny", "--shards", shards, "--out", tmp_path / "run", *SMALL, f"train.checkpoint_store={address}")
    assert command(pretrain.app, *words, "train.seed=3") == 2
    assert "train.seed is 3 but the run folder was made with 0" in capsys.readouterr().err
    assert command(pretrain.app, *words, "--dry-run") == 0
    assert "goes on after step-00000006" in capsys.readouterr().out
    assert command(pretrain.app, *words, "--overwrite") == 2
    assert re.search(
        r"--overwrite deletes .* but not s3://\S+, from which the run would go on after step-00000006", capsys.readouterr().err
    )
    with pytest.raises(CheckpointError, match=r"train\.seed is 3 but the run folder was made with 0"):
        train(small(*SIX, f"train.checkpoint_store={address}", "train.seed=3"), tmp_path / "run", shards)
    assert not (tmp_path / "run").exists()
    gateway.fault = lambda method, path: 503
    with pytest.raises(
        InputError, match=r"s3://\S+ cannot be used \(.*told to fail.*\); check the address, the network and the cred"
    ) as said:
        train(small(*SIX, f"train.checkpoint_store={address}"), tmp_path / "run", shards)
    assert not any(secret in str(said.value) for secret in FAKE.values())
    assert not (tmp_path / "run").exists()
    gateway.fault = lambda method, path: None
    with pytest.raises(InputError, match="there is none named 'no-such-bucket'"):
        train(small(*SIX, "train.checkpoint_store=s3://no-such-bucket/x"), tmp_path / "run", shards)


def test_an_outage_stops_nothing_and_what_is_missing_is_copied_later(
    shards: str, six_steps: Path, address: str, gateway: Gateway, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(*SIX, f"train.checkpoint_store={address}")
    gateway.fault = lambda method, path: 503 if method == "PUT" and "step-00000002" in path else None
    train(config, tmp_path / "run", shards)
    assert losses(tmp_path / "run") == losses(six_steps)
    assert re.search("step-00000002: the copy in the checkpoint store failed, it is tried again with the next one", caplog.text)
    assert {row["train/failed_checkpoints"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")} == {0}
    assert there(address)["step-00000006"] == FILES
    # where the last one cannot be copied the command says so, and the same command copies it
    gateway.fault = lambda method, path: 503 if method == "PUT" and "step-00000008" in path else None
    longer = small(*SIX, f"train.checkpoint_store={address}", "train.num_steps=8")
    with pytest.raises(
        CheckpointError, match=r"step-00000008 is complete but its copy in the checkpoint store is not: s3://.*told to fail"
    ):
        train(longer, tmp_path / "run", shards)
    assert "COMMITTED" not in there(address).get("step-00000008", set())
    gateway.fault = lambda method, path: None
    assert train(longer, tmp_path / "run", shards).step == 8
    assert there(address)["step-00000008"] == FILES
    assert not any(secret in caplog.text for secret in FAKE.values())


def test_a_copy_that_reads_back_otherwise_is_not_committed(
    six_steps: Path, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = CheckpointStore(address)
    folder = Path(shutil.copytree(six_steps / "checkpoints" / "step-00000006", tmp_path / "step-00000006"))
    (folder / "ema.safetensors").write_bytes(b"rotten since it was committed")
    with pytest.raises(
        CheckpointError, match=r"step-00000006/ema.safetensors reads back otherwise than written; check the store and the disk"
    ):
        store.upload(folder)
    assert store.names() == []
    store.upload(six_steps / "checkpoints" / "step-00000006")
    assert store.names() == ["step-00000006"]
    with pytest.raises(CheckpointError):
        store.upload(folder)
    assert store.names() == [], "while a checkpoint is replaced there is none of its name"


def test_a_model_is_read_from_the_store(six_steps: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uploaded(address, six_steps / "checkpoints" / "step-00000004", six_steps / "checkpoints" / "step-00000006")
    expected = load_model(six_steps)[0].state_dict()
    for place in (address, f"{address}/", f"{address}/step-00000006"):
        model, config = load_model(place)
        assert config == small(*SIX)
        assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    assert checkpoint.find(address) == f"{address}/step-00000006"
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{address}/step-00000006/model.safetensors", b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"step-00000006/model.safetensors is missing or damaged"):
        load_model(f"{address}/step-00000006")
    older = load_model(f"{six_steps}/checkpoints/step-00000004")[0].state_dict()
    assert all(torch.equal(older[name], tensor) for name, tensor in load_model(address)[0].state_dict().items())
    with pytest.raises(CheckpointError, match=r"s3://\S+/nothing holds no committed checkpoint"):
        load_model(f"{address}/nothing")
    words = ("--psmiles", "*CC*", "--num-units", 3, "--num", 1, "--out", tmp_path / "pe.sdf")
    assert command(generate.app, "--checkpoint", f"{address}/step-00000004", *words) == 0, capsys.readouterr().err
    assert (tmp_path / "pe.sdf").read_text().count("$$$$") == 1


def test_a_second_phase_starts_from_the_store(shards: str, six_steps: Path, address: str, tmp_path: Path) -> None:
    uploaded(address, six_steps / "checkpoints" / "step-00000006")
    words = ("--recipe", "polyconfm_tiny", "--shards", shards, "--out", tmp_path / "run", "--init-from", address, *SMALL)
    assert command(pretrain.app, *words, "train.num_steps=1", "objective.phase=orientation") == 0
    first, second = (load_model(place)[0].state_dict() for place in (six_steps, tmp_path / "run"))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items() if not name.startswith("orientation_head."))


def test_what_was_overtaken_is_left_out_but_not_what_is_kept_for_ever(tmp_path: Path) -> None:
    """While the first copy is on its way three more are committed: the last and the one kept for ever follow."""

    class Slow:
        def __init__(self) -> None:
            self.sent: list[str] = []

        def upload(self, folder: Path) -> None:
            if not self.sent:
                for step in (4, 6, 8):
                    uploads.offer(Path(f"step-{step:08d}"))
                assert uploads.holds() == {"step-00000002", "step-00000004", "step-00000008"}
            self.sent.append(folder.name)

        def retain(self, keep_last: int, keep_every: int) -> None:
            assert (keep_last, keep_every) == (1, 4)

    slow = Slow()
    uploads = Uploads(slow, 1, 4)  # type: ignore[arg-type]
    uploads.offer(Path("step-00000002"))
    assert uploads.finish() is None
    assert slow.sent == ["step-00000002", "step-00000004", "step-00000008"]
    assert uploads.holds() == set()


@pytest.mark.parametrize("broken", ["step-00000002", "step-00000004"])
def test_a_copy_that_fails_does_not_keep_the_newer_ones_waiting(broken: str) -> None:
    """One that a newer one overtook while its copy failed is given up; one kept for ever is tried again, behind the newer ones."""

    class Faulty:
        def __init__(self) -> None:
            self.tried: list[str] = []

        def upload(self, folder: Path) -> None:
            self.tried.append(folder.name)
            if folder.name == broken:
                if self.tried.count(broken) == 1:
                    uploads.offer(Path("step-00000006"))
                raise CheckpointError("told to fail")

        def retain(self, keep_last: int, keep_every: int) -> None:
            if self.tried[-1] == "step-00000006":
                raise CheckpointError("the old ones cannot be removed")

    faulty = Faulty()
    uploads = Uploads(faulty, 1, 4)  # type: ignore[arg-type]
    uploads.offer(Path(broken))
    if broken == "step-00000002":
        assert uploads.finish() is None
        assert faulty.tried == [broken, "step-00000006"]
        assert uploads.holds() == set()
    else:
        assert uploads.finish() is not None
        assert faulty.tried == [broken, "step-00000006", broken]
        assert uploads.holds() == {broken}


def test_another_disk_serves_as_a_store(shards: str, six_steps: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/other-disk"
    train(small(*SIX, f"train.checkpoint_store={address}"), tmp_path / "run", shards)
    assert CheckpointStore(address).names() == ["step-00000004", "step-00000006"]
    shutil.rmtree(tmp_path / "run")
    assert train(small(*SIX, f"train.checkpoint_store={address}"), tmp_path / "run", shards).train_loss is None
    with pytest.raises(ConfigError, match=r"checkpoint_store 'backup' is no address; write s3://bucket/prefix, or file:///folder"):
        small("train.checkpoint_store=backup")
