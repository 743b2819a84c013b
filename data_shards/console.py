"""How every command talks: one clear sentence for bad input, exit 0 done, 2 bad input, 3 stopped but resumable."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from data_shards.errors import InputError

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 3


class Resumable(Exception):
    """The work was stopped on purpose and the same command continues it."""


_at_once = False  # of the process: threads that must not be outlived are the process's too


def leave_at_once() -> None:
    """Tell run to leave without taking the interpreter down in order, for threads of a library may be in the middle of something.

    Files are closed and buffers written by then: only atexit handlers and destructors are left out.
    """
    global _at_once
    _at_once = True


def run(app: Callable[..., Any]) -> None:
    """Run a typer application (or any callable) as a program and leave with the exit code of the contract.

    Args:
        app: called without arguments; a typer app parses ``sys.argv`` itself.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its cache of fonts, once on every machine
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(EXIT_BAD_INPUT)
    except Resumable as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        _leave(EXIT_RESUMABLE)
    except BaseException as error:  # the last frame of the program: whatever ends it must not end Python in order where that would abort
        if not _at_once:
            raise
        if isinstance(error, SystemExit):
            _leave(error.code if isinstance(error.code, int) else EXIT_DONE if error.code is None else EXIT_FAULT)
        traceback.print_exc()
        _leave(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else EXIT_FAULT)


def _leave(code: int) -> NoReturn:
    if not _at_once:
        raise SystemExit(code) from None
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
