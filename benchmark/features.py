"""Features: an upstream runs once over each clip, heads read the result many times."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.audio import read, samples_at
from benchmark.engine import Engine, in_process, progress
from benchmark.errors import Failure, UserError, failure
from benchmark.files import aside, sweep, write_text
from benchmark.manifest import Clip
from benchmark.plan import Card, Extraction, Setup

HEADER = 128  # bytes before the numbers of an .npy file
SHARD_SECONDS = 120.0  # of audio; what an interruption can lose
IN_MEMORY = 2e9  # bytes of summaries that are read into memory whole
DTYPES: dict[str, np.dtype[Any]] = {"summary": np.dtype("float32"), "frames": np.dtype("float16")}


class Shard(NamedTuple):
    """A file of features. batches: clips that are encoded together."""

    number: int
    batches: tuple[tuple[Clip, ...], ...]

    @property
    def clips(self) -> list[Clip]:
        """In the order in which they are stored."""
        return [clip for batch in self.batches for clip in batch]

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(clip.seconds for clip in self.clips)


class Work(NamedTuple):
    """One shard to write. bare: its extraction without the clips, so that it stays small on its way to a worker."""

    bare: Extraction
    shard: Shard
    setup: Setup


def layout(extraction: Extraction) -> list[Shard]:
    """Clips sorted by length, cut into batches of like lengths and those into shards: the same for the same clips."""
    rate = extraction.card.sample_rate
    clips = sorted(extraction.clips, key=lambda clip: (samples_at(clip.stretch, rate), clip.id))
    longest = max(SHARD_SECONDS, sum(clip.seconds for clip in clips) / 1000)
    shards: list[Shard] = []
    held: list[tuple[Clip, ...]] = []
    seconds = 0.0
    for batch in batches(clips, batch_seconds(extraction.card.parameters)):
        size = sum(clip.seconds for clip in batch)
        if held and seconds + size > longest:
            shards.append(Shard(len(shards), tuple(held)))
            held, seconds = [], 0.0
        held.append(batch)
        seconds += size
    return [*shards, Shard(len(shards), tuple(held))]


def batch_seconds(parameters: int) -> float:
    """Padded audio in one batch: enough to keep arithmetic busy, little enough for caches and memory."""
    return 60.0 if parameters < 1_000_000 else 20.0


def batches(clips: Sequence[Clip], seconds: float) -> Iterator[tuple[Clip, ...]]:
    """Neighbours in order of length, as many as fit into `seconds` of padded audio."""
    held: list[Clip] = []
    for clip in clips:
        if held and clip.seconds * (len(held) + 1) > seconds:
            yield tuple(held)
            held = []
        held.append(clip)
    if held:
        yield tuple(held)


def rows(extraction: Extraction, clips: Sequence[Clip]) -> list[int]:
    """Rows that each clip takes in a shard: one summary, or its frames."""
    card = extraction.card
    if extraction.view == "summary":
        return [1] * len(clips)
    return [card.frames(samples_at(clip.stretch, card.sample_rate)) for clip in clips]


def row_shape(extraction: Extraction) -> tuple[int, int]:
    """(L, D) of one row."""
    card = extraction.card
    return (card.summary_layers, card.summary_dim) if extraction.view == "summary" else (card.layers, card.dim)


def bytes_of(extraction: Extraction, shards: Sequence[Shard]) -> int:
    """Bytes that some shards take on disk, to the byte."""
    layers, dim = row_shape(extraction)
    numbers = sum(sum(rows(extraction, shard.clips)) for shard in shards) * layers * dim
    return numbers * DTYPES[extraction.view].itemsize + HEADER * len(shards)


def size(extraction: Extraction) -> int:
    """Bytes that all shards take on disk."""
    return bytes_of(extraction, layout(extraction))


def folder_of(extraction: Extraction, home: Path) -> Path:
    """Where its shards lie."""
    return home / "features" / extraction.key


def path_of(extraction: Extraction, shard: Shard, home: Path) -> Path:
    """The file of a shard."""
    return folder_of(extraction, home) / f"{shard.number:05d}.npy"


def missing(extraction: Extraction, home: Path) -> list[Shard]:
    """Shards that are not on disk yet, or not whole."""
    return [
        shard
        for shard in layout(extraction)
        if not _whole(path_of(extraction, shard, home), bytes_of(extraction, [shard]))
    ]


def _whole(path: Path, size: int) -> bool:
    """Whether a file has its size and begins as it should: after a power cut it may be short, or all zeros."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(6) == b"\x93NUMPY"
    except FileNotFoundError:
        return False


def bytes_missing(extraction: Extraction, home: Path) -> int:
    """Bytes that `extract` would write now."""
    return bytes_of(extraction, missing(extraction, home))


def hours_missing(extraction: Extraction, home: Path) -> float:
    """Hours of audio that `extract` would encode now."""
    return sum(shard.seconds for shard in missing(extraction, home)) / 3600


def extract(wanted: Iterable[Extraction], setup: Setup, engine: Engine = in_process) -> dict[str, Failure]:
    """Write the shards that are missing; interrupted at any moment, the next call goes on where it stopped.

    Gives what went wrong by extraction key. Raises UserError where the disk has too little room.
    """
    todo = [(each, missing(each, setup.home)) for each in sorted(wanted, key=lambda each: each.card.name)]
    todo = [(each, shards) for each, shards in todo if shards]
    _room(sum(bytes_missing(each, setup.home) for each, _ in todo), setup.home)
    for each, _ in todo:
        sweep(folder_of(each, setup.home))
        about = {"upstream": each.card._asdict(), "view": each.view, "clips": len(each.clips)}
        write_text(setup.home / "extractions" / f"{each.key}.json", json.dumps(about, indent=1))
    work = [Work(each._replace(clips=()), shard, setup) for each, shards in todo for shard in shards]
    _broken.clear()
    results = engine(write_shard, work, "extract features", cost)
    return {item.bare.key: failed for item, failed in zip(work, results, strict=True) if failed}


