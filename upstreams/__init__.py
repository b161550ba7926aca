"""Encoders of speech and audio, by name.

A reference to an upstream is one of these:

- a registered name, with its checkpoint and arguments if it takes any (`fbank`, `NAME@FILE?key=value`);
- a family and the model that it loads (`hf:PATH_OR_ID`, `s3prl:NAME@CHECKPOINT`, `speechbrain:PATH_OR_ID`,
  `fairseq:FILE`);
- a function in a file of the user's (`path/file.py:function?layers=12`).

With `@random` at its end, a reference names the same architecture with random weights.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from upstreams.base import Upstream, UpstreamError

PACKAGE = Path(__file__).parent
RANDOM = "@random"
RESERVED = ("random", "checkpoint")  # arguments of registered builders that cannot follow the `?` of a reference
SEED = 0  # seed of all random weights
LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000  # Hz; permitted sample rates
FAMILIES = {  # modules whose `load(rest, random)` takes the part of a reference after the colon
    "hf": "upstreams.families.huggingface",
    "s3prl": "upstreams.families.s3prl",
    "speechbrain": "upstreams.families.speechbrain",
    "fairseq": "upstreams.families.fairseq",
}

Builder = Callable[..., "Upstream"]
_registered: dict[str, Builder] = {}


class RegisteredUpstream(NamedTuple):
    """The description of a registered upstream, read without importing its module."""

    name: str
    module: str
    description: str
    trainable: bool  # has weights, so a random twin exists
    checkpoint: bool = False  # takes a checkpoint file: NAME@FILE


def register(builder: Builder) -> Builder:
    """Register a function that builds an upstream under the function's name, and return the function.

    The first line of its docstring is the description in lists. A builder of a model with weights takes a keyword
    `random: bool`, and draws the weights from torch's generator if it is true. A builder that reads a checkpoint takes
    a keyword `checkpoint: str`, the path of a file, or "" if the reference has none. Other arguments follow a `?` in
    the reference, as for functions in a user's file.
    """
    _registered[builder.__name__] = builder
    return builder


def names() -> dict[str, str]:
    """Return the description of every registered upstream by name, without importing any of them."""
    return {name: entry.description for name, entry in sorted(entries().items())}


def entries() -> dict[str, RegisteredUpstream]:
    """Return every registered upstream by name, without importing any of them."""
    upstreams = {entry.name: entry for path in module_paths() for entry in scan_module(path)}
    for name, builder in _registered.items():
        takes = [takes_argument(builder, argument) for argument in RESERVED]
        upstreams.setdefault(name, RegisteredUpstream(name, builder.__module__, first_line(builder.__doc__), *takes))
    return upstreams


def module_paths() -> list[Path]:
    """Return the paths of all modules of this package and of its sub-packages."""
    return sorted(PACKAGE.rglob("*.py"))


@cache
def scan_module(path: Path, package: Path = PACKAGE) -> tuple[RegisteredUpstream, ...]:
    """Return the functions that are decorated by `register` in a file of this package."""
    text = path.read_text(encoding="utf-8")
    if "\n@register\n" not in text:  # avoids parsing, which is slow
        return ()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    module = ".".join([__name__, *path.relative_to(package).with_suffix("").parts])
    return tuple(registry_entry(node, module) for node in functions if is_registered(node))


def is_registered(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "register" for mark in node.decorator_list)


def registry_entry(node: ast.FunctionDef, module: str) -> RegisteredUpstream:
    arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
    return RegisteredUpstream(
        node.name, module, first_line(ast.get_docstring(node)), *(name in arguments for name in RESERVED)
    )


def first_line(text: str | None) -> str:
    return text.strip().splitlines()[0].strip() if text and text.strip() else ""


def takes_argument(builder: Builder, name: str) -> bool:
    return name in inspect.signature(builder).parameters


def create(reference: str) -> Upstream:
    """Return the upstream that a reference names, in eval mode.

    Raises UpstreamError if the reference is unknown, or if the upstream cannot be built.
    """
    from upstreams.torchaudio_guard import guard

    guard()
    name, random = (reference[: -len(RANDOM)], True) if reference.endswith(RANDOM) else (reference, False)
    family, colon, rest = name.partition(":")
    if colon and family in FAMILIES:
        upstream = build_seeded(lambda: importlib.import_module(FAMILIES[family]).load(rest, random=random))
    elif is_user_file(name):
        upstream = importlib.import_module("upstreams.families.user_files").upstream_from_file(name, random)
    else:
        upstream = build_registered(name, random)
    return check_upstream(upstream, reference).eval()


def build_seeded(build: Callable[[], Any]) -> Any:
    """Return the result of `build`, called with torch's generator at a fixed seed; the generator is then restored."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build()


def is_user_file(reference: str) -> bool:
    """Return whether a reference names a function in a Python file of the user's."""
    return ".py:" in reference.partition("?")[0]


