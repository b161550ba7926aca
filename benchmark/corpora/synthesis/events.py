"""Synthesis of fourteen classes of sound events in numpy. Each sound is (S,) at `SAMPLE_RATE` and varies with `rng`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from benchmark.corpora.synthesis.acoustics import SAMPLE_RATE, Signal, apply_responses, loudness, response_grid

EVENTS: dict[str, Callable[[int, Generator], Signal]] = {}


def register_event(function: Callable[[int, Generator], Signal]) -> Callable[[int, Generator], Signal]:
    """Register a synthesis function under its name, which is the label of its events."""
    EVENTS[function.__name__] = function
    return function


def event_sound(name: str, length: int, rng: Generator) -> Signal:
    """Return one event (length,) of the class `name` in `EVENTS`, with unit loudness."""
    signal = EVENTS[name](length, rng)
    return signal / loudness(signal)


def sample_times(length: int) -> Signal:
    """Return the time of each sample in seconds (length,)."""
    return np.arange(length) / SAMPLE_RATE


def sine(frequency: Signal | float, length: int) -> Signal:
    """Return a sine (length,). frequency: Hz, one value or a value per sample."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, length)) / SAMPLE_RATE)


def band_noise(length: int, rng: Generator, low: float, high: float) -> Signal:
    """Return noise (length,) between the frequencies `low` and `high` in Hz."""
    frequencies = response_grid(length)
    return apply_responses(
        rng.standard_normal(length),
        1.0 / (1 + (low / np.maximum(frequencies, 1)) ** 4) / (1 + (frequencies / high) ** 4),
    )


def repeat_sound(length: int, rng: Generator, rate: float, make: Callable[[], Signal], jitter: float = 0.2) -> Signal:
    """Return a signal (length,) with about `rate` short sounds per second, the first within 0.5 / `rate` seconds.

    make: called for each sound. jitter: largest relative deviation of the intervals between sounds.
    """
    signal = np.zeros(length)
    start = rng.uniform(0, 0.5) / rate
    while start * SAMPLE_RATE < length:
        first = int(start * SAMPLE_RATE)
        burst = make()[: length - first]
        signal[first : first + len(burst)] += burst * rng.uniform(0.6, 1.0)
        start += rng.uniform(1 - jitter, 1 + jitter) / rate
    return signal


def decay_envelope(duration: float, fall: float) -> Signal:
    """Return an envelope of `duration` seconds that decays to 1/e in `fall` seconds."""
    return np.exp(-sample_times(int(duration * SAMPLE_RATE)) / fall)


@register_event
def siren(length: int, rng: Generator) -> Signal:
    swing = np.sin(2 * np.pi * (rng.uniform(0.4, 1.2) * sample_times(length) + rng.random()))
    pitch = rng.uniform(600, 1100) + rng.uniform(150, 400) * swing
    return sine(pitch, length) + 0.4 * sine(2 * pitch, length) + 0.2 * sine(3 * pitch, length)


@register_event
def beeps(length: int, rng: Generator) -> Signal:
    rate, pitch = rng.uniform(2, 6), rng.uniform(800, 2600)
    is_on = (sample_times(length) * rate + rng.random()) % 1 < rng.uniform(0.4, 0.6)
    return sine(pitch, length) * is_on


@register_event
def whistle(length: int, rng: Generator) -> Signal:
    time = sample_times(length)
    vibrato = np.sin(2 * np.pi * rng.uniform(4, 7) * time) * rng.uniform(10, 40)
    glide = np.linspace(0, rng.uniform(-400, 400), length)
    return sine(rng.uniform(900, 2400) + glide + vibrato, length) + 0.1 * band_noise(length, rng, 1000, 4000)


@register_event
def bell(length: int, rng: Generator) -> Signal:
    partials = rng.uniform(300, 900) * np.array([1.0, 2.0, 2.76, 4.1, 5.4])
    fall, size = rng.uniform(0.2, 0.6), int(1.5 * SAMPLE_RATE)

    def strike() -> Signal:
        return sum(
            (sine(f, size) * decay_envelope(1.5, fall / (1 + i)) / (1 + i) for i, f in enumerate(partials)),
            np.zeros(size),
        )

    return repeat_sound(length, rng, rng.uniform(0.8, 2.0), strike)


