"""Rendering of synthetic clips. A clip's audio depends on its description only, not on process or order."""

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

from benchmark.corpora.synthesis.acoustics import (
    BANDS,
    SAMPLE_RATE,
    Signal,
    add_noise,
    apply_recording_channel,
    place_at_random,
    set_level,
)
from benchmark.corpora.synthesis.events import event_sound
from benchmark.corpora.synthesis.speakers import Speech, make_speaker, random_generator, synthesise_speech
from benchmark.errors import UserError
from benchmark.files import atomic_path
from benchmark.values import Engine

CHUNK = 200  # clips per process, a second or two of work
SINGLE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Without these, glibc returns each freed array to the kernel and allocates it anew, which takes a third of the time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "100000000", "MALLOC_TRIM_THRESHOLD_": "100000000"}
STALE = 60.0  # seconds after the last write, after which a partial file is considered abandoned


@dataclass(frozen=True)
class SyntheticClip:
    """The description of a clip to render.

    id, split, labels: those of its Utterance. folder: its folder relative to the corpus.
    seconds: its length, None for the length of its speech. speech, events: its content; without either it is noise.
    snr: range of the signal-to-noise ratio, dB.
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
        """The path of the wav file relative to the corpus."""
        return Path(self.folder) / f"{self.id}.wav"


def render_clip(clip: SyntheticClip) -> Signal:
    """Return the samples (S,) of a clip, in [-1, 1]."""
    rng = random_generator("clip", clip.id)
    gains = make_speaker(clip.speech.speaker).gains if clip.speech else np.zeros(len(BANDS))
    recorded = add_noise(apply_recording_channel(_source_signal(clip, rng), rng, gains), rng, clip.snr)
    return set_level(recorded, rng.uniform(-25.0, -22.0))


def _source_signal(clip: SyntheticClip, rng: Generator) -> Signal:
    """Return the speech or the events of a clip, without channel and noise."""
    if clip.speech is None:
        return _mixed_events(clip, rng)
    voice = synthesise_speech(clip.speech, rng)
    if clip.seconds is None:
        before, after = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 5, size=2)
        return np.pad(voice, (before, after))
    return place_at_random(voice, _length(clip), rng)


def _mixed_events(clip: SyntheticClip, rng: Generator) -> Signal:
    length = _length(clip)
    mixture = np.zeros(length)
    for name in clip.events:
        sound = event_sound(name, int(length * rng.uniform(0.5, 1.0)), rng)
        mixture += place_at_random(sound, length, rng) * 10 ** (rng.uniform(-5, 5) / 20)
    return mixture


def _length(clip: SyntheticClip) -> int:
    """Return the number of samples of a clip with a set length."""
    assert clip.seconds is not None, clip.id
    return round(clip.seconds * SAMPLE_RATE)


def render_missing(root: Path, clips: Iterable[SyntheticClip], engine: Engine) -> None:
    """Write the clips whose files are missing, as 16-bit mono wav files.

    A call after an interrupted one writes only what is still missing.
    """
    missing = [clip for clip in clips if not (root / clip.file).exists()]
    for folder in {(root / clip.file).parent for clip in missing}:
        _delete_abandoned_files(folder)
    engine(render_chunk, [(root, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)])


def render_chunk(chunk: tuple[Path, Sequence[SyntheticClip]]) -> int:
    """Render clips in a new process without torch, whose threads do not allow forks, and return their number."""
    root, clips = chunk
    if not hasattr(os, "fork"):
        raise UserError("the embedded corpus is synthesised in forked processes; make it on Linux or macOS")
    process = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import render_from_stdin; render_from_stdin({os.getpid()})"],
        input=pickle.dumps((root.resolve(), list(clips))),
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, **SINGLE_THREAD, **KEEP_MEMORY},
    )
    if process.returncode:
        raise UserError(f"the embedded corpus could not be made in {root}: {_last_line(process.stderr)}")
    return len(clips)


def render_from_stdin(parent: int) -> None:
    """Render the clips described in standard input, and stop when the process `parent` is no longer the parent."""
    root, clips = pickle.load(sys.stdin.buffer)
    for clip in clips:
        if os.getppid() != parent:
            return
        if not (root / clip.file).exists():
            write_wav(root / clip.file, render_clip(clip))


def write_wav(path: Path, signal: Signal) -> None:
    """Write a 16-bit mono wav file, whole or not at all."""
    with atomic_path(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(signal * 32767).astype("<i2").tobytes())


def _last_line(output: bytes) -> str:
    return (
        output.decode(errors="replace").strip().splitlines() or ["its process was killed; run the same command again"]
    )[-1]


def _delete_abandoned_files(folder: Path) -> None:
    """Delete the partial files of killed runs."""
    for partial in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):  # another run may finish and rename it first
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()
