"""Clips from recipes: the audio of a clip is a function of the clip alone, whoever makes it and in whatever order."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import wave
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import Generator

from benchmark.corpora.synthesis.acoustics import BANDS, SAMPLE_RATE, Signal, levelled, noisy, place, recorded
from benchmark.corpora.synthesis.events import sound
from benchmark.corpora.synthesis.speakers import Speech, generator, say, speaker
from benchmark.errors import UserError
from benchmark.files import aside
from benchmark.values import Engine

CHUNK = 200  # clips handed to one process, a second or two of work
SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Otherwise glibc returns every array to the kernel and fetches it again, which is a third of the time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "100000000", "MALLOC_TRIM_THRESHOLD_": "100000000"}
STALE = 60.0  # seconds after which a half-written file has no writer any more


@dataclass(frozen=True)
class SyntheticClip:
    """A recipe for one file.

    id, split, labels: as of an Utterance. folder: where it lies in the corpus.
    seconds: its length; None makes it as long as its speech. speech, events: what sounds; neither leaves only noise.
    snr: dB, the range of the noise.
    """

    id: str
    split: str
    labels: dict[str, str] = field(default_factory=dict)
    folder: str = "."
    seconds: float | None = None
    speech: Speech | None = None
    events: tuple[str, ...] = ()
    snr: tuple[float, float] = (5.0, 20.0)

    @property
    def file(self) -> Path:
        """Its place under the corpus's folder."""
        return Path(self.folder) / f"{self.id}.wav"


def render(clip: SyntheticClip) -> Signal:
    """A clip's samples (S,) in [-1, 1]."""
    rng = generator("clip", clip.id)
    gains = speaker(clip.speech.speaker).gains if clip.speech else np.zeros(len(BANDS))
    heard = noisy(recorded(_dry(clip, rng), rng, gains), rng, clip.snr)
    return levelled(heard, rng.uniform(-25.0, -22.0))


def _dry(clip: SyntheticClip, rng: Generator) -> Signal:
    if clip.speech is None:
        return _scene(clip, rng)
    voice = say(clip.speech, rng)
    if clip.seconds is None:
        before, after = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 5, size=2)
        return np.pad(voice, (before, after))
    return place(voice, _samples(clip), rng)


def _scene(clip: SyntheticClip, rng: Generator) -> Signal:
    length = _samples(clip)
    total = np.zeros(length)
    for name in clip.events:
        part = sound(name, int(length * rng.uniform(0.5, 1.0)), rng)
        total += place(part, length, rng) * 10 ** (rng.uniform(-5, 5) / 20)
    return total


def _samples(clip: SyntheticClip) -> int:
    assert clip.seconds is not None, clip.id
    return round(clip.seconds * SAMPLE_RATE)


def make(root: Path, clips: Iterable[SyntheticClip], engine: Engine) -> None:
    """Write the clips that are not there yet as 16-bit mono wav files; interrupted, it goes on where it stopped."""
    missing = [clip for clip in clips if not (root / clip.file).exists()]
    for folder in {(root / clip.file).parent for clip in missing}:
        _sweep(folder)
    engine(synthesise_chunk, [(root, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)])


def synthesise_chunk(chunk: tuple[Path, Sequence[SyntheticClip]]) -> int:
    """Make some clips and return how many, in a lean process: the caller may hold torch, whose threads forbid forks."""
    root, clips = chunk
    if not hasattr(os, "fork"):
        raise UserError("the embedded corpus is synthesised in forked processes; make it on Linux or macOS")
    process = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main({os.getpid()})"],
        input=pickle.dumps((root.resolve(), list(clips))),
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, **SINGLE, **KEEP_MEMORY},
    )
    if process.returncode:
        raise UserError(f"the embedded corpus could not be made in {root}: {_last_line(process.stderr)}")
    return len(clips)


def main(parent: int) -> None:
    """Make the clips that standard input describes, for as long as the process that asked is alive."""
    root, clips = pickle.load(sys.stdin.buffer)
    for clip in clips:
        if os.getppid() != parent:
            return
        if not (root / clip.file).exists():
            write(root / clip.file, render(clip))


def write(path: Path, signal: Signal) -> None:
    """A 16-bit mono wav file, whole or absent."""
    with aside(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(signal * 32767).astype("<i2").tobytes())


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["its process was ended; start it again"])[-1]


def _sweep(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for partial in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):  # another run may finish it meanwhile
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()
