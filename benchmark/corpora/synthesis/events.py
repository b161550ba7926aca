"""Fourteen sound events in numpy, each (S,) at `SAMPLE_RATE` and different every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from benchmark.corpora.synthesis.acoustics import SAMPLE_RATE, Signal, filtered, loudness, response_grid

EVENTS: dict[str, Callable[[int, Generator], Signal]] = {}


def event(function: Callable[[int, Generator], Signal]) -> Callable[[int, Generator], Signal]:
    """Register a sound under its function's name."""
    EVENTS[function.__name__] = function
    return function


def sound(name: str, length: int, rng: Generator) -> Signal:
    """One event of a class in `EVENTS`, (length,), of unit loudness."""
    signal = EVENTS[name](length, rng)
    return signal / loudness(signal)


def seconds(length: int) -> Signal:
    """The time of each sample."""
    return np.arange(length) / SAMPLE_RATE


def tone(frequency: Signal | float, length: int) -> Signal:
    """A sine whose frequency in Hz may change from sample to sample."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, length)) / SAMPLE_RATE)


def band(length: int, rng: Generator, low: float, high: float) -> Signal:
    """Noise between two frequencies in Hz."""
    frequencies = response_grid(length)
    return filtered(
        rng.standard_normal(length),
        1.0 / (1 + (low / np.maximum(frequencies, 1)) ** 4) / (1 + (frequencies / high) ** 4),
    )


def repeated(length: int, rng: Generator, rate: float, make: Callable[[], Signal], jitter: float = 0.2) -> Signal:
    """Copies of a short sound, about `rate` a second, each made anew and never none."""
    signal = np.zeros(length)
    start = rng.uniform(0, 0.5) / rate
    while start * SAMPLE_RATE < length:
        first = int(start * SAMPLE_RATE)
        burst = make()[: length - first]
        signal[first : first + len(burst)] += burst * rng.uniform(0.6, 1.0)
        start += rng.uniform(1 - jitter, 1 + jitter) / rate
    return signal


def decaying(duration: float, fall: float) -> Signal:
    """An envelope of `duration` seconds that falls to 1/e in `fall`."""
    return np.exp(-seconds(int(duration * SAMPLE_RATE)) / fall)


@event
def siren(length: int, rng: Generator) -> Signal:
    swing = np.sin(2 * np.pi * (rng.uniform(0.4, 1.2) * seconds(length) + rng.random()))
    pitch = rng.uniform(600, 1100) + rng.uniform(150, 400) * swing
    return tone(pitch, length) + 0.4 * tone(2 * pitch, length) + 0.2 * tone(3 * pitch, length)


@event
def beeps(length: int, rng: Generator) -> Signal:
    rate, pitch = rng.uniform(2, 6), rng.uniform(800, 2600)
    keyed = (seconds(length) * rate + rng.random()) % 1 < rng.uniform(0.4, 0.6)
    return tone(pitch, length) * keyed


@event
def whistle(length: int, rng: Generator) -> Signal:
    time = seconds(length)
    vibrato = np.sin(2 * np.pi * rng.uniform(4, 7) * time) * rng.uniform(10, 40)
    glide = np.linspace(0, rng.uniform(-400, 400), length)
    return tone(rng.uniform(900, 2400) + glide + vibrato, length) + 0.1 * band(length, rng, 1000, 4000)


@event
def bell(length: int, rng: Generator) -> Signal:
    partials = rng.uniform(300, 900) * np.array([1.0, 2.0, 2.76, 4.1, 5.4])
    fall, size = rng.uniform(0.2, 0.6), int(1.5 * SAMPLE_RATE)

    def strike() -> Signal:
        return sum(
            (tone(f, size) * decaying(1.5, fall / (1 + i)) / (1 + i) for i, f in enumerate(partials)), np.zeros(size)
        )

    return repeated(length, rng, rng.uniform(0.8, 2.0), strike)


@event
def birds(length: int, rng: Generator) -> Signal:
    low, sweep, size = rng.uniform(1800, 3200), rng.uniform(400, 1800), int(rng.uniform(0.05, 0.12) * SAMPLE_RATE)

    def chirp() -> Signal:
        return tone(np.linspace(low, low + sweep * rng.uniform(0.7, 1.3), size), size) * np.hanning(size)

    return repeated(length, rng, rng.uniform(4, 8), chirp, jitter=0.4)


@event
def barks(length: int, rng: Generator) -> Signal:
    pitch, size = rng.uniform(180, 420), int(rng.uniform(0.12, 0.22) * SAMPLE_RATE)
    bend = 1 + 0.3 * np.hanning(size)

    def bark() -> Signal:
        voiced = sum((tone(pitch * k * bend, size) / k for k in range(1, 9)), np.zeros(size))
        return (voiced + 0.5 * band(size, rng, 400, 2500)) * np.hanning(size)

    return repeated(length, rng, rng.uniform(1.5, 3.0), bark, jitter=0.3)


@event
def drum(length: int, rng: Generator) -> Signal:
    pitch, fall = rng.uniform(70, 180), rng.uniform(0.06, 0.15)
    envelope = decaying(0.5, fall)

    def beat() -> Signal:
        skin = tone(pitch * (1 + 0.5 * decaying(0.5, 0.03)), len(envelope))
        return (skin + 0.15 * rng.standard_normal(len(envelope)) * decaying(0.5, 0.02)) * envelope

    return repeated(length, rng, rng.uniform(2, 5), beat)


@event
def claps(length: int, rng: Generator) -> Signal:
    centre, envelope = rng.uniform(900, 2200), decaying(0.15, rng.uniform(0.01, 0.03))

    def clap() -> Signal:
        return band(len(envelope), rng, centre / 1.5, centre * 1.5) * envelope

    return repeated(length, rng, rng.uniform(2, 6), clap)


@event
def typing(length: int, rng: Generator) -> Signal:
    envelope = decaying(0.03, rng.uniform(0.002, 0.005))

    def click() -> Signal:
        return band(len(envelope), rng, 1500, rng.uniform(3000, 7000)) * envelope

    return repeated(length, rng, rng.uniform(6, 12), click, jitter=0.8)


@event
def rain(length: int, rng: Generator) -> Signal:
    drops = rng.standard_normal(length) * (rng.random(length) < rng.uniform(0.005, 0.05))
    frequencies = response_grid(length)
    return filtered(drops, np.minimum(frequencies / rng.uniform(1500, 3500), 1.0)) + 0.02 * band(length, rng, 800, 8000)


@event
def wind(length: int, rng: Generator) -> Signal:
    phase = 2 * np.pi * (rng.uniform(0.2, 0.8) * seconds(length) + rng.random())
    return band(length, rng, 80, rng.uniform(250, 700)) * (1.2 + np.sin(phase))


@event
def engine(length: int, rng: Generator) -> Signal:
    pitch = rng.uniform(25, 70) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 1.0) * seconds(length)))
    strokes = np.exp(4 * (tone(pitch, length) - 1))
    return strokes - strokes.mean() + strokes * 0.6 * band(length, rng, 100, rng.uniform(800, 2000))


@event
def buzz(length: int, rng: Generator) -> Signal:
    hum = tone(rng.uniform(90, 240), length)
    return np.tanh(rng.uniform(2, 8) * hum) + 0.3 * np.abs(hum)


@event
def drops(length: int, rng: Generator) -> Signal:
    envelope = decaying(0.1, rng.uniform(0.015, 0.03))

    def drop() -> Signal:
        low = rng.uniform(500, 1300)
        return tone(low * (1 + rng.uniform(0.5, 1.5) * seconds(len(envelope)) / 0.1), len(envelope)) * envelope

    return repeated(length, rng, rng.uniform(3, 8), drop, jitter=0.7)
