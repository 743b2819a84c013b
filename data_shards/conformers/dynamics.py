"""Molecular dynamics of chains: relax, sample and weigh conformations with MMFF94s in OpenMM.

Sampling grows a chain, minimises it, cools it from a higher temperature and runs Langevin dynamics at the temperature asked for. What a
processor runs in a minute is short against the memory of a chain, so by default every conformation comes from a chain grown afresh:
conformations are independent, and the run in front of each lets bonds, angles, contacts and the faster torsions forget how they were
built. A run that is long against its own memory may give several conformations, two autocorrelation times apart. The report says which
it was, and how long the memory is. Metropolis moves of torsions (torsion_moves.py) may be mixed in: they cross barriers that the run does
not.

Nothing is constrained. Hydrogens weigh 4 Da so that a step of 2 fs conserves energy; classical populations do not depend on masses.

Source: Zhang, Liu, Yan, Tuckerman and Liu, J. Phys. Chem. A 123 (2019) 6056 (LangevinMiddle); Feenstra, Hess and Berendsen, J. Comput.
Chem. 20 (1999) 786 (heavy hydrogens). Differs: the mass is not taken from the neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from data_shards.chem.repeat_unit import RepeatUnit
from data_shards.chem.stereo import measure_signs
from data_shards.conformers.fragments import FragmentLibrary, fragment_library
from data_shards.conformers.grow import GrownChain, grow_chain
from data_shards.conformers.mmff_system import THETA, VACUUM, Environment
from data_shards.conformers.quality import check_chain
from data_shards.conformers.simulation import Simulation
from data_shards.conformers.statistics import (
    RESOLVED,
    autocorrelation_time,
    backbone_path,
    radius_of_gyration_ang,
    torsions_rad,
)
from data_shards.conformers.torsion_moves import TorsionMoves
from data_shards.errors import InputError, PolymerError
from data_shards.recipe import MdSettings
from data_shards.schema import BOND_DOUBLE, UnitTopology, chain_bonds, chain_hydrogens, unit_slots

COOLING_STAGES = 10
FRAMES_PER_RUN = 100
MAX_BROKEN = 3  # chains that broke, before a polymer is given up
BROKEN = ("not-finite", "broken-bond", "extra-bond", "wrong-chirality", "pierced-ring")  # a clash or an angle is not: chains are warm
DEFAULTS = MdSettings()


@dataclass(frozen=True)
class Relaxed:
    """Conformations at a minimum, and what became of them."""

    heavy_ang: NDArray[np.float32]  # (K, H, 3)
    hydrogen_ang: NDArray[np.float32]  # (K, number of hydrogens, 3)
    energy_before_kcal_mol: NDArray[np.float64]  # (K,)
    energy_after_kcal_mol: NDArray[np.float64]  # (K,)
    converged: NDArray[np.bool_]  # (K,)
    reasons: tuple[str, ...]  # K; "" where the chain is whole, else as `quality.check_chain`, or turned-double-bond


def relax_chain(
    topology: UnitTopology,
    num_units: int,
    heavy_ang: NDArray[np.floating],
    hydrogen_ang: NDArray[np.floating],
    *,
    environment: Environment = THETA,
    max_iterations: int = 1000,
    platform: str = "CPU",
) -> Relaxed:
    """Minimise conformations of a chain, each for itself. The same input gives the same bits on CPU and Reference.

    Args:
        topology: the repeat unit.
        num_units: N.
        heavy_ang: (K, H, 3), or (H, 3) for one.
        hydrogen_ang: (K, number of hydrogens, 3), or without the first axis.
        environment: theta costs a time linear in N per iteration; so does another one with a cutoff.
        max_iterations: of each.
        platform: of OpenMM, or auto.

    Returns:
        With the K axis. A conformation with numbers that are not finite stays as it is, with energies that are not.

    Raises:
        PolymerError: no-force-field.
        InputError: wrong number of atoms.
    """
    heavy, x_ang = _joined(topology, num_units, heavy_ang, hydrogen_ang)
    chain = Simulation(topology, num_units, environment, platform)
    checks = _Checks(topology, num_units)
    energies, converged, reasons = np.full((2, len(x_ang)), np.nan), np.zeros(len(x_ang), dtype=bool), []
    for k, start in enumerate(x_ang):
        if np.isfinite(start).all():
            chain.place(start)
            energies[0, k] = chain.energy_kcal_mol()
            converged[k] = chain.minimise(max_iterations)
            x_ang[k], energies[1, k] = chain.positions_ang(), chain.energy_kcal_mol()
        reasons.append(checks.defect(start, x_ang[k]))
    relaxed = x_ang.astype(np.float32)
    return Relaxed(relaxed[:, :heavy], relaxed[:, heavy:], energies[0], energies[1], converged, tuple(reasons))


def chain_energy_kcal_mol(
    topology: UnitTopology,
    num_units: int,
    heavy_ang: NDArray[np.floating],
    hydrogen_ang: NDArray[np.floating],
    *,
    environment: Environment = VACUUM,
    platform: str = "CPU",
) -> NDArray[np.float64]:
    """MMFF94s energies (K,) of conformations; arguments and errors as `relax_chain`."""
    _, x_ang = _joined(topology, num_units, heavy_ang, hydrogen_ang)
    chain = Simulation(topology, num_units, environment, platform)
    energies = np.full(len(x_ang), np.nan)
    for k in np.flatnonzero(np.isfinite(x_ang).all(axis=(1, 2))):
        chain.place(x_ang[k])
        energies[k] = chain.energy_kcal_mol()
    return energies


def _joined(
    topology: UnitTopology, num_units: int, heavy_ang: NDArray[np.floating], hydrogen_ang: NDArray[np.floating]
) -> tuple[int, NDArray[np.float64]]:
    """Number of heavy atoms and all positions (K, A, 3)."""
    if num_units < 1:
        raise InputError(f"num_units {num_units} must be at least 1; ask for a chain of 1 unit or more")
    counts = chain_hydrogens(topology, num_units)
    wanted = (len(counts), int(counts.sum()))
    shapes = heavy_ang.shape[-2:], hydrogen_ang.shape[-2:]
    if shapes != ((wanted[0], 3), (wanted[1], 3)) or heavy_ang.shape[:-2] != hydrogen_ang.shape[:-2] or heavy_ang.ndim > 3:
        raise InputError(
            f"coordinates of shapes {heavy_ang.shape} and {hydrogen_ang.shape} are not those of {wanted[0]} heavy atoms and {wanted[1]} "
            f"hydrogens of {num_units} units; give both as (atoms, 3) or (conformations, atoms, 3)"
        )
    x_ang = np.concatenate([heavy_ang, hydrogen_ang], axis=-2).astype(np.float64)
    return wanted[0], x_ang.reshape(-1, sum(wanted), 3)


class _Checks:
    """Is a chain still what it was?"""

    def __init__(self, topology: UnitTopology, num_units: int) -> None:
        self.topology, self.num_units = topology, num_units
        self.slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
        self.heavy = int(self.slots.max()) + 1
        self.double_bonds = _stiff_torsions(topology, num_units)

    def defect(self, before_ang: NDArray[np.float64], after_ang: NDArray[np.float64]) -> str:
        """Reason, "" where there is none; positions (A, 3)."""
        signs = measure_signs(before_ang[self.slots], self.topology.stereo_centres, self.topology.stereo_neighbours)
        heavy, hydrogen = np.split(after_ang, [self.heavy])
        reason = check_chain(self.topology, self.num_units, heavy, hydrogen, handedness=signs).reason
        if reason:
            return reason
        one, other = (np.cos(torsions_rad(x_ang[self.double_bonds])) > 0 for x_ang in (before_ang, after_ang))
        return "turned-double-bond" if (one != other).any() else ""


def _stiff_torsions(topology: UnitTopology, num_units: int) -> NDArray[np.int64]:
    """(T, 4) heavy atoms of a torsion about each double bond that has one; none at cumulated double bonds."""
    bonds, orders = chain_bonds(topology, num_units)
    both = np.concatenate([bonds, bonds[:, ::-1]])
    both = both[np.lexsort(both.T[::-1])]
    atoms, first, degree = np.unique(both[:, 0], return_index=True, return_counts=True)
    one = np.full(int(bonds.max()) + 1, -1)
    other, doubles = one.copy(), np.bincount(bonds[orders == BOND_DOUBLE].ravel(), minlength=len(one))
    one[atoms] = both[first, 1]
    other[atoms[degree > 1]] = both[first[degree > 1] + 1, 1]
    b, c = bonds[(orders == BOND_DOUBLE) & (doubles[bonds] == 1).all(axis=1)].T
    a, d = (np.where(one[atom] == partner, other[atom], one[atom]) for atom, partner in ((b, c), (c, b)))
    torsions = np.stack([a, b, c, d], axis=1)
    return torsions[(torsions >= 0).all(axis=1)]


def environment_of(settings: MdSettings) -> Environment:
    """The environment that settings ask for."""
    if settings.environment == "vacuum":
        return VACUUM
    return Environment(reach_bonds=settings.reach_bonds, far_repulsion=settings.far_repulsion)


def sample_chain(
    unit: RepeatUnit,
    num_units: int,
    *,
    num_conformations: int,
    tacticity: str = "atactic",
    seed: int = 0,
    library: FragmentLibrary | None = None,
    settings: MdSettings = DEFAULTS,
) -> GrownChain:
    """Sample conformations of a chain at a temperature.

    Args:
        unit: repeat unit.
        num_units: N, at least 1.
        num_conformations: K, at least 1; all have the same configuration.
        tacticity: isotactic, syndiotactic or atactic.
        seed: of growth, velocities and thermostat; the same seed gives the same bits on CPU and Reference.
        library: shapes of the unit, built from the seed where None.
        settings: environment, temperature, lengths.

    Returns:
        Conformations whose bonds and handedness have been checked, with potential energies in their environment. ``info`` holds for
        every conformation the number of its run and the time since the one before it in that run; for every run its autocorrelation
        times in ps and whether it was long enough to know them (a time that is not resolved is a lower bound); and the reasons of
        chains that broke and were replaced.

    Raises:
        PolymerError: as grow_chain; no-force-field without MMFF94; broken-chain where MAX_BROKEN chains broke.
        InputError: a count below 1, an unknown tacticity, a platform that is not here.
    """
    library = fragment_library(unit, seed=seed) if library is None else library
    grown = grow_chain(unit, num_units, num_conformations=num_conformations, tacticity=tacticity, seed=seed, library=library)
    run = Run(unit.topology, num_units, settings, seed)
    checks = _Checks(unit.topology, num_units)
    kept: list[NDArray[np.float64]] = []
    energies: list[float] = []
    spacing_ps: list[float] = []
    run_of: list[int] = []
    broken: list[str] = []
    times: list[dict[str, Any]] = []
    start = 0
    while len(kept) < num_conformations:
        if start == len(grown.heavy_ang):
            more = num_conformations + MAX_BROKEN
            grown = grow_chain(unit, num_units, num_conformations=more, tacticity=tacticity, seed=seed, library=library)
        begin = np.concatenate([grown.heavy_ang[start], grown.hydrogen_ang[start]]).astype(np.float64)
        start += 1
        run.begin(begin)
        wait_ps = settings.run_ps
        while True:
            went_ps, defect = run.advance(wait_ps)
            defect = defect or checks.defect(begin, run.simulation.positions_ang())
            if defect in BROKEN or defect == "turned-double-bond":
                broken.append(defect)
                break
            kept.append(run.simulation.positions_ang())
            energies.append(run.simulation.energy_kcal_mol())
            spacing_ps.append(went_ps)
            run_of.append(start - 1)
            known = run.memory()
            wait_ps = 2 * known["longest_ps"]
            if len(kept) == num_conformations or not known["resolved"] or wait_ps > settings.max_spacing_ps:
                times.append({"run": start - 1, **known})
                break
        if len(broken) == MAX_BROKEN:
            detail = f"{MAX_BROKEN} chains broke ({', '.join(broken)}); lower anneal_kelvin or timestep_fs, or use the grow engine"
            raise PolymerError(unit.topology.psmiles, "broken-chain", detail)
    x_ang = np.stack(kept)
    x_ang = (x_ang - x_ang[:, : checks.heavy].mean(axis=1, keepdims=True)).astype(np.float32)
    info = grown.info | {
        "dynamics_force_field": "MMFF94s",
        "environment": settings.environment,
        "temperature_kelvin": settings.temperature_kelvin,
        "platform": run.simulation.context.getPlatform().getName(),
        "run_of_conformation": run_of,
        "spacing_ps": spacing_ps,
        "runs": times,
        "broken": broken,
        "torsion_moves": {"tried": run.moves_tried, "taken": run.moves_taken},
    }
    return GrownChain(x_ang[:, : checks.heavy], x_ang[:, checks.heavy :], grown.handedness, info, np.array(energies))


class Run:
    """Langevin dynamics of a chain from one start after the other, and what it remembers."""

    def __init__(self, topology: UnitTopology, num_units: int, settings: MdSettings, seed: int) -> None:
        self.settings = settings
        self.path = backbone_path(topology, num_units)
        self.period = (len(self.path) - 2) // num_units  # backbone bonds of a unit
        self.seeds = np.random.default_rng([seed, num_units])

        def integrator() -> Any:
            made = openmm.LangevinMiddleIntegrator(settings.temperature_kelvin, settings.friction_per_ps, settings.timestep_fs / 1000)
            made.setRandomNumberSeed(self._seed())
            return made

        environment = environment_of(settings)
        self.simulation = Simulation(topology, num_units, environment, settings.platform, integrator, settings.hydrogen_mass_da)
        self.every = max(1, round(settings.run_ps * 1000 / settings.timestep_fs / FRAMES_PER_RUN))  # steps between frames
        self.frame_ps = self.every * settings.timestep_fs / 1000
        self.moves = TorsionMoves.of_chain(topology, num_units) if settings.torsion_moves_per_ps else None
        self.moves_tried = self.moves_taken = 0
        self.moves_owed = 0.0  # a frame may be worth less than one
        self.sizes: list[list[float]] = []
        self.torsions: list[NDArray[np.float64]] = []

    def _seed(self) -> int:
        return int(self.seeds.integers(1, 2**31 - 1))  # OpenMM draws its own for 0

    def begin(self, x_ang: NDArray[np.floating]) -> None:
        """Minimise a start (A, 3) and cool it to the temperature."""
        settings, simulation = self.settings, self.simulation
        self.sizes, self.torsions = [], []
        simulation.place(x_ang)
        simulation.minimise(settings.minimise_iterations)
        hot = settings.anneal_kelvin if settings.anneal_ps > 0 else 0.0
        stages = np.linspace(hot, settings.temperature_kelvin, COOLING_STAGES) if hot > settings.temperature_kelvin else np.array([])
        steps = round(settings.anneal_ps * 1000 / settings.timestep_fs / COOLING_STAGES)
        first = stages[0] if len(stages) else settings.temperature_kelvin
        simulation.context.setVelocitiesToTemperature(float(first), self._seed())
        for kelvin in stages.tolist():
            simulation.integrator.setTemperature(kelvin)
            if self._step(steps):
                self._turn(steps * settings.timestep_fs / 1000, kelvin)
        simulation.integrator.setTemperature(settings.temperature_kelvin)

    def _turn(self, length_ps: float, kelvin: float) -> None:
        """The torsion moves that a stretch of dynamics is worth."""
        if self.moves is None:
            return
        self.moves_owed += length_ps * self.settings.torsion_moves_per_ps
        trials = int(self.moves_owed)
        self.moves_owed -= trials
        self.moves_taken += self.moves.run(self.simulation, trials, kelvin, self.seeds)
        self.moves_tried += trials

    def _step(self, steps: int) -> bool:
        """False where coordinates are lost."""
        try:
            self.simulation.integrator.step(steps)
        except openmm.OpenMMException:
            return False
        return True

    def advance(self, length_ps: float) -> tuple[float, str]:
        """Run for a length, up to whole frames, and record; returns it in ps, and not-finite where the chain blew up."""
        frames = max(1, round(length_ps / self.frame_ps))
        for _ in range(frames):
            if not self._step(self.every):
                return frames * self.frame_ps, "not-finite"
            if not np.isfinite(self.simulation.positions_ang()).all():
                return frames * self.frame_ps, "not-finite"
            self._turn(self.frame_ps, self.settings.temperature_kelvin)
            x_ang = self.simulation.positions_ang()
            backbone_ang = x_ang[self.path]
            angles = torsions_rad(backbone_ang)
            size = float(radius_of_gyration_ang(x_ang, self.simulation.masses_da))
            self.sizes.append([size, float(np.linalg.norm(backbone_ang[-1] - backbone_ang[0]))])
            self.torsions.append(np.stack([np.cos(angles), np.sin(angles)]))
        return frames * self.frame_ps, ""

    def memory(self) -> dict[str, Any]:
        """Autocorrelation times of the run so far, in ps: radius of gyration, end-to-end distance, and directions of backbone torsions.

        Torsions fluctuate about the mean of all units, so that one that never left its well is not taken for one at rest. The turning of
        a chain as a whole is no conformation and does not count.
        """
        sizes, frame_ps = np.array(self.sizes), self.frame_ps
        torsions = np.array(self.torsions)  # (T, 2, P - 3)
        for first in range(min(self.period, torsions.shape[-1])):
            torsions[:, :, first :: self.period] -= torsions[:, :, first :: self.period].mean(axis=(0, 2), keepdims=True)
        series = {"radius_of_gyration_ps": sizes[:, 0] - sizes[:, 0].mean(), "end_to_end_ps": sizes[:, 1] - sizes[:, 1].mean()}
        series |= {"torsions_ps": torsions} if torsions.size else {}
        times = {name: autocorrelation_time(values) * frame_ps for name, values in series.items()}
        longest, length = max(times.values()), len(sizes) * frame_ps
        return {**times, "longest_ps": longest, "length_ps": length, "resolved": length >= RESOLVED * longest}
