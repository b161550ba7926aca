"""Synthetic speakers, each with an eSpeak NG voice variant, a vocal-tract length, a pitch, a tempo and a timbre."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from benchmark.corpora.synthesis.acoustics import (
    BANDS,
    SAMPLE_RATE,
    Signal,
    apply_responses,
    equaliser,
    loudness,
    response_grid,
    trim_silence,
)
from benchmark.corpora.synthesis.espeak import Prosody, speak

# Variants with a common name (klatt2, klatt3) are nearly the same voice, so they are in the same split.
# fmt: off
VARIANTS = {
    "train": [
        "Alex", "Andy", "Henrique", "Mike", "mike2", "RicishayMax", "RicishayMax2", "RicishayMax3", "Tweaky",
        "anika", "announcer", "caleb", "ed", "edward", "edward2", "f1", "f2", "f4", "gustave", "kaukovalta",
        "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m4", "m6", "m8",
        "miguel", "norbert", "paul", "pedro", "robosoft", "robosoft2", "robosoft4", "robosoft5", "robosoft6",
        "robosoft7", "robosoft8", "shelby", "steph", "steph2", "steph3", "travis", "zac",
    ],
    "valid": [
        "Annie", "boris", "Denis", "f5", "grandpa", "iven", "iven2", "iven3", "iven4", "m5", "marcelo", "Mario",
        "quincy", "Reed", "rob", "robert", "sandro",
    ],
    "test": [
        "adam", "Alicia", "Andrea", "antonio", "aunty", "belinda", "benjamin", "david", "Diogo", "f3", "Gene",
        "Gene2", "grandma", "Hugo", "ian", "Jacky", "john", "Lee", "m3", "m7", "max", "Michael", "michel",
        "Nguyen", "pablo", "victor",
    ],
}
# fmt: on


class Speaker(NamedTuple):
    """A speaker. variant: an eSpeak NG voice variant. tract: factor of the formants. gains: timbre, dB at `BANDS`."""

    variant: str
    tract: float
    prosody: Prosody
    gains: Signal


class Speech(NamedTuple):
    """An utterance to synthesise: its text, its eSpeak NG language, its speaker's name and its style in `STYLES`."""

    text: str
    language: str
    speaker: str
    style: str = "neutral"


class Style(NamedTuple):
    """Ranges (low, high) of uniform distributions, from which each clip of a style draws its parameters.

    rate, range: factors of the speaker's rate and range. pitch: added to the speaker's pitch. tilt: gain at 8 kHz
    relative to 60 Hz, dB. drive: saturation of the waveform. tremor: depth of the amplitude modulation.
    """

    rate: tuple[float, float]
    pitch: tuple[float, float]
    range: tuple[float, float]
    tilt: tuple[float, float]
    drive: tuple[float, float]
    tremor: tuple[float, float]


STYLES = {
    "neutral": Style((0.93, 1.07), (-4, 4), (0.8, 1.2), (-2, 2), (0.1, 0.5), (0.0, 0.1)),
    "angry": Style((1.0, 1.2), (0, 12), (1.0, 1.5), (2, 10), (1.5, 4.0), (0.0, 0.1)),
    "happy": Style((1.0, 1.15), (8, 24), (1.3, 2.0), (0, 5), (0.1, 0.8), (0.0, 0.2)),
    "sad": Style((0.75, 0.95), (-12, 0), (0.2, 0.7), (-10, -2), (0.1, 0.4), (0.1, 0.5)),
}


def random_generator(*names: str) -> Generator:
    """Return a generator seeded by the names, which is the same on every machine and in every process."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8], "little"))


@cache
def make_speaker(name: str) -> Speaker:
    """Return the speaker with a name GROUP-SPLIT-NUMBER; speakers of different splits never share a variant."""
    _, split, number = name.rsplit("-", 2)
    variants = VARIANTS[split]
    rng = random_generator("speaker", name)
    prosody = Prosody(int(rng.uniform(145, 200)), int(rng.uniform(20, 80)), int(rng.uniform(30, 65)))
    variant = variants[int(number) % len(variants)]
    return Speaker(variant, rng.uniform(0.84, 1.19), prosody, rng.normal(0.0, 2.5, len(BANDS)))


def synthesise_speech(speech: Speech, rng: Generator) -> Signal:
    """Return speech in the speaker's voice and the style, without silence at its ends, with unit loudness."""
    import soxr

    speaker, style = make_speaker(speech.speaker), STYLES[speech.style]
    samples, rate = speak(speech.text, f"{speech.language}+{speaker.variant}", _prosody(speaker, style, rng))
    voice = trim_silence(soxr.resample(samples, rate * speaker.tract, SAMPLE_RATE).astype(np.float64))
    return _styled(voice / loudness(voice), style, rng)


def _prosody(speaker: Speaker, style: Style, rng: Generator) -> Prosody:
    neutral = speaker.prosody
    # Resampling by the tract factor changes the tempo too; the division by it compensates for this.
    rate = neutral.rate / speaker.tract * rng.uniform(0.94, 1.06) * rng.uniform(*style.rate)
    pitch = neutral.pitch + rng.uniform(-4, 4) + rng.uniform(*style.pitch)
    pitch_range = neutral.range * rng.uniform(*style.range)
    return Prosody(int(np.clip(rate, 80, 400)), int(np.clip(pitch, 0, 99)), int(np.clip(pitch_range, 0, 99)))


def _styled(voice: Signal, style: Style, rng: Generator) -> Signal:
    """Apply the saturation, tremor and spectral tilt of a style."""
    drive, tilt = rng.uniform(*style.drive), rng.uniform(*style.tilt)
    voice = np.tanh(drive * voice) / drive
    time = np.arange(len(voice)) / SAMPLE_RATE
    voice = voice * (1 + rng.uniform(*style.tremor) * np.sin(2 * np.pi * (rng.uniform(4, 7) * time + rng.random())))
    voice = apply_responses(voice, equaliser(response_grid(len(voice)), np.linspace(-tilt / 2, tilt / 2, len(BANDS))))
    return voice / loudness(voice)
