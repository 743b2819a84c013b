"""Conformations of molecules that are no polymers: SMILES to a structure file, by an objective that draws molecules.

Hydrogens are atoms like any other: they are generated, as in the records that such a model learns from. A conformation whose bonds, read
from distances, are not those of the molecule, or whose configuration is not the one asked for, is written with that said, or left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.molecule import mol_of, read_molecule, standard_molecule
from data_shards.conformers.quality import connectivity, covalent_radii_ang
from data_shards.progress import Progress
from data_shards.schema import MoleculeGraph
from foundation.errors import InputError
from foundation.molecules import Molecules
from foundation.sampling.provenance import provenance, write_json
from foundation.sampling.writers import StructureFile, provenance_path

MOST_ATOMS = 2000
OK = "ok"


@dataclass(frozen=True)
class MoleculeRequest:
    """A molecule as it was written, its canonical SMILES and its graph, hydrogens among the atoms."""

    written: str
    smiles: str
    graph: MoleculeGraph


@dataclass
class MoleculeReport:
    """What happened: by request, how many conformations came to which end; and how many records the file has."""

    num: int
    outcomes: list[Counter[str]] = field(default_factory=list)
    written: int = 0


def read_molecules(smiles: Sequence[str]) -> list[MoleculeRequest]:
    """Molecules of SMILES.

    Raises:
        PolymerError: one is unreadable, has several fragments, a star, or more than MOST_ATOMS atoms.
    """
    made = []
    for text in smiles:
        canonical, _, mol = standard_molecule(text, MOST_ATOMS)
        made.append(MoleculeRequest(text, canonical, read_molecule(mol)))
    return made


def check_model(model: Any, checkpoint: str) -> None:
    """Refuse a model that draws chains alone.

    Raises:
        InputError: it does not draw molecules.
    """
    if not model.capabilities.molecules:
        raise InputError(f"{checkpoint} draws chains of polymers, not molecules; train a ditmc recipe on molecules, or pass --psmiles")


def write_molecules(
    model: Any, requests: Sequence[MoleculeRequest], num: int, seed: int, batch_atoms: int, strict: bool, out: Path, checkpoint: str,
    device: torch.device, bars: Progress,
) -> MoleculeReport:  # fmt: skip
    """Generate, check and write; the file and its provenance appear together at the end.

    Args:
        model: objective in eval mode on the device.
        requests: molecules.
        num: conformations of each.
        seed: the same gives the same file.
        batch_atoms: at most so many are computed at once, one molecule at least.
        strict: leave out what fails the check.
        out: structure file, .sdf or .xyz.
        checkpoint: as it was named.
        device: of the model.
        bars: where progress is shown.

    Raises:
        InputError: not one conformation could be made; nothing is written.
    """
    report = MoleculeReport(num)
    with StructureFile(out, True) as file, bars.stage("generate", num * len(requests), unit="conformations") as stage:
        for row, request in enumerate(requests):
            x_ang = drawn(model, request.graph, num, (seed, row), batch_atoms, device)
            count: Counter[str] = Counter()
            for conformation, (own, said) in enumerate(zip(x_ang, judged(request, x_ang), strict=True)):
                mol, outcome = said
                count[outcome] += 1
                if mol is not None and (outcome == OK or not strict):
                    facts = {"smiles": request.smiles, "conformation": conformation, "check": outcome, "rg_ang": _gyration(own)}
                    file.write(mol, facts)
                stage.advance(1)
            report.outcomes.append(count)
        report.written = file.num_records
        if not report.written:
            raise InputError(f"no conformation could be made: {_told(sum(report.outcomes, Counter()))}; nothing was written")
        file.commit()
    facts = [{"written": own.written, "smiles": own.smiles, "outcomes": dict(n)} for own, n in zip(requests, report.outcomes, strict=True)]
    asked = {"seed": seed, "batch_atoms": batch_atoms, "device": str(device), "strict": strict, "conformations": num}
    write_json(provenance_path(out), {**provenance(model, checkpoint), **asked, "molecules": facts})
    return report


def drawn(model: Any, graph: MoleculeGraph, num: int, seed: tuple[int, int], batch_atoms: int, device: torch.device) -> NDArray[np.float64]:
    """(num, n, 3) conformations of a molecule, centred; not finite where the flow left the numbers."""
    one = Molecules.of_graphs([graph]).to(device)
    rng = torch.Generator(device).manual_seed(int(np.random.default_rng(seed).integers(2**62)))
    each = max(1, batch_atoms // graph.num_atoms)
    parts = [model.sample_molecules(one.repeated(min(each, num - k)), rng) for k in range(0, num, each)]
    return torch.cat(parts).double().cpu().numpy()


def judged(request: MoleculeRequest, x_ang: NDArray[np.float64]) -> list[tuple[Chem.Mol | None, str]]:
    """Molecule and what is wrong with it, of every conformation (K, n, 3)."""
    graph = request.graph
    wrong = connectivity(np.nan_to_num(x_ang), covalent_radii_ang(graph.elements), graph.bonds).sum(1)
    wanted = Chem.MolToSmiles(Chem.MolFromSmiles(request.smiles))
    made: list[tuple[Chem.Mol | None, str]] = []
    for own, bonds in zip(x_ang, wrong, strict=True):
        if not np.isfinite(own).all():
            made.append((None, "coordinates are not finite"))
            continue
        mol = mol_of(graph, own)
        if bonds:
            made.append((mol, "bonds are missing or too many"))
            continue
        found = Chem.MolToSmiles(Chem.RemoveHs(mol))
        made.append((mol, OK if _agrees(wanted, found) else "another configuration"))
    return made


def _agrees(wanted: str, found: str) -> bool:
    """Has what was found every configuration that was asked for? Coordinates have one wherever there can be one."""
    return wanted == found or Chem.MolFromSmiles(found).HasSubstructMatch(Chem.MolFromSmiles(wanted), useChirality=True)


def _gyration(x_ang: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(x_ang - x_ang.mean(0)).sum(1).mean()))


def _told(count: Counter[str]) -> str:
    return ", ".join(f"{number} x {outcome}" for outcome, number in count.most_common())


def show_molecules(requests: Sequence[MoleculeRequest], report: MoleculeReport, out: Path) -> None:
    """Print a line for every molecule."""
    from rich.console import Console
    from rich.table import Table

    table = Table("molecule", title=str(out), title_justify="left")
    for name in ("atoms", "attempted", "passed check", "others"):
        table.add_column(name, justify="right" if name != "others" else "left")
    for request, count in zip(requests, report.outcomes, strict=True):
        others = _told(Counter({name: number for name, number in count.items() if name != OK}))
        table.add_row(request.smiles, str(request.graph.num_atoms), str(report.num), str(count[OK]), others)
    Console().print(table)
    print(f"{report.num * len(requests)} conformations attempted, {report.written} written")
    print(f"provenance: {provenance_path(out)}")


__all__ = ["MoleculeReport", "MoleculeRequest", "check_model", "read_molecules", "show_molecules", "write_molecules"]
