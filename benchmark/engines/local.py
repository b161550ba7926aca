"""The engine is `map`: in this process, or over a pool of them, with progress and an estimate of the time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from benchmark.environment import cores
from benchmark.errors import UserError
from benchmark.values import Engine, X, Y, equal

_post: Callable[[float], None] | None = None  # where `progress` of the item at work goes


def progress(done: float, total: float) -> None:
    """Tell how much of the item at work is done; free to call often."""
    if _post is not None and total > 0:
        _post(min(done / total, 1.0))


def mapped() -> bool:
    """Whether an item is at work, whose `progress` is shown already."""
    return _post is not None


def in_process(
    function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal
) -> list[Y]:
    """Map here, one item after the other."""
    global _post
    todo = list(items)
    weights = [weight(item) for item in todo]
    results = []
    outer = _post
    with bar(title, sum(weights)) as show:
        try:
            for place, item in enumerate(todo):
                before = sum(weights[:place])
                _post = lambda part, before=before, size=weights[place]: show(before + part * size)  # type: ignore[misc] # noqa: E731
                results.append(function(item))
                show(before + weights[place])
        finally:
            _post = outer
    return results


class pool:  # noqa: N801 (used like the function `in_process`)
    """Map over `workers` fresh processes, which share the cores evenly."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self, function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal
    ) -> list[Y]:
        """As `in_process`; an exception in a worker is raised here once, after which nothing new is started."""
        todo = list(items)
        if len(todo) < 2:
            return in_process(function, todo, title, weight)
        weights = [weight(item) for item in todo]
        parts = [0.0] * len(todo)
        context = get_context("spawn")
        posts = context.SimpleQueue()
        shared = (posts, max(1, cores() // self.workers), os.getpid())
        size = min(self.workers, len(todo))
        with ProcessPoolExecutor(size, context, _start, shared) as processes, bar(title, sum(weights)) as show:
            pending = [processes.submit(_work, function, item, place) for place, item in enumerate(todo)]
            processes.submit(int)  # without another call the death of the worker started last would go unnoticed
            try:
                while wait(pending, 0.1, FIRST_EXCEPTION).not_done and not _failed(pending):
                    _drain(posts, parts)
                    show(sum(part * size for part, size in zip(parts, weights, strict=True)))
                _raise_first(pending)
                return [future.result() for future in pending]
            finally:
                processes.shutdown(wait=False, cancel_futures=True)


def _raise_first(pending: list[Future[Any]]) -> None:
    for future in pending:
        if _failed([future]):
            try:
                future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely because memory ran out; run the same command again, with"
                    " fewer --workers"
                ) from error


def _failed(pending: list[Future[Any]]) -> bool:
    return any(future.done() and not future.cancelled() and future.exception() for future in pending)


def _drain(posts: Any, parts: list[float]) -> None:
    while not posts.empty():
        place, part = posts.get()
        parts[place] = part


def _start(posts: Any, threads: int, parent: int) -> None:
    global _posts, _parent
    _posts, _parent = posts, parent
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    _die_with_parent()


def _die_with_parent() -> None:
    """Linux kills the worker when its parent dies, so that a killed run leaves nothing running."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != _parent:
            os._exit(1)


def _work(function: Callable[[X], Y], item: X, place: int) -> Y:
    global _post
    last = 0.0

    def post(part: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            _posts.put((place, part))

    _post = post
    result = function(item)
    _posts.put((place, 1.0))
    return result


_posts: Any = None
_parent: int = 0


def engine(workers: int) -> Engine:
    """`in_process` for one worker, else a pool."""
    return in_process if workers <= 1 else pool(workers)


@contextmanager
def bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar with the time left on a terminal; elsewhere a line every ten seconds; none within an item."""
    if not title or total <= 0 or mapped():
        yield lambda done: None
    elif sys.stderr.isatty():
        yield from _drawn(title, total)
    else:
        yield from _printed(title, total)


def _drawn(title: str, total: float) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task(title, total=total)
        yield lambda done: drawn.update(task, completed=done)


def _printed(title: str, total: float) -> Iterator[Callable[[float], None]]:
    began = last = time.monotonic()

    def show(done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 and 0 < done < total:
            last = now
            left = f", about {_clock((now - began) * (total - done) / done)} left" if done >= total / 100 else ""
            print(f"{title}: {done / total:.0%}{left}", file=sys.stderr, flush=True)

    yield show
    print(f"{title}: done in {_clock(time.monotonic() - began)}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}"
