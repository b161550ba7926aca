"""Features: an upstream runs once over each clip, heads read the result many times."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.data.audio import samples_at
from benchmark.engines.local import in_process, progress
from benchmark.errors import Failure, UserError, failure
from benchmark.features.encoding import encode, prefetched, upstream_of
from benchmark.files import aside, digest, remove_partial_files, write_text
from benchmark.values import Card, Clip, Engine, Extraction, Setup

HEADER = 128  # bytes before the numbers of an .npy file
SHARD_SECONDS = 120.0  # of audio; what an interruption can lose
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
    _room(sum(bytes_of(each, shards) for each, shards in todo), setup.home)
    for each, _ in todo:
        remove_partial_files(folder_of(each, setup.home))
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


def extraction(card: Card, view: str, clips: Iterable[Clip]) -> Extraction:
    """The extraction of these clips, whatever the upstream and the corpus are called and wherever they lie."""
    wanted = tuple(clips)
    content = [list(card._replace(name="").identity.values()), view, [[clip.id, clip.digest] for clip in wanted]]
    return Extraction(card, view, wanted, digest(content)[:32])
