"""Are the conformations those of real chains? Size, torsions, bonds and angles of the two engines against literature and other chains.

    python -m benchmarks.conformations simulate --work runs/conformations
    python -m benchmarks.conformations compare --work runs/conformations --data DATA
    python -m benchmarks.conformations results --work runs/conformations --out docs/results

The first runs chains one by one and keeps each in a file: stop it and start it again at will. The second relaxes and samples the chains
of other groups (a folder with the SDF files named in `conformation_references`). The third reads the files and writes
conformations.json and the figures.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.setting import commit, processor

TEMPERATURE_KELVIN = 413.0
TORSION_MOVES_PER_PS = 2000.0
FRAME_PS = 1.0
GROWN_CHAINS = 100


@dataclass(frozen=True)
class Polymer:
    """What is simulated: units are canonical ones, so `*C*` for polyethylene."""

    name: str
    psmiles: str
    num_units: int
    literature: tuple[float, float]  # characteristic ratio at infinite length, lowest and highest
    source: str
    far_repulsion: bool = True
    tacticity: str = "atactic"
    anneal_kelvin: float = 900.0  # chains are cooled from here, where they forget how they were grown
    anneal_ps: float = 4.0
    run_ps: float = 8.0
    num_chains: int = 8


FETTERS = "Fetters et al., Macromolecules 27 (1994) 4639, from <R^2>/M with C-C 1.53, C-O 1.43, Si-O 1.64 angstrom"
FLORY = "Flory, Statistical Mechanics of Chain Molecules (1969), table II-1"
REAL = (
    Polymer("polyethylene", "*C*", 100, (6.7, 7.5), f"7.5 at 413 K: {FETTERS}; 6.7 at 413 K: {FLORY}"),
    Polymer("poly(ethylene oxide)", "*CCO*", 33, (4.0, 5.5), f"5.5 at 353 K: {FETTERS}; 4.0 at 313 K: {FLORY}"),
    Polymer(
        "polydimethylsiloxane",
        "*O[Si](*)(C)C",
        40,
        (5.8, 6.4),
        f"5.8 at 298 K: {FETTERS}; 6.2 to 6.4 at 293 K: {FLORY}",
        anneal_kelvin=600.0,
    ),
    Polymer("polypropylene, atactic", "*CC(*)C", 40, (5.5, 6.0), f"6.0: {FETTERS}; 5.5 at 408 K: {FLORY}"),
    Polymer("polystyrene, atactic", "*CC(*)c1ccccc1", 25, (9.6, 10.0), f"9.6 at 413 K: {FETTERS}; 10.0: {FLORY}"),
    Polymer("poly(methyl methacrylate), atactic", "*CC(*)(C)C(=O)OC", 25, (6.9, 9.1), f"9.1 at 413 K: {FETTERS}; 6.9: {FLORY}"),
)
# Also without the repulsion between far atoms, which swells a chain. Such chains pass through themselves from five bonds on: the
# unperturbed chain lies between the two.
POLYMERS = tuple(
    polymer for real in REAL for polymer in (real, replace(real, name=f"{real.name}, ideal", source=f"as {real.name}", far_repulsion=False))
)
app = typer.Typer(add_completion=False, help=__doc__)


def file_name(polymer: Polymer, engine: str, number: int) -> str:
    """Of one chain."""
    return f"{polymer.name.replace(' ', '_').replace(',', '')}-{engine}-{number}.npz"


@app.command()
def simulate(
    work: Path = typer.Option(Path("runs/conformations"), help="Folder for the chains; those that are there are not run again."),
    only: str = typer.Option("", help="Polymers whose name contains this."),
    minutes: float = typer.Option(60.0, help="Stop before a chain that would start later than this, in minutes."),
) -> None:
    """Run every chain of every polymer, first number first, so that an early stop leaves some of each."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for number in range(max(polymer.num_chains for polymer in POLYMERS)):
        for polymer in POLYMERS:
            path = work / file_name(polymer, "md", number)
            if only not in polymer.name or number >= polymer.num_chains or path.exists():
                continue
            if time.monotonic() - started > 60 * minutes:
                typer.echo("out of time; start again to go on")
                raise typer.Exit(3)
            arrays = run_chain(polymer, number)
            with path.with_suffix(".part").open("wb") as file:
                np.savez_compressed(file, **arrays)
            path.with_suffix(".part").rename(path)
            typer.echo(f"{polymer.name} chain {number}: {float(arrays['cpu_sec']):.0f} s")


