"""Axes, lines, steps, boxes and maps as inline SVG. Colours are classes of the page's style sheet, so that light, dark and print differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from foundation.report.markup import Markup, tag

WIDTH, HEIGHT = 380.0, 250.0  # of a figure in its own units: about the width of a phone, so that text of 12 units stays legible
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 10.0, 42.0
Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1.0, 2.0, 5.0) if raw <= factor * power * 1.0001), 10.0 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten and, where these are few, their multiples by 2 and 5."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1.0,) if len(powers) > 4 else (1.0, 2.0, 5.0)
    return [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]


def short(value: float, digits: int = 4) -> str:
    """A number as a tick label or a cell: so many digits, thousands grouped."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def bounds(values: Sequence[float], *, pad: float = 0.05, zero: bool = False) -> Point:
    """Range of an axis that holds the values, with room; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return (low if zero and low == 0 else low - room, high + room)


@dataclass
class Plot:
    """One pair of axes.

    Attributes:
        title: what a screen reader is told first.
        about: the sentence after it: what there is to see.
        x_label, y_label: quantities with units.
        x, y: ranges.
        log_x, log_y: logarithmic; the range must be positive.
        x_ticks, y_ticks: places with their labels, where the usual numbers do not fit.
        left: margin for the labels of y.
    """

    title: str
    about: str
    x_label: str
    y_label: str
    x: Point
    y: Point
    log_x: bool = False
    log_y: bool = False
    height: float = HEIGHT
    left: float = LEFT
    x_ticks: list[tuple[float, str]] | None = None
    y_ticks: list[tuple[float, str]] | None = None
    marks: list[Markup] = field(default_factory=list)

    def at_x(self, value: float) -> float:
        """Place of a value on the page, rounded so that files stay small."""
        return round(self.left + _share(value, self.x, self.log_x) * (WIDTH - self.left - RIGHT), 1)

    def at_y(self, value: float) -> float:
        """As at_x; up is more."""
        return round(TOP + (1 - _share(value, self.y, self.log_y)) * (self.height - TOP - BOTTOM), 1)

    def line(self, xs: Sequence[float], ys: Sequence[float], class_: str) -> None:
        """A line through points."""
        if xs:
            points = " ".join(f"{self.at_x(x):g},{self.at_y(y):g}" for x, y in zip(xs, ys, strict=True))
            self.marks.append(tag("polyline", points=points, class_=f"line {class_}"))

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], class_: str) -> None:
        """The area between two lines."""
        if xs:
            there = [f"{self.at_x(x):g},{self.at_y(y):g}" for x, y in zip(xs, high, strict=True)]
            back = [f"{self.at_x(x):g},{self.at_y(y):g}" for x, y in zip(xs, low, strict=True)]
            self.marks.append(tag("polygon", points=" ".join(there + back[::-1]), class_=f"band {class_}"))

    def stairs(self, edges: Sequence[float], heights: Sequence[float], class_: str) -> None:
        """A histogram as steps."""
        xs = [x for pair in zip(edges[:-1], edges[1:], strict=True) for x in pair]
        self.line(xs, [y for height in heights for y in (height, height)], class_)

    def points(self, xs: Sequence[float], ys: Sequence[float], class_: str, radius: float = 3.5) -> None:
        """Dots."""
        for x, y in zip(xs, ys, strict=True):
            self.marks.append(tag("circle", cx=self.at_x(x), cy=self.at_y(y), r=radius, class_=f"dot {class_}"))

    def segment(self, start: Point, end: Point, class_: str) -> None:
        """One straight line."""
        (x1, y1), (x2, y2) = start, end
        self.marks.append(tag("line", x1=self.at_x(x1), y1=self.at_y(y1), x2=self.at_x(x2), y2=self.at_y(y2), class_=class_))

    def box(self, low: Point, high: Point, class_: str) -> None:
        """A rectangle between two corners."""
        x1, x2, y1, y2 = self.at_x(low[0]), self.at_x(high[0]), self.at_y(high[1]), self.at_y(low[1])
        self.marks.append(tag("rect", x=x1, y=y1, width=round(x2 - x1, 1), height=round(y2 - y1, 1), class_=class_))

    def svg(self) -> Markup:
        """The figure."""
        right, bottom = WIDTH - RIGHT, self.height - BOTTOM
        xs = self.x_ticks or [(value, short(value)) for value in (log_ticks if self.log_x else ticks)(*self.x)]
        ys = self.y_ticks or [(value, short(value)) for value in (log_ticks if self.log_y else ticks)(*self.y)]
        parts: list[Markup] = []
        for value, label in ys:
            y = self.at_y(value)
            parts.append(tag("line", x1=self.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", label, x=self.left - 6, y=y + 4, class_="tick end"))
        for place, (value, label) in enumerate(xs):
            x = self.at_x(value)
            last = place == len(xs) - 1 and x > right - 12
            parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
            parts.append(tag("text", label, x=right if last else x, y=bottom + 17, class_="tick end" if last else "tick middle"))
        parts.append(tag("line", x1=self.left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        parts.append(tag("text", self.x_label, x=(self.left + right) / 2, y=self.height - 6, class_="label middle"))
        if self.y_label:
            middle = (TOP + bottom) / 2
            turned = f"rotate(-90 13 {middle:g})"
            parts.append(tag("text", self.y_label, x=13, y=round(middle, 1), transform=turned, class_="label middle"))
        return picture(self.title, self.about, WIDTH, self.height, [*parts, *self.marks])


def picture(title: str, about: str, width: float, height: float, parts: Sequence[Markup], class_: str = "plot") -> Markup:
    """An SVG with its text for those who cannot see it."""
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=f"{title}. {about}", class_=class_)


def _share(value: float, limits: Point, log: bool) -> float:
    """0 at the low end, 1 at the high end, cut off beyond both."""
    low, high = limits
    if log:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def square_map(density: Sequence[Sequence[float]], title: str, about: str) -> Markup:
    """A map over two angles, -180 to 180 degrees each: darker where the density is higher.

    Args:
        density: (bins, bins), rows along y upwards, columns along x, in multiples of the uniform density.
        title, about: for a screen reader.
    """
    size, left, bottom = 300.0, 46.0, 40.0
    cell = size / len(density)
    paths: dict[int, list[str]] = {}
    for row, values in enumerate(density):
        for column, value in enumerate(values):
            level = map_level(value)
            if level:
                paths.setdefault(level, []).append(f"M{column} {len(density) - 1 - row}h1v1h-1z")
    cells = [tag("path", d="".join(paths[level]), class_=f"level{level}") for level in sorted(paths)]
    parts = [
        tag("rect", x=left, y=8, width=size, height=size, class_="frame"),
        tag("g", *cells, transform=f"translate({left:g} 8) scale({cell:.5g})"),
    ]
    for angle in (-180, -120, -60, 0, 60, 120, 180):
        along = (angle + 180) / 360 * size
        text = str(angle).replace("-", "−")
        if abs(angle) < 180:
            parts.append(tag("line", x1=left + along, x2=left + along, y1=8, y2=8 + size, class_="grid over"))
            parts.append(tag("line", x1=left, x2=left + size, y1=8 + size - along, y2=8 + size - along, class_="grid over"))
        parts.append(tag("text", text, x=left + along, y=8 + size + 16, class_="tick middle"))
        parts.append(tag("text", text, x=left - 5, y=8 + size - along + 4, class_="tick end"))
    middle = 8 + size / 2
    parts.append(tag("text", "next link dihedral, degree", x=left + size / 2, y=8 + size + 34, class_="label middle"))
    parts.append(tag("text", "link dihedral, degree", x=11, y=middle, transform=f"rotate(-90 11 {middle:g})", class_="label middle"))
    return picture(title, about, left + size + 14, size + 8 + bottom, parts, "plot map")


LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # lower bounds, times the uniform density


def map_level(value: float) -> int:
    """0 below the first bound, then one more for each bound that is reached."""
    return sum(value >= bound for bound in LEVELS)


__all__ = ["LEVELS", "Plot", "bounds", "picture", "short", "square_map", "ticks"]