def split_reference(reference: str) -> tuple[str, str | None, str]:
    """Split NAME@FILE?key=value into its name, its file (None without an "@") and its arguments."""
    plain, _, query = reference.partition("?")
    name, at, file = plain.partition("@")
    return name, file if at else None, query


def build_registered(reference: str, random: bool) -> Upstream:
    """Build the registered upstream that NAME, NAME@FILE or NAME@FILE?key=value names."""
    name, file, query = split_reference(reference)
    known = entries()
    if name not in known:
        raise upstream_error(unknown_message(reference, known))
    importlib.import_module(known[name].module)
    builder = _registered[name]
    arguments = {} if file is None else {"checkpoint": checkpoint_path(file, known[name])}
    parse_arguments = importlib.import_module("upstreams.arguments").parse_arguments
    plain = reference.partition("?")[0]
    return call_builder(builder, plain, random, arguments | parse_arguments(query, builder, plain, RESERVED))


def checkpoint_path(file: str, entry: RegisteredUpstream) -> str:
    """Return the path of a checkpoint; raise UpstreamError if it is missing or not taken."""
    from upstreams.safety.allow_list import printable
    from upstreams.safety.loading import expanded_path

    shown_file = printable(file)
    if file == RANDOM[1:] and not expanded_path(file).is_file():
        raise upstream_error(f"'{RANDOM}' comes last: {entry.name}?key=value{RANDOM}")
    if not entry.checkpoint:
        advice = f", or write before it which family it is of: {listed_families()}" if entry.trainable else ""
        raise upstream_error(f"'{entry.name}' takes no checkpoint; drop '@{shown_file}'{advice}")
    path = expanded_path(file)
    if not path.is_file():
        raise upstream_error(f"no file '{shown_file}'; a reference to a checkpoint is {entry.name}@FILE")
    return str(path)


def unknown_message(name: str, known: dict[str, RegisteredUpstream]) -> str:
    head = re.split("[@?]", name, maxsplit=1)[0]
    if name.endswith(".py"):
        return f"no function in '{name}'; a reference to your own upstream is {name}:function"
    if os.path.isdir(name) or (head.count("/") == 1 and ":" not in name):
        return f"no upstream '{name}'; a folder or hub id of a Hugging Face model is written hf:{name}"
    if os.path.isfile(name):
        return f"no upstream '{name}'; write before it which family the checkpoint is of: {listed_families()}"
    first, colon, rest = name.partition(":")
    if colon and first in known and known[first].checkpoint:
        return f"no family of upstreams '{first}'; a checkpoint follows '@': {first}@{rest}"
    if ":" in head:
        return (
            f"no family of upstreams in '{name}'; write a registered name, {listed_families()} or path/file.py:function"
        )
    if head in importlib.import_module("upstreams.families.s3prl_entries").s3prl_entries():
        return f"no upstream '{name}'; write s3prl:{name} for that of s3prl's hub"
    folded = {key.lower(): key for key, entry in known.items() if entry.checkpoint or "@" not in name}
    near = difflib.get_close_matches(head.lower(), folded, n=1)
    hint = f"did you mean '{folded[near[0]]}{name[len(head) :]}'? " if near else ""
    return f"no upstream '{name}'; {hint}see: bench list upstreams"


def listed_families() -> str:
    return ", ".join(f"{family}:" for family in FAMILIES)


def call_builder(builder: Builder, name: str, random: bool, arguments: dict[str, Any]) -> Upstream:
    if random and not takes_argument(builder, "random"):
        raise upstream_error(f"no random twin of '{name}', as its builder takes no argument `random`; drop '{RANDOM}'")
    return build_seeded(lambda: builder(**arguments, random=True) if random else builder(**arguments))


def check_upstream(upstream: Any, reference: str) -> Upstream:
    from upstreams.base import Upstream

    if not isinstance(upstream, Upstream):
        raise upstream_error(f"'{reference}' gives a {type(upstream).__name__}; it must be an upstreams.base.Upstream")
    for name in ("sample_rate", "hop", "window", "layers", "dim"):
        value = getattr(upstream, name, None)
        if not isinstance(value, int) or value < 1:
            raise upstream_error(f"upstream '{reference}' has {name}={value!r}; set it to a whole number of at least 1")
    if not LOWEST_RATE <= upstream.sample_rate <= HIGHEST_RATE or upstream.hop > upstream.sample_rate:
        rate = f"{upstream.hop} samples at {upstream.sample_rate} Hz"
        raise upstream_error(
            f"upstream '{reference}' gives a frame every {rate}; rates are 4000 to 192000 Hz, hops up to 1 s"
        )
    return upstream


def upstream_error(message: str) -> UpstreamError:
    from upstreams.base import UpstreamError

    return UpstreamError(message)
