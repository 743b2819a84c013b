"""Which 3-D chain should a property head read: the model's own, RDKit's, or the reference?

    python -m benchmarks.experiments.property_input --checkpoint runs/y --shards shards/x --out runs/experiments/property_input

The checkpoint embeds every polymer of a table three times, once for each source of coordinates; a ridge regression on the embeddings is
cross-validated on a column of the table, as `foundation.probe` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.experiments.experiment import (
    BLUE,
    GREEN,
    RED,
    Checkpoint,
    Device,
    DryRun,
    Experiment,
    Out,
    Overwrite,
    Place,
    Quick,
    Seed,
    Shards,
    Table,
    finish,
    interval,
    plan,
    prepare,
)
from data_shards.console import run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foundation.sampling.request import ChainRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TEXTBOOK = Path(__file__).parents[2] / "data_shards" / "sources" / "textbook.csv"
SOURCES = ("self-generated", "RDKit", "reference")


@app.command()
def main(
    checkpoint: Checkpoint,
    shards: Shards,
    out: Out,
    data: Annotated[Path, typer.Option(help="CSV with P-SMILES and a property")] = TEXTBOOK,
    column: Annotated[str, typer.Option(help="column of the property")] = "tg_celsius",
    limit: Annotated[int | None, typer.Option(help="read at most this many rows")] = None,
    num_units: Annotated[int, typer.Option(help="repeat units of the chains that are embedded")] = 4,
    num: Annotated[int, typer.Option(help="conformations of each polymer and source; embeddings are averaged")] = 2,
    folds: Annotated[int, typer.Option(help="folds of the cross-validation; ways of writing one polymer stay together")] = 5,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Embed three kinds of chains and probe them. Exit 0 done, 2 bad input."""
    from foundation.errors import InputError
    from foundation.evaluation.property_table import numbers, read_column
    from foundation.sampling.request import check_numbers, read_requests

    check_numbers(num=num, num_units=num_units, limit=limit)
    if folds < 2:
        raise InputError(f"folds {folds} must be >= 2; change --folds")
    place = prepare(EXPERIMENT, checkpoint, shards, out, device, seed, quick, overwrite)
    if quick:
        limit, num, num_units, folds = 8, 1, 2, 2
    requests, refused = read_requests(None, str(data), None, limit, num_units, "atactic", seed)
    rows, _, column = read_column(str(data), column, limit)
    targets = numbers(rows, column).to_numpy()[[request.row - 1 for request in requests]]
    kept = [k for k, value in enumerate(targets) if value == value]  # no NaN
    if len(kept) < folds:
        raise InputError(f"{data} has {len(kept)} usable rows with {column}, {folds} folds need as many; pass another --data or --folds")
    if dry_run:
        plan(place, f"{len(kept)} polymers with {column}, {num} chains of {num_units} units from each of {', '.join(SOURCES)}")
        return
    finish(place, measure(place, [requests[k] for k in kept], targets[kept], column, num, folds, len(refused)))


def measure(
    place: Place, requests: list[ChainRequest], targets: NDArray[np.float64], column: str, num: int, folds: int, num_refused: int
) -> dict[str, Any]:
    """Cross-validated error of the ridge probe on each source, on the polymers that all three could make."""
    import numpy as np

    from data_shards.chem.psmiles import canonicalise
    from foundation.evaluation.ridge import cross_validate, make_folds, scores

    own_chains = self_generated(place, requests, num)
    makers: dict[str, Callable[[ChainRequest], Any]] = {
        SOURCES[0]: lambda request: next(own_chains),
        SOURCES[1]: lambda request: rdkit_chains(request, num),
        SOURCES[2]: lambda request: grown(request, num),
    }
    vectors: dict[str, list[Any]] = {name: [] for name in makers}
    with place.bars.stage("embed", len(requests)) as stage:
        for request in requests:
            for name, make in makers.items():
                vectors[name].append(embedding(place, request, make(request)))
            stage.advance(1, request.psmiles[:40])
    made = {name: np.array([v is not None for v in own]) for name, own in vectors.items()}
    everywhere = np.logical_and.reduce(list(made.values()))
    groups = np.array([canonicalise(request.psmiles).group for request in requests])[everywhere]
    found: dict[str, Any] = {}
    predictions: dict[str, list[float]] = {}
    y, fold = targets[everywhere], make_folds(groups, folds, place.seed)
    for name, own in vectors.items():
        x = np.stack([v for v, there in zip(own, everywhere, strict=True) if there])
        predicted = cross_validate(x, y, fold)
        found[name] = {"attempted": len(requests), "failed": int((~made[name]).sum()), **scores(y, predicted, place.seed)}
        predictions[name] = predicted.tolist()
    return {
        "column": column,
        "num_polymers": int(everywhere.sum()),
        "num_refused": num_refused,
        "num_units": requests[0].num_written_units,
        "num": num,
        "folds": folds,
        "sources": found,
        "targets": y.tolist(),
        "predictions": predictions,
        "notes": [
            "RDKit: ETKDGv3 of the whole capped chain, heavy atoms; reference: the grow engine; self-generated: the checkpoint itself.",
            "Ridge regression on standardised embeddings, its strength chosen inside the training folds; compared on the polymers that all "
            "three sources could make; failures are counted.",
        ],
    }