@register_event
def birds(length: int, rng: Generator) -> Signal:
    low, sweep, size = rng.uniform(1800, 3200), rng.uniform(400, 1800), int(rng.uniform(0.05, 0.12) * SAMPLE_RATE)

    def chirp() -> Signal:
        return sine(np.linspace(low, low + sweep * rng.uniform(0.7, 1.3), size), size) * np.hanning(size)

    return repeat_sound(length, rng, rng.uniform(4, 8), chirp, jitter=0.4)


@register_event
def barks(length: int, rng: Generator) -> Signal:
    pitch, size = rng.uniform(180, 420), int(rng.uniform(0.12, 0.22) * SAMPLE_RATE)
    bend = 1 + 0.3 * np.hanning(size)

    def bark() -> Signal:
        voiced = sum((sine(pitch * k * bend, size) / k for k in range(1, 9)), np.zeros(size))
        return (voiced + 0.5 * band_noise(size, rng, 400, 2500)) * np.hanning(size)

    return repeat_sound(length, rng, rng.uniform(1.5, 3.0), bark, jitter=0.3)


@register_event
def drum(length: int, rng: Generator) -> Signal:
    pitch, fall = rng.uniform(70, 180), rng.uniform(0.06, 0.15)
    envelope = decay_envelope(0.5, fall)

    def beat() -> Signal:
        skin = sine(pitch * (1 + 0.5 * decay_envelope(0.5, 0.03)), len(envelope))
        return (skin + 0.15 * rng.standard_normal(len(envelope)) * decay_envelope(0.5, 0.02)) * envelope

    return repeat_sound(length, rng, rng.uniform(2, 5), beat)


@register_event
def claps(length: int, rng: Generator) -> Signal:
    centre, envelope = rng.uniform(900, 2200), decay_envelope(0.15, rng.uniform(0.01, 0.03))

    def clap() -> Signal:
        return band_noise(len(envelope), rng, centre / 1.5, centre * 1.5) * envelope

    return repeat_sound(length, rng, rng.uniform(2, 6), clap)


@register_event
def typing(length: int, rng: Generator) -> Signal:
    envelope = decay_envelope(0.03, rng.uniform(0.002, 0.005))

    def click() -> Signal:
        return band_noise(len(envelope), rng, 1500, rng.uniform(3000, 7000)) * envelope

    return repeat_sound(length, rng, rng.uniform(6, 12), click, jitter=0.8)


@register_event
def rain(length: int, rng: Generator) -> Signal:
    drops = rng.standard_normal(length) * (rng.random(length) < rng.uniform(0.005, 0.05))
    frequencies = response_grid(length)
    return apply_responses(drops, np.minimum(frequencies / rng.uniform(1500, 3500), 1.0)) + 0.02 * band_noise(
        length, rng, 800, 8000
    )


@register_event
def wind(length: int, rng: Generator) -> Signal:
    phase = 2 * np.pi * (rng.uniform(0.2, 0.8) * sample_times(length) + rng.random())
    return band_noise(length, rng, 80, rng.uniform(250, 700)) * (1.2 + np.sin(phase))


@register_event
def engine(length: int, rng: Generator) -> Signal:
    pitch = rng.uniform(25, 70) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 1.0) * sample_times(length)))
    strokes = np.exp(4 * (sine(pitch, length) - 1))
    return strokes - strokes.mean() + strokes * 0.6 * band_noise(length, rng, 100, rng.uniform(800, 2000))


@register_event
def buzz(length: int, rng: Generator) -> Signal:
    hum = sine(rng.uniform(90, 240), length)
    return np.tanh(rng.uniform(2, 8) * hum) + 0.3 * np.abs(hum)


@register_event
def drops(length: int, rng: Generator) -> Signal:
    envelope = decay_envelope(0.1, rng.uniform(0.015, 0.03))

    def drop() -> Signal:
        low = rng.uniform(500, 1300)
        return sine(low * (1 + rng.uniform(0.5, 1.5) * sample_times(len(envelope)) / 0.1), len(envelope)) * envelope

    return repeat_sound(length, rng, rng.uniform(3, 8), drop, jitter=0.7)
