"""Engines that call a function on many items, in this process or in several, and show the progress and time left."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from benchmark.environment import cores
from benchmark.errors import UserError
from benchmark.values import Engine, X, Y, equal_weight

_report_progress: Callable[[float], None] | None = None  # called by `progress`; None while no item is processed


def progress(done: float, total: float) -> None:
    """Report the progress of the item that is being processed; frequent calls are cheap."""
    if _report_progress is not None and total > 0:
        _report_progress(min(done / total, 1.0))


def item_is_running() -> bool:
    """Return whether an engine is processing an item in this process, so that its progress is shown already."""
    return _report_progress is not None


def in_process(
    function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal_weight
) -> list[Y]:
    """Process the items one after the other in this process, see `Engine`."""
    global _report_progress
    item_list = list(items)
    weights = [weight(item) for item in item_list]
    results = []
    outer = _report_progress
    with progress_bar(title, sum(weights)) as show:
        try:
            for number, item in enumerate(item_list):
                before = sum(weights[:number])
                _report_progress = partial(_show_fraction, show, before, weights[number])
                results.append(function(item))
                show(before + weights[number])
        finally:
            _report_progress = outer
    return results


def _show_fraction(show: Callable[[float], None], before: float, weight: float, fraction: float) -> None:
    show(before + fraction * weight)


class ProcessPool:
    """Processes items in `workers` new processes, which share the cores evenly."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        title: str = "",
        weight: Callable[[X], float] = equal_weight,
    ) -> list[Y]:
        """Process the items, see `Engine`. The first exception in a worker is raised here, and cancels all items left.

        Raises UserError where a worker was killed.
        """
        item_list = list(items)
        if len(item_list) < 2:
            return in_process(function, item_list, title, weight)
        weights = [weight(item) for item in item_list]
        fractions = [0.0] * len(item_list)
        context = get_context("spawn")
        queue = context.SimpleQueue()
        arguments = (queue, max(1, cores() // self.workers), os.getpid())
        size = min(self.workers, len(item_list))
        with (
            ProcessPoolExecutor(size, context, _initialise_worker, arguments) as processes,
            progress_bar(title, sum(weights)) as show,
        ):
            futures = [processes.submit(_process_item, function, item, i) for i, item in enumerate(item_list)]
            processes.submit(int)  # without another call, the executor does not notice the death of the last worker
            try:
                while wait(futures, 0.1, FIRST_EXCEPTION).not_done and not _any_failed(futures):
                    _read_progress(queue, fractions)
                    show(sum(map(operator.mul, fractions, weights)))
                _raise_first(futures)
                return [future.result() for future in futures]
            finally:
                processes.shutdown(wait=False, cancel_futures=True)


def _raise_first(futures: list[Future[Any]]) -> None:
    for future in futures:
        if _any_failed([future]):
            try:
                future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely because memory ran out; run the same command again, with"
                    " fewer --workers"
                ) from error


def _any_failed(futures: list[Future[Any]]) -> bool:
    return any(future.done() and not future.cancelled() and future.exception() for future in futures)


def _read_progress(queue: Any, fractions: list[float]) -> None:
    while not queue.empty():
        number, fraction = queue.get()
        fractions[number] = fraction


def _initialise_worker(queue: Any, threads: int, parent: int) -> None:
    global _queue, _parent
    _queue, _parent = queue, parent
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    _die_with_parent()


def _die_with_parent() -> None:
    """Ask Linux to kill this worker when its parent dies, so that a killed run leaves no processes."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != _parent:
            os._exit(1)


def _process_item(function: Callable[[X], Y], item: X, number: int) -> Y:
    global _report_progress
    last = 0.0

    def send(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            _queue.put((number, fraction))

    _report_progress = send
    result = function(item)
    _queue.put((number, 1.0))
    return result


_queue: Any = None
_parent: int = 0


def make_engine(workers: int) -> Engine:
    """Return `in_process` for one worker, and a `ProcessPool` for several."""
    return in_process if workers <= 1 else ProcessPool(workers)


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the time left on a terminal, and elsewhere a line every ten seconds.

    Yields a function that sets the amount done, out of `total`. Without a title, and while an engine processes an item
    in this process, nothing is shown.
    """
    if not title or total <= 0 or item_is_running():
        yield lambda done: None
    elif sys.stderr.isatty():
        yield from _terminal_bar(title, total)
    else:
        yield from _printed_lines(title, total)


def _terminal_bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
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
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _printed_lines(title: str, total: float) -> Iterator[Callable[[float], None]]:
    start = last = time.monotonic()

    def show(done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 and 0 < done < total:
            last = now
            left = f", about {_format_time((now - start) * (total - done) / done)} left" if done >= total / 100 else ""
            print(f"{title}: {done / total:.0%}{left}", file=sys.stderr, flush=True)

    yield show
    print(f"{title}: done in {_format_time(time.monotonic() - start)}", file=sys.stderr, flush=True)


def _format_time(seconds: float) -> str:
    minutes, whole_seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{whole_seconds:02d}"
