"""Tables of results on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.sampling.request import ChainRequest, Refusal

if TYPE_CHECKING:
    import pandas as pd


def embedding_table(requests: Sequence[ChainRequest], vectors: NDArray[np.float32], bad: Sequence[Refusal]) -> pd.DataFrame:
    """One row per input row, in input order; a bad row has its reason and empty numbers.

    Args:
        requests: polymers that could be read.
        vectors: (len(requests), D), NaN for a polymer that was lost later.
        bad: rows refused at once or lost later.
    """
    import pandas as pd

    reason = {refusal.row: f"{refusal.reason}: {refusal.detail}" for refusal in bad}
    known = {request.row: index for index, request in enumerate(requests)}
    psmiles = {refusal.row: refusal.psmiles for refusal in bad} | {request.row: request.psmiles for request in requests}
    rows = sorted(psmiles)
    place = np.array([known.get(row, len(requests)) for row in rows])
    padded = np.concatenate([vectors, np.full((1, vectors.shape[1]), np.nan, dtype=np.float32)])
    facts = pd.DataFrame(
        {
            "row": rows,
            "psmiles": [psmiles[row] for row in rows],
            "canonical_psmiles": [requests[known[row]].topology.psmiles if row in known else None for row in rows],
            "num_units": pd.array([requests[known[row]].num_units if row in known else None for row in rows], dtype="Int64"),
            "reason": [reason.get(row) for row in rows],
        }
    )
    return pd.concat([facts, pd.DataFrame(padded[place], columns=[f"e{k}" for k in range(vectors.shape[1])])], axis=1)


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """A Parquet file that exists whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table.to_parquet(aside, index=False)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
