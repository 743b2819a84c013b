"""Records of the published data set: every convention read back to the same chain, and found by measuring; hostile pickles refused."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from data_shards.chem.psmiles import canonicalise
from data_shards.conformers.imported import Structure
from data_shards.errors import InputError, PolymerError
from data_shards.schema import chain_bonds, chain_elements
from data_shards.sources import polyconfm_lmdb, unpickle
from data_shards.sources.pickled_arrays import Stored
from data_shards.sources.polyconfm_conventions import convention_of
from data_shards.sources.polyconfm_lmdb import PolyConfmLmdbSource, conventions, read_structure
from data_shards.sources.polyconfm_record import read_record
from tests.data_shards.polyconfm_records import (
    END_SPECIAL,
    PAPER,
    REFERENCE,
    Grown,
    Style,
    grown,
    pickled,
    record_bytes,
    record_table,
    write_lmdb,
)

STYRENE = "*CC(*)c1ccccc1"
WITH_HYDROGENS = replace(REFERENCE, hydrogens=True)
STYLES = {
    "reference": REFERENCE,
    "paper": PAPER,
    "ours": Style(frames=((1, 3, 4),) * 3),
    "end special": END_SPECIAL,
    "hydrogens": WITH_HYDROGENS,
    "hydrogens, rigids": replace(PAPER, hydrogens=True, world=False),
    "translation kept": replace(REFERENCE, translation="kept"),
    "centred": replace(PAPER, translation="centred"),
    "from rigids": replace(REFERENCE, world=False),
    "from rotations": replace(REFERENCE, world=False, rigids="rotations"),
    "no rigids": replace(REFERENCE, rigids="none"),
    "noisy copies": replace(REFERENCE, noise_ang=2e-4),
    "old graphs of the chain": replace(REFERENCE, graph="chain", old_graphs=True),
    "no key points": replace(REFERENCE, key_points=False),
    **{f"protocol {k}": replace(REFERENCE, protocol=k) for k in range(5)},
}


def assert_same_chain(found: Structure, chain: Grown, limit_ang: float = 1e-4) -> None:
    """Every imported atom stands on an atom of the same element, no two on one, and bonded atoms are bonded there."""
    x_ang = found.heavy_ang[0] + np.array(found.facts["origin_ang"])
    away, place = cKDTree(chain.heavy_ang).query(x_ang)
    assert away.max() < limit_ang + 1e-4  # origin_ang has four digits
    assert len(set(place.tolist())) == len(place)
    assert (chain.elements[place] == chain_elements(found.topology, found.num_units)).all()
    there = {tuple(sorted(bond)) for bond in chain_bonds(chain.unit.topology, chain.num_units)[0].tolist()}
    assert {tuple(sorted(bond)) for bond in place[chain_bonds(found.topology, found.num_units)[0]].tolist()} <= there


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_every_convention_gives_the_chain_back(style: Style) -> None:
    chain = grown(STYRENE, 6)
    found = read_structure(record_bytes(chain, style), STYRENE)
    assert found.num_units == 6
    assert found.facts["heavy_atoms_left_out"] == 0
    if style.world or style.rigids == "full":  # with rotations alone the chain begins wherever its first unit was put
        assert np.abs(np.array(found.facts["origin_ang"]) - chain.heavy_ang.mean(axis=0)).max() < 2e-4
    assert np.abs(found.heavy_ang[0] - (chain.heavy_ang - chain.heavy_ang.mean(axis=0))).max() < 1e-4
    if style.hydrogens:
        inner = chain.hydrogen_owner[(chain.hydrogen_owner > 0) & (chain.hydrogen_owner < len(chain.heavy_ang) - 1)]
        wanted = chain.hydrogen_ang[np.isin(chain.hydrogen_owner, inner)] - chain.heavy_ang.mean(axis=0)
        kept = found.hydrogen_ang[0][np.isin(chain.hydrogen_owner, inner)]
        assert np.abs(kept - wanted).max() < 1e-4
        assert found.facts["hydrogens"] == "given"
    else:
        assert found.facts["hydrogens"] == "added"
        assert found.facts["hydrogens_added"] == found.hydrogen_ang.shape[1]


@pytest.mark.parametrize("written", ["*CCCC*", "*COC*", "*NC(=O)CCCCC*", "*c1ccc(O*)cc1", "*C*", "*C=CCC*", "*Oc1ccc(CC(*)=O)cc1"])
def test_units_written_otherwise_become_canonical_ones(written: str) -> None:
    chain = grown(written, 5)
    canonical = canonicalise(written)
    for style in (REFERENCE, WITH_HYDROGENS):
        found = read_structure(record_bytes(chain, style), canonical.psmiles)
        assert found.psmiles == canonical.psmiles
        assert 5 * canonical.multiplicity - 1 <= found.num_units <= 5 * canonical.multiplicity
        assert_same_chain(found, chain)


@pytest.mark.parametrize(
    ("style", "field", "answer"),
    [
        (REFERENCE, "frame", "(1,2,4)"),
        (PAPER, "frame", "(1,3,4), first axis from 3 to 1"),
        (STYLES["ours"], "frame", "(1,3,4)"),
        (END_SPECIAL, "frame", "end-special: (2,3,4) first, (1,2,4) inner, (1,2,3) last"),
        (replace(REFERENCE, translation="kept"), "frame", "(1,2,4)"),
        (REFERENCE, "translation", "removed, origin at atom 2"),
        (PAPER, "translation", "removed, origin at atom 3"),
        (END_SPECIAL, "translation", "removed, origin at atom 2 of inner units"),
        (replace(REFERENCE, translation="kept"), "translation", "kept"),
        (STYLES["centred"], "translation", "removed, centred"),
        (REFERENCE, "hydrogens", "no"),
        (WITH_HYDROGENS, "hydrogens", "yes"),
        (WITH_HYDROGENS, "frame", "(1,2,4)"),
        (REFERENCE, "star0_on_previous_nbr1", "bit-exact"),
        (STYLES["noisy copies"], "star0_on_previous_nbr1", "within 0.001 angstrom"),
        (STYLES["noisy copies"], "star1_on_next_nbr0", "bit-exact"),
        (REFERENCE, "coordinates", "tgt_coordinates"),
        (STYLES["from rigids"], "coordinates", "rigids_0"),
        (STYLES["from rotations"], "coordinates", "rigids_0, rotations only"),
        (REFERENCE, "rigids", "carry units onto tgt_coordinates"),
        (replace(REFERENCE, rigids="rotations"), "rigids", "rotations only"),
        (STYLES["no rigids"], "rigids", "absent"),
        (REFERENCE, "graph", "unit"),
        (STYLES["old graphs of the chain"], "graph", "chain"),
        (REFERENCE, "embedding", "768 numbers"),
    ],
)
def test_conventions_are_found_by_measuring(style: Style, field: str, answer: str) -> None:
    found = convention_of(read_record(record_bytes(grown(STYRENE, 6), style)))
    assert getattr(found, field) == answer


def test_a_line_of_key_atoms_tells_no_frame() -> None:
    found = convention_of(read_record(record_bytes(grown("*c1ccc(*)cc1", 4), PAPER)))
    assert found.frame != "unknown"


def test_a_file_is_summarised_and_its_bad_records_counted(tmp_path: Path) -> None:
    chain = grown(STYRENE, 6)
    good = [record_bytes(chain, style) for style in (REFERENCE, REFERENCE, PAPER)]
    path = write_lmdb(tmp_path / "train.lmdb", [*good, pickle.dumps(os.getcwd)])
    summary = conventions(str(path))
    assert summary.records == 4
    assert summary.counts["frame"] == {"(1,2,4)": 2, "(1,3,4), first axis from 3 to 1": 1}
    assert summary.refused == {"forbidden-pickle": 1}
    assert summary.as_dict()["counts"]["hydrogens"] == {"no": 3}
    assert any("(1,2,4) (2)" in line for line in summary.lines())
    assert conventions(str(path), limit=2).records == 2


def test_rows_stream_in_the_order_of_their_keys_and_none_is_skipped(tmp_path: Path) -> None:
    chain = grown(STYRENE, 3)
    records = [record_bytes(chain, REFERENCE) for _ in range(12)]
    records[5] = b"\x80\x04cos\nsystem\n."
    path = write_lmdb(tmp_path / "data", [*records, b"note"], keys=[*map(str, range(12)), "__len__"], subdir=True)
    source = PolyConfmLmdbSource(str(path))
    rows = list(source.rows())
    assert [row.number for row in rows] == list(range(1, 14))
    assert [row.psmiles == "" for row in rows] == [k in (5, 12) for k in range(13)]
    assert rows[5].labels["reason"] == "forbidden-pickle"
    assert "os.system" in rows[5].labels["detail"]
    assert rows[12].labels["reason"] == "no-record"
    assert source.payload(11) == records[10]
    assert len(rows[0].record) == 64
    assert list(source.rows()) == rows
    assert [row.number for row in PolyConfmLmdbSource(str(path), limit=4).rows()] == [1, 2, 3, 4]
    assert pickle.loads(pickle.dumps(source)).payload(1) == records[0]


def test_a_path_that_is_no_data_set_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.lmdb").write_bytes(b"psmiles\n*CC*\n" * 2000)
    (tmp_path / "nothing.lmdb").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    empty = write_lmdb(tmp_path / "empty.lmdb", [])
    whole = write_lmdb(tmp_path / "whole.lmdb", [b"x" * 3000] * 40).read_bytes()
    cut = tmp_path / "cut.lmdb"
    cut.write_bytes(whole[: len(whole) // 2])  # mapped into memory, what is missing would end the process that reads it
    for path in ("", "/no/such/file", cut, tmp_path / "text.lmdb", tmp_path / "nothing.lmdb", tmp_path / "folder", empty):
        with pytest.raises(InputError):
            PolyConfmLmdbSource(str(path))
    with pytest.raises(InputError, match="limit 0"):
        PolyConfmLmdbSource(str(empty), limit=0)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    polyconfm_lmdb._opened.cache_clear()
    with pytest.raises(InputError, match="pip install"):
        PolyConfmLmdbSource(str(write_lmdb_later(tmp_path)))


def write_lmdb_later(folder: Path) -> Path:
    """Any file will do where the package cannot be imported."""
    (folder / "any.lmdb").write_bytes(b"x")
    return folder / "any.lmdb"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tgt_coordinates": None, "rigids_0": None}, "no-world-coordinates"),
        ({"tgt_coordinates": np.full((6, 10, 3), np.nan, dtype=np.float32)}, "not-finite"),
        ({"tgt_coordinates": np.zeros((6, 9, 3), dtype=np.float32)}, "bad-record"),
        ({"tgt_coordinates": np.arange(180.0).reshape(6, 10, 3)}, "broken-overlap"),
        ({"tgt_coordinates": [["a", "b", "c"]]}, "bad-record"),
        ({"repeat_unit_actual_num": 7}, "bad-record"),
        ({"repeat_unit_actual_num": 0}, "bad-record"),
        ({"repeat_unit_actual_num": "six"}, "bad-record"),
        ({"repeat_unit_atom_symbols": ["C"] * 9 + ["O"]}, "psmiles-mismatch"),
        ({"repeat_unit_atom_symbols": None}, "bad-record"),
        ({"key_point_index": [1, 0, 2, 9]}, "bad-record"),
        ({"key_point_index": [1, 0]}, "bad-record"),
        ({"rigids_0": torch.zeros(6, 4)}, "bad-record"),
        ({"rigids_0": torch.zeros(6, 7), "tgt_coordinates": None}, "bad-record"),
        ({"psmi": "*CC*"}, "psmiles-mismatch"),
        ({"psmi": 5}, "psmiles-mismatch"),
    ],
)
def test_records_with_other_content_have_a_reason(change: dict[str, Any], reason: str) -> None:
    table = record_table(grown(STYRENE, 6), REFERENCE) | change
    with pytest.raises(PolymerError) as caught:
        read_structure(pickled({name: value for name, value in table.items() if value is not None}), STYRENE)
    assert caught.value.reason == reason


def test_units_in_their_own_frames_alone_are_no_chain() -> None:
    table = record_table(grown(STYRENE, 6), replace(REFERENCE, world=False, rigids="none"))
    with pytest.raises(PolymerError, match="join") as caught:
        read_structure(pickled(table), STYRENE)
    assert caught.value.reason == "no-world-coordinates"
    table["repeat_unit_atom_coordinates"] = np.stack([table["repeat_unit_atom_coordinates"]] * 3)
    with pytest.raises(PolymerError, match="3 conformations"):
        read_structure(pickled(table), STYRENE)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner, inner, inner),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_read_as_the_standard_library_reads_it(value: Any, protocol: int) -> None:
    blob = pickle.dumps(value, protocol=protocol)
    assert unpickle.unpickle(blob) == pickle.loads(blob)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_tensors_are_read_as_they_were(protocol: int) -> None:
    rng = np.random.default_rng(3)
    arrays = [
        rng.normal(size=(3, 4, 2)),
        np.asfortranarray(rng.normal(size=(3, 5))),
        np.arange(6, dtype=">i4"),
        np.array([True, False]),
        np.zeros((0, 3), dtype=np.float32),
        np.array(["C", "Cl"]),
        np.float32(2.5),
        np.int64(-4),
        rng.integers(0, 9, (2, 2)).astype(np.uint8),
    ]
    base = torch.arange(24.0).reshape(4, 6)
    tensors = [
        base,
        base.t(),
        base[1:, ::2],
        base[2],
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.ones(2, dtype=torch.bool),
        torch.arange(5).to(torch.int16),
        torch.randn(3, dtype=torch.float64),
        torch.randn(3).half(),
    ]
    blob = pickle.dumps(arrays, protocol=protocol)
    for wanted, found in zip(pickle.loads(blob), unpickle.unpickle(blob), strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert (found == wanted).all()
    for tensor, found in zip(tensors, unpickle.unpickle(pickle.dumps(tensors, protocol=protocol)), strict=True):
        assert found.dtype == tensor.numpy().dtype
        assert np.array_equal(found, tensor.numpy())


def test_graphs_are_read_without_their_library() -> None:
    assert "torch_geometric" not in sys.modules
    for old in (False, True):
        table = record_table(grown(STYRENE, 3), replace(REFERENCE, old_graphs=old))
        graph = unpickle.unpickle(pickled(table))["whole_pyg"]
        assert isinstance(graph, Stored)
        assert graph.name == "torch_geometric.data.data.Data"
        assert graph.fields()["edge_index"].shape[0] == 2
    assert unpickle.unpickle(pickle.dumps(OrderedDict(a=1))) == {"a": 1}


class Harmful:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def torch_file(storage: bytes) -> bytes:
    """A pickle with a tensor whose storage is this torch file."""
    return b"\x80\x04ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack("<I", len(storage)) + storage + b"\x85R."


def array_pickle(shape: tuple[int, ...], dtype: str, content: Any) -> bytes:
    """A pickled array that says what it likes about itself."""
    head = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    kind = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(dtype)) + dtype.encode() + b"\x89\x88tR"
    return head + b"(K\x01" + pickle.dumps(shape, 2)[2:-1] + kind + b"\x89" + pickle.dumps(content, 3)[2:-1] + b"tb."


@pytest.mark.parametrize(
    ("blob", "reason", "named"),
    [
        (pickle.dumps(Harmful(os.system, "touch marker")), "forbidden-pickle", "system"),
        (pickle.dumps(Harmful(eval, "open('marker', 'w')")), "forbidden-pickle", "eval"),
        (pickle.dumps({"psmi": "*CC*", "x": [Harmful(exec, "open('marker', 'w')")]}, protocol=0), "forbidden-pickle", "exec"),
        (b"\x80\x04c__builtin__\neval\n(Vopen('marker','w')\ntR.", "forbidden-pickle", "eval"),
        (b"(S'touch marker'\nios\nsystem\n.", "forbidden-pickle", "INST"),
        (b"(cos\nsystem\nS'touch marker'\no.", "forbidden-pickle", "os.system"),
        (pickle.dumps(Harmful(getattr, "x", "upper")), "forbidden-pickle", "getattr"),
        (b"cnumpy\nload\n(Vmarker\ntR.", "forbidden-pickle", "numpy.load"),
        (b"ctorch\nload\n(Vmarker\ntR.", "forbidden-pickle", "torch.load"),
        (b"\x80\x04ctorch_geometric.data.data\nData\n(Vmarker\nt\x81.", "forbidden-pickle", "Data"),
        (b"\x80\x04ctorch_geometric.data.data\nData\n)R.", "forbidden-pickle", "Data"),
        (b"\x80\x04\x82\x01.", "forbidden-pickle", "EXT1"),
        (b"Vsomewhere\nQ.", "forbidden-pickle", "outside"),
        (b"Psomewhere\n.", "forbidden-pickle", "PERSID"),
        (b"\x80\x05\x97.", "forbidden-pickle", "NEXT_BUFFER"),
        (pickle.dumps(np.array([Harmful(os.system, "touch marker")], dtype=object)), "forbidden-pickle", ""),
        (array_pickle((1,), "O", [1]), "forbidden-pickle", "O"),
        (array_pickle((1,), "f8,O", b"\0" * 16), "forbidden-pickle", "f8,O"),
        (array_pickle((2**40,), "f8", b"\0" * 8), "unreadable-pickle", "claims"),
        (array_pickle((2**40, 0), "f8", b""), "", ""),
        (array_pickle((2**62,), "S0", b""), "unreadable-pickle", ""),
        (array_pickle((-1,), "f8", b"\0" * 8), "unreadable-pickle", "shape"),
        (torch_file(torch_file(pickle.dumps(1))), "forbidden-pickle", "torch file"),
        (torch_file(pickle.dumps(Harmful(os.system, "touch marker"))), "forbidden-pickle", "system"),
        (b"\x80\x04X\xff\xff\xff\xff.", "unreadable-pickle", ""),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.", "unreadable-pickle", ""),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**63 + 1) + b"x.", "unreadable-pickle", ""),
        (b"\x80\x04K\x01r\xff\xff\xff\xff.", "", ""),  # a memo number of four thousand million costs nothing
        (b"\x80\x04h\x05.", "unreadable-pickle", ""),
        (b"\x80\x04(1.", "unreadable-pickle", ""),
        (b"\x80\x04.", "unreadable-pickle", ""),
        (b"\x80\x04t.", "unreadable-pickle", ""),
        (b"}(K\x01u.", "unreadable-pickle", "key"),
        (b"}))s.", "forbidden-pickle", "keys"),
        (b"I" + b"9" * 100_000 + b"\n.", "unreadable-pickle", ""),
        (b"", "unreadable-pickle", ""),
        (b"not a pickle", "unreadable-pickle", ""),
    ],
)
def test_hostile_pickles_are_refused_and_nothing_runs(
    blob: bytes, reason: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if reason:
        with pytest.raises(PolymerError) as caught:
            unpickle.unpickle(blob)
        assert caught.value.reason == reason
        assert named in caught.value.detail
    else:
        unpickle.unpickle(blob)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_record_is_unreadable(cut: float) -> None:
    blob = record_bytes(grown(STYRENE, 3), REFERENCE)
    with pytest.raises(PolymerError) as caught:
        read_structure(blob[: int(cut * len(blob))], STYRENE)
    assert caught.value.reason == "unreadable-pickle"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_never_crashes(data: st.DataObject) -> None:
    blob = bytearray(record_bytes(grown(STYRENE, 3), REFERENCE))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PolymerError):
        read_structure(bytes(blob), STYRENE)


def test_bombs_of_references_stay_small() -> None:
    """Lists that hold one list many times: little to read, a thousand million numbers to look at."""
    inner: Any = [0.0] * 1000
    for _ in range(2):
        inner = [inner] * 1000
    table = record_table(grown(STYRENE, 3), REFERENCE) | {"tgt_coordinates": inner}
    with pytest.raises(PolymerError, match="numbers") as caught:
        read_structure(pickled(table), STYRENE)
    assert caught.value.reason == "bad-record"
    pairs: Any = ()
    for _ in range(60):
        pairs = (pairs, pairs)
    assert isinstance(unpickle.unpickle(pickle.dumps(pairs)), tuple)  # two to the power of sixty leaves
    blob = pickle.dumps({"x": pairs})
    with pytest.raises(PolymerError, match="keys"):
        unpickle.unpickle(b"\x80\x04}(" + pickle.dumps(pairs)[2:-1] + b"K\x01u.")
    assert "x" in unpickle.unpickle(blob)


def test_deep_nesting_is_read_without_recursion() -> None:
    depth = 200_000
    found = unpickle.unpickle(b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        found = found[0]
    assert found == []
    table = record_table(grown(STYRENE, 3), REFERENCE)
    del table["tgt_coordinates"]
    deep = pickled(table)[:-1] + b"\x8c\x0ftgt_coordinates" + b"]" * 5000 + b"a" * 4999 + b"s."
    with pytest.raises(PolymerError) as caught:
        read_structure(deep, STYRENE)
    assert caught.value.reason == "bad-record"


def test_bounds_on_bytes_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(PolymerError) as caught:
        unpickle.unpickle(pickle.dumps(b"x" * 200))
    assert caught.value.reason == "too-large"
    monkeypatch.setattr(unpickle, "MAX_OPERATIONS", 10)
    with pytest.raises(PolymerError, match="operations"):
        unpickle.unpickle(pickle.dumps(list(range(30))))


def test_the_reader_knows_every_operation_of_the_language() -> None:
    """An operation is carried out, puts its argument on the stack, ends the pickle, or is refused by name: the lists are complete."""
    known = unpickle._VALUES | set(unpickle._STEPS) | {"STOP"}
    names = {operation.name for operation in pickletools.opcodes}
    assert known <= names
    refused = names - known
    assert refused == {
        "INST", "OBJ", "NEWOBJ_EX", "PERSID", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"
    }  # fmt: skip
