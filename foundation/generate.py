"""Conformations of polymers as structure files: `python -m foundation.generate --checkpoint runs/y --psmiles '*CC*' --out pe.sdf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_shards.console import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Option(help="run folder, checkpoint folder, address of either, or small")],
    out: Annotated[Path, typer.Option(help="structure file; .sdf, .xyz or .pdb (one polymer, a model a conformation)")],
    psmiles: Annotated[str | None, typer.Option(help="one polymer: repeat unit with two stars")] = None,
    smiles: Annotated[
        list[str] | None, typer.Option(help="a molecule that is no polymer, for a model trained on molecules; may be repeated")
    ] = None,
    input: Annotated[str | None, typer.Option(help="many polymers: CSV, TSV or Parquet file with P-SMILES")] = None,
    column: Annotated[str | None, typer.Option(help="column with the P-SMILES; by default psmiles or smiles, in any case")] = None,
    limit: Annotated[int | None, typer.Option(help="read at most this many rows of --input")] = None,
    num_units: Annotated[int, typer.Option(help="repeat units per chain, counted as the P-SMILES is written")] = 20,
    num: Annotated[int, typer.Option(help="conformations per polymer")] = 10,
    tacticity: Annotated[str, typer.Option(help="isotactic, syndiotactic or atactic, for centres the P-SMILES leaves open")] = "atactic",
    seed: Annotated[int, typer.Option(help="seed of tacticity and conformations; equal seeds give equal files")] = 0,
    hydrogens: Annotated[bool, typer.Option(help="place hydrogens on the generated heavy atoms")] = True,
    strict: Annotated[bool, typer.Option(help="leave out conformations that fail the check of bonds and clashes")] = False,
    relax: Annotated[
        bool, typer.Option("--relax", help="write what MMFF94s makes of each conformation to a second file, NAME.relaxed.sdf")
    ] = False,
    batch_atoms: Annotated[
        int | None, typer.Option(help="heavy atoms of all units of a batch; by default 16000 on a CPU and 20000 on a GPU")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan, write nothing")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out and its provenance")] = False,
) -> None:
    """Generate chains and write them with true bonds, charges and hydrogens, and a provenance file beside them.

    Exit 0 at least one conformation was written, 2 bad input or none could be made.
    """
    from foundation.sampling.request import check_numbers, check_seed, read_requests
    from foundation.sampling.writers import check_absent, check_format, check_output

    check_output(out, overwrite)
    if relax:
        from foundation.sampling.relax import relaxed_path

        check_absent(relaxed_path(out), overwrite)
    check_numbers(num_units=num_units, num=num, batch_atoms=batch_atoms, limit=limit)
    check_seed(seed)
    if smiles:
        _molecules(smiles, psmiles or input, checkpoint, out, num, seed, hydrogens, strict, relax, batch_atoms, device, dry_run)
        return
    requests, refused = read_requests(psmiles, input, column, limit, num_units, tacticity, seed)
    check_format(out, requests, hydrogens)

    from data_shards.progress import progress
    from foundation.sampling.job import Job, show_plan, show_report, write_chains
    from foundation.sampling.run import BATCH_ATOMS, choose_device
    from foundation.train.checkpoint import load_model

    where = choose_device(device)
    model, _ = load_model(checkpoint)
    job = Job(requests, refused, num, seed, batch_atoms or BATCH_ATOMS[where.type], hydrogens, strict, relax, where, checkpoint)
    if dry_run:
        show_plan(model, job, out)
        return
    report = write_chains(model.to(where), job, out, progress())
    show_report(report, out)


def _molecules(
    smiles: list[str], other: str | None, checkpoint: str, out: Path, num: int, seed: int, hydrogens: bool, strict: bool, relax: bool,
    batch_atoms: int | None, device: str, dry_run: bool,
) -> None:  # fmt: skip
    """The same for molecules that are no polymers."""
    from foundation.errors import InputError
    from foundation.sampling.molecules import check_model, read_molecules, show_molecules, write_molecules

    if other is not None:
        raise InputError(f"--smiles and {other!r} given; give molecules or polymers")
    if not hydrogens or relax:
        raise InputError("--no-hydrogens and --relax are for polymers; molecules are written as they are generated, leave it out")
    if out.suffix.lower() == ".pdb":
        raise InputError(f"{out} would hold molecules, a PDB file holds a polymer; use .sdf or .xyz")
    requests = read_molecules(smiles)

    from data_shards.progress import progress
    from foundation.sampling.run import BATCH_ATOMS, choose_device
    from foundation.train.checkpoint import load_model

    where = choose_device(device)
    model, _ = load_model(checkpoint)
    check_model(model, checkpoint)
    if dry_run:
        atoms = sum(own.graph.num_atoms for own in requests) * num
        print(f"{len(requests)} molecules x {num} conformations, {atoms} atoms on {where}\ndry run: nothing was written to {out}")
        return
    batch = batch_atoms or BATCH_ATOMS[where.type]
    report = write_molecules(model.to(where), requests, num, seed, batch, strict, out, checkpoint, where, progress())
    show_molecules(requests, report, out)


if __name__ == "__main__":
    run(app)
