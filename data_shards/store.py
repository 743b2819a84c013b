"""Where a shard set lies: a folder, or a prefix of an object store reached through fsspec. Files appear there whole or not at all.

Credentials come from the environment (or the machine's role) through the store's own library, and never enter a message, a log or a file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import fsspec
import fsspec.config

from data_shards.errors import InputError

log = logging.getLogger(__name__)
SCRATCH = Path("shards") / ".upload"  # of the working directory: what is built there for an object store
STAGING_NAME = ".staging"
CHUNK_BYTES = 2**20
PATIENCE_SEC = 20.0  # how long a connection that worked before may fail
LONGEST_PAUSE_SEC = 30.0
PASSING_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET}
    | {errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})  # protocols whose addresses begin with a bucket, which is not made by writing into it
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)
PASSWORD = re.compile(r"(?<=://)[^\s/:@]*:(?!\d+(?:/|$))[^\s@]*@")  # user:password@, where a colon is not that of a port
USER = re.compile(r"(?<=://)[^/@\s]+@")
CHECK = "check the address, the network and the credentials in the environment"
AGAIN = f"{CHECK}, then the same command continues"
# Tried twice by the store's own library; what is worth more patience is tried again by `with_patience`, which knows when to stop.
RETRIES = {"mode": "standard", "total_max_attempts": 2}

T = TypeVar("T")


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


class Prefix:
    """What lies below an address of an object store, reached through fsspec. File names are relative to it.

    Args:
        url: the address.
        patience_sec: how long the first connection may fail; PATIENCE_SEC where it is None.

    Raises (all methods):
        InputError: the store cannot be reached, refuses, or there is no such bucket.
    """

    def __init__(self, url: str, patience_sec: float | None = 0.0) -> None:
        self.name = shown(url)  # without credentials
        with storage_errors(url, CHECK):
            self._fs, self._root = open_address(url)
            if not with_patience(self._list, patience_sec):
                check_bucket(self._fs, self._root, url)

    def names(self) -> list[str]:
        """What is there, in order."""
        with storage_errors(self.name, AGAIN):
            return with_patience(self._list)

    def sha256(self, name: str) -> str | None:
        """Checksum of a file's content, None where there is no such file."""
        digest = hashlib.sha256()
        with storage_errors(self.name, AGAIN):
            self._fs.invalidate_cache()
            try:
                with StoredFile(self._fs, f"{self._root}/{name}", self.name) as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with storage_errors(self.name, AGAIN):
            self._fs.invalidate_cache()
            if with_patience(lambda: self._fs.exists(f"{self._root}/{name}")):
                with_patience(lambda: self._fs.rm_file(f"{self._root}/{name}"))

    def _list(self) -> list[str]:
        raise NotImplementedError


