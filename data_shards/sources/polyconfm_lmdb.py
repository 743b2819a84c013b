"""Chains of the published PolyConFM data set: one LMDB file, records under the keys 0, 1, 2 ..., each a pickled table.

Records are read one after the other, as data (see `unpickle`); none is kept. One that cannot be read is a row like any other, with an
empty P-SMILES where even that is missing, and goes into the funnel with the reason that `read_structure` finds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import InputError, PolymerError
from data_shards.sources.polyconfm_conventions import ConventionSummary, chain_graph, convention_of, summarise, world_coordinates
from data_shards.sources.polyconfm_record import PSMILES_KEY, read_psmiles, read_record
from data_shards.sources.table import Row
from data_shards.sources.unpickle import MAX_PICKLE_BYTES

if TYPE_CHECKING:
    from data_shards.conformers.imported import Structure


@dataclass(frozen=True)
class PolyConfmLmdbSource:
    """Records of an LMDB file as rows.

    Args:
        path: the file, or the folder that holds data.mdb.
        column: key of the P-SMILES in a record; ``psmi`` when None.
        limit: read at most this many records.

    Raises:
        InputError: no path, no LMDB there, none that can be read, an empty one, or lmdb is not installed.
    """

    path: str
    column: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("no LMDB file given; pass one with --input")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit} must be >= 1; change --limit")
        if not len(self):
            raise InputError(f"{self.path} has no record; give an LMDB file with at least one chain")

    def __len__(self) -> int:
        entries = int(_open(self.path).stat()["entries"])
        return entries if self.limit is None else min(entries, self.limit)

    def settings(self) -> dict[str, Any]:
        """The chains come along."""
        return {"engine": "import"}

    def notes(self) -> list[str]:
        """Which conventions the first records follow."""
        return conventions(self.path, column=self.column).lines()

    def facts(self) -> dict[str, Any]:
        """The same for the manifest."""
        return {"conventions": conventions(self.path, column=self.column).as_dict()}

    def rows(self) -> Iterator[Row]:
        """Every record in the order of its key. A row without a P-SMILES says in its labels, as reason and detail, why it has none."""
        for number in range(1, len(self) + 1):
            payload, psmiles, problem = b"", "", {}
            try:
                payload = self.payload(number)
                psmiles = read_psmiles(payload, self.column or PSMILES_KEY)
            except PolymerError as error:
                problem = {"reason": error.reason, "detail": error.detail}
            yield Row(number, psmiles, problem, hashlib.sha256(payload).hexdigest())

    def payload(self, number: int) -> bytes:
        """The bytes of a record, 1 being the one under key 0. Cut off behind the bound of a pickle; empty where there is none.

        Raises:
            PolymerError: unreadable-record where the file is damaged there.
        """
        import lmdb

        try:
            with _open(self.path).begin(buffers=True) as transaction:
                found = transaction.get(str(number - 1).encode())
                return b"" if found is None else bytes(found[: MAX_PICKLE_BYTES + 1])
        except lmdb.Error as error:
            raise PolymerError(
                "", "unreadable-record", f"the file is damaged at record {number} ({str(error)[-80:]}); copy it again"
            ) from None


@lru_cache(maxsize=8)
def _opened(path: str, inode: int, modified_ns: int, size: int) -> Any:
    """One environment for a file in this process; LMDB forbids a second one."""
    try:
        import lmdb
    except ImportError:
        missing = "--source polyconfm-lmdb needs the package lmdb; install it with: pip install 'polymer-foundation[polyconfm]'"
        raise InputError(missing) from None
    try:
        environment = lmdb.open(path, subdir=Path(path).is_dir(), readonly=True, lock=False, create=False, readahead=False)
        facts = environment.stat()
        pages = int(environment.info()["last_pgno"]) + 1
    except lmdb.Error as error:
        raise InputError(f"{path} is no LMDB file that can be read ({str(error)[-80:]}); pass an LMDB file with --input") from None
    if pages * int(facts["psize"]) > size or int(facts["entries"]) > size:  # reading behind the end would end this process
        environment.close()
        raise InputError(f"{path} has {size} bytes and should have {pages * int(facts['psize'])}; it is cut off, copy it again")
    return environment


def _open(path: str) -> Any:
    target = Path(path).resolve()
    if target.is_dir() and not (target / "data.mdb").is_file():
        raise InputError(f"{path} is a folder without data.mdb; pass an LMDB file with --input")
    try:
        facts = (target / "data.mdb" if target.is_dir() else target).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass an LMDB file with --input") from None
    return _opened(str(target), facts.st_ino, facts.st_mtime_ns, facts.st_size)


def read_structure(payload: bytes, psmiles: str) -> Structure:
    """The chain of a record.

    Args:
        payload: as PolyConfmLmdbSource.payload gives it.
        psmiles: the polymer, in any spelling.

    Raises:
        PolymerError: as read_record, world_coordinates, structure_of and build_unit.
    """
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.imported import structure_of

    try:
        record = read_record(payload, psmiles)
        x_ang, _ = world_coordinates(record)
        facts = {
            "source": "polyconfm-lmdb",
            "record": hashlib.sha256(payload).hexdigest(),
            "units_in_record": record.num_units,
            "convention": asdict(convention_of(record)),
        }
        return structure_of(chain_graph(record, x_ang), build_unit(record.psmiles), facts)
    except PolymerError as error:
        raise PolymerError(psmiles, error.reason, error.detail) from None


def conventions(path: str, limit: int | None = 100, column: str | None = None) -> ConventionSummary:
    """Which conventions the first records of a file follow.

    Args:
        path: as PolyConfmLmdbSource.
        limit: look at this many records at most; None: all.
        column: key of the P-SMILES.

    Raises:
        InputError: as PolyConfmLmdbSource.
    """
    source = PolyConfmLmdbSource(path, column, limit)
    found, refused = [], Counter[str]()
    for number in range(1, len(source) + 1):
        try:
            payload = source.payload(number)
            found.append(convention_of(read_record(payload, read_psmiles(payload, column or PSMILES_KEY))))
        except PolymerError as error:
            refused[error.reason] += 1
    return summarise(found, refused)
