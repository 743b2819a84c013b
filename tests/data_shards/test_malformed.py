"""Malformed input of every kind: the build goes on, each bad row has its reason, and nothing is written outside the output folder."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from data_shards import build, verify
from data_shards.decoding import decode
from data_shards.errors import ShardError
from data_shards.manifest import CHECKSUM, MANIFEST_NAME
from data_shards.reader import open_shards
from data_shards.schema import PolymerSample
from data_shards.writer import encode
from tests.data_shards.test_build import command

SIZE = ("--num-units", "3", "--conformers", "1", "--workers", "0", "--time-limit", "20")
GOOD = ("*CC*", "*CC(*)c1ccccc1", "*CCO*")
NUM_STRINGS = 200

STRUCTURES = (
    "*" + "C" * 9_000 + "*",  # more atoms than any bound
    "*" + "C(C)" * 2_500 + "*",
    "*" + "C1CC1" * 40 + "*",
    "C" * 20_000,  # longer than any P-SMILES
    "*[Na]*",
    "*[U](*)C",
    "*[Uuo]*",
    "*[He]*",
    "*[Fe](C)(C)(C)(C)*",
    "*C[Sn](C)(C)C*",
    "*[13CH2]C*",
    "*C([2H])([2H])C*",
    "*C*.*C*",
    "*CC*.[Na+].[Cl-]",
    "*C(*)(*)*",  # a network
    "*c1cc(*)c(*)cc1*",  # a ladder
    "*C1CC(*)C(*)C1*",
    "**",
    "*",
    "***",
    "*=*",
    "*C",
    "C*C",
    "*=CC*",  # the orders of the two stars disagree
    "*#CC*",
    "*C(=O)(=O)(=O)C*",
    "*C1CC*",  # a ring that does not close
    "*C(C*",
    "*c1cccc*1",
    "*CC(*)[N+](=O)[O-]O[O",
    "*[C@@@H](C)*",
    "*C/C=C\\\\C/*/*",
    "[*:1]CC[*:1]",
    "*$C*",
    "*C%%10*",
    "*CC*\x00",
    "*CC*\u2028*CC*",
    "../../../etc/passwd",
    "'; DROP TABLE rows; --",
    "=cmd|' /C calc'!A0",
    "nan",
    "1e309",
    "\ufeff*CC",
    "*CC* *CCO*x",
    "*" + "(" * 3_000 + "C" + ")" * 3_000 + "*",
    "*" + "[" * 500 + "*",
    "*C" + "=" * 300 + "C*",
    "*C1" + "C2" * 60 + "*",
)


def strings() -> list[str]:
    """Seeded strings: any text, the alphabet of SMILES, real P-SMILES with a piece changed."""
    found: list[str] = []
    letters = st.text(alphabet="*CNOSPFclnos[]()=#/\\@+-.%0123456789H:$~", max_size=40)
    text = st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=30)

    def edit(polymer: str, place: int, piece: str, cut: int) -> str:
        place %= len(polymer) + 1
        return polymer[:place] + piece + polymer[place + cut :]

    pieces = st.sampled_from(["*", "(", ")", "[", "]", "1", "=", "#", "c", "[Xx]", "[N+]", ".", "", "\\", "@", "%", "[*]"])
    edits = st.builds(edit, st.sampled_from(GOOD), st.integers(0, 40), pieces, st.integers(0, 3))

    @seed(20)
    @settings(max_examples=NUM_STRINGS * 2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(letters, text, edits))
    def collect(value: str) -> None:
        if len(found) < NUM_STRINGS - len(STRUCTURES):
            found.append(value)

    collect()
    return [*STRUCTURES, *found]


def test_no_string_stops_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = strings()
    assert len(rows) == NUM_STRINGS
    table = tmp_path / "in" / "rows.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["psmiles"])
        writer.writerows([row] for row in [*GOOD, *rows])
    out = tmp_path / "work" / "shards"
    out.parent.mkdir()
    assert command(build.app, "--input", table, "--out", out, *SIZE) == 0, capsys.readouterr().err
    shards = open_shards(out)
    funnel = shards.manifest.funnel
    with (out / "funnel.csv").open(newline="") as file:
        reasons = {int(row["row"]): row["reason"] for row in csv.DictReader(file)}
    kept = {shards.read(entry).provenance["row"] for split in shards.manifest.splits for entry in shards.samples(split)}
    assert kept | set(reasons) == set(range(1, funnel.attempted + 1))
    assert not kept & set(reasons)
    assert {1, 2, 3} <= kept  # the good ones
    assert funnel.attempted >= NUM_STRINGS  # blank lines are no rows
    assert len(reasons) > 0.8 * NUM_STRINGS
    unforeseen = {row: reason for row, reason in reasons.items() if reason.startswith("error:") or not reason}
    assert not unforeseen, unforeseen
    assert {path.name for path in tmp_path.iterdir()} == {"in", "work"}
    assert {path.name for path in out.parent.iterdir()} == {"shards"}
    capsys.readouterr()
    assert command(verify.app, out) == 0, capsys.readouterr().out


# shards from elsewhere


def _bomb_npz(members: dict[str, bytes]) -> dict[str, bytes]:
    """A few kilobytes that unpack to a gigabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("elements.npy", "w", force_zip64=True) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    return {**members, "topology.npz": buffer.getvalue()}


