"""Work and messages that the first of the processes started by torchrun handles for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


def run_on_first_process_only(work: Callable[[], Result]) -> Result:
    """Return the result of `work`, which the first process runs while the others wait.

    The others then run it too, and find on disk what the first one stored. Where it fails, all processes stop, and
    only the first one reports the error.
    """
    from upstreams.pretraining.processes import any_process, processes

    result, error = None, None
    if processes()[0] == 0:
        try:
            result = work()
        except Exception as raised:
            error = raised
    if any_process([error is not None])[0]:
        raise error or SystemExit(2)  # the first process reports the error
    return work() if result is None else result


@contextmanager
def errors_reported_once(rank: int) -> Iterator[None]:
    """Let only the first process report an error, or an interruption, that reaches all processes."""
    from upstreams.base import UpstreamError

    try:
        yield
    except (UpstreamError, KeyboardInterrupt) as error:
        if (
            rank and error.__cause__ is None
        ):  # an error with a cause, such as too little memory, may be in this process only
            raise SystemExit(2) from error
        raise