def run_chain(polymer: Polymer, number: int) -> dict[str, NDArray[Any]]:
    """Frames (F, H, 3) of one chain at the temperature, every FRAME_PS, the start after cooling included; with its torsions' memory."""
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.dynamics import Run
    from data_shards.conformers.grow import grow_chain
    from data_shards.recipe import MdSettings

    settings = MdSettings(
        temperature_kelvin=TEMPERATURE_KELVIN,
        anneal_kelvin=polymer.anneal_kelvin,
        anneal_ps=polymer.anneal_ps,
        run_ps=polymer.run_ps,
        far_repulsion=polymer.far_repulsion,
        torsion_moves_per_ps=TORSION_MOVES_PER_PS,
    )
    unit = build_unit(polymer.psmiles)
    before = time.process_time()
    grown = grow_chain(unit, polymer.num_units, num_conformations=1, tacticity=polymer.tacticity, seed=number)
    heavy = grown.heavy_ang.shape[1]
    run = Run(unit.topology, polymer.num_units, settings, number)
    run.begin(np.concatenate([grown.heavy_ang[0], grown.hydrogen_ang[0]]))
    frames = [run.simulation.positions_ang()[:heavy]]
    for _ in range(round(polymer.run_ps / FRAME_PS)):
        if run.advance(FRAME_PS)[1]:
            raise RuntimeError(f"{polymer.name} chain {number} broke")
        frames.append(run.simulation.positions_ang()[:heavy])
    memory = run.memory()
    return {
        "heavy_ang": np.array(frames, dtype=np.float32),
        "start_ang": grown.heavy_ang,
        "handedness": grown.handedness,
        "torsions_ps": np.array(memory["torsions_ps"]),
        "torsions": np.array(run.torsions, dtype=np.float32),
        "moves": np.array([run.moves_tried, run.moves_taken]),
        "cpu_sec": np.array(time.process_time() - before),
    }


@app.command()
def compare(
    work: Path = typer.Option(Path("runs/conformations"), help="Folder for what was found."),
    data: Path = typer.Option(..., help="Folder with the SDF files of other groups."),
) -> None:
    """Relax and sample the chains of other groups."""
    from benchmarks.conformation_references import sampled_against_real, units_against_dft

    work.mkdir(parents=True, exist_ok=True)
    sampled_against_real(data, work)
    if not (work / "dft_units.json").exists():
        units_against_dft(data, work)


@app.command()
def speed(
    work: Path = typer.Option(Path("runs/conformations"), help="Folder for what was found."),
    psmiles: str = typer.Option("*CC(*)c1ccccc1", help="Polymer."),
    num_units: list[int] = typer.Option([20, 100], help="Canonical units."),
) -> None:
    """Steps per second of dynamics, and what a step conserves."""
    work.mkdir(parents=True, exist_ok=True)
    found = {"steps": [md_steps_per_second(psmiles, count) for count in num_units], "conservation": conservation()}
    (work / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    typer.echo(json.dumps(found, indent=1))


def md_steps_per_second(psmiles: str, num_units: int, seconds: float = 5.0) -> dict[str, Any]:
    """Steps of molecular dynamics per processor second: OpenMM on one thread against velocity Verlet in Python on RDKit's forces.

    Args:
        psmiles: polymer.
        num_units: N.
        seconds: how long each is measured.
    """
    from data_shards.chem.chain import chain_mol
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.force_field import with_positions
    from data_shards.conformers.grow import grow_chain
    from data_shards.conformers.mmff_system import THETA, VACUUM
    from data_shards.conformers.simulation import Simulation

    unit = build_unit(psmiles)
    grown = grow_chain(unit, num_units, num_conformations=1)
    x_ang = np.concatenate([grown.heavy_ang[0], grown.hydrogen_ang[0]]).astype(np.float64)
    relaxed = Simulation(unit.topology, num_units, VACUUM)
    relaxed.place(x_ang)
    relaxed.minimise(100)
    x_ang = relaxed.positions_ang()
    found: dict[str, Any] = {"psmiles": psmiles, "num_units": num_units, "num_atoms": len(x_ang)}
    for name, environment in (("openmm_vacuum", VACUUM), ("openmm_theta", THETA)):
        simulation = Simulation(unit.topology, num_units, environment)
        simulation.place(x_ang)
        found[name] = _rate(lambda: simulation.integrator.step(50), 50, seconds)  # noqa: B023
    mol = with_positions(chain_mol(unit.topology, num_units, hydrogens=True), x_ang)
    found["rdkit_python"] = _rate(_rdkit_verlet(mol, x_ang, relaxed.masses_da), 1, seconds)
    return found


def _rdkit_verlet(mol: Any, x_ang: NDArray[np.float64], masses_da: NDArray[np.float64], step_ps: float = 0.001) -> Any:
    """One step of velocity Verlet on RDKit's MMFF94s, every pair of atoms, as a function."""
    from rdkit.Chem import rdForceFieldHelpers

    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, nonBondedThresh=1e6)
    field.Initialize()
    per_mass = -418.4 / masses_da[:, None]  # kcal/mol/angstrom per Da in angstrom/ps^2
    state = [x_ang, np.zeros_like(x_ang), per_mass * np.array(field.CalcGrad()).reshape(-1, 3)]

    def step() -> None:
        x, v, a = state
        v = v + 0.5 * step_ps * a
        x = x + step_ps * v
        a = per_mass * np.array(field.CalcGrad(x.ravel().tolist())).reshape(-1, 3)
        state[:] = [x, v + 0.5 * step_ps * a, a]

    return step