def _huge_header(members: dict[str, bytes]) -> dict[str, bytes]:
    """An array header that asks for a petabyte."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": (1, 10**14, 3), "fortran_order": False, "descr": "<f4"})
    return {**members, "heavy.npy": buffer.getvalue() + b"0" * 64}


def _facts(**change: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {**members, "json": json.dumps({**json.loads(members["json"]), **change}).encode()}


def _topology(**change: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def damage(members: dict[str, bytes]) -> dict[str, bytes]:
        with np.load(io.BytesIO(members["topology.npz"])) as arrays:
            values = {**dict(arrays), **change}
        buffer = io.BytesIO()
        np.savez(buffer, **values)
        return {**members, "topology.npz": buffer.getvalue()}

    return damage


DAMAGES: tuple[Callable[[dict[str, bytes]], dict[str, bytes]], ...] = (
    _bomb_npz,
    _huge_header,
    _facts(num_units=10**15),
    _facts(num_units=-1),
    _facts(num_units="six"),
    _facts(psmiles=None, num_units=None),
    _facts(energies_kcal_mol=["a"]),
    _facts(energies_kcal_mol=[[1.0]]),
    _topology(bonds=np.array([[0, 10**6]], dtype=np.int32)),
    _topology(key_atoms=np.array([0, 1, 1, 9], dtype=np.int32)),
    _topology(num_hydrogens=np.zeros(0, dtype=np.uint8)),
    _topology(elements=np.array([{}], dtype=object)),
    lambda members: {**members, "json": b"[" * 100_000},
    lambda members: {**members, "json": b"\xff\xfe"},
    lambda members: {name: b"" for name in members},
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_hostile_sample_is_refused(make_sample: Callable[..., PolymerSample], damage: Callable[..., dict[str, bytes]]) -> None:
    with pytest.raises(ShardError):
        decode({"__key__": "k", **damage(encode(make_sample()))})


def _tar(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar of (name, content, type) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _claim(size: int) -> bytes:
    """A tar whose first member claims to be of a size that is not there."""
    info = tarfile.TarInfo("k.json")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    "content",
    [
        _tar(("../../outside.json", b"{}", tarfile.REGTYPE)),
        _tar(("/tmp/outside.json", b"{}", tarfile.REGTYPE)),
        _tar(("k.json", b"", tarfile.SYMTYPE)),
        _tar(("k.json", b"", tarfile.LNKTYPE)),
        _tar(("k.json", b"", tarfile.FIFOTYPE)),
        _tar(*[(f"{number}.json", b"{}", tarfile.REGTYPE) for number in range(3000)]),
        _claim(10**13),
        b"not a tar" * 200,
        b"",
    ],
)
def test_a_hostile_shard_is_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """The tar is never unpacked: what verify reads of it stays in memory and is bounded by the file's own size."""
    from hashlib import sha256

    source = tmp_path / "polymers.csv"
    source.write_text("psmiles\n*CC*\n")
    out = tmp_path / "shards"
    assert command(build.app, "--input", source, "--out", out, *SIZE) == 0
    (out / "train-000000.tar").write_bytes(content)
    data = json.loads((out / MANIFEST_NAME).read_text())
    del data[CHECKSUM]
    data["splits"]["train"][0].update(bytes=len(content), sha256=sha256(content).hexdigest())
    (out / MANIFEST_NAME).write_text(json.dumps(data))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert command(verify.app, out) == 2
    heard = capsys.readouterr()
    assert "train-000000.tar" in heard.out + heard.err
    assert "Traceback" not in heard.err
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/outside.json").exists()
