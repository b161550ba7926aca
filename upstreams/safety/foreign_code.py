"""Hold other people's loading code to the rule of `checkpoints.load`."""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import ADVICE
from upstreams.safety.loading import one_line, opened, read_stream

LOADERS = ("load", "full_load", "unsafe_load")  # of PyYAML
_depth = 0  # of `only_safe` blocks that are being run
_hooked = False


@contextmanager
def only_safe() -> Iterator[None]:
    """Within it whatever third parties load is read as `checkpoints.load` does, or refused with UpstreamError.

    torch.load takes plain weights to the CPU whatever it is asked; pickles by any way (pickle, joblib, numpy, a
    torch.load imported earlier) may name no class; TorchScript is refused; YAML is data. It holds for the whole
    process while active, other threads included; may be nested; and ends as it began, also after errors.
    """
    global _depth
    watch_pickles()
    changed = replaced() if _depth == 0 else []
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for module, name, original in changed:
            setattr(module, name, original)


def watch_pickles() -> None:
    """Have Python ask us before any unpickler looks up a class; such a hook stays, and is idle outside of blocks."""
    global _hooked
    if not _hooked:
        sys.addaudithook(refuse_classes)
        _hooked = True


def refuse_classes(event: str, arguments: tuple[Any, ...]) -> None:
    if _depth and event == "pickle.find_class":
        module, name = arguments
        raise UpstreamError(f"a pickle wants to run {module}.{name}, and weights need nothing run; {ADVICE}")


def replaced() -> list[tuple[Any, str, Any]]:
    """Put our functions in place of others'; gives module, name and what was there."""
    changed = []
    for module_name, name, ours in replacements():
        module = importlib.import_module(module_name)
        original = getattr(module, name, None)
        if original is not None:
            changed.append((module, name, original))
            setattr(module, name, while_active(ours, original))
    return changed


def replacements() -> list[tuple[str, str, Callable[..., Any]]]:
    import yaml

    one, many = yaml.load, yaml.load_all
    return [
        ("torch", "load", of_any_source),
        ("torch.serialization", "load", of_any_source),
        ("torch.jit", "load", refuse_program),
        *(("yaml", name, functools.partial(as_data, one)) for name in LOADERS),
        *(("yaml", f"{name}_all", functools.partial(as_data, many)) for name in LOADERS),
    ]


def while_active(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Ours within a block, the original afterwards for whoever kept a reference."""

    @functools.wraps(original)
    def chosen(*args: Any, **options: Any) -> Any:
        return (ours if _depth else original)(*args, **options)

    return chosen


def of_any_source(f: Any, *_: Any, **__: Any) -> Any:
    """As torch.load, from a path or an open file; other devices, unpicklers or less care are not given."""
    if isinstance(f, (str, os.PathLike)):
        with opened(f) as file:
            return read_stream(file, str(f))
    return read_stream(io.BytesIO(f.read()), str(getattr(f, "name", "given as an open file")))


def as_data(read: Callable[..., Any], stream: Any, *_: Any, **__: Any) -> Any:
    """As yaml.load or load_all with the safe loader, whichever was asked for."""
    import yaml

    try:
        return read(stream, yaml.SafeLoader)
    except yaml.constructor.ConstructorError as error:
        raise UpstreamError(f"YAML asks for more than data: {one_line(error)}") from error


def refuse_program(*_: Any, **__: Any) -> Any:
    raise UpstreamError(f"TorchScript is a program, not weights; {ADVICE}")
