"""Mistakes of the user's: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What is wrong, where, and what to do instead, in one lower-case sentence."""


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
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
    if isinstance(error, PermissionError):
        return UserError(f"no permission to write {error.filename}; give another --home or --results")
    return error
