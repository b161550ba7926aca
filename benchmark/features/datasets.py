"""The datasets that heads train on: stored features, or waveforms for upstreams that run live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.audio import samples_at
from benchmark.features.encoding import pad_waveforms, read_ahead
from benchmark.features.extraction import layout
from benchmark.features.store import shard_path
from benchmark.values import Card, Clip, Extraction

IN_MEMORY = 2e9  # bytes of summaries up to which they are read into memory instead of memory-mapped


class FeatureSet:
    """Stored features of some clips with their labels: a `downstreams.feed.Dataset`."""

    def __init__(self, extraction: Extraction, clips: Sequence[Clip], target: str, batch: int, home: Path) -> None:
        self.ids: Sequence[str] = [clip.id for clip in clips]
        self.targets: Sequence[str] = [clip.labels[target] for clip in clips]
        self.batch = batch
        self.view = extraction.view
        self._shards = _open_shards(extraction, home)
        self._slices = [self._shards.index[id] for id in self.ids]
        self._lengths = np.array([count for _, _, count in self._slices])

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, epoch: int | None) -> Iterator[Any]:
        """Yield batches in order of length (epoch None), or in the shuffled order of an epoch; see `batch_order`."""
        for places in batch_order(self._lengths, self.batch, epoch):
            yield self._batch(places)

    def _batch(self, places: np.ndarray) -> Any:
        import torch

        from downstreams.base import Batch

        parts = [self._shards.read(self._slices[place]) for place in places]
        ids, targets = [self.ids[place] for place in places], [self.targets[place] for place in places]
        if self.view == "summary":
            return Batch(ids, torch.from_numpy(np.concatenate(parts)), None, targets)
        lengths = torch.from_numpy(self._lengths[places])
        frames = torch.zeros(len(parts), int(lengths.max()), *parts[0].shape[1:])
        for row, part in zip(frames, parts, strict=True):
            row[: len(part)] = torch.from_numpy(part.astype(np.float32))
        return Batch(ids, frames, lengths, targets)


def batch_order(lengths: np.ndarray, batch: int, epoch: int | None) -> list[np.ndarray]:
    """Return the indices (B,) of the clips of each batch.

    For an epoch, clips are shuffled and then sorted by length within groups of sixteen batches, so that batches differ
    from epoch to epoch and contain little padding. If all lengths are equal, this is a plain shuffle. For None, clips
    are in order of length.
    """
    if epoch is None:
        sorted_places = np.argsort(lengths, kind="stable")
        return np.split(sorted_places, range(batch, len(lengths), batch))
    rng = np.random.default_rng([20, epoch])
    places = rng.permutation(len(lengths))
    groups = np.split(places, range(16 * batch, len(places), 16 * batch))
    places = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
    batches = np.split(places, range(batch, len(places), batch))
    return [batches[number] for number in rng.permutation(len(batches))]


class _OpenShards:
    """The arrays of all shards of an extraction; `index` maps a clip id to (shard number, first row, rows)."""

    def __init__(self, extraction: Extraction, home: Path) -> None:
        shards = layout(extraction)
        self.arrays = [np.load(shard_path(extraction, shard, home), mmap_mode="r") for shard in shards]
        if extraction.view == "summary" and sum(array.nbytes for array in self.arrays) <= IN_MEMORY:
            self.arrays = [np.array(array) for array in self.arrays]
        self.index: dict[str, tuple[int, int, int]] = {}
        for shard in shards:
            start = 0
            for clip, count in zip(shard.clips, shard.counts, strict=True):
                self.index[clip.id] = (shard.number, start, count)
                start += count

    def read(self, rows: tuple[int, int, int]) -> np.ndarray:
        number, start, count = rows
        return self.arrays[number][start : start + count]


_opened: dict[str, _OpenShards] = {}


def _open_shards(extraction: Extraction, home: Path) -> _OpenShards:
    """Open the shards of an extraction; the last ones stay open, because the splits of a sweep share them."""
    key = f"{home} {extraction.key}"
    if key not in _opened:
        _opened.clear()
        _opened[key] = _OpenShards(extraction, home)
    return _opened[key]


class AudioSet:
    """Waveforms of some clips with their labels, for upstreams that run live or are fine-tuned."""

    def __init__(self, clips: Sequence[Clip], target: str, batch: int, card: Card) -> None:
        self.clips = list(clips)
        self.ids: Sequence[str] = [clip.id for clip in clips]
        self.targets: Sequence[str] = [clip.labels[target] for clip in clips]
        self.batch = batch
        self.rate = card.sample_rate
        self._lengths = np.array([card.frames(samples_at(clip.stretch, self.rate)) for clip in clips])

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, epoch: int | None) -> Iterator[Any]:
        """Yield the same clips in the same order as `FeatureSet.batches` of frames, with waveforms (B, S)."""
        from downstreams.base import Batch

        order = batch_order(self._lengths, self.batch, epoch)
        groups = [tuple(self.clips[place] for place in places) for places in order]
        for places, (_, waveforms) in zip(order, read_ahead(groups, self.rate), strict=True):
            batch, valid = pad_waveforms(waveforms)
            yield Batch([self.ids[place] for place in places], batch, valid, [self.targets[place] for place in places])
