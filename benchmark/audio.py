"""Audio files: look one over once, read stretches of it many times."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHORTEST = 0.025  # seconds; as upstreams.base.Upstream.SHORTEST
LEAD = {"VORBIS": 1 << 18, **{f"MPEG_LAYER_{layer}": 1 << 14 for layer in ("I", "II", "III")}}  # samples; see `_decode`
BLOCK = 1 << 20  # samples looked over at once, so that an hour-long file needs no more memory than a short one


class Inspection(NamedTuple):
    """What one reading of a file found.

    samples: of one channel. rate: Hz. digest: of the file's bytes. problem: why it cannot be used, or "".
    """

    samples: int
    rate: int
    digest: str
    problem: str


class Stretch(NamedTuple):
    """Samples [first, first + samples) of a file with `rate` samples a second."""

    audio: str
    first: int
    samples: int
    rate: int


def inspect(path: str) -> Inspection:
    """Read a whole file once: can it be decoded, is it long enough, are all its samples finite?"""
    import soundfile

    try:
        content = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except OSError as error:
        return Inspection(0, 0, "", f"cannot be opened ({error.strerror})")
    if Path(path).stat().st_size == 0:
        return Inspection(0, 0, content.hexdigest(), "is an empty file")
    try:
        with soundfile.SoundFile(path) as sound:
            samples, rate, problem = _look_over(sound)
    except (soundfile.SoundFileError, RuntimeError) as error:
        return Inspection(
            0, 0, content.hexdigest(), f"is not readable audio ({str(error).rstrip('.').split(': ')[-1]})"
        )
    return Inspection(samples, rate, content.hexdigest(), problem)


def _look_over(sound) -> tuple[int, int, str]:  # type: ignore[no-untyped-def]
    samples = 0
    finite = True
    for block in sound.blocks(blocksize=BLOCK, dtype="float32", always_2d=True):
        samples += len(block)
        finite = finite and bool(np.isfinite(block).all())
    if samples == 0:
        return 0, sound.samplerate, "holds no samples"
    if not finite:
        return samples, sound.samplerate, "holds samples that are not finite numbers (NaN or infinity)"
    if samples < SHORTEST * sound.samplerate:
        return samples, sound.samplerate, f"is {samples / sound.samplerate:.4f} s long, shorter than {SHORTEST} s"
    return samples, sound.samplerate, ""


def samples_at(stretch: Stretch, rate: int) -> int:
    """Samples that `read` gives."""
    return -(-stretch.samples * rate // stretch.rate)


def read(stretch: Stretch, rate: int) -> np.ndarray:
    """The stretch as float32 (S,) at `rate` Hz: channels averaged, resampled by soxr's HQ recipe where rates differ."""
    import soundfile

    with soundfile.SoundFile(stretch.audio) as sound:
        channels = _decode(sound, stretch.first, stretch.samples)
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if stretch.rate == rate:
        return np.ascontiguousarray(mono)
    import soxr

    wanted = samples_at(stretch, rate)
    converted = soxr.resample(mono, stretch.rate, rate, quality="HQ")[:wanted]
    return np.pad(converted, (0, wanted - len(converted))).astype(np.float32)


def _decode(sound, first: int, samples: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Samples (S, channels) as they are when the whole file is decoded.

    After a jump libsndfile decodes otherwise at first: MP3 misses the bits that earlier frames lent, Vorbis may be off
    by many samples until the next page (of 255 packets at most). So it jumps ahead, and that part is thrown away.
    """
    lead = min(first, LEAD.get(sound.subtype, 0))
    with _silenced() if lead else nullcontext():
        sound.seek(first - lead)
        return sound.read(lead + samples, dtype="float32", always_2d=True)[lead:]


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep libmpg123 from printing a line for each jump; Python's own stderr is not touched."""
    try:
        stream = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    except (OSError, TypeError, ValueError):  # another C library than Linux has
        yield
        return
    _Silence.begin(stream)
    try:
        yield
    finally:
        _Silence.end(stream)


class _Silence:
    """Threads that read at once share one silence: the first begins it, and the last ends it."""

    lock = threading.Lock()
    readers = 0
    before: int | None = None

    @classmethod
    def begin(cls, stream: ctypes.c_void_p) -> None:
        with cls.lock:
            if cls.readers == 0:
                cls.before, stream.value = stream.value, _nowhere()
            cls.readers += 1

    @classmethod
    def end(cls, stream: ctypes.c_void_p) -> None:
        with cls.lock:
            cls.readers -= 1
            if cls.readers == 0:
                stream.value = cls.before


@cache
def _nowhere() -> int:
    """A C stream that swallows what is printed to it."""
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    return int(library.fopen(os.devnull.encode(), b"w"))
