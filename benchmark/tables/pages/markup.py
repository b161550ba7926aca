"""HTML and SVG from plain values: whatever is not markup yet is escaped where it is put."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

VOID = {"meta", "br", "wbr"}  # elements that have no end tag


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Iterable[str]


def element(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """An element around its content, strings or iterables of them.

    attributes: `class_` is class, `aria_sort` is aria-sort; None and False are left out, True has no value.

    >>> element("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    start = name + "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{start}>" if name in VOID else f"<{start}>{joined(*content)}</{name}>")


def joined(*content: Content) -> Markup:
    """Content one after the other."""
    parts = (part for each in content for part in ([each] if isinstance(each, str) else each))
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def breakable(name: str) -> Markup:
    """A name that may be broken after what separates its parts."""
    parts = re.split(r"(?<=[/@?&])", name)
    return joined(*(joined(part, element("wbr")) for part in parts[:-1]), parts[-1])


def listing(head: Sequence[str], rows: Iterable[Sequence[str]], label: str = "Table") -> Markup:
    """A plain table that scrolls within its own box."""
    top = element("tr", (element("th", name, scope="col") for name in head))
    body = (element("tr", (element("td", cell) for cell in row)) for row in rows)
    return scrolling(element("table", element("thead", top), element("tbody", body), class_="list"), label)


def scrolling(table: Markup, label: str, kind: str = "") -> Markup:
    """A table in a box that scrolls by itself, also by keyboard."""
    return element("div", table, class_=f"scroll {kind}".strip(), tabindex=0, role="region", aria_label=label)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
