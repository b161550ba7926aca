"""Encoders of speech and audio, by name.

A reference is a registered name with its checkpoint and arguments if it takes any (`fbank`, `NAME@FILE?key=value`), a
family and what it is to load (`hf:PATH_OR_ID`, `s3prl:NAME@CHECKPOINT`, `speechbrain:PATH_OR_ID`, `fairseq:FILE`), or a
function of the user's own (`path/file.py:function?layers=12`); `@random` at its end asks for the same architecture with
random weights.
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
APART = ("random", "checkpoint")  # arguments of registered builders that no `?` sets
SEED = 0  # of every random twin
LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000  # Hz, that sound is recorded at
FAMILIES = {  # modules whose `load(rest, random)` takes what follows the colon
    "hf": "upstreams.families.huggingface",
    "s3prl": "upstreams.families.s3prl",
    "speechbrain": "upstreams.families.speechbrain",
    "fairseq": "upstreams.families.fairseq",
}

Builder = Callable[..., "Upstream"]
_registered: dict[str, Builder] = {}


class RegisteredUpstream(NamedTuple):
    """A registered upstream, known without importing its module."""

    name: str
    module: str
    description: str
    trainable: bool  # has weights, so a random twin exists
    checkpoint: bool = False  # reads a file of the user's: NAME@FILE


def register(builder: Builder) -> Builder:
    """Make a function that builds an upstream available under its own name; its docstring describes it in lists.

    One with weights takes a keyword `random: bool`, and draws its weights from torch's generator where that is true.
    One that reads a checkpoint takes a keyword `checkpoint: str`, the path of a file, or "" where none is given.
    Other arguments follow a `?`, as those of a user's own function do.
    """
    _registered[builder.__name__] = builder
    return builder


def names() -> dict[str, str]:
    """Description of every registered upstream by name; imports none of them."""
    return {name: entry.description for name, entry in sorted(entries().items())}


def entries() -> dict[str, RegisteredUpstream]:
    """Every registered upstream by name; imports none of them."""
    found = {entry.name: entry for path in modules() for entry in scan(path)}
    for name, builder in _registered.items():
        takes = [takes_argument(builder, each) for each in APART]
        found.setdefault(name, RegisteredUpstream(name, builder.__module__, first_line(builder.__doc__), *takes))
    return found


def modules() -> list[Path]:
    """The files of this package, in whatever folder."""
    return sorted(PACKAGE.rglob("*.py"))


@cache
def scan(path: Path, package: Path = PACKAGE) -> tuple[RegisteredUpstream, ...]:
    """The functions that are decorated by `register` in a file below the folder of this package."""
    text = path.read_text(encoding="utf-8")
    if "\n@register\n" not in text:  # parsing is slow, and lists are to be quick
        return ()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    module = ".".join([__name__, *path.relative_to(package).with_suffix("").parts])
    return tuple(entry_of(node, module) for node in functions if is_registered(node))


def is_registered(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "register" for mark in node.decorator_list)


def entry_of(node: ast.FunctionDef, module: str) -> RegisteredUpstream:
    arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
    return RegisteredUpstream(
        node.name, module, first_line(ast.get_docstring(node)), *(each in arguments for each in APART)
    )


def first_line(text: str | None) -> str:
    return text.strip().splitlines()[0].strip() if text and text.strip() else ""


def takes_argument(builder: Builder, name: str) -> bool:
    return name in inspect.signature(builder).parameters


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
    elif in_own_file(name):
        upstream = importlib.import_module("upstreams.families.user_files").from_file(name, random)
    else:
        upstream = registered(name, random)
    return checked(upstream, reference).eval()


def seeded(build: Callable[[], Any]) -> Any:
    """What `build` makes with torch's generator at a fixed seed, which is put back afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build()


def in_own_file(reference: str) -> bool:
    """Whether a reference leads to a file of the user's own code."""
    return ".py:" in reference.partition("?")[0]


def parted(reference: str) -> tuple[str, str | None, str]:
    """Name, file (None without an "@") and arguments of NAME@FILE?key=value."""
    plain, _, query = reference.partition("?")
    name, at, file = plain.partition("@")
    return name, file if at else None, query


def registered(reference: str, random: bool) -> Upstream:
    """What NAME, NAME@FILE or NAME@FILE?key=value names."""
    name, file, query = parted(reference)
    known = entries()
    if name not in known:
        raise failure(unknown(reference, known))
    importlib.import_module(known[name].module)
    builder = _registered[name]
    given = {} if file is None else {"checkpoint": found(file, known[name])}
    arguments_of = importlib.import_module("upstreams.arguments").arguments_of
    plain = reference.partition("?")[0]
    return call(builder, plain, random, given | arguments_of(query, builder, plain, APART))


def found(file: str, entry: RegisteredUpstream) -> str:
    """The path of a checkpoint; raises UpstreamError where there is none, or the builder takes none."""
    from upstreams.safety.allow_list import printable
    from upstreams.safety.loading import expanded

    told = printable(file)
    if file == RANDOM[1:] and not expanded(file).is_file():
        raise failure(f"'{RANDOM}' comes last: {entry.name}?key=value{RANDOM}")
    if not entry.checkpoint:
        own = f", or write before it which family it is of: {listed_families()}" if entry.trainable else ""
        raise failure(f"'{entry.name}' takes no checkpoint; drop '@{told}'{own}")
    path = expanded(file)
    if not path.is_file():
        raise failure(f"no file '{told}'; a reference to a checkpoint is {entry.name}@FILE")
    return str(path)


def unknown(name: str, known: dict[str, RegisteredUpstream]) -> str:
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
    if head in importlib.import_module("upstreams.families.s3prl_entries").entries():
        return f"no upstream '{name}'; write s3prl:{name} for that of s3prl's hub"
    folded = {each.lower(): each for each, entry in known.items() if entry.checkpoint or "@" not in name}
    near = difflib.get_close_matches(head.lower(), folded, n=1)
    hint = f"did you mean '{folded[near[0]]}{name[len(head) :]}'? " if near else ""
    return f"no upstream '{name}'; {hint}see: bench list upstreams"


def listed_families() -> str:
    return ", ".join(f"{each}:" for each in FAMILIES)


def call(builder: Builder, name: str, random: bool, arguments: dict[str, Any]) -> Upstream:
    if random and not takes_argument(builder, "random"):
        raise failure(f"no random twin of '{name}', as its builder takes no argument `random`; drop '{RANDOM}'")
    return seeded(lambda: builder(**arguments, random=True) if random else builder(**arguments))


def checked(upstream: Any, reference: str) -> Upstream:
    from upstreams.base import Upstream

    if not isinstance(upstream, Upstream):
        raise failure(f"'{reference}' gives a {type(upstream).__name__}; it must be an upstreams.base.Upstream")
    for name in ("sample_rate", "hop", "window", "layers", "dim"):
        value = getattr(upstream, name, None)
        if not isinstance(value, int) or value < 1:
            raise failure(f"upstream '{reference}' has {name}={value!r}; set it to a whole number of at least 1")
    if not LOWEST_RATE <= upstream.sample_rate <= HIGHEST_RATE or upstream.hop > upstream.sample_rate:
        rate = f"{upstream.hop} samples at {upstream.sample_rate} Hz"
        raise failure(f"upstream '{reference}' gives a frame every {rate}; rates are 4000 to 192000 Hz, hops up to 1 s")
    return upstream


def failure(message: str) -> UpstreamError:
    from upstreams.base import UpstreamError

    return UpstreamError(message)
