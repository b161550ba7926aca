"""Segments of clips to pre-train on: the segments of each step, their labels, and reading them in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmark.data.audio import read_stretch, samples_at
from benchmark.errors import UserError
from benchmark.values import Clip, Stretch

if TYPE_CHECKING:
    from torch import Tensor

    from upstreams.pretraining.methods import AudioBatch

MAX_BATCHES_AHEAD = 3  # most batches that are read while one is in use
READ_AHEAD_BYTES = 1 << 30  # bytes that these batches may take; one is always read in advance
NO_LABELS: Mapping[str, Sequence[Any]] = MappingProxyType({})


class Share(NamedTuple):
    """The share of one process in the rows of each step: rank `rank` of `world`, in `parts` successive batches."""

    rank: int = 0
    world: int = 1
    parts: int = 1


class SegmentRow(NamedTuple):
    """A segment of a clip. clip: index of the clip."""

    clip: int
    stretch: Stretch


class SegmentOrder:
    """The clip and segment of each row of each step: a pure function of the seed and the step.

    Steps go through epoch after epoch, each in another random order. An epoch has round(length / `samples`) segments of
    a clip, but at least one, each with a random start; `samples` is at `rate` Hz. Shorter clips are taken whole.

    labels: by kind, the value of each clip, or None. balanced: whether each clip in the order of an epoch leads a group
    of rows, in which for every kind another clip with the same label follows, where there is one; each row then has a
    positive example beside it. seconds: mean duration of a row. numbers: by kind (N,) int64, the index of each clip's
    label among the sorted labels, or UNKNOWN.
    """

    def __init__(
        self, clips: Sequence[Clip], rate: int, samples: int, batch: int, seed: int,
        labels: Mapping[str, Sequence[Any]] = NO_LABELS, balanced: bool = True,
    ) -> None:  # fmt: skip
        self.clips, self.rate, self.samples, self.batch, self.seed = list(clips), rate, samples, batch, seed
        self.numbers = {kind: label_numbers(values) for kind, values in labels.items()}
        self._same = [SameLabelClips(numbers) for numbers in self.numbers.values()] if balanced else []
        lengths = np.array([samples_at(clip.stretch, rate) for clip in self.clips])
        times = np.maximum(1, np.rint(lengths / samples)).astype(int)
        self._leaders = np.repeat(np.arange(len(lengths)), times)
        self._sizes = sum((same.exists.astype(int) for same in self._same), np.ones(len(lengths), int))
        heard = np.minimum(lengths, samples)
        for same in self._same:
            heard = heard + same.expected(np.minimum(lengths, samples))
        self._rows = int(times @ self._sizes)
        self.seconds = float(times @ heard) / rate / len(self)
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    def __len__(self) -> int:
        """The number of rows in an epoch."""
        return self._rows

    def step(self, number: int) -> list[SegmentRow]:
        """Return the rows of step `number`, over all processes."""
        first = number * self.batch
        starts, draws = (np.random.default_rng([self.seed, use, number]).random(self.batch).tolist() for use in (1, 2))
        chosen = [self._clip(*divmod(first + row, len(self)), draw) for row, draw in enumerate(draws)]
        return [
            SegmentRow(clip, self._cut(self.clips[clip].stretch, at)) for clip, at in zip(chosen, starts, strict=True)
        ]

    def _clip(self, epoch: int, place: int, draw: float) -> int:
        """The clip at a position of an epoch; draw: in [0, 1), chooses among the clips that can follow a leader."""
        leaders, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        leader, before = int(leaders[group]), int(ends[group]) - place  # rows from here to the end of the group
        follows = int(self._sizes[leader]) - before
        if not follows:
            return leader
        return [same for same in self._same if same.exists[leader]][follows - 1](leader, draw)

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips that lead groups, in the order of an epoch, and the position after the end of each group."""
        leaders = self._leaders[np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._leaders))]
        return leaders, np.cumsum(self._sizes[leaders])

    def _cut(self, whole: Stretch, start: float) -> Stretch:
        """A segment that has `samples` samples when resampled, or all of it; start: in [0, 1), chooses its start."""
        count = min(whole.samples, -(-self.samples * whole.rate // self.rate))
        first = whole.first + int(start * (whole.samples - count + 1))
        return whole._replace(first=first, samples=count)

    def share(self, number: int, share: Share) -> list[list[SegmentRow]]:
        """Return the rows of one process in a step, in batches; over all processes each row is in exactly one batch.

        Groups stay together, except where a batch ends within one.
        """
        rows, stride = self.step(number), share.world * share.parts
        places = [share.rank + share.world * part for part in range(share.parts)]
        if not self._same:
            return [rows[place::stride] for place in places]
        ends = [len(rows) * place // stride for place in range(stride + 1)]
        return [rows[ends[place] : ends[place + 1]] for place in places]


def label_numbers(values: Sequence[Any]) -> np.ndarray:
    """Return the index (N,) int64 of each value among the sorted distinct values; UNKNOWN for None."""
    from upstreams.pretraining.methods import UNKNOWN

    places = {value: place for place, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([places.get(value, UNKNOWN) for value in values], np.int64)


class SameLabelClips:
    """For each clip, the other clips with the same label of one kind. exists: (N,) whether there are any."""

    def __init__(self, numbers: np.ndarray) -> None:
        known = numbers >= 0
        self.numbers, self.counts = numbers, np.bincount(numbers[known], minlength=1)
        self.exists = known & (self.counts[numbers] > 1)
        self._sorted = np.argsort(numbers, kind="stable")[np.count_nonzero(~known) :]
        self._firsts = np.cumsum(self.counts) - self.counts

    def __call__(self, clip: int, draw: float) -> int:
        """Return the index of one of the clips with the label of `clip`; draw: in [0, 1), chooses it."""
        number = self.numbers[clip]
        first, count = self._firsts[number], self.counts[number]
        alike = self._sorted[first : first + count]
        place = int(draw * (count - 1))
        return int(alike[place + (alike[place] >= clip)])

    def expected(self, values: np.ndarray) -> np.ndarray:
        """Return the mean (N,) of the values of the other clips with the same label, 0 where there are none."""
        sums = np.bincount(self.numbers[self.numbers >= 0], values[self.numbers >= 0], len(self.counts))
        others = (sums[self.numbers] - values) / np.maximum(1, self.counts[self.numbers] - 1)
        return np.where(self.exists, others, 0.0)


def batches(
    order: SegmentOrder, first: int, last: int, share: Share, readers: int, pinned: bool = False
) -> Iterator[AudioBatch]:
    """Yield the batches of one process for the steps [first, last), while `readers` threads read the next ones.

    pinned: whether to read into pinned memory, from which a GPU can copy while it computes.
    Raises UserError where a file can no longer be read, or is shorter than before.
    """
    waiting: deque[_Reading] = deque()
    ahead = max(
        1, min(MAX_BATCHES_AHEAD, READ_AHEAD_BYTES * share.world * share.parts // (4 * order.batch * order.samples))
    )
    executor = ThreadPoolExecutor(readers)
    try:
        for number in range(first, last):
            for rows in order.share(number, share):
                waiting.append(_Reading(rows, order, executor, pinned))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


class _Reading:
    """A batch that is being read into memory."""

    def __init__(
        self, rows: Sequence[SegmentRow], order: SegmentOrder, executor: ThreadPoolExecutor, pinned: bool
    ) -> None:
        import torch

        self.counts = [min(order.samples, samples_at(row.stretch, order.rate)) for row in rows]
        clips = [row.clip for row in rows]
        self.labels = {kind: torch.from_numpy(numbers[clips]) for kind, numbers in order.numbers.items()}
        self.waveforms = torch.empty(len(rows), max(self.counts), pin_memory=pinned)
        places = zip(self.waveforms, (row.stretch for row in rows), self.counts, strict=True)
        self.reads: list[Future[None]] = [executor.submit(_fill, *place, order.rate) for place in places]

    def result(self) -> AudioBatch:
        import torch

        from upstreams.pretraining.methods import AudioBatch

        for read in self.reads:
            read.result()
        return AudioBatch(self.waveforms, torch.tensor(self.counts), self.labels)


def _fill(row: Tensor, stretch: Stretch, count: int, rate: int) -> None:
    import torch

    try:
        waveform = read_stretch(stretch, rate)[:count]
    except Exception as error:  # soundfile and the file system raise many kinds of errors
        raise UserError(
            f"{stretch.audio} can no longer be read ({error}); restore it, then run the command again"
        ) from error
    if len(waveform) < count:
        raise UserError(f"{stretch.audio} is shorter than it was; run the command again to inspect the corpus anew")
    row[:count] = torch.from_numpy(waveform)
    row[count:] = 0.0
