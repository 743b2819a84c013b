"""Speed of preprocessing, side by side in one run: chain builders, cost against length, a corpus, molecular dynamics.

    python -m benchmarks.preprocess --corpus psmiles.csv --radonpy-python radonpy/bin/python --out docs/results

writes preprocess_speed.json after every case and goes on from there when it is started again with the same code and options; then it
prints the numbers as Markdown. All times are processor seconds of one thread.

    builders     from a P-SMILES to a chain with all its hydrogens, against RDKit's ETKDG and RadonPy's random walk (rival_chain.py).
                 The rivals run until a cap, 60 times our time with the shapes or more: there their time and the ratio are lower bounds.
    length       exponent of the mean time from 50 to 1,000 units
    corpus       random rows through the stages of data_shards.build: standardise, conform, quality, encode
    dynamics     MMFF94s steps per second in OpenMM and with RDKit's forces in a Python loop
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import typer

from benchmarks.preprocess_report import POLYMERS, RIVAL_UNITS, RIVALS, UNITS, page, summary
from benchmarks.setting import commit, processor

FILE = "preprocess_speed.json"
LIBRARIES = 3  # sets of shapes of every polymer; chains take turns with them
CAP_RATIO = 60.0
MEASURES = ("preprocess.py", "rival_chain.py", "dynamics_speed.py")


def main(
    corpus: Path = typer.Option(None, help="Table with a P-SMILES column; without it that part is left out."),
    radonpy_python: str = typer.Option(sys.executable, help="Interpreter that has radonpy-pypi; without RadonPy its cases are left out."),
    out: Path = typer.Option(Path("docs/results"), help=f"Folder for {FILE}."),
    rows: int = typer.Option(60, help="Rows of the corpus."),
    chain_units: int = typer.Option(1800, help="Units grown for every polymer and length, in chains of that length, at least three."),
    cap_sec: float = typer.Option(10.0, help=f"Processor seconds that a rival has for a chain, if {CAP_RATIO:g} times ours are not more."),
    budget_sec: float = typer.Option(570.0, help="Wall seconds after which no further case starts."),
    seed: int = typer.Option(0, help="Seed of the sample of the corpus."),
) -> None:
    """Measure what is not in the file yet, then print it all."""
    begun = time.monotonic()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    options = {"rows": rows, "chain_units": chain_units, "cap_sec": cap_sec, "seed": seed, "corpus": corpus.name if corpus else None}
    record = Record(out / FILE, setting(options))
    for name, psmiles in POLYMERS.items():
        record.once(f"ours/{name}", partial(own_chains, psmiles, chain_units))
    for units in (3, 12, 63):  # polystyrene of 56, 200 and 1,016 atoms
        record.once(f"dynamics/{units}", partial(dynamics, units))
    if corpus is not None:
        record.once("corpus", partial(through_stages, corpus, rows, seed))
    record.cases["radonpy"] = has_radonpy(radonpy_python)
    left = 0
    for units in RIVAL_UNITS:
        for name in POLYMERS:
            for rival in RIVALS if record.cases["radonpy"]["version"] else ("ETKDGv3",):
                key = f"{rival}/{name}/{units}"
                cap = max(cap_sec, CAP_RATIO * own_sec(record.cases[f"ours/{name}"], units))
                if key not in record.cases and time.monotonic() - begun + cap > budget_sec:
                    left += 1
                    continue
                shorter = [row for count in RIVAL_UNITS if count < units and (row := record.cases.get(f"{rival}/{name}/{count}"))]
                record.once(key, partial(rival_chains, rival, name, units, cap, radonpy_python, shorter))
    record.finish()
    typer.echo(page(record.result))
    if left:
        typer.echo(f"{left} cases are left; start the same command again to go on")


class Record:
    """The results on disk."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.result: dict[str, Any] = {"setting": facts, "cases": {}}
        if path.exists():
            earlier = json.loads(path.read_text())
            if {**earlier["setting"], "commit": ""} == {**facts, "commit": ""}:
                self.result = earlier

    @property
    def cases(self) -> dict[str, Any]:
        """Results by case."""
        cases: dict[str, Any] = self.result["cases"]
        return cases

    def once(self, key: str, measure: Any) -> None:
        """Measure a case that is not there yet."""
        if key not in self.cases:
            self.cases[key] = measure()
            typer.echo(f"{key}: {json.dumps(self.cases[key])[:200]}", err=True)
            self.write()

    def finish(self) -> None:
        """Add what follows from the cases."""
        self.result["summary"] = summary(self.cases)
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.result, indent=1) + "\n")
        part.replace(self.path)


