"""Look at shards: `python -m data_shards.show shards/x [--sample KEY] [--out look.png] [--sdf chain.sdf]`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.console import run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_shards.manifest import SampleEntry
    from data_shards.reader import ShardSet
    from data_shards.schema import MoleculeSample, PolymerSample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    shards: Annotated[str, typer.Argument(help="folder or fsspec address of a shard set")],
    sample: Annotated[str | None, typer.Option(help="key, or P-SMILES, of one sample to look at")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file for pictures: sizes, chain dimensions, one chain in 3-D")] = None,
    sdf: Annotated[Path | None, typer.Option(help="SDF file for all conformations of one sample, hydrogens included")] = None,
    limit: Annotated[int, typer.Option(help="samples read for the tables of elements and the picture")] = 500,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tables only, no file is written")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out and --sdf where they exist")] = False,
) -> None:
    """Tables and pictures of a shard set. Exit 0 done, 2 bad input."""
    from rich.console import Console

    from data_shards.errors import InputError
    from data_shards.progress import progress
    from data_shards.reader import open_shards

    for path in (out, sdf):
        if path is not None and path.exists() and not overwrite:
            raise InputError(f"{path} exists; pass --overwrite to replace it, or another name")
    if limit < 1:
        raise InputError(f"limit {limit} must be >= 1; change --limit")
    opened = open_shards(shards)
    entries = [entry for split in opened.manifest.splits for entry in opened.samples(split)]
    chosen = _find(entries, sample)
    console = Console()
    console.print(_overview(opened))
    console.print(_sizes(entries, opened.of_molecules))
    some = entries[:: max(1, len(entries) // limit)][:limit]
    with progress().stage("read", len(some), unit="samples") as bar:
        read = []
        for entry in some:
            read.append(opened.read_any(entry))
            bar.advance()
    for table in _chemistry(read, len(entries)):
        console.print(table)
    one = opened.read_any(chosen)
    if sample is not None:
        console.print(_one(one))
    if out is not None and not dry_run:
        _picture(read, one, out)
        print(f"picture: {out}")
    if sdf is not None and not dry_run:
        from data_shards.chem.sdf import molecule_sdf, sample_sdf
        from data_shards.schema import MoleculeSample

        sdf.parent.mkdir(parents=True, exist_ok=True)
        sdf.write_text(molecule_sdf(one) if isinstance(one, MoleculeSample) else sample_sdf(one))
        print(f"structure: {sdf}")


def _find(entries: list[SampleEntry], wanted: str | None) -> SampleEntry:
    """The sample by key, start of key, or P-SMILES; a medium-sized one when none is named."""
    from data_shards.errors import InputError, PolymerError

    if wanted is None:
        by_size = sorted(entries, key=lambda entry: (entry.num_units * (entry.atoms_per_unit - 2), entry.key))
        return by_size[len(by_size) // 2]
    names = {wanted}
    if "*" in wanted:
        from data_shards.chem.psmiles import canonicalise

        try:
            names.add(canonicalise(wanted).psmiles)
        except PolymerError as error:
            raise InputError(f"sample {error}") from None
    found = [entry for entry in entries if entry.psmiles in names or entry.key.startswith(wanted)]
    if not found:
        raise InputError(f"no sample {wanted!r} among {len(entries)}; pass a key or a P-SMILES of this shard set")
    return found[0]


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _overview(opened: ShardSet) -> Any:
    manifest = opened.manifest
    table = _table(f"{opened.path}", "split", "samples" if opened.of_molecules else "polymers", "conformations", "shards", "MB")
    for split, shards in manifest.splits.items():
        samples = opened.samples(split)
        size_mb = sum(shard.bytes for shard in shards) / 1e6
        conformations = sum(entry.num_conformations for entry in samples)
        table.add_row(split, str(len(samples)), str(conformations), str(len(shards)), f"{size_mb:.1f}")
    funnel = manifest.funnel
    lost = ", ".join(f"{count} {reason}" for reason, count in funnel.dropped.items()) or "none"
    table.caption = f"{funnel.attempted} rows read, {funnel.kept} kept; dropped: {lost}. Fingerprint {opened.fingerprint[:16]}"
    return table


def _sizes(entries: list[SampleEntry], molecules: bool) -> Any:
    import numpy as np

    columns = {"atoms": [entry.atoms_per_unit for entry in entries]} if molecules else _chain_sizes(entries)
    columns["conformations"] = [entry.num_conformations for entry in entries]
    table = _table("sizes", "", "min", "median", "mean", "max")
    for name, values in columns.items():
        table.add_row(name, str(min(values)), f"{np.median(values):g}", f"{np.mean(values):.1f}", str(max(values)))
    return table


def _chain_sizes(entries: list[SampleEntry]) -> dict[str, list[int]]:
    return {
        "units per chain": [entry.num_units for entry in entries],
        "heavy atoms per unit (no stars)": [entry.atoms_per_unit - 2 for entry in entries],
        "heavy atoms per chain": [entry.num_units * (entry.atoms_per_unit - 2) + 2 for entry in entries],
    }


@dataclass(frozen=True)
class Look:
    """What is drawn of a sample: (K, n, 3) atoms, (n,) elements, (b, 2) bonds, and which part each atom is of, coloured in order."""

    x_ang: NDArray[np.float64]
    elements: NDArray[np.integer[Any]]
    bonds: NDArray[np.integer[Any]]
    part: NDArray[np.integer[Any]]
    title: str


def look_of(sample: PolymerSample | MoleculeSample) -> Look:
    """The heavy atoms of a chain, unit by unit, or all atoms of a molecule."""
    import numpy as np

    from data_shards.schema import MoleculeSample, chain_bonds, chain_elements

    if isinstance(sample, MoleculeSample):
        graph = sample.graph
        title = f"{graph.smiles}, {graph.num_atoms} atoms (dots: neither carbon nor hydrogen)"
        return Look(sample.x_ang.astype(np.float64), graph.elements, graph.bonds, np.arange(graph.num_atoms), title)
    topology, number = sample.topology, sample.num_units
    elements = chain_elements(topology, number)
    unit = np.clip((np.arange(len(elements)) - 1) // (topology.num_atoms - 2), 0, number - 1)
    title = f"{topology.psmiles}, {number} units, {len(elements)} heavy atoms (dots: not carbon)\nblue: unit 1, red: unit {number}"
    return Look(sample.heavy_ang.astype(np.float64), elements, chain_bonds(topology, number)[0], unit, title)


def _chemistry(read: list[PolymerSample | MoleculeSample], total: int) -> list[Any]:
    """Elements and, of polymers, classes, over the samples that were read."""
    from data_shards.schema import PolymerSample

    share = "all" if len(read) == total else f"{len(read)} of {total}"
    from data_shards.chem.sdf import element_symbol

    elements: Counter[str] = Counter()
    for sample in read:
        elements.update({element_symbol(int(number)) for number in look_of(sample).elements})
    polymers = [sample for sample in read if isinstance(sample, PolymerSample)]
    kind = "polymers" if polymers else "molecules"
    table = _table(f"elements ({share} {kind})", "element", f"{kind} with it", "%")
    for symbol, count in elements.most_common():
        table.add_row(symbol, str(count), f"{100 * count / len(read):.1f}")
    if not polymers:
        return [table]
    classes = Counter(polymer_class(sample) for sample in polymers)
    kinds = _table(f"classes ({share} polymers)", "class", "polymers", "%")
    for name, count in classes.most_common(25):
        kinds.add_row(name, str(count), f"{100 * count / len(read):.1f}")
    return [table, kinds]


def polymer_class(sample: PolymerSample) -> str:
    """The class the source gave, else the kind of backbone: its elements beside carbon, and whether rings are part of it."""
    import numpy as np

    from data_shards.chem.sdf import element_symbol
    from data_shards.chem.topology import backbone, smallest_ring_size

    if sample.provenance.get("class"):
        return str(sample.provenance["class"])
    topology = sample.topology
    own = backbone(topology).copy()
    own[topology.key_atoms[[0, 3]]] = False
    others = sorted({element_symbol(int(number)) for number in topology.elements[own]} - {"C"})
    rings = "rings in the backbone" if bool(np.any(smallest_ring_size(topology)[own] > 0)) else "open backbone"
    return f"{'C' + ''.join('-' + symbol for symbol in others)}, {rings}"


def _one(sample: PolymerSample | MoleculeSample) -> Any:
    from data_shards.schema import MoleculeSample

    table = _table(sample.key, "", "")
    shape = chain_dimensions(look_of(sample).x_ang)
    molecule = (
        {}
        if not isinstance(sample, MoleculeSample)
        else {
            "SMILES": sample.graph.smiles,
            "as written": str(sample.provenance.get("written", "")),
            "engine": sample.engine,
            "atoms": str(sample.graph.num_atoms),
            "conformations": str(len(sample.x_ang)),
        }
    )
    chain = (
        {}
        if isinstance(sample, MoleculeSample)
        else {
            "P-SMILES": sample.topology.psmiles,
            "as written": str(sample.provenance.get("written", "")),
            "units": str(sample.num_units),
            "tacticity, seed, engine": f"{sample.tacticity}, {sample.seed}, {sample.engine}",
            "heavy atoms, hydrogens": f"{sample.heavy_ang.shape[1]}, {sample.hydrogen_ang.shape[1]}",
            "conformations": str(len(sample.heavy_ang)),
            "end to end, angstrom": " ".join(f"{value:.1f}" for value in shape[1]),
        }
    )
    gyration = {"radius of gyration, angstrom": " ".join(f"{value:.1f}" for value in shape[0])}
    for name, value in {**molecule, **chain, **gyration}.items():
        table.add_row(name, value)
    return table


def chain_dimensions(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K,) radius of gyration of atoms (K, n, 3), unweighted, and (K,) distance between the first and the last, the caps of a chain."""
    import numpy as np

    centred = x - x.mean(axis=1, keepdims=True)
    gyration = np.sqrt((centred**2).sum(axis=2).mean(axis=1))
    return gyration, np.linalg.norm(x[:, -1] - x[:, 0], axis=1)


