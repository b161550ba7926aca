"""Initialisation of convolutions over waveforms as a filter bank, for training on little audio.

Randomly initialised narrow convolutions need hours of audio before their outputs represent the spectrum. Convolutions
that are initialised as a filter bank represent it from the first step on, as the Gabor filters of Zeghidour et al.
(2021) do. Unlike those, every weight is free to change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = 60.0, 7600.0  # Hz; lowest and highest frequency of the filters
LOUDNESS = 16.0  # gain: output amplitude of the filter at 1 kHz for a sine of amplitude 1 and the same frequency


def init_as_filter_bank(convolutions: list[nn.Conv1d], sample_rate: int = 16_000) -> None:
    """Set the kernels of the first convolution to windowed sinusoids, and the others to averages over time.

    The other convolutions mix channels with random weights from torch's generator, equal at all times of the kernel.
    With a rectifier between the layers, their time averages measure the energies of the filters.
    """
    first, *others = convolutions
    with torch.no_grad():
        first.weight.copy_(filter_bank(len(first.weight) // 2, first.kernel_size[0], sample_rate)[:, None])
        for convolution in others:
            mixing = torch.randn(*convolution.weight.shape[:2], 1) * math.sqrt(2 / convolution.in_channels)
            convolution.weight.copy_(mixing.expand_as(convolution.weight) / convolution.kernel_size[0])
        for convolution in convolutions:
            if convolution.bias is not None:
                convolution.bias.zero_()


def filter_bank(bands: int, size: int, sample_rate: int) -> Tensor:
    """Return Hann-windowed cosines, then sines, (2 bands, size), at frequencies evenly spaced in mel.

    Their gain grows with the square root of the frequency, because speech has less energy at high frequencies.
    """
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in (LOWEST, HIGHEST))
    hertz = 700.0 * torch.expm1(torch.linspace(low, high, bands, dtype=torch.float64) / 1127.0)
    times = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    angles = 2 * math.pi * hertz[:, None] * times / sample_rate
    window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]
    waves = torch.cat([angles.cos(), angles.sin()]) * window * LOUDNESS / window.sum()
    waves = waves * (hertz / 1000.0).sqrt().repeat(2)[:, None]
    return (waves - waves.mean(1, keepdim=True)).float()
