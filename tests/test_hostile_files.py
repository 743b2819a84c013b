"""No file that is read can run code, reach outside or eat the machine: configurations, run folders and shards made by an enemy.

Each is refused in one sentence. Payloads would leave a canary; there is none afterwards. Checkpoints: tests/train; samples and tars
that `verify` reads: tests/data_shards/test_malformed.py.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.plan import make_plan
from cluster.spec import load_spec
from data_shards.errors import InputError, ShardError
from data_shards.manifest import CHECKSUM, MANIFEST_NAME
from data_shards.reader import open_shards
from foundation.config import RunConfig, apply_overrides, parse_config
from foundation.errors import CheckpointError, ConfigError
from foundation.recipes import get_recipe
from foundation.track.tracker import read_metrics
from foundation.train.loop import check_run_folder, describe_run
from tests.train.conftest import command, environment, shards  # noqa: F401 - a fixture
from tests.train.test_mirror import HEADER, RUN_ID, finish, held, in_file, start

TINY = get_recipe("polyconfm_tiny")
JOB = "kind: pretrain\nshards: x\nout: y\n"


class Canary:
    """What unpickling an instance would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must not exist at the end; it lies where the test says nothing about it."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refused(work: Callable[[], object], sentence: str, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind) as error:
        work()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1200


# ---------------------------------------------------------------------------------------------------------------- cluster YAML


def laughs() -> str:
    """Ten lines that stand for a thousand million words."""
    lines = ["a: &a [ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 8)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join(f"  {line}" for line in lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("overrides: !!python/object/apply:os.system ['touch CANARY']", "could not determine a constructor for the tag"),
        ("overrides: !!python/object/new:subprocess.Popen [['touch', 'CANARY']]", "could not determine a constructor for the tag"),
        ("overrides: {train.seed: !!python/name:os.system }", "could not determine a constructor for the tag"),
        ("overrides: {train.seed: !!python/module:antigravity }", "could not determine a constructor for the tag"),
        (f"overrides:\n{laughs()}", "an alias such as *name is not allowed, write its value"),
        ("overrides: &a {train.seed: *a}", "an alias such as *name is not allowed"),
        ("overrides: " + "[" * 5_000, "nested too deeply"),
        ("overrides: " + "{a: " * 3_000, "nested too deeply"),
        ("overrides: {train.seed: " + "9" * 6_000 + "}", "is not YAML (Exceeds the limit"),
        ("overrides: {train.num_steps: 1" + "0" * 300 + "}", "train.num_steps 1000"),
        ("overrides: {train.lr: 1e999}", "train.lr inf must be a finite number"),
        ("overrides: {train.seed: 2024-13-45}", "train.seed '2024-13-45' must be a valid integer"),
        ("overrides: {train.seed: !!binary aGVsbG8=}", "could not determine a constructor for the tag"),
        ("overrides: {train.seed: !!set {a, b}}", "could not determine a constructor for the tag"),
        ("overrides: {objective.name: ../../evil}", "name '../../evil' must be one of polyconfm"),
        ("overrides: {train.__class__: 1}", "unknown key 'train.__class__'"),
        ("recipe: ../../../etc/passwd", "unknown recipe '../../../etc/passwd'"),
        ("resources: {cpus_per_worker: .nan}", "resources.cpus_per_worker nan must be greater than 0"),
        ("resources: {num_workers: 1" + "0" * 300 + "}", "the job needs 1000"),
    ],
    ids=lambda value: value[:30].replace("\n", " "),
)
def test_a_hostile_job_file(tmp_path: Path, canary: Path, text: str, sentence: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB + text.replace("CANARY", str(canary)) + "\n")
    refused(lambda: make_plan(load_spec(file, []), {"CPU": 4}), sentence)


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['touch CANARY']", "[" * 100_000, "9" * 6_000, "*a", "&a [*a]", "${HOME}", "$(touch CANARY)"]
)
def test_a_hostile_assignment(tmp_path: Path, canary: Path, value: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    assignment = "train.num_steps=" + value.replace("CANARY", str(canary))
    refused(lambda: make_plan(load_spec(file, [assignment]), {"CPU": 4}), "train.num_steps ")


# ----------------------------------------------------------------------------------------------------- recipes and run folders


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("__class__=1", "unknown key '__class__'"),
        ("objective.__class__.__init__=1", "unknown key 'objective.__class__.__init__'"),
        ("deepspeed.__class__.x=1", "unknown key 'deepspeed.__class__.x'"),
        ("deepspeed.a" + ".b" * 5_000 + "=1", "unknown key 'deepspeed.a.b.b"),
        ("train.model_config=1", "unknown key 'train.model_config'"),
        ("recipe=../../etc/passwd", "recipe '../../etc/passwd' String should match pattern"),
        ("objective.name=os.system", "name 'os.system' must be one of polyconfm"),
        ("objective.name=foundation.objectives.polyconfm", "must be one of polyconfm"),
        ('objective.name=["polyconfm"]', "name ['polyconfm'] must be one of polyconfm"),
        ("train.seed=1" + "0" * 30, "train.seed 1000000000000000000000000000000 must be less than 9223372036854775808"),
        ("train.num_steps=" + "9" * 6_000, "train.num_steps '999999"),
        ("train.num_steps=" + "[" * 100_000, "train.num_steps '[[[[[["),
        ("objective.trunk_layers=100000000000", "objective.trunk_layers 100000000000 must be less than or equal to 1024"),
        ("data.num_workers=1000000000", "data.num_workers 1000000000 must be less than or equal to 1024"),
        ("deepspeed.bf16=3", "deepspeed.bf16 3 must be a group of keys"),
    ],
    ids=lambda value: value[:40],
)
def test_a_hostile_override(override: str, sentence: str) -> None:
    refused(lambda: apply_overrides(TINY, [override]), sentence, ConfigError)


