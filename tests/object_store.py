"""An object store for tests: moto's S3 over HTTP on loopback, with a gateway before it that counts requests and fails when told to.

The fixtures are offered to all tests by tests/conftest.py.
"""

from __future__ import annotations

import http.client
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

try:
    import s3fs
except ImportError:  # the fixtures skip
    s3fs = None

Fault = Callable[[str, str], "int | str | None"]
FAKE = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEQWERTY93",
    "AWS_SECRET_ACCESS_KEY": "fakeSecret/9xZq1+Kd",
    "AWS_SESSION_TOKEN": "fakeToken/K27w+Xy==",
}
PASSWORD = "fakePass/77wq"
SURROUNDINGS = {
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Gateway:
    """An HTTP endpoint that passes requests on to the store behind it, notes them, and fails where `fault` says so."""

    def __init__(self, behind: str) -> None:
        self.behind = urlsplit(behind).netloc
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.fault: Fault = lambda method, path: None  # a status, "drop", "hold", or None to pass on
        self.held, self.go_on = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Relay,), {"gateway": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def files(self, method: str) -> list[str]:
        """Names of the objects that requests of a method named."""
        return [path.partition("?")[0].rsplit("/", 1)[-1] for used, path, _ in self.requests if used == method]

    def close(self) -> None:
        """Let held requests go and end."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Relay(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path)
        self.gateway.requests.append((self.command, path, self.headers.get("Range", "")))
        fault = self.gateway.fault(self.command, path)
        if fault == "hold":
            self.gateway.held.set()
            self.gateway.go_on.wait()
        if isinstance(fault, str):
            self.close_connection = True
            return
        if fault is not None:
            code = {403: "AccessDenied", 503: "ServiceUnavailable"}[fault]
            self._answer(fault, {}, f"<Error><Code>{code}</Code><Message>told to fail</Message></Error>".encode())
            return
        connection = http.client.HTTPConnection(self.gateway.behind)
        connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k not in ("Expect", "Connection")})
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        kept = {k: v for k, v in headers.items() if k not in ("Connection", "Transfer-Encoding")}
        for name, value in ({"Content-Length": str(len(body))} | kept).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _relay

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Moto's S3 on a free port."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def gateway(endpoint: str) -> Iterator[Gateway]:
    """A gateway before the store."""
    made = Gateway(endpoint)
    yield made
    made.close()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Fake credentials in the environment, a working directory of one's own, no connection of another test."""
    for name, value in (FAKE | SURROUNDINGS).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield monkeypatch
    reconnect()


@pytest.fixture
def address(gateway: Gateway, environment: pytest.MonkeyPatch) -> str:
    """A prefix in a new bucket, behind the gateway."""
    environment.setenv("AWS_ENDPOINT_URL", gateway.url)
    reconnect()
    bucket = f"test-{secrets.token_hex(6)}"
    fsspec.filesystem("s3").mkdir(bucket)
    reconnect()
    gateway.requests.clear()
    return f"s3://{bucket}/sets/one"


def reconnect() -> None:
    """Forget connections: they keep the endpoint and credentials that they were made with."""
    assert s3fs is not None
    s3fs.S3FileSystem.clear_instance_cache()
