"""Checkpoints made to do harm: nothing of them is executed, nothing outside their folder is read, and one sentence says why."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.errors import CheckpointError, InputError
from foundation.train import checkpoint, snapshot
from foundation.train.checkpoint import load_model
from foundation.train.loop import train
from tests.train.conftest import small

STEPS = ("train.num_steps=2", "train.checkpoint_every=2")
RAN = "the-code-of-the-file-has-run"


@pytest.fixture(scope="module")
def run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(small(*STEPS), out, shards)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


class Exploit:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / RAN

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def newest(run: Path) -> Path:
    return checkpoint.committed(run)[-1]


def sign(folder: Path) -> None:
    """The marker of whoever changed the files: every sum is right."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in snapshot.FILES}
    (folder / "COMMITTED").write_text(json.dumps(sums))


def header(text: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """A safetensors file by hand."""
    return struct.pack("<Q", len(text) if length is None else length) + text + body


ONE = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}'
TENSORS = {
    "a header as large as a disk": header(b"{}", 2**62),
    "a header of 100 MB that is not there": header(b"{}", 10**8),
    "a shape as large as a disk": header(ONE % (2**60, 4), body=b"1234"),
    "offsets beyond the file": header(ONE % (2**20, 2**22), body=b"1234"),
    "no header": b"",
    "no JSON": header(b"\xff" * 64),
    "a header that is nested a million times": header(b"[" * 1_000_000),
    "another dtype": header(b'{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}', body=b"1234"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_under_another_name_is_not_run(copy: Path, shards: str, name: str, how: str) -> None:
    path = newest(copy) / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(Exploit(copy)))
    else:
        torch.save({"weight": Exploit(copy)}, path)
    sign(newest(copy))
    longer = small(*STEPS, "train.num_steps=4")
    with pytest.raises(CheckpointError, match=rf"{name} is no safetensors file"):
        _ = load_model(copy) if name == "ema.safetensors" else train(longer, copy, shards)
    assert not (copy / RAN).exists()
    pickle.loads(pickle.dumps(Exploit(copy)))
    assert (copy / RAN).exists(), "the exploit is one"


@pytest.mark.parametrize("kind", TENSORS)
def test_tensor_files_with_impossible_headers_are_refused(copy: Path, kind: str) -> None:
    (newest(copy) / "ema.safetensors").write_bytes(TENSORS[kind])
    sign(newest(copy))
    with pytest.raises(CheckpointError, match=r"ema.safetensors is no safetensors file \(.+\); copy it again"):
        load_model(copy)


def test_tensors_of_other_names_and_shapes_are_refused_everywhere(copy: Path, shards: str) -> None:
    from safetensors.torch import save_file

    longer = small(*STEPS, "train.num_steps=4")
    for name, read in (("ema.safetensors", lambda: load_model(copy)), ("optimizer.safetensors", lambda: train(longer, copy, shards))):
        path = newest(copy) / name
        good = path.read_bytes()
        tensors = snapshot.load_tensors(path)
        first = min(tensors)
        for wrong in (
            {**tensors, first: torch.zeros(3)},
            {k: v for k, v in tensors.items() if k != first},
            {**tensors, "more": torch.zeros(1)},
        ):
            save_file(wrong, path)
            sign(newest(copy))
            with pytest.raises(CheckpointError, match=r"is a checkpoint of another model: .* has shape .* there and"):
                read()
        path.write_bytes(good)
        sign(newest(copy))


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "step is a word": ({"step": "2"}, r"step '2' must be an integer from 0 to"),
    "step is true": ({"step": True}, r"step True must be an integer"),
    "step is negative": ({"step": -1}, r"step -1 must be an integer"),
    "step is a float": ({"samples_seen": 1e300}, r"samples_seen 1e\+300 must be an integer"),
    "samples beyond counting": ({"samples_seen": 10**400}, r"samples_seen 10{119}\.\.\. must be an integer"),
    "more updates than steps": ({"updates": 3}, r"updates 3 must be at most step 2"),
    "config is a list": ({"config": ["a"] * 100}, r"config \['a', .*\.\.\. must be a dict"),
    "fingerprint is null": ({"fingerprint": None}, r"fingerprint None must be a str"),
    "written_by is a word": ({"written_by": "me"}, r"written_by 'me' must be a dict"),
    "a field too many": ({"__class__": "os.system"}, r"of another version of this program \(fields __class__\)"),
}


