"""What every test runs under: one thread, nothing sent anywhere, no GPU needed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.object_store import address, endpoint, environment, gateway  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
}
if "RAY_AUTH_MODE" not in os.environ:  # a token for this session; Ray would leave one in the home folder
    ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
for _name, _value in ENVIRONMENT.items():  # before the first import of torch or Ray in any test module
    os.environ.setdefault(_name, _value)


class Groups(LoadScopeScheduling):
    """Which tests share a process when the suite runs in several (make test).

    Files that start several processes or a Ray cluster run one after the other: two at once would starve each other on two cores. The
    other files of a folder with costly session fixtures stay together, so that those are made once. Everything else goes file by file.
    """

    SHARED_FOLDERS = ("tests/train", "tests/report")

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if starts_processes(file):
            return "processes"
        folder = file.rpartition("/")[0]
        return folder if folder in self.SHARED_FOLDERS else file


@cache
def starts_processes(file: str) -> bool:
    """Whether a test file (path from the root) holds the mark dist."""
    return "mark.dist" in (ROOT / file).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not on this machine")
    return folder


@pytest.fixture(autouse=True)
def _one_thread_and_the_same_generators() -> Iterator[None]:
    """A test neither sees nor leaves a changed global generator, thread count, or linear layer (DeepSpeed's ZeRO-3 exchanges it)."""
    import random
    import sys

    import numpy as np

    torch = sys.modules.get("torch")
    before = (random.getstate(), np.random.get_state())  # noqa: NPY002 - the legacy generator is what leaks between tests
    torch_before = (torch.get_rng_state(), torch.nn.functional.linear) if torch else None
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    if torch is not None and torch_before is not None:
        torch.set_rng_state(torch_before[0])
        torch.nn.functional.linear = torch_before[1]
