"""The utterance probe that clip-level heads share: linear in the frames, so it may be fed their time mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from downstreams.base import Head, HeadError, LayerSum, lengths_of, masked_mean


class Probe(Head):
    """Layer sum, Linear, time mean, Linear, without a nonlinearity (SUPERB; Yang et al., 2021).

    Every step before the last is linear in the frames and has weights that do not depend on them, so the time mean may
    be taken first: frames (B, T, L, D) and their means (B, L, D) give the same outputs.
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
        """Sorted class names in label strings; raises HeadError where they leave nothing to learn."""

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, C) of summaries (B, L, D), or of frames (B, T, L, D) with their lengths (B,)."""
        summed = self.layer_sum(inputs)
        if inputs.dim() == 4:
            return self.output(masked_mean(self.projection(summed), lengths_of(inputs, lengths)))
        if len(self.classes) >= len(inputs):
            return self.output(self.projection(summed))
        # Fewer classes than clips: multiplying the two matrices first takes less than half the work.
        bias = torch.addmv(self.output.bias, self.output.weight, self.projection.bias)
        return nn.functional.linear(summed, self.output.weight @ self.projection.weight, bias)
