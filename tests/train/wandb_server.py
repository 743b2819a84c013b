"""As much of a W&B server as its client needs to keep runs: what it would show of each is in `runs`. Nothing leaves the machine."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0" * 40


@dataclass
class StoredRun:
    """What a run would show."""

    name: str
    project: str
    facts: dict[str, Any] = field(default_factory=dict)  # config, tags, job type, ... as sent last
    streams: dict[str, list[str]] = field(default_factory=dict)  # lines of each stream by the file's name, as the client places them
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)  # as they were announced; a table is one
    exit_codes: list[int | None] = field(default_factory=list)  # what the client said of its end, each time

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers and media of the run as a whole; the client sends it anew each time."""
        return json.loads((self.streams.get("wandb-summary.json") or ["{}"])[-1])

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every row that was logged."""
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    def bucket(self) -> dict[str, Any]:
        """As the client asks for it."""
        history, events = (self.streams.get(f"wandb-{name}.jsonl", []) for name in ("history", "events"))
        project = {"id": "p", "name": self.project, "entity": {"id": "e", "name": "tester"}}
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.facts.get("displayName"),
            "project": project,
            "config": self.facts.get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary),
            "tags": self.facts.get("tags") or [],
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": len(self.streams.get("output.log", [])),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "wandbConfig": json.dumps({"t": 1}),
        }


class Server(ThreadingHTTPServer):
    """Runs by id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, StoredRun] = {}
        self.views: list[dict[str, Any]] = []  # dashboards
        self.lock = threading.Lock()
        self.silent = threading.Event()

    @property
    def url(self) -> str:
        """What WANDB_BASE_URL is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """One GraphQL operation; what is not known gets an empty answer, which the client takes for an older server."""
        if "RunResumeStatus" in query:
            run = self.runs.get(given["name"])
            return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "tester"}, "bucket": run and run.bucket()}}
        if "UpsertBucket" in query:
            inserted = given["name"] not in self.runs
            run = self.runs.setdefault(given["name"], StoredRun(given["name"], given["project"]))
            run.facts |= {key: value for key, value in given.items() if value is not None}
            return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "CreateArtifact" in query:  # said to be there already: the client uploads none of it
            found = given["input"]
            self.runs[found["runName"]].artifacts.append(found)
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if "UpsertView2" in query:
            self.views.append(given)
            return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
        if "query ArtifactType(" in query:  # is there an older version of this table?
            return {"project": {"artifact": None}}
        if "GetDefaultEntity" in query:
            return {"viewer": {"id": "u", "entity": "tester"}}
        if "query Viewer" in query:
            return {"viewer": {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def silence(self) -> None:
        """Take connections and requests, and answer none."""
        self.silent.set()

    def place(self, run: str, files: dict[str, Any]) -> None:
        """Lines of a file stream; an offset that was there before is written over, as the server does."""
        for name, chunk in files.items():
            lines = self.runs[run].streams.setdefault(name, [])
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def _reply(self, content: dict[str, Any]) -> None:
        if self.server.silent.is_set():
            threading.Event().wait(600)
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        _, _, run, name = self.path.split("/", 3)
        with self.server.lock:
            self.server.runs[run].files[name] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if not self.path.startswith(("/graphql", "/files/")):  # the client's own telemetry
            self._reply({})
            return
        sent = json.loads(body)
        parts = self.path.strip("/").split("/")
        answer: dict[str, Any] = {"exitcode": None, "limits": {}}
        with self.server.lock:
            if self.server.silent.is_set():
                pass
            elif parts[0] == "graphql":
                answer = {"data": self.server.answer(sent["query"], sent.get("variables") or {})}
            elif parts[-1] == "file_stream":
                self.server.place(parts[-2], sent.get("files") or {})
                if sent.get("complete"):
                    self.server.runs[parts[-2]].exit_codes.append(sent.get("exitcode"))
        self._reply(answer)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
