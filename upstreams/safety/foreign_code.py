"""Apply the restrictions of `checkpoints.load_checkpoint` to the loading code of third-party packages."""

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
from upstreams.safety.loading import one_line, open_regular_file, read_stream

LOADERS = ("load", "full_load", "unsafe_load")  # of PyYAML
_depth = 0  # of nested `safe_loading` blocks that are active
_hooked = False


@contextmanager
def safe_loading() -> Iterator[None]:
    """Within the block, third-party code can load only what `checkpoints.load_checkpoint` would, without execution.

    torch.load reads plain weights to the CPU, whatever its arguments. Pickles that are read in any other way (pickle,
    joblib, numpy, a torch.load that was imported earlier) must not refer to a class. TorchScript is refused, and YAML
    is read by the safe loader. The block affects all threads of the process. Blocks may be nested, and the original
    functions are restored at the end, also after an error.
    Raises UpstreamError, inside the loading call, for anything else.
    """
    global _depth
    watch_pickles()
    changed = replace_loaders() if _depth == 0 else []
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for module, name, original in changed:
            setattr(module, name, original)


def watch_pickles() -> None:
    """Install the audit hook for class look-ups of unpicklers; it cannot be removed, and is idle outside blocks."""
    global _hooked
    if not _hooked:
        sys.addaudithook(refuse_classes)
        _hooked = True


def refuse_classes(event: str, arguments: tuple[Any, ...]) -> None:
    if _depth and event == "pickle.find_class":
        module, name = arguments
        raise UpstreamError(f"a pickle wants to run {module}.{name}, and weights need nothing run; {ADVICE}")


def replace_loaders() -> list[tuple[Any, str, Any]]:
    """Replace the loading functions of torch and PyYAML; return the module, name and original of each."""
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
        ("torch", "load", load_any_source),
        ("torch.serialization", "load", load_any_source),
        ("torch.jit", "load", refuse_program),
        *(("yaml", name, functools.partial(load_yaml_as_data, one)) for name in LOADERS),
        *(("yaml", f"{name}_all", functools.partial(load_yaml_as_data, many)) for name in LOADERS),
    ]


def while_active(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ours within a block, and the original otherwise if a reference to it was kept."""

    @functools.wraps(original)
    def chosen(*args: Any, **options: Any) -> Any:
        return (ours if _depth else original)(*args, **options)

    return chosen


def load_any_source(f: Any, *_: Any, **__: Any) -> Any:
    """Load from a path or an open file as torch.load does, ignoring its options for device, unpickler and safety."""
    if isinstance(f, (str, os.PathLike)):
        with open_regular_file(f) as file:
            return read_stream(file, str(f))
    return read_stream(io.BytesIO(f.read()), str(getattr(f, "name", "given as an open file")))


def load_yaml_as_data(read: Callable[..., Any], stream: Any, *_: Any, **__: Any) -> Any:
    """Call yaml.load or yaml.load_all with the safe loader, whichever loader was passed."""
    import yaml

    try:
        return read(stream, yaml.SafeLoader)
    except yaml.constructor.ConstructorError as error:
        raise UpstreamError(f"YAML asks for more than data: {one_line(error)}") from error


def refuse_program(*_: Any, **__: Any) -> Any:
    raise UpstreamError(f"TorchScript is a program, not weights; {ADVICE}")
