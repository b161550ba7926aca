"""Mel bands in decibels as torchaudio makes them of single clips, but of padded batches: the front end of ATST."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import valid
from upstreams.spectral import trimmed

RATE, HOP, FFT, BANDS = 16_000, 160, 1024, 64  # Hz, samples, samples, mel bands
LOWEST, HIGHEST = 60.0, 7800.0  # Hz
FLOOR = 1e-10  # of energies
QUIETEST, LOUDEST, RANGE = -79.6482, 50.6842, 80.0  # dB: what -1 and 1 stand for, and what a clip spans at most


class DecibelMel(nn.Module):
    """64 mel bands in dB, at most 80 below the clip's loudest, scaled by constants to about [-1, 1]; a frame in 10 ms.

    As torchaudio's MelSpectrogram and AmplitudeToDB, on each clip as if it were alone: frames are centred, and the
    clip is continued at either end by its reflection. A clip shorter than 513 samples is extended to them with zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.banks: Tensor
        self.taper: Tensor
        self.register_buffer("banks", mel_banks())
        self.register_buffer("taper", torch.hann_window(FFT))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) and lengths (B,) in samples to (B, 64, M), zero beyond each clip's end, and lengths (B,) in frames."""
        # Energies span eight decades, so reduced precision must not reach them.
        with torch.autocast(waveforms.device.type, enabled=False):
            shortest = FFT // 2 + 1
            clean, lengths = trimmed(waveforms.float(), lengths, shortest), lengths.clamp(min=shortest)
            spectrum = torch.stft(
                reflected(clean, lengths, FFT // 2), FFT, HOP, window=self.taper, center=False, return_complex=True
            )
            power = self.banks @ (spectrum.real**2 + spectrum.imag**2)
            frames = lengths // HOP + 1
            beyond = ~valid(frames, power.shape[2])[:, None]
            decibels = 10.0 * power.clamp(min=FLOOR).log10()
            loudest = decibels.masked_fill(beyond, -math.inf).amax(dim=(1, 2), keepdim=True)
            scaled = (torch.maximum(decibels, loudest - RANGE) - QUIETEST) / (LOUDEST - QUIETEST) * 2 - 1
            return scaled.masked_fill(beyond, 0.0), frames


def reflected(waveforms: Tensor, lengths: Tensor, reach: int) -> Tensor:
    """(B, S) to (B, reach + S + reach), continued by `reach` samples of its reflection before and after each clip."""
    steps = torch.arange(reach, device=lengths.device)
    after = waveforms.gather(1, lengths[:, None] - 2 - steps)
    around = torch.cat([waveforms[:, 1 : reach + 1].flip(1), F.pad(waveforms, (0, reach))], dim=1)
    return around.scatter(1, lengths[:, None] + reach + steps, after)


def mel_banks() -> Tensor:
    """Triangular filters (64, 513), linear in Hz between edges evenly spaced on the mel axis 2595 lg(1 + Hz / 700)."""
    low, high = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (LOWEST, HIGHEST))
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, BANDS + 2, dtype=torch.float64)[:, None] / 2595.0) - 1.0)
    bins = torch.linspace(0.0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)).clamp(min=0).float()
