"""An upstream that is registered for a test only, and reads checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import upstreams
from upstreams import register
from upstreams.base import Features, Upstream, valid
from upstreams.safety.checkpoints import digests, read_weights


class Toy(Upstream):
    """Stretches of 20 ms through a matrix."""

    hop, window, layers = 320, 320, 1

    def __init__(self, dim: int, gain: float) -> None:
        super().__init__()
        self.dim, self.gain = dim, gain
        self.matrix = nn.Parameter(torch.randn(dim, self.window))

    def settings(self) -> dict[str, object]:
        return {"gain": self.gain}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        sound = waveforms.masked_fill(~valid(lengths, waveforms.shape[1]), 0.0)
        sound = nn.functional.pad(sound, (0, max(0, self.window - sound.shape[1])))
        frames = self.gain * sound.unfold(1, self.window, self.hop) @ self.matrix.T
        return Features((frames * valid(counts, frames.shape[1])[:, :, None])[:, :, None], counts)


def toy(checkpoint: str = "", random: bool = False, size: str = "small", gain: float = 1.0, fast: bool = False) -> Toy:
    """Made for a test."""
    state = read_weights(checkpoint) if checkpoint else {}
    upstream = Toy(len(state["matrix"]) if state else {"small": 2, "large": 4}[size], gain)
    if state and not random:
        upstream.load_state_dict(state)
    upstream.origin = digests([checkpoint] if checkpoint else [])
    return upstream


@contextmanager
def registered(builder: Callable[..., Upstream]) -> Iterator[None]:
    """Within it a builder's name is one of the package's."""
    register(builder)
    try:
        yield
    finally:
        del upstreams._registered[builder.__name__]


def save_toy(path: Path, seed: int, dim: int = 3) -> Path:
    """A checkpoint of a toy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"matrix": torch.randn(dim, Toy.window, generator=torch.Generator().manual_seed(seed))}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path
