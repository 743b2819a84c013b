"""Conformations of held-out molecules: DiTMC beside ETKDG and ETKDG with MMFF94, by coverage and matching.

    python -m benchmarks.molecule_conformers runs/molecules shards/records --set qm9 --steps 5 --steps 10 --steps 25 --steps 50

References of a molecule are the records of its graph and configuration; of each method twice as many are drawn, and what fails stays in
the denominator. Deviations are of heavy atoms, smallest over relabellings of equivalent ones. Means over molecules.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rdkit import Chem

from benchmarks.setting import commit, processor
from data_shards.chem.molecule import embedded, mol_of
from data_shards.console import run
from data_shards.errors import PolymerError
from data_shards.progress import progress
from data_shards.reader import open_shards
from data_shards.schema import MoleculeGraph, MoleculeSample
from foundation.evaluation.ensembles import automorphisms, best_rmsd_matrix, deduplicate, ensemble_values
from foundation.molecules import Molecules
from foundation.train.checkpoint import load_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "molecule_conformers.json"
ALIKE_ANG = 0.05  # references nearer to each other count once
Drawn = NDArray[np.floating]  # (I, n, 3)


@dataclass(frozen=True)
class Ensemble:
    """A molecule with its references: graph, (J, n, 3), RDKit's molecule, places of heavy atoms, relabellings of these."""

    graph: MoleculeGraph
    references: Drawn
    mol: Chem.Mol
    heavy: NDArray[np.int64]
    relabellings: NDArray[np.int64]


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="run folder of a ditmc recipe")],
    shards: Annotated[str, typer.Argument(help="molecules with conformations")],
    name: Annotated[str, typer.Option("--set", help="name of the set in the results")] = "molecules",
    split: Annotated[str, typer.Option(help="of the shards; all: every split, for a set that was not trained on")] = "test",
    steps: Annotated[list[int] | None, typer.Option(help="solver steps; may be repeated")] = None,
    about: Annotated[str, typer.Option(help="a sentence about the set, for the page")] = "",
    limit: Annotated[int, typer.Option(help="molecules, at most")] = 200,
    most: Annotated[int, typer.Option(help="references of a molecule, at most")] = 20,
    out: Annotated[Path, typer.Option(help="numbers; other sets in the file stay")] = RESULTS,
    seed: Annotated[int, typer.Option(help="of everything drawn")] = 0,
) -> None:
    """Draw, compare, write."""
    ensembles = read(shards, split, limit, most)
    network, _ = load_model(str(model))
    made: dict[str, Any] = {"command": f"python -m benchmarks.molecule_conformers {model} {shards} --set '{name}' --split {split}"}
    made |= {"about": about, "commit": commit(), "processor": processor(), "molecules": len(ensembles), "methods": {}}
    made["atoms"] = float(np.mean([len(own.graph.elements) for own in ensembles]))
    made["references"] = float(np.mean([len(own.references) for own in ensembles]))
    methods: dict[str, Callable[[Ensemble, int, int], Drawn]] = {
        f"ditmc, {number} steps": lambda own, count, salt, number=number: drawn(network, own, count, salt, number)
        for number in steps or [50]
    }
    methods |= {
        "ETKDG": lambda own, count, salt: etkdg(own, count, salt, False),
        "ETKDG + MMFF94": lambda own, count, salt: etkdg(own, count, salt, True),
    }
    for method, draw in methods.items():
        made["methods"][method] = measured(ensembles, draw, seed, method)
        print(method, json.dumps(made["methods"][method]))
        found = json.loads(out.read_text()) if out.is_file() else {}
        out.write_text(json.dumps({**found, name: made}, indent=1) + "\n")


def read(shards: str, split: str, limit: int, most: int) -> list[Ensemble]:
    """Molecules of a split with all records of one configuration each."""
    opened = open_shards(shards)
    splits = list(opened.manifest.splits) if split == "all" else [split]
    by_molecule: dict[tuple[Any, ...], list[MoleculeSample]] = defaultdict(list)
    for own in splits:
        for entry in opened.samples(own):
            sample = opened.read_any(entry)
            assert isinstance(sample, MoleculeSample)
            graph = sample.graph
            key = (
                entry.group,
                graph.elements.tobytes(),
                graph.bonds.tobytes(),
                graph.around.tobytes(),
                graph.signs.tobytes(),
                graph.sides.tobytes(),
            )
            by_molecule[key].append(sample)
    found = []
    for samples in list(by_molecule.values())[:limit]:
        graph = samples[0].graph
        mol = mol_of(graph, samples[0].x_ang[0])
        heavy = np.flatnonzero(graph.elements > 1)
        relabellings = automorphisms(Chem.RemoveAllHs(mol))
        x = np.concatenate([own.x_ang for own in samples])
        kept = deduplicate(best_rmsd_matrix(x[:, heavy], x[:, heavy], relabellings), ALIKE_ANG, most)
        found.append(Ensemble(graph, x[kept], mol, heavy, relabellings))
    return found


def drawn(network: Any, own: Ensemble, count: int, seed: int, steps: int) -> Drawn:
    """Of the flow."""
    network.config = network.config.model_copy(update={"steps": steps})
    molecules = Molecules.of_graphs([own.graph]).repeated(count)
    x = network.sample_molecules(molecules, torch.Generator().manual_seed(seed)).numpy()
    return np.asarray(x[np.isfinite(x).all(axis=(1, 2))])


def etkdg(own: Ensemble, count: int, seed: int, relax: bool) -> Drawn:
    """Of RDKit."""
    try:
        return embedded(Chem.Mol(own.mol), own.graph.smiles, count, seed, relax=relax)
    except PolymerError:
        return np.zeros((0, len(own.graph.elements), 3))


def measured(ensembles: list[Ensemble], draw: Callable[[Ensemble, int, int], Drawn], seed: int, method: str) -> dict[str, float]:
    """Means over molecules, and seconds for a conformation."""
    values: dict[str, list[float]] = defaultdict(list)
    seconds, number = 0.0, 0
    with progress().stage(method, len(ensembles)) as stage:
        for k, own in enumerate(ensembles):
            count = 2 * len(own.references)
            began = time.perf_counter()
            x = draw(own, count, seed + k)
            seconds, number = seconds + time.perf_counter() - began, number + count
            matrix = best_rmsd_matrix(own.references[:, own.heavy], x[:, own.heavy], own.relabellings)
            for name, value in ensemble_values(matrix, count).items():
                values[name].append(value)
            stage.advance()
    return {**{name: float(np.mean(own)) for name, own in values.items()}, "seconds_per_conformation": seconds / max(number, 1)}


if __name__ == "__main__":
    run(app)
