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

from benchmark.values import Stretch

SHORTEST = 0.025  # seconds; as upstreams.base.Upstream.SHORTEST
LEAD = {"VORBIS": 1 << 18, **{f"MPEG_LAYER_{layer}": 1 << 14 for layer in ("I", "II", "III")}}  # samples; see `_decode`
BLOCK = 1 << 20  # samples looked over at once, so that an hour-long file needs no more memory than a short one


class Inspection(NamedTuple):
    """What one reading of a file found.

    samples: of one channel. rate: Hz. digest: of the file's bytes. problem: why it cannot be used, or "".
    content: digest of the rate and of the samples, channels averaged as `read` does; "" where they cannot be decoded.
    It is the same for the same audio under another name, beside other metadata, in another lossless container or with
    its one channel twice. A copy that was resampled, amplified, shifted or compressed with loss has another one.
    """

    samples: int
    rate: int
    digest: str
    problem: str
    content: str = ""


def inspect(path: str) -> Inspection:
    """Read a whole file once: can it be decoded, is it long enough, are all its samples finite?"""
    import soundfile

    try:
        whole = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    except OSError as error:
        return Inspection(0, 0, "", f"cannot be opened ({error.strerror})")
    if Path(path).stat().st_size == 0:
        return Inspection(0, 0, whole.hexdigest(), "is an empty file")
    try:
        with soundfile.SoundFile(path) as sound:
            return _look_over(sound, whole.hexdigest())
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = str(error).rstrip(".").split(": ")[-1]
        return Inspection(0, 0, whole.hexdigest(), f"is not readable audio ({reason})")


def _look_over(sound, code: str) -> Inspection:  # type: ignore[no-untyped-def]
    """code: digest of the file's bytes."""
    samples, finite = 0, True
    content = hashlib.blake2b(str(sound.samplerate).encode(), digest_size=16)
    for block in sound.blocks(blocksize=BLOCK, dtype="float32", always_2d=True):
        samples += len(block)
        finite = finite and bool(np.isfinite(block).all())
        content.update(_mono(block) + np.float32(0))  # -0 sounds like 0
    problem = _problem(samples, sound.samplerate, finite)
    return Inspection(samples, sound.samplerate, code, problem, content.hexdigest() if samples else "")


def _problem(samples: int, rate: int, finite: bool) -> str:
    if samples == 0:
        return "holds no samples"
    if not finite:
        return "holds samples that are not finite numbers (NaN or infinity)"
    if samples < SHORTEST * rate:
        return f"is {samples / rate:.4f} s long, shorter than {SHORTEST} s"
    return ""


def samples_at(stretch: Stretch, rate: int) -> int:
    """Samples that `read` gives."""
    return -(-stretch.samples * rate // stretch.rate)


def read(stretch: Stretch, rate: int) -> np.ndarray:
    """The stretch as float32 (S,) at `rate` Hz: channels averaged, resampled by soxr's HQ recipe where rates differ."""
    import soundfile

    with soundfile.SoundFile(stretch.audio) as sound:
        channels = _decode(sound, stretch.first, stretch.samples)
    mono = _mono(channels)
    if stretch.rate == rate:
        return np.ascontiguousarray(mono)
    import soxr

    wanted = samples_at(stretch, rate)
    converted = soxr.resample(mono, stretch.rate, rate, quality="HQ")[:wanted]
    return np.pad(converted, (0, wanted - len(converted))).astype(np.float32)


def _mono(channels: np.ndarray) -> np.ndarray:
    """Samples (S, channels) with their channels averaged, (S,)."""
    return channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)


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
