r"""Chains by other programs, timed in a process of their own: RDKit's ETKDG, or the random walk of RadonPy (package radonpy-pypi).

    python benchmarks/rival_chain.py \
        '{"builder": "random_walk", "psmiles": "*CCO*", "units": 10, "relaxed": true, "repeats": 3, "cap_sec": 25}'

prints one line of JSON for the versions, one for the repeat unit and one for every chain. The interpreter may be another one than the
project's: nothing of the project is imported. A chain that costs more processor seconds than the cap ends the process with SIGXCPU.

Source: ETKDGv3: Wang, Witek, Landrum, Riniker, J. Chem. Inf. Model. 60 (2020) 2044. RadonPy: Hayashi et al., npj Comput. Mater. 8 (2022)
222; one conformer of the repeat unit, its two ends closed by CH3, chain grown by `polymerize_rw` with what it does by default.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Time what the first argument asks for."""
    job = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prepare, build, versions = {"etkdg": etkdg, "random_walk": random_walk}[job["builder"]](job)
    say(versions=versions)
    allow(job["cap_sec"])
    start = time.process_time()
    prepared = prepare()
    say(library_sec=time.process_time() - start)
    spent = 0.0
    for seed in range(job["repeats"]):
        if seed and spent * (seed + 1) / seed > job["cap_sec"] / 2:
            break
        allow(job["cap_sec"])
        start = time.process_time()
        try:
            mol, error = build(prepared, seed), ""
        except Exception as caught:  # whatever stops the other program is its result
            mol, error = None, f"{type(caught).__name__}: {caught}"
        seconds = time.process_time() - start
        spent += seconds
        say(chain_sec=seconds, error=error, **({} if mol is None else shape(mol)))


def say(**facts: Any) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


def allow(seconds: float) -> None:
    """End the process when it has used so many more processor seconds."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), most))


def shape(mol: Any) -> dict[str, Any]:
    """Elements (A,), bonds (B, 2) and positions (A, 3) in angstrom of an RDKit molecule."""
    return {
        "elements": [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        "bonds": [[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()],
        "x_ang": mol.GetConformer().GetPositions().round(4).tolist(),
    }


def etkdg(job: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[Any, int], Any], dict[str, str]]:
    """Embedding of the whole chain, given as SMILES, from random coordinates: the usual start finds no chain of 50 units."""
    import rdkit
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    def build(_: None, seed: int) -> Any:
        mol = Chem.AddHs(Chem.MolFromSmiles(job["smiles"]))
        settings = rdDistGeom.ETKDGv3()
        settings.randomSeed, settings.numThreads, settings.useRandomCoords = seed + 1, 1, True
        if rdDistGeom.EmbedMolecule(mol, settings) < 0:
            raise RuntimeError("no embedding found")
        return mol

    rdDistGeom.EmbedMolecule(Chem.AddHs(Chem.MolFromSmiles("CCO")), rdDistGeom.ETKDGv3())  # reads its tables
    return lambda: None, build, {"rdkit": rdkit.__version__}


def random_walk(job: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[Any, int], Any], dict[str, str]]:
    """RadonPy: units added one by one at random dihedrals; by default MMFF94 moves the whole chain after each."""
    import numpy as np
    import radonpy
    import rdkit
    from radonpy.core import const, poly, utils
    from rdkit.Chem import rdForceFieldHelpers

    const.print_level = 3
    opt = "rdkit" if job["relaxed"] else None

    def build(ends: Any, seed: int) -> Any:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 RadonPy draws from the global stream
        monomer, end = ends
        return poly.terminate_rw(poly.polymerize_rw(monomer, job["units"], opt=opt), end, opt=opt)

    def prepare() -> Any:
        return utils.mol_from_smiles(job["psmiles"]), utils.mol_from_smiles("*C")

    rdForceFieldHelpers.MMFFOptimizeMolecule(utils.mol_from_smiles("CCO"))  # reads its tables
    return prepare, build, {"radonpy": radonpy.__version__, "rdkit": rdkit.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    main()
