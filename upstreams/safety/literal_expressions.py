"""Evaluate literal expressions in configurations, such as fairseq's `[(512,10,5)] + [(512,3,2)] * 4`."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import short_repr

LONGEST, LARGEST = 10_000, 10_000  # characters, and values in the result


def literal_value(text: str) -> Any:
    """Return the value of an expression of numbers, strings, lists, tuples, + and *, without calling anything.

    Raises UpstreamError for any other expression, and for a value of more than 10000 items or beyond 64 bits.
    """
    try:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError("no short text")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise UpstreamError(
            f"{short_repr(text, 60)} is no list of plain values; write one, such as [(512, 10, 5)]"
        ) from error


def value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str, bool, type(None)):
        return bounded(node.value)
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [value(item) for item in node.elts]
        return bounded(items if isinstance(node, ast.List) else tuple(items))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return bounded(-value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        return combined(node.op, value(node.left), value(node.right))
    raise ValueError("not a literal")


def combined(operator: ast.operator, left: Any, right: Any) -> Any:
    """Return a sum or product; the size of a repeated list is checked before the list is created."""
    if isinstance(operator, ast.Add):
        return bounded(left + right)
    for many, times in ((left, right), (right, left)):
        if not isinstance(many, (int, float)) and value_count(many) * max(1, abs(times)) > LARGEST:
            raise ValueError("too large")
    return bounded(left * right)


def bounded(item: Any) -> Any:
    if value_count(item) > LARGEST or (isinstance(item, int) and abs(item) >= 1 << 63):
        raise ValueError("too large")
    return item


def value_count(item: Any) -> int:
    """Return the number of nested values and characters, where those of shared parts count each time."""
    if isinstance(item, (list, tuple)):
        return 1 + sum(value_count(part) for part in item)
    return 1 + len(item) if isinstance(item, str) else 1
