"""Networks that make one embedding of a clip, such as x-vectors, around SpeechBrain's modules.

Clips of the same length are encoded together: convolutions that reflect, squeeze-and-excitation and attention over time
would otherwise see the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import Features, Upstream, by_length

POOLING: dict[str, Callable[[Any], nn.Module]] = {  # the part of each network that makes one vector of all frames
    "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN": lambda network: network.asp,
    "speechbrain.lobes.models.ResNet.ResNet": lambda network: network.attention,
    "speechbrain.lobes.models.Xvector.Xvector": lambda network: network.blocks[-2],
}
OFFSET = 1e-5  # that pooling adds to deviations
LONGEST = 100  # seconds that may be needed at least


class SpeakerEncoder(Upstream):
    """One layer: the frames that pooling makes a vector of; `summarize` gives the embedding, before any classifier.

    features: SpeechBrain's Fbank. normalization: (N, T, C) to the same. network: to embeddings, of a class in POOLING.
    described: what they were built from: "network" is its class, "arguments" and "features" are by name.
    Raises RuntimeError where the parts do not fit together.
    """

    stable_name = "upstreams.speaker_encoders:SpeakerEncoder"
    layers = 1
    window = 1

    def __init__(self, features: Any, normalization: nn.Module, network: Any, described: dict[str, Any]) -> None:
        super().__init__()
        self.features, self.normalization, self.network = features, normalization, network
        self.described = described
        if hasattr(self.pooling(), "return_std"):
            network.blocks[-2] = Statistics()
        self.sample_rate = int(features.compute_STFT.sample_rate)
        every = int(features.compute_STFT.hop_length)
        self.hop = every * math.prod(described["arguments"].get("strides", [1]))
        self.shortest = every * max(1, *(reflected(module) for module in network.modules()))
        self.dim = self.tried()

    def tried(self) -> int:
        """Channels of the frames of a short clip."""
        samples = self.shortest + self.hop
        if samples > LONGEST * self.sample_rate:
            raise RuntimeError(f"it takes clips of {samples / self.sample_rate:.0f} seconds and more only")
        self.eval()
        with torch.no_grad():
            frames, _ = self.encode(torch.zeros(1, samples))
        if frames.shape[1] != samples // self.hop + 1:
            raise RuntimeError(f"{frames.shape[1]} frames where {samples // self.hop + 1} are due; kernels must be odd")
        return frames.shape[3]

    def settings(self) -> dict[str, object]:
        return self.described

    def pooling(self) -> nn.Module:
        return POOLING[self.described["network"]](self.network)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(lambda clips: self.encode(clips)[0], waveforms, lengths, self.frame_lengths(lengths))

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The embedding, (B, 1, E)."""
        once = torch.ones_like(lengths)
        return by_length(lambda clips: self.encode(clips)[1], waveforms, lengths, once).frames[:, 0]

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, T, 1, C) and embeddings (N, 1, 1, E) of clips (N, S) of one length, to the last sample."""
        seen: list[Tensor] = []
        pooling = self.pooling()
        hook = pooling.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            long_enough = F.pad(clips, (0, max(self.shortest - clips.shape[1], 0)))
            embeddings = self.network(self.normalization(self.features(long_enough)))
        finally:
            hook.remove()
        frames = seen[0] if isinstance(pooling, Statistics) else seen[0].transpose(1, 2)
        return frames[:, :, None].float(), embeddings.reshape(len(clips), 1, 1, -1).float()


def reflected(module: Any) -> int:
    """Frames that a convolution of SpeechBrain's mirrors at either end; it needs one more than that."""
    mirrors = getattr(module, "padding_mode", "") == "reflect"
    return module.dilation * (module.kernel_size - 1) // 2 if mirrors else 0


class Normalization(nn.Module):
    """SpeechBrain's InputNormalization in use: by a clip's own statistics over time, or by those of training.

    scale: whether deviations, which are taken to be at least `epsilon`, become one.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, scale: bool, epsilon: float, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.scale, self.epsilon = scale, epsilon
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same."""
        mean = x.mean(1, keepdim=True) if self.mean is None else self.mean
        if not self.scale:
            return x - mean
        std = (x - mean).square().mean(1, keepdim=True).sqrt() if self.std is None else self.std
        return (x - mean) / std.clamp(min=self.epsilon)


class Statistics(nn.Module):
    """SpeechBrain's StatisticsPooling, but that what it adds to means, 1e-5 to 9e-5 at random, is its expectation."""

    def forward(self, x: Tensor, lengths: None = None) -> Tensor:
        """(N, T, C) to means and deviations (N, 1, 2 C)."""
        return torch.cat([x.mean(1) + 5 * OFFSET, x.std(1) + OFFSET], dim=1)[:, None]