def setting(options: dict[str, Any]) -> dict[str, Any]:
    """Hardware, versions, code and options. Two runs may share a file only if all but the commit agree."""
    import numpy
    import openmm
    import rdkit
    import scipy

    code = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.parent.glob("data_shards/**/*.py"), *(here / name for name in MEASURES)]):
        code.update(path.read_bytes())
    return {
        "processor": processor(),
        "threads": 1,
        "commit": commit(),
        "code": code.hexdigest()[:16],
        "python": platform.python_version(),
        "rdkit": rdkit.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "openmm": openmm.__version__,
        **options,
    }


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, mean, extremes and number of times."""
    import numpy as np

    return {
        "median": float(np.median(seconds)),
        "mean": float(np.mean(seconds)),
        "min": min(seconds),
        "max": max(seconds),
        "count": len(seconds),
    }


def own_chains(psmiles: str, chain_units: int) -> dict[str, Any]:
    """Chains of one polymer by the fast builder: the unit once, its shapes from some seeds, then every length."""
    import numpy as np

    from data_shards.chem.psmiles import canonicalise
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.fragments import fragment_library
    from data_shards.conformers.grow import grow_chain

    grow_chain(build_unit("*CCCCO*"), 5, num_conformations=1)  # warm-up
    start = time.process_time()
    multiplicity = canonicalise(psmiles).multiplicity
    unit = build_unit(psmiles)
    unit_sec = time.process_time() - start
    shapes_sec, libraries = [], []
    for seed in range(LIBRARIES):
        start = time.process_time()
        libraries.append(fragment_library(unit, seed=seed))
        shapes_sec.append(time.process_time() - start)
    chains: dict[str, Any] = {}
    for units in (RIVAL_UNITS[0], *UNITS):
        seconds, dead_ends, clashes = [], 0, 0
        for seed in range(LIBRARIES * max(1, chain_units // (LIBRARIES * units))):
            library = libraries[seed % LIBRARIES]
            start = time.process_time()
            chain = grow_chain(unit, units * multiplicity, num_conformations=1, seed=seed, library=library)
            seconds.append(time.process_time() - start)
            dead_ends += chain.info["dead_ends"][0]
            clashes += own_clashes(unit.topology, chain)
        count = len(seconds)
        chains[str(units)] = {
            "atoms": chain.heavy_ang.shape[1] + chain.hydrogen_ang.shape[1],
            "sec": spread(seconds),
            "all_sec": np.round(seconds, 5).tolist(),
            "dead_ends_per_unit": dead_ends / (count * units),
            "clashes_per_chain": clashes / count,
        }
    return {"psmiles": psmiles, "unit_sec": unit_sec, "shapes_sec": spread(shapes_sec), "chains": chains}


def own_clashes(topology: Any, chain: Any) -> int:
    """Clashes of the first conformation of a grown chain."""
    from data_shards.conformers.quality import check_chain

    num_units = len(chain.handedness)
    return check_chain(topology, num_units, chain.heavy_ang[0], chain.hydrogen_ang[0]).num_clashes


def count_clashes(elements: list[int], bonds: list[list[int]], x_ang: list[list[float]]) -> int:
    """The same for a molecule of any other builder."""
    import numpy as np

    from data_shards.conformers.quality import find_clashes, vdw_radii_ang

    kinds = np.array(elements)
    return len(find_clashes(np.array(x_ang), vdw_radii_ang(kinds), np.array(bonds), hydrogen=kinds == 1))


def own_sec(ours: dict[str, Any], units: int) -> float:
    """Seconds from a P-SMILES to one chain by the fast builder, shapes included."""
    total: float = ours["unit_sec"] + ours["shapes_sec"]["median"] + ours["chains"][str(units)]["sec"]["mean"]
    return total


def has_radonpy(interpreter: str) -> dict[str, Any]:
    """RadonPy's version in that interpreter, or why it is not there."""
    code = "import radonpy; print(radonpy.__version__)"
    try:
        found = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        return {"version": "", "why": str(error)}
    return {"version": found.stdout.strip(), "why": (found.stderr.splitlines() or [""])[-1]}


