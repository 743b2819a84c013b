"""Shards in an object store: a real HTTP endpoint on loopback, with a gateway before it that counts requests and fails when told to."""

from __future__ import annotations

import http.client
import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest

from data_shards import build, show, store, verify
from data_shards.console import run
from data_shards.errors import InputError, ShardError
from data_shards.manifest import MANIFEST_NAME
from data_shards.mixture import Mixture, open_mixture
from data_shards.reader import open_shards
from tests.object_store import FAKE, PASSWORD, Gateway, reconnect

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
POLYMERS = ("*CC*", "*CCO*", "*CC(*)Cl", "*CCCO*")  # small: what is tested is their way to the store
SIZE = ("--num-units", "2", "--conformers", "1", "--shard-size", "1", "--val-fraction", "0.25", "--workers", "0")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good polymers and a bad one."""
    path = tmp_path_factory.mktemp("table") / "polymers.csv"
    path.write_text("\n".join(["psmiles", *POLYMERS, "*CC"]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """Shards of that table in a folder."""
    out = tmp_path_factory.mktemp("built") / "shards"
    assert command(build.app, "--input", table, "--out", out, *SIZE) == 0
    return out


@pytest.fixture
def uploaded(folder: Path, address: str, gateway: Gateway) -> str:
    """The same shards in the store."""
    for path in folder.iterdir():
        fsspec.filesystem("s3").put_file(str(path), f"{address}/{path.name}")
    gateway.requests.clear()
    return address


def command(app: Make, *words: object) -> int:
    """Run a command in this process as `python -m` would; its exit code."""
    try:
        run(lambda: app([str(word) for word in words], standalone_mode=False))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files(folder: Path) -> dict[str, bytes]:
    """Everything but build.json, which holds seconds."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "build.json"}


def objects(address: str) -> dict[str, bytes]:
    """Likewise of a prefix, build.json checked to be there."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    found = {path.rsplit("/", 1)[-1]: fs.cat_file(path) for path in fs.find(address)}
    assert found.pop("build.json")
    return found


def scratch() -> list[Path]:
    """What is staged in the working directory."""
    return [path for path in store.SCRATCH.glob("*/.staging/**/*") if path.is_file()]


# the same bytes


def test_an_object_store_gets_the_bytes_of_a_folder(
    folder: Path, table: Path, address: str, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--input", table, "--out", address, *SIZE)
    assert command(build.app, *words) == 0
    assert objects(address) == files(folder)
    assert gateway.files("PUT")[-2:] == [MANIFEST_NAME, "build.json"]
    assert not list(store.SCRATCH.iterdir())
    assert command(verify.app, address, "--quality") == 0
    assert "4 samples in 4 shards: every checksum and sample is right" in capsys.readouterr().out
    assert command(show.app, address) == 0
    assert "5 rows read, 4 kept" in " ".join(capsys.readouterr().out.split())
    gateway.requests.clear()
    assert command(build.app, *words) == 0
    assert f"{address} holds this build already" in capsys.readouterr().err
    assert gateway.files("PUT") == gateway.files("DELETE") == []


def test_one_sample_is_one_range_request(folder: Path, uploaded: str, gateway: Gateway) -> None:
    remote, local = open_shards(uploaded), open_shards(folder)
    assert len(gateway.requests) <= 3  # size and content of the manifest, one listing
    gateway.requests.clear()
    for entry in local.samples("train"):
        here, there = local.read(entry), remote.read(entry)
        assert np.array_equal(here.heavy_ang, there.heavy_ang)
        assert np.array_equal(here.hydrogen_ang, there.hydrogen_ang)
        assert here.topology.psmiles == there.topology.psmiles
    wanted = [(entry.shard, f"bytes={entry.offset}-{entry.offset + entry.length - 1}") for entry in local.samples("train")]
    assert [(path.rsplit("/", 1)[-1], span) for method, path, span in gateway.requests if method == "GET"] == wanted
    assert len(gateway.requests) == len(wanted)


def test_reading_processes_reach_the_store(folder: Path, uploaded: str, gateway: Gateway) -> None:
    """Forked processes cannot use their parent's connection, which is open and was used when they are made."""
    import torch

    from foundation.batch import Batch
    from foundation.data.loader import Reading, StepLoader, order_of

    def steps(shards: Mixture, num_workers: int) -> list[Any]:
        order = order_of(shards, "train", seed=5, token_budget=60)
        made = StepLoader(shards, "train", order, Reading(num_workers, cache_mib=0), per_step=2).steps()
        taken = list(itertools.islice(made, 6))
        made.close()
        return taken

    wanted, alone, workers = steps(open_mixture(str(folder)), 0), steps(open_mixture(uploaded), 0), steps(open_mixture(uploaded), 2)
    for other in (alone, workers):
        for a, b in zip(wanted, other, strict=True):
            assert (a.samples_seen, a.num_chains) == (b.samples_seen, b.num_chains)
            for one, two in zip(a.micro_batches, b.micro_batches, strict=True):
                pairs = [(getattr(one.batch, field.name), getattr(two.batch, field.name)) for field in fields(Batch)]
                assert all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)
    shards = open_mixture(uploaded)
    gateway.fault = lambda method, path: 403
    with pytest.raises(InputError, match="told to fail"):
        steps(shards, 2)


