"""Stretches of clips to pre-train on: which ones each step sees, and reading them ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmark.audio import Stretch, read, samples_at
from benchmark.errors import UserError
from benchmark.manifest import Clip

if TYPE_CHECKING:
    from torch import Tensor

    from upstreams.pretrain import Batch

AHEAD = 3  # batches at most that are read while one is at work
MEMORY = 1 << 30  # bytes that these may take, but for one


class Share(NamedTuple):
    """The part of each step's rows that one process has: its rank of `world`, in `parts` batches one after another."""

    rank: int = 0
    world: int = 1
    parts: int = 1


class Crops:
    """Which stretch of which clip each row of each step is: a pure function of the seed and the step.

    Rows follow one another through epoch after epoch, each in an order of its own. A clip is there once in each, or as
    often as `samples` (at `rate` Hz) go into it, each time from another start. Shorter clips are taken whole.
    seconds: of a row, on average.
    """

    def __init__(self, clips: Sequence[Clip], rate: int, samples: int, batch: int, seed: int) -> None:
        self.clips, self.rate, self.samples, self.batch, self.seed = list(clips), rate, samples, batch, seed
        lengths = np.array([samples_at(clip.stretch, rate) for clip in self.clips])
        times = np.maximum(1, np.rint(lengths / samples)).astype(int)
        self._places = np.repeat(np.arange(len(lengths)), times)
        self.seconds = float(times @ np.minimum(lengths, samples)) / rate / len(self)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return len(self._places)

    def step(self, number: int) -> list[Stretch]:
        """The rows of a step, over all processes."""
        first = number * self.batch
        chosen = [self._clip(*divmod(row, len(self))) for row in range(first, first + self.batch)]
        starts = np.random.default_rng([self.seed, 1, number]).random(self.batch).tolist()
        return [self._cut(clip.stretch, start) for clip, start in zip(chosen, starts, strict=True)]

    def _clip(self, epoch: int, place: int) -> Clip:
        return self.clips[self._places[_order(len(self), self.seed, epoch)[place]]]

    def _cut(self, whole: Stretch, start: float) -> Stretch:
        """As many samples as give `samples` when resampled, or all; start: in [0, 1), of where it could begin."""
        count = min(whole.samples, -(-self.samples * whole.rate // self.rate))
        first = whole.first + int(start * (whole.samples - count + 1))
        return whole._replace(first=first, samples=count)

    def share(self, number: int, share: Share) -> list[list[Stretch]]:
        """The rows of a step that one process has, in batches; no row is in two, and none is left out."""
        rows, stride = self.step(number), share.world * share.parts
        return [rows[share.rank + share.world * part :: stride] for part in range(share.parts)]


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(rows)


def batches(crops: Crops, first: int, last: int, share: Share, readers: int, pinned: bool = False) -> Iterator[Batch]:
    """The batches of one process for the steps [first, last), the next ones being read by so many threads.

    pinned: into memory from which a GPU copies while it computes.
    """
    waiting: deque[_Reading] = deque()
    ahead = max(1, min(AHEAD, MEMORY * share.world * share.parts // (4 * crops.batch * crops.samples)))
    pool = ThreadPoolExecutor(readers)
    try:
        for number in range(first, last):
            for rows in crops.share(number, share):
                waiting.append(_Reading(rows, crops, pool, pinned))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Reading:
    """A batch on its way into memory."""

    def __init__(self, rows: Sequence[Stretch], crops: Crops, pool: ThreadPoolExecutor, pinned: bool) -> None:
        import torch

        self.counts = [min(crops.samples, samples_at(row, crops.rate)) for row in rows]
        self.waveforms = torch.empty(len(rows), max(self.counts), pin_memory=pinned)
        places = zip(self.waveforms, rows, self.counts, strict=True)
        self.reads: list[Future[None]] = [pool.submit(_fill, *place, crops.rate) for place in places]

    def result(self) -> Batch:
        import torch

        from upstreams.pretrain import Batch

        for each in self.reads:
            each.result()
        return Batch(self.waveforms, torch.tensor(self.counts))


def _fill(row: Tensor, stretch: Stretch, count: int, rate: int) -> None:
    import torch

    try:
        waveform = read(stretch, rate)[:count]
    except Exception as error:  # soundfile and the file system have many kinds
        raise UserError(
            f"{stretch.audio} can no longer be read ({error}); put it back, then run the command again"
        ) from error
    if len(waveform) < count:
        raise UserError(f"{stretch.audio} is shorter than it was; run the command again to look over the corpus anew")
    row[:count] = torch.from_numpy(waveform)
    row[count:] = 0.0
