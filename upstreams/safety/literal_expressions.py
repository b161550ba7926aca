"""Values written as Python expressions in configurations, such as fairseq's `[(512,10,5)] + [(512,3,2)] * 4`."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import shown

LONGEST, LARGEST = 10_000, 10_000  # characters, and values in the result


def literal(text: str) -> Any:
    """Value of an expression of numbers, strings, lists, tuples, + and *; nothing else is understood, or called.

    Raises UpstreamError for other expressions, and where the value is larger than configurations are.
    """
    try:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError("no short text")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise UpstreamError(
            f"{shown(text, 60)} is no list of plain values; write one, such as [(512, 10, 5)]"
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
    """Sum or product; the size of a repeated list is known before it is made."""
    if isinstance(operator, ast.Add):
        return bounded(left + right)
    for many, times in ((left, right), (right, left)):
        if not isinstance(many, (int, float)) and size(many) * max(1, abs(times)) > LARGEST:
            raise ValueError("too large")
    return bounded(left * right)


def bounded(found: Any) -> Any:
    if size(found) > LARGEST or (isinstance(found, int) and abs(found) >= 1 << 63):
        raise ValueError("too large")
    return found


def size(found: Any) -> int:
    """Values in it, those of shared parts counted each time."""
    if isinstance(found, (list, tuple)):
        return 1 + sum(size(item) for item in found)
    return 1 + len(found) if isinstance(found, str) else 1
