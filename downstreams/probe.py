"""The utterance probe that clip-level heads share. It is linear in the frames, so it can use their time mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from downstreams.base import Head, LayerSum, lengths_of, masked_mean
from downstreams.errors import HeadError


class Probe(Head):
    """SUPERB's utterance probe (Yang et al., 2021): layer sum, Linear, time mean, Linear, without a nonlinearity.

    The layer sum and the first Linear are affine maps of each frame, so the time mean may be taken before them:
    frames (B, T, L, D) and their means (B, L, D) give the same outputs.
    """

    view = "summary"
    judged_on = "labels"
    batched = True

    def __init__(self, layers: int, dim: int, targets: Sequence[str], hidden: int = 256) -> None:
        """hidden: width between the two linear layers; see `Head` for the others."""
        super().__init__(layers, dim, targets)
        if hidden < 1:
            raise HeadError(f"hidden must be at least 1, not {hidden}")
        self.classes = self.classes_of(targets)
        self.index = {name: number for number, name in enumerate(self.classes)}
        self.layer_sum = LayerSum(layers)
        self.projection = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, len(self.classes))

    @staticmethod
    @abstractmethod
    def classes_of(targets: Sequence[str]) -> list[str]:
        """Return the sorted class names in label strings. Raises HeadError where there are too few to train on."""

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, C) of summaries (B, L, D), or of frames (B, T, L, D) with their lengths (B,)."""
        summed = self.layer_sum(inputs)
        if inputs.dim() == 4:
            return self.output(masked_mean(self.projection(summed), lengths_of(inputs, lengths)))
        if len(self.classes) >= len(inputs):
            return self.output(self.projection(summed))
        # With fewer classes than clips, multiplying the two weight matrices first more than halves the work.
        bias = torch.addmv(self.output.bias, self.output.weight, self.projection.bias)
        return nn.functional.linear(summed, self.output.weight @ self.projection.weight, bias)
