"""A start for convolutions over waveforms that hear from the first step on, where there is little sound to learn it of.

Drawn at random, narrow convolutions need hours of sound until what they give tells of the spectrum; begun as a filter
bank, as the Gabor filters of Zeghidour et al. (2021) are, but with every weight free, they do so at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = 60.0, 7600.0  # Hz
LOUDNESS = 16.0  # of what the filter at 1 kHz gives, of a wave of height 1 and its frequency


def begin_as_filters(convolutions: list[nn.Conv1d], sample_rate: int = 16_000) -> None:
    """Let the first one's kernels be waves under a window, and the others mix channels without a sense of time.

    What they mix is drawn from torch's generator; a rectifier between them makes their means over time loudnesses.
    """
    first, *others = convolutions
    with torch.no_grad():
        first.weight.copy_(filter_bank(len(first.weight) // 2, first.kernel_size[0], sample_rate)[:, None])
        for each in others:
            mixed = torch.randn(*each.weight.shape[:2], 1) * math.sqrt(2 / each.in_channels)
            each.weight.copy_(mixed.expand_as(each.weight) / each.kernel_size[0])
        for each in convolutions:
            if each.bias is not None:
                each.bias.zero_()


def filter_bank(bands: int, size: int, sample_rate: int) -> Tensor:
    """Cosines, then sines, (2 bands, size) under Hann windows, at frequencies evenly spaced in mel.

    They amplify by the square root of the frequency, as speech has less of the higher ones.
    """
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in (LOWEST, HIGHEST))
    hertz = 700.0 * torch.expm1(torch.linspace(low, high, bands, dtype=torch.float64) / 1127.0)
    times = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    angles = 2 * math.pi * hertz[:, None] * times / sample_rate
    window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]
    waves = torch.cat([angles.cos(), angles.sin()]) * window * LOUDNESS / window.sum()
    waves = waves * (hertz / 1000.0).sqrt().repeat(2)[:, None]
    return (waves - waves.mean(1, keepdim=True)).float()
