"""Keeps a torchaudio whose compiled library does not load from breaking everything that imports it.

The newest torchaudio on the package index needs CUDA libraries that a CPU build of torch does not have; transformers
(from 5.12), speechbrain and s3prl all import it. What they need of it is Python only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

EXTENSION = "torchaudio._extension"


class MissingExtension(ModuleType):
    """Stands for torchaudio's extension module: nothing is available, and what needs it says so when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_IS_"):
            return False
        if name.startswith("fail_if_no_"):
            return unavailable
        raise AttributeError(f"module '{EXTENSION}' has no attribute '{name}'")


def unavailable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorated function that cannot run without torchaudio's compiled library."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled library, which does not load here")

    return refuse


def guard() -> None:
    """Import torchaudio, without its compiled library where that does not load; does nothing where it is absent.

    To be called before transformers, speechbrain or s3prl is imported.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except (OSError, ImportError, RuntimeError):  # a library missing, a symbol missing, another CUDA version
        forget()
        sys.modules[EXTENSION] = MissingExtension(EXTENSION)
        import_or_forget()


def import_or_forget() -> None:
    try:
        importlib.import_module("torchaudio")
    except Exception:  # broken beyond its library: whoever needs it will say so, nobody else has to
        forget()


def forget() -> None:
    """Drop what a failed import of torchaudio left behind."""
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]


@contextmanager
def before_2_9() -> Iterator[None]:
    """Within it, torchaudio has the functions that s3prl's modules look for as they are imported, and 2.9 dropped.

    Those that torchaudio has are left alone; the others do nothing, or say so when they are called.
    """
    torchaudio = importlib.import_module("torchaudio")
    sox = ModuleType("torchaudio.sox_effects")
    vars(sox).update(apply_effects_tensor=dropped, apply_effects_file=dropped)
    added = {"set_audio_backend": lambda _: None, "sox_effects": sox}
    added = {name: value for name, value in added.items() if not hasattr(torchaudio, name)}
    vars(torchaudio).update(added)
    if "sox_effects" in added:
        sys.modules[sox.__name__] = sox
    try:
        yield
    finally:
        for name in added:
            delattr(torchaudio, name)
        if sys.modules.get(sox.__name__) is sox:
            del sys.modules[sox.__name__]


def dropped(*_: object, **__: object) -> None:
    raise RuntimeError("torchaudio 2.9 and later have no sox effects; apply them to the files beforehand")
