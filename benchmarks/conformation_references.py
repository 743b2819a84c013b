"""Bonds, angles and torsions against chains of other groups: density functional theory and atomistic dynamics with other force fields.

Files (`--data`): huan2016_chain_units.sdf, one period of a chain out of a relaxed crystal, its period in `translation_A`;
aqml_polymer_oligomers.sdf, B3LYP/cc-pVDZ oligomers and fragments; md_polymer_chains.sdf, PCFF+ at 353 K; polyverse_md_chains.sdf, a
trimer out of an amorphous cell. An atom is named by element and geometry (C3 tetrahedral, C2 planar, C1 linear, Car aromatic).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

SIGNS = {1.0: "-", 1.5: ":", 2.0: "=", 3.0: "#"}
GEOMETRY = {Chem.HybridizationType.SP: "1", Chem.HybridizationType.SP2: "2", Chem.HybridizationType.SP3: "3"}
LARGEST_PERIOD_ATOMS = 45  # of three that are minimised; larger ones are left out
MIN_COUNT = 20  # of a kind of bond or angle in the tables
TORSION_BINS = 36
SAMPLED_UNITS, SAMPLED_CHAINS, GROWN_CHAINS = 4, 8, 60
SAMPLED_KELVIN = 353.0
Values = dict[str, list[float]]


def units_against_dft(data: Path, work: Path) -> None:
    """Minimise chains from their DFT geometry and write dft_units.json: what MMFF94s moves, kind by kind."""
    found: dict[str, Any] = {}
    for name, source in (("huan2016_chain_units", _periodic_chains), ("aqml_polymer_oligomers", _oligomers)):
        moved: dict[str, list[tuple[float, float]]] = defaultdict(list)
        skipped: dict[str, int] = defaultdict(int)
        energies: dict[str, list[tuple[float, float]]] = defaultdict(list)
        used = 0
        for mol, x_ang, counted, properties in source(data / f"{name}.sdf"):
            if mol is None:
                skipped[properties["reason"]] += 1
                continue
            relaxed = minimise(mol, x_ang)
            if relaxed is None:
                skipped["no-force-field"] += 1
                continue
            used += 1
            before, after = (list(internal(mol, x, counted)) for x in (x_ang, relaxed[0]))
            for (kind, one), (_, other) in zip(before, after, strict=True):
                moved[kind].append((one, other))
            if "energy_b3lyp_ccpvdz_hartree" in properties:
                energies[properties["smiles"]].append((627.5095 * properties["energy_b3lyp_ccpvdz_hartree"], relaxed[1]))
        found[name] = {"used": used, "skipped": dict(skipped), "kinds": [_moved_row(kind, rows) for kind, rows in sorted(moved.items())]}
        if energies:
            found[name]["conformer_energies"] = _energy_row(energies)
        (work / "dft_units.json").write_text(json.dumps(found, indent=1) + "\n")


def _moved_row(kind: str, rows: list[tuple[float, float]]) -> dict[str, Any]:
    one, other = np.array(rows).T
    change = other - one
    if kind.startswith("torsion"):
        change = (change + 180) % 360 - 180
    return {
        "kind": kind,
        "count": len(rows),
        "reference": float(one.mean()),
        "mmff94s": float(other.mean()),
        "mean_change": float(change.mean()),
        "rms_change": float(np.sqrt((change**2).mean())),
        "median_size_of_change": float(np.median(np.abs(change))),
    }


def _energy_row(energies: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Relative energies of the conformers of one molecule, both about their mean, over molecules with at least three."""
    several = [np.array(rows) for rows in energies.values() if len(rows) >= 3]
    joined = np.concatenate([rows - rows.mean(axis=0) for rows in several])
    return {
        "molecules": len(several),
        "conformers": len(joined),
        "rms_error_kcal_mol": float(np.sqrt(((joined[:, 0] - joined[:, 1]) ** 2).mean())),
        "spread_kcal_mol": float(joined[:, 0].std()),
        "correlation": float(np.corrcoef(joined.T)[0, 1]),
    }


def _periodic_chains(path: Path) -> Iterator[tuple[Chem.Mol | None, NDArray[np.float64], set[int], dict[str, Any]]]:
    """Three periods of every chain with hydrogens on both ends, and the atoms of the middle one."""
    for record in Chem.SDMolSupplier(str(path), removeHs=False):
        step_ang = np.array([float(value) for value in record.GetProp("translation_A").split()])
        built = _unroll(record, step_ang, 3)
        yield (None, np.zeros((0, 3)), set(), {"reason": built}) if isinstance(built, str) else (*built, record.GetPropsAsDict())


