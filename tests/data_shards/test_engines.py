"""The build with every engine: relaxed chains beside the raw ones, molecular dynamics, chains that were imported."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_shards import build, verify
from data_shards.conformers.dynamics import chain_energy_kcal_mol
from data_shards.conformers.mmff_system import THETA
from data_shards.reader import open_shards
from data_shards.schema import chain_bonds
from tests.data_shards.test_build import command, files

SIZE = ("--num-units", "4", "--conformers", "2", "--workers", "0", "--val-fraction", "0", "--test-fraction", "0")


def members(out: Path, key: str) -> dict[str, np.ndarray]:
    import webdataset

    for item in webdataset.WebDataset([str(out / "train-000000.tar")], shardshuffle=False):
        if item["__key__"] == key:
            return {name: np.load(io.BytesIO(data)) for name, data in item.items() if name.endswith(".npy")}
    raise AssertionError(key)


def test_relaxed_chains_lie_beside_the_raw_ones(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    source = write_table(tmp_path / "a.csv", ("*CC(*)C", "*CCO*", "*C[Sn](*)(C)C"))
    raw, out = tmp_path / "raw", tmp_path / "relaxed"
    assert command(build.app, "--input", source, "--out", raw, *SIZE) == 0
    assert command(build.app, "--input", source, "--out", out, "--relax", *SIZE) == 0
    assert open_shards(out).manifest.funnel.dropped == {"no-force-field": 1}  # UFF is no force field of a whole chain
    before = {entry.key: open_shards(raw).read(entry) for entry in open_shards(raw).samples("train")}
    shards = open_shards(out)
    assert len(shards.samples("train")) == 2
    for entry in shards.samples("train"):
        sample, arrays = shards.read(entry), members(out, entry.key)
        assert np.array_equal(arrays["raw.heavy.npy"], before[entry.key].heavy_ang)
        assert np.array_equal(arrays["raw.hydrogen.npy"], before[entry.key].hydrogen_ang)
        assert np.array_equal(arrays["heavy.npy"], sample.heavy_ang)
        assert 0.01 < np.abs(sample.heavy_ang - arrays["raw.heavy.npy"]).max() < 10
        facts = sample.provenance["relaxed"]
        assert facts["force_field"] == "MMFF94s"
        energies = chain_energy_kcal_mol(sample.topology, sample.num_units, sample.heavy_ang, sample.hydrogen_ang, environment=THETA)
        assert sample.energies_kcal_mol is not None
        assert sample.energies_kcal_mol == pytest.approx(energies, abs=1e-2)
        assert (sample.energies_kcal_mol < np.array(facts["energies_before_kcal_mol"])).all()
    assert command(verify.app, out, "--quality") == 0


def test_dynamics_build_shards_and_the_same_bytes(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    source = write_table(tmp_path / "a.csv", ("*CC(*)C", "*C[Sn](*)(C)C"))
    words = ("--input", source, "--engine", "md", "--md", "temperature_kelvin=350", *SIZE)
    for name in ("one", "other"):
        assert command(build.app, *words, "--out", tmp_path / name) == 0
    assert files(tmp_path / "one") == files(tmp_path / "other")
    shards = open_shards(tmp_path / "one")
    assert shards.manifest.recipe["md"]["temperature_kelvin"] == 350
    assert shards.manifest.funnel.dropped == {"no-force-field": 1}
    (entry,) = shards.samples("train")
    sample = shards.read(entry)
    assert sample.engine == "md"
    assert sample.energies_kcal_mol is not None
    assert len(sample.energies_kcal_mol) == len(sample.heavy_ang) == 2
    bonds, _ = chain_bonds(sample.topology, sample.num_units)
    lengths = np.linalg.norm(sample.heavy_ang[:, bonds[:, 0]] - sample.heavy_ang[:, bonds[:, 1]], axis=-1)
    assert 0.01 < lengths.std() < 0.08  # atoms in motion: a C-C bond of MMFF94 at 350 K has about 0.03
    assert command(verify.app, tmp_path / "one", "--quality") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--engine", "md", "--md", "temperature_kelvin=-3"), "md.temperature_kelvin '-3' must be"),
        (("--engine", "md", "--md", "speed=3"), "md.speed is unknown; --md takes "),
        (("--md", "temperature_kelvin=300"), "engine md needs its settings and no other engine has any"),
        (("--quality", "heavy_clash"), "--quality 'heavy_clash' must be name=value"),
        (("--source", "sdf", "--engine", "md"), "--source sdf brings its own chains; drop --engine md"),
    ],
)
def test_bad_settings_are_one_sentence(
    tmp_path: Path, write_table: Callable[..., Path], words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path / "a.csv", ("*CC(*)C",))
    (tmp_path / "a.sdf").write_text("nothing\n$$$$\n")
    given = tmp_path / "a.sdf" if "sdf" in words else source
    assert command(build.app, "--input", given, "--out", tmp_path / "out", *words, *SIZE) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_quality_limits_are_the_users(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    source = write_table(tmp_path / "a.csv", ("*CC(*)C", "*CCO*"))
    strict = ("--quality", "hydrogen_clash=1.0", "--quality", "heavy_clash=1.0")
    assert command(build.app, "--input", source, "--out", tmp_path / "out", *strict, *SIZE) == 2  # every chain touches itself somewhere
    assert command(build.app, "--input", source, "--out", tmp_path / "out", "--quality", "heavy_clash=0.7", *SIZE) == 0
    assert open_shards(tmp_path / "out").manifest.recipe["quality"]["heavy_clash"] == 0.7


def test_real_chains_are_imported(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every record of a file of real chains is a sample or a row of the funnel, and the chain read back is the record's."""
    from rdkit import Chem

    path = shared_data / "conformers" / "polyverse_md_chains.sdf"
    out = tmp_path / "out"
    words = ("--source", "sdf", "--input", path, "--workers", "0", "--val-fraction", "0", "--test-fraction", "0")
    assert command(build.app, *words, "--out", out) == 0
    shards = open_shards(out)
    records = [mol for mol in Chem.SDMolSupplier(str(path), removeHs=False, sanitize=False)]
    assert shards.manifest.funnel.attempted == len(records) == 30
    kept = shards.samples("train")
    assert len(kept) + sum(shards.manifest.funnel.dropped.values()) == 30
    assert len(kept) >= 27
    for entry in kept:
        sample = shards.read(entry)
        assert (sample.engine, sample.provenance["source"]) == ("import", "sdf")
        mol = records[sample.provenance["row"] - 1]
        original = mol.GetConformer().GetPositions()
        heavy = sample.heavy_ang[0] + np.array(sample.provenance["origin_ang"], dtype=np.float32)
        nearest = np.linalg.norm(heavy[:, None] - original[None], axis=-1).min(axis=1)
        assert nearest.max() < 1e-3
    assert command(verify.app, out) == 0
    assert command(build.app, *words, "--out", out) == 0
    assert "holds this build already" in capsys.readouterr().err


