"""The contract of a head: features in, predictions and scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn


class HeadError(ValueError):
    """Something about labels, options or features that the user must change; the message is one sentence for them."""


class Batch(NamedTuple):
    """A few clips as a head is fed them.

    ids: B utterance ids.
    inputs: (B, L, D) summaries, (B, T, L, D) frames, or (B, S) waveforms where an encoder runs first.
    lengths: (B,) valid frames or samples; None for summaries.
    targets: B label strings.
    """

    ids: list[str]
    inputs: Tensor
    lengths: Tensor | None
    targets: list[str]


class Trial(NamedTuple):
    """Two utterances by id, and whether one speaker said both."""

    enroll: str
    test: str
    target: bool


class LayerSum(nn.Module):
    """Weighted sum over layers with softmax weights that start uniform (Yang et al., 2021)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))

    @property
    def weights(self) -> Tensor:
        """(L,), summing to one."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """(..., L, D) to (..., D)."""
        return torch.einsum("...ld,l->...d", features, self.weights)


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean (B, D) over the valid frames of (B, T, D)."""
    mask = torch.arange(frames.shape[1], device=frames.device)[None, :] < lengths[:, None]
    return (frames * mask[:, :, None]).sum(1) / lengths[:, None]


class Head(nn.Module, ABC):
    """Solves one kind of problem on top of features.

    A head derives its own classes or alphabet from the training targets, so nothing about test labels can leak in.
    """

    view: ClassVar[Literal["frames", "summary"]]  # what it is fed
    judged_on: ClassVar[Literal["labels", "trials"]]  # what `score` takes as references
    metrics: ClassVar[Mapping[str, bool]]  # what `score` reports; True = higher is better. The first is the default.
    trained: ClassVar[bool] = True  # False: nothing to learn by gradient; `fit` only selects on validation
    batched: ClassVar[bool] = False  # True: K heads may train as one batched computation under torch.func.vmap
    layer_sum: LayerSum

    @abstractmethod
    def __init__(self, layers: int, dim: int, targets: Sequence[str], **options: Any) -> None:
        """layers, dim: L and D of the features fed; targets: label strings of the training clips."""
        super().__init__()

    @abstractmethod
    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def encode(self, targets: Sequence[str]) -> Any:
        """Label strings as what `loss` takes: a tensor, or a tuple of tensors. Raises HeadError on unknown labels."""

    @abstractmethod
    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Mean loss () of a batch."""

    @abstractmethod
    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Any]:
        """B predictions: JSON values for heads judged on labels, (E,) embeddings for heads judged on trials."""

    @classmethod
    @abstractmethod
    def score(cls, predictions: Mapping[str, Any], references: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Scores in percent where the metric is a rate, and one outcome row per utterance or trial.

        predictions: by utterance id; references: label strings by utterance id, or a sequence of `Trial`.
        Raises HeadError where ids are missing on either side.
        """
