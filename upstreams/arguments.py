"""Arguments of a function as a reference writes them: `mine.py:build?ckpt=a.pt&layers=12`."""

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
ELSEWHERE = {"random": "it is written NAME@random", "checkpoint": "it is written NAME@FILE"}
KINDS = {"int": ((int,), "a whole number"), "float": ((int, float), "a number"), "bool": ((bool,), "true or false")}


def arguments_of(
    query: str, function: Callable[..., Any], name: str, apart: Collection[str] = ("random",)
) -> dict[str, Any]:
    """Arguments of a function as written behind its `?`; raises UpstreamError for those that it does not take.

    A value that reads as a number or as true, false or null is one, unless the parameter is annotated as a string; one
    annotated as a number or a bool takes nothing else. apart: parameters that are written elsewhere in a reference.
    """
    pairs = [split_argument(pair, name) for pair in query.split("&") if pair]
    given = dict(pairs)
    if len(given) < len(pairs):
        raise UpstreamError(f"an argument of '{name}' is given twice in '{query}'; leave one of them out")
    every = inspect.signature(function).parameters
    parameters = {key: each for key, each in every.items() if key not in apart}
    open_ended = inspect.Parameter.VAR_KEYWORD in [parameter.kind for parameter in parameters.values()]
    for key in given:
        if key not in parameters and (key in every or not open_ended):
            raise UpstreamError(f"no argument '{key}' of '{name}'; {advice(key, list(parameters), key in every)}")
    needed = [key for key, each in parameters.items() if each.default is each.empty and each.kind in NAMED]
    absent = [key for key in needed if key not in given]
    if absent:
        raise UpstreamError(f"no value for the argument '{absent[0]}' of '{name}'; write {name}?{absent[0]}=VALUE")
    return {key: checked(key, text, parameters.get(key), name) for key, text in given.items()}


def advice(key: str, known: list[str], elsewhere: bool) -> str:
    if elsewhere:
        return ELSEWHERE[key]
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"it takes: {', '.join(known) or 'none'}"


def split_argument(pair: str, name: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UpstreamError(f"'{pair}' in the arguments of '{name}' is not of the form name=value, such as layers=12")
    return key, unquote(value)


def checked(key: str, text: str, parameter: inspect.Parameter | None, name: str) -> Any:
    """The value that a text stands for; raises UpstreamError where its parameter is annotated as something else."""
    annotation = parameter.annotation if parameter else None
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    types, told = KINDS.get(kind, ((), ""))
    value = value_of(text, annotation)
    left_out = parameter is not None and value is None and parameter.default is None
    if types and type(value) not in types and not left_out:
        raise UpstreamError(f"the argument '{key}' of '{name}' is '{printable(text)}'; give {told}")
    return value


def value_of(text: str, annotation: Any) -> Any:
    if annotation in (str, "str", str | None, "str | None"):
        return text
    if annotation in (Path, "Path"):
        return Path(text)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) or value is None else text
