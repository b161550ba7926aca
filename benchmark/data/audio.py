"""Audio files: inspecting a file once, and reading stretches of it."""

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
BLOCK = 1 << 20  # samples per block of an inspection, so that its memory does not grow with the length of the file


class Inspection(NamedTuple):
    """The result of inspecting a file.

    samples: the number of samples per channel. rate: Hz. digest: digest of the file's bytes. problem: why the file
    cannot be used, or "". content: digest of the rate and of the channels' mean; "" where they cannot be decoded.
    The content digest does not change with the file's name, its metadata or its lossless container, nor if a mono
    signal is stored as two equal channels. It differs for a copy that was resampled, amplified, shifted or compressed
    with loss.
    """

    samples: int
    rate: int
    digest: str
    problem: str
    content: str = ""


def inspect_audio(path: str) -> Inspection:
    """Read a whole file once, and check that it can be decoded, is long enough and has finite samples only."""
    import soundfile

    try:
        file_digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                file_digest.update(block)
    except OSError as error:
        return Inspection(0, 0, "", f"cannot be opened ({error.strerror})")
    if Path(path).stat().st_size == 0:
        return Inspection(0, 0, file_digest.hexdigest(), "is an empty file")
    try:
        with soundfile.SoundFile(path) as audio_file:
            return _inspect_samples(audio_file, file_digest.hexdigest())
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = str(error).rstrip(".").split(": ")[-1]
        return Inspection(0, 0, file_digest.hexdigest(), f"is not readable audio ({reason})")


def _inspect_samples(audio_file, file_digest: str) -> Inspection:  # type: ignore[no-untyped-def]
    samples, finite = 0, True
    content = hashlib.blake2b(str(audio_file.samplerate).encode(), digest_size=16)
    for block in audio_file.blocks(blocksize=BLOCK, dtype="float32", always_2d=True):
        samples += len(block)
        finite = finite and bool(np.isfinite(block).all())
        content.update(_mono(block) + np.float32(0))  # turns -0 into 0
    problem = _problem(samples, audio_file.samplerate, finite)
    return Inspection(samples, audio_file.samplerate, file_digest, problem, content.hexdigest() if samples else "")


def _problem(samples: int, rate: int, finite: bool) -> str:
    if samples == 0:
        return "holds no samples"
    if not finite:
        return "holds samples that are not finite numbers (NaN or infinity)"
    if samples < SHORTEST * rate:
        return f"is {samples / rate:.4f} s long, shorter than {SHORTEST} s"
    return ""


def samples_at(stretch: Stretch, rate: int) -> int:
    """Return the number of samples that `read_stretch` returns."""
    return -(-stretch.samples * rate // stretch.rate)


def read_stretch(stretch: Stretch, rate: int) -> np.ndarray:
    """Return the stretch as float32 (S,) at `rate` Hz, with its channels averaged.

    Where the rates differ, it is resampled by soxr with quality HQ.
    """
    import soundfile

    with soundfile.SoundFile(stretch.audio) as audio_file:
        channels = _decode(audio_file, stretch.first, stretch.samples)
    mono = _mono(channels)
    if stretch.rate == rate:
        return np.ascontiguousarray(mono)
    import soxr

    wanted = samples_at(stretch, rate)
    converted = soxr.resample(mono, stretch.rate, rate, quality="HQ")[:wanted]
    return np.pad(converted, (0, wanted - len(converted))).astype(np.float32)


def _mono(channels: np.ndarray) -> np.ndarray:
    """Return the mean (S,) over the channels of (S, channels)."""
    return channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)


def _decode(audio_file, first: int, samples: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return samples (S, channels) that equal those of decoding the whole file.

    The first samples that libsndfile decodes after a seek differ: MP3 lacks the bit reservoir of earlier frames, and
    Vorbis may be off by many samples until the next page (of 255 packets at most). So this function seeks to an
    earlier sample (LEAD), and discards what lies before `first`.
    """
    lead = min(first, LEAD.get(audio_file.subtype, 0))
    with _without_stderr() if lead else nullcontext():
        audio_file.seek(first - lead)
        return audio_file.read(lead + samples, dtype="float32", always_2d=True)[lead:]


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep libmpg123 from printing a line for each seek; Python's own stderr is not changed."""
    try:
        stream = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    except (OSError, TypeError, ValueError):  # a C library that does not export stderr under this name
        yield
        return
    _RedirectedStderr.begin(stream)
    try:
        yield
    finally:
        _RedirectedStderr.end(stream)


class _RedirectedStderr:
    """Redirects C's stderr while any thread reads: the first reader redirects it, and the last one restores it."""

    lock = threading.Lock()
    readers = 0
    before: int | None = None

    @classmethod
    def begin(cls, stream: ctypes.c_void_p) -> None:
        with cls.lock:
            if cls.readers == 0:
                cls.before, stream.value = stream.value, _null_stream()
            cls.readers += 1

    @classmethod
    def end(cls, stream: ctypes.c_void_p) -> None:
        with cls.lock:
            cls.readers -= 1
            if cls.readers == 0:
                stream.value = cls.before


@cache
def _null_stream() -> int:
    """Return a C stream to the null device."""
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    return int(library.fopen(os.devnull.encode(), b"w"))
