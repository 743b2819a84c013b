"""Characteristic ratios, torsion populations and memory of simulated and grown chains; the rotational isomeric state model beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.conformations import Polymer

GAS_CONSTANT_KCAL_MOL_K = 1.987204e-3
EDGE_BONDS = 3  # at either end, not counted
SHORTEST_FIT_BONDS = 12  # of the straight line against 1/n
RESAMPLES = 2_000
ABE_KCAL_MOL = (0.5, 2.0)  # gauche, and two gauche of opposite sign in a row, above trans
GAUCHE_RAD = float(np.deg2rad(67.5))  # torsion, trans is pi
BOND_ANGLE_RAD = float(np.deg2rad(112.0))


def polymer_row(polymer: Polymer, work: Path) -> dict[str, Any]:
    """Everything about one polymer, as far as its chains have been run."""
    from benchmarks.conformations import file_name
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.dynamics import FRAMES_PER_RUN
    from data_shards.conformers.statistics import backbone_path
    from data_shards.schema import chain_elements

    topology = build_unit(polymer.psmiles).topology
    path = backbone_path(topology, polymer.num_units)
    period = (len(path) - 2) // polymer.num_units
    chains = [np.load(found) for k in range(polymer.num_chains) if (found := work / file_name(polymer, "md", k)).exists()]
    row = {
        "name": polymer.name,
        "psmiles": polymer.psmiles,
        "bonds": len(path) - 1,
        "bonds_per_unit": period,
        "literature": polymer.literature,
        "source": polymer.source,
        "anneal_kelvin": polymer.anneal_kelvin,
        "anneal_ps": polymer.anneal_ps,
        "num_chains": len(chains),
    }
    if polymer.far_repulsion:
        grown = grown_chains(polymer, work)[:, None, path].astype(np.float64)
        row["grow"] = sizes(grown, period)
        if polymer.psmiles == "*C*":
            row["torsions_grow"] = polymethylene_torsions(grown)
    if not chains:
        return row
    frames = np.stack([chain["heavy_ang"][:, path] for chain in chains]).astype(np.float64)  # (chains, F, P, 3)
    counted = frames[:, frames.shape[1] // 3 :]
    length_ps = len(chains[0]["torsions"]) * polymer.run_ps / FRAMES_PER_RUN  # whole frames
    row |= {
        "run_ps": length_ps,
        "core_seconds": float(sum(float(chain["cpu_sec"]) for chain in chains)),
        "md": sizes(counted, period),
        "md_first_frame": sizes(frames[:, :1], period),
        "torsion_memory": memory([chain["torsions"] for chain in chains], period, length_ps),
        "backbone": backbone_geometry(counted, chain_elements(topology, polymer.num_units)[path]),
    }
    if polymer.psmiles == "*C*":
        row["torsions"] = polymethylene_torsions(counted)
        row["torsions_first_frame"] = polymethylene_torsions(frames[:, :1])
    return row


def backbone_geometry(backbone_ang: NDArray[np.float64], elements: NDArray[np.integer]) -> dict[str, dict[str, float]]:
    """Mean and spread of bonds (angstrom) and angles (degrees) along the backbone, by atomic numbers."""
    steps = np.diff(backbone_ang, axis=2)
    lengths = np.linalg.norm(steps, axis=-1)
    cosine = -(steps[:, :, 1:] * steps[:, :, :-1]).sum(axis=-1) / lengths[:, :, 1:] / lengths[:, :, :-1]
    angles = np.rad2deg(np.arccos(cosine.clip(-1, 1)))
    found = {}
    for width, values in ((2, lengths), (3, angles)):
        windows = [elements[k : k + width].tolist() for k in range(len(elements) - width + 1)]
        kinds = ["-".join(str(number) for number in min(window, window[::-1])) for window in windows]
        for kind in sorted(set(kinds)):
            picked = values[:, :, [k for k, other in enumerate(kinds) if other == kind]]
            found[kind] = {"mean": float(picked.mean()), "spread": float(picked.std())}
    return found


def grown_chains(polymer: Polymer, work: Path) -> NDArray[np.float32]:
    """(chains, H, 3) from the grow engine, each with tacticity and conformation of its own; kept in a file."""
    from benchmarks.conformations import GROWN_CHAINS, file_name
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.fragments import fragment_library
    from data_shards.conformers.grow import grow_chain

    path = work / file_name(polymer, "grow", GROWN_CHAINS)
    if not path.exists():
        unit = build_unit(polymer.psmiles)
        library = fragment_library(unit)
        asked: dict[str, Any] = {"num_conformations": 1, "tacticity": polymer.tacticity, "library": library}
        chains = [grow_chain(unit, polymer.num_units, seed=k, **asked).heavy_ang[0] for k in range(GROWN_CHAINS)]
        with path.open("wb") as file:
            np.savez_compressed(file, heavy_ang=np.stack(chains))
    found: NDArray[np.float32] = np.load(path)["heavy_ang"]
    return found


def sizes(backbone_ang: NDArray[np.float64], period: int) -> dict[str, Any]:
    """Characteristic ratios C_n = <r^2> / sum of l^2 of stretches of n bonds, and their limit, with 95 % intervals over chains.

    Args:
        backbone_ang: (chains, F, P, 3).
        period: backbone bonds of a unit; n goes in whole units.
    """
    inner = backbone_ang[:, :, EDGE_BONDS : backbone_ang.shape[2] - EDGE_BONDS]
    lengths = np.arange(period, 2 * inner.shape[2] // 3, period)
    squares = (np.diff(inner, axis=2) ** 2).sum(axis=-1)
    travelled = np.cumsum(np.pad(squares, ((0, 0), (0, 0), (1, 0))), axis=2)
    span, bonds = [], []
    for n in lengths.tolist():
        span.append(((inner[:, :, n:] - inner[:, :, :-n]) ** 2).sum(axis=-1).mean(axis=(1, 2)))
        bonds.append((travelled[:, :, n:] - travelled[:, :, :-n]).mean(axis=(1, 2)))
    r2, l2 = np.array(span), np.array(bonds)  # (n, chains)
    pick = np.random.default_rng(0).integers(r2.shape[1], size=(RESAMPLES, r2.shape[1]))
    ratios = r2.mean(axis=1) / l2.mean(axis=1)
    resampled = r2[:, pick].mean(axis=2) / l2[:, pick].mean(axis=2)  # (n, RESAMPLES)
    fitted = (lengths >= SHORTEST_FIT_BONDS) & (lengths <= backbone_ang.shape[2] // 2)
    basis = np.stack([np.ones(fitted.sum()), 1.0 / lengths[fitted]], axis=1)
    limit = np.linalg.lstsq(basis, ratios[fitted], rcond=None)[0]
    limits = np.linalg.lstsq(basis, resampled[fitted], rcond=None)[0][0]
    return {
        "num_chains": int(r2.shape[1]),
        "n": lengths.tolist(),
        "c_n": ratios.tolist(),
        "c_n_interval": np.percentile(resampled, [2.5, 97.5], axis=1).T.tolist(),
        "c_inf": float(limit[0]),
        "c_inf_interval": np.percentile(limits, [2.5, 97.5]).tolist(),
        "slope": float(limit[1]),
    }


def memory(torsions: list[NDArray[np.float32]], period: int, run_ps: float) -> dict[str, Any]:
    """Autocorrelation of backbone torsions about the mean of their place in the unit, over all chains.

    Args:
        torsions: of every chain (T, 2, P - 3) cosines and sines.
        period: backbone bonds of a unit.
        run_ps: length of a run.
    """
    from data_shards.conformers.statistics import RESOLVED, autocorrelation, autocorrelation_time

    series = np.stack(torsions).astype(np.float64)  # (chains, T, 2, P - 3)
    for first in range(period):
        series[..., first::period] -= series[..., first::period].mean(axis=(0, 1, 3), keepdims=True)
    joined = np.moveaxis(series, 0, 1).reshape(series.shape[1], -1)
    frame_ps = run_ps / len(joined)
    time_ps = autocorrelation_time(joined) * frame_ps
    return {
        "time_ps": time_ps,
        "resolved": bool(run_ps >= RESOLVED * time_ps),
        "frame_ps": frame_ps,
        "autocorrelation": autocorrelation(joined)[: len(joined) // 2].tolist(),
    }


def polymethylene_torsions(backbone_ang: NDArray[np.float64]) -> dict[str, Any]:
    """Shares of trans bonds and of neighbouring gauche bonds of opposite sign, with 95 % intervals over chains; a histogram of |phi|."""
    from data_shards.conformers.statistics import torsions_rad

    angles = torsions_rad(backbone_ang[:, :, EDGE_BONDS:-EDGE_BONDS])
    trans = np.abs(angles) > 2 * np.pi / 3
    opposite = ~trans[..., 1:] & ~trans[..., :-1] & (angles[..., 1:] * angles[..., :-1] < 0)
    rng = np.random.default_rng(0)
    pick = rng.integers(len(angles), size=(RESAMPLES, len(angles)))
    found: dict[str, Any] = {}
    for name, flags in (("trans", trans), ("opposite_gauche_pairs", opposite)):
        per_chain = flags.mean(axis=(1, 2))
        found[name] = float(per_chain.mean())
        found[f"{name}_interval"] = np.percentile(per_chain[pick].mean(axis=1), [2.5, 97.5]).tolist()
    counts, _ = np.histogram(np.rad2deg(np.abs(angles)), bins=60, range=(0, 180))
    return found | {"histogram": (counts / counts.sum()).tolist()}


def rotational_isomeric_states(kelvin: float) -> dict[str, Any]:
    """The model of polymethylene: with the energies of Abe, Jernigan and Flory, and with those of MMFF94s pentane.

    Source: Abe, Jernigan and Flory, J. Am. Chem. Soc. 88 (1966) 631; Flory (1969), chapter III (populations) and IV (generator matrices).
    """
    models = {"abe_jernigan_flory": ABE_KCAL_MOL, "mmff94s": pentane_energies_kcal_mol()}
    return {name: {"gauche_kcal_mol": e[0], "opposite_gauche_kcal_mol": e[1]} | _model(*e, kelvin) for name, e in models.items()}


def _model(gauche_kcal_mol: float, opposite_kcal_mol: float, kelvin: float) -> dict[str, float]:
    sigma, omega = np.exp(-np.array([gauche_kcal_mol, opposite_kcal_mol]) / (GAS_CONSTANT_KCAL_MOL_K * kelvin))
    weights = np.array([[1, sigma, sigma], [1, sigma, sigma * omega], [1, sigma * omega, sigma]])
    values, right = np.linalg.eig(weights)
    _, left = np.linalg.eig(weights.T)
    first, same = int(np.argmax(values.real)), int(np.argmax(np.linalg.eigvals(weights.T).real))
    r, s = right[:, first].real, left[:, same].real
    pairs = s[:, None] * weights * r[None]
    pairs /= pairs.sum()
    return {
        "trans": float(pairs.sum(axis=1)[0]),
        "opposite_gauche_pairs": float(pairs[1, 2] + pairs[2, 1]),
        "c_inf": _characteristic_ratio(weights, 4_000),
    }


def _characteristic_ratio(weights: NDArray[np.float64], num_bonds: int) -> float:
    """<r^2> / (n l^2) of a chain of n unit bonds, by recursion of <r^2>, of the end-to-end vector and of weights of the last state.

    For the last bond in state s, in its own frame: z weight, v = sum of weight times the vector so far, q = sum times its square.
    """
    cos, sin = -np.cos(BOND_ANGLE_RAD), np.sin(BOND_ANGLE_RAD)
    z, v, q = np.ones(3), np.tile([1.0, 0.0, 0.0], (3, 1)), np.ones(3)
    turned = np.array([np.pi, GAUCHE_RAD, -GAUCHE_RAD]) - np.pi
    last_from_next = np.array(
        [[[cos, sin, 0], [sin * c, -cos * c, s], [sin * s, -cos * s, -c]] for c, s in zip(np.cos(turned), np.sin(turned))]
    )
    for _ in range(num_bonds - 1):
        into = weights / weights.max()
        z_new = z @ into
        moved = np.einsum("sba,rb,rs->sa", last_from_next, v, into)  # the vector so far in the next frame
        v = moved + z_new[:, None] * np.array([1.0, 0.0, 0.0])
        q = q @ into + 2 * moved[:, 0] + z_new
        scale = z_new.sum()
        z, v, q = z_new / scale, v / scale, q / scale
    return float(q.sum() / z.sum() / num_bonds)


def pentane_energies_kcal_mol() -> tuple[float, float]:
    """Gauche, and what a pair of gauche bonds of opposite sign costs beyond two of them, at minima of MMFF94s in the theta environment."""
    from rdkit.Chem import rdMolTransforms

    from data_shards.chem.chain import chain_mol
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.force_field import with_positions
    from data_shards.conformers.grow import grow_chain
    from data_shards.conformers.mmff_system import THETA
    from data_shards.conformers.simulation import Simulation
    from data_shards.conformers.statistics import backbone_path, torsions_rad

    topology = build_unit("*C*").topology
    path = backbone_path(topology, 3)
    grown = grow_chain(build_unit("*C*"), 3, num_conformations=1)
    mol = with_positions(chain_mol(topology, 3, hydrogens=True), np.concatenate([grown.heavy_ang[0], grown.hydrogen_ang[0]]))
    simulation = Simulation(topology, 3, THETA, "Reference")
    lowest = {}
    for name, angles in (("tt", (180, 180)), ("tg", (180, 65)), ("g+g-", (65, -95)), ("g-g+", (-95, 65))):
        for k, angle in enumerate(angles):
            rdMolTransforms.SetDihedralDeg(mol.GetConformer(), *path[k : k + 4].tolist(), angle)
        simulation.place(mol.GetConformer().GetPositions())
        simulation.minimise(10_000)
        found = np.rad2deg(torsions_rad(simulation.positions_ang()[path]))
        if name in ("g+g-", "g-g+") and not (found[0] * found[1] < 0 and np.abs(found).max() < 120):
            raise RuntimeError(f"pentane left {name}: {found}")
        lowest[name] = simulation.energy_kcal_mol()
    gauche = lowest["tg"] - lowest["tt"]
    return gauche, min(lowest["g+g-"], lowest["g-g+"]) - lowest["tt"] - 2 * gauche
