"""Keeps a torchaudio whose compiled library does not load from breaking everything that imports it.

The newest torchaudio on the package index needs CUDA libraries that a CPU build of torch does not have; transformers
(from 5.12), speechbrain and s3prl all import it. What they need of it is Python only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
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
