"""A sample as SDF text, for any molecular viewer."""

from __future__ import annotations

import io

import numpy as np
from rdkit import Chem

from data_shards.chem.chain import chain_mol
from data_shards.chem.molecule import mol_of
from data_shards.schema import MoleculeSample, PolymerSample


def sample_sdf(sample: PolymerSample) -> str:
    """Every conformation as one SDF record, hydrogens included.

    Args:
        sample: one chain.

    Returns:
        SDF text; V3000 records where a chain has more than 999 atoms.
    """
    mol = chain_mol(sample.topology, sample.num_units, hydrogens=True)
    text = io.StringIO()
    writer = Chem.SDWriter(text)
    for index in range(len(sample.heavy_ang)):
        x_ang = np.concatenate([sample.heavy_ang[index], sample.hydrogen_ang[index]]).astype(np.float64)
        conformer = Chem.Conformer(len(x_ang))
        conformer.SetPositions(x_ang)
        mol.RemoveAllConformers()
        mol.AddConformer(conformer, assignId=True)
        mol.SetProp("_Name", f"{sample.key}/{index}")
        mol.SetProp("psmiles", sample.topology.psmiles)
        mol.SetIntProp("num_units", sample.num_units)
        writer.write(mol)
    writer.close()
    return text.getvalue()


def molecule_sdf(sample: MoleculeSample) -> str:
    """Every conformation of a molecule as one SDF record, its SMILES in the property smiles, as `--source molecules` reads it."""
    text = io.StringIO()
    writer = Chem.SDWriter(text)
    for index, x_ang in enumerate(sample.x_ang):
        mol = mol_of(sample.graph, x_ang)
        mol.SetProp("_Name", f"{sample.key}/{index}")
        mol.SetProp("smiles", sample.graph.smiles)
        writer.write(mol)
    writer.close()
    return text.getvalue()


def element_symbol(number: int) -> str:
    """Symbol of an atomic number."""
    return str(Chem.GetPeriodicTable().GetElementSymbol(number))
