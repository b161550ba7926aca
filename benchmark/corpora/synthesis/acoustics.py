"""Simulation of rooms, channels and noise in numpy. Signals are (S,) at `SAMPLE_RATE`."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Signal = NDArray[np.floating]
Response = NDArray[np.inexact]

SAMPLE_RATE = 16_000  # Hz
BANDS = np.array([60.0, 300.0, 800.0, 2000.0, 4000.0, 8000.0])  # Hz, the frequencies of an equaliser's gains
PEAK = 0.98  # of full scale


def loudness(signal: Signal) -> float:
    """Return the root mean square of a signal."""
    return float(np.sqrt(np.mean(np.square(signal)))) if len(signal) else 0.0


def trim_silence(signal: Signal, threshold: float = 0.01) -> Signal:
    """Cut the ends that stay below `threshold` times the peak."""
    loud = np.flatnonzero(np.abs(signal) > threshold * np.max(np.abs(signal), initial=0.0))
    return signal[loud[0] : loud[-1] + 1] if len(loud) else signal[:0]


def place_at_random(signal: Signal, length: int, rng: Generator) -> Signal:
    """Return `length` samples with the signal at a random position, or a random segment of a longer signal."""
    missing = length - len(signal)
    start = int(rng.integers(abs(missing) + 1))
    if missing <= 0:
        return signal[start : start + length]
    return np.pad(signal, (start, missing - start))


def apply_responses(signal: Signal, *responses: Response, tail: int = 0) -> Signal:
    """Return the signal filtered by frequency responses at the frequencies of `response_grid(len(signal), tail)`.

    tail: samples of zero padding, for the length of the impulse responses.
    """
    size = _fast_size(len(signal) + tail)
    spectrum = np.fft.rfft(signal, size)
    for response in responses:
        spectrum = spectrum * response
    return np.fft.irfft(spectrum, size)[: len(signal)]


def response_grid(length: int, tail: int = 0) -> Signal:
    """Return the frequencies in Hz at which `apply_responses` needs responses for a signal of this length."""
    return np.fft.rfftfreq(_fast_size(length + tail), 1 / SAMPLE_RATE)


def equaliser(frequencies: Signal, gains: Signal) -> Signal:
    """Return the response with these gains in dB at `BANDS`, interpolated linearly over log-frequency."""
    decibels = np.interp(np.log(np.maximum(frequencies, 1.0)), np.log(BANDS), gains)
    return 10 ** (decibels / 20)


def room_response(size: int, rng: Generator, reverberation: float, wetness: float) -> Signal:
    """Return an impulse response (size,): the direct sound, and noise that decays by 60 dB in `reverberation` seconds.

    wetness: energy of the noise relative to the direct sound.
    """
    seconds = np.arange(size) / SAMPLE_RATE
    tail = rng.standard_normal(size) * 10 ** (-3 * seconds / reverberation)
    tail *= np.sqrt(wetness / np.sum(tail**2))
    tail[0] += 1.0
    return tail


def apply_recording_channel(
    signal: Signal, rng: Generator, gains: Signal, wet: float = 0.5, session: float = 4.0
) -> Signal:
    """Return the signal as recorded in a random room over a random channel.

    gains: gains of the source, dB at `BANDS`. wet: probability of a reverberant room.
    session: standard deviation of the channel's gain at each band, dB.
    """
    tail = SAMPLE_RATE // 2
    frequencies = response_grid(len(signal), tail)
    responses: list[Response] = [equaliser(frequencies, gains + rng.normal(0.0, session, len(BANDS)))]
    if rng.random() < wet:
        impulse = room_response(tail, rng, reverberation=rng.uniform(0.08, 0.5), wetness=rng.uniform(0.1, 0.6))
        responses.append(np.fft.rfft(impulse, 2 * (len(frequencies) - 1)))
    return apply_responses(signal, *responses, tail=tail)


def coloured_noise(length: int, rng: Generator, slope: float) -> Signal:
    """Return noise (length,) of unit loudness with power proportional to frequency ** -slope above 50 Hz."""
    frequencies = response_grid(length)
    noise = apply_responses(rng.standard_normal(length), np.maximum(frequencies, 50.0) ** (-slope / 2))
    return noise / loudness(noise)


def add_noise(signal: Signal, rng: Generator, snr: tuple[float, float]) -> Signal:
    """Add stationary noise of random colour.

    snr: range of the signal-to-noise ratio in dB, with respect to the non-silent part of the signal.
    """
    noise = coloured_noise(len(signal), rng, slope=rng.uniform(0.4, 1.2))
    ratio = 10 ** (-rng.uniform(*snr) / 20)
    active = signal[np.abs(signal) > 1e-3 * np.max(np.abs(signal), initial=0.0)]
    return signal + noise * (loudness(active) * ratio if len(active) else 1.0)


def set_level(signal: Signal, decibels: float) -> Signal:
    """Scale the signal to a loudness in dB re full scale, or to a lower one where its peaks would exceed `PEAK`."""
    scale = 10 ** (decibels / 20) / loudness(signal)
    return signal * min(scale, PEAK / float(np.max(np.abs(signal))))


def _fast_size(length: int) -> int:
    """Return the smallest number of the form 2^a or 3 * 2^a that is not below `length`."""
    power = 1 << max(length - 1, 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= length else power
