"""A small real shard set for the evaluation: grown, written and opened by the shard room."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards import pipeline
from data_shards.chem.psmiles import canonicalise
from data_shards.reader import ShardSet, open_shards
from data_shards.recipe import make_recipe
from data_shards.sources.table import TableSource

TEST = ("*CC(*)c1ccccc1", "*CCO*", "*CC*")
TRAIN = ("*CC(*)C", "*O[Si](*)(C)C")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Five polymers of 6 written units with 3 conformations: three to test on, two to train on."""
    out: Path = tmp_path_factory.mktemp("shards") / "x"
    held = tuple(canonicalise(psmiles).group for psmiles in TEST)
    recipe = make_recipe(num_units=6, num_conformations=3, test_fraction=0.0, val_fraction=0.0, to_test=held)
    table = out.with_name("polymers.csv")
    table.write_text("\n".join(["psmiles", *TEST, *TRAIN]) + "\n")
    pipeline.build(recipe, TableSource(str(table)), out)
    opened = open_shards(out)
    assert len(opened.samples("test")) == 3
    assert len(opened.samples("train")) == 2
    return opened
