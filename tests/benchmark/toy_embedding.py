"""An encoder of embeddings that is small enough to be tuned in a second, with its upstream and its checkpoints."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upstreams.base import Features, Upstream, UpstreamError, valid
from upstreams.safety import checkpoints

NAME = "voice"
MODULE = "tests.benchmark.toy_embedding"
WINDOW, BINS, DIM = 400, 201, 12
pause = float(os.environ.get("TOY_PAUSE", "0"))  # seconds that a step takes at least


class Network(nn.Module):
    """A spectrum, averaged over time, and two layers."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(BINS, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, DIM))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        if self.training:
            time.sleep(pause)
        frames = waveforms.unfold(1, WINDOW, WINDOW)
        kept = valid((lengths // WINDOW).clamp(min=1), frames.shape[1])[:, :, None]
        spectra = torch.fft.rfft(frames.masked_fill(~kept, 0.0)).abs()
        return self.layers((spectra + 1e-3).log().sub(-7).mul(kept).sum(1) / kept.sum(1) / 7)


class Voice(Upstream):
    hop = window = WINDOW
    layers = 1
    dim = DIM

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        waveforms = nn.functional.pad(waveforms, (0, max(0, WINDOW - waveforms.shape[1])))
        counts = self.frame_lengths(lengths)
        frames = self.network(waveforms, lengths)[:, None, None].expand(-1, int(counts.max()), -1, -1)
        return Features(frames * valid(counts, frames.shape[1])[:, :, None, None], counts)


def network_of(path: str) -> Network:
    weights = checkpoints.read_weights(path)
    if "layers.0.weight" not in weights:
        raise UpstreamError(f"'{path}' holds no voice; give one")
    network = Network()
    network.load_state_dict(weights)
    return network


def network_state(network: Network) -> dict[str, Tensor]:
    return network.state_dict()


def voice(checkpoint: str = "", random: bool = False) -> Upstream:
    """A toy."""
    return Voice(network_of(checkpoint))


def write_network(path: Path) -> Path:
    """A checkpoint with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(Network().state_dict(), path)
    return path


def main() -> None:
    """`bench` with this encoder registered, in a process of its own."""
    import upstreams
    from benchmark.cli.app import main as bench
    from upstreams.pretraining.methods import METHODS

    METHODS[NAME] = MODULE
    upstreams.register(voice)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bench()


if __name__ == "__main__":
    main()
