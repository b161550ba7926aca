"""Import of torchaudio without its compiled library, if that library does not load.

The newest torchaudio on the package index needs CUDA libraries that a CPU build of torch does not have. Transformers
(from 5.12), speechbrain and s3prl all import torchaudio, but use only its Python code.
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
    """A replacement for torchaudio's extension module: nothing is available, and functions that need it raise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_IS_"):
            return False
        if name.startswith("fail_if_no_"):
            return unavailable
        raise AttributeError(f"module '{EXTENSION}' has no attribute '{name}'")


def unavailable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises RuntimeError, in place of one that needs torchaudio's compiled library."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled library, which does not load here")

    return refuse


def guard() -> None:
    """Import torchaudio, without its compiled library if that does not load; do nothing if it is not installed.

    Call this before transformers, speechbrain or s3prl is imported.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except (OSError, ImportError, RuntimeError):  # a missing library, a missing symbol, or another CUDA version
        forget_torchaudio()
        sys.modules[EXTENSION] = MissingExtension(EXTENSION)
        import_or_forget()


def import_or_forget() -> None:
    try:
        importlib.import_module("torchaudio")
    except Exception:  # torchaudio is broken in other ways; only code that uses it should fail
        forget_torchaudio()


def forget_torchaudio() -> None:
    """Remove the modules that a failed import of torchaudio left in `sys.modules`."""
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]


@contextmanager
def before_2_9() -> Iterator[None]:
    """Add to torchaudio, within the context, the functions that s3prl's modules import and torchaudio 2.9 removed.

    Functions that torchaudio still has are left unchanged. The added ones do nothing, or raise RuntimeError.
    """
    torchaudio = importlib.import_module("torchaudio")
    sox = ModuleType("torchaudio.sox_effects")
    vars(sox).update(apply_effects_tensor=missing_sox_effects, apply_effects_file=missing_sox_effects)
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


def missing_sox_effects(*_: object, **__: object) -> None:
    raise RuntimeError("torchaudio 2.9 and later have no sox effects; apply them to the files beforehand")
