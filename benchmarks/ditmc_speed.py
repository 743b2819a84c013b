"""Conformations a second of DiTMC by position scheme and number of atoms, beside ETKDG, in one run.

    python -m benchmarks.ditmc_speed --recipe ditmc_tiny

Oligomers of polystyrene, heavy atoms for the flow as chains have them, hydrogens added for ETKDG, which needs them. Weights are random:
they change no time. A flow of --steps is one setup and so many equal steps, so two short ones tell its time; where ETKDG takes too long it
is not tried on more atoms.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rdkit import Chem

from benchmarks.setting import commit, processor
from data_shards.chem.capped import embed
from data_shards.chem.molecule import read_molecule
from data_shards.console import run
from foundation.errors import InputError
from foundation.molecules import Molecules
from foundation.objectives import build_objective
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.model import DiTMC
from foundation.recipes import get_recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ditmc_speed.json"
SIZES = (20, 50, 100, 200, 500, 1000, 2000)  # heavy atoms, rounded to whole repeat units
ATOMS_AT_ONCE = 200  # conformations of small molecules are made together
SIZED_ALIKE = {"ditmc_tiny": {"width": 64}, "ditmc_base": {"width": 144, "num_heads": 6}}  # of pe3, with about as many weights


@app.command()
def main(
    recipe: Annotated[str, typer.Option(help="sizes; with each position scheme")] = "ditmc_tiny",
    steps: Annotated[int, typer.Option(help="solver steps that are asked about")] = 25,
    longest: Annotated[float, typer.Option(help="seconds of one conformation beyond which ETKDG is not tried on more atoms")] = 120.0,
    out: Annotated[Path, typer.Option(help="numbers; other recipes in the file stay")] = RESULTS,
) -> None:
    """Measure, write, print."""
    if recipe not in SIZED_ALIKE:
        raise InputError(f"--recipe {recipe} must be one of {', '.join(SIZED_ALIKE)}; change it")
    base = get_recipe(recipe).objective
    assert isinstance(base, DiTMCConfig)
    schemes = {"rpe": {"scheme": "rpe"}, "ape": {"scheme": "ape"}, "pe3": {"scheme": "pe3", **SIZED_ALIKE[recipe]}}
    methods: dict[str, Callable[[str], float]] = {}
    parameters = {}
    for scheme, changed in schemes.items():
        torch.manual_seed(0)
        network = build_objective(base.model_copy(update=changed))
        assert isinstance(network, DiTMC)
        parameters[scheme] = sum(own.numel() for own in network.parameters())
        methods[scheme] = partial(of_flow, network.eval(), steps=steps)
    methods["ETKDG"] = of_etkdg
    made: dict[str, Any] = {"command": f"python -m benchmarks.ditmc_speed --recipe {recipe}", "commit": commit(), "processor": processor()}
    made |= {"threads": torch.get_num_threads(), "steps": steps, "parameters": parameters, "rows": []}
    slow: set[str] = set()
    for size in SIZES:
        smiles = oligomer(size)
        atoms = Chem.MolFromSmiles(smiles).GetNumAtoms()
        row: dict[str, Any] = {"atoms": atoms, "seconds": {}}
        for method, seconds in methods.items():
            if method in slow:
                continue
            row["seconds"][method] = seconds(smiles)
            if method == "ETKDG" and row["seconds"][method] > longest:
                slow.add(method)
        made["rows"].append(row)
        print(json.dumps(row))
        found = json.loads(out.read_text()) if out.is_file() else {}
        out.write_text(json.dumps({**found, recipe: made}, indent=1) + "\n")


def oligomer(size: int) -> str:
    """Polystyrene of about so many heavy atoms, hydrogen at its ends."""
    return "CC(c1ccccc1)" * max(1, round(size / 8))


@torch.no_grad()
def of_flow(network: DiTMC, smiles: str, *, steps: int) -> float:
    """Seconds of a conformation."""
    molecules = Molecules.of_graphs([read_molecule(Chem.MolFromSmiles(smiles))])
    number = max(1, ATOMS_AT_ONCE // molecules.mask.shape[1])
    molecules = molecules.repeated(number)

    def once(own: int) -> float:
        network.config = network.config.model_copy(update={"steps": own})
        began = time.perf_counter()
        network.sample_molecules(molecules, torch.Generator().manual_seed(0))
        return time.perf_counter() - began

    once(1)
    tries = 3 if once(1) < 5 else 1
    one, two = (min(once(own) for _ in range(tries)) for own in (1, 2))
    return (one + (steps - 1) * max(two - one, 0.0)) / number


def of_etkdg(smiles: str) -> float:
    """Seconds of a conformation; infinite where there is none."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    number = 10 if mol.GetNumAtoms() < 500 else 1
    began = time.perf_counter()
    found = embed(mol, number, 0)
    return (time.perf_counter() - began) / len(found) if found else float("inf")


if __name__ == "__main__":
    run(app)
