"""RDKit descriptors of a repeat unit inside a long chain, per heavy atom: what one more unit adds.

A descriptor of the whole string would count its ends, and would double with the unit. The difference between a chain of three units and
one of two has no ends; divided by the heavy atoms of a unit it says the same of `*CC*` and `*CCCC*` where the descriptor is a sum over
groups of neighbouring atoms. Those that are no such sum (largest charge, indices of the whole graph), or that count marks of
stereochemistry, are left out.

descriptors.csv: name in RDKit, mean and standard deviation over the 4,391 polymers of the released model's training split, values cut at
the first and the last percentile; a descriptor that is then the same for all is left out.
"""

from __future__ import annotations

import csv
import math
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors, rdPartialCharges

from data_shards.chem.graph_indices import e_states, graph_indices
from data_shards.chem.oligomer import plain_chain
from data_shards.errors import PolymerError
from data_shards.schema import UnitTopology

HISTOGRAMS = {"PEOE": rdMolDescriptors.PEOE_VSA_, "SMR": rdMolDescriptors.SMR_VSA_, "SlogP": rdMolDescriptors.SlogP_VSA_}
LARGEST = 4.0  # standard deviations from the mean; a standardised descriptor farther out lies here


@cache
def table() -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Names, (F,) means and (F,) standard deviations of descriptors.csv."""
    with files("data_shards.chem").joinpath("descriptors.csv").open() as text:
        rows = list(csv.DictReader(text))
    mean, deviation = (np.array([float(row[name]) for row in rows]) for name in ("mean", "deviation"))
    return tuple(row["name"] for row in rows), mean, deviation


def unit_descriptors(topology: UnitTopology, names: tuple[str, ...] | None = None) -> NDArray[np.float64]:
    """(F,) descriptors per heavy atom of a repeat unit; NaN where RDKit has no finite value, such as a charge of an unusual atom.

    Args:
        topology: of the repeat unit, of its canonical P-SMILES where ways of writing it must not differ.
        names: of the descriptors; None: those of descriptors.csv.
    """
    chosen = table()[0] if names is None else names
    try:
        shorter, longer = (_as_rdkit_reads_it(plain_chain(topology, num_units)) for num_units in (2, 3))
    except (PolymerError, ValueError):
        return np.full(len(chosen), np.nan)
    for mol in (shorter, longer):
        mol._eStateIndices = e_states(mol)  # where RDKit's EState_VSA looks for them
    values = (_values(chosen, longer) - _values(chosen, shorter)) / (topology.num_atoms - 2)
    if not _has_charges(longer):  # RDKit would put atoms whose charge is not a number into some bin
        values[[name.startswith("PEOE_VSA") for name in chosen]] = np.nan
    return np.where(np.isfinite(values), values, np.nan)


def standardised_descriptors(topology: UnitTopology) -> NDArray[np.float32]:
    """(F,) of mean 0 and deviation 1 over polymers, cut at LARGEST; NaN as unit_descriptors."""
    _, mean, deviation = table()
    return np.clip((unit_descriptors(topology) - mean) / deviation, -LARGEST, LARGEST).astype(np.float32)


def _as_rdkit_reads_it(chain: Chem.Mol) -> Chem.Mol:
    """The same molecule with implicit hydrogens, which the atom types of descriptors are written for."""
    mol = Chem.MolFromSmiles(Chem.MolToSmiles(chain, canonical=False))
    if mol is None:
        raise ValueError("RDKit cannot read the chain that it has written")
    return mol


def _has_charges(mol: Chem.Mol) -> bool:
    """Gasteiger's method has parameters for every atom."""
    rdPartialCharges.ComputeGasteigerCharges(mol)
    return all(math.isfinite(atom.GetDoubleProp("_GasteigerCharge")) for atom in mol.GetAtoms())


@cache
def _functions() -> dict[str, object]:
    return dict(Descriptors.descList)


def _values(names: tuple[str, ...], mol: Chem.Mol) -> NDArray[np.float64]:
    """(F,) descriptors of a molecule; those of one histogram are read from it together."""
    known, own = _functions(), graph_indices(mol)
    found = {prefix: histogram(mol) for prefix, histogram in HISTOGRAMS.items()}
    split = [name.partition("_VSA") for name in names]
    return np.array(
        [
            found[prefix][int(number) - 1] if vsa and prefix in found else own[name] if name in own else _value(known[name], mol)
            for name, (prefix, vsa, number) in zip(names, split, strict=True)
        ]
    )


def _value(descriptor: object, mol: Chem.Mol) -> float:
    try:
        return float(descriptor(mol))  # type: ignore[operator]
    except (ValueError, RuntimeError, ZeroDivisionError, OverflowError):
        return float("nan")
