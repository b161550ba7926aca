"""Tables, values and commands in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; what would break one out of its cell is escaped."""
    rule = "|---" * len(columns) + "|"
    return [f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def plain(value: Any) -> str:
    """A JSON value as people write it: numbers short, lists with commas, "none" for None."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def code(text: str) -> list[str]:
    """The lines of a block of code, and an empty one."""
    return ["```", text, "```", ""]
