"""Molecules that are no polymers: SMILES of a table, or records of SD files with coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_shards.sources.sdf import SdfSource
from data_shards.sources.table import TableSource


class SmilesSource(TableSource):
    """Rows of a table as molecules, whose conformations are to be embedded; see TableSource."""

    def settings(self) -> dict[str, Any]:
        """Conformations are embedded."""
        return {"engine": "etkdg", "relax": False}


@dataclass
class MoleculeSource(SdfSource):
    """Records of SD files as molecules, each with its one conformation; see SdfSource.

    Conformations of one molecule are records of their own; splits keep them together. A record without a property smiles is read as
    what its atoms and bonds are.
    """

    def settings(self) -> dict[str, Any]:
        """Conformations come along."""
        return {"engine": "record", "relax": False}

    def _unnamed(self, blob: bytes) -> str:
        from data_shards.chem.molecule import smiles_of_record

        return smiles_of_record(blob)


__all__ = ["MoleculeSource", "SmilesSource"]
