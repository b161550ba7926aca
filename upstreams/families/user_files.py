"""Upstreams defined in the user's Python files: `path/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upstreams import call_builder, upstream_error
from upstreams.arguments import parse_arguments
from upstreams.base import Upstream, UpstreamError
from upstreams.safety.checkpoints import digests, file_digest

PROJECT_PACKAGES = ("upstreams", "downstreams", "benchmark")

_neighbours: dict[Path, dict[str, Any]] = {}  # modules that each user file imported from its folder, by name


def upstream_from_file(reference: str, random: bool) -> Upstream:
    """Return the upstream that a function in a user's file builds: path/file.py:function?name=value&name=value."""
    name, _, query = reference.partition("?")
    path, _, function = name.rpartition(":")
    typed = os.path.expanduser(path)
    if not os.path.isfile(typed):
        raise upstream_error(f"no file '{path}'; a reference to your imported upstream is path/file.py:function")
    file = Path(os.path.realpath(typed))
    with user_file_errors(file), neighbours_importable(file) as neighbours:
        builder = getattr(module_of(file), function, None)
        if not callable(builder):
            raise upstream_error(f"no function '{function}' in '{path}'; a reference is path/file.py:function")
        arguments = parse_arguments(query, builder, name)
        upstream = call_builder(builder, name, random, arguments)
    if isinstance(upstream, Upstream):
        upstream.source = code_digest(file, neighbours, arguments)
        upstream.origin = {**upstream.origin, **digests([file, *files_of(arguments).values()])}
    return upstream


def module_of(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise upstream_error(f"'{file}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # classes look their module up by name
    spec.loader.exec_module(module)
    return module


@contextmanager
def neighbours_importable(file: Path) -> Iterator[dict[str, Any]]:
    """Let a user's file import modules from its folder, as a script does; yields the imported ones by name."""
    for others in _neighbours.values():  # modules with the same name beside another user's file
        for name in others:
            sys.modules.pop(name, None)
    imported = _neighbours.setdefault(file, {})
    sys.modules.update(imported)
    before = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    try:
        yield imported
    finally:
        sys.path.remove(str(file.parent))
        fresh = {name: module for name, module in sys.modules.items() if name not in before}
        imported |= {name: module for name, module in fresh.items() if lies_in(file.parent, name, module)}


def lies_in(folder: Path, name: str, module: Any) -> bool:
    """Whether a module lies directly in a folder, not in an environment inside it, and is not part of this project."""
    first = name.partition(".")[0]
    top, path = folder / first, Path(getattr(module, "__file__", None) or "")
    return first not in PROJECT_PACKAGES and (path == top.with_suffix(".py") or top in path.parents)


def code_digest(file: Path, neighbours: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Hash everything that may change a user's features: the file, its imports from its folder, and the arguments.

    An argument that names a file is hashed by the content of the file, not by its path.
    """
    digest = hashlib.sha256(file.read_bytes())
    for name, module in sorted(neighbours.items()):
        digest.update(name.encode() + hashlib.sha256(Path(module.__file__).read_bytes()).digest())
    content = {name: file_digest(path) for name, path in files_of(arguments).items()}
    for name, value in sorted(arguments.items()):
        digest.update(f"{name}={content.get(name, repr(value))}".encode())
    return digest.hexdigest()


def files_of(arguments: dict[str, Any]) -> dict[str, Path]:
    """Return the arguments that are paths of files."""
    texts = {name: str(value) for name, value in arguments.items() if isinstance(value, (str, Path))}
    paths = {name: Path(os.path.expanduser(text)) for name, text in texts.items()}
    return {name: path for name, path in paths.items() if os.path.isfile(path)}


@contextmanager
def user_file_errors(file: Path) -> Iterator[None]:
    """Turn any error in a user's file into an UpstreamError that names the line."""
    try:
        yield
    except UpstreamError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        place = f"{file.name}, line {line}" if line else file.name
        raise UpstreamError(f"error in your file {place}: {type(error).__name__}: {error}") from error
