"""What hyperion (Villalba et al.) makes of a waveform for its x-vectors: log-mel energies, their mean removed, and VAD.

The definitions are those of its branch persephone-dino, down to what looks like slips: bins of the spectrum are taken
to be 16000 / 511 Hz apart, and the window of 301 frames that a mean is of leaves its first one out. Waveforms count
as 16-bit numbers. Its dither is noise of a standard deviation of 1, drawn anew each time; as features may not be
random, what such noise adds to each energy on average is added instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import valid

RATE, BANDS, WINDOW, HOP, FFT = 16_000, 80, 400, 160, 512
LOWEST, HIGHEST = 20.0, 7600.0  # Hz
SCALE = 32_767.0  # of samples in [-1, 1]
EMPHASIS, FLOOR, DITHER = 0.97, 1e-10, 1.0
EDGE = (WINDOW - HOP) // 2  # samples that the first frame begins before the clip
CONTEXT = 150  # mel frames on either side of one that its mean is of
LOUDNESS, SHARE, AROUND = 5.5, 0.5, 2  # of VAD: a frame is kept near one louder than LOUDNESS + SHARE * mean


class HyperionMel(nn.Module):
    """Natural logarithm of the energies in 80 bands of 20 to 7600 Hz, every 10 ms, the clip's ends reflected.

    dither: standard deviation of the noise whose expected power is added, in steps of 16 bits.
    """

    def __init__(self, dither: float = DITHER) -> None:
        super().__init__()
        hann = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
        taper, banks = hann**0.85, mel_banks()
        turns = 2 * torch.pi / FFT * torch.arange(FFT // 2 + 1, dtype=torch.float64)
        same, next_one = taper.square().sum(), (taper[1:] * taper[:-1]).sum()
        noise = dither**2 * ((1 + EMPHASIS**2) * same - 2 * EMPHASIS * next_one * torch.cos(turns)) @ banks
        self.taper: Tensor
        self.banks: Tensor
        self.noise: Tensor
        for name, tensor in (("taper", taper), ("banks", banks), ("noise", noise + FLOOR)):
            self.register_buffer(name, tensor.float(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S), of which lengths (B,) are valid and at least 201, to (B, T, 80) and valid frames (B,)."""
        frames = (lengths + HOP // 2) // HOP
        size, most = int(lengths.max()), int(frames.max())
        with torch.autocast(waveforms.device.type, enabled=False):
            signal = (SCALE * waveforms[:, :size].float()).masked_fill(~valid(lengths, size), 0.0)
            signal = signal - signal.sum(1, keepdim=True) / lengths[:, None]
            signal = signal - EMPHASIS * torch.cat([signal[:, :1], signal[:, :-1]], dim=1)
            places = torch.arange(-EDGE, (most - 1) * HOP + WINDOW - EDGE, device=lengths.device)
            pieces = signal.gather(1, reflected(places, lengths)).unfold(1, WINDOW, HOP)
            spectrum = torch.fft.rfft(pieces * self.taper, n=FFT)
            energies = (spectrum.real.square() + spectrum.imag.square()) @ self.banks + self.noise
            return energies.log().masked_fill(~valid(frames, most)[:, :, None], 0.0), frames


def mel_banks() -> Tensor:
    """Filters (257, 80), triangular on the mel axis 1127 ln(1 + Hz / 700), of bins 16000 / 511 Hz apart."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0, RATE, FFT, dtype=torch.float64)[: FFT // 2])[:, None]
    low, high = mel(torch.tensor([LOWEST, HIGHEST], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    banks = torch.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)).clamp(min=0)
    return F.pad(banks, (0, 0, 0, 1))


def reflected(places: Tensor, lengths: Tensor) -> Tensor:
    """Places (N,) as seen from within clips of lengths (B,), (B, N): those before and behind are mirrored into it."""
    places, last = places.abs()[None], lengths[:, None] - 1
    return torch.where(places > last, 2 * last - places, places).clamp(min=0)


def without_mean(mel: Tensor, frames: Tensor) -> Tensor:
    """Frames (B, T, 80) less their mean over about three seconds around each, the clip's ends reflected.

    In clips of at most 301 frames it is the mean of all. Beyond a clip's frames (B,) they are zero.
    """
    span, size = 2 * CONTEXT + 1, mel.shape[1]
    kept = valid(frames, size)[:, :, None]
    mel = mel.masked_fill(~kept, 0.0)
    mel = mel - mel.sum(1, keepdim=True) / frames[:, None, None]
    if size > span:
        places = reflected(torch.arange(-CONTEXT, size + CONTEXT, device=mel.device), frames)
        sums = mel.double().gather(1, places[:, :, None].expand(-1, -1, mel.shape[2])).cumsum(1)
        local = ((sums[:, span - 1 :] - sums[:, : 1 - span]) / span).to(mel.dtype)
        mel = torch.where(frames[:, None, None] > span, mel - local, mel)
    return mel.masked_fill(~kept, 0.0)


@torch.no_grad()
def speech(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Which mel frames (B, T) of clips (B, S) hold sound, by Kaldi's rule on their energies; all where none does."""
    frames = (lengths + HOP // 2) // HOP
    found = torch.zeros(len(lengths), int(frames.max()), dtype=torch.bool)
    samples = waveforms.detach().float().cpu().numpy()
    for row, length, count in zip(range(len(samples)), lengths.tolist(), frames.tolist(), strict=True):
        loud = active(SCALE * samples[row, :length])
        found[row, : min(len(loud), count)] = torch.from_numpy(loud[:count])
        if not loud.any():
            found[row, :count] = True
    return found.to(waveforms.device)


def active(signal: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same of one clip of 16-bit numbers (S,): frames (T,), where T is S / 160, rounded to even; of
    two to four frames more come back, of which the first T count."""
    from scipy.signal import lfilter

    count = round(len(signal) / HOP)
    padded = np.pad(signal, (EDGE, (count - 1) * HOP + WINDOW - EDGE - len(signal)), mode="reflect")
    dither = DITHER * np.random.RandomState(len(padded)).standard_normal(len(padded))  # hyperion's own seed
    level, _ = lfilter([1.0, -1.0], [1.0, -0.999], padded + dither, zi=[0.0])
    energies = np.log(sliding_window_view(level**2, WINDOW)[::HOP].sum(1) + 1e-15)
    around = AROUND if count > 2 * AROUND else count - 1  # so theirs has it, where it means half of that
    near = np.convolve(energies > LOUDNESS + SHARE * energies.mean(), np.ones(2 * around + 1), "same")
    return np.asarray(near > 0.5)
