"""Where polymers come from. A source yields rows, some with a structure; it decides nothing about chemistry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from data_shards.errors import InputError
from data_shards.sources.table import Row, TableSource, textbook

if TYPE_CHECKING:
    from data_shards.conformers.imported import Structure

SOURCES = ("table", "textbook", "sdf", "shards", "polyconfm-lmdb", "smiles", "molecules")


class Source(Protocol):
    """Polymers in a fixed order, read as often as needed and a few at a time."""

    def settings(self) -> dict[str, Any]:
        """Fields of the recipe that the input decides: the engine "import" where rows bring their own chains, else none."""

    def notes(self) -> list[str]:
        """What a user should know of the input, a line each."""

    def facts(self) -> dict[str, Any]:
        """What the manifest records of the input beside the rows."""

    def rows(self) -> Iterator[Row]:
        """All rows, numbered from 1. A record that cannot be read is a row too, so that the funnel counts it."""

    def payload(self, number: int) -> bytes:
        """The structure of a row as it lies in the file; empty where there is none."""


def open_source(name: str, path: str | None, column: str | None = None, limit: int | None = None) -> Source:
    """A source by its name on the command line.

    Args:
        name: one of SOURCES.
        path: file, folder or address, as the source wants it.
        column: where the P-SMILES stands, for sources that have columns or properties.
        limit: read at most this many rows.

    Raises:
        InputError: no such source, or the source cannot read its input.
    """
    if name == "table":
        return TableSource(path, column, limit)
    if name == "textbook":
        return textbook(path, column, limit)
    if name not in SOURCES:
        raise InputError(f"source {name!r} must be one of {', '.join(SOURCES)}; change --source")
    if name == "smiles":
        from data_shards.sources.molecules import SmilesSource

        return SmilesSource(path, column, limit)
    if path is None:
        what = "a shard set" if name == "shards" else "a file"
        raise InputError(f"--source {name} needs {what}; pass it with --input")
    if name == "sdf":
        from data_shards.sources.sdf import SdfSource

        return SdfSource(path, column, limit)
    if name == "molecules":
        from data_shards.sources.molecules import MoleculeSource

        return MoleculeSource(path, column, limit)
    if name == "shards":
        from data_shards.sources.shards import ShardsSource

        return ShardsSource(path, column, limit)
    from data_shards.sources.polyconfm_lmdb import PolyConfmLmdbSource

    return PolyConfmLmdbSource(path, column, limit)


def read_structure(name: str, payload: bytes, psmiles: str) -> Structure:
    """A row's structure as a chain in our order, from the bytes that its source has for it.

    Args:
        name: of the source.
        payload: as `Source.payload` returned it.
        psmiles: canonical P-SMILES.

    Raises:
        PolymerError: the record cannot be read, or is no chain of this polymer.
    """
    if name == "sdf":
        from data_shards.sources import sdf

        return sdf.read_structure(payload, psmiles)
    from data_shards.sources import polyconfm_lmdb

    return polyconfm_lmdb.read_structure(payload, psmiles)


__all__ = ["SOURCES", "Row", "Source", "TableSource", "open_source", "read_structure", "textbook"]
