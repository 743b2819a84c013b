"""How every command talks: one clear sentence for bad input, exit 0 done, 2 bad input, 3 stopped but resumable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from data_shards.errors import InputError

EXIT_DONE, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 2, 3


class Resumable(Exception):
    """The work was stopped on purpose and the same command continues it."""


def run(app: Callable[..., Any]) -> None:
    """Run a typer application (or any callable) as a program and leave with the exit code of the contract.

    Args:
        app: called without arguments; a typer app parses ``sys.argv`` itself.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except Resumable as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        raise SystemExit(EXIT_RESUMABLE) from None
