"""Log-mel, MFCC and spectrogram upstreams, the baselines of every task.

Framing, windowing and filters are Kaldi's (Povey et al., 2011) on waveforms in [-1, 1], as in SUPERB's FBANK row
(Yang et al., 2021). Unlike there, features are scaled by constants, not per clip, so that they keep the information in
a clip's mean.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams import register
from upstreams.base import Features, Upstream, valid

FLOOR = torch.finfo(torch.float32).eps  # Kaldi's floor of energies; about the noise of 16-bit quantisation
DELTA_SCALES = (1.0, 4.0, 10.0)  # speech's statics vary about 4 and 10 times as much as their deltas and delta-deltas


class PowerSpectrum(nn.Module):
    """Kaldi's power spectrum: the mean of each frame is removed, then pre-emphasis by 0.97, a window, and zero-padding.

    The size of the Fourier transform is the next power of two. shape: of the window, "povey" or "hanning".
    """

    def __init__(self, sample_rate: int = 16_000, shape: str = "povey") -> None:
        super().__init__()
        self.size, self.hop = sample_rate * 25 // 1000, sample_rate * 10 // 1000
        self.fft = 2 ** math.ceil(math.log2(self.size))
        hann = torch.hann_window(self.size, periodic=False, dtype=torch.float64)
        self.taper: Tensor
        self.register_buffer("taper", (hann**0.85 if shape == "povey" else hann).float())

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (B, S), S at least `size`, to power spectra (B, T, fft / 2 + 1)."""
        frames = waveforms.unfold(1, self.size, self.hop)
        frames = frames - frames.mean(2, keepdim=True)
        before = F.pad(frames, (1, 0), mode="replicate")[:, :, :-1]
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.taper, n=self.fft)
        return spectrum.real**2 + spectrum.imag**2


