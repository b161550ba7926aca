"""Parsing of the arguments in a reference such as `mine.py:build?ckpt=a.pt&layers=12`."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import printable

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
WRITTEN_ELSEWHERE = {"random": "it is written NAME@random", "checkpoint": "it is written NAME@FILE"}
KINDS = {"int": ((int,), "a whole number"), "float": ((int, float), "a number"), "bool": ((bool,), "true or false")}


def parse_arguments(
    query: str, function: Callable[..., Any], name: str, reserved: Collection[str] = ("random",)
) -> dict[str, Any]:
    """Parse the arguments of a function that follow the `?` in a reference.

    A value that is a number, true, false or null in JSON is converted, unless its parameter is annotated as a string.
    A parameter that is annotated as a number or a bool takes no other values.
    reserved: parameters that are written elsewhere in a reference.
    Raises UpstreamError for arguments that the function does not take, that are missing, or that have a wrong type.
    """
    pairs = [split_argument(pair, name) for pair in query.split("&") if pair]
    texts = dict(pairs)
    if len(texts) < len(pairs):
        raise UpstreamError(f"an argument of '{name}' is given twice in '{query}'; leave one of them out")
    signature = inspect.signature(function).parameters
    parameters = {key: parameter for key, parameter in signature.items() if key not in reserved}
    open_ended = inspect.Parameter.VAR_KEYWORD in [parameter.kind for parameter in parameters.values()]
    for key in texts:
        if key not in parameters and (key in signature or not open_ended):
            raise UpstreamError(
                f"no argument '{key}' of '{name}'; {suggestion(key, list(parameters), key in signature)}"
            )
    required = [key for key, value in parameters.items() if value.default is value.empty and value.kind in NAMED]
    missing = [key for key in required if key not in texts]
    if missing:
        raise UpstreamError(f"no value for the argument '{missing[0]}' of '{name}'; write {name}?{missing[0]}=VALUE")
    return {key: parse_value(key, text, parameters.get(key), name) for key, text in texts.items()}


def suggestion(key: str, known: list[str], elsewhere: bool) -> str:
    if elsewhere:
        return WRITTEN_ELSEWHERE[key]
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"it takes: {', '.join(known) or 'none'}"


def split_argument(pair: str, name: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UpstreamError(f"'{pair}' in the arguments of '{name}' is not of the form name=value, such as layers=12")
    return key, unquote(value)


def parse_value(key: str, text: str, parameter: inspect.Parameter | None, name: str) -> Any:
    """Return the value that a text stands for; raise UpstreamError if its parameter is annotated with another type."""
    annotation = parameter.annotation if parameter else None
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    types, expected = KINDS.get(kind, ((), ""))
    value = read_value(text, annotation)
    is_default = parameter is not None and value is None and parameter.default is None
    if types and type(value) not in types and not is_default:
        raise UpstreamError(f"the argument '{key}' of '{name}' is '{printable(text)}'; give {expected}")
    return value


def read_value(text: str, annotation: Any) -> Any:
    if annotation in (str, "str", str | None, "str | None"):
        return text
    if annotation in (Path, "Path"):
        return Path(text)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) or value is None else text
