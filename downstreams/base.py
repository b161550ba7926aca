"""The interface of a head, which turns features into predictions and scores them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from downstreams.errors import HeadError


class Batch(NamedTuple):
    """A batch of clips as the input of a head.

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
    """A verification trial: two utterance ids, and whether both utterances are of one speaker (`target`)."""

    enroll: str
    test: str
    target: bool


class LayerSum(nn.Module):
    """A weighted sum over layers; its softmax weights are uniform at the start (Yang et al., 2021)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))

    def use(self, layer: int) -> None:
        """Fix the weights at 1 for this layer and 0 for all others. Raises HeadError where there is no such layer."""
        if not 0 <= layer < len(self.logits):
            raise HeadError(f"layer must be between 0 and {len(self.logits) - 1}, not {layer}")
        self.requires_grad_(False)
        self.logits.fill_(-torch.inf)[layer] = 0

    @property
    def weights(self) -> Tensor:
        """The layer weights (L,), which sum to one."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., L, D) to (..., D)."""
        if features.shape[-2] == 1:
            return features.squeeze(-2)
        if features.dim() <= 3:
            return torch.tensordot(self.weights, features, dims=([0], [features.dim() - 2]))
        # On frames, one small product per frame is several times faster than einsum or tensordot in both passes.
        flat = features.flatten(0, -3)
        return torch.bmm(self.weights.expand(len(flat), 1, -1), flat).view(*features.shape[:-2], -1)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (B, size), True for the positions before each clip's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def lengths_of(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """Return `lengths` (B,), or T for every clip of frames (B, T, ...) where it is None."""
    return torch.full((len(frames),), frames.shape[1], device=frames.device) if lengths is None else lengths


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean (B, ...) over the valid frames of (B, T, ...)."""
    shares = length_mask(lengths, frames.shape[1]) / lengths[:, None].to(frames.dtype)
    return torch.bmm(shares[:, None], frames.flatten(2)).view(len(frames), *frames.shape[2:])


def match_references(predictions: Mapping[str, Any], references: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """Return (id, prediction, reference) of each clip, in the order of the references.

    Raises HeadError where an id has only one of the two, and where a prediction is NaN.
    """
    for name, clips, values in (
        ("prediction", references, predictions),
        ("reference", predictions, references),
    ):
        missing = [key for key in clips if key not in values]
        if missing:
            raise HeadError(f"no {name} for {len(missing)} of {len(clips)} clips, such as {missing[0]!r}")
    nans = [key for key, value in predictions.items() if isinstance(value, float) and math.isnan(value)]
    if nans:
        raise HeadError(f"the predictions for {len(nans)} clips are NaN, such as that for {nans[0]!r}")
    return [(key, predictions[key], reference) for key, reference in references.items()]


class Head(nn.Module, ABC):
    """Solves one kind of problem on top of features.

    A head derives its classes or alphabet from the training targets alone, so no information about test labels leaks.
    """

    view: ClassVar[Literal["frames", "summary"]]  # the kind of features it takes
    judged_on: ClassVar[Literal["labels", "trials"]]  # what `score` takes as references
    metrics: ClassVar[Mapping[str, bool]]  # what `score` reports; True = higher is better. The first is the default.
    closed: ClassVar[bool] = True  # False: evaluation clips may have labels that no training clip has (texts)
    trained: ClassVar[bool] = True  # False: no training by gradient; `fit_heads` only calls `select`
    batched: ClassVar[bool] = False  # True: K heads may be trained as one batched computation under torch.func.vmap
    layer_sum: LayerSum

    @abstractmethod
    def __init__(self, layers: int, dim: int, targets: Sequence[str], **options: Any) -> None:
        """layers, dim: L and D of the features; targets: label strings of the training clips."""
        super().__init__()

    @abstractmethod
    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def encode(self, targets: Sequence[str]) -> Any:
        """Encode label strings for `loss`, as a tensor or a tuple of tensors. Raises HeadError on unknown labels."""

    @abstractmethod
    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Return the mean loss () of a batch."""

    def use(self, layer: int) -> None:
        """Use one layer alone instead of the weighted sum."""
        self.layer_sum.use(layer)

    def unusable(self, encoded: Any, lengths: Tensor | None) -> int:
        """Return the number of clips in a batch that `loss` ignores, such as clips too short for their text."""
        return 0

    def select(self, train: Iterable[Tensor], valid: Mapping[str, Tensor], references: Any) -> None:
        """Fit an untrained head: select its layer and compute its statistics.

        train: summaries of the training clips, in batches (n, L, D); valid: summaries (L, D) of the validation clips
        by utterance id; references: the validation references, as for `score`.
        """
        raise HeadError(f"the {type(self).__name__} head is trained, so it has nothing to select")

    @abstractmethod
    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Any]:
        """Return B predictions: JSON values for heads judged on labels, embeddings (E,) for heads judged on trials."""

    @classmethod
    @abstractmethod
    def score(cls, predictions: Mapping[str, Any], references: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the scores, in percent where the metric is a rate, and one outcome row per utterance or trial.

        The scores hold all of `metrics`, and may hold counts that explain them and are not ranked.

        predictions: by utterance id; references: label strings by utterance id, or a sequence of `Trial`.
        Raises HeadError where ids are missing on either side.
        """