def cost(work: Work) -> float:
    """How long a shard takes, roughly: for the progress bar only."""
    return work.shard.seconds * (1 + work.bare.card.parameters / 100_000)


def _room(needed: int, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.2f} GB of features do not fit into the {free / 1e9:.2f} GB free at {home}; free some, or"
            " give another --home"
        )


_broken: set[str] = set()  # extractions that failed in this process: their other shards would fail too


def write_shard(work: Work) -> Failure | None:
    """Encode the clips of a shard and write it whole; gives what went wrong, so that others go on."""
    if work.bare.key in _broken:
        return None
    try:
        _write_shard(work)
    except Exception as error:
        _broken.add(work.bare.key)
        return failure(work.bare.card.name, error)
    return None


def _write_shard(work: Work) -> None:
    bare, shard, setup = work
    upstream = upstream_of(bare.card.name, setup.device, setup.precision)
    values = np.empty((sum(rows(bare, shard.clips)), *row_shape(bare)), DTYPES[bare.view])
    at = 0
    for batch, waveforms in prefetched(shard.batches, bare.card.sample_rate):
        for clip, part in zip(batch, encode(upstream, waveforms, bare.view, setup), strict=True):
            (count,) = rows(bare, [clip])
            _sound(bare, clip, part, count)
            values[at : at + count] = part
            at += count
        progress(at, len(values))
    with aside(path_of(bare, shard, setup.home)) as partial, open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.data)  # np.save does not say that a disk is full


def _sound(bare: Extraction, clip: Clip, part: np.ndarray, count: int) -> None:
    name = bare.card.name
    if part.shape != (count, *row_shape(bare)):
        raise UserError(
            f"upstream {name!r} gives clip {clip.id!r} features of shape {part.shape} where its hop, window, layers and"
            f" dim say {(count, *row_shape(bare))}; see: bench check {name}"
        )
    if not np.isfinite(part).all():
        kind = "half precision cannot hold" if bare.view == "frames" else "are not finite numbers"
        hint = "; 'features: live' in the task avoids storing them" if bare.view == "frames" else ""
        raise UserError(
            f"upstream {name!r} gives features of clip {clip.id!r} that {kind}{hint}; see: bench check {name}"
        )


def prefetched(every: Sequence[tuple[Clip, ...]], rate: int) -> Iterator[tuple[tuple[Clip, ...], list[np.ndarray]]]:
    """Batches with their waveforms, the next two being read while one is at work."""
    with ThreadPoolExecutor(1) as reader:
        load = lambda batch: [read(clip.stretch, rate) for clip in batch]  # noqa: E731
        ahead = [reader.submit(load, batch) for batch in every[:2]]
        for place, batch in enumerate(every):
            if place + 2 < len(every):
                ahead.append(reader.submit(load, every[place + 2]))
            yield batch, ahead.pop(0).result()


def padded(waveforms: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Waveforms of (S,) each as one zero-padded tensor (B, S) and lengths (B,)."""
    import torch

    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return batch, lengths


def encode(upstream: Any, waveforms: Sequence[np.ndarray], view: str, setup: Setup) -> list[np.ndarray]:
    """Rows (1 or T, L, D) of each clip; a batch too large for the accelerator's memory is halved until it fits."""
    import torch

    batch, lengths = padded(waveforms)
    try:
        with torch.inference_mode():
            values = _rows(upstream, batch.to(setup.device), lengths.to(setup.device), view)
    except torch.cuda.OutOfMemoryError:
        if len(waveforms) == 1:
            raise
        torch.cuda.empty_cache()
        middle = len(waveforms) // 2
        parts = (waveforms[:middle], waveforms[middle:])
        return [row for part in parts for row in encode(upstream, part, view, setup)]
    return values


def _rows(upstream: Any, batch: Any, lengths: Any, view: str) -> list[np.ndarray]:
    if view == "summary":
        return list(upstream.summarize(batch, lengths).float().cpu().numpy()[:, None])
    frames, valid = upstream(batch, lengths)
    frames = frames.half() if view == "frames" else frames.float()
    return [clip[:count] for clip, count in zip(frames.cpu().numpy(), valid.tolist(), strict=True)]


@lru_cache(maxsize=1)
def upstream_of(name: str, device: str, precision: str) -> Any:
    """Load an upstream, keeping the last one."""
    from upstreams import create
    from upstreams.precision import at

    keep_memory()
    exact(device)
    return at(precision, create(name).to(device).eval())


def exact(device: str) -> None:
    """Full single precision on CUDA, where convolutions otherwise round to ten bits and batches begin to matter."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False


def summary_shape(upstream: Any) -> tuple[int, int]:
    """(L', D') of its summaries, found by encoding a second of noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, upstream.sample_rate, generator=generator) * 0.1
    with torch.inference_mode():
        summary = upstream.summarize(clip, torch.tensor([clip.shape[1]]))
    return int(summary.shape[1]), int(summary.shape[2])


@lru_cache(maxsize=1)
def keep_memory() -> None:
    """Let glibc keep freed memory: faulting fresh pages for every activation costs up to half the speed on a CPU."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(-4, 0)  # M_MMAP_MAX
            library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


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