@pytest.mark.parametrize("name", ["os", "os.system", "foundation.train.loop", "../../evil", ["polyconfm"], {"a": 1}, None, 7, "x" * 10**6])
def test_a_configuration_never_names_a_module(name: object) -> None:
    """What names the code of a model is a key of OBJECTIVES and nothing else; nothing is imported for any other."""
    good = TINY.model_dump(mode="json")
    before = set(sys.modules)
    refused(lambda: parse_config({**good, "objective": {**good["objective"], "name": name}}), "must be one of polyconfm", ConfigError)
    assert {module for module in set(sys.modules) - before if "evil" in module} == set()


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "7", "{}", '{"objective": "os"}', '{"objective": [1], "fingerprint": [2]}', "\0", "9" * 6_000]
)
def test_a_hostile_run_folder_is_refused(tmp_path: Path, name: str, text: str) -> None:
    good = {"config.json": TINY.model_dump_json(), "run.json": json.dumps({"run_id": RUN_ID, "fingerprint": "f"})}
    for file, content in {**good, name: text}.items():
        (tmp_path / file).write_text(content)
    refused(lambda: check_run_folder(tmp_path, TINY, "f"), "; pass another --out", CheckpointError)


@pytest.mark.parametrize("run_id", ["../../../evil", "x" * 5_000, ["0123abcd"], None, "0123abcd\n"])
def test_a_hostile_run_id_is_replaced(tmp_path: Path, run_id: object, shards: str) -> None:  # noqa: F811
    (tmp_path / "run.json").write_text(json.dumps({"run_id": run_id, "fingerprint": "f"}))
    describe_run(tmp_path, TINY, open_shards(shards), 1, torch.device("cpu"), None)
    found = json.loads((tmp_path / "run.json").read_text())["run_id"]
    assert len(found) == 8
    assert set(found) <= set("0123456789abcdef")


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """An address on this machine, and what anybody says there."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    peer = server.accept()[0]
                except OSError:
                    return
                with peer:
                    peer.settimeout(5)
                    heard.append(peer.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", heard


def test_wandb_settings_in_a_run_folder_are_not_followed(tmp_path: Path, canary: Path) -> None:
    """They could send the user's key to a server of the enemy, and switch an offline run online. What is no row of metrics is no metric."""
    out = tmp_path / "run"
    (out / "wandb").mkdir(parents=True)
    (out / "samples").mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    with listening() as (url, heard):
        settings = f"[default]\nbase_url = {url}\nmode = online\nprogram = {canary}\nstart_method = fork\nroot_dir = {tmp_path}/elsewhere\n"
        for folder in (out / "wandb", out / ".wandb", out):
            folder.mkdir(exist_ok=True)
            (folder / "settings").write_text(settings)
        (out / "samples" / "step-00000002.sdf").symlink_to(secret)
        stranger = out / "wandb" / f"offline-run-20000101_000000-{RUN_ID}"
        stranger.mkdir()
        (stranger / f"run-{RUN_ID}.wandb").write_bytes(HEADER + b"\xff" * 40_000)
        (out / "wandb" / ".mirrored").write_text("9" * 5_000)
        (out / "metrics.jsonl").write_text(
            '{"step": 1, "train/loss": {"_type": "artifact-file", "path": "/etc/passwd"}}\n[7]\n' + "[" * 10**5
        )
        (out / "checkpoint.txt").write_text("1")
        assert finish(start(out, steps=3)) == ""
        assert heard == []
    assert not (tmp_path / "elsewhere").exists()
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2, 3]
    assert [step for step, _ in held(out)] == [1, 2, 3]
    assert [{k: v for k, v in values.items() if "/" in k} for _, values in held(out)][1:] == [v for _, v in in_file(out)[1:]]
    assert all("passwd" not in json.dumps(values) and "sample" not in values for _, values in held(out))
    assert not [path for path in out.rglob("*") if path.is_file() and not path.is_symlink() and b"private" in path.read_bytes()]


