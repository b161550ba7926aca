"""Atomic writing of files, digests of values, and caches of JSON values."""

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
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` at the end of the block, or deleted if the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Delete the temporary files of `atomic_path` in a folder that belong to killed processes of this machine."""
    for partial in folder.glob(f".*.{platform.node()}.*.partial"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
            partial.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, and belongs to another user
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stamp(path: Path) -> list[Any]:
    """Return path, size and modification time of a file, to detect changes without reading it."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def cached_json(path: Path, key: str, compute: Callable[[], Any], worth_storing: Callable[[Any], bool] = bool) -> Any:
    """Return the JSON value stored at `path` if it was stored with the same `key`, else compute it.

    A computed value is stored if `worth_storing(value)` is true.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a missing or damaged file is computed anew
    value = compute()
    if worth_storing(value):
        write_text(path, json.dumps({"key": key, "value": value}))
    return value


PACKAGES = Path(__file__).parent.parent


def code_stamps(package: str) -> list[Any]:
    """Return the stamps of all code files in a package of this project, which change when its code changes."""
    return [stamp(path) for path in sorted((PACKAGES / package).rglob("*.py"))]
