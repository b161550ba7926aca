"""How far a pre-training is: its step, its losses, the time it took and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmark.engines.local import mapped, progress

if TYPE_CHECKING:
    from upstreams.pretraining.loop import TrainingProgress

PAUSE = 10.0  # seconds from one printed line to the next

Show = Callable[["TrainingProgress"], None]


@contextmanager
def training_bar(title: str) -> Iterator[Show]:
    """A bar with losses and the time left on a terminal; elsewhere a line every ten seconds; in an engine, its own."""
    if mapped():
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
        TextColumn("{task.fields[told]}", markup=False, table_column=rest),
    )  # fmt: skip
    left = time_left()
    with Bar(*columns, console=Console(stderr=True), expand=True) as drawn:
        task = drawn.add_task(title, total=None, at="starting", left="?", told="")
        yield lambda at: drawn.update(
            task, total=at.steps, completed=at.step, at=f"{at.step}/{at.steps}", left=left(at), told=told(at)
        )


def _printed(title: str) -> Iterator[Show]:
    left = time_left()
    last = time.monotonic()

    def show(at: TrainingProgress) -> None:
        nonlocal last
        about = left(at)
        if time.monotonic() - last >= PAUSE or at.step == at.steps:
            last = time.monotonic()
            end = f"done in {clock(at.seconds)}" if at.step == at.steps else f"about {about} left"
            waiting = f"{at.waiting:.0%} of the time waiting for data"
            line = f"{title}: step {at.step}/{at.steps}, {terms(at.terms)}; {end}, {waiting}"
            print(line, file=sys.stderr, flush=True)

    yield show


def time_left() -> Callable[[TrainingProgress], str]:
    """Estimates from the speed since the first report, as a resumed training did not make the steps before it."""
    first: list[tuple[int, float]] = []

    def estimate(at: TrainingProgress) -> str:
        if not first:
            first.append((at.step, at.seconds))
        step, seconds = first[0]
        return clock((at.seconds - seconds) / (at.step - step) * (at.steps - at.step)) if at.step > step else "?"

    return estimate


def told(at: TrainingProgress) -> str:
    """The terms, after the share of time spent waiting for data where that is worth a look."""
    waiting = f"waits for data {at.waiting:.0%}, " if at.waiting > 0.1 else ""
    return waiting + terms(at.terms)


def terms(values: Mapping[str, float]) -> str:
    """The loss and what else is watched, in short."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def clock(seconds: float) -> str:
    """Hours (where there are any), minutes and seconds."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Stopwatch:
    """How long a training took, over all times that it was resumed. waiting: share of the time since the last."""

    def __init__(self, seconds: float = 0.0, waited: float = 0.0, resumed: int = -1) -> None:
        self.seconds, self.waited, self.resumed = seconds, waited, resumed + 1
        self.began, self.waiting = time.monotonic(), 0.0

    def facts(self) -> dict[str, Any]:
        """Seconds in all, seconds waited for data, and how often it was resumed."""
        now = time.monotonic() - self.began
        return {"seconds": self.seconds + now, "waited": self.waited + self.waiting * now, "resumed": self.resumed}
