"""Fixtures of the model tests."""

from __future__ import annotations

import pytest

from foundation.batch import Batch
from tests.polyconfm.chains import batch_of


@pytest.fixture(scope="session")
def batch() -> Batch:
    made = batch_of()
    assert (made.handedness != 0).any()
    assert (made.handedness == 0).any()
    return made
