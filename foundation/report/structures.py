"""Generated chains for the page: heavy atoms with their units, small enough to be sent along, and a drawing of each for paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import InputError, PolymerError
from foundation.report.markup import Markup, tag
from foundation.report.svg import picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CHAINS = 12  # of the page
MAX_PER_FILE = 4
MAX_ATOMS = 12_000  # heavy atoms of all chains; a larger one is left out
RAMP = ("#2f6fb0", "#3d9fa8", "#7cb36a", "#edae49", "#e07b4f", "#d1495b")  # from the first unit to the last
SHADES = 24  # steps of the ramp in a drawing


@dataclass(frozen=True)
class Chain:
    """One conformation: (H,) elements and units (None: not known), (B, 2) bonds, (H, 3) positions in angstrom, as ``lying`` turns them."""

    name: str
    psmiles: str
    num_units: int | None
    elements: list[str]
    units: list[int] | None
    bonds: NDArray[np.int64]
    x_ang: NDArray[np.float64]

    def data(self) -> dict[str, Any]:
        """What the viewer reads: positions in units of 0.01 angstrom."""
        return {
            "name": self.name,
            "elements": self.elements,
            "units": self.units,
            "bonds": self.bonds.ravel().tolist(),
            "xyz": (self.x_ang * 100).round().astype(int).ravel().tolist(),
        }


def read_chains(paths: list[Path]) -> tuple[list[Chain], list[str]]:
    """The first conformations of SD files, and a sentence for each file or record that was left out."""
    chains: list[Chain] = []
    left_out = []
    room = MAX_ATOMS
    for path in paths:
        if len(chains) >= MAX_CHAINS:
            left_out.append(f"{path.name}: the page holds {MAX_CHAINS} chains already")
            continue
        try:
            for chain in read_file(path)[: MAX_CHAINS - len(chains)]:
                if len(chain.elements) > room:
                    left_out.append(f"{chain.name}: its {len(chain.elements)} heavy atoms are more than fit the page ({room} left)")
                    break
                room -= len(chain.elements)
                chains.append(chain)
        except (InputError, PolymerError, OSError) as error:
            left_out.append(f"{path.name}: {str(error)[:300]}")
    return chains, left_out


def read_file(path: Path) -> list[Chain]:
    """The first records of an SD file.

    Raises:
        InputError: no SD file.
        PolymerError: a record that cannot be read.
    """
    from data_shards.chem.molblock import read_molblock
    from data_shards.chem.sdf import element_symbol
    from data_shards.sources.sdf import SdfSource, properties_of

    source = SdfSource(str(path), limit=MAX_PER_FILE)
    chains = []
    for row in source.rows():
        text = source.payload(row.number).decode("utf-8", errors="replace").replace("\r\n", "\n")
        if "M  END" not in text:
            raise PolymerError(row.psmiles, "unreadable-record", "the record has no line M  END; it is cut off or no SD record")
        _, properties = properties_of(text)
        graph = read_molblock(text[: text.index("M  END")] + "M  END\n", row.psmiles)
        heavy = (graph.elements != 1).nonzero()[0]
        place = (graph.elements != 1).cumsum() - 1
        kept = (graph.elements[graph.bonds] != 1).all(axis=1)
        x_ang = graph.x_ang[heavy]
        units = units_of(row.psmiles, properties.get("num_units", ""), graph.elements[heavy])
        chain = Chain(
            name=f"{path.stem}, conformation {row.number}",
            psmiles=row.psmiles,
            num_units=None if units is None else units[-1] + 1,
            elements=[element_symbol(int(z)) for z in graph.elements[heavy]],
            units=units,
            bonds=place[graph.bonds[kept]],
            x_ang=lying(x_ang) if len(heavy) else x_ang,
        )
        if len(heavy):
            chains.append(chain)
    return chains


def lying(x_ang: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, 3) centred and turned: longest axis along x, shortest along z, towards the eye. A rotation, so handedness is kept."""
    import numpy as np

    centred = x_ang - x_ang.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # columns, shortest first
    turned = axes[:, ::-1].copy()
    turned[:, 2] *= np.sign(np.linalg.det(turned))
    return np.asarray(centred @ turned)


def units_of(psmiles: str, num_units: str, elements: NDArray[np.uint8]) -> list[int] | None:
    """Unit of every heavy atom of a chain in the order of the schema; None where the atoms are not those of the chain."""
    from data_shards.chem.psmiles import canonicalise
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.schema import atom_owners, chain_elements

    if not num_units.isascii() or not num_units.isdigit() or not 0 < int(num_units[:9]) <= len(elements):
        return None
    try:
        canonical = canonicalise(psmiles)
        topology = build_unit(canonical.psmiles).topology
    except PolymerError:
        return None
    total = int(num_units[:9]) * canonical.multiplicity
    if total * (topology.num_atoms - 2) + 2 != len(elements) or (chain_elements(topology, total) != elements).any():
        return None
    owner, _ = atom_owners(topology.key_atoms, topology.num_atoms, total)
    return [int(unit) for unit in owner]


def ramp(share: float) -> str:
    """Colour at a share of the way along a chain."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    k = min(int(place), len(RAMP) - 2)
    first, second = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in RAMP[k : k + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - k)):02x}" for a, b in zip(first, second, strict=True))


def drawing(chain: Chain) -> Markup:
    """The bonds of a chain seen along its shortest axis, coloured by unit, the nearer ones drawn over the farther."""
    import numpy as np

    seen, size = chain.x_ang, 200.0
    span = max(float(np.ptp(seen[:, :2], axis=0).max()), 1.0)
    centre = (seen.max(axis=0) + seen.min(axis=0)) / 2
    flat = ((seen - centre)[:, :2] * [1, -1] / span * (size - 12) + size / 2).round(1)
    tall = min(float(np.ptp(flat[:, 1])) + 12, size)
    top = (size - tall) / 2
    last = max(len(chain.elements) - 1, 1)
    along = np.array(chain.units if chain.units is not None else range(len(chain.elements)))
    share = along / max(along.max(), 1) if chain.units is not None else along / last
    bonds = chain.bonds[np.argsort(seen[chain.bonds].mean(axis=1)[:, 2])] if len(chain.bonds) else chain.bonds
    depth = np.array_split(bonds, 6)  # far to near
    paths = []
    for layer in depth:
        shade = (share[layer].mean(axis=1) * (SHADES - 1)).round().astype(int) if len(layer) else np.zeros(0, int)
        for value in np.unique(shade):
            steps = [f"M{x1:g} {y1:g}L{x2:g} {y2:g}" for (x1, y1), (x2, y2) in flat[layer[shade == value]]]
            paths.append(tag("path", d="".join(steps), stroke=ramp(value / (SHADES - 1))))
    bar = 10 ** np.floor(np.log10(span / 2))
    bar *= 5 if span / 2 / bar >= 5 else 2 if span / 2 / bar >= 2 else 1
    width = bar / span * (size - 12)
    y = tall + 8
    group = tag("g", *paths, transform=f"translate(0 {-top:.1f})", class_="bonds")
    rule = tag("line", x1=6, x2=round(6 + width, 1), y1=y, y2=y, class_="rule")
    text = tag("text", f"{bar:g} Å", x=round(12 + width, 1), y=y + 4, class_="tick")
    return picture(chain.name, f"{len(chain.elements)} heavy atoms", size, tall + 18, [group, rule, text], "plot chain")
