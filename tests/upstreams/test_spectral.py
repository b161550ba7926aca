"""Held against torchaudio's Kaldi front end on single clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.upstreams.models import padded
from upstreams import create
from upstreams.base import mean_over_time
from upstreams.spectral import DELTA_SCALES, FLOOR, LogMel, Spectral, deltas
from upstreams.torchaudio_guard import guard

guard()

from torchaudio.compliance import kaldi  # noqa: E402
from torchaudio.functional import compute_deltas  # noqa: E402

NAMES = ["fbank", "fbank_cmvn", "mfcc", "spectrogram"]


def sound(samples: int, seed: int = 0) -> Tensor:
    """Noise that grows, on a tone and an offset, with some digital silence in it."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(samples, generator=generator) * torch.linspace(0.0, 0.2, samples) + 0.01
    clip += 0.2 * torch.sin(torch.arange(samples) * 0.3)
    clip[samples // 2 : samples // 2 + 900] = 0.0
    return clip.clamp(-1, 1)


def with_deltas(statics: Tensor) -> Tensor:
    """(T, D) to (T, 3 D) by torchaudio."""
    first = compute_deltas(statics.T[None])[0].T
    return torch.cat([statics, first, compute_deltas(first.T[None])[0].T], dim=1)


def unscaled(upstream: Spectral, frames: Tensor) -> Tensor:
    """(T, D) without the constants."""
    parts = frames.split(upstream.dim // (upstream.order + 1), dim=1)
    plain = [part * upstream.scale / by for part, by in zip(parts, DELTA_SCALES, strict=False)]
    return torch.cat([plain[0] + upstream.center, *plain[1:]], dim=1)


def torchaudios(name: str, clip: Tensor) -> Tensor:
    if name == "spectrogram":
        return kaldi.spectrogram(clip[None])
    if name == "mfcc":
        return with_deltas(kaldi.mfcc(clip[None]))
    frames = with_deltas(kaldi.fbank(clip[None], num_mel_bins=80))
    return (frames - frames.mean(0)) / (1e-10 + frames.std(0)) if name == "fbank_cmvn" else frames


@pytest.mark.parametrize("samples", [401, 560, 3_000, 16_000, 33_333])
@pytest.mark.parametrize("name", NAMES)
def test_spectral_features_are_kaldis_up_to_constants(name: str, samples: int) -> None:
    clip, upstream = sound(samples), create(name)
    expected = torchaudios(name, clip)
    frames = upstream(*padded([clip])).frames[0, :, 0]
    if name == "fbank_cmvn":
        if len(expected) == 1:  # torchaudio's deviation of one frame is NaN
            expected = torch.zeros_like(expected)
    else:
        frames = unscaled(upstream, frames)
    # Kaldi replaces the first bin of a spectrogram by the frame's energy.
    first = 1 if name == "spectrogram" else 0
    assert frames.shape == expected.shape == (1 + (samples - 400) // 160, upstream.dim)
    torch.testing.assert_close(frames[:, first:], expected[:, first:], atol=5e-4, rtol=1e-4)


def test_the_first_bin_of_the_spectrogram_is_the_power_at_zero_hertz() -> None:
    clip, upstream = sound(4_000), create("spectrogram")
    window = np.hanning(400) ** 0.85
    for t in (0, 3, 20):
        frame = clip[160 * t : 160 * t + 400].double().numpy()
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        expected = np.log(np.maximum(np.abs(np.fft.rfft(frame * window, 512)) ** 2, FLOOR))
        got = unscaled(upstream, upstream(*padded([clip])).frames[0, :, 0])[t]
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("bands", "shape", "rate"), [(23, "povey", 8_000), (40, "hanning", 22_050), (128, "hanning", 16_000)]
)
def test_log_mel_is_kaldis_at_other_rates_windows_and_bands(bands: int, shape: str, rate: int) -> None:
    clip = sound(2 * rate)
    expected = kaldi.fbank(clip[None], num_mel_bins=bands, window_type=shape, sample_frequency=rate)
    torch.testing.assert_close(LogMel(bands, rate, shape)(clip[None])[0], expected, atol=2e-3, rtol=1e-4)


def test_deltas_extend_a_clip_by_its_own_last_frame() -> None:
    frames = torch.randn(3, 9, 5)
    got = deltas(frames, torch.tensor([9, 4, 1]))
    for row, result, length in zip(frames, got, [9, 4, 1], strict=True):
        torch.testing.assert_close(result[:length], compute_deltas(row[:length].T[None])[0].T)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batches_change_nothing(name: str) -> None:
    upstream = create(name)
    clips = [sound(n, seed=n) for n in (16_000, 100, 400, 7_777, 20_011)]
    frames, counts = upstream(*padded(clips, extra=5_000))
    assert counts.tolist() == [98, 1, 1, 47, 123]
    for row, count, clip in zip(frames, counts, clips, strict=True):
        alone = upstream(*padded([clip])).frames[0]
        torch.testing.assert_close(row[:count], alone, atol=1e-5, rtol=1e-5)
        assert not row[count:].any()


def test_spectral_features_of_speechlike_sound_are_of_order_one() -> None:
    seconds = torch.arange(48_000) / 16_000
    harmonics = sum((0.05 / k) * torch.sin(2 * math.pi * 120 * k * seconds) for k in range(1, 40))
    clip = harmonics * torch.sin(2 * math.pi * 2 * seconds).square() + 1e-3 * torch.randn(48_000)
    for name in ("fbank", "mfcc", "spectrogram"):
        frames = create(name)(*padded([clip])).frames
        assert 0.3 < float(frames.std()) < 3.0, name
        assert abs(float(frames.mean())) < 1.5, name


@pytest.mark.parametrize("name", ["fbank", "mfcc", "spectrogram"])
def test_a_louder_clip_has_another_time_mean(name: str) -> None:
    upstream, clip = create(name), sound(16_000)
    quiet, loud = upstream.summarize(*padded([0.1 * clip, clip]))
    assert float((loud - quiet).abs().max()) > 0.2


def test_the_time_mean_of_cmvn_is_zero() -> None:
    frames, counts = create("fbank_cmvn")(*padded([sound(16_000), sound(5_000)]))
    assert float(mean_over_time(frames, counts).abs().max()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_silence_and_constants_give_finite_features(name: str) -> None:
    upstream = create(name)
    frames = upstream(*padded([torch.zeros(8_000), torch.full((8_000,), 0.5), torch.zeros(400)])).frames
    assert bool(frames.isfinite().all())
    assert float(frames.abs().max()) < 10.0


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_energies(name: str) -> None:
    upstream, batch = create(name), padded([sound(8_000), sound(5_000)])
    with torch.autocast("cpu", torch.bfloat16):
        got = upstream(*batch).frames
    torch.testing.assert_close(got, upstream(*batch).frames)