def test_published_records_are_imported_and_their_conventions_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two chains and a pickle that would run a command: the chains become shards, the pickle a row of the funnel."""
    import os
    import pickle

    from tests.data_shards.polyconfm_records import Style, grown, record_bytes, write_lmdb

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    records = [record_bytes(grown("*CC(*)C", 5), Style()), pickle.dumps(Hostile()), record_bytes(grown("*CCO*", 6), Style())]
    path = write_lmdb(tmp_path / "train.lmdb", records)
    out = tmp_path / "out"
    words = ("--source", "polyconfm-lmdb", "--input", path, "--out", out, *SIZE)
    assert command(build.app, *words) == 0
    assert not (tmp_path / "run").exists()
    heard = capsys.readouterr().err
    shards = open_shards(out)
    assert "frame: (1,2,4) (2)" in heard
    facts = shards.manifest.input["conventions"]
    assert (facts["records"], facts["counts"]["frame"], facts["refused"]) == (3, {"(1,2,4)": 2}, {"forbidden-pickle": 1})
    assert shards.manifest.funnel.dropped == {"forbidden-pickle": 1}
    assert "system" in (out / "funnel.csv").read_text()
    assert sorted(entry.psmiles for entry in shards.samples("train")) == ["*CC(*)C", "*CCO*"]
    assert command(verify.app, out) == 0
