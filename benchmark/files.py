"""Files that are whole or absent: written aside, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name to write to; renamed to `path` when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Delete what killed processes of this machine left half written in a folder."""
    for partial in folder.glob(f".*.{platform.node()}.*.partial"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and not _runs(int(process)):
            partial.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def digest(value: Any) -> str:
    """Hash (64 hexadecimal digits) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stamp(path: Path) -> list[Any]:
    """What tells cheaply that a file changed: its name, size and modification time."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def remembered(path: Path, key: str, compute: Callable[[], Any], worth: Callable[[Any], bool] = bool) -> Any:
    """The JSON value that `compute` gave when `key` was last the same, else what it gives now, kept if `worth` it."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: a cache, so computed anew
    value = compute()
    if worth(value):
        write_text(path, json.dumps({"key": key, "value": value}))
    return value


PACKAGES = Path(__file__).parent.parent


def code_stamps(package: str) -> list[Any]:
    """What changes with the code of a package of this project."""
    return [stamp(path) for path in sorted((PACKAGES / package).rglob("*.py"))]
