"""The front end of ATST: torchaudio's mel spectrograms in decibels, computed for padded batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upstreams.base import valid
from upstreams.spectral import mel_filters, reflected_places, trimmed

RATE, HOP, FFT, BANDS = 16_000, 160, 1024, 64  # Hz, samples, samples, mel bands
LOWEST, HIGHEST = 60.0, 7800.0  # Hz
FLOOR = 1e-10  # smallest energy
QUIETEST, LOUDEST, RANGE = -79.6482, 50.6842, 80.0  # dB; levels that map to -1 and 1, and the largest range of a clip


class DecibelMel(nn.Module):
    """64 mel bands in dB, one frame per 10 ms, scaled by constants to about [-1, 1].

    Levels are clamped to at most 80 dB below the loudest band of the clip. The values are those of torchaudio's
    MelSpectrogram and AmplitudeToDB on each clip alone: frames are centred, and the clip is extended by reflection at
    both ends. A clip shorter than 513 samples is extended with zeros to 513.
    """

    def __init__(self) -> None:
        super().__init__()
        bins = torch.linspace(0.0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
        filters = mel_filters(bins, BANDS, LOWEST, HIGHEST, linear_in="hertz")
        self.banks: Tensor
        self.taper: Tensor
        self.register_buffer("banks", filters.T.float().contiguous())
        self.register_buffer("taper", torch.hann_window(FFT))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, S) and lengths (B,) in samples to (B, 64, M), zero beyond each clip, and lengths (B,) in frames."""
        # Energies span eight decades, so they need full precision.
        with torch.autocast(waveforms.device.type, enabled=False):
            shortest = FFT // 2 + 1
            clean, lengths = trimmed(waveforms.float(), lengths, shortest), lengths.clamp(min=shortest)
            places = torch.arange(-(FFT // 2), clean.shape[1] + FFT // 2, device=clean.device)
            clean = clean.gather(1, reflected_places(places, lengths))
            spectrum = torch.stft(clean, FFT, HOP, window=self.taper, center=False, return_complex=True)
            power = self.banks @ (spectrum.real**2 + spectrum.imag**2)
            frames = lengths // HOP + 1
            beyond = ~valid(frames, power.shape[2])[:, None]
            decibels = 10.0 * power.clamp(min=FLOOR).log10()
            loudest = decibels.masked_fill(beyond, -math.inf).amax(dim=(1, 2), keepdim=True)
            scaled = (torch.maximum(decibels, loudest - RANGE) - QUIETEST) / (LOUDEST - QUIETEST) * 2 - 1
            return scaled.masked_fill(beyond, 0.0), frames