# ------------------------------------------------------------------------------------------------------------------------ shards


def reader(shards_folder: Path) -> Callable[[], object]:
    """What training reads: the manifest, then every sample of a split."""

    def read() -> None:
        opened = open_shards(shards_folder)
        for entry in opened.samples("train"):
            opened.read(entry)

    return read


@pytest.fixture
def copied(tmp_path: Path, shards: str) -> Path:  # noqa: F811
    """A set of shards to spoil."""
    import shutil

    folder = tmp_path / "copied"
    shutil.copytree(shards, folder)
    reader(folder)()
    return folder


def spoil(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as somebody would who can also make its checksum go away."""
    data = json.loads((folder / MANIFEST_NAME).read_text())
    data.pop(CHECKSUM, None)
    change(data)
    (folder / MANIFEST_NAME).write_text(json.dumps(data))


def replace_first(folder: Path, members: Callable[[str], list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """Put other members where the first sample of the first shard lies, with a manifest that agrees."""
    data = json.loads((folder / MANIFEST_NAME).read_text())
    entry = data["splits"]["train"][0]
    sample = entry["samples"][0]
    buffer = io.BytesIO()
    for info, content in members(sample["key"]):
        buffer.write(info.tobuf(tarfile.GNU_FORMAT))
        buffer.write(content + bytes(-len(content) % 512))
    blob = buffer.getvalue() + bytes(1024)
    (folder / entry["name"]).write_bytes(blob)

    def agree(manifest: dict[str, Any]) -> None:
        first = {**sample, "offset": 0, "length": len(blob)}
        manifest["splits"]["train"] = [{**entry, "samples": [first], "bytes": len(blob), "sha256": sha256(blob).hexdigest()}]

    spoil(folder, agree)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pickled(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    assert str(canary).encode() in buffer.getvalue()
    return buffer.getvalue()


def zipped(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, elements=np.array([Canary(canary)], dtype=object))
    return buffer.getvalue()


def good_members(folder: Path) -> dict[str, bytes]:
    """The members of the first sample."""
    opened = open_shards(folder)
    entry = opened.samples("train")[0]
    blob = (folder / entry.shard).read_bytes()[entry.offset : entry.offset + entry.length]
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        return {info.name.removeprefix(entry.key + "."): tar.extractfile(info).read() for info in tar.getmembers()}  # type: ignore[union-attr]


def test_a_member_that_is_a_pickle_is_refused(copied: Path, canary: Path) -> None:
    good = good_members(copied)
    for name, content in (("heavy.npy", pickled(canary)), ("hydrogen.npy", pickled(canary)), ("topology.npz", zipped(canary))):
        replace_first(copied, lambda key, name=name, content=content: [member(f"{key}.{k}", v) for k, v in {**good, name: content}.items()])
        refused(reader(copied), "is torn (ValueError: an array of object", ShardError)


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        (lambda key: [member(f"{key}.json", b"", tarfile.SYMTYPE, linkname="/etc/passwd")], "lacks json"),
        (lambda key: [member(f"{key}.json", b"", tarfile.LNKTYPE, linkname="/etc/passwd")], "lacks json"),
        (lambda key: [member(f"{key}.json", b"", tarfile.CHRTYPE)], "lacks json"),
        (lambda key: [member("../../../outside.json", b"{}")], "../../../outside.json lies where sample"),
        (lambda key: [member("/tmp/outside.json", b"{}")], "/tmp/outside.json lies where sample"),
    ],
    ids=["symlink", "hard link", "device", "climbs", "absolute"],
)
def test_a_hostile_member_is_refused(copied: Path, spoilt: Callable[[str], list[tuple[tarfile.TarInfo, bytes]]], sentence: str) -> None:
    replace_first(copied, spoilt)
    refused(reader(copied), sentence, ShardError)
    assert not Path("/tmp/outside.json").exists()


def test_a_sparse_member_that_would_fill_the_memory_is_refused(copied: Path) -> None:
    """512 bytes of header that stand for eight terabytes of zeros."""

    def sparse(key: str) -> list[tuple[tarfile.TarInfo, bytes]]:
        info = tarfile.TarInfo(f"{key}.json")
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # one piece of nothing at the beginning
        header[483:495] = b"%011o\0" % (8**11 - 1)  # the size when it is unpacked
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)

        class Raw(tarfile.TarInfo):
            def tobuf(self, *arguments: Any) -> bytes:  # type: ignore[override]
                return bytes(header)

        assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").isreg()
        return [(Raw(), b"")]

    replace_first(copied, sparse)
    refused(reader(copied), "lacks json", ShardError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", -1),
        ("offset", "0"),
        ("length", 10**15),
        ("length", 10**400),
        ("num_units", "six"),
        ("num_units", -3),
        ("atoms_per_unit", None),
        ("num_conformations", [1]),
        ("key", ["k"]),
    ],
)
def test_a_hostile_sample_of_a_manifest_is_refused(copied: Path, field: str, value: object) -> None:
    spoil(copied, lambda data: data["splits"]["train"][0]["samples"][0].update({field: value}))
    refused(reader(copied), "rebuild the shards with data_shards.build", ShardError)


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/etc/passwd", "..", "", "train-000000.tar/../../x", 7, None, ["train-000000.tar"]]
)
def test_a_manifest_that_points_elsewhere_is_refused(copied: Path, name: object) -> None:
    spoil(copied, lambda data: data["splits"]["train"][0].update(name=name))
    refused(reader(copied), "", ShardError)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"schema_version": ' + "9" * 6_000 + "}", "\0"])
def test_a_manifest_that_is_none_is_refused(copied: Path, text: str) -> None:
    (copied / MANIFEST_NAME).write_text(text)
    refused(reader(copied), "", ShardError)


def test_training_says_it_in_one_line(copied: Path, canary: Path, tmp_path: Path) -> None:
    """The command itself, on a set of which every sample is a pickle."""
    good = good_members(copied)
    replace_first(copied, lambda key: [member(f"{key}.{k}", v) for k, v in {**good, "heavy.npy": pickled(canary)}.items()])
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, *command(str(copied), out)], capture_output=True, text=True, check=False, env=environment(), timeout=280
    )
    assert done.returncode == 2, done.stderr
    assert "an array of object" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_good_configuration_is_not_refused(tmp_path: Path) -> None:
    """The bounds above leave room for every recipe, and for ordinary YAML."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB + "out: runs/2024-12-15\noverrides: {train.num_steps: 1_000_000, train.betas: [0.9, 0.99]}\n")
    plan = make_plan(load_spec(file, ["out=2024-12-15", "train.lr=1e-4"]), {"CPU": 4})
    assert plan.out.endswith("2024-12-15")
    assert plan.config.train.num_steps == 1_000_000
    assert isinstance(plan.config, RunConfig)
