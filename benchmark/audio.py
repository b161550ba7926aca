"""Audio files: look one over once, read stretches of it many times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHORTEST = 0.025  # seconds; as upstreams.base.Upstream.SHORTEST
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
        sound.seek(stretch.first)
        channels = sound.read(stretch.samples, dtype="float32", always_2d=True)
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if stretch.rate == rate:
        return np.ascontiguousarray(mono)
    import soxr

    wanted = samples_at(stretch, rate)
    converted = soxr.resample(mono, stretch.rate, rate, quality="HQ")[:wanted]
    return np.pad(converted, (0, wanted - len(converted))).astype(np.float32)
