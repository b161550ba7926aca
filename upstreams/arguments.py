"""Arguments of a function as a reference writes them: `mine.py:build?ckpt=a.pt&layers=12`."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from upstreams.base import UpstreamError

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def arguments_of(query: str, function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Arguments of a function as written behind its `?`; raises UpstreamError for those that it does not take.

    A value that reads as a number or as true, false or null is one, unless the parameter is annotated as a string.
    Whether weights are random is no argument: `@random` says it.
    """
    pairs = [split_argument(pair, name) for pair in query.split("&") if pair]
    given = dict(pairs)
    if len(given) < len(pairs):
        raise UpstreamError(f"an argument of '{name}' is given twice in '{query}'; leave one of them out")
    parameters = {key: each for key, each in inspect.signature(function).parameters.items() if key != "random"}
    kinds = [parameter.kind for parameter in parameters.values()]
    annotations = {key: parameter.annotation for key, parameter in parameters.items()}
    for key in given:
        if key not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it takes: {', '.join(parameters) or 'none'}"
            raise UpstreamError(f"no argument '{key}' of '{name}'{hint}")
    needed = [key for key, each in parameters.items() if each.default is each.empty and each.kind in NAMED]
    absent = [key for key in needed if key not in given]
    if absent:
        raise UpstreamError(f"no value for the argument '{absent[0]}' of '{name}'; write {name}?{absent[0]}=VALUE")
    return {key: value_of(text, annotations.get(key)) for key, text in given.items()}


def split_argument(pair: str, name: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UpstreamError(f"'{pair}' in the arguments of '{name}' is not of the form name=value, such as layers=12")
    return key, unquote(value)


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