def _rate(advance: Any, steps: int, seconds: float) -> float:
    advance()
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        advance()
        count += steps
    return count / (time.process_time() - start)


def conservation() -> dict[str, Any]:
    """Fluctuation and drift of the total energy without a thermostat, polypropylene of 6 units near 400 K, 20 ps."""
    import openmm

    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.grow import grow_chain
    from data_shards.conformers.mmff_system import KJ_PER_KCAL, THETA
    from data_shards.conformers.simulation import Simulation

    unit = build_unit("*CC(*)C")
    grown = grow_chain(unit, 6, num_conformations=1)
    x_ang = np.concatenate([grown.heavy_ang[0], grown.hydrogen_ang[0]])
    kt_kcal_mol, rows = 1.987204e-3 * 400, []
    for mass in (None, 4.0):
        for step_fs in (0.25, 0.5, 1.0, 2.0) + ((3.0,) if mass else ()):
            make = lambda step=step_fs: openmm.VerletIntegrator(step / 1000)  # noqa: E731
            simulation = Simulation(unit.topology, 6, THETA, "CPU", make, mass)
            simulation.place(x_ang)
            simulation.minimise(200)
            simulation.context.setVelocitiesToTemperature(800, 7)
            energies = []
            for _ in range(400):
                simulation.integrator.step(round(50 / step_fs))
                state = simulation.context.getState(getEnergy=True)
                energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / KJ_PER_KCAL)
            freedoms = 3 * len(x_ang)
            slope = np.polyfit(0.05 * np.arange(400), energies, 1)[0]
            rows.append(
                {
                    "hydrogen_mass_da": mass or 1.008,
                    "step_fs": step_fs,
                    "fluctuation_kt_per_root_freedom": float(np.std(energies) / kt_kcal_mol / freedoms**0.5),
                    "drift_kt_per_freedom_per_ns": float(slope * 1000 / kt_kcal_mol / freedoms),
                }
            )
    return {"polymer": "*CC(*)C", "num_units": 6, "num_atoms": len(x_ang), "rows": rows}


@app.command()
def results(
    work: Path = typer.Option(Path("runs/conformations"), help="Folder with the chains."),
    out: Path = typer.Option(Path("docs/results"), help="Folder for conformations.json and figures/."),
) -> None:
    """Read what was found and write conformations.json and the figures."""
    from benchmarks.conformation_figures import draw
    from benchmarks.conformation_sizes import polymer_row, rotational_isomeric_states

    found: dict[str, Any] = {"setting": setting()}
    found["polymers"] = [polymer_row(polymer, work) for polymer in POLYMERS]
    found["polyethylene_torsions"] = rotational_isomeric_states(TEMPERATURE_KELVIN)
    for name in ("speed", "dft_units", "real_chains"):
        if (work / f"{name}.json").exists():
            found[name] = json.loads((work / f"{name}.json").read_text())
    draw(found, work, out / "figures")
    (out / "conformations.json").write_text(json.dumps(found, indent=1) + "\n")


def setting() -> dict[str, Any]:
    """Hardware, versions, polymers."""
    import openmm
    import rdkit

    return {
        "processor": processor(),
        "threads": 1,
        "commit": commit(),
        "python": platform.python_version(),
        "openmm": openmm.__version__,
        "rdkit": rdkit.__version__,
        "temperature_kelvin": TEMPERATURE_KELVIN,
        "polymers": [asdict(polymer) for polymer in POLYMERS],
    }


if __name__ == "__main__":
    app()