# damage, replacing


def test_only_a_damaged_object_is_made_again(
    folder: Path, table: Path, uploaded: str, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray((folder / "train-000001.tar").read_bytes())
    damaged[700] ^= 4
    fsspec.filesystem("s3").pipe_file(f"{uploaded}/train-000001.tar", bytes(damaged))
    assert command(verify.app, uploaded) == 2
    assert "in train-000001.tar; copy these files again, or repeat the build command" in capsys.readouterr().err
    gateway.requests.clear()
    assert command(build.app, "--input", table, "--out", uploaded, *SIZE) == 0
    assert "made again: train-000001.tar" in capsys.readouterr().out
    assert [name for name in gateway.files("PUT") if name.endswith(".tar")] == ["train-000001.tar"]
    assert objects(uploaded) == files(folder)
    assert command(verify.app, uploaded) == 0
    fsspec.filesystem("s3").rm_file(f"{uploaded}/val-000000.tar")
    with pytest.raises(ShardError, match=r"val-000000.tar is missing"):
        open_shards(uploaded)


def test_a_set_is_replaced_only_by_the_word(
    folder: Path, table: Path, tmp_path: Path, uploaded: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_shards import pipeline

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    words = ("--input", table, "--limit", 2, *SIZE)
    fsspec.filesystem("s3").pipe_file(f"{uploaded}/notes.txt", b"mine")
    assert command(build.app, *words, "--out", uploaded) == 2
    assert "already holds shards of other rows; pass --overwrite" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "publish", killed)  # every shard is computed, nothing is placed
        assert command(build.app, *words, "--out", uploaded, "--overwrite") == 3
    assert scratch()
    assert objects(uploaded) == files(folder) | {"notes.txt": b"mine"}
    assert command(verify.app, uploaded) == 0
    assert command(build.app, *words, "--out", uploaded, "--overwrite") == 0
    assert command(build.app, *words, "--out", tmp_path / "other") == 0
    assert objects(uploaded) == files(tmp_path / "other") | {"notes.txt": b"mine"}
    assert not scratch()


# faults


def test_a_build_killed_while_uploading_continues_to_the_same_bytes(
    folder: Path, table: Path, address: str, gateway: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--input", str(table), "--out", address, *SIZE)
    gateway.fault = lambda method, path: "hold" if method == "PUT" and path.endswith("train-000001.tar") else None
    process = subprocess.Popen([sys.executable, "-m", "data_shards.build", *words], env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not gateway.held.wait(0.05):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    gateway.go_on.set()
    gateway.fault = lambda method, path: None
    with pytest.raises(ShardError, match="the build did not finish, run the same command again"):
        open_shards(address)
    assert scratch()
    gateway.requests.clear()
    assert command(build.app, *words) == 0
    said = capfd.readouterr()
    assert "of 4 polymers are done already" in said.err
    _silent(said.out + said.err)
    assert objects(address) == files(folder)
    uploads = [name for name in gateway.files("PUT") if name.endswith(".tar")]
    assert "train-000001.tar" in uploads
    assert len(uploads) < 4  # what lay there already was not sent again
    assert not scratch()


def test_a_short_outage_is_waited_for(folder: Path, table: Path, address: str, gateway: Gateway) -> None:
    troubles: list[int | str] = [503, "drop", 503, 503]  # more than the store's own library tries

    def faulty(method: str, path: str) -> int | str | None:
        return troubles.pop() if troubles and method == "PUT" and path.endswith("train-000000.tar") else None

    gateway.fault = faulty
    assert command(build.app, "--input", table, "--out", address, *SIZE) == 0
    assert not troubles
    assert objects(address) == files(folder)


def test_a_long_outage_loses_nothing(
    folder: Path, table: Path, address: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "PATIENCE_SEC", 0.1)
    words = ("--input", table, "--out", address, *SIZE)
    gateway.fault = lambda method, path: 503 if method == "PUT" and path.endswith("train-000001.tar") else None
    assert command(build.app, *words) == 2
    _one_sentence(capsys.readouterr().err, "then the same command continues")
    assert any(path.name == "train-000001.tar" for path in scratch())
    gateway.fault = lambda method, path: None
    assert command(build.app, *words) == 0
    assert "of 4 polymers are done already" in capsys.readouterr().err
    assert objects(address) == files(folder)


def test_a_reader_waits_and_then_says_what_failed(uploaded: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(uploaded)
    entry, left = shards.samples("train")[0], [3]

    def faulty(method: str, path: str) -> int | None:
        left[0] -= 1
        return 503 if left[0] >= 0 else None

    gateway.fault = faulty
    assert shards.read(entry).key == entry.key
    gateway.fault = lambda method, path: "drop"
    monkeypatch.setattr(store, "PATIENCE_SEC", 0.1)
    for action in (
        lambda: shards.read(entry),
        shards.names,
        lambda: shards.open_binary(entry.shard).read(1),
        lambda: shards.read_file("funnel.csv"),
        lambda: open_shards(uploaded),
    ):
        with pytest.raises(InputError, match=r"cannot be used .*; check the address, the network and the credentials"):
            action()


def test_an_outage_is_no_damage(
    uploaded: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "PATIENCE_SEC", 0.1)
    gateway.fault = lambda method, path: 503 if method == "GET" and path.endswith("val-000000.tar") else None
    assert command(verify.app, uploaded) == 2
    said = capsys.readouterr()
    _one_sentence(said.err, "cannot be used")
    assert "damage" not in said.out + said.err


def test_an_endpoint_that_does_not_answer_is_given_up_soon(
    table: Path, address: str, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.fault = lambda method, path: "drop"
    for app, words in ((build.app, ("--input", table, "--out", address, *SIZE)), (verify.app, (address,)), (show.app, (address,))):
        gateway.requests.clear()
        assert command(app, *words) == 2
        _one_sentence(capsys.readouterr().err, "cannot be used")
        assert 1 <= len(gateway.requests) <= 4  # botocore tries twice, and aiohttp each of them where a connection was open
    assert not store.SCRATCH.exists()


# credentials


def _one_sentence(said: str, part: str) -> None:
    errors = [line for line in said.strip().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said.strip().endswith(errors[0])
    assert part in errors[0]
    assert "Traceback" not in said


def _authentication(endpoint: str, free_actions: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc)
    connection.request("POST", "/moto-api/reset-auth", free_actions)
    assert connection.getresponse().status == 200
    connection.close()


CASES = {
    "success": "",
    "no bucket": "there is none named 'no-such-bucket'",
    "wrong credentials": "PermissionError",
    "denied": "PermissionError",
    "no credentials": "Unable to locate credentials",
    "endpoint down": "Could not connect to the endpoint URL",
    "password in the endpoint": "cannot be used",
    "password in the address": "was given with a user or password in it",
    "user in the address": "was given with a user or password in it",
    "password of slashes": "was given with a user or password in it",
    "uploads denied": "told to fail",
    "no package": "a package is missing (Install s3fs to access S3); pip install 'polymer-foundation[s3]'",
}


@pytest.mark.parametrize("case", CASES)
def test_credentials_are_never_written(
    case: str,
    table: Path,
    tmp_path: Path,
    address: str,
    endpoint: str,
    gateway: Gateway,
    environment: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "data_shards")
    key = FAKE["AWS_ACCESS_KEY_ID"]
    match case:
        case "no bucket":
            address = "s3://no-such-bucket/sets/one"
        case "wrong credentials":
            _authentication(endpoint, "0")
        case "denied":
            gateway.fault = lambda method, path: 403
        case "uploads denied":
            gateway.fault = lambda method, path: 403 if method == "PUT" else None
        case "no credentials":
            for name in FAKE:
                environment.delenv(name)
        case "endpoint down":
            environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        case "password in the endpoint":
            environment.setenv("AWS_ENDPOINT_URL", f"http://{key}:{PASSWORD.replace('/', '')}@127.0.0.1:1")
        case "password in the address":
            address = address.replace("s3://", f"s3://{key}:{PASSWORD.replace('/', '')}@")
        case "user in the address":
            address = address.replace("s3://", f"s3://{key}@")
        case "password of slashes":
            address = address.replace("s3://", f"s3://{key}:{PASSWORD}@")
        case "no package":
            environment.setitem(sys.modules, "s3fs", None)
            environment.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    if case != "no package":
        reconnect()
    wanted = 0 if case == "success" else 2
    try:
        for app, words in ((build.app, ("--input", table, "--out", address, *SIZE)), (verify.app, (address,)), (show.app, (address,))):
            code, said = command(app, *words), capfd.readouterr()
            assert code == wanted, (app.info, said)
            _silent(said.out + said.err)
            if wanted:
                _one_sentence(said.err, CASES[case] if app is build.app or case != "uploads denied" else "holds no manifest.json")
    finally:
        _authentication(endpoint, "inf")
    assert bool(scratch()) is (case == "uploads denied")
    _silent(caplog.text)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in written:
        _silent(path.read_bytes().decode("latin-1"))
    if case == "success":
        for name, content in objects(address).items():
            _silent(name + content.decode("latin-1"))
        _silent(fsspec.filesystem("s3").cat_file(f"{address}/build.json").decode())


def _silent(text: str) -> None:
    for secret in (*FAKE.values(), PASSWORD, PASSWORD.replace("/", "")):
        assert secret not in text
