"""Networks that compute one embedding per clip, such as x-vectors, built from SpeechBrain's modules.

Only clips of the same length are encoded together, because convolutions with reflection padding,
squeeze-and-excitation and attention over time would otherwise see the batch padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import Features, Upstream, by_length

POOLING: dict[str, Callable[[Any], nn.Module]] = {  # the part of each network that pools all frames into one vector
    "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN": lambda network: network.asp,
    "speechbrain.lobes.models.ResNet.ResNet": lambda network: network.attention,
    "speechbrain.lobes.models.Xvector.Xvector": lambda network: network.blocks[-2],
}
OFFSET = 1e-5  # added to standard deviations by pooling
LONGEST = 100  # upper limit, in seconds, of the shortest accepted clip


class SpeakerEncoder(Upstream):
    """The only layer is the input of the pooling; `summarize` returns the embedding, before any classifier.

    features: SpeechBrain's Fbank. normalization: maps (N, T, C) to the same shape. network: maps these to embeddings;
    its class is a key of POOLING. described: "network" is the name of the class, "arguments" and "features" hold the
    arguments of network and Fbank by name. Raises RuntimeError if the parts do not fit together.
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
        mel_hop = int(features.compute_STFT.hop_length)
        self.hop = mel_hop * math.prod(described["arguments"].get("strides", [1]))
        self.shortest = mel_hop * max(1, *(reflection_padding(module) for module in network.modules()))
        self.dim = self.probed_dim()

    def probed_dim(self) -> int:
        """Encode a short silent clip and return the number of channels; raises RuntimeError for unexpected frames."""
        samples = self.shortest + self.hop
        if samples > LONGEST * self.sample_rate:
            raise RuntimeError(f"it only takes clips of {samples / self.sample_rate:.0f} seconds and more")
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
        """Return the embeddings, (B, 1, E)."""
        ones = torch.ones_like(lengths)
        return by_length(lambda clips: self.encode(clips)[1], waveforms, lengths, ones).frames[:, 0]

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (N, T, 1, C) and embeddings (N, 1, 1, E) of clips (N, S) of the same length."""
        inputs: list[Tensor] = []
        pooling = self.pooling()
        hook = pooling.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            long_enough = F.pad(clips, (0, max(self.shortest - clips.shape[1], 0)))
            embeddings = self.network(self.normalization(self.features(long_enough)))
        finally:
            hook.remove()
        frames = inputs[0] if isinstance(pooling, Statistics) else inputs[0].transpose(1, 2)
        return frames[:, :, None].float(), embeddings.reshape(len(clips), 1, 1, -1).float()


def reflection_padding(module: Any) -> int:
    """Return the frames of reflection padding on each side in a SpeechBrain convolution; its input must be longer."""
    reflects = getattr(module, "padding_mode", "") == "reflect"
    return module.dilation * (module.kernel_size - 1) // 2 if reflects else 0


class Normalization(nn.Module):
    """SpeechBrain's InputNormalization at inference: by the statistics of each clip over time, or of the training data.

    scale: whether to divide by the standard deviation, clamped to at least `epsilon`.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, scale: bool, epsilon: float, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.scale, self.epsilon = scale, epsilon
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, T, C)."""
        mean = x.mean(1, keepdim=True) if self.mean is None else self.mean
        if not self.scale:
            return x - mean
        std = (x - mean).square().mean(1, keepdim=True).sqrt() if self.std is None else self.std
        return (x - mean) / std.clamp(min=self.epsilon)


class Statistics(nn.Module):
    """SpeechBrain's StatisticsPooling; the random offset of means, 1e-5 to 9e-5, is replaced by its expected value."""

    def forward(self, x: Tensor, lengths: None = None) -> Tensor:
        """Return means and standard deviations (N, 1, 2 * C) over time of x (N, T, C)."""
        return torch.cat([x.mean(1) + 5 * OFFSET, x.std(1) + OFFSET], dim=1)[:, None]