def _unroll(record: Chem.Mol, step_ang: NDArray[np.float64], copies: int) -> tuple[Chem.Mol, NDArray[np.float64], set[int]] | str:
    x_ang = record.GetConformer().GetPositions()
    stars = [atom for atom in record.GetAtoms() if atom.GetAtomicNum() == 0]
    ends = [star.GetNeighbors()[0].GetIdx() for star in stars]
    orders = [star.GetBonds()[0].GetBondTypeAsDouble() for star in stars]
    if record.GetNumAtoms() > LARGEST_PERIOD_ATOMS:
        return "large"
    if orders != [1.0, 1.0]:
        return "junction-order"
    step_ang = step_ang * (1 if np.linalg.norm(x_ang[stars[1].GetIdx()] - x_ang[ends[0]] - step_ang) < 0.1 else -1)
    if np.linalg.norm(x_ang[stars[1].GetIdx()] - x_ang[ends[0]] - step_ang) > 0.1:
        return "period"
    real = [atom.GetIdx() for atom in record.GetAtoms() if atom.GetAtomicNum() > 0]
    place = {index: k for k, index in enumerate(real)}
    chain, positions = Chem.RWMol(), []
    for copy in range(copies):
        for index in real:
            atom = record.GetAtomWithIdx(index)
            new = Chem.Atom(atom.GetAtomicNum())
            new.SetFormalCharge(atom.GetFormalCharge())
            new.SetNoImplicit(True)
            chain.AddAtom(new)
            positions.append(x_ang[index] + copy * step_ang)
        for bond in record.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if i in place and j in place:
                chain.AddBond(copy * len(real) + place[i], copy * len(real) + place[j], bond.GetBondType())
    for copy in range(copies - 1):
        chain.AddBond(copy * len(real) + place[ends[1]], (copy + 1) * len(real) + place[ends[0]], Chem.BondType.SINGLE)
    for copy, side in ((0, 0), (copies - 1, 1)):
        end, outward = copy * len(real) + place[ends[side]], x_ang[stars[side].GetIdx()] - x_ang[ends[side]]
        chain.AddBond(end, chain.AddAtom(Chem.Atom(1)), Chem.BondType.SINGLE)
        positions.append(positions[end] + 1.09 * outward / np.linalg.norm(outward))
    mol = chain.GetMol()
    try:
        Chem.SanitizeMol(mol)
    except Chem.MolSanitizeException:
        return "valence"
    return mol, np.array(positions), set(range(len(real), 2 * len(real)))


def _oligomers(path: Path) -> Iterator[tuple[Chem.Mol | None, NDArray[np.float64], set[int], dict[str, Any]]]:
    for record in Chem.SDMolSupplier(str(path), removeHs=False):
        yield record, record.GetConformer().GetPositions(), set(range(record.GetNumAtoms())), record.GetPropsAsDict()


def minimise(mol: Chem.Mol, x_ang: NDArray[np.float64]) -> tuple[NDArray[np.float64], float] | None:
    """Next minimum of MMFF94s in vacuum (A, 3) and its energy in kcal/mol; None where it has no parameters."""
    import openmm

    from data_shards.conformers.mmff import read_terms
    from data_shards.conformers.mmff_system import KJ_PER_KCAL, build_system
    from data_shards.errors import PolymerError

    try:
        system = build_system(read_terms(mol))
    except PolymerError:
        return None
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(x_ang / 10)
    openmm.LocalEnergyMinimizer.minimize(context, 4.0, 1_000)
    state = context.getState(getPositions=True, getEnergy=True)
    return state.getPositions(asNumpy=True)._value * 10, state.getPotentialEnergy()._value / KJ_PER_KCAL


def atom_name(atom: Chem.Atom) -> str:
    """Element and geometry."""
    return atom.GetSymbol() + ("ar" if atom.GetIsAromatic() else GEOMETRY.get(atom.GetHybridization(), ""))


