"""Chains from SD files: one file, plain or gzipped, or a folder of them; each record carries its P-SMILES as a property.

Records are read one after the other and none is kept, so memory does not depend on how many there are. A record that cannot be
understood is a row like any other: what is wrong with it is found where its structure is read, and goes into the funnel.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import InputError, PolymerError
from data_shards.sources.table import PSMILES_NAMES, Row

if TYPE_CHECKING:
    from data_shards.conformers.imported import Structure

MAX_RECORD_BYTES = 64 * 2**20
SUFFIXES = (".sdf", ".sdf.gz", ".sd", ".sd.gz")
CHECKPOINT_EVERY = 32  # records between two places that reading can start from
MAX_PROPERTIES = 32  # carried into the provenance
MAX_PROPERTY_LENGTH = 200
TRANSLATION_NAMES = ("translation_a", "translation_ang")  # property: period of an endless chain of which the record is one period
ENERGY_NAMES = ("energy_kcal_mol",)
_END = b"$$$$"
_PROPERTY = re.compile(r"^>.*?<([^<>]*)>")


@dataclass(frozen=True)
class _Place:
    """Where a record starts."""

    number: int
    file: int
    offset: int


_START = _Place(1, 0, 0)


@dataclass
class SdfSource:
    """Records of SD files as rows.

    Args:
        path: an SD file, or a folder whose SD files are read in the order of their names.
        column: property that holds the P-SMILES, matched without regard to case; ``psmiles`` or ``smiles`` when None.
        limit: read at most this many records.

    Raises:
        InputError: no path, nothing to read there, or no record in it.
    """

    path: str
    column: str | None = None
    limit: int | None = None
    _places: list[_Place] = field(default_factory=list, init=False, repr=False)
    _unpacked: dict[int, IO[bytes]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("no SD file given; pass a file or a folder with --input")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit} must be >= 1; change --limit")
        if next(iter(self._records(_START)), None) is None:
            raise InputError(f"{self.path} has no record; give an SD file with at least one chain")

    def settings(self) -> dict[str, Any]:
        """The chains come along."""
        return {"engine": "import"}

    def notes(self) -> list[str]:
        """Nothing to tell."""
        return []

    def facts(self) -> dict[str, Any]:
        """Nothing beside the rows."""
        return {}

    def rows(self) -> Iterator[Row]:
        """Every record in the order of the files; the P-SMILES is '' where the record has none."""
        names = (self.column.lower(),) if self.column else PSMILES_NAMES
        for place, blob, digest in self._records(_START):
            title, properties = properties_of(_text(blob))
            found = {name.lower(): value for name, value in reversed(list(properties.items()))}
            psmiles = next((found[name] for name in names if found.get(name)), "") or self._unnamed(blob)
            yield Row(place.number, psmiles, {"name": title} if title else {}, digest)

    def _unnamed(self, blob: bytes) -> str:
        """What a record without a name of its structure is."""
        return ""

    def payload(self, number: int) -> bytes:
        """The bytes of a record, 1 being the first. Cut off behind MAX_RECORD_BYTES.

        Raises:
            InputError: there is no such record.
        """
        known = [place for place in self._places if place.number <= number]
        for place, blob, _ in self._records(known[-1] if known else _START, unpacked=True):
            if place.number == number:
                return blob
        raise InputError(f"{self.path} has no record {number}; it has changed since the build started, start it again")

    def _files(self) -> list[Path]:
        path = Path(self.path)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.name.lower().endswith(SUFFIXES))
            if not files:
                raise InputError(f"{self.path} has no file that ends in {' or '.join(SUFFIXES)}; pass a folder of SD files with --input")
            return files
        if not path.exists():
            raise InputError(f"{self.path} does not exist; pass an SD file or a folder of them with --input")
        return [path]

    def _opened(self, index: int, path: Path, unpacked: bool) -> IO[bytes]:
        """A file for reading. One that is read here and there is unpacked once, into a file without a name that lives as long as this."""
        if not path.name.lower().endswith(".gz"):
            return path.open("rb")
        if not unpacked:
            return gzip.open(path, "rb")  # type: ignore[return-value]
        if index not in self._unpacked:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, copy)
            self._unpacked[index] = copy
        return os.fdopen(os.dup(self._unpacked[index].fileno()), "rb")

    def _records(self, start: _Place, *, unpacked: bool = False) -> Iterator[tuple[_Place, bytes, str]]:
        """Place, bytes and SHA-256 of every record from a place on."""
        number = start.number
        for index, path in enumerate(self._files()):
            if index < start.file:
                continue
            try:
                with self._opened(index, path, unpacked) as file:
                    file.seek(start.offset if index == start.file else 0)
                    offset = file.tell()
                    for blob, digest in _split(file):
                        if self.limit is not None and number > self.limit:
                            return
                        place = _Place(number, index, offset)
                        if number % CHECKPOINT_EVERY == 1 and (not self._places or self._places[-1].number < number):
                            self._places.append(place)
                        yield place, blob, digest
                        number, offset = number + 1, file.tell()
            except (OSError, EOFError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(f"{path} cannot be read ({reason}); give an SD file, plain or gzipped") from None


def _split(file: IO[bytes]) -> Iterator[tuple[bytes, str]]:
    """Bytes and SHA-256 of every record; of a record that is too long, the digest of all and the bytes up to one beyond the bound."""
    lines: list[bytes] = []
    size, digest, blank = 0, hashlib.sha256(), True
    while line := file.readline(2**20):
        digest.update(line)
        if size <= MAX_RECORD_BYTES:
            lines.append(line[: MAX_RECORD_BYTES + 1 - size])
        size += len(line)
        if line.rstrip() == _END:
            yield b"".join(lines), digest.hexdigest()
            lines, size, digest, blank = [], 0, hashlib.sha256(), True
        elif line.strip():
            blank = False
    if not blank:  # a last record without its end mark
        yield b"".join(lines), digest.hexdigest()


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", errors="replace").replace("\r\n", "\n")


def properties_of(text: str) -> tuple[str, dict[str, str]]:
    """Title line and properties of a record."""
    lines = text.split("\n")
    found: dict[str, str] = {}
    name: str | None = None
    for line in lines[3:]:
        header = _PROPERTY.match(line)
        if header:
            name = header.group(1).strip()
            found[name] = ""
        elif name is not None and line.strip() and line.strip() != "$$$$":
            found[name] = f"{found[name]}\n{line.strip()}" if found[name] else line.strip()
        else:
            name = None
    return lines[0].strip()[:MAX_PROPERTY_LENGTH], found


def read_structure(payload: bytes, psmiles: str) -> Structure:
    """The chain of a record.

    Args:
        payload: as SdfSource.payload gives it.
        psmiles: what the record should be.

    Raises:
        PolymerError: as chem.molblock.read_molblock, conformers.imported.structure_of and build_unit; too-large; bad-property.
    """
    from data_shards.chem.molblock import read_molblock
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.conformers.imported import structure_of

    if not psmiles:
        raise PolymerError(psmiles, "empty", "the record has no P-SMILES; add the SD property psmiles, or name another with --column")
    if len(payload) > MAX_RECORD_BYTES:
        raise PolymerError(psmiles, "too-large", f"the record has more than {MAX_RECORD_BYTES} bytes, the bound; split the file")
    text = _text(payload)
    if "M  END" not in text:
        raise PolymerError(psmiles, "unreadable-record", "the record has no line M  END; it is cut off or no SD record")
    title, properties = properties_of(text)
    unit = build_unit(psmiles)
    graph = read_molblock(text[: text.index("M  END")] + "M  END\n", psmiles)
    translation = _numbers(properties, TRANSLATION_NAMES, 3, psmiles)
    energy = _numbers(properties, ENERGY_NAMES, 1, psmiles)
    kept = list(properties.items())[:MAX_PROPERTIES]
    facts = {
        "source": "sdf",
        "record": hashlib.sha256(payload).hexdigest(),
        "title": title,
        "properties": {name[:MAX_PROPERTY_LENGTH]: value[:MAX_PROPERTY_LENGTH] for name, value in kept if value != psmiles},
    }
    try:
        return structure_of(graph, unit, facts, period_ang=translation, energy_kcal_mol=None if energy is None else float(energy[0]))
    except PolymerError as error:
        raise PolymerError(psmiles, error.reason, error.detail) from None


def _numbers(properties: dict[str, str], names: tuple[str, ...], count: int, psmiles: str) -> NDArray[np.float64] | None:
    """Numbers (count,) of the first of these properties that the record has."""
    lowered = {name.lower(): value for name, value in properties.items()}
    written = next((lowered[name] for name in names if name in lowered), None)
    if written is None:
        return None
    try:
        numbers = np.array([float(word) for word in written.replace(",", " ").split()])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        shown = written[:60]
        raise PolymerError(psmiles, "bad-property", f"property {names[0]} is {shown!r}; it must be {count} finite numbers")
    return numbers
