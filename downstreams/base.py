"""The contract of a head: features in, predictions and scores out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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

    def use(self, layer: int) -> None:
        """Give all weight to one layer for good; raises HeadError where there is no such layer."""
        if not 0 <= layer < len(self.logits):
            raise HeadError(f"layer must be between 0 and {len(self.logits) - 1}, not {layer}")
        self.requires_grad_(False)
        self.logits.fill_(-torch.inf)[layer] = 0

    @property
    def weights(self) -> Tensor:
        """(L,), summing to one."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """(..., L, D) to (..., D)."""
        if features.shape[-2] == 1:
            return features.squeeze(-2)
        if features.dim() <= 3:
            return torch.tensordot(self.weights, features, dims=([0], [features.dim() - 2]))
        # One small product per frame: on frames several times faster, forward and backward, than einsum or tensordot.
        flat = features.flatten(0, -3)
        return torch.bmm(self.weights.expand(len(flat), 1, -1), flat).view(*features.shape[:-2], -1)


def valid(lengths: Tensor, size: int) -> Tensor:
    """Mask (B, size), True before each clip's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def lengths_of(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """The lengths (B,) given, or those of (B, T, ...) without padding."""
    return torch.full((len(frames),), frames.shape[1], device=frames.device) if lengths is None else lengths


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean (B, ...) over the valid frames of (B, T, ...)."""
    shares = valid(lengths, frames.shape[1]) / lengths[:, None].to(frames.dtype)
    return torch.bmm(shares[:, None], frames.flatten(2)).view(len(frames), *frames.shape[2:])


def matched(predictions: Mapping[str, Any], references: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """Id, prediction and reference of each clip, in the order of the references.

    Raises HeadError where an id has only one of the two, and where a prediction is not a number at all (NaN).
    """
    for name, here, there in (
        ("prediction", references, predictions),
        ("reference", predictions, references),
    ):
        missing = [key for key in here if key not in there]
        if missing:
            raise HeadError(f"no {name} for {len(missing)} of {len(here)} clips, such as {missing[0]!r}")
    strange = [key for key, value in predictions.items() if isinstance(value, float) and math.isnan(value)]
    if strange:
        raise HeadError(f"the predictions for {len(strange)} clips are NaN, such as that for {strange[0]!r}")
    return [(key, predictions[key], reference) for key, reference in references.items()]


class Head(nn.Module, ABC):
    """Solves one kind of problem on top of features.

    A head derives its own classes or alphabet from the training targets, so nothing about test labels can leak in.
    """

    view: ClassVar[Literal["frames", "summary"]]  # what it is fed
    judged_on: ClassVar[Literal["labels", "trials"]]  # what `score` takes as references
    metrics: ClassVar[Mapping[str, bool]]  # what `score` reports; True = higher is better. The first is the default.
    closed: ClassVar[bool] = True  # False: labels never seen in training may be asked for (texts)
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

    def use(self, layer: int) -> None:
        """Feed on one layer alone instead of the weighted sum."""
        self.layer_sum.use(layer)

    def unusable(self, encoded: Any, lengths: Tensor | None) -> int:
        """Clips of a batch that `loss` cannot learn from, such as those too short for their text."""
        return 0

    def select(self, train: Iterable[Tensor], valid: Mapping[str, Tensor], references: Any) -> None:
        """Settle an untrained head's choices.

        train: summaries of the training clips, a few (n, L, D) at a time; valid: (L, D) by utterance id;
        references: those of validation, as for `score`.
        """
        raise HeadError(f"the {type(self).__name__} head is trained, so it has nothing to select")

    @abstractmethod
    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Any]:
        """B predictions: JSON values for heads judged on labels, (E,) embeddings for heads judged on trials."""

    @classmethod
    @abstractmethod
    def score(cls, predictions: Mapping[str, Any], references: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Scores in percent where the metric is a rate, and one outcome row per utterance or trial.

        Beside those of `metrics` a score may be a count that explains one of them, which ranks nothing.

        predictions: by utterance id; references: label strings by utterance id, or a sequence of `Trial`.
        Raises HeadError where ids are missing on either side.
        """
