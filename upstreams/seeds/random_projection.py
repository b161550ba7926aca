"""Random-projection quantizers (Chiu et al., 2022): targets for masked prediction that need no training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16  # channels after the projection
SMALLEST = 1e-6  # least variance of a channel


class Quantizer(nn.Module):
    """Map a frame to the random code that is nearest to its random projection, in each of several codebooks.

    Projections are drawn by Xavier initialisation, codes from a normal distribution; both are compared at unit length.
    Neither is trained. channels: channels of the frames.
    """

    def __init__(self, channels: int, codebooks: int, codes: int) -> None:
        super().__init__()
        self.projections: Tensor
        self.codes: Tensor
        self.register_buffer("projections", torch.stack([xavier(channels) for _ in range(codebooks)]))
        self.register_buffer("codes", F.normalize(torch.randn(codebooks, codes, WIDTH), dim=2))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def measure(self, parts: Iterable[Tensor]) -> None:
        """Measure the mean and variance of frames, given in parts (N, channels), by which later frames are normalised.

        Without normalisation, nearly all frames get the same few codes, because their common mean dominates.
        """
        count, (total, squares) = 0, torch.zeros(2, len(self.mean), dtype=torch.float64, device=self.mean.device)
        for part in parts:
            count += len(part)
            total += part.double().sum(0)
            squares += part.double().square().sum(0)
        if count:
            self.mean.copy_(total / count)
            self.deviation.copy_((squares / count - (total / count).square()).clamp(min=SMALLEST).sqrt())

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (N, channels) to indices of codes (N, codebooks)."""
        with torch.autocast(frames.device.type, enabled=False):
            projected = F.normalize(
                (frames.float() - self.mean) / self.deviation @ self.projections, dim=2
            )  # (codebooks, N, WIDTH)
            return (projected @ self.codes.transpose(1, 2)).argmax(2).T


def xavier(channels: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(channels, WIDTH))
