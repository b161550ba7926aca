"""Residual x-vector networks (He et al., 2016; Villalba et al., 2020), with the layout and weight names of hyperion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from upstreams.base import valid

STAGES = 4  # stages of residual blocks; each but the first halves time and frequency and doubles the channels
LEAST = 1e-5  # lower limit of the variance over time


class Shape(NamedTuple):
    """The architecture of a network.

    channels: channels of the first stage. blocks: number of residual blocks of each stage. dim: size of the embedding.
    bands: mel bands of the input. stride: stride of the first convolution. capped: whether activations are ReLU6, not
    ReLU; the weights do not show this.
    """

    channels: int
    blocks: tuple[int, ...]
    dim: int
    bands: int
    stride: int = 1
    capped: bool = True

    @property
    def hops(self) -> tuple[int, ...]:
        """The hop, in input frames, of the first convolution and of each stage."""
        return (self.stride, *(self.stride << stage for stage in range(STAGES)))

    @property
    def width(self) -> int:
        """Channels times bands, which is the same after each stage."""
        return self.channels * (self.bands // self.stride)


def activation(capped: bool) -> nn.Module:
    return nn.ReLU6() if capped else nn.ReLU()


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False)


class InBlock(nn.Module):
    """The first convolution with its norm and activation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv, self.bn = convolution(1, shape.channels, stride=shape.stride), nn.BatchNorm2d(shape.channels)
        self.act = activation(shape.capped)

    def forward(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        return self.act(self.bn(self.conv(maps)))


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection, which has a convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, capped: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(before, after, stride=stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = convolution(after, after), nn.BatchNorm2d(after)
        self.act = activation(capped)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(convolution(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output maps (B, C', F', T'), not masked, for maps (B, C, F, T) that are zero after each clip.

        mask: the valid frames (B, 1, 1, T') of the output, or None if all are valid.
        """
        inner = zero_padding(self.act(self.bn1(self.conv1(maps))), mask)
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return self.act(self.bn2(self.conv2(inner)) + shortcut)


def zero_padding(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Set maps to zero after the end of each clip, as a convolution pads a clip that is alone in its batch."""
    return maps if mask is None else maps.masked_fill(~mask, 0.0)


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
        """Return the maps (B, C, F, T) and frame counts (B,) of the first convolution and of each stage.

        Maps are zero after their last frame. mel: (B, T, bands), zero after its `frames` (B,).
        """
        maps = mel.transpose(1, 2)[:, None]
        outputs: list[tuple[Tensor, Tensor]] = []
        for stage, hop in enumerate(self.hops):
            counts, size = frames_after(frames, hop), -(-mel.shape[1] // hop)
            mask = None if bool((counts == size).all()) else valid(counts, size)[:, None, None]
            for block in self.stage(stage):
                maps = zero_padding(block(maps, mask), mask)
            outputs.append((maps, counts))
        return outputs

    def stage(self, number: int) -> Sequence[nn.Module]:
        """Return the blocks of stage `number`, from 1 to 4; stage 0 is the first convolution."""
        return [*cast(nn.ModuleList, getattr(self, f"layer{number}"))] if number else [self.in_block]

    def start(self) -> None:
        """Initialise convolutions at random (He et al., 2015), and reset norms and their running statistics."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def frames_after(frames: Tensor, hop: int) -> Tensor:
    """Return the number of output frames (B,) of convolutions with total stride `hop` for `frames` (B,) inputs."""
    return (frames + hop - 1) // hop


def flattened(maps: Tensor) -> Tensor:
    """Reshape maps (B, C, F, T) to (B, C * F, T)."""
    return maps.flatten(1, 2)


def statistics_pooling(frames: Tensor, counts: Tensor) -> Tensor:
    """Return the mean and standard deviation over time (B, 2 D) of the first `counts` (B,) of frames (B, D, T)."""
    mask, number = valid(counts, frames.shape[2])[:, None], counts[:, None]
    mean = frames.masked_fill(~mask, 0.0).sum(2) / number
    variance = (frames - mean[:, :, None]).square().masked_fill(~mask, 0.0).sum(2) / number
    return torch.cat([mean, variance.clamp(min=LEAST).sqrt()], dim=1)


class Affine(nn.Module):
    """The layer that computes the embedding: a linear layer and a batch norm, without an activation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear, self.bn1 = nn.Linear(before, after, bias=False), nn.BatchNorm1d(after)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.bn1(self.linear(vectors))


class Embedding(nn.Module):
    """The first affine layer of hyperion's classifier; the other layers are not needed."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.fc_blocks = nn.ModuleList([Affine(before, after)])

    def forward(self, vectors: Tensor) -> Tensor:
        return self.fc_blocks[0](vectors)


class ResidualXVector(nn.Module):
    """The network that maps log-mel frames to an embedding of the clip."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.dim = shape, shape.dim
        self.encoder_net = ResNet(shape)
        self.encoder_net.start()
        self.classif_net = Embedding(2 * shape.width, shape.dim)

    def embedding(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return the embeddings (B, dim) of mel (B, T, bands), which is zero after its `frames` (B,)."""
        maps, counts = self.encoder_net(mel, frames)[-1]
        with torch.autocast(mel.device.type, enabled=False):
            return self.classif_net(statistics_pooling(flattened(maps).float(), counts))
