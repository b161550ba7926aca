"""Encoders of speech and audio, by name.

A reference is a registered name (`fbank`), a Hugging Face folder or hub id (`hf:PATH_OR_ID`), or a function of the
user's own (`path/file.py:function`); `@random` at its end asks for the same architecture with random weights.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from upstreams.base import Upstream, UpstreamError

RANDOM = "@random"
OURS = ("upstreams", "downstreams", "benchmark")
SEED = 0  # of every random twin
FAMILIES = {"hf": "upstreams.huggingface"}  # modules whose `load(path, random)` takes what follows the colon

Builder = Callable[..., "Upstream"]
_registered: dict[str, Builder] = {}
_neighbours: dict[Path, dict[str, Any]] = {}  # modules that each user's file imported from its own folder


class Entry(NamedTuple):
    """A registered upstream, known without importing its module."""

    name: str
    module: str
    description: str
    trainable: bool  # has weights, so a random twin exists


def register(builder: Builder) -> Builder:
    """Make a function that builds an upstream available under its own name; its docstring describes it in lists.

    One with weights takes a keyword `random: bool`, and draws its weights from torch's generator where that is true.
    """
    _registered[builder.__name__] = builder
    return builder


def names() -> dict[str, str]:
    """Description of every registered upstream by name; imports none of them."""
    return {name: entry.description for name, entry in sorted(entries().items())}


def entries() -> dict[str, Entry]:
    """Every registered upstream by name; imports none of them."""
    found = {entry.name: entry for path in sorted(Path(__file__).parent.glob("*.py")) for entry in scan(path)}
    for name, builder in _registered.items():
        found.setdefault(name, Entry(name, builder.__module__, first_line(builder.__doc__), takes_random(builder)))
    return found


@cache
def scan(path: Path) -> tuple[Entry, ...]:
    """The functions decorated by `register` in a file of this package."""
    text = path.read_text(encoding="utf-8")
    if "\n@register\n" not in text:  # parsing is slow, and lists are to be quick
        return ()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return tuple(entry_of(node, f"{__name__}.{path.stem}") for node in functions if is_registered(node))


def is_registered(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "register" for mark in node.decorator_list)


def entry_of(node: ast.FunctionDef, module: str) -> Entry:
    arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
    return Entry(node.name, module, first_line(ast.get_docstring(node)), "random" in arguments)


def first_line(text: str | None) -> str:
    return text.strip().splitlines()[0].strip() if text and text.strip() else ""


def takes_random(builder: Builder) -> bool:
    return "random" in inspect.signature(builder).parameters


def create(reference: str) -> Upstream:
    """The upstream a reference names, in eval mode.

    Raises UpstreamError where nothing goes by that reference, or where it cannot be built.
    """
    from upstreams.torchaudio_guard import guard

    guard()
    name, random = (reference[: -len(RANDOM)], True) if reference.endswith(RANDOM) else (reference, False)
    family, colon, rest = name.partition(":")
    if colon and family in FAMILIES:
        upstream = seeded(lambda: importlib.import_module(FAMILIES[family]).load(rest, random=random))
    elif ".py:" in name:
        path, _, function = name.rpartition(":")
        upstream = from_file(path, function, random)
    else:
        upstream = registered(name, random)
    return checked(upstream, reference).eval()


def seeded(build: Callable[[], Any]) -> Any:
    """What `build` makes with torch's generator at a fixed seed, which is put back afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build()


def registered(name: str, random: bool) -> Upstream:
    known = entries()
    if name not in known:
        raise failure(unknown(name, list(known)))
    importlib.import_module(known[name].module)
    return call(_registered[name], name, random)


def unknown(name: str, known: list[str]) -> str:
    if name.endswith(".py"):
        return f"no function in '{name}'; a reference to your own upstream is {name}:function"
    if Path(name).is_dir() or (name.count("/") == 1 and ":" not in name):
        return f"no upstream '{name}'; a folder or hub id of a Hugging Face model is written hf:{name}"
    if ":" in name:
        return f"no family of upstreams in '{name}'; write a registered name, hf:PATH_OR_ID or path/file.py:function"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"no upstream '{name}'; {hint}see: bench list upstreams"


def call(builder: Builder, name: str, random: bool) -> Upstream:
    if random and not takes_random(builder):
        raise failure(f"no random twin of '{name}', as its builder takes no argument `random`; drop '{RANDOM}'")
    return seeded(lambda: builder(random=True) if random else builder())


def from_file(path: str, function: str, random: bool) -> Upstream:
    """The upstream that a function in a file of the user's own returns."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise failure(f"no file '{path}'; a reference to your own upstream is path/file.py:function")
    with told(file), importable(file) as neighbours:
        builder = getattr(module_of(file), function, None)
        if not callable(builder):
            raise failure(f"no function '{function}' in '{path}'; a reference is path/file.py:function")
        upstream = call(builder, f"{path}:{function}", random)
    if hasattr(upstream, "state_dict"):
        upstream.source = code_digest(file, neighbours)
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


def code_digest(file: Path, neighbours: dict[str, Any]) -> str:
    """Hash of a user's file and of what it imports from its own folder: all that its features may rest on."""
    digest = hashlib.sha256(file.read_bytes())
    for name, module in sorted(neighbours.items()):
        digest.update(name.encode() + hashlib.sha256(Path(module.__file__).read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def told(file: Path) -> Iterator[None]:
    """Turns whatever goes wrong in a user's file into one sentence with the line."""
    from upstreams.base import UpstreamError

    try:
        yield
    except UpstreamError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        place = f"{file.name}, line {line}" if line else file.name
        raise UpstreamError(f"error in your file {place}: {type(error).__name__}: {error}") from error


def checked(upstream: Any, reference: str) -> Upstream:
    from upstreams.base import Upstream

    if not isinstance(upstream, Upstream):
        raise failure(f"'{reference}' gives a {type(upstream).__name__}; it must be an upstreams.base.Upstream")
    for name in ("sample_rate", "hop", "window", "layers", "dim"):
        value = getattr(upstream, name, None)
        if not isinstance(value, int) or value < 1:
            raise failure(f"upstream '{reference}' has {name}={value!r}; set it to a whole number of at least 1")
    return upstream


def failure(message: str) -> UpstreamError:
    from upstreams.base import UpstreamError

    return UpstreamError(message)
