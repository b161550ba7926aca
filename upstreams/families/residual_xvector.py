"""Residual x-vector networks (He et al., 2016; Villalba et al., 2020), as hyperion builds and names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from upstreams.base import valid

STAGES = 4  # of residual blocks; each but the first halves time and frequency, and doubles the channels
LEAST = 1e-5  # variance over time


class Shape(NamedTuple):
    """What a network's weights are shaped by, and what it does that they do not tell.

    channels: of the first stage. blocks: of each stage. dim: of the embedding. bands: of its input. stride: of the
    first convolution. capped: whether activations end at 6.
    """

    channels: int
    blocks: tuple[int, ...]
    dim: int
    bands: int
    stride: int = 1
    capped: bool = True

    @property
    def hops(self) -> tuple[int, ...]:
        """Input frames from one frame to the next, of the first convolution and of each stage."""
        return (self.stride, *(self.stride << stage for stage in range(STAGES)))

    @property
    def width(self) -> int:
        """Channels times bands, the same after each stage."""
        return self.channels * (self.bands // self.stride)


def activation(capped: bool) -> nn.Module:
    return nn.ReLU6() if capped else nn.ReLU()


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False)


class InBlock(nn.Module):
    """The first convolution."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv, self.bn = convolution(1, shape.channels, stride=shape.stride), nn.BatchNorm2d(shape.channels)
        self.act = activation(shape.capped)

    def forward(self, maps: Tensor, kept: Tensor | None) -> Tensor:
        return self.act(self.bn(self.conv(maps)))


class ResidualBlock(nn.Module):
    """Two convolutions around which the input passes, through one of its own where shapes change."""

    def __init__(self, before: int, after: int, stride: int, capped: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(before, after, stride=stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = convolution(after, after), nn.BatchNorm2d(after)
        self.act = activation(capped)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(convolution(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, maps: Tensor, kept: Tensor | None) -> Tensor:
        """Maps (B, C, F, T), silent beyond each clip, to maps that need not be; kept (B, 1, 1, T'): frames of these."""
        inner = silent(self.act(self.bn1(self.conv1(maps))), kept)
        around = maps if self.downsample is None else self.downsample(maps)
        return self.act(self.bn2(self.conv2(inner)) + around)


def silent(maps: Tensor, kept: Tensor | None) -> Tensor:
    """Zero beyond each clip: what a convolution sees behind the end of one that nothing is batched with."""
    return maps if kept is None else maps.masked_fill(~kept, 0.0)


class ResNet(nn.Module):
    """Stages of residual blocks over log-mel frames."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hops = shape.hops
        self.in_block = InBlock(shape)
        for stage, number in enumerate(shape.blocks):
            after = shape.channels << stage
            first = ResidualBlock(after if stage == 0 else after // 2, after, 1 if stage == 0 else 2, shape.capped)
            rest = [ResidualBlock(after, after, 1, shape.capped) for _ in range(number - 1)]
            self.add_module(f"layer{stage + 1}", nn.ModuleList([first, *rest]))

    def forward(self, mel: Tensor, frames: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Maps (B, C, F, T) of the first convolution and each stage, zero beyond their frames (B,), with these.

        mel: (B, T, bands), zero beyond its frames (B,).
        """
        maps = mel.transpose(1, 2)[:, None]
        found: list[tuple[Tensor, Tensor]] = []
        for stage, hop in enumerate(self.hops):
            counts, size = after(frames, hop), -(-mel.shape[1] // hop)
            kept = None if bool((counts == size).all()) else valid(counts, size)[:, None, None]
            for block in self.stage(stage):
                maps = silent(block(maps, kept), kept)
            found.append((maps, counts))
        return found

    def stage(self, number: int) -> Sequence[nn.Module]:
        """Blocks of a stage from 1 on; 0 is the first convolution."""
        return [*cast(nn.ModuleList, getattr(self, f"layer{number}"))] if number else [self.in_block]

    def start(self) -> None:
        """Draw convolutions anew (He et al., 2015); norms and what they have seen as they begin."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def after(frames: Tensor, hop: int) -> Tensor:
    """How many frames convolutions of stride `hop` make of `frames` (B,)."""
    return (frames + hop - 1) // hop


def flattened(maps: Tensor) -> Tensor:
    """(B, C, F, T) to (B, C * F, T)."""
    return maps.flatten(1, 2)


def statistics(frames: Tensor, counts: Tensor) -> Tensor:
    """Mean and standard deviation over time (B, 2 D) of frames (B, D, T), of which counts (B,) are valid."""
    kept, number = valid(counts, frames.shape[2])[:, None], counts[:, None]
    mean = frames.masked_fill(~kept, 0.0).sum(2) / number
    variance = (frames - mean[:, :, None]).square().masked_fill(~kept, 0.0).sum(2) / number
    return torch.cat([mean, variance.clamp(min=LEAST).sqrt()], dim=1)


class Affine(nn.Module):
    """The embedding: a linear layer and its norm, without an activation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear, self.bn1 = nn.Linear(before, after, bias=False), nn.BatchNorm1d(after)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.bn1(self.linear(vectors))


class Embedding(nn.Module):
    """All that is left of a classifier: its first affine layer."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.fc_blocks = nn.ModuleList([Affine(before, after)])

    def forward(self, vectors: Tensor) -> Tensor:
        return self.fc_blocks[0](vectors)


class ResidualXVector(nn.Module):
    """The network from log-mel frames to an embedding of the clip."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.dim = shape, shape.dim
        self.encoder_net = ResNet(shape)
        self.encoder_net.start()
        self.classif_net = Embedding(2 * shape.width, shape.dim)

    def embedding(self, mel: Tensor, frames: Tensor) -> Tensor:
        """(B, dim) of (B, T, bands), zero beyond its frames (B,)."""
        maps, counts = self.encoder_net(mel, frames)[-1]
        with torch.autocast(mel.device.type, enabled=False):
            return self.classif_net(statistics(flattened(maps).float(), counts))
