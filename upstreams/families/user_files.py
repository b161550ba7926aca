"""Upstreams from files of the user's own: `path/file.py:function`."""

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

from upstreams import call, failure
from upstreams.arguments import arguments_of
from upstreams.base import Upstream, UpstreamError
from upstreams.safety.checkpoints import digest as digest_of
from upstreams.safety.checkpoints import digests

OURS = ("upstreams", "downstreams", "benchmark")

_neighbours: dict[Path, dict[str, Any]] = {}  # modules that each user's file imported from its own folder


def from_file(reference: str, random: bool) -> Upstream:
    """The upstream that a function in a file of the user's own returns: path/file.py:function?name=value&name=value."""
    name, _, query = reference.partition("?")
    path, _, function = name.rpartition(":")
    typed = os.path.expanduser(path)
    if not os.path.isfile(typed):
        raise failure(f"no file '{path}'; a reference to your own upstream is path/file.py:function")
    file = Path(os.path.realpath(typed))
    with told(file), importable(file) as neighbours:
        builder = getattr(module_of(file), function, None)
        if not callable(builder):
            raise failure(f"no function '{function}' in '{path}'; a reference is path/file.py:function")
        arguments = arguments_of(query, builder, name)
        upstream = call(builder, name, random, arguments)
    if isinstance(upstream, Upstream):
        upstream.source = code_digest(file, neighbours, arguments)
        upstream.origin = {**upstream.origin, **digests([file, *files_of(arguments).values()])}
    return upstream


def module_of(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise failure(f"'{file}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # classes look their module up by name
    spec.loader.exec_module(module)
    return module


@contextmanager
def importable(file: Path) -> Iterator[dict[str, Any]]:
    """Lets a user's file import its neighbours, as a script does; gives those that it has imported, by name."""
    for others in _neighbours.values():  # namesakes beside another user's file are not meant
        for name in others:
            sys.modules.pop(name, None)
    own = _neighbours.setdefault(file, {})
    sys.modules.update(own)
    before = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    try:
        yield own
    finally:
        sys.path.remove(str(file.parent))
        fresh = {name: module for name, module in sys.modules.items() if name not in before}
        own |= {name: module for name, module in fresh.items() if lies_in(file.parent, name, module)}


def lies_in(folder: Path, name: str, module: Any) -> bool:
    """Whether a module was found in a folder itself, not in an environment within it, and is none of this project's."""
    first = name.partition(".")[0]
    top, path = folder / first, Path(getattr(module, "__file__", None) or "")
    return first not in OURS and (path == top.with_suffix(".py") or top in path.parents)


def code_digest(file: Path, neighbours: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Hash of all that a user's features may rest on: file, what it imports from its own folder, and arguments.

    An argument that names a file counts by the file's content, wherever that lies.
    """
    digest = hashlib.sha256(file.read_bytes())
    for name, module in sorted(neighbours.items()):
        digest.update(name.encode() + hashlib.sha256(Path(module.__file__).read_bytes()).digest())
    content = {name: digest_of(path) for name, path in files_of(arguments).items()}
    for name, value in sorted(arguments.items()):
        digest.update(f"{name}={content.get(name, repr(value))}".encode())
    return digest.hexdigest()


def files_of(arguments: dict[str, Any]) -> dict[str, Path]:
    """The files that arguments name."""
    texts = {name: str(value) for name, value in arguments.items() if isinstance(value, (str, Path))}
    paths = {name: Path(os.path.expanduser(text)) for name, text in texts.items()}
    return {name: path for name, path in paths.items() if os.path.isfile(path)}


@contextmanager
def told(file: Path) -> Iterator[None]:
    """Turns whatever goes wrong in a user's file into one sentence with the line."""
    try:
        yield
    except UpstreamError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        place = f"{file.name}, line {line}" if line else file.name
        raise UpstreamError(f"error in your file {place}: {type(error).__name__}: {error}") from error
