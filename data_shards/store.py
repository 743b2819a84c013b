"""Where a shard set lies: a folder, or a prefix of an object store reached through fsspec. Files appear there whole or not at all.

Credentials come from the environment (or the machine's role) through the store's own library, and never enter a message, a log or a file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec

from data_shards.errors import InputError

SCRATCH = Path("shards") / ".upload"  # of the working directory: what is built there for an object store
STAGING_NAME = ".staging"
CHUNK_BYTES = 2**20
UPLOAD_TRIES = 4
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING")


class Store(Protocol):
    """A flat set of files."""

    name: str  # as shown to people
    staging: Path  # folder on this machine's disk for what is not finished

    def names(self) -> list[str]:
        """Files that lie there."""

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is no such file."""

    def sha256(self, name: str) -> str | None:
        """Checksum of a file's content, None where there is no such file."""

    def place(self, path: Path, name: str) -> None:
        """Move a file of this machine's disk there; an older file of that name is replaced at once."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    def clear(self) -> None:
        """Remove the staging folder, and the folder itself where nothing lies in it."""


class Folder:
    """A folder of this machine (or of a disk that it shares)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.staging = path / STAGING_NAME

    def names(self) -> list[str]:
        return sorted(found.name for found in self.path.iterdir() if found.is_file()) if self.path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        try:
            with (self.path / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def place(self, path: Path, name: str) -> None:
        os.replace(path, self.path / name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


class Bucket:
    """A prefix of an object store. Staging lies in the working directory, so that the same command continues from there."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self.staging = SCRATCH / hashlib.sha256(self.name.encode()).hexdigest()[:12] / STAGING_NAME
        with storage_errors(url, "change --out"):
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root = root.rstrip("/")

    def names(self) -> list[str]:
        with storage_errors(self.name, "mend it, then the same command continues"):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return []
            found = self._fs.ls(self._root, detail=True)
            return sorted(info["name"].rsplit("/", 1)[-1] for info in found if info["type"] == "file")

    def read(self, name: str) -> bytes | None:
        with storage_errors(self.name, "mend it, then the same command continues"):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def sha256(self, name: str) -> str | None:
        digest = hashlib.sha256()
        with storage_errors(self.name, "mend it, then the same command continues"):
            try:
                with self._fs.open(f"{self._root}/{name}", "rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def place(self, path: Path, name: str) -> None:
        with storage_errors(self.name, "mend it, then the same command continues"):
            _with_patience(lambda: self._fs.put_file(str(path), f"{self._root}/{name}"))
        path.unlink()

    def remove(self, name: str) -> None:
        with storage_errors(self.name, "mend it, then the same command continues"):
            self._fs.invalidate_cache()
            if self._fs.exists(f"{self._root}/{name}"):
                self._fs.rm_file(f"{self._root}/{name}")

    def clear(self) -> None:
        shutil.rmtree(self.staging.parent, ignore_errors=True)


def open_store(out: str | Path) -> Store:
    """The store that an --out names.

    Raises:
        InputError: a file of that name, or an address that cannot be used.
    """
    if "://" in str(out):
        return Bucket(str(out))
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; pass a folder with --out")
    return Folder(path)


def shown(text: str) -> str:
    """Text without credentials: no user and password in an address, none of the secrets of this environment."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", text)
    for name in SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= 4:
            text = text.replace(secret, f"${name}")
    return text


@contextmanager
def storage_errors(address: str, fix: str) -> Iterator[None]:
    """Whatever a storage library raises, as one sentence without secrets."""
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:  # each storage library has a family of its own
        why = shown(" ".join(f"{type(error).__name__}: {error}".split()))
        raise InputError(f"{shown(address)} cannot be used ({why}); {fix}") from None


def _with_patience(action: Callable[[], Any]) -> None:
    """Try again after 1, 2 and 4 seconds where the connection fails."""
    for attempt in range(UPLOAD_TRIES):
        try:
            action()
            return
        except (OSError, TimeoutError) as error:
            if isinstance(error, FileNotFoundError | PermissionError) or attempt == UPLOAD_TRIES - 1:
                raise
            time.sleep(2.0**attempt)