@pytest.mark.parametrize("kind", STATES)
def test_states_that_no_run_has_are_refused(copy: Path, shards: str, kind: str) -> None:
    changes, sentence = STATES[kind]
    state = json.loads((newest(copy) / "state.json").read_text())
    (newest(copy) / "state.json").write_text(json.dumps({**state, **changes}))
    sign(newest(copy))
    with pytest.raises(CheckpointError, match=sentence):
        load_model(copy)
    with pytest.raises(CheckpointError, match=sentence):
        train(small(*STEPS), copy, shards)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "a list where an object should be"),
        ("[" * 200_000, "cannot be read"),
        ('{"step": ' + "9" * 5000 + "}", "cannot be read"),
        (" " * (16 * 2**20 + 1), "16777217 bytes, at most 16777216 are read"),
    ],
    ids=["a list", "nested", "a number of 5000 digits", "too long"],
)
@pytest.mark.parametrize("name", ["state.json", "COMMITTED"])
def test_texts_that_are_no_state_or_marker_are_refused(copy: Path, name: str, text: str, sentence: str) -> None:
    (newest(copy) / name).write_text(text)
    if name == "state.json":
        sign(newest(copy))
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.*{sentence if sentence != 'cannot be read' else ''}"):
        load_model(copy)


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "model.safetensors/../../../secret", "more.bin", "COMMITTED"])
def test_a_marker_names_only_the_files_of_a_checkpoint(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("not to be read")
    sums = json.loads((newest(copy) / "COMMITTED").read_text())
    (newest(copy) / "COMMITTED").write_text(json.dumps({**sums, name: "0" * 64}))
    with pytest.raises(CheckpointError, match=r"COMMITTED is not the marker of a checkpoint \(found or missing: .*\); copy it again"):
        load_model(copy)
    del sums["model.safetensors"]
    (newest(copy) / "COMMITTED").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match=r"found or missing: \['model.safetensors'\]"):
        load_model(copy)
    (newest(copy) / "COMMITTED").write_text(json.dumps({name: 3 for name in snapshot.FILES}))
    with pytest.raises(CheckpointError, match="sums that are no sha256"):
        load_model(copy)


def test_a_marker_in_a_store_decides_no_path_either(run: Path, tmp_path: Path) -> None:
    from foundation.train.store import CheckpointStore

    there = Path(shutil.copytree(newest(run), tmp_path / "store" / "step-00000002"))
    (tmp_path / "secret").write_text("not to be copied")
    sums = json.loads((there / "COMMITTED").read_text())
    (there / "COMMITTED").write_text(json.dumps({**sums, "../../secret": hashlib.sha256(b"not to be copied").hexdigest()}))
    into = tmp_path / "a" / "b" / "c"
    with pytest.raises(CheckpointError, match="is not the marker of a checkpoint"):
        CheckpointStore(f"file://{tmp_path}/store").download("step-00000002", into)
    assert [path.name for path in into.iterdir()] == ["COMMITTED"]


def test_a_configuration_that_asks_for_code_is_refused(copy: Path) -> None:
    state = json.loads((newest(copy) / "state.json").read_text())
    for objective in ({"name": "os.system"}, {"name": "polyconfm", "__reduce__": "x"}, "!!python/object/apply:os.system", None):
        config = {**state["config"], "objective": objective}
        (newest(copy) / "state.json").write_text(json.dumps({**state, "config": config}))
        sign(newest(copy))
        with pytest.raises(InputError):
            load_model(copy)


def test_names_that_are_no_step_are_no_checkpoints(copy: Path) -> None:
    for name in ("step-99999999999999999999", "step-1", "step-00000003.damaged", "step-0000000x"):
        shutil.copytree(newest(copy), copy / "checkpoints" / name)
    assert [path.name for path in checkpoint.committed(copy)] == ["step-00000002"]
