"""Format tables, values and commands in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; line breaks and "|" in cells are escaped."""
    rule = "|---" * len(columns) + "|"
    return [f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def value_text(value: Any) -> str:
    """Return a JSON value as readable text: short numbers, lists separated by commas, "none" for None."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def code_block(text: str) -> list[str]:
    """Return the lines of a fenced code block, followed by an empty line."""
    return ["```", text, "```", ""]
