"""The benchmark of preprocessing: what it concludes from times, how it stops other programs, how it goes on after a stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rival_chain
from benchmarks.dynamics_speed import openmm_steps, rdkit_steps, relaxed_chain
from benchmarks.preprocess import Record, count_clashes, hopeless, read_rival
from benchmarks.preprocess_report import POLYMERS, RIVALS, UNITS, exponent, summary
from data_shards.chem.chain import chain_mol
from data_shards.chem.repeat_unit import build_unit
from data_shards.conformers.grow import grow_chain
from data_shards.conformers.quality import check_chain


@pytest.mark.parametrize("power", [1.0, 1.37])
def test_exponent_of_a_power_law_is_its_power(power: float) -> None:
    value, low, high = exponent([50, 100, 1000], [[0.01 * n**power] * 3 for n in (50, 100, 1000)])
    assert (value, low, high) == pytest.approx((power, power, power), abs=1e-9)


def test_interval_of_the_exponent_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside, widths = 0, []
    for _ in range(100):
        seconds = [(0.002 * n * rng.gamma(4.0, 0.25, size=40)).tolist() for n in UNITS]
        value, low, high = exponent(list(UNITS), seconds, draws=400)
        assert low <= value <= high
        inside += low <= 1.0 <= high
        widths.append(high - low)
    assert 87 <= inside <= 100  # 95 expected; a bootstrap of 40 is a little narrow
    assert np.median(widths) < 0.3


def test_exponent_uses_means_so_that_rare_slow_chains_count() -> None:
    """Every unit costs 1 or, once in 200, 201: linear in the mean, but most chains of 50 meet no slow unit."""
    rng = np.random.default_rng(0)
    seconds = [(n + 200.0 * rng.binomial(n, 0.005, size=4000)).tolist() for n in UNITS]
    value, _, _ = exponent(list(UNITS), seconds, draws=50)
    medians = np.polyfit(np.log(UNITS), np.log([np.median(s) for s in seconds]), 1)[0]
    assert abs(value - 1.0) < 0.02 < medians - 1.0


def timed_row(units: int, seconds: float, at_least: bool = False) -> dict[str, Any]:
    return {"units": units, "sec": {"median": seconds}, "at_least": at_least}


def test_hopeless_cases_are_not_run() -> None:
    assert hopeless(50, 25.0, []) == ""
    assert hopeless(50, 25.0, [timed_row(10, 24.0)]) == ""  # one length says nothing about growth
    assert hopeless(100, 25.0, [timed_row(10, 0.2), timed_row(50, 5.0)]) == ""  # exponent 2: 20 s
    assert "20 s" in hopeless(100, 19.0, [timed_row(10, 0.2), timed_row(50, 5.0)])
    assert "reached the cap" in hopeless(50, 25.0, [timed_row(10, 25.0, at_least=True)])
    assert "failed" in hopeless(50, 25.0, [{"units": 10, "failures": []}])


CHAIN = {"chain_sec": 2.0, "error": "", "elements": [6, 6], "bonds": [[0, 1]], "x_ang": [[0, 0, 0], [1.5, 0, 0]]}
START = [{"versions": {"rdkit": "1"}}, {"library_sec": 0.5}]


def test_a_chain_that_reached_the_cap_counts_with_the_cap() -> None:
    row = read_rival([*START, CHAIN], -signal.SIGXCPU, 25.0, "")
    assert row["sec"]["median"] == 13.5
    assert row["at_least"]
    assert read_rival(START, -signal.SIGXCPU, 25.0, "")["sec"]["min"] == 25.0
    assert not read_rival([*START, CHAIN], 0, 25.0, "")["at_least"]


def test_a_failed_chain_has_no_time_but_says_so() -> None:
    row = read_rival([*START, {"chain_sec": 7.0, "error": "RuntimeError: no embedding found"}], 0, 25.0, "")
    assert "sec" not in row
    assert row["failures"] == [{"sec": 7.0, "error": "RuntimeError: no embedding found"}]
    with pytest.raises(RuntimeError, match="broken pipe"):
        read_rival(START, 1, 25.0, "broken pipe")


def rival(**job: Any) -> tuple[list[dict[str, Any]], int]:
    command = [sys.executable, rival_chain.__file__, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


def test_etkdg_in_a_process_of_its_own() -> None:
    lines, returncode = rival(builder="etkdg", smiles="CCOCCO", units=2, repeats=2, cap_sec=20)
    assert returncode == 0
    assert [line.get("error") for line in lines] == [None, None, "", ""]
    mol = lines[2]
    i, j = np.array(mol["bonds"]).T
    lengths = np.linalg.norm(np.subtract(np.array(mol["x_ang"])[i], np.array(mol["x_ang"])[j]), axis=1)
    assert len(mol["elements"]) == 6 + 10
    assert ((lengths > 0.9) & (lengths < 1.65)).all()
    assert mol["x_ang"] != lines[3]["x_ang"]


def test_a_chain_that_takes_too_long_is_stopped() -> None:
    lines, returncode = rival(builder="etkdg", smiles="CCO" * 120, units=120, repeats=3, cap_sec=1)
    assert returncode == -signal.SIGXCPU
    assert read_rival(lines, returncode, 1.0, "")["at_least"]


@pytest.mark.parametrize("squeeze", [1.0, 0.7])
def test_clashes_of_others_are_counted_as_our_own(squeeze: float) -> None:
    unit = build_unit("*CC(*)C")
    chain = grow_chain(unit, 12, num_conformations=1)
    heavy, hydrogen = (squeeze * part[0] for part in (chain.heavy_ang, chain.hydrogen_ang))
    mol = chain_mol(unit.topology, 12, hydrogens=True)
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    bonds = [[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()]
    found = count_clashes(elements, bonds, np.concatenate([heavy, hydrogen]).tolist())
    assert found == check_chain(unit.topology, 12, heavy, hydrogen).num_clashes
    assert (found > 0) == (squeeze < 1)


def test_the_record_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speed.json"
    asked: list[str] = []

    def measure(key: str, value: int) -> None:
        record.once(key, lambda: asked.append(key) or {"value": value})

    record = Record(path, {"code": "a", "commit": "1"})
    measure("first", 1)
    assert json.loads(path.read_text())["cases"] == {"first": {"value": 1}}
    record = Record(path, {"code": "a", "commit": "2"})
    measure("first", 5)
    measure("second", 2)
    assert asked == ["first", "second"]
    assert record.cases == {"first": {"value": 1}, "second": {"value": 2}}
    assert Record(path, {"code": "b", "commit": "2"}).cases == {}


def test_summary_compares_times_of_a_chain_and_with_what_is_done_once() -> None:
    chains = {str(n): {"all_sec": [0.002 * n] * 3, "sec": {"mean": 0.002 * n}} for n in UNITS}
    cases: dict[str, Any] = {f"ours/{name}": {"unit_sec": 0.1, "shapes_sec": {"median": 0.8}, "chains": chains} for name in POLYMERS}
    cases |= {f"ETKDGv3/{name}/50": {"sec": {"median": 8.0}, "library_sec": 0.0, "at_least": name == "nylon-6"} for name in POLYMERS}
    cases["random walk/nylon-6/50"] = {"sec": {"median": 4.0}, "library_sec": 1.0, "at_least": False}
    found = summary(cases)
    assert found["ratios"]["ETKDGv3"]["polystyrene"] == pytest.approx({"chain": 80.0, "with_library": 8.0, "at_least": False})
    assert found["ratios"]["ETKDGv3"]["nylon-6"]["at_least"]
    assert found["ratios"]["random walk"] == {"nylon-6": pytest.approx({"chain": 40.0, "with_library": 5.0, "at_least": False})}
    assert found["meets_ratio"] == dict(zip(RIVALS, (True, False, False)))
    assert all(found["meets_exponent"].values())


def test_both_engines_of_dynamics_start_from_the_same_energy() -> None:
    chain = relaxed_chain("*CC(*)c1ccccc1", 3)
    (run_openmm, openmm), (run_rdkit, rdkit) = openmm_steps(chain), rdkit_steps(chain)
    assert openmm == pytest.approx(rdkit, rel=1e-4)
    run_openmm(3)
    run_rdkit(3)