class LogMel(PowerSpectrum):
    """Natural logarithm of the energies in triangular bands, evenly spaced in mel from 20 Hz to half the rate."""

    def __init__(self, bands: int, sample_rate: int = 16_000, shape: str = "povey") -> None:
        super().__init__(sample_rate, shape)
        self.banks: Tensor
        self.register_buffer("banks", kaldi_mel_filters(bands, self.fft, sample_rate))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (B, S), S at least `size`, to log-mel frames (B, T, bands)."""
        return torch.clamp(super().forward(waveforms) @ self.banks, min=FLOOR).log()


def mel_filters(bins: Tensor, bands: int, lowest: float, highest: float, linear_in: str = "mel") -> Tensor:
    """Return triangular mel filters (N, bands), float64, for spectrum bins at frequencies (N,) in Hz.

    lowest, highest: frequencies in Hz at which the first triangle begins and the last one ends.
    linear_in: the axis on which the sides of the triangles are straight. "mel" is Kaldi's: the mel axis
        1127 ln(1 + f / 700). "hertz" is torchaudio's default: the edges are evenly spaced on the axis
        2595 lg(1 + f / 700), and the sides are straight in Hz between them.
    """
    limits = torch.tensor([lowest, highest], dtype=torch.float64)
    if linear_in == "mel":
        bins, (low, high) = 1127.0 * torch.log1p(bins / 700.0), (1127.0 * torch.log1p(limits / 700.0)).tolist()
        edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    else:
        low, high = (2595.0 * torch.log10(1.0 + limits / 700.0)).tolist()
        edges = 700.0 * (10.0 ** (torch.linspace(low, high, bands + 2, dtype=torch.float64) / 2595.0) - 1.0)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins[:, None] - left) / (peak - left), (right - bins[:, None]) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0)


def kaldi_mel_filters(bands: int, fft: int, sample_rate: int) -> Tensor:
    """Return Kaldi's mel filters (fft / 2 + 1, bands), float32, from 20 Hz to half the sample rate."""
    bins = torch.arange(fft // 2 + 1, dtype=torch.float64) * sample_rate / fft
    return mel_filters(bins, bands, 20.0, sample_rate / 2).float()


def dct_matrix(bands: int, coefficients: int, lifter: float = 22.0) -> Tensor:
    """Return the orthonormal DCT-II with Kaldi's sinusoidal liftering as a matrix (bands, coefficients)."""
    orders = torch.arange(coefficients, dtype=torch.float64)
    angles = math.pi / bands * (torch.arange(bands, dtype=torch.float64)[:, None] + 0.5) * orders
    norms = torch.full((coefficients,), math.sqrt(2 / bands), dtype=torch.float64)
    norms[0] = math.sqrt(1 / bands)
    lift = 1 + lifter / 2 * torch.sin(math.pi * orders / lifter)
    return (angles.cos() * norms * lift).float()


def deltas(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return delta features (B, T, D): slopes of regression lines through five frames.

    A clip is extended at its end by copies of its last valid frame.
    """
    last = frames[torch.arange(len(frames), device=frames.device), lengths - 1][:, None]
    frames = torch.where(valid(lengths, frames.shape[1])[:, :, None], frames, last)
    x = torch.cat([frames[:, :1], frames[:, :1], frames, frames[:, -1:], frames[:, -1:]], dim=1)
    near, far = x[:, 3:-1] - x[:, 1:-3], x[:, 4:] - x[:, :-4]
    return (near + 2 * far) / 10


class Spectral(Upstream):
    """The base class of the spectral upstreams, with masking, deltas and scaling around `represent`; one layer."""

    layers = 1
    order = 2  # highest order of the deltas; 2 adds deltas and delta-deltas

    def __init__(self, spectrum: PowerSpectrum, statics: int, center: Tensor | float, scale: Tensor | float) -> None:
        """center, scale: constants () or (statics,), the rough mean and standard deviation of the statics of speech."""
        super().__init__()
        self.spectrum = spectrum
        self.hop, self.window = spectrum.hop, spectrum.size
        self.dim = statics * (self.order + 1)
        self.center: Tensor
        self.scale: Tensor
        self.register_buffer("center", torch.as_tensor(center).expand(statics).clone())
        self.register_buffer("scale", torch.as_tensor(scale).expand(statics).clone())

    @abstractmethod
    def represent(self, waveforms: Tensor) -> Tensor:
        """Return static features (B, T, D) of waveforms (B, S) that are zero beyond each clip's length."""

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        # Energies span eight decades, so they need full precision.
        with torch.autocast(waveforms.device.type, enabled=False):
            counts = self.frame_lengths(lengths)
            frames = self.represent(trimmed(waveforms.float(), lengths, self.window))
            frames = self.finish(self.with_deltas((frames - self.center) / self.scale, counts), counts)
            frames = frames.masked_fill(~valid(counts, frames.shape[1])[:, :, None], 0.0)
        return Features(frames[:, :, None], counts)

    def settings(self) -> dict[str, object]:
        scales = list(DELTA_SCALES[: self.order + 1])
        return {"recipe": type(self).__name__, "delta_scales": scales, "pre_emphasis": 0.97, "floor": FLOOR}

    def with_deltas(self, statics: Tensor, counts: Tensor) -> Tensor:
        """Append deltas to (B, T, D), giving (B, T, (order + 1) D), each part at the scale of the statics."""
        parts = [statics]
        for _ in range(self.order):
            parts.append(deltas(parts[-1], counts))
        return torch.cat([part * by for part, by in zip(parts, DELTA_SCALES, strict=False)], dim=2)

    def finish(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Apply the last step to frames (B, T, D) with counts (B,) valid frames; by default none."""
        return frames


def trimmed(waveforms: Tensor, lengths: Tensor, shortest: int) -> Tensor:
    """Set samples of (B, S) beyond each clip to zero, and trim to the longest clip or pad to `shortest` samples."""
    size = int(lengths.max())
    clean = waveforms[:, :size].masked_fill(~valid(lengths, size), 0.0)
    return F.pad(clean, (0, max(shortest - size, 0)))


def reflected_places(places: Tensor, lengths: Tensor) -> Tensor:
    """Return the indices (B, N) at which clips of lengths (B,), continued by reflection, are read at places (N,).

    A place before the first or after the last sample is mirrored about it.
    """
    places, last = places.abs()[None], lengths[:, None] - 1
    return torch.where(places > last, 2 * last - places, places).clamp(min=0)


class Fbank(Spectral):
    """80 log-mel bands with deltas and delta-deltas."""

    stable_name = "upstreams.spectral:Fbank"

    def __init__(self) -> None:
        super().__init__(LogMel(80), 80, center=-5.0, scale=3.0)

    def represent(self, waveforms: Tensor) -> Tensor:
        return self.spectrum(waveforms)


class FbankCmvn(Fbank):
    """`Fbank` normalised to zero mean and unit variance over each clip (Yang et al., 2021)."""

    stable_name = "upstreams.spectral:FbankCmvn"

    def finish(self, frames: Tensor, counts: Tensor) -> Tensor:
        # The first frame is subtracted so that a constant band is exactly zero, and rounding errors are not amplified.
        frames = frames - frames[:, :1]
        mask, count = valid(counts, frames.shape[1])[:, :, None], counts[:, None, None]
        centered = frames - (frames * mask).sum(1, keepdim=True) / count
        variance = (centered * mask).square().sum(1, keepdim=True) / torch.clamp(count - 1, min=1)
        return centered / (variance.sqrt() + 1e-10)


class Mfcc(Spectral):
    """13 cepstral coefficients of 23 mel bands with deltas and delta-deltas."""

    stable_name = "upstreams.spectral:Mfcc"

    def __init__(self) -> None:
        center, scale = torch.zeros(13), torch.full((13,), 20.0)
        center[0], scale[0] = -25.0, 15.0
        super().__init__(LogMel(23), 13, center, scale)
        self.cosines: Tensor
        self.register_buffer("cosines", dct_matrix(23, 13))

    def represent(self, waveforms: Tensor) -> Tensor:
        return self.spectrum(waveforms) @ self.cosines


class Spectrogram(Spectral):
    """Logarithm of the power in 257 bins of 31.25 Hz."""

    stable_name = "upstreams.spectral:Spectrogram"
    order = 0

    def __init__(self) -> None:
        super().__init__(PowerSpectrum(), 257, center=-6.0, scale=3.0)

    def represent(self, waveforms: Tensor) -> Tensor:
        return torch.clamp(self.spectrum(waveforms), min=FLOOR).log()


@register
def fbank() -> Upstream:
    """80 log-mel bands with deltas and delta-deltas (240), not normalised per clip."""
    return Fbank()


@register
def fbank_cmvn() -> Upstream:
    """SUPERB's FBANK row: normalised per clip, so its time mean is zero and clip-level probes are at chance."""
    return FbankCmvn()


@register
def mfcc() -> Upstream:
    """13 mel-frequency cepstral coefficients with deltas and delta-deltas (39), not normalised per clip."""
    return Mfcc()


@register
def spectrogram() -> Upstream:
    """Log-power spectrogram of 257 bins, not normalised per clip."""
    return Spectrogram()
