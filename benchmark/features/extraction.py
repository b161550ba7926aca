"""The layout of an extraction: which clips lie in which file of features, in which order, and the sizes of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmark.data.audio import samples_at
from benchmark.files import digest
from benchmark.values import Card, Clip, Extraction

HEADER = 128  # bytes before the numbers of an .npy file
SHARD_SECONDS = 120.0  # of audio; an interruption loses at most one shard
DTYPES: dict[str, np.dtype[Any]] = {"summary": np.dtype("float32"), "frames": np.dtype("float16")}
CACHED_LAYOUTS = 64


class Shard(NamedTuple):
    """One file of features (rows, L, D).

    batches: clips that are encoded together, in the order in which they are stored.
    counts: the rows of each clip in that order: one for a summary, else the clip's number of frames.
    """

    number: int
    batches: tuple[tuple[Clip, ...], ...]
    counts: tuple[int, ...]

    @property
    def clips(self) -> list[Clip]:
        """The clips in the order in which they are stored."""
        return [clip for batch in self.batches for clip in batch]

    @property
    def seconds(self) -> float:
        """The duration of the audio."""
        return sum(clip.seconds for clip in self.clips)

    @property
    def rows(self) -> int:
        """The number of rows of all clips."""
        return sum(self.counts)


_layouts: dict[str, tuple[tuple[Clip, ...], tuple[Shard, ...]]] = {}  # by extraction key, with the clips laid out


def make_extraction(card: Card, view: str, clips: Iterable[Clip]) -> Extraction:
    """Return the extraction of these clips; its key depends neither on the upstream's name nor on the audio's paths."""
    clips = tuple(clips)
    content = [list(card._replace(name="").identity.values()), view, [[clip.id, clip.digest] for clip in clips]]
    return Extraction(card, view, clips, digest(content)[:32])


def layout(extraction: Extraction) -> tuple[Shard, ...]:
    """Return the shards of an extraction, computed once per process.

    Clips are sorted by length, grouped into batches of similar lengths, and the batches into shards. Equal keys may
    come with other paths, as after a corpus was moved; such an extraction is laid out anew.
    """
    clips, shards = _layouts.get(extraction.key, ((), ()))
    if not shards or clips != extraction.clips:
        _layouts.pop(extraction.key, None)
        shards = _lay_out(extraction)
        _layouts[extraction.key] = extraction.clips, shards
        if len(_layouts) > CACHED_LAYOUTS:
            del _layouts[next(iter(_layouts))]
    return shards


def _lay_out(extraction: Extraction) -> tuple[Shard, ...]:
    rate = extraction.card.sample_rate
    clips = sorted(extraction.clips, key=lambda clip: (samples_at(clip.stretch, rate), clip.id))
    longest = max(SHARD_SECONDS, sum(clip.seconds for clip in clips) / 1000)
    groups: list[list[tuple[Clip, ...]]] = [[]]
    seconds = 0.0
    for batch in length_batches(clips, batch_seconds(extraction.card.parameters)):
        duration = sum(clip.seconds for clip in batch)
        if groups[-1] and seconds + duration > longest:
            groups.append([])
            seconds = 0.0
        groups[-1].append(batch)
        seconds += duration
    return tuple(
        Shard(number, tuple(batches), tuple(_row_count(extraction, clip) for batch in batches for clip in batch))
        for number, batches in enumerate(groups)
    )


def batch_seconds(parameters: int) -> float:
    """Return the seconds of padded audio per batch: enough for throughput, small enough for caches and memory."""
    return 60.0 if parameters < 1_000_000 else 20.0


def length_batches(clips: Sequence[Clip], seconds: float) -> Iterator[tuple[Clip, ...]]:
    """Split clips in order of length into batches of at most `seconds` of padded audio, or of one longer clip."""
    batch: list[Clip] = []
    for clip in clips:
        if batch and clip.seconds * (len(batch) + 1) > seconds:
            yield tuple(batch)
            batch = []
        batch.append(clip)
    if batch:
        yield tuple(batch)


def _row_count(extraction: Extraction, clip: Clip) -> int:
    card = extraction.card
    return 1 if extraction.view == "summary" else card.frames(samples_at(clip.stretch, card.sample_rate))


def row_shape(extraction: Extraction) -> tuple[int, int]:
    """Return (L, D) of one row."""
    card = extraction.card
    return (card.summary_layers, card.summary_dim) if extraction.view == "summary" else (card.layers, card.dim)


def shard_bytes(extraction: Extraction, shards: Sequence[Shard]) -> int:
    """Return the exact size of these shards on disk in bytes."""
    layers, dim = row_shape(extraction)
    numbers = sum(shard.rows for shard in shards) * layers * dim
    return numbers * DTYPES[extraction.view].itemsize + HEADER * len(shards)


def extraction_bytes(extraction: Extraction) -> int:
    """Return the exact size of all shards on disk in bytes."""
    return shard_bytes(extraction, layout(extraction))
