"""The store of features on disk: write the shards that are missing, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.engines.local import in_process, progress
from benchmark.errors import Failure, UserError, as_failure
from benchmark.features.encoding import encode_clips, load_upstream, read_ahead
from benchmark.features.extraction import DTYPES, Shard, layout, row_shape, shard_bytes
from benchmark.files import atomic_path, remove_partial_files, write_text
from benchmark.values import Clip, Engine, Extraction, Setup


class Work(NamedTuple):
    """One shard to write. bare: its extraction without the clips, so that little data is sent to a worker process."""

    bare: Extraction
    shard: Shard
    setup: Setup


def extraction_folder(extraction: Extraction, home: Path) -> Path:
    """Return the folder of an extraction's shards."""
    return home / "features" / extraction.key


def shard_path(extraction: Extraction, shard: Shard, home: Path) -> Path:
    """Return the file of a shard."""
    return extraction_folder(extraction, home) / f"{shard.number:05d}.npy"


def missing_shards(extraction: Extraction, home: Path) -> list[Shard]:
    """Return the shards that are not on disk or not complete."""
    return [
        shard
        for shard in layout(extraction)
        if not _is_complete(shard_path(extraction, shard, home), shard_bytes(extraction, [shard]))
    ]


def _is_complete(path: Path, size: int) -> bool:
    """Whether a file has `size` bytes and starts as an .npy file: after a power cut it may be short, or all zeros."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(6) == b"\x93NUMPY"
    except FileNotFoundError:
        return False


def bytes_missing(extraction: Extraction, home: Path) -> int:
    """Return the bytes that `extract_features` would write now."""
    return shard_bytes(extraction, missing_shards(extraction, home))


def hours_missing(extraction: Extraction, home: Path) -> float:
    """Return the hours of audio that `extract_features` would encode now."""
    return sum(shard.seconds for shard in missing_shards(extraction, home)) / 3600


def extract_features(wanted: Iterable[Extraction], setup: Setup, engine: Engine = in_process) -> dict[str, Failure]:
    """Write the shards that are missing; after an interruption the next call continues where this one stopped.

    Returns the failures by extraction key. Raises UserError where the disk has too little free space.
    """
    extractions = sorted(wanted, key=lambda extraction: extraction.card.name)
    todo = [(extraction, missing_shards(extraction, setup.home)) for extraction in extractions]
    todo = [(extraction, shards) for extraction, shards in todo if shards]
    _check_free_space(sum(shard_bytes(extraction, shards) for extraction, shards in todo), setup.home)
    for extraction, _ in todo:
        remove_partial_files(extraction_folder(extraction, setup.home))
        about = {"upstream": extraction.card._asdict(), "view": extraction.view, "clips": len(extraction.clips)}
        write_text(setup.home / "extractions" / f"{extraction.key}.json", json.dumps(about, indent=1))
    work = [Work(extraction._replace(clips=()), shard, setup) for extraction, shards in todo for shard in shards]
    _broken.clear()
    results = engine(write_shard, work, "extract features", shard_cost)
    return {item.bare.key: failed for item, failed in zip(work, results, strict=True) if failed}


def shard_cost(work: Work) -> float:
    """Return the rough relative duration of writing a shard, for the progress bar only."""
    return work.shard.seconds * (1 + work.bare.card.parameters / 100_000)


def _check_free_space(needed: int, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.2f} GB of features do not fit into the {free / 1e9:.2f} GB free at {home}; free some, or"
            " give another --home"
        )


_broken: set[str] = set()  # keys of extractions that failed in this process: their other shards would fail too


def write_shard(work: Work) -> Failure | None:
    """Encode the clips of a shard and write the file; return an exception as a Failure, so that other shards go on."""
    if work.bare.key in _broken:
        return None
    try:
        _write_shard(work)
    except Exception as error:
        _broken.add(work.bare.key)
        return as_failure(work.bare.card.name, error)
    return None


def _write_shard(work: Work) -> None:
    bare, shard, setup = work
    upstream = load_upstream(bare.card.name, setup.device, setup.precision)
    values = np.empty((shard.rows, *row_shape(bare)), DTYPES[bare.view])
    counts = iter(shard.counts)
    start = 0
    for batch, waveforms in read_ahead(shard.batches, bare.card.sample_rate):
        for clip, features in zip(batch, encode_clips(upstream, waveforms, bare.view, setup), strict=True):
            count = next(counts)
            _check_features(bare, clip, features, count)
            values[start : start + count] = features
            start += count
        progress(start, len(values))
    with atomic_path(shard_path(bare, shard, setup.home)) as partial, open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.data)  # np.save does not report a full disk


def _check_features(bare: Extraction, clip: Clip, features: np.ndarray, count: int) -> None:
    """Raise UserError unless a clip's features are `count` rows of the card's shape and all finite."""
    name = bare.card.name
    if features.shape != (count, *row_shape(bare)):
        raise UserError(
            f"upstream {name!r} gives clip {clip.id!r} features of shape {features.shape} where its hop, window, layers"
            f" and dim say {(count, *row_shape(bare))}; see: bench check {name}"
        )
    if not np.isfinite(features).all():
        kind = "half precision cannot hold" if bare.view == "frames" else "are not finite numbers"
        hint = "; 'features: live' in the task avoids storing them" if bare.view == "frames" else ""
        raise UserError(
            f"upstream {name!r} gives features of clip {clip.id!r} that {kind}{hint}; see: bench check {name}"
        )