class Bucket(Prefix):
    """A shard set on an object store. Staging lies in the working directory, so that the same command continues from there."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.staging = SCRATCH / hashlib.sha256(self.name.encode()).hexdigest()[:12] / STAGING_NAME

    def _list(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(info["name"].rsplit("/", 1)[-1] for info in found if info["type"] == "file")

    def read(self, name: str) -> bytes | None:
        with storage_errors(self.name, AGAIN):
            self._fs.invalidate_cache()
            try:
                return bytes(with_patience(lambda: self._fs.cat_file(f"{self._root}/{name}")))
            except FileNotFoundError:
                return None

    def place(self, path: Path, name: str) -> None:
        with storage_errors(self.name, AGAIN):
            with_patience(lambda: self._fs.put_file(str(path), f"{self._root}/{name}"))
        path.unlink()

    def clear(self) -> None:
        shutil.rmtree(self.staging.parent, ignore_errors=True)


class StoredFile(io.RawIOBase):
    """A file of an object store, to be read. A connection that fails is tried again; what still fails is one sentence."""

    def __init__(self, fs: Any, where: str, address: str) -> None:
        super().__init__()
        self._address = address
        self._file = with_patience(lambda: fs.open(where, "rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with storage_errors(self._address, CHECK):
            data = with_patience(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


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


def open_address(url: str) -> tuple[Any, str]:
    """The file system of an address, for this process, and the path in it.

    Endpoint and credentials come from the environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on, or FSSPEC_<PROTOCOL>_<OPTION>.

    Raises:
        InputError: a password in the address, or no bucket.
    """
    scheme, _, rest = url.partition("://")
    if PASSWORD.search(url) or (scheme in BUCKETS and USER.search(url)):
        raise InputError(
            f"{shown(url)} was given with a user or password in it, which would end up in logs; take it out and pass credentials in the "
            "environment (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if scheme in BUCKETS and not rest.strip("/"):
        raise InputError(f"{url} names no bucket; write {scheme}://bucket/prefix")
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get(scheme, {}):
        options["config_kwargs"] = {"retries": RETRIES}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ValueError as error:  # no such protocol
        raise InputError(f"{shown(url)} cannot be opened ({shown(str(error))}); {CHECK}") from None
    if scheme in ("s3", "s3a"):
        fs.retries = 1  # s3fs repeats what botocore has repeated: a server that hangs would take minutes
    return fs, str(root).rstrip("/")


def check_bucket(fs: Any, root: str, address: str) -> None:
    """Is there the bucket that an address begins with? Without this, a build would learn it when its first shard is done.

    Raises:
        InputError: no.
    """
    if address.partition("://")[0] not in BUCKETS:
        return
    bucket = root.split("/", 1)[0]
    try:
        fs.info(bucket)
    except FileNotFoundError:
        raise InputError(f"{shown(address)} lies in no bucket: there is none named {bucket!r}; make it, or change the address") from None
    except PermissionError:  # a user may be allowed the prefix only
        return


def shown(text: str) -> str:
    """Text without credentials: no user and password in an address, no secret of this environment."""
    text = USER.sub("", PASSWORD.sub("", text))
    secrets = {value: f"${name}" for name, value in os.environ.items() if SECRET_NAME.search(name)}
    for protocol, options in fsspec.config.conf.items():
        secrets |= {value: f"${protocol}.{name}" for name, value in options.items() if SECRET_NAME.search(name) and isinstance(value, str)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 6:
            text = text.replace(secret, secrets[secret]).replace(quote(secret, safe=""), secrets[secret])
    return text


@contextmanager
def storage_errors(address: str, fix: str) -> Iterator[None]:
    """Whatever a storage library raises, as one sentence without secrets."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        extra = "pip install 'polymer-foundation[s3]'" if "s3fs" in str(error) else "install it"
        raise InputError(f"{shown(address)} cannot be opened: a package is missing ({error}); {extra}") from None
    except Exception as error:  # each storage library has a family of its own
        why = shown(" ".join(f"{type(error).__name__}: {error}".split()))
        raise InputError(f"{shown(address)} cannot be used ({why}); {fix}") from None


def with_patience(action: Callable[[], T], patience_sec: float | None = None, worth: Callable[[Exception], bool] | None = None) -> T:
    """Do something, again after 1, 2, 4 ... up to LONGEST_PAUSE_SEC seconds where it fails in a way that waiting may mend.

    Args:
        action: what to do.
        patience_sec: for how long; PATIENCE_SEC where it is None.
        worth: which errors deserve another try; `may_pass` where it is None.
    """
    deadline, pause_sec, worth = time.monotonic() + (PATIENCE_SEC if patience_sec is None else patience_sec), 1.0, worth or may_pass
    while True:
        try:
            return action()
        except Exception as error:
            if not worth(error) or time.monotonic() + pause_sec > deadline:
                raise
            log.warning("trying again in %g s: %s", pause_sec, shown(" ".join(f"{type(error).__name__}: {error}".split())))
        time.sleep(pause_sec)
        pause_sec = min(2 * pause_sec, LONGEST_PAUSE_SEC)


def may_pass(error: Exception) -> bool:
    """Whether an error of an object store's library may be gone later: a connection, a busy server."""
    return not isinstance(error, (FileNotFoundError, PermissionError, ImportError, TypeError, ValueError, AttributeError, LookupError))


def disk_may_recover(error: Exception) -> bool:
    """Whether an error of a mounted disk may be gone later: a file server that restarts or is overloaded."""
    return isinstance(error, OSError) and error.errno in PASSING_ERRORS