def self_generated(place: Place, requests: list[ChainRequest], num: int) -> Iterator[NDArray[np.floating] | None]:
    """(K, H, 3) chains of the model for every request in order, or None; requests share batches."""
    import numpy as np

    from foundation.sampling.run import BATCH_ATOMS, generate_chains

    made = generate_chains(place.model, requests, num, place.seed, BATCH_ATOMS[place.device.type], place.device)
    for _ in requests:
        kept = [chain.x_ang for chain in (next(made) for _ in range(num)) if chain.x_ang is not None]
        yield np.stack(kept) if kept else None


def rdkit_chains(request: ChainRequest, num: int) -> NDArray[np.floating] | None:
    """(K, H, 3) ETKDG geometries of the whole chain, or None."""
    import numpy as np

    from data_shards.chem.capped import embed
    from data_shards.chem.chain import chain_mol

    mol = chain_mol(request.topology, request.num_units, hydrogens=True, handedness=request.handedness)
    kept = embed(mol, num, request.seed)
    heavy = request.num_heavy_atoms  # they come before all hydrogens
    return np.stack([mol.GetConformer(k).GetPositions()[:heavy] for k in kept]) if kept else None


def grown(request: ChainRequest, num: int) -> NDArray[np.floating] | None:
    """(K, H, 3) chains of the grow engine, or None."""
    from foundation.sampling.growth import grow_sample
    from foundation.sampling.request import Refusal

    made = grow_sample(request, num)
    return None if isinstance(made, Refusal) else made.heavy_ang


def embedding(place: Place, request: ChainRequest, x_ang: NDArray[np.floating] | None) -> NDArray[np.float64] | None:
    """(D,) mean over the conformations of a chain; None where there is none."""
    import numpy as np

    from data_shards.schema import PolymerSample
    from foundation.data.collate import build_batch
    from foundation.sampling.embedding import chain_vectors

    if x_ang is None:
        return None
    count, hydrogen = len(x_ang), np.zeros((len(x_ang), 0, 3), dtype=np.float32)
    parts = (request.topology, request.num_units, request.tacticity, request.seed, "import", x_ang.astype(np.float32), hydrogen, None)
    sample = PolymerSample("x", *parts)
    vectors = chain_vectors(place.model, build_batch([sample] * count, range(count), range(count)), place.device)
    vector: NDArray[np.float64] = vectors.mean(0)
    return vector if np.isfinite(vector).all() else None


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a source."""
    rows = [
        [name, f"{row['failed']} of {row['attempted']}", interval(row["mae"], 2), interval(row["r2"])]
        for name, row in result["sources"].items()
    ]
    title = f"`{result['column']}` of {result['num_polymers']} polymers, chains of {result['num_units']} units, {result['folds']} folds"
    return [Table(title, ["3-D from", "chains failed", "mean absolute error", "R²"], rows)]


def _parity(axes: Any, result: dict[str, Any]) -> None:
    y = result["targets"]
    for (name, predicted), colour in zip(result["predictions"].items(), (RED, BLUE, GREEN), strict=True):
        axes.plot(y, predicted, ".", color=colour, alpha=0.6, label=f"{name}, R² {result['sources'][name]['r2']['value']:.2f}")
    axes.plot([min(y), max(y)], [min(y), max(y)], color="black", linewidth=0.8)
    axes.set(xlabel=f"{result['column']}, table", ylabel=f"{result['column']}, predicted", title="Ridge probe of the embeddings")
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    "property_input",
    "self-generated, RDKit's or reference 3-D as input of a property probe: cross-validated error",
    "Does it matter for a property head where the 3-D chain comes from?",
    tables,
    {"property_input.png": _parity},
)

if __name__ == "__main__":
    run(app)
