"""Synthetic speakers: an eSpeak NG voice variant, a vocal-tract length, a pitch, a tempo and a timbre each."""

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
    equaliser,
    filtered,
    loudness,
    response_grid,
    trim,
)
from benchmark.corpora.synthesis.espeak import Prosody, speak

# Variants of one family (klatt2, klatt3) are nearly one voice, so a family stays on one side.
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
    """variant: an eSpeak NG voice. tract: formants are this many times higher. gains: the timbre, dB at `BANDS`."""

    variant: str
    tract: float
    prosody: Prosody
    gains: Signal


class Speech(NamedTuple):
    """What is said: the text, the eSpeak NG language it is read in, by whom, and how (a key of `STYLES`)."""

    text: str
    language: str
    speaker: str
    style: str = "neutral"


class Style(NamedTuple):
    """Ranges from which a clip draws.

    rate, range: factors of the speaker's own. pitch: steps added to it. tilt: dB by which 8 kHz gains on 60 Hz.
    drive: saturation of the waveform. tremor: depth of a wobble of loudness.
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


def generator(*names: str) -> Generator:
    """The random numbers that belong to a name, on any machine and in any order."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8], "little"))


@cache
def speaker(name: str) -> Speaker:
    """The speaker of a name CAST-SPLIT-NUMBER; speakers of different splits never share a variant."""
    _, split, number = name.rsplit("-", 2)
    variants = VARIANTS[split]
    rng = generator("speaker", name)
    prosody = Prosody(int(rng.uniform(145, 200)), int(rng.uniform(20, 80)), int(rng.uniform(30, 65)))
    variant = variants[int(number) % len(variants)]
    return Speaker(variant, rng.uniform(0.84, 1.19), prosody, rng.normal(0.0, 2.5, len(BANDS)))


def say(speech: Speech, rng: Generator) -> Signal:
    """Speech in the speaker's voice and the style's manner, without silence at its ends, of unit loudness."""
    import soxr

    person, style = speaker(speech.speaker), STYLES[speech.style]
    samples, rate = speak(speech.text, f"{speech.language}+{person.variant}", _prosody(person, style, rng))
    voice = trim(soxr.resample(samples, rate * person.tract, SAMPLE_RATE).astype(np.float64))
    return _coloured(voice / loudness(voice), style, rng)


def _prosody(person: Speaker, style: Style, rng: Generator) -> Prosody:
    own = person.prosody
    # Resampling by the tract speeds the speech up; the rate makes up for it.
    rate = own.rate / person.tract * rng.uniform(0.94, 1.06) * rng.uniform(*style.rate)
    pitch = own.pitch + rng.uniform(-4, 4) + rng.uniform(*style.pitch)
    spread = own.range * rng.uniform(*style.range)
    return Prosody(int(np.clip(rate, 80, 400)), int(np.clip(pitch, 0, 99)), int(np.clip(spread, 0, 99)))


def _coloured(voice: Signal, style: Style, rng: Generator) -> Signal:
    drive, tilt = rng.uniform(*style.drive), rng.uniform(*style.tilt)
    voice = np.tanh(drive * voice) / drive
    time = np.arange(len(voice)) / SAMPLE_RATE
    voice = voice * (1 + rng.uniform(*style.tremor) * np.sin(2 * np.pi * (rng.uniform(4, 7) * time + rng.random())))
    voice = filtered(voice, equaliser(response_grid(len(voice)), np.linspace(-tilt / 2, tilt / 2, len(BANDS))))
    return voice / loudness(voice)
