"""Repeat units and oligomers of three units, judged as small molecules are: windows of the chains against ETKDG of the same window.

A window of w units holds their atoms and the two stars at its ends: it is the heavy-atom graph of a chain of w units, in schema order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from data_shards.chem.capped import MARKED, backbone_of, embed, mark_double_bonds, positions
from data_shards.chem.oligomer import close_over, cut_out, heavy_chain
from data_shards.chem.stereo import tag_from_sign
from data_shards.schema import PolymerSample, UnitTopology, chain_hydrogens, unit_slots
from foundation.evaluation import metrics
from foundation.evaluation.bootstrap import mean_over_polymers, paired
from foundation.evaluation.chains import chain_tables
from foundation.evaluation.ensembles import (
    ENSEMBLE_METRICS,
    MAX_AUTOMORPHISMS,
    automorphisms,
    best_rmsd_matrix,
    deduplicate,
    ensemble_values,
)
from foundation.evaluation.measure import Attempts, Reference, handedness, link_counts, measure, reference_of, torsion_counts
from foundation.evaluation.metrics import METRICS, Metric
from foundation.evaluation.mmff import relaxed_energies
from foundation.evaluation.protocol import MODEL, REFERENCE, attempts_of

PARTS = {"unit": 1, "oligomer": 3}  # repeat units of a window
MAX_REFERENCES = {"unit": 32, "oligomer": 8}  # twice as many are generated; relaxing an oligomer takes up to a second
POOL_PER_REFERENCE = 4  # windows looked at for each reference wanted
DUPLICATE_ANG = 0.125  # RMSD below which two references are one
MAX_RELAX_ITERATIONS = 500
ETKDG, RELAXED = "ETKDG", "ETKDG + MMFF94"

PART_METRICS: dict[str, Metric] = {
    **ENSEMBLE_METRICS,
    "emat_r_kcal_mol": Metric(
        "kcal/mol", "mean over references of the smallest |difference| of MMFF94s energy per atom to a generated one"
    ),
    "emat_p_kcal_mol": Metric("kcal/mol", "mean over generated of the smallest |difference| of MMFF94s energy per atom to a reference"),
    "mmff_energy_per_atom_kcal_mol": Metric(
        "kcal/mol", "median MMFF94s energy in vacuum of the window as a molecule, hydrogens added and relaxed, / atoms", "reference"
    ),
    **{
        name: METRICS[name]
        for name in (
            "unit_torsion_jsd_bits",
            "link_dihedral_jsd_bits",
            "bond_mae_reference_ang",
            "angle_mae_reference_deg",
            "bond_mae_mmff_ang",
            "angle_mae_mmff_deg",
            "clash_rate_per_heavy_atom",
            "connectivity_exact_fraction",
            "chirality_kept_fraction",
        )
    },
}


def window_atoms(topology: UnitTopology, num_units: int, width: int) -> NDArray[np.int64]:
    """(N - w + 1, H') chain atom of every atom of every window of w units; a window's atoms are those of a chain of w units."""
    own = unit_slots(topology.key_atoms, topology.num_atoms, width)
    slots = unit_slots(topology.key_atoms, topology.num_atoms, num_units)
    starts = np.arange(num_units - width + 1)
    out = np.empty((len(starts), int(own.max()) + 1), dtype=np.int64)
    out[:, own] = slots[starts[:, None] + np.arange(width)]
    return out


@dataclass(frozen=True)
class PartReference:
    """Windows of one polymer. P places along the chain, R references, H' heavy atoms of a window.

    Attributes:
        law: all windows with the handedness below: what distributions, bonds and angles are compared with.
        atoms: (P, H') chain atoms of the places whose units were asked to have that handedness.
        x_ang: (R, H', 3) references, no two alike.
        energy_kcal_mol: (R,) MMFF94s energy per atom; NaN where the force field lacks a type.
        relabellings: (A, H') equivalent atoms.
        draws: (G,) conformation * P + place of every attempt.
        seed: of the embeddings.
    """

    law: Reference
    atoms: NDArray[np.int64]
    x_ang: NDArray[np.float64]
    energy_kcal_mol: NDArray[np.float64]
    relabellings: NDArray[np.int64]
    draws: NDArray[np.int64]
    seed: int


def part_reference(sample: PolymerSample, chain: Reference, part: str, num: int, seed: int) -> PartReference | None:
    """Reference windows of a stored polymer; None where the chain is too short.

    Inner windows are taken, all where there is no inner one, of the most frequent handedness.

    Args:
        sample: the polymer.
        chain: its references.
        part: unit | oligomer.
        num: conformations that a method makes of the chain; 2 R windows are drawn from them.
        seed: of all draws.
    """
    width, topology = PARTS[part], sample.topology
    if sample.num_units < width:
        return None
    places = np.arange(sample.num_units - width + 1)
    places = places[1:-1] if len(places) > 2 else places
    wanted = chain.handedness[places[:, None] + np.arange(width)]  # (P, w, c)
    patterns, kind, count = np.unique(wanted.reshape(len(places), -1), axis=0, return_inverse=True, return_counts=True)
    pattern = patterns[count.argmax()].reshape(wanted.shape[1:])
    atoms = window_atoms(topology, sample.num_units, width)[places[kind.reshape(-1) == count.argmax()]]
    x_ang = chain.x_ang[:, atoms].reshape(-1, atoms.shape[1], 3)
    tables = chain_tables(topology, width)
    x_ang = x_ang[(handedness(tables, x_ang) == pattern).all(axis=(1, 2))]
    rng = np.random.default_rng([seed, int(sample.key[:12], 16), width])
    most = min(MAX_REFERENCES[part], max(1, num * len(atoms) // 2))
    pool = x_ang[rng.permutation(len(x_ang))[: POOL_PER_REFERENCE * most]]
    relabellings = automorphisms(part_graph(topology, width))
    chosen = pool[deduplicate(best_rmsd_matrix(pool, pool, relabellings), DUPLICATE_ANG, most)]
    law = reference_of(replace(sample, num_units=width, heavy_ang=x_ang))
    draws = rng.permutation(num * len(atoms))[: 2 * len(chosen)]
    return PartReference(law, atoms, chosen, energies_per_atom(law, chosen), relabellings, draws, int(rng.integers(2**31 - 1)))


def part_graph(topology: UnitTopology, width: int) -> Chem.Mol:
    """Heavy-atom graph of a window whose end stars are equivalent to each other at most: the chain goes on there."""
    mol = heavy_chain(topology, width)
    for star in (0, mol.GetNumAtoms() - 1):
        mol.GetAtomWithIdx(star).SetIsotope(1)
    return mol


def energies_per_atom(law: Reference, x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, H', 3) -> (G,) kcal/mol of the window as a molecule of its own, hydrogens added and relaxed."""
    topology, width = law.tables.topology, law.tables.num_units
    num_atoms = law.tables.num_heavy_atoms + int(chain_hydrogens(topology, width).sum())
    return relaxed_energies(law.tables, x_ang) / num_atoms


def windows_of(reference: PartReference, chains: Attempts) -> Attempts:
    """Windows drawn from a method's chains: a chain that failed fails all its windows.

    Args:
        reference: of the part.
        chains: as many attempts as the draws were made for.
    """
    conformation, place = np.divmod(reference.draws, len(reference.atoms))
    exists = conformation < len(chains.x_ang)
    x_ang = chains.x_ang[conformation[exists, None], reference.atoms[place[exists]]]
    return Attempts(x_ang, tuple(chains.reasons[k - len(chains.x_ang)] for k in conformation[~exists]))


# --------------------------------------------------------------------------------------------------------------------------- ETKDG


def capped_window(reference: PartReference) -> tuple[Chem.Mol, NDArray[np.int64]]:
    """The window with the first shells of its neighbours, hydrogens added, and the (H',) atoms of the window in it.

    Stereocentres and double bonds inside the window are those of the references; other double bonds lie trans along the backbone.
    """
    law = reference.law
    topology, width = law.tables.topology, law.tables.num_units
    own = unit_slots(topology.key_atoms, topology.num_atoms, width)
    chain = heavy_chain(topology, width + 4)
    chain_atoms = window_atoms(topology, width + 4, width)[2]
    shell = {other.GetIdx() for end in (0, -1) for other in chain.GetAtomWithIdx(int(chain_atoms[end])).GetNeighbors()}
    piece = cut_out(chain, close_over(chain, shell | set(chain_atoms.tolist())))
    atoms = np.array([piece.index[k] for k in chain_atoms.tolist()])
    mark_double_bonds(piece.mol, {}, chain, backbone_of(piece))
    _copy_double_bonds(piece.mol, atoms, reference.x_ang[0])
    unit, centre = np.nonzero(law.handedness)
    triples = atoms[own[unit[:, None], topology.stereo_neighbours[centre]]]
    for k, triple, sign in zip(atoms[own[unit, topology.stereo_centres[centre]]], triples, law.handedness[unit, centre], strict=True):
        atom = piece.mol.GetAtomWithIdx(int(k))
        atom.SetChiralTag(tag_from_sign(atom, triple.tolist(), int(sign)))
    return piece.mol, atoms


def _copy_double_bonds(mol: Chem.Mol, atoms: NDArray[np.int64], x_ang: NDArray[np.float64]) -> None:
    """Write cis or trans as measured in (H', 3) on the marked double bonds of mol that have a neighbour on either side in the window."""
    place = {int(atom): k for k, atom in enumerate(atoms)}
    for bond in mol.GetBonds():
        if bond.GetStereo() not in MARKED:
            continue
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        beside = [
            [k.GetIdx() for k in mol.GetAtomWithIdx(end).GetNeighbors() if k.GetIdx() != other and k.GetIdx() in place]
            for end, other in (ends, ends[::-1])
        ]
        if set(ends) <= place.keys() and all(beside):
            quad = (beside[0][0], *ends, beside[1][0])
            angle = metrics.dihedrals_rad(x_ang, np.array([place[k] for k in quad]))
            bond.SetStereoAtoms(quad[0], quad[3])
            bond.SetStereo(Chem.BondStereo.STEREOTRANS if abs(angle) > np.pi / 2 else Chem.BondStereo.STEREOCIS)


def etkdg(reference: PartReference) -> tuple[Attempts, Attempts]:
    """As many windows as were drawn, by ETKDGv3, and the same relaxed with MMFF94; what cannot be made fails with its reason."""
    mol, atoms = capped_window(reference)
    count = len(reference.draws)
    found = _embedded(mol, count, reference.seed)
    missing = ("no-conformer",) * (count - len(found))
    plain = Attempts(positions(mol, found)[:, atoms], missing)
    with rdBase.BlockLogs():  # it names the atoms that it does not know
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if properties is None or not found:
        return plain, Attempts(plain.x_ang[:0], missing + ("no-force-field",) * len(found))
    rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, numThreads=0, maxIters=MAX_RELAX_ITERATIONS, mmffVariant="MMFF94")
    return plain, Attempts(positions(mol, found)[:, atoms], missing)


def _embedded(mol: Chem.Mol, count: int, seed: int) -> list[int]:
    """Conformers of ETKDGv3; where some fail, more from random coordinates, with RDKit's own limit of trials."""
    found = embed(mol, count, seed)
    if len(found) < count:
        params: Any = rdDistGeom.ETKDGv3()
        params.randomSeed = (seed + 1) % (2**31 - 1)
        params.useRandomCoords, params.clearConfs, params.numThreads = True, False, 0  # threads change no bit
        with rdBase.BlockLogs():
            found += list(rdDistGeom.EmbedMultipleConfs(mol, count - len(found), params))
    return found


# ------------------------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class PartMeasurement:
    """Numbers of one method on the windows of one polymer; a metric without a value here is absent."""

    values: dict[str, float]
    num_attempted: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class PartRecord:
    """One polymer's windows."""

    key: str
    psmiles: str
    num_references: int
    num_relabellings: int
    methods: dict[str, PartMeasurement]


def measure_part(reference: PartReference, attempts: Attempts, *, against_reference: bool = True) -> PartMeasurement:
    """All metrics of one method; comparisons are left out where the windows are the references themselves."""
    law, x_ang = reference.law, attempts.x_ang
    values = measure(law, attempts, against_reference=False).values
    if against_reference:
        values = values | ensemble_values(best_rmsd_matrix(reference.x_ang, x_ang, reference.relabellings), attempts.num_attempted)
    if len(x_ang):
        energies = energies_per_atom(law, x_ang) if against_reference else reference.energy_kcal_mol
        values = values | {"mmff_energy_per_atom_kcal_mol": float(np.median(energies))}
        values |= _compared(reference, x_ang, energies) if against_reference else {}
    kept = {name: float(value) for name, value in values.items() if name in PART_METRICS and np.isfinite(value)}
    return PartMeasurement(kept, attempts.num_attempted, dict(sorted(Counter(attempts.reasons).items())))


def _compared(reference: PartReference, x_ang: NDArray[np.float64], energies: NDArray[np.float64]) -> dict[str, float]:
    """Against all reference windows; energies (G,) per atom against those of the references chosen. NaN: nothing to compare."""
    law, tables = reference.law, reference.law.tables
    torsions = metrics.jensen_shannon_bits(torsion_counts(tables, x_ang), law.torsion_counts)
    recall, precision = metrics.recall_and_precision(np.abs(energies - reference.energy_kcal_mol[:, None]))
    return {
        "unit_torsion_jsd_bits": float(torsions.mean()) if torsions.size else float("nan"),
        "link_dihedral_jsd_bits": float(metrics.jensen_shannon_bits(link_counts(tables, x_ang), law.link_counts)),
        "bond_mae_reference_ang": float(np.abs(metrics.distances(x_ang, tables.bonds) - law.bond_ang).mean()),
        "angle_mae_reference_deg": float(np.abs(metrics.angles_deg(x_ang, tables.angles) - law.angle_deg).mean()),
        "emat_r_kcal_mol": recall,
        "emat_p_kcal_mol": precision,
    }


class PartSuite:
    """Units and oligomers of every polymer of an evaluation, gathered while its chains are measured."""

    def __init__(self, num: int, seed: int) -> None:
        """num: conformations that a method makes of each chain; seed: of all draws."""
        self.num, self.seed = num, seed
        self.records: dict[str, list[PartRecord]] = {part: [] for part in PARTS}
        self.too_short = dict.fromkeys(PARTS, 0)

    def add(self, sample: PolymerSample, chain: Reference, chains: Mapping[str, Attempts]) -> None:
        """Measure one polymer: windows of its references, of the chains of each method, and ETKDG."""
        for part in PARTS:
            reference = part_reference(sample, chain, part, self.num, self.seed)
            if reference is None:
                self.too_short[part] += 1
                continue
            plain, relaxed = etkdg(reference)
            made = {**{name: windows_of(reference, own) for name, own in chains.items()}, ETKDG: plain, RELAXED: relaxed}
            methods = {name: measure_part(reference, own) for name, own in made.items()}
            methods[REFERENCE] = measure_part(reference, Attempts(reference.x_ang), against_reference=False)
            counts = len(reference.x_ang), len(reference.relabellings)
            self.records[part].append(PartRecord(sample.key, sample.topology.psmiles, *counts, methods))

    def results(self) -> dict[str, Any]:
        """PART of results.json for each part."""
        return {part: part_results(part, records, self.too_short[part], self.seed) for part, records in self.records.items()}


def part_results(part: str, records: Sequence[PartRecord], too_short: int, seed: int) -> dict[str, Any]:
    """Numbers of all polymers as plain JSON data, in the shape of those of the chains."""
    names = list(records[0].methods) if records else []
    table: dict[str, Any] = {}
    for metric, meaning in PART_METRICS.items():
        values = {name: np.array([r.methods[name].values.get(metric, np.nan) for r in records]) for name in names}
        estimates = {name: mean_over_polymers(own, seed) for name, own in values.items()}
        table[metric] = {
            **meaning.described(),
            "methods": {name: asdict(estimate) for name, estimate in estimates.items() if estimate.num_polymers},
            "model_minus": paired(values, MODEL, seed),
        }
    return {
        "protocol": {
            "num_polymers": len(records),
            "too_short_polymers": too_short,
            "window": f"{PARTS[part]} repeat units with the two stars at their ends, inside the chain where it is long enough",
            "configuration": "windows of the most frequent handedness of a polymer; ETKDG is told it, and cis or trans of double bonds",
            "references": f"windows of the stored chains, any two {DUPLICATE_ANG:g} angstrom RMSD apart, at most {MAX_REFERENCES[part]}",
            "generated": "two for each reference; of chains: drawn from all windows of that handedness, failed chains included",
            "rmsd": "heavy atoms and stars, proper rotations, smallest over equivalent atoms (the two stars swap at most)",
            "relabellings": f"the first {MAX_AUTOMORPHISMS} of a polymer; "
            f"{sum(r.num_relabellings >= MAX_AUTOMORPHISMS for r in records)} polymers reach that limit",
            "etkdg": "RDKit ETKDGv3 of the window with the first atoms of its neighbours and hydrogens; "
            f"MMFF94: up to {MAX_RELAX_ITERATIONS} iterations in vacuum",
            "distributions": "divergences, bond and angle errors: against all reference windows of that handedness, not only those chosen",
            "failures": "cover nothing and count as mismatch; other numbers are of those that exist",
        },
        "attempts": attempts_of(records),
        "metrics": table,
        "polymers": [
            {
                "key": record.key,
                "psmiles": record.psmiles,
                "num_references": record.num_references,
                "methods": {
                    name: {"attempted": m.num_attempted, "failed": m.reasons, "values": m.values} for name, m in record.methods.items()
                },
            }
            for record in records
        ],
    }
