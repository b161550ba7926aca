"""Progress of a pre-training: its step, its losses, the time taken and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmark.engines.local import item_is_running, progress

if TYPE_CHECKING:
    from upstreams.pretraining.loop import TrainingProgress

PAUSE = 10.0  # seconds from one printed line to the next

Show = Callable[["TrainingProgress"], None]


@contextmanager
def training_bar(title: str) -> Iterator[Show]:
    """Yield a function that shows progress.

    It updates a bar with losses and time left on a terminal, prints a line every ten seconds elsewhere, and reports
    to the engine inside an item of an engine.
    """
    if item_is_running():
        yield lambda at: progress(at.step, at.steps)
    else:
        yield from _drawn(title) if sys.stderr.isatty() else _printed(title)


def _drawn(title: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    whole, rest = Column(no_wrap=True, min_width=16), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(10),
        TextColumn("{task.fields[at]}", table_column=whole), TextColumn("{task.fields[left]} left"),
        TextColumn("{task.fields[text]}", markup=False, table_column=rest),
    )  # fmt: skip
    left = time_left()
    with Bar(*columns, console=Console(stderr=True), expand=True) as drawn:
        task = drawn.add_task(title, total=None, at="starting", left="?", text="")
        yield lambda at: drawn.update(
            task, total=at.steps, completed=at.step, at=f"{at.step}/{at.steps}", left=left(at), text=progress_text(at)
        )


def _printed(title: str) -> Iterator[Show]:
    left = time_left()
    last = time.monotonic()

    def show(at: TrainingProgress) -> None:
        nonlocal last
        about = left(at)
        if time.monotonic() - last >= PAUSE or at.step == at.steps:
            last = time.monotonic()
            end = f"done in {format_duration(at.seconds)}" if at.step == at.steps else f"about {about} left"
            waiting = f"{at.waiting:.0%} of the time spent waiting for data"
            line = f"{title}: step {at.step}/{at.steps}, {format_terms(at.terms)}; {end}, {waiting}"
            print(line, file=sys.stderr, flush=True)

    yield show


def time_left() -> Callable[[TrainingProgress], str]:
    """Return an estimator of the time left, from the speed since its first call.

    Steps before the first call do not count, since a resumed training did not make them.
    """
    first: list[tuple[int, float]] = []

    def estimate(at: TrainingProgress) -> str:
        if not first:
            first.append((at.step, at.seconds))
        step, seconds = first[0]
        return (
            format_duration((at.seconds - seconds) / (at.step - step) * (at.steps - at.step)) if at.step > step else "?"
        )

    return estimate


def progress_text(at: TrainingProgress) -> str:
    """Return the terms as text, preceded by the share of time spent waiting for data where it exceeds 10 %."""
    waiting = f"waits for data {at.waiting:.0%}, " if at.waiting > 0.1 else ""
    return waiting + format_terms(at.terms)


def format_terms(values: Mapping[str, float]) -> str:
    """Return the loss and the other monitored values as short text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def format_duration(seconds: float) -> str:
    """Return a duration as H:MM:SS, or as M:SS below one hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Stopwatch:
    """The time a training took, summed over all its sessions.

    seconds, waited: total and spent waiting for data, in the sessions before this one. resumed: how often it was
    resumed. waiting: share of this session's time spent waiting for data.
    """

    def __init__(self, seconds: float = 0.0, waited: float = 0.0, resumed: int = -1) -> None:
        self.seconds, self.waited, self.resumed = seconds, waited, resumed + 1
        self.began, self.waiting = time.monotonic(), 0.0

    def facts(self) -> dict[str, Any]:
        """Return the seconds in total, the seconds waited for data, and how often the training was resumed."""
        now = time.monotonic() - self.began
        return {"seconds": self.seconds + now, "waited": self.waited + self.waiting * now, "resumed": self.resumed}
