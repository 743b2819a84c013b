"""Generated conformations relaxed in MMFF94s: a file of their own beside the raw one, each record labelled, energies before and after."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from data_shards.chem.chain import chain_mol
from data_shards.errors import PolymerError
from foundation.sampling.request import ChainRequest
from foundation.sampling.writers import Properties, StructureFile, conformation_mol

FORCE_FIELD = "MMFF94s, theta environment (near neighbours along the chain in full, repulsion beyond)"


def relaxed_path(out: Path) -> Path:
    """`ps.sdf` -> `ps.relaxed.sdf`."""
    return out.with_suffix(f".relaxed{out.suffix}")


class RelaxedFile:
    """Writes what the raw file holds, minimised. A chain that cannot be relaxed is counted with its reason, and only the raw file has it.

    Args:
        out: the raw file.
        hydrogens: keep the hydrogens in the records; the force field needs them in any case.
    """

    def __init__(self, out: Path, hydrogens: bool) -> None:
        self.file = StructureFile(relaxed_path(out), hydrogens)
        self.outcomes: Counter[str] = Counter()

    def add(self, request: ChainRequest, x_ang: NDArray[np.floating], properties: Properties) -> None:
        """Relax a conformation and append it.

        Args:
            request: its chain.
            x_ang: (H, 3) raw heavy atoms, schema order.
            properties: of the raw record.
        """
        from data_shards.conformers.dynamics import relax_chain

        whole = positions(conformation_mol(chain_mol(request.topology, request.num_units), x_ang, hydrogens=True))
        heavy = len(x_ang)
        try:
            found = relax_chain(request.topology, request.num_units, whole[:heavy], whole[heavy:])
        except PolymerError as error:
            self.outcomes[error.reason] += 1
            return
        if found.reasons[0] not in ("", "clash"):  # another chain came out; what only touches itself is kept and labelled
            self.outcomes[found.reasons[0]] += 1
            return
        self.outcomes["relaxed"] += 1
        labels: Properties = {
            "relaxed": FORCE_FIELD,
            "energy_before_kcal_mol": float(found.energy_before_kcal_mol[0]),
            "energy_after_kcal_mol": float(found.energy_after_kcal_mol[0]),
            "converged": str(bool(found.converged[0])).lower(),
            "check": found.reasons[0] or "ok",
        }
        raw = {name: value for name, value in properties.items() if name in RAW_PROPERTIES}
        self.file.add(request, found.heavy_ang[0], {**raw, **labels}, hydrogen_ang=found.hydrogen_ang[0])

    def facts(self) -> dict[str, Any]:
        """For the provenance."""
        return {"file": self.file.path.name, "force_field": FORCE_FIELD, "outcomes": dict(self.outcomes)}


RAW_PROPERTIES = ("psmiles", "canonical_psmiles", "num_units", "num_canonical_units", "tacticity", "seed", "conformation")


def positions(mol: Chem.Mol) -> NDArray[np.float64]:
    """(A, 3) of the only conformer."""
    x_ang: NDArray[np.float64] = mol.GetConformer().GetPositions()
    return x_ang
