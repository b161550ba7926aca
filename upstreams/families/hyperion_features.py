"""The features of hyperion (Villalba et al.) for x-vectors: log-mel energies, mean normalisation over time, and VAD.

The definitions are those of hyperion's branch persephone-dino, including details that look like mistakes: bins of the
spectrum are 16000 / 511 Hz apart, and the window of 301 frames for the mean leaves out its first frame. Waveforms are
scaled to 16-bit numbers. hyperion adds random dither with a standard deviation of 1; because features must not be
random, the expected energy of this noise is added to each mel energy instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import valid
from upstreams.spectral import mel_filters, reflected_places

RATE, BANDS, WINDOW, HOP, FFT = 16_000, 80, 400, 160, 512
LOWEST, HIGHEST = 20.0, 7600.0  # Hz
SCALE = 32_767.0  # factor from samples in [-1, 1] to 16-bit numbers
EMPHASIS, FLOOR, DITHER = 0.97, 1e-10, 1.0
EDGE = (WINDOW - HOP) // 2  # samples by which the first frame begins before the clip
CONTEXT = 150  # mel frames on each side of a frame in the window of its mean
LOUDNESS, SHARE, AROUND = 5.5, 0.5, 2  # VAD keeps frames within AROUND of one above LOUDNESS + SHARE * mean


class HyperionMel(nn.Module):
    """Natural logarithm of the energies in 80 mel bands from 20 to 7600 Hz, every 10 ms, with reflection at clip ends.

    dither: standard deviation, in units of 16-bit samples, of the noise whose expected energy is added.
    """

    def __init__(self, dither: float = DITHER) -> None:
        super().__init__()
        hann = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
        bins = torch.linspace(0, RATE, FFT, dtype=torch.float64)[: FFT // 2]  # 16000 / 511 Hz apart, as hyperion's
        taper, banks = hann**0.85, F.pad(mel_filters(bins, BANDS, LOWEST, HIGHEST), (0, 0, 0, 1))
        turns = 2 * torch.pi / FFT * torch.arange(FFT // 2 + 1, dtype=torch.float64)
        same, next_one = taper.square().sum(), (taper[1:] * taper[:-1]).sum()
        noise = dither**2 * ((1 + EMPHASIS**2) * same - 2 * EMPHASIS * next_one * torch.cos(turns)) @ banks
        self.taper: Tensor
        self.banks: Tensor
        self.noise: Tensor
        for name, tensor in (("taper", taper), ("banks", banks), ("noise", noise + FLOOR)):
            self.register_buffer(name, tensor.float(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-mel frames (B, T, 80) and their counts (B,) for waveforms (B, S) of lengths (B,), at least 201."""
        frames = (lengths + HOP // 2) // HOP
        size, most = int(lengths.max()), int(frames.max())
        with torch.autocast(waveforms.device.type, enabled=False):
            signal = (SCALE * waveforms[:, :size].float()).masked_fill(~valid(lengths, size), 0.0)
            signal = signal - signal.sum(1, keepdim=True) / lengths[:, None]
            signal = signal - EMPHASIS * torch.cat([signal[:, :1], signal[:, :-1]], dim=1)
            places = torch.arange(-EDGE, (most - 1) * HOP + WINDOW - EDGE, device=lengths.device)
            pieces = signal.gather(1, reflected_places(places, lengths)).unfold(1, WINDOW, HOP)
            spectrum = torch.fft.rfft(pieces * self.taper, n=FFT)
            energies = (spectrum.real.square() + spectrum.imag.square()) @ self.banks + self.noise
            return energies.log().masked_fill(~valid(frames, most)[:, :, None], 0.0), frames


def without_mean(mel: Tensor, frames: Tensor) -> Tensor:
    """Subtract from each frame of mel (B, T, 80) the mean over about three seconds around it, reflecting at clip ends.

    In clips of at most 301 frames, the mean over the whole clip is subtracted. The result is zero after the last of a
    clip's `frames` (B,).
    """
    span, size = 2 * CONTEXT + 1, mel.shape[1]
    inside = valid(frames, size)[:, :, None]
    mel = mel.masked_fill(~inside, 0.0)
    mel = mel - mel.sum(1, keepdim=True) / frames[:, None, None]
    if size > span:
        places = reflected_places(torch.arange(-CONTEXT, size + CONTEXT, device=mel.device), frames)
        sums = mel.double().gather(1, places[:, :, None].expand(-1, -1, mel.shape[2])).cumsum(1)
        local = ((sums[:, span - 1 :] - sums[:, : 1 - span]) / span).to(mel.dtype)
        mel = torch.where(frames[:, None, None] > span, mel - local, mel)
    return mel.masked_fill(~inside, 0.0)


@torch.no_grad()
def speech_frames(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return a mask (B, T) of the mel frames of clips (B, S) that contain sound, by Kaldi's energy-based VAD.

    If no frame of a clip contains sound, all of its frames are kept.
    """
    frames = (lengths + HOP // 2) // HOP
    mask = torch.zeros(len(lengths), int(frames.max()), dtype=torch.bool)
    samples = waveforms.detach().float().cpu().numpy()
    for row, length, count in zip(range(len(samples)), lengths.tolist(), frames.tolist(), strict=True):
        loud = clip_speech_frames(SCALE * samples[row, :length])
        mask[row, : min(len(loud), count)] = torch.from_numpy(loud[:count])
        if not loud.any():
            mask[row, :count] = True
    return mask.to(waveforms.device)


def clip_speech_frames(signal: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the VAD mask (T,) of one clip (S,) of 16-bit numbers, where T is S / 160, rounded half to even.

    For T from 2 to 4 the mask is longer, and only its first T values count.
    """
    from scipy.signal import lfilter

    count = round(len(signal) / HOP)
    padded = np.pad(signal, (EDGE, (count - 1) * HOP + WINDOW - EDGE - len(signal)), mode="reflect")
    dither = DITHER * np.random.RandomState(len(padded)).standard_normal(len(padded))  # the seed of hyperion
    level, _ = lfilter([1.0, -1.0], [1.0, -0.999], padded + dither, zi=[0.0])
    energies = np.log(sliding_window_view(level**2, WINDOW)[::HOP].sum(1) + 1e-15)
    around = AROUND if count > 2 * AROUND else count - 1  # as in hyperion, which probably meant half of count - 1
    near = np.convolve(energies > LOUDNESS + SHARE * energies.mean(), np.ones(2 * around + 1), "same")
    return np.asarray(near > 0.5)
