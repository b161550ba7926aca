"""User errors, which end a command with one sentence and exit code 2, without a traceback; failures as values."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple


class UserError(Exception):
    """An error for the user: what is wrong, where, and what to do instead, in one lower-case sentence."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most similar to an unknown one, "" if none is similar."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def unknown_name(kind: str, name: str, known: Iterable[str], see: str = "") -> UserError:
    """Return the error for an unknown name, with the most similar known one.

    kind: what the name stands for, such as "task". see: a command that lists the known names.
    """
    near = nearest_name(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    more = f"{'' if near else ';'} see: {see}" if see else ""
    return UserError(f"no {kind} {name!r}{hint}{more}")


def is_user_error(error: BaseException) -> bool:
    """Whether the message is a sentence for the user; upstreams and downstreams define their own such errors."""
    users = {"UserError", "UpstreamError", "HeadError"}
    return any(kind.__name__ in users for kind in type(error).__mro__)


def as_user_error(error: BaseException) -> BaseException:
    """Return a UserError for a full disk, a missing permission or a file in place of a folder, else `error` itself."""
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
    """The failure of a job as a plain value.

    where: the job. users: whether it is a user error, else `trace` is the traceback. path: file with the traceback.
    """

    where: str
    message: str
    users: bool
    trace: str = ""
    path: Path | None = None


def as_failure(where: str, error: BaseException) -> Failure:
    """Return an exception as a value; its message is that of a user error, else the last line of the traceback."""
    error = as_user_error(error)
    if is_user_error(error):
        return Failure(where, str(error), True)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(where, message, False, "".join(traceback.format_exception(error)))
