"""What tests of DiTMC begin with: molecules, chains, small networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rdkit import Chem

from data_shards.chem.molecule import read_molecule
from foundation.batch import Condition
from foundation.data.collate import collate_conditions
from foundation.molecules import Molecules
from foundation.objectives.base import Capabilities
from foundation.objectives.ditmc.config import DiTMCConfig
from foundation.objectives.ditmc.model import DiTMC
from foundation.sampling.request import chain_condition
from tests.sampling.conftest import request_of

SMILES = ("CCCCCC", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](O)F", "C1CC1", "F/C=C/Cl")


def molecules_of(texts: Sequence[str], *, hydrogens: bool) -> tuple[Molecules, list[Chem.Mol]]:
    mols = [Chem.MolFromSmiles(text) for text in texts]
    mols = [Chem.AddHs(mol) for mol in mols] if hydrogens else mols
    return Molecules.of_graphs([read_molecule(mol) for mol in mols]), mols


def conditions(*chains: tuple[str, int]) -> Condition:
    return collate_conditions([chain_condition(request_of(psmiles, num_units), Capabilities()) for psmiles, num_units in chains])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(**fields: Any) -> DiTMC:
    """A small network whose zero layers are filled, so that nothing is hidden by them."""
    torch.manual_seed(0)
    made = DiTMC(DiTMCConfig(**{"width": 32, "num_heads": 4, "num_layers": 2, **fields}))
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return made.eval()