def _picture(read: list[PolymerSample | MoleculeSample], one: PolymerSample | MoleculeSample, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    from data_shards.schema import MoleculeSample

    looks = [look_of(sample) for sample in read]
    dimensions = [chain_dimensions(look.x_ang) for look in looks]
    gyration = np.concatenate([pair[0] for pair in dimensions])
    ends = np.concatenate([pair[1] for pair in dimensions])
    figure = plt.figure(figsize=(13, 8), layout="constrained")
    panels: list[tuple[NDArray[Any], str, str, str]] = [(gyration, "radius of gyration / angstrom", "conformations", "tab:blue")]
    if isinstance(one, MoleculeSample):
        panels.insert(0, (np.array([len(look.elements) for look in looks]), "atoms", "molecules", "tab:gray"))
    else:
        sizes = [sample.topology.num_atoms - 2 for sample in read if not isinstance(sample, MoleculeSample)]
        panels.insert(0, (np.array(sizes), "heavy atoms per unit, stars not counted", "polymers", "tab:gray"))
        panels.append((ends, "end-to-end distance / angstrom", "conformations", "tab:orange"))
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(1, 1.5))
    for row, (values, label, count, colour) in enumerate(panels):
        axis = figure.add_subplot(grid[row, 0])
        counted = np.issubdtype(values.dtype, np.integer)  # one bar per number of atoms
        bins = np.arange(values.min(), values.max() + 2) - 0.5 if counted else min(40, max(5, len(values) // 3))
        axis.hist(values, bins=bins, color=colour, edgecolor="white")
        axis.axvline(float(np.median(values)), color="black", linewidth=1, label=f"median {np.median(values):.1f}, n = {len(values)}")
        axis.set_xlabel(label)
        axis.set_ylabel(count)
        axis.legend(frameon=False)
    _draw(figure.add_subplot(grid[:, 1]), look_of(one))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _draw(axis: Any, look: Look) -> None:
    """First conformation, seen across its two longest directions, coloured by part; near bonds cover far ones and are darker."""
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.collections import LineCollection

    x = look.x_ang[0] - look.x_ang[0].mean(axis=0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    axes[2] *= np.sign(np.linalg.det(axes))  # a turn, not a mirror image: handedness is part of the chain
    x = x @ axes.T  # along the page, up the page, towards the reader
    bonds = look.bonds
    hetero = np.flatnonzero(~np.isin(look.elements, (1, 6)))
    ends = np.concatenate([x[bonds], np.stack([x[hetero], x[hetero] + 1e-3], axis=1)])  # (bonds + hetero atoms, 2, 3)
    depth = ends[:, :, 2].mean(axis=1)
    nearness = (depth - depth.min()) / max(np.ptp(depth), 1e-6)
    owner = np.concatenate([bonds[:, 1], hetero])
    colour = plt.get_cmap("turbo")(0.05 + 0.9 * look.part[owner] / max(int(look.part.max()), 1))
    colour[:, :3] = 1 - (1 - colour[:, :3]) * (0.35 + 0.65 * nearness[:, None])
    scale = min(1.0, 60 / np.ptp(x[:, 0]).clip(1))
    width = np.where(np.arange(len(ends)) < len(bonds), 5.0, 13.0) * scale * (0.7 + 0.5 * nearness)
    order = np.argsort(depth, kind="stable").repeat(2)  # every stroke twice: a dark rim, then the colour
    rim = np.tile([True, False], len(ends))
    shades = np.where(rim[:, None], (0.15, 0.15, 0.15, 1.0), colour[order])
    lines = LineCollection(list(ends[order][:, :, :2]), colors=shades, linewidths=width[order] + np.where(rim, 1.6, 0.0) * scale)
    lines.set_capstyle("round")
    axis.add_collection(lines)
    axis.set_aspect("equal")
    axis.margins(0.05)
    axis.autoscale_view()
    left, low = axis.get_xlim()[0], axis.get_ylim()[0]
    bar = 10 if np.ptp(x[:, 0]) > 30 else 2
    axis.plot([left, left + bar], [low, low], color="black", linewidth=2)
    axis.annotate(f"{bar} angstrom", (left + bar / 2, low), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
    axis.set_axis_off()
    gyration, distance = (values[0] for values in chain_dimensions(look.x_ang))
    axis.set_title(f"{look.title}; Rg {gyration:.1f}, from first to last {distance:.1f} angstrom", fontsize=10)


if __name__ == "__main__":
    run(app)
