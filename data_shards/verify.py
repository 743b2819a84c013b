"""Check every byte and every sample of a shard set: `python -m data_shards.verify shards/x`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_shards.manifest import SampleEntry, ShardEntry
    from data_shards.reader import ShardSet
    from data_shards.schema import MoleculeSample, PolymerSample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
BOND_RANGE_ANG = (0.9, 3.2)  # N-N and O-H below, Sn-I above: outside is no bond of any polymer, whatever built the chain
MOLECULE_BOND_RANGE_ANG = (0.6, 3.2)  # with hydrogens, and with what is heavier than bromine
DAMAGES_SHOWN = 20


@app.command()
def main(
    shards: Annotated[str, typer.Argument(help="folder or fsspec address of a shard set")],
    limit: Annotated[int | None, typer.Option(help="check at most this many samples per shard; checksums always cover every byte")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="repeat the checks of the build: clashes, bonds, handedness")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="manifest, names and sizes only")] = False,
) -> None:
    """Checksums, then every sample: decoded, shapes, finite numbers, bond lengths, key. Exit 0 whole, 2 damaged (names the shard)."""
    from data_shards.errors import InputError, ShardError
    from data_shards.progress import progress
    from data_shards.reader import open_shards

    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} must be >= 1; change --limit")
    opened = open_shards(shards)
    listed = list(opened.manifest.shards())
    total = sum(shard.num_samples for _, shard in listed)
    if dry_run:
        print(f"{shards}: {_shards(listed)} of {total} samples are there with the right sizes; contents not read (dry run)")
        return
    damages: list[str] = []
    with progress().stage("verify", total, unit="samples") as bar:
        for _, shard in listed:
            found = shard_damages(opened, shard, limit=limit, quality=quality)
            damages += found
            bar.advance(shard.num_samples, note=f"damages: {len(damages)}" if damages else "")
    damages += set_damages(opened) + file_damages(opened)
    if len(listed) > 1 and all(any(line.startswith(f"{shard.name}: sha256") for line in damages) for _, shard in listed):
        damages.insert(0, "manifest.json: no shard has the checksum that it names; the manifest is of another build")
    for line in damages[:DAMAGES_SHOWN]:
        print(f"damaged: {line}")
    if damages:
        where = ", ".join(sorted({line.split(":", 1)[0] for line in damages}))
        cure = "copy these files again, or repeat the build command: it makes only them again"
        raise ShardError(f"{_count(damages)} in {where}; {cure}")
    print(f"{shards}: {total} samples in {_shards(listed)}: every checksum and sample is right; fingerprint {opened.fingerprint[:16]}")


def _shards(listed: list[tuple[str, ShardEntry]]) -> str:
    return "1 shard" if len(listed) == 1 else f"{len(listed)} shards"


def _count(damages: list[str]) -> str:
    return "1 damage" if len(damages) == 1 else f"{len(damages)} damages"


def shard_damages(opened: ShardSet, shard: ShardEntry, *, limit: int | None = None, quality: bool = False) -> list[str]:
    """What is wrong with one shard, one line each, the shard's name first."""
    from data_shards.errors import ShardError
    from data_shards.schema import MoleculeSample

    damages = []
    found = opened.sha256(shard)
    if found != shard.sha256:
        damages.append(f"{shard.name}: sha256 {found[:12]} instead of {shard.sha256[:12]}")
    lying, listed = _keys(opened, shard), [entry.key for entry in shard.samples]
    if lying is None:
        damages.append(f"{shard.name}: is no whole tar file")
    else:
        missing, extra = set(listed) - set(lying), set(lying) - set(listed)
        damages += [f"{shard.name}: sample {key} is missing" for key in sorted(missing)]
        damages += [f"{shard.name}: holds sample {key}, which the manifest does not list" for key in sorted(extra)]
        if not missing and not extra and lying != listed:
            damages.append(f"{shard.name}: its samples lie in another order, or twice")
    if len(shard.samples) != shard.num_samples:
        damages.append(f"{shard.name}: the manifest lists {len(shard.samples)} samples and counts {shard.num_samples}")
    for entry in shard.samples[:limit]:
        try:
            sample = opened.read_any(entry)
        except ShardError as error:
            damages.append(f"{shard.name}: {error}")
            continue
        if isinstance(sample, MoleculeSample):
            damages += [f"{shard.name}: sample {entry.key} {line}" for line in molecule_damages(sample, entry)]
            continue
        limits = opened.manifest.recipe.get("quality") or {} if quality else None
        damages += [f"{shard.name}: sample {entry.key} {line}" for line in sample_damages(sample, entry, limits)]
    return damages