def internal(mol: Chem.Mol, x_ang: NDArray[np.float64], counted: set[int]) -> Iterator[tuple[str, float]]:
    """Bond lengths in angstrom, angles and torsions about acyclic single bonds in degrees, of heavy atoms.

    Args:
        mol: molecule.
        x_ang: (A, 3).
        counted: atoms, of which a bond has one or both, an angle its centre, a torsion both middle atoms.
    """
    from data_shards.conformers.statistics import torsions_rad

    names = [atom_name(atom) for atom in mol.GetAtoms()]
    near = [sorted(b.GetIdx() for b in atom.GetNeighbors() if b.GetAtomicNum() > 1) for atom in mol.GetAtoms()]
    for bond in mol.GetBonds():
        i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()), key=lambda k: (names[k], k))
        heavy = j in near[i] and i in near[j]
        if heavy and counted & {i, j}:
            sign = SIGNS.get(bond.GetBondTypeAsDouble(), "~")
            yield f"bond {names[i]}{sign}{names[j]}", float(np.linalg.norm(x_ang[i] - x_ang[j]))
        if heavy and {i, j} <= counted and bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing():
            for a in near[i]:
                for d in near[j]:
                    if len({a, i, j, d}) == 4 and "1" not in names[i][-1] + names[j][-1]:
                        key = min("-".join(names[k] for k in order) for order in ((a, i, j, d), (d, j, i, a)))
                        yield f"torsion {key}", float(np.rad2deg(torsions_rad(x_ang[[a, i, j, d]]))[0])
    for j in sorted(counted):
        if mol.GetAtomWithIdx(j).GetAtomicNum() == 1:
            continue
        for k, i in enumerate(near[j]):
            for m in near[j][k + 1 :]:
                one, other = x_ang[i] - x_ang[j], x_ang[m] - x_ang[j]
                cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
                ends = sorted((names[i], names[m]))
                yield f"angle {ends[0]}-{names[j]}-{ends[1]}", float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def sampled_against_real(data: Path, work: Path) -> None:
    """Sample the polymers of the dynamics files with both engines and write real_chains.json: kind by kind, three distributions.
    Polymers that are in it are not sampled again."""
    path = work / "real_chains.json"
    found = json.loads(path.read_text()) if path.exists() else []
    for name in ("md_polymer_chains", "polyverse_md_chains"):
        chains: dict[str, list[Chem.Mol]] = defaultdict(list)
        for record in Chem.SDMolSupplier(str(data / f"{name}.sdf"), removeHs=False):
            chains[record.GetProp("psmiles")].append(record)
        for psmiles, records in chains.items():
            if psmiles in {row["psmiles"] for row in found}:
                continue
            real: Values = defaultdict(list)
            for record in records:
                for kind, value in internal(record, record.GetConformer().GetPositions(), set(range(record.GetNumAtoms()))):
                    real[kind].append(value)
            md, grow, energy_model = _sampled(psmiles)
            kinds = [
                _kind_row(kind, real[kind], md.get(kind, []), grow.get(kind, [])) for kind in sorted(real) if len(real[kind]) >= MIN_COUNT
            ]
            found.append({"file": name, "psmiles": psmiles, "records": len(records), "engine": energy_model, "kinds": kinds})
            path.write_text(json.dumps(found, indent=1) + "\n")


def _sampled(psmiles: str) -> tuple[Values, Values, dict[str, Any]]:
    """Internal coordinates from the md engine at its default settings, and from the grow engine."""
    from data_shards.chem.chain import chain_mol
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.dynamics import sample_chain
    from data_shards.conformers.fragments import fragment_library
    from data_shards.conformers.grow import grow_chain
    from data_shards.recipe import MdSettings

    unit = build_unit(psmiles)
    library = fragment_library(unit)
    settings = MdSettings(temperature_kelvin=SAMPLED_KELVIN)
    md = [sample_chain(unit, SAMPLED_UNITS, num_conformations=1, seed=k, library=library, settings=settings) for k in range(SAMPLED_CHAINS)]
    grown = [grow_chain(unit, SAMPLED_UNITS, num_conformations=1, seed=k, library=library) for k in range(GROWN_CHAINS)]
    mol = chain_mol(unit.topology, SAMPLED_UNITS, hydrogens=True)
    values: tuple[Values, Values] = (defaultdict(list), defaultdict(list))
    for into, chains in zip(values, (md, grown)):
        for chain in chains:
            x_ang = np.concatenate([chain.heavy_ang[0], chain.hydrogen_ang[0]]).astype(np.float64)
            for kind, value in internal(mol, x_ang, set(range(chain.heavy_ang.shape[1]))):
                into[kind].append(value)
    return *values, {"units": SAMPLED_UNITS, "md_chains": len(md), "grown_chains": len(grown), "kelvin": SAMPLED_KELVIN}


def _kind_row(kind: str, real: list[float], md: list[float], grow: list[float]) -> dict[str, Any]:
    """Counts, means and spreads; of torsions histograms of |phi| and the share that each has in common with the real one."""
    row: dict[str, Any] = {"kind": kind}
    shares = {}
    for name, values in (("real", real), ("md", md), ("grow", grow)):
        if not values:
            row[name] = None
            continue
        array = np.abs(values) if kind.startswith("torsion") else np.array(values)
        row[name] = {"count": len(array), "mean": float(array.mean()), "spread": float(array.std())}
        if kind.startswith("torsion"):
            counts, _ = np.histogram(array, bins=TORSION_BINS, range=(0, 180))
            shares[name] = counts / counts.sum()
            row[name]["histogram"] = shares[name].tolist()
    for name in ("md", "grow"):
        if name in shares:
            row[name]["overlap_with_real"] = float(np.minimum(shares[name], shares["real"]).sum())
    return row
