"""HTML and SVG as text in which everything is escaped that was not made here."""

from __future__ import annotations

from html import escape
from typing import TypeAlias

VOID = frozenset({"meta", "link", "br", "hr", "input", "col", "img"})


class Markup(str):
    """Text that is markup already. Only this module and files of this package make it."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | None"


def tag(name: str, /, *children: Child, **attributes: Child) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: markup as it is, all else escaped; None is left out.
        attributes: values are escaped; None is left out; ``class_`` stands for class, ``_`` in a name for ``-``.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    if name in VOID:
        return Markup(start)
    return Markup(f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None))


def table(caption: Child, header: list[Child], rows: list[list[Child]], *, numbers_from: int = 1, class_: str | None = None) -> Markup:
    """A table whose first column names the rows, in a frame that scrolls where the screen is narrower.

    Args:
        caption: what the table shows.
        header: of the columns.
        rows: cells of each row.
        numbers_from: columns from here on are set to the right.
        class_: of the table.
    """

    def kind(column: int) -> str | None:
        return "number" if column >= numbers_from else None

    head = tag("tr", *(tag("th", cell, scope="col", class_=kind(k)) for k, cell in enumerate(header)))
    body = [
        tag("tr", *(tag("th", cell, scope="row") if k == 0 else tag("td", cell, class_=kind(k)) for k, cell in enumerate(row)))
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


__all__ = ["Child", "Markup", "join", "table", "tag"]