def _keys(opened: ShardSet, shard: ShardEntry) -> list[str] | None:
    """Keys of the samples in a tar file, one after the other; None where it is torn."""
    import tarfile

    keys: list[str] = []
    try:
        with opened.open_binary(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.offset_data + info.size > shard.bytes:
                    return None
                key = info.name.split(".", 1)[0]
                keys += [key] if keys[-1:] != [key] else []
    except (tarfile.TarError, EOFError):
        return None
    return keys


def file_damages(opened: ShardSet) -> list[str]:
    """What is wrong with the files beside the shards: the funnel's checksums, shards that nobody lists."""
    damages = []
    lying = opened.names()
    for name, sha256 in opened.manifest.files.items():
        if name not in lying:
            damages.append(f"{name}: is missing")
        elif hashlib.sha256(opened.read_file(name)).hexdigest() != sha256:
            damages.append(f"{name}: is not as it was written")
    listed = {shard.name for _, shard in opened.manifest.shards()}
    damages += [f"{name}: lies there and the manifest does not list it" for name in lying if name.endswith(".tar") and name not in listed]
    return damages


def molecule_damages(sample: MoleculeSample, entry: SampleEntry) -> list[str]:
    """What is wrong with one decoded molecule (its shapes were checked when it was decoded)."""
    graph, x = sample.graph, sample.x_ang
    stored, listed = (graph.smiles, graph.num_atoms, len(x)), (entry.psmiles, entry.atoms_per_unit, entry.num_conformations)
    damages = [] if stored == listed else [f"holds {stored}, the manifest says {listed}"]
    return damages + (_infinite(x) or _bond_damages(x, graph.bonds, MOLECULE_BOND_RANGE_ANG))


def _infinite(*x_ang: NDArray[np.float32]) -> list[str]:
    import numpy as np

    return [] if all(np.isfinite(x).all() for x in x_ang) else ["has coordinates that are not finite"]


def _bond_damages(x_ang: NDArray[np.float32], bonds: NDArray[np.int64], bounds: tuple[float, float]) -> list[str]:
    """Bonds (b, 2) of conformations (K, n, 3) outside bounds in angstrom."""
    import numpy as np

    if not len(bonds):
        return []
    lengths, (low, high) = np.linalg.norm(x_ang[:, bonds[:, 0]] - x_ang[:, bonds[:, 1]], axis=2), bounds
    if low <= lengths.min() and lengths.max() <= high:
        return []
    return [f"has bonds of {lengths.min():.2f} to {lengths.max():.2f} angstrom, outside {low} to {high}"]


def sample_damages(sample: PolymerSample, entry: SampleEntry, limits: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with one decoded sample (its shapes were checked when it was decoded).

    Args:
        sample: as decoded.
        entry: what the manifest says of it.
        limits: of the quality checks, as the recipe has them; None leaves these checks out.
    """
    from data_shards.schema import chain_bonds
    from data_shards.writer import sample_key

    topology, damages = sample.topology, []
    stored = (sample.topology.psmiles, sample.num_units, topology.num_atoms, len(sample.heavy_ang))
    listed = (entry.psmiles, entry.num_units, entry.atoms_per_unit, entry.num_conformations)
    if stored != listed:
        damages.append(f"holds {stored}, the manifest says {listed}")
    if sample.key != sample_key(topology.psmiles, sample.num_units, sample.seed):
        damages.append("has a key that is not the hash of its P-SMILES, number of units and seed")
    infinite = _infinite(sample.heavy_ang, sample.hydrogen_ang)
    if infinite:
        return damages + infinite
    bonds, _ = chain_bonds(topology, sample.num_units)
    damages += _bond_damages(sample.heavy_ang, bonds, BOND_RANGE_ANG)
    if limits is not None:
        damages += _quality_damages(sample, limits)
    return damages


def _quality_damages(sample: PolymerSample, limits: dict[str, Any]) -> list[str]:
    from data_shards.chem.chain import tacticity_signs
    from data_shards.conformers.quality import check_chain
    from data_shards.recipe import QualityLimits

    # An imported chain has the handedness that its source gave it; only a built one can be recomputed. The shapes that bonds were compared
    # with are gone: covalent radii take their place.
    imported = sample.engine == "import"
    signs = None if imported else tacticity_signs(sample.topology, sample.num_units, sample.tacticity, sample.seed)
    loose = QualityLimits(**{**limits, "bond_error_ang": None})
    pairs = zip(sample.heavy_ang, sample.hydrogen_ang, strict=True)
    reports = [check_chain(sample.topology, sample.num_units, heavy, hydrogen, handedness=signs, limits=loose) for heavy, hydrogen in pairs]
    return [f"conformation {index} fails: {report.reason}" for index, report in enumerate(reports) if not report.ok]


def set_damages(opened: ShardSet) -> list[str]:
    """What is wrong between shards: a key twice, a polymer group in two splits, a funnel that does not add up."""
    manifest, damages = opened.manifest, []
    seen: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for split, shard in manifest.shards():
        for entry in shard.samples:
            if entry.key in seen:
                damages.append(f"{shard.name}: sample {entry.key} lies in {seen[entry.key]} too")
            seen[entry.key] = shard.name
            if split_of.setdefault(entry.group, split) != split:
                damages.append(f"{shard.name}: group {entry.group} lies in {split_of[entry.group]} and in {split}")
    funnel = manifest.funnel
    lost = sum(funnel.dropped.values())
    if funnel.kept != len(seen) or funnel.attempted != funnel.kept + lost:
        damages.append(f"manifest.json: {funnel.attempted} attempted, {lost} dropped and {len(seen)} samples do not add up")
    return damages


if __name__ == "__main__":
    run(app)
