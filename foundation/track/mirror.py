"""W&B as a mirror of metrics.jsonl: a process of its own beside rank 0, so that nothing that W&B does can slow or stop training.

    python -m foundation.track.mirror RUN_FOLDER MODE PROJECT        (foundation/track/tracker.py starts it)

It follows metrics.jsonl and hands each step to W&B once, in order, under the id of the run. What W&B has already is not sent again:
W&B would give steps that overlap other numbers. What a kill kept from W&B is read from the file and sent at the next start.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import shutil
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundation.track.metrics import METRICS, STEP, Totals, defined_name, listed
from foundation.track.tracker import FINISH_SEC, RUN_ID, parse_row

POLL_SEC = 0.5
FLUSH_SEC = 2.0  # how much of W&B's own file a kill may lose; metrics.jsonl has it
INIT_SEC = 10.0  # an online W&B that has not answered by then is mirrored offline
LOCK, SENT = ".mirror.lock", ".mirrored"  # beside W&B's own files in RUN_FOLDER/wandb
BLOCK, HEADER = 32_768, b":W&B" + struct.pack("<HB", 0xBEE1, 0)  # a .wandb file is a LevelDB log behind this header
EVALUATION = "eval/"  # how the names of what an evaluation adds to the summary begin
WHOLE, LAST = 1, 4  # kinds of fragments; a record of several starts with 2 and goes on with 3


class Busy(Exception):
    """Another mirror works on the run."""


def say(text: str) -> None:
    """One line where the logs of training go."""
    print(f"W&B: {text}", file=sys.stderr, flush=True)


class Ending:
    """When training ends: a byte on standard input says well, its end or a new parent that training was lost.

    FINISH_SEC later this process ends too.
    """

    def __init__(self) -> None:
        self.came = threading.Event()
        self.well = False
        self.parent = os.getppid()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self.parent:
            if select.select([0], [], [], POLL_SEC)[0]:
                self.well = os.read(0, 1) != b""
                break
        self.came.set()
        time.sleep(FINISH_SEC)
        say(f"not everything was taken within {FINISH_SEC:g} s; metrics.jsonl has it, `wandb sync` uploads what lies in the run folder")
        os._exit(1)


def mirror(
    out: Path,
    mode: str,
    project: str,
    came: Callable[[float], bool],
    ended_well: Callable[[], bool],
    at_the_end: Callable[[Any], None] = lambda run: None,
    patience_sec: float = math.inf,
) -> None:
    """Follow a run to its end.

    Args:
        out: run folder.
        mode: offline or online.
        project: of W&B.
        came: waits so many seconds for the end of training and says whether it came.
        ended_well: whether training said so itself.
        at_the_end: gets the W&B run once it has every step (foundation/track/attach.py).
        patience_sec: how long another mirror of the run is waited for.

    Raises:
        Busy: the other mirror still works.
    """
    facts = {name: read_object(out / f"{name}.json") for name in ("config", "run")}
    run_id = str(facts["run"].get("run_id"))
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"run_id {run_id!r} in {out / 'run.json'} is not eight hexadecimal digits")
    with sole_mirror(out / "wandb", patience_sec):
        evaluated = evaluation_in(pieces(out, run_id))
        run, first = open_run(out, mode, project, run_id, facts)
        sent = first - 1
        totals = Totals()
        for row in follow(out / "metrics.jsonl", came):
            totals.add(row)
            if row["step"] > sent:
                run.log(content(out, row), step=row["step"], commit=True)  # not held back: the summary below comes after it
                sent = row["step"]
        run.summary.update({**evaluated, **totals.summary()})  # the summary of a piece takes the place of that of all before it
        at_the_end(run)
        run.finish(exit_code=0 if ended_well() else 1)
        (out / "wandb" / SENT).write_text(f"{sent}\n")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError, ValueError: it cannot be read, or is something else.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


@contextmanager
def sole_mirror(folder: Path, patience_sec: float) -> Iterator[None]:
    """Wait until the mirror of a training that was killed has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_sec
    with (folder / LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy(f"another mirror holds {folder}") from None
                time.sleep(POLL_SEC)
        yield


def follow(path: Path, came: Callable[[float], bool]) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl as they are written, until training has ended and the last is read; a line without its end is not there yet."""
    with path.open("rb") as file:
        rest = b""
        ended = False
        while True:
            ended = ended or came(0)
            lines = (rest + file.read()).split(b"\n")
            rest = lines.pop()
            for line in lines:
                row = parse_row(line)
                if row is None:
                    return
                yield row
            if ended:
                return
            ended = came(POLL_SEC)


def content(out: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B gets of a row: listed numbers, and the chain that was sampled at this step."""
    import wandb

    found = {name: value for name, value in row.items() if listed(name) and isinstance(value, int | float)}
    found[STEP] = row["step"]
    sample = out / "samples" / f"step-{row['step']:08d}.sdf"
    if sample.is_file() and not sample.is_symlink():
        found["sample"] = wandb.Molecule(str(sample), caption=f"step {row['step']}")
    return found


def media(tables: Mapping[str, tuple[list[str], list[list[Any]]]], images: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """W&B's objects of tables (columns, rows) and of images (PNG files by caption), by key. What is empty is left out."""
    import wandb

    found: dict[str, Any] = {key: wandb.Table(columns=columns, data=rows) for key, (columns, rows) in tables.items() if rows}
    for key, files in images.items():
        if files:
            found[key] = [wandb.Image(str(path), caption=caption) for caption, path in files.items()]
    return found


# ------------------------------------------------------------------------------------------------------------------------ the run


def open_run(out: Path, mode: str, project: str, run_id: str, facts: Mapping[str, dict[str, Any]]) -> tuple[Any, int]:
    """A W&B run inside the run folder, and the first step that it lacks. It never asks for a login.

    Args:
        out, mode, project: as mirror.
        run_id: joins the pieces of an interrupted run.
        facts: "config" (config.json) and "run" (run.json: commit, versions, fingerprint of the shards).
    """
    import wandb

    if mode == "online":
        try:
            return _go_online(wandb, out, project, run_id, facts)
        except Exception as error:
            say(f"offline for now: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
            wandb.teardown()
    for piece in pieces(out, run_id):
        mend(piece)
    last = max([_sent(out), *(last_step(piece) for piece in pieces(out, run_id))])
    return _init(wandb, out, "offline", project, run_id, facts), last + 1


def _go_online(wandb: Any, out: Path, project: str, run_id: str, facts: Mapping[str, dict[str, Any]]) -> tuple[Any, int]:
    before = [piece for piece in pieces(out, run_id) if piece.parent.name.startswith("offline-")]
    run = _init(wandb, out, "online", project, run_id, facts)
    for piece in before:  # the server gets their steps from metrics.jsonl; `wandb sync` shall not send them again
        piece.with_name(piece.name + ".synced").touch()
    return run, int(run.starting_step)


def _init(wandb: Any, out: Path, mode: str, project: str, run_id: str, facts: Mapping[str, dict[str, Any]]) -> Any:
    config, run = facts["config"], facts["run"]
    objective = config.get("objective")
    tags = [str(config.get("recipe"))[:64], str(objective.get("name") if isinstance(objective, dict) else objective)[:64]]
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_job_creation=True,
        init_timeout=INIT_SEC,
        use_dot_wandb=False,
        x_transaction_log_flush_interval=FLUSH_SEC,
        x_stats_pid=os.getppid(),  # system metrics of the training process, not of this one
    )
    found = wandb.init(
        project=project,
        dir=str(out),
        config={**config, "run": run},
        name=out.resolve().name,
        id=run_id,
        resume="allow",
        job_type=str(run.get("job_type", "pretrain"))[:64],
        tags=list(dict.fromkeys(tags)),
        mode=mode,
        settings=settings,
    )
    for name in ("config.json", "run.json"):
        found.save(str(out / name), base_path=str(out), policy="now")
    define(found)
    return found


def define(run: Any) -> None:
    """Tell W&B the axis and the summary of every metric of the table, so that a new workspace draws them as they are meant."""
    run.define_metric(STEP, hidden=True)
    for name, metric in METRICS.items():
        run.define_metric(defined_name(name), step_metric=STEP, summary=metric.summary, hidden=metric.hidden)


def default_entity(timeout_sec: float) -> str:
    """The user or team that the key stands for, asked of the server.

    Raises:
        ValueError: the key names none.
    """
    import wandb

    found = wandb.Api(timeout=math.ceil(timeout_sec)).default_entity
    if not found:
        raise ValueError("the key names no user or team")
    return str(found)


# ------------------------------------------------------------------------------------------------- what earlier pieces hold


def pieces(out: Path, run_id: str) -> list[Path]:
    """W&B's own files of the starts of this run so far, offline and online."""
    return sorted((out / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb"))


def _sent(out: Path) -> int:
    """The last step that a mirror which ended well had handed over; 0 where there was none. Pieces may be deleted once they are synced."""
    path = out / "wandb" / SENT
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def last_step(path: Path) -> int:
    """Last step in a .wandb file; 0 where there is none."""
    last = 0
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            last = int(record.history.step.num)
    return last


def evaluation_in(paths: Iterable[Path]) -> dict[str, Any]:
    """What foundation/track/attach.py has added in earlier pieces, the newest of each key."""
    found: dict[str, Any] = {}
    for path in paths:
        if EVALUATION.encode() not in path.read_bytes():  # a long training is not decoded for nothing
            continue
        for record in records(path):
            if record.WhichOneof("record_type") == "summary":
                found |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key.startswith(EVALUATION)}
    return found


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file up to where a kill tore it."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _, data in log_records(path.read_bytes()):
        yield Record.FromString(data)


def log_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(where it ends, record) of a LevelDB log behind W&B's header: blocks of fragments with checksums. What is wrong ends it."""
    if not data.startswith(HEADER):
        return
    place, parts = len(HEADER), b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too little room for a fragment: zeros
            place += BLOCK - place % BLOCK
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, place)
        fragment = data[place + 7 : place + 7 + size]
        if not WHOLE <= kind <= LAST or len(fragment) < size or zlib.crc32(fragment, zlib.crc32(bytes([kind]))) != checksum:
            return
        parts += fragment
        place += 7 + size
        if kind in (WHOLE, LAST):
            yield place, parts
            parts = b""


def mend(path: Path) -> None:
    """Cut a torn record off the end of a .wandb file, and remove a piece that was killed before it began.

    `wandb sync` stops at both, and never comes to the pieces that follow.
    """
    while True:
        data = path.read_bytes()
        end = max([0, *(place for place, _ in log_records(data))])
        begun = any(record.WhichOneof("record_type") == "run" for record in records(path))
        if begun and end == len(data):
            return
        time.sleep(POLL_SEC)
        if path.stat().st_size == len(data):  # nobody writes it any more
            break
    if begun:
        os.truncate(path, end)
    else:
        shutil.rmtree(path.parent)


def main(out: Path, mode: str, project: str) -> None:
    """The program; what goes wrong is one line, and training does not hear of it."""
    ending = Ending()
    try:
        mirror(out, mode, project, ending.came.wait, lambda: ending.well)
    except Exception as error:
        say(f"cannot be used ({type(error).__name__}: {next(iter(str(error).splitlines()), '')}); metrics.jsonl has everything")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
