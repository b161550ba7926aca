"""Rooms, channels and noise in numpy: what a recording adds to a sound. Signals are (S,) at `SAMPLE_RATE`."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Signal = NDArray[np.floating]
Response = NDArray[np.inexact]

SAMPLE_RATE = 16_000  # Hz
BANDS = np.array([60.0, 300.0, 800.0, 2000.0, 4000.0, 8000.0])  # Hz, where an equaliser's gains are given
PEAK = 0.98  # of full scale


def loudness(signal: Signal) -> float:
    """Root mean square of a signal."""
    return float(np.sqrt(np.mean(np.square(signal)))) if len(signal) else 0.0


def trim(signal: Signal, threshold: float = 0.01) -> Signal:
    """Cut the ends that stay below `threshold` times the peak."""
    loud = np.flatnonzero(np.abs(signal) > threshold * np.max(np.abs(signal), initial=0.0))
    return signal[loud[0] : loud[-1] + 1] if len(loud) else signal[:0]


def place(signal: Signal, length: int, rng: Generator) -> Signal:
    """Put a signal somewhere into `length` samples, or take a random stretch of one that is longer."""
    spare = length - len(signal)
    start = int(rng.integers(abs(spare) + 1))
    if spare <= 0:
        return signal[start : start + length]
    return np.pad(signal, (start, spare - start))


def filtered(signal: Signal, *responses: Response, tail: int = 0) -> Signal:
    """Apply frequency responses, sampled by `response_grid` for the same length and tail, to a signal."""
    size = _fast_size(len(signal) + tail)
    spectrum = np.fft.rfft(signal, size)
    for response in responses:
        spectrum = spectrum * response
    return np.fft.irfft(spectrum, size)[: len(signal)]


def response_grid(length: int, tail: int = 0) -> Signal:
    """The frequencies in Hz at which `filtered` wants responses."""
    return np.fft.rfftfreq(_fast_size(length + tail), 1 / SAMPLE_RATE)


def equaliser(frequencies: Signal, gains: Signal) -> Signal:
    """A response from gains in dB at `BANDS`, interpolated over log-frequency."""
    decibels = np.interp(np.log(np.maximum(frequencies, 1.0)), np.log(BANDS), gains)
    return 10 ** (decibels / 20)


def room(size: int, rng: Generator, reverberation: float, wetness: float) -> Signal:
    """An impulse response: the direct sound and a tail of noise that falls by 60 dB in `reverberation` seconds.

    wetness: energy of the tail relative to the direct sound.
    """
    seconds = np.arange(size) / SAMPLE_RATE
    tail = rng.standard_normal(size) * 10 ** (-3 * seconds / reverberation)
    tail *= np.sqrt(wetness / np.sum(tail**2))
    tail[0] += 1.0
    return tail


def recorded(signal: Signal, rng: Generator, gains: Signal, wet: float = 0.5, session: float = 4.0) -> Signal:
    """A signal as one session's room and channel pass it on.

    gains: dB at `BANDS` that belong to the source. wet: the chance of a reverberant room.
    session: standard deviation in dB of what the channel adds at each band.
    """
    tail = SAMPLE_RATE // 2
    frequencies = response_grid(len(signal), tail)
    responses: list[Response] = [equaliser(frequencies, gains + rng.normal(0.0, session, len(BANDS)))]
    if rng.random() < wet:
        impulse = room(tail, rng, reverberation=rng.uniform(0.08, 0.5), wetness=rng.uniform(0.1, 0.6))
        responses.append(np.fft.rfft(impulse, 2 * (len(frequencies) - 1)))
    return filtered(signal, *responses, tail=tail)


def coloured_noise(length: int, rng: Generator, slope: float) -> Signal:
    """Noise of unit loudness whose power falls with frequency to the power `slope`."""
    frequencies = response_grid(length)
    noise = filtered(rng.standard_normal(length), np.maximum(frequencies, 50.0) ** (-slope / 2))
    return noise / loudness(noise)


def noisy(signal: Signal, rng: Generator, snr: tuple[float, float]) -> Signal:
    """Add stationary noise of random colour, at a ratio in dB drawn from `snr` to the signal where it is not silent."""
    noise = coloured_noise(len(signal), rng, slope=rng.uniform(0.4, 1.2))
    ratio = 10 ** (-rng.uniform(*snr) / 20)
    active = signal[np.abs(signal) > 1e-3 * np.max(np.abs(signal), initial=0.0)]
    return signal + noise * (loudness(active) * ratio if len(active) else 1.0)


def levelled(signal: Signal, decibels: float) -> Signal:
    """Scale to a loudness in dB of full scale, lower where the peaks would clip."""
    scale = 10 ** (decibels / 20) / loudness(signal)
    return signal * min(scale, PEAK / float(np.max(np.abs(signal))))


def _fast_size(length: int) -> int:
    """The least 2^a or 3 * 2^a at or above a length."""
    power = 1 << max(length - 1, 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= length else power
