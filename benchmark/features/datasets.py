"""What heads train on: stored features, or waveforms for upstreams that run live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.audio import samples_at
from benchmark.features.encoding import padded, prefetched
from benchmark.features.store import layout, path_of, rows
from benchmark.values import Card, Clip, Extraction

IN_MEMORY = 2e9  # bytes of summaries that are read into memory whole


class FeatureSet:
    """Stored features of some clips with their labels: the `Data` that heads train on."""

    def __init__(self, extraction: Extraction, clips: Sequence[Clip], target: str, batch: int, home: Path) -> None:
        self.ids: Sequence[str] = [clip.id for clip in clips]
        self.targets: Sequence[str] = [clip.labels[target] for clip in clips]
        self.batch = batch
        self.view = extraction.view
        self._store = _store(extraction, home)
        self._places = [self._store.index[id] for id in self.ids]
        self._lengths = np.array([count for _, _, count in self._places])

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, epoch: int | None) -> Iterator[Any]:
        """In order of length (None), or in the shuffled order of an epoch, clips of like lengths together."""
        for chosen in order(self._lengths, self.batch, epoch):
            yield self._batch(chosen)

    def _batch(self, chosen: np.ndarray) -> Any:
        import torch

        from downstreams.base import Batch

        parts = [self._store.read(self._places[place]) for place in chosen]
        ids, targets = [self.ids[place] for place in chosen], [self.targets[place] for place in chosen]
        if self.view == "summary":
            return Batch(ids, torch.from_numpy(np.concatenate(parts)), None, targets)
        lengths = torch.from_numpy(self._lengths[chosen])
        frames = torch.zeros(len(parts), int(lengths.max()), *parts[0].shape[1:])
        for row, part in zip(frames, parts, strict=True):
            row[: len(part)] = torch.from_numpy(part.astype(np.float32))
        return Batch(ids, frames, lengths, targets)


def order(lengths: np.ndarray, batch: int, epoch: int | None) -> list[np.ndarray]:
    """Places (B,) of each batch's clips.

    Shuffled, clips are sorted by length within stretches of sixteen batches only, so that batches vary from epoch to
    epoch and little is padded; where all lengths are equal it is a plain shuffle.
    """
    if epoch is None:
        sorted_places = np.argsort(lengths, kind="stable")
        return np.split(sorted_places, range(batch, len(lengths), batch))
    dice = np.random.default_rng([20, epoch])
    places = dice.permutation(len(lengths))
    pools = np.split(places, range(16 * batch, len(places), 16 * batch))
    places = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    cut = np.split(places, range(batch, len(places), batch))
    return [cut[place] for place in dice.permutation(len(cut))]


class _Store:
    """The shards of an extraction, opened once."""

    def __init__(self, extraction: Extraction, home: Path) -> None:
        shards = layout(extraction)
        self.arrays = [np.load(path_of(extraction, shard, home), mmap_mode="r") for shard in shards]
        if extraction.view == "summary" and sum(array.nbytes for array in self.arrays) <= IN_MEMORY:
            self.arrays = [np.array(array) for array in self.arrays]
        self.index: dict[str, tuple[int, int, int]] = {}
        for shard in shards:
            at = 0
            for clip, count in zip(shard.clips, rows(extraction, shard.clips), strict=True):
                self.index[clip.id] = (shard.number, at, count)
                at += count

    def read(self, place: tuple[int, int, int]) -> np.ndarray:
        number, at, count = place
        return self.arrays[number][at : at + count]


_opened: dict[str, _Store] = {}


def _store(extraction: Extraction, home: Path) -> _Store:
    """The last store opened stays open: the splits of a sweep share it."""
    key = f"{home} {extraction.key}"
    if key not in _opened:
        _opened.clear()
        _opened[key] = _Store(extraction, home)
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
        """As `FeatureSet.batches` of frames, clip for clip, with waveforms (B, S)."""
        from downstreams.base import Batch

        chosen = order(self._lengths, self.batch, epoch)
        groups = [tuple(self.clips[place] for place in places) for places in chosen]
        for places, (_, waveforms) in zip(chosen, prefetched(groups, self.rate), strict=True):
            batch, valid = padded(waveforms)
            yield Batch([self.ids[place] for place in places], batch, valid, [self.targets[place] for place in places])
