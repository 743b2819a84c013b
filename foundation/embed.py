"""Chain embeddings of a table of polymers: `python -m foundation.embed --checkpoint runs/y --input p.csv --out embeddings.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")],
    input: Annotated[str, typer.Option(help="CSV, TSV or Parquet file with P-SMILES")],
    out: Annotated[Path, typer.Option(help="Parquet file, one row per input row in input order")],
    column: Annotated[str | None, typer.Option(help="column with the P-SMILES; by default psmiles or smiles, in any case")] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows")] = None,
    num_units: Annotated[int, typer.Option(help="repeat units of the chain that is embedded, counted as the P-SMILES is written")] = 20,
    num: Annotated[int, typer.Option(help="conformations per polymer, grown by data_shards.conformers.grow; embeddings are averaged")] = 2,
    tacticity: Annotated[str, typer.Option(help="isotactic, syndiotactic or atactic, for centres the P-SMILES leaves open")] = "atactic",
    seed: Annotated[int, typer.Option(help="seed of tacticity and conformations")] = 0,
    batch_atoms: Annotated[
        int | None, typer.Option(help="heavy atoms of all units of a batch; by default 16000 on a CPU and 20000 on a GPU")
    ] = None,
    workers: Annotated[int, typer.Option(help="processes that grow chains")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out and its provenance")] = False,
) -> None:
    """Write psmiles, canonical_psmiles, num_units, reason (empty where all went well) and e0, e1, ... of every row.

    Exit 0 at least one polymer was embedded, 2 bad input or none could be.
    """
    from foundation.errors import InputError
    from foundation.sampling.request import check_numbers, check_seed, read_requests
    from foundation.sampling.writers import check_absent, provenance_path

    if out.suffix.lower() != ".parquet":
        raise InputError(f"--out {out} has the extension {out.suffix!r}; use .parquet")
    check_absent(out, overwrite)
    check_absent(provenance_path(out), overwrite)
    check_numbers(num_units=num_units, num=num, batch_atoms=batch_atoms, limit=limit, workers=workers)
    check_seed(seed)
    requests, refused = read_requests(None, input, column, limit, num_units, tacticity, seed)

    from data_shards.progress import progress
    from foundation.sampling.embedding import embed_polymers
    from foundation.sampling.provenance import provenance, write_json
    from foundation.sampling.run import BATCH_ATOMS, choose_device
    from foundation.sampling.tables import embedding_table, write_parquet
    from foundation.train.checkpoint import load_model

    where = choose_device(device)
    model, _ = load_model(checkpoint)
    if dry_run:
        print(f"{len(requests)} polymers to embed, {len(refused)} that cannot be used, on {where}")
        print(f"dry run: nothing was written to {out}")
        return
    vectors, lost = embed_polymers(model.to(where), requests, num, batch_atoms or BATCH_ATOMS[where.type], where, progress(), workers)
    bad = sorted([*refused, *lost], key=lambda refusal: refusal.row)
    if len(lost) == len(requests):
        first = f", the first: row {bad[0].row} {bad[0].psmiles}: {bad[0].detail}" if bad else ""
        raise InputError(f"none of {len(bad)} polymers could be embedded{first}; nothing was written")
    write_parquet(out, embedding_table(requests, vectors, bad))
    facts = {"num_conformations": num, "conformations": "grow engine, mean over conformations", "tacticity": tacticity, "seed": seed}
    counts = {"polymers": {"attempted": len(requests) + len(refused), "failed": len(bad)}, "failed": [vars(refusal) for refusal in bad]}
    write_json(provenance_path(out), {**provenance(model, checkpoint), **facts, "num_units": num_units, "device": str(where), **counts})
    print(f"{len(requests) + len(refused)} polymers attempted, {len(requests) - len(lost)} embedded, {len(bad)} failed")
    for refusal in bad[:20]:
        print(f"  row {refusal.row} {refusal.psmiles}: {refusal.detail}")
    print(f"embeddings: {out}, {vectors.shape[1]} columns")


if __name__ == "__main__":
    run(app)
