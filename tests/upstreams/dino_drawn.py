"""Clips and weights that names alone decide, and what hyperion (persephone-dino) made of them, in `data/dino.npz`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLIPS = (0.2, 1.7, 3.21, 5.005)  # seconds
stored = np.load(Path(__file__).with_name("data") / "dino.npz")


def drawn(name: str, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def drawn_clip(seconds: float) -> Tensor:
    """Noise that swells from -88 dB to full strength and back."""
    samples = round(16_000 * seconds)
    times = torch.arange(samples) / 16_000
    return 0.2 * 10 ** (-2.2 * (1 + torch.sin(5 * times + 1))) * drawn(f"clip {seconds}", samples)


def drawn_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and statistics of norms, of the shapes in a state dict of hyperion's names."""
    return {name: drawn_weight(name, tensor) for name, tensor in state.items()}


def drawn_weight(name: str, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return like
    found = drawn(name, *like.shape)
    if name.endswith("running_var"):
        return 0.5 + found.abs()
    if like.ndim == 1:
        return 1 + 0.2 * found if name.endswith("weight") else 0.3 * found
    return found * (2 / like[0].numel()) ** 0.5
