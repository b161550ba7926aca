"""Build HTML and SVG; text that is not of type Markup is escaped when it is inserted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

VOID = {"meta", "br", "wbr"}  # elements that have no end tag


class Markup(str):
    """Text that is already HTML or SVG, so that it is not escaped again."""

    __slots__ = ()


Content = str | Iterable[str]


def element(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """Return an element with its content: strings, or iterables of strings.

    attributes: `class_` becomes class, `aria_sort` becomes aria-sort; None and False are left out; True has no value.

    >>> element("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    start = name + "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{start}>" if name in VOID else f"<{start}>{joined_markup(*content)}</{name}>")


def joined_markup(*content: Content) -> Markup:
    """Concatenate content, and escape the parts that are not markup."""
    parts = (part for item in content for part in ([item] if isinstance(item, str) else item))
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def breakable(name: str) -> Markup:
    """Return a name that a browser may break after each of "/", "@", "?" and "&"."""
    parts = re.split(r"(?<=[/@?&])", name)
    return joined_markup(*(joined_markup(part, element("wbr")) for part in parts[:-1]), parts[-1])


def listing(head: Sequence[str], rows: Iterable[Sequence[str]], label: str = "Table") -> Markup:
    """Return a plain table in a box that scrolls by itself."""
    top = element("tr", (element("th", name, scope="col") for name in head))
    body = (element("tr", (element("td", cell) for cell in row)) for row in rows)
    return scrolling(element("table", element("thead", top), element("tbody", body), class_="list"), label)


def scrolling(table: Markup, label: str, kind: str = "") -> Markup:
    """Put a table into a box that scrolls by itself, also by keyboard."""
    return element("div", table, class_=f"scroll {kind}".strip(), tabindex=0, role="region", aria_label=label)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
