"""Mistakes of the user's: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple


class UserError(Exception):
    """What is wrong, where, and what to do instead, in one lower-case sentence."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that is most like one that does not exist, "" if none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    near = nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    more = f"{'' if near else ';'} see: {see}" if see else ""
    return UserError(f"no {kind} {name!r}{hint}{more}")


def is_users(error: BaseException) -> bool:
    """Whether the message is a sentence for the user; upstreams and heads have such errors of their own."""
    users = {"UserError", "UpstreamError", "HeadError"}
    return any(kind.__name__ in users for kind in type(error).__mro__)


def as_users(error: BaseException) -> BaseException:
    """A full disk or a missing permission, told as what it is; anything else unchanged."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full at {error.filename or 'the home or results folder'}; free some space and run the same"
            " command again"
        )
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return UserError(f"no permission to read or write {error.filename}; change its rights, or give another folder")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return UserError(f"{error.filename} is a file where a folder is needed; give another --home or --results")
    return error


class Failure(NamedTuple):
    """A job's end as a plain value: what went wrong, where, whether the user can mend it, else the traceback."""

    where: str
    message: str
    users: bool
    trace: str = ""
    path: Path | None = None


def failure(where: str, error: BaseException) -> Failure:
    """An exception as a value: a sentence for mistakes of the user's, else the traceback's last line."""
    error = as_users(error)
    if is_users(error):
        return Failure(where, str(error), True)
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(where, told, False, "".join(traceback.format_exception(error)))
