"""The figures of a report: each takes what was read and gives figures with captions, or nothing where the data are not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, quantiles
from typing import Any

from foundation.evaluation.figures import COLOURS
from foundation.report.markup import Markup, join, tag
from foundation.report.sources import listing, mapping, number, numbers
from foundation.report.svg import LEVELS, Plot, bounds, short, square_map

MOST_POINTS = 300  # of a curve; longer ones are means of neighbours with the range behind them
MOST_DOTS = 200  # of a method in the figure of sizes, and of a parity plot
MAX_BINS = 180
MODEL, REFERENCE = "model", "reference"
LINKS_FIRST = (REFERENCE, MODEL, "grow engine", "train histogram", "random links")


def method_class(method: str) -> str:
    """Class of the style sheet that colours a method."""
    names = list(COLOURS)
    return f"method{names.index(method)}" if method in names else "other"


def figure(picture: Markup, caption: str, legend: Sequence[tuple[str, str]] = ()) -> Markup:
    """A picture with its caption and a legend of (class, name) swatches."""
    keys = [tag("li", tag("span", class_=f"swatch {class_}", aria_hidden="true"), name) for class_, name in legend]
    return tag("figure", picture, tag("ul", *keys, class_="legend") if keys else None, tag("figcaption", caption))


# ------------------------------------------------------------------------------------------------------------------------- training


def series(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, where it is a number."""
    pairs = [
        (step, value) for row in rows if (step := number(row.get("step"))) is not None and (value := number(row.get(name))) is not None
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def window_of(count: int) -> int:
    """Steps that a smoothed curve of so many is a mean over."""
    return max(count // 25, 5) if count >= 20 else 1


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over a window centred at each value; shorter at the ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half, size = window // 2, len(values)
    return [(sums[min(k + half + 1, size)] - sums[max(k - half, 0)]) / (min(k + half + 1, size) - max(k - half, 0)) for k in range(size)]


def binned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Place, mean, lowest and highest of up to MOST_POINTS runs of neighbours."""
    width = max(1, math.ceil(len(xs) / MOST_POINTS))
    parts = [slice(k, k + width) for k in range(0, len(xs), width)]
    return [fmean(xs[p]) for p in parts], [fmean(ys[p]) for p in parts], [min(ys[p]) for p in parts], [max(ys[p]) for p in parts]


def losses(rows: Sequence[dict[str, Any]]) -> list[Markup]:
    """Curves of the loss and its parts, training and validation."""
    titles = {"loss": "Loss", "local": "Units: loss of the local head", "orientation": "Links: loss of the orientation head"}
    return [made for name, title in titles.items() if (made := curve(rows, name, title)) is not None]


def curve(rows: Sequence[dict[str, Any]], name: str, title: str) -> Markup | None:
    """One metric of training, smoothed, with validation beside it."""
    xs, ys = series(rows, f"train/{name}")
    val_x, val_y = series(rows, f"val/{name}")
    if not xs:
        return None
    window = window_of(len(xs))
    x, mean, low, high = binned(xs, ys)
    smooth_x, smooth_y, _, _ = binned(xs, smooth(ys, window))
    shown = sorted(mean)
    middle = shown[: max(2, math.ceil(len(shown) * 0.99))] + val_y  # one wild step at the start must not flatten the rest
    span = f" (mean of {window} steps)" if window > 1 else ""
    about = f"Training {short(ys[0])} at step {short(xs[0])}, {short(smooth_y[-1])} at the end{span}."
    about += f" Validation {short(val_y[-1])} at step {short(val_x[-1])}." if val_y else " No validation."
    plot = Plot(title, about, "step", "loss", (min(xs) - 1, max(max(xs), min(xs) + 1)), bounds(middle))
    if len(xs) > MOST_POINTS:
        plot.band(x, low, high, "train")
    else:
        plot.line(x, mean, "train faint")
    plot.line(smooth_x, smooth_y, "train")
    plot.line(val_x, val_y, "val")
    plot.points(val_x[-MOST_DOTS:], val_y[-MOST_DOTS:], "val")
    legend = [("train", f"training, mean of {window} steps" if window > 1 else "training")]
    return figure(plot.svg(), f"{title}. {about}", [*legend, ("val", "validation")] if val_y else legend)


def throughput(rows: Sequence[dict[str, Any]]) -> list[Markup]:
    """Speed of training in chains and atoms."""
    found = []
    for name, label in (("chains_per_sec", "chains / s"), ("atoms_per_sec", "atoms / s")):
        xs, ys = series(rows, f"train/{name}")
        if xs:
            x, mean, low, high = binned(xs, ys)
            about = f"Median {short(median(ys))} {label}, between {short(min(ys))} and {short(max(ys))}."
            plot = Plot(
                "Throughput", about, "step", label, (min(xs) - 1, max(max(xs), min(xs) + 1)), bounds(ys, zero=True), height=200, left=60
            )
            plot.band(x, low, high, "train")
            plot.line(x, mean, "train")
            found.append(figure(plot.svg(), f"Throughput of all ranks. {about}"))
    return found


# --------------------------------------------------------------------------------------------------------------------------- shapes


def torsion_maps(results: dict[str, Any]) -> list[Markup]:
    """Maps of consecutive link dihedrals, reference and model first."""
    given = mapping(mapping(results.get("distributions")).get("torsion_maps"))
    maps = mapping(given.get("maps"))
    found = []
    for method in sorted(maps, key=lambda name: (LINKS_FIRST.index(name) if name in LINKS_FIRST else 9, name)):
        counts = [[max(number(value) or 0.0, 0.0) for value in listing(row)] for row in listing(maps[method])]
        bins, total = len(counts), sum(map(sum, counts))
        if not 0 < bins <= MAX_BINS or any(len(row) != bins for row in counts) or not 0 < total < math.inf:
            continue
        density = [[value / total * bins * bins for value in row] for row in counts]
        place = max((value, (r, c)) for r, row in enumerate(density) for c, value in enumerate(row))[1]
        deg = [-180 + (k + 0.5) * 360 / bins for k in place]
        about = f"{total:.0f} pairs of neighbouring links; the fullest bin lies at {deg[0]:.0f}, {deg[1]:.0f} degrees."
        found.append(figure(square_map(density, f"Torsion map, {method}", about), f"{method}: {about}"))
    return found


def map_legend() -> Markup:
    """What the shades of a torsion map mean."""
    names = [f"{low:g} to {high:g}" for low, high in zip(LEVELS[:-1], LEVELS[1:], strict=True)] + [f"over {LEVELS[-1]:g}"]
    keys = [tag("li", tag("span", class_=f"swatch square level{k}", aria_hidden="true"), name) for k, name in enumerate(names, start=1)]
    return tag("ul", tag("li", "times the uniform density:"), *keys, class_="legend")


def links(results: dict[str, Any]) -> Markup | None:
    """Histograms of the link dihedral, one line a method."""
    distributions = mapping(results.get("distributions"))
    counts = {method: numbers(values) for method, values in mapping(distributions.get("link_counts")).items()}
    drawn = {m: counts[m] for m in LINKS_FIRST if m in counts and 0 < len(counts[m]) <= MAX_BINS and 0 < sum(counts[m]) < math.inf}
    if not drawn:
        return None
    density = {m: [max(v, 0.0) / sum(values) * len(values) / 360 for v in values] for m, values in drawn.items()}
    top = max(max(values) for values in density.values())
    about = f"Link dihedrals of {', '.join(f'{m} ({sum(v):.0f})' for m, v in drawn.items())}."
    places = [(float(angle), str(angle).replace("-", "−")) for angle in range(-180, 181, 60)]
    label = "density, 1 / degree"
    plot = Plot("Link dihedrals", about, "link dihedral, degree", label, (-180, 180), (0, top * 1.05 or 1.0), x_ticks=places, left=60)
    for method, values in reversed(density.items()):
        edges = [-180 + 360 * k / len(values) for k in range(len(values) + 1)]
        plot.stairs(edges, values, method_class(method) + ("" if method in (MODEL, REFERENCE) else " thin"))
    return figure(plot.svg(), about, [(method_class(m), m) for m in density])


def sizes(results: dict[str, Any]) -> Markup | None:
    """Radius of gyration of every conformation by method; relative to the references where only that is stored."""
    distributions = mapping(results.get("distributions"))
    given, label, log = mapping(distributions.get("radius_of_gyration_ang")), "radius of gyration, Å", False
    if not given:
        given, label, log = mapping(distributions.get("size_ratio")), "radius of gyration / mean of the references", True
    values = {str(method): [v for v in numbers(found) if v > 1e-9] for method, found in given.items()}
    values = {method: found for method, found in values.items() if found}
    if not values:
        return None
    everything = [v for found in values.values() for v in found]
    low, high = min(everything), max(everything)
    limits = (low / 1.1, high * 1.1) if log else bounds(everything)
    height = 60.0 + 34 * len(values)
    names = [(float(-k), shorten(method, 16)) for k, method in enumerate(values)]
    about = "Medians: " + "; ".join(f"{m} {short(median(v))} (n = {len(v)})" for m, v in values.items()) + "."
    plot = Plot("Size of the chains", about, label, "", limits, (-len(values) + 0.4, 0.6), log, height=height, left=108, y_ticks=names)
    if log and low < 1 < high:
        plot.segment((1, 0.6), (1, -len(values) + 0.4), "axis dashed")
    for k, (method, found) in enumerate(values.items()):
        stride = max(1, len(found) // MOST_DOTS)
        spread = [-k + 0.22 * math.sin(2.4 * n) for n in range(len(found[::stride]))]
        plot.points(found[::stride], spread, method_class(method) + " small", 2)
        if len(found) > 1:
            q1, q2, q3 = quantiles(found, n=4, method="inclusive")
            plot.box((q1, -k - 0.28), (q3, -k + 0.28), f"box {method_class(method)}")
            plot.segment((q2, -k - 0.28), (q2, -k + 0.28), "median")
    return figure(plot.svg(), f"Box: quartiles and median; a dot is a conformation. {about}")


def shorten(text: str, most: int) -> str:
    """The start of a text that is too long for its place."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


# ------------------------------------------------------------------------------------------------------------ funnel and properties


def funnel(manifest: dict[str, Any], stages: dict[str, Any]) -> Markup | None:
    """Rows left after each stage as bars; from the manifest alone where funnel.json is not there."""
    facts = mapping(manifest.get("funnel"))
    left = [(str(s.get("stage")), number(s.get("left"))) for s in map(mapping, listing(stages.get("stages")))]
    bars = [(name, value) for name, value in left if value is not None and value >= 0]
    if not bars:
        pairs = (("rows read", number(facts.get("attempted"))), ("kept", number(facts.get("kept"))))
        bars = [(name, value) for name, value in pairs if value is not None and value >= 0]
    if not bars or not max(value for _, value in bars):
        return None
    most = max(value for _, value in bars)
    names = [(float(-k), shorten(name, 18)) for k, (name, _) in enumerate(bars)]
    about = "; ".join(f"{name} {value:,.0f}" for name, value in bars) + "."
    low = -len(bars) + 0.4
    plot = Plot("Funnel", about, "rows left", "", (0, most * 1.02), (low, 0.6), height=60.0 + 30 * len(bars), left=122, y_ticks=names)
    for k, (_, value) in enumerate(bars):
        plot.box((0, -k - 0.32), (value, -k + 0.32), "bar")
        inside = value > 0.25 * most
        x = plot.at_x(value) + (-5 if inside else 5)
        plot.marks.append(tag("text", f"{value:,.0f}", x=x, y=plot.at_y(-k) + 4, class_=f"tick {'end in' if inside else ''}"))
    return figure(plot.svg(), f"Rows left after each stage: {about}")


def parity(property: dict[str, Any]) -> Markup | None:
    """Measured against predicted values of a property, with intervals where they are."""
    rows = [mapping(row) for row in listing(property.get("predictions"))]
    pairs = [
        (x, y, row) for row in rows if (x := number(row.get("measured"))) is not None and (y := number(row.get("predicted"))) is not None
    ]
    if not pairs:
        return None
    what, unit = str(property.get("task", "property")), str(property.get("unit", ""))
    label = f"{shorten(what, 20)}, {shorten(unit, 12)}" if unit else shorten(what, 20)
    limits = bounds([value for x, y, _ in pairs for value in (x, y)])
    error = fmean(abs(x - y) for x, y, _ in pairs)
    about = f"{len(pairs)} polymers held out of training; mean absolute error {short(error)}{f' {unit}' if unit else ''}."
    plot = Plot(f"Parity of {what}", about, f"measured {label}", f"predicted {label}", limits, limits, height=340, left=58)
    plot.segment((limits[0], limits[0]), (limits[1], limits[1]), "axis dashed")
    for x, y, row in pairs[:: max(1, len(pairs) // MOST_DOTS)]:
        low, high = number(row.get("lower")), number(row.get("upper"))
        if low is not None and high is not None:
            plot.segment((x, low), (x, high), "whisker")
        plot.points([x], [y], "train small", 3)
    return figure(plot.svg(), f"On the dashed line prediction and measurement agree. {about}")


def grid(figures: Sequence[Markup | None]) -> Markup | None:
    """Figures side by side where there is room."""
    found = [made for made in figures if made is not None]
    return tag("div", join(*found), class_="figures") if found else None