def rival_chains(
    rival: str, polymer: str, units: int, cap_sec: float, interpreter: str, shorter: list[dict[str, Any]], repeats: int = 3
) -> dict[str, Any]:
    """Chains of one polymer by another builder, in a process of its own.

    Args:
        rival: of RIVALS.
        polymer: of POLYMERS.
        units: N.
        cap_sec: processor seconds after which a chain is given up.
        interpreter: has RadonPy; ETKDG runs in the project's own.
        shorter: results of shorter chains, in order. Where they failed, reached the cap, or extrapolate beyond it, nothing is run.
        repeats: chains, fewer where they take long.
    """
    reason = hopeless(units, cap_sec, shorter)
    if reason:
        return {"units": units, "skipped": reason}
    from rdkit import Chem

    from data_shards.chem.chain import chain_mol
    from data_shards.chem.repeat_unit import build_unit

    kind = RIVALS[rival]
    job = {**kind, "psmiles": POLYMERS[polymer], "units": units, "repeats": repeats, "cap_sec": cap_sec}
    if kind["builder"] == "etkdg":
        job["smiles"] = Chem.MolToSmiles(chain_mol(build_unit(POLYMERS[polymer]).topology, units))
        interpreter = sys.executable
    script = str(Path(__file__).with_name("rival_chain.py"))
    done = subprocess.run([interpreter, script, json.dumps(job)], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {"units": units, "cap_sec": cap_sec, **read_rival(lines, done.returncode, cap_sec, done.stderr)}


def hopeless(units: int, cap_sec: float, shorter: list[dict[str, Any]]) -> str:
    """Why a case is not worth its time, or nothing."""
    import numpy as np

    usable = [row for row in shorter if "sec" in row and not row["at_least"]]
    if len(usable) < len(shorter):
        return "shorter chains reached the cap or failed"
    if len(usable) > 1:
        (n1, t1), (n2, t2) = ((row["units"], row["sec"]["median"]) for row in usable[-2:])
        expected_sec = t2 * (units / n2) ** (np.log(t2 / t1) / np.log(n2 / n1))
        if expected_sec > cap_sec:
            return f"about {expected_sec:.0f} s, extrapolated from {n1} and {n2} units"
    return ""


def read_rival(lines: list[dict[str, Any]], returncode: int, cap_sec: float, stderr: str) -> dict[str, Any]:
    """What the lines of rival_chain.py say. A chain that reached the cap counts with the cap."""
    import signal

    capped = returncode == -signal.SIGXCPU
    if returncode and not capped:
        raise RuntimeError(f"rival_chain.py failed with exit code {returncode}: {stderr[-3000:]}")
    chains = [line for line in lines if "chain_sec" in line]
    good = [line for line in chains if not line["error"]]
    facts: dict[str, Any] = {
        "versions": lines[0]["versions"],
        "library_sec": next((k["library_sec"] for k in lines if "library_sec" in k), None),
    }
    if len(good) < len(chains):
        facts["failures"] = [{"sec": line["chain_sec"], "error": line["error"]} for line in chains if line["error"]]
    seconds = [line["chain_sec"] for line in good] + [cap_sec] * capped
    if seconds:
        facts |= {"sec": spread(seconds), "at_least": capped}
    if good:
        clashes = [count_clashes(line["elements"], line["bonds"], line["x_ang"]) for line in good]
        facts |= {"atoms": len(good[0]["elements"]), "clashes_per_chain": sum(clashes) / len(clashes)}
    return facts


def through_stages(corpus: Path, rows: int, seed: int) -> dict[str, Any]:
    """Core-seconds of random rows of a table in the stages of data_shards.build: 10 units, 1 conformation."""
    import numpy as np

    from data_shards.recipe import make_recipe
    from data_shards.sources.table import TableSource
    from data_shards.stages import Dropped, conform, standardise

    recipe = make_recipe(num_units=10, num_conformations=1)
    drawn = random.Random(seed).sample(list(TableSource(str(corpus)).rows()), rows)
    seconds, reasons = [], Counter[str]()
    for row in drawn:
        start = time.process_time()
        work = standardise(recipe, row)
        done = work if isinstance(work, Dropped) else conform(recipe, "table", (work, b""))
        seconds.append(time.process_time() - start)
        reasons[done.reason if isinstance(done, Dropped) else "kept"] += 1
    return {
        "rows": rows,
        "core_sec": {**spread(seconds), "p90": float(np.percentile(seconds, 90))},
        "chains_per_core_sec": reasons["kept"] / sum(seconds),
        "funnel": dict(reasons.most_common()),
    }


def dynamics(units: int, repeats: int = 3, least_sec: float = 0.5) -> dict[str, Any]:
    """Steps per second of one polystyrene chain from the same start, 0.5 fs."""
    from benchmarks.dynamics_speed import openmm_steps, rdkit_steps, relaxed_chain

    chain = relaxed_chain(POLYMERS["polystyrene"], units)
    facts: dict[str, Any] = {"units": units, "atoms": len(chain.x_ang)}
    engines = {"openmm": openmm_steps, "rdkit": rdkit_steps, "openmm_theta": partial(openmm_steps, theta=True)}
    for name, prepare in engines.items():
        start = time.process_time()
        run, energy_kcal_mol = prepare(chain)
        setup_sec = time.process_time() - start
        steps = 4
        while (elapsed := timed(run, steps)) < least_sec:  # the first rounds warm up and find how many steps take long enough
            steps = max(2 * steps, int(steps * least_sec / elapsed))
        rates = [steps / timed(run, steps) for _ in range(repeats)]
        facts[name] = {"setup_sec": setup_sec, "steps_per_sec": spread(rates), "start_kcal_mol": energy_kcal_mol}
    return facts


def timed(run: Any, steps: int) -> float:
    """Processor seconds of some steps."""
    start = time.process_time()
    run(steps)
    return max(time.process_time() - start, 1e-6)


if __name__ == "__main__":
    typer.run(main)
