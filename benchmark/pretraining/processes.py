"""What several processes that torchrun started do once between them: look, and tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

X = TypeVar("X")


def first_alone(work: Callable[[], X]) -> X:
    """What `work` gives, done by the first process while the others wait for what it leaves on disk."""
    from upstreams.pretraining.processes import anywhere, processes

    result, error = None, None
    if processes()[0] == 0:
        try:
            result = work()
        except Exception as raised:
            error = raised
    if anywhere([error is not None])[0]:
        raise error or SystemExit(2)  # the first process tells
    return work() if result is None else result


@contextmanager
def only_first_tells(rank: int) -> Iterator[None]:
    """What all processes find, and a signal that all get, is told by the first one."""
    from upstreams.base import UpstreamError

    try:
        yield
    except (UpstreamError, KeyboardInterrupt) as error:
        if rank and error.__cause__ is None:  # one with a cause, such as too little memory, may be this process's alone
            raise SystemExit(2) from error
        raise
