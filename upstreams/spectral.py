"""Log-mel, MFCC and spectrogram: the floor that every column is measured from.

Framing, windowing and filters are Kaldi's (Povey et al., 2011) on waveforms in [-1, 1], as in SUPERB's FBANK row
(Yang et al., 2021), but scaled by constants, not per clip: what a clip's mean says about it stays in the features.
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
    """Kaldi's power spectrum: frames without their mean, pre-emphasised by 0.97, windowed, zero-padded to 2^n.

    shape: "povey" or "hanning".
    """

    def __init__(self, sample_rate: int = 16_000, shape: str = "povey") -> None:
        super().__init__()
        self.size, self.hop = sample_rate * 25 // 1000, sample_rate * 10 // 1000
        self.fft = 2 ** math.ceil(math.log2(self.size))
        hann = torch.hann_window(self.size, periodic=False, dtype=torch.float64)
        self.taper: Tensor
        self.register_buffer("taper", (hann**0.85 if shape == "povey" else hann).float())

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, S) with S at least `size` to (B, T, fft / 2 + 1)."""
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
        self.register_buffer("banks", mel_banks(bands, self.fft, sample_rate))

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, S) with S at least `size` to (B, T, bands)."""
        return torch.clamp(super().forward(waveforms) @ self.banks, min=FLOOR).log()


def mel_banks(bands: int, fft: int, sample_rate: int, lowest: float = 20.0) -> Tensor:
    """Kaldi's triangular filters (fft / 2 + 1, bands), triangular on the mel axis 1127 ln(1 + Hz / 700)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.arange(fft // 2 + 1, dtype=torch.float64) * sample_rate / fft)
    low, high = mel(torch.tensor([lowest, sample_rate / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins[:, None] - left) / (peak - left), (right - bins[:, None]) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0).float()


def cosines(bands: int, coefficients: int, lifter: float = 22.0) -> Tensor:
    """Orthonormal DCT-II with Kaldi's sinusoidal liftering, (bands, coefficients)."""
    orders = torch.arange(coefficients, dtype=torch.float64)
    angles = math.pi / bands * (torch.arange(bands, dtype=torch.float64)[:, None] + 0.5) * orders
    norms = torch.full((coefficients,), math.sqrt(2 / bands), dtype=torch.float64)
    norms[0] = math.sqrt(1 / bands)
    lift = 1 + lifter / 2 * torch.sin(math.pi * orders / lifter)
    return (angles.cos() * norms * lift).float()


def deltas(frames: Tensor, lengths: Tensor) -> Tensor:
    """Slope of the regression line through five frames, (B, T, D); a clip's end is extended by its own last frame."""
    last = frames[torch.arange(len(frames), device=frames.device), lengths - 1][:, None]
    frames = torch.where(valid(lengths, frames.shape[1])[:, :, None], frames, last)
    x = torch.cat([frames[:, :1], frames[:, :1], frames, frames[:, -1:], frames[:, -1:]], dim=1)
    near, far = x[:, 3:-1] - x[:, 1:-3], x[:, 4:] - x[:, :-4]
    return (near + 2 * far) / 10


class Spectral(Upstream):
    """What the spectral upstreams share: masking, deltas and scaling around `represent`; one layer."""

    layers = 1
    order = 2  # deltas of deltas of ... this many times

    def __init__(self, spectrum: PowerSpectrum, statics: int, center: Tensor | float, scale: Tensor | float) -> None:
        """center, scale: constants () or (statics,) about the mean and standard deviation of the statics of speech."""
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
        """Statics (B, T, D) of waveforms (B, S) without anything beyond a clip's length."""

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        # Energies span eight decades, so reduced precision must not reach them.
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
        """(B, T, D) to (B, T, (order + 1) D), each part at the scale of the statics."""
        parts = [statics]
        for _ in range(self.order):
            parts.append(deltas(parts[-1], counts))
        return torch.cat([part * by for part, by in zip(parts, DELTA_SCALES, strict=False)], dim=2)

    def finish(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Last step on (B, T, D)."""
        return frames


def trimmed(waveforms: Tensor, lengths: Tensor, shortest: int) -> Tensor:
    """Zeros for what lies beyond each clip, cut to the longest clip or extended to `shortest` samples."""
    size = int(lengths.max())
    kept = waveforms[:, :size].masked_fill(~valid(lengths, size), 0.0)
    return F.pad(kept, (0, max(shortest - size, 0)))


class Fbank(Spectral):
    """80 log-mel bands with deltas and delta-deltas."""

    stable_name = "upstreams.spectral:Fbank"

    def __init__(self) -> None:
        super().__init__(LogMel(80), 80, center=-5.0, scale=3.0)

    def represent(self, waveforms: Tensor) -> Tensor:
        return self.spectrum(waveforms)


class FbankCmvn(Fbank):
    """`Fbank` with each clip's own mean and variance removed (Yang et al., 2021)."""

    stable_name = "upstreams.spectral:FbankCmvn"

    def finish(self, frames: Tensor, counts: Tensor) -> Tensor:
        # Measured from the first frame, a constant band is exactly zero: rounding is never blown up to unit variance.
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
        self.register_buffer("cosines", cosines(23, 13))

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
