"""The n-mer as a molecule, and which handedness each of its units has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.oligomer import heavy_chain
from data_shards.chem.repeat_unit import build_unit
from data_shards.errors import InputError
from data_shards.schema import UnitTopology

TACTICITIES = ("isotactic", "syndiotactic", "atactic")


def chain_mol(topology: UnitTopology, num_units: int, *, hydrogens: bool = False, handedness: NDArray[np.int8] | None = None) -> Chem.Mol:
    """Molecule of a chain with its two caps, sanitised.

    Args:
        topology: the repeat unit.
        num_units: N.
        hydrogens: add the hydrogens as atoms after all heavy atoms, in schema order.
        handedness: (N, c) signs to write as chiral tags; None writes those that the P-SMILES fixes.

    Raises:
        InputError: num_units below 1.
    """
    if num_units < 1:
        raise InputError(f"num_units {num_units} must be at least 1; ask for a chain of 1 unit or more")
    chain = heavy_chain(topology, num_units, handedness)
    return Chem.AddHs(chain) if hydrogens else chain


def tacticity_signs(topology: UnitTopology, num_units: int, tacticity: str, seed: int) -> NDArray[np.int8]:
    """Handedness of every stereocentre of every unit.

    Centres that the P-SMILES fixes keep their sign. For the others: isotactic repeats one pattern; syndiotactic alternates it with the
    pattern that differs in most open centres (its mirror image where nothing is fixed); atactic draws a pattern for every unit. With
    several centres in a unit, only patterns that its rings allow are used (RepeatUnit.configurations).

    Args:
        topology: the repeat unit, c stereocentres.
        num_units: N.
        tacticity: isotactic, syndiotactic or atactic.
        seed: of the atactic draw.

    Returns:
        (N, c) of +1 and -1.

    Raises:
        InputError: another tacticity.
    """
    return pick_configurations(build_unit(topology.psmiles).configurations, num_units, tacticity, seed)


def pick_configurations(patterns: NDArray[np.int8], num_units: int, tacticity: str, seed: int) -> NDArray[np.int8]:
    """tacticity_signs from the sign patterns (P, c) that a unit can have."""
    if tacticity not in TACTICITIES:
        raise InputError(f"tacticity {tacticity!r} is unknown; choose one of {', '.join(TACTICITIES)}")
    if tacticity == "isotactic":
        picked = np.zeros(num_units, dtype=np.int64)
    elif tacticity == "syndiotactic":
        opposite = int(np.argmax((patterns != patterns[0]).sum(axis=1)))
        picked = np.arange(num_units) % 2 * opposite
    else:
        picked = np.random.default_rng([seed, num_units]).integers(len(patterns), size=num_units)
    return patterns[picked]
