"""Stretches of clips to pre-train on: which ones each step sees, with which labels, and reading them ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmark.data.audio import read, samples_at
from benchmark.errors import UserError
from benchmark.values import Clip, Stretch

if TYPE_CHECKING:
    from torch import Tensor

    from upstreams.pretraining.methods import AudioBatch

AHEAD = 3  # batches at most that are read while one is at work
MEMORY = 1 << 30  # bytes that these may take, but for one
NO_LABELS: Mapping[str, Sequence[Any]] = MappingProxyType({})


class Share(NamedTuple):
    """The part of each step's rows that one process has: its rank of `world`, in `parts` batches one after another."""

    rank: int = 0
    world: int = 1
    parts: int = 1


class SegmentRow(NamedTuple):
    """A stretch of a clip. clip: its place among the clips."""

    clip: int
    stretch: Stretch


class SegmentOrder:
    """Which stretch of which clip each row of each step is: a pure function of the seed and the step.

    Rows follow one another through epoch after epoch, each in an order of its own. A clip is there once in each, or as
    often as `samples` (at `rate` Hz) go into it, each time from another start. Shorter clips are taken whole.

    labels: by kind, the value of each clip, or None. balanced: each clip of an epoch's order leads a group of rows, in
    which for every kind another clip follows that has the same label, where there is one; so that each row has its
    like beside it. seconds: of a row, on average. numbers: by kind (N,) int64, for each clip the place of its label
    among the sorted ones, or UNKNOWN.
    """

    def __init__(
        self, clips: Sequence[Clip], rate: int, samples: int, batch: int, seed: int,
        labels: Mapping[str, Sequence[Any]] = NO_LABELS, balanced: bool = True,
    ) -> None:  # fmt: skip
        self.clips, self.rate, self.samples, self.batch, self.seed = list(clips), rate, samples, batch, seed
        self.numbers = {kind: numbered(values) for kind, values in labels.items()}
        self._likes = [Likes(each) for each in self.numbers.values()] if balanced else []
        lengths = np.array([samples_at(clip.stretch, rate) for clip in self.clips])
        times = np.maximum(1, np.rint(lengths / samples)).astype(int)
        self._leaders = np.repeat(np.arange(len(lengths)), times)
        self._sizes = sum((each.there.astype(int) for each in self._likes), np.ones(len(lengths), int))
        heard = np.minimum(lengths, samples)
        for each in self._likes:
            heard = heard + each.expected(np.minimum(lengths, samples))
        self._rows = int(times @ self._sizes)
        self.seconds = float(times @ heard) / rate / len(self)
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return self._rows

    def step(self, number: int) -> list[SegmentRow]:
        """The rows of a step, over all processes."""
        first = number * self.batch
        starts, draws = (np.random.default_rng([self.seed, use, number]).random(self.batch).tolist() for use in (1, 2))
        chosen = [self._clip(*divmod(first + row, len(self)), draw) for row, draw in enumerate(draws)]
        return [
            SegmentRow(clip, self._cut(self.clips[clip].stretch, at)) for clip, at in zip(chosen, starts, strict=True)
        ]

    def _clip(self, epoch: int, place: int, draw: float) -> int:
        """The clip at a place of an epoch; draw: in [0, 1), of those that could follow their leader."""
        leaders, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        leader, before = int(leaders[group]), int(ends[group]) - place  # rows to the end of the group
        follows = int(self._sizes[leader]) - before
        return [each for each in self._likes if each.there[leader]][follows - 1](leader, draw) if follows else leader

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips that lead groups, and the place behind the end of each group."""
        leaders = self._leaders[np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._leaders))]
        return leaders, np.cumsum(self._sizes[leaders])

    def _cut(self, whole: Stretch, start: float) -> Stretch:
        """As many samples as give `samples` when resampled, or all; start: in [0, 1), of where it could begin."""
        count = min(whole.samples, -(-self.samples * whole.rate // self.rate))
        first = whole.first + int(start * (whole.samples - count + 1))
        return whole._replace(first=first, samples=count)

    def share(self, number: int, share: Share) -> list[list[SegmentRow]]:
        """The rows of a step that one process has, in batches; no row is in two, and none is left out.

        Groups stay together, but for those that the end of a batch goes through.
        """
        rows, stride = self.step(number), share.world * share.parts
        places = [share.rank + share.world * part for part in range(share.parts)]
        if not self._likes:
            return [rows[place::stride] for place in places]
        ends = [len(rows) * place // stride for place in range(stride + 1)]
        return [rows[ends[place] : ends[place + 1]] for place in places]


def numbered(values: Sequence[Any]) -> np.ndarray:
    """The place (N,) int64 of each value among the sorted distinct ones; UNKNOWN for None."""
    from upstreams.pretraining.methods import UNKNOWN

    places = {value: place for place, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([places.get(value, UNKNOWN) for value in values], np.int64)


class Likes:
    """For each clip, the other ones with the same label of one kind. there: (N,) whether there are any."""

    def __init__(self, numbers: np.ndarray) -> None:
        known = numbers >= 0
        self.numbers, self.counts = numbers, np.bincount(numbers[known], minlength=1)
        self.there = known & (self.counts[numbers] > 1)
        self._sorted = np.argsort(numbers, kind="stable")[np.count_nonzero(~known) :]
        self._firsts = np.cumsum(self.counts) - self.counts

    def __call__(self, clip: int, draw: float) -> int:
        """One of them; draw: in [0, 1)."""
        number = self.numbers[clip]
        first, count = self._firsts[number], self.counts[number]
        alike = self._sorted[first : first + count]
        place = int(draw * (count - 1))
        return int(alike[place + (alike[place] >= clip)])

    def expected(self, values: np.ndarray) -> np.ndarray:
        """The mean (N,) of the others' values, 0 where there are none."""
        sums = np.bincount(self.numbers[self.numbers >= 0], values[self.numbers >= 0], len(self.counts))
        others = (sums[self.numbers] - values) / np.maximum(1, self.counts[self.numbers] - 1)
        return np.where(self.there, others, 0.0)


def batches(
    crops: SegmentOrder, first: int, last: int, share: Share, readers: int, pinned: bool = False
) -> Iterator[AudioBatch]:
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

    def __init__(self, rows: Sequence[SegmentRow], crops: SegmentOrder, pool: ThreadPoolExecutor, pinned: bool) -> None:
        import torch

        self.counts = [min(crops.samples, samples_at(row.stretch, crops.rate)) for row in rows]
        clips = [row.clip for row in rows]
        self.labels = {kind: torch.from_numpy(numbers[clips]) for kind, numbers in crops.numbers.items()}
        self.waveforms = torch.empty(len(rows), max(self.counts), pin_memory=pinned)
        places = zip(self.waveforms, (row.stretch for row in rows), self.counts, strict=True)
        self.reads: list[Future[None]] = [pool.submit(_fill, *place, crops.rate) for place in places]

    def result(self) -> AudioBatch:
        import torch

        from upstreams.pretraining.methods import AudioBatch

        for each in self.reads:
            each.result()
        return AudioBatch(self.waveforms, torch.tensor(self.counts), self.labels)


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
